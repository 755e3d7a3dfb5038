//! Cuts a bridge network in two with iptables, and always mends it.
//!
//! All rules stand in one chain of our own, which is put first in FORWARD when the network is cut: earlier would not
//! do, since Docker puts its own rules first whenever it makes a network, and those let established flows pass.
//! Packets between containers of one bridge pass there only while `net.bridge.bridge-nf-call-iptables` is 1.
//! [`Firewall`] takes everything back when it is dropped, which also happens on an error, a panic and Ctrl-C; what a
//! killed run left behind is removed by the next one.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// The right to cut the network; it is whole until [`Firewall::split`].
#[derive(Debug)]
pub struct Firewall {
    /// What `bridge-nf-call-iptables` said before, when it was changed.
    restore_setting: Option<String>,
}

impl Firewall {
    /// Makes sure that bridged packets pass iptables, and that no cut of an earlier run is left.
    ///
    /// # Errors
    /// Without root, without iptables, or where bridged packets cannot be made to pass iptables.
    pub fn install() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "cutting the network takes root (iptables)");
        iptables(&["-L", "FORWARD", "-n"])?;
        Self::remove_chain();
        Ok(Self { restore_setting: bridged_packets_pass_iptables()? })
    }

    /// Drops every packet between the two groups of addresses, in both directions at the same moment.
    ///
    /// # Errors
    /// When iptables refuses; the network is then whole.
    pub fn split(&self, left: &[String], right: &[String]) -> Result<()> {
        let (left, right) = (left.join(","), right.join(","));
        Self::remove_chain();
        iptables(&["-N", CHAIN])?;
        iptables(&["-A", CHAIN, "-s", &left, "-d", &right, "-j", "DROP"])?;
        iptables(&["-A", CHAIN, "-s", &right, "-d", &left, "-j", "DROP"])?;
        iptables(&["-I", "FORWARD", "1", "-j", CHAIN]).map(drop)
    }

    /// Lets everything pass again.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn heal(&self) -> Result<()> {
        iptables(&["-D", "FORWARD", "-j", CHAIN]).map(drop)
    }

    /// Packets dropped since the split, for each rule in order.
    ///
    /// # Errors
    /// When iptables refuses.
    pub fn dropped(&self) -> Result<Vec<u64>> {
        let listed = iptables(&["-L", CHAIN, "-v", "-x", "-n"])?;
        Ok(packets(&String::from_utf8_lossy(&listed.stdout)))
    }

    fn remove_chain() {
        // Each fails where there is nothing to remove, which is the aim.
        while iptables(&["-D", "FORWARD", "-j", CHAIN]).is_ok() {}
        iptables(&["-F", CHAIN]).ok();
        iptables(&["-X", CHAIN]).ok();
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        Self::remove_chain();
        if let Some(value) = self.restore_setting.take()
            && let Err(error) = fs::write(BRIDGE_SETTING, value)
        {
            eprintln!("warning: {BRIDGE_SETTING} stays changed: {error}");
        }
    }
}

/// Switches the setting on where it is off; gives what it was.
fn bridged_packets_pass_iptables() -> Result<Option<String>> {
    if !fs::exists(BRIDGE_SETTING)? {
        // Loads where it is a module; the check below tells whether it did.
        Command::new("modprobe").arg("br_netfilter").output().ok();
    }
    let before = fs::read_to_string(BRIDGE_SETTING)
        .with_context(|| format!("{BRIDGE_SETTING}: without it, packets of one bridge do not pass iptables"))?;
    if before.trim() == "1" {
        return Ok(None);
    }
    fs::write(BRIDGE_SETTING, "1").with_context(|| format!("{BRIDGE_SETTING}: cannot be set to 1"))?;
    Ok(Some(before))
}

/// `-w` waits for another program's lock on the tables.
fn iptables(arguments: &[&str]) -> Result<Output> {
    let output = Command::new("iptables").arg("-w").args(arguments).output().context("iptables does not start")?;
    if !output.status.success() {
        bail!("iptables {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// The first column of each rule in `iptables -L CHAIN -v -x -n`: two lines of heading, then the rules.
fn packets(listed: &str) -> Vec<u64> {
    listed.lines().skip(2).filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

const CHAIN: &str = "MARRAM-SPLIT";
const BRIDGE_SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

#[cfg(test)]
mod tests {
    use super::packets;

    #[test]
    fn packet_counts_are_read_from_the_listing() {
        let listed = "Chain MARRAM-SPLIT (1 references)\n    pkts      bytes target     prot opt in     out     source               destination\n      12     3456 DROP       17   --  *      *       10.0.0.1             10.0.0.2\n       0        0 DROP       17   --  *      *       10.0.0.2             10.0.0.1\n";
        assert_eq!(packets(listed), [12, 0]);
        assert_eq!(packets(""), [0_u64; 0]);
    }
}
