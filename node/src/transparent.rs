//! Sending the TCP connections of chosen processes to the agent, without those processes knowing.
//!
//! The rules stand in a table of their own that belongs to one `nft` process (nftables: `flags owner`): the kernel takes
//! the table away when that process ends. It ends with its input, which a holder process keeps open for as long as the
//! agent lives. So whichever of the three is killed, nothing is left behind that could cut an application off.
//!
//! With [`Mode::Tproxy`] there is a routing rule beside the table, for packets that bear a mark. Only the table gives that
//! mark, so a rule that a killed holder left behind concerns nothing.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::admin::socket_path;

/// The one table; a second agent on the machine has to wait until it is free.
pub const TABLE: &str = "marram";
/// What packets bear that TPROXY is to take: "marr".
const MARK: u32 = 0x6d61_7272;
/// The number of the table of routes for them.
const ROUTES: &str = "7081";
/// Name of the file within a node's folder that says what is in force; locked by whoever holds it there.
const FILE_NAME: &str = "transparent.json";
/// Looks until the rules must be in force, or gone: 5 s.
const LOOKS_MAX: u32 = 250;
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How connections come to the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The kernel changes the destination of each connection (NAT) and remembers the one before.
    #[default]
    Redirect,
    /// The kernel hands the packets over as they are (TPROXY), for kernels without NAT; the agent needs `CAP_NET_ADMIN` or
    /// `CAP_NET_RAW`.
    Tproxy,
}

/// Whose connections go to the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// How.
    #[serde(default)]
    pub mode: Mode,
    /// User ids.
    pub uids: Vec<u32>,
    /// Control groups (version 2), as paths below `/sys/fs/cgroup`.
    pub cgroups: Vec<String>,
    /// Port of the agent's transparent listener on 127.0.0.1.
    pub port: u16,
}

impl Redirect {
    /// The commands for `nft` that put this in force.
    #[must_use]
    pub fn rules(&self) -> String {
        let port = self.port;
        let mut text = format!("add table ip {TABLE} {{ flags owner; }}\n");
        let (chain, verdict) = match self.mode {
            Mode::Redirect => ("type nat hook output priority -100", format!("redirect to :{port}")),
            // What a process answers to those that came to it is not sent to the agent.
            Mode::Tproxy => {
                ("type route hook output priority -150", format!("ct direction original meta mark set {MARK:#010x}"))
            }
        };
        // Writing into a string cannot fail. What takes marked packets is there before anything marks them.
        if self.mode == Mode::Tproxy {
            writeln!(
                text,
                "add chain ip {TABLE} prerouting {{ type filter hook prerouting priority -150; policy accept; }}\n\
                 add rule ip {TABLE} prerouting iif lo meta mark {MARK:#010x} meta l4proto tcp tproxy to 127.0.0.1:{port} accept"
            )
            .ok();
        }
        writeln!(text, "add chain ip {TABLE} output {{ {chain}; policy accept; }}").ok();
        let uids = self.uids.iter().map(|uid| format!("meta skuid {uid}"));
        let cgroups = self.cgroups.iter().map(|path| {
            let level = path.split('/').count();
            format!("socket cgroupv2 level {level} \"{path}\"")
        });
        for subject in uids.chain(cgroups) {
            writeln!(text, "add rule ip {TABLE} output meta l4proto tcp {subject} {verdict}").ok();
        }
        text
    }

    /// What every rule of a subject ends with, as `nft` lists it.
    const fn verdict(&self) -> &'static str {
        match self.mode {
            Mode::Redirect => "redirect to",
            Mode::Tproxy => "mark set",
        }
    }

    /// Whether a table that `nft` lists has all of it, with rules for so many subjects: `nft` goes on after a rule that the
    /// kernel refuses.
    fn is_in(&self, table: &str, wanted: usize) -> bool {
        let takes_marked = self.mode == Mode::Redirect || table.contains("tproxy to");
        takes_marked && table.matches(self.verdict()).count() == wanted
    }

    /// Who, for people.
    #[must_use]
    pub fn subjects(&self) -> String {
        let uids = self.uids.iter().map(|uid| format!("uid {uid}"));
        uids.chain(self.cgroups.iter().map(|cgroup| format!("cgroup {cgroup}"))).collect::<Vec<_>>().join(", ")
    }

    /// Whether the agent's own connections would come back to it: they would go round for ever.
    ///
    /// # Errors
    /// Says which of the choices it is, and the way out.
    pub fn check(&self, agent: &AgentProcess) -> anyhow::Result<()> {
        if self.mode == Mode::Tproxy && !agent.may_be_transparent {
            bail!(
                "the agent may not take connections that are meant for others: it has neither CAP_NET_ADMIN nor CAP_NET_RAW\n  hint: with systemd `AmbientCapabilities=CAP_NET_RAW` and the same in CapabilityBoundingSet, or use --mode redirect, which needs none"
            );
        }
        if self.uids.contains(&agent.uid) {
            bail!(
                "uid {} is the agent's own, whose connections must not come back to it\n  hint: run the agent or the application as another user, or choose the application by --cgroup",
                agent.uid
            );
        }
        let within = |cgroup: &&String| {
            agent.cgroup.strip_prefix(cgroup.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(cgroup) = self.cgroups.iter().find(within) {
            bail!(
                "the agent runs in cgroup {cgroup}, and its own connections must not come back to it\n  hint: name the application's own cgroup"
            );
        }
        Ok(())
    }
}

/// A control group as rules name it: without its mount point and outer slashes. `None` where that leaves nothing usable.
#[must_use]
pub fn cgroup_name(path: &str) -> Option<String> {
    let below = path.strip_prefix("/sys/fs/cgroup").unwrap_or(path).trim_matches('/');
    let is_plain = |part: &str| !part.is_empty() && part != ".." && !part.contains(['"', '\n', '\\', ';']);
    below.split('/').all(is_plain).then(|| below.to_owned())
}

/// The agent of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentProcess {
    /// Its process id.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its control group (version 2), without the outer slash; empty for the root or where there is none.
    pub cgroup: String,
    /// Whether it has a capability that TPROXY asks for.
    pub may_be_transparent: bool,
}

impl AgentProcess {
    /// Asks the kernel who listens on the folder's admin socket.
    ///
    /// # Errors
    /// When nobody does.
    pub fn of(dir: &Path) -> anyhow::Result<Self> {
        let path = socket_path(dir)?;
        let socket = UnixStream::connect(&path)
            .with_context(|| format!("no agent answers at {}\n  hint: `marram agent --dir DIR`", path.display()))?;
        let peer = rustix::net::sockopt::socket_peercred(&socket).context("ask who listens on the admin socket")?;
        let pid = peer.pid.as_raw_nonzero().get();
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let cgroup = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Ok(Self { pid, uid: peer.uid.as_raw(), cgroup, may_be_transparent: may_be_transparent(&status) })
    }
}

/// Whether a process with this `/proc/PID/status` may set `IP_TRANSPARENT` (ip(7)).
fn may_be_transparent(status: &str) -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    effective & (NET_ADMIN | NET_RAW) != 0
}

/// What is in force, as the holder has written it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Process that holds the rules.
    pub holder: i32,
    /// Process of the agent they lead to.
    pub agent: i32,
    /// What they are.
    pub redirect: Redirect,
}

/// What is in force for the agent of a folder.
///
/// # Errors
/// When the file cannot be read.
pub fn in_force(dir: &Path) -> anyhow::Result<Option<InForce>> {
    let path = dir.join(FILE_NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault).with_context(|| format!("open {}", path.display())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        // Nobody holds it: what it says is over.
        Ok(()) => Ok(None),
        Err(_held) => {
            let text = io::read_to_string(file).with_context(|| format!("read {}", path.display()))?;
            // It is being written at this moment.
            Ok(serde_json::from_str(&text).ok())
        }
    }
}

/// Ends what is in force for the agent of a folder; false when nothing was.
///
/// # Errors
/// When the holder does not end.
pub fn end(dir: &Path) -> anyhow::Result<bool> {
    let Some(held) = in_force(dir)? else { return Ok(false) };
    let holder = Pid::from_raw(held.holder).context("the holder has no process id")?;
    kill_process(holder, Signal::TERM).with_context(|| format!("end the holder, process {}", held.holder))?;
    for _ in 0..LOOKS_MAX {
        if in_force(dir)?.is_none() && table()?.is_none() {
            if held.redirect.mode == Mode::Tproxy {
                // A signal gave its holder no time for that.
                drop(MarkedRoute);
            }
            return Ok(true);
        }
        poll(&mut [], Some(&LOOK_EVERY)).ok();
    }
    bail!("table ip {TABLE} is still there\n  hint: `nft list table ip {TABLE}` says who owns it")
}

/// Puts `redirect` in force, calls `told`, and keeps it in force until the agent of the folder ends, or this process.
///
/// # Errors
/// When the rules cannot be put in force; nothing is left of them.
pub fn hold(dir: &Path, redirect: &Redirect, told: impl FnOnce() -> io::Result<()>) -> anyhow::Result<()> {
    // Away from the terminal, whose end must not be that of the rules.
    rustix::process::setsid().ok();
    let mut file = locked(dir)?;
    let agent = AgentProcess::of(dir)?;
    redirect.check(&agent)?;
    let pid = Pid::from_raw(agent.pid).context("the agent has no process id here")?;
    let agent_end = pidfd_open(pid, PidfdFlags::empty()).context("watch the agent's process")?;
    if table()?.is_some() {
        bail!(
            "table ip {TABLE} is there already\n  hint: another agent of this machine may have it: `marram transparent off --dir DIR`"
        );
    }
    let _route = (redirect.mode == Mode::Tproxy).then(MarkedRoute::add).transpose()?;
    let mut firewall = Firewall::start(redirect)?;
    firewall.wait_in_force(redirect)?;
    let held = InForce { holder: own_pid()?, agent: agent.pid, redirect: redirect.clone() };
    file.set_len(0)?;
    file.write_all(serde_json::to_string(&held)?.as_bytes())?;
    told()?;
    let mut ends = [PollFd::new(&agent_end, PollFlags::IN), PollFd::new(&firewall.end, PollFlags::IN)];
    while poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
    Ok(())
}

fn own_pid() -> anyhow::Result<i32> {
    i32::try_from(std::process::id()).context("the process id is out of range")
}

fn locked(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(FILE_NAME);
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_held| anyhow::anyhow!("it is on already\n  hint: `marram transparent off --dir DIR` first"))?;
    Ok(file)
}

/// The `nft` process that owns the table.
struct Firewall {
    nft: Child,
    end: OwnedFd,
}

impl Firewall {
    fn start(redirect: &Redirect) -> anyhow::Result<Self> {
        let mut nft = Command::new(program("nft", "nftables")?);
        nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let nft = nft.spawn().context("start nft")?;
        let pid = i32::try_from(nft.id()).ok().and_then(Pid::from_raw).context("nft has no process id")?;
        let end = pidfd_open(pid, PidfdFlags::empty()).context("watch nft")?;
        let mut firewall = Self { nft, end };
        let input = firewall.nft.stdin.as_mut().context("nft has no input")?;
        input.write_all(redirect.rules().as_bytes()).context("tell nft the rules")?;
        Ok(firewall)
    }

    /// nft says nothing when all is well: what counts is what the kernel has.
    fn wait_in_force(&mut self, redirect: &Redirect) -> anyhow::Result<()> {
        let wanted = redirect.uids.len() + redirect.cgroups.len();
        for _ in 0..LOOKS_MAX {
            if table()?.is_some_and(|text| redirect.is_in(&text, wanted)) {
                return Ok(());
            }
            let mut end = [PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)];
            if matches!(poll(&mut end, Some(&LOOK_EVERY)), Ok(1..)) {
                break;
            }
        }
        // It may still wait for more.
        self.nft.kill().ok();
        let mut said = String::new();
        if let Some(stderr) = &mut self.nft.stderr {
            stderr.read_to_string(&mut said).ok();
        }
        bail!(
            "nft did not take the rules: {}\n  hint: this needs root (CAP_NET_ADMIN), Linux 5.12 and nftables 0.9.9 with its interactive mode",
            said.trim()
        )
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        drop(self.nft.stdin.take());
        self.nft.kill().ok();
        self.nft.wait().ok();
    }
}

/// The way of marked packets back to this machine, until it is dropped.
struct MarkedRoute;

impl MarkedRoute {
    fn add() -> anyhow::Result<Self> {
        // A holder that was killed has left its own.
        Self::ip(&["rule", "del"]).ok();
        Self::ip(&["rule", "add"])?;
        let route = Self;
        ip(&["route", "replace", "local", "0.0.0.0/0", "dev", "lo", "table", ROUTES])?;
        Ok(route)
    }

    fn ip(verb: &[&str]) -> anyhow::Result<()> {
        ip(&[verb, &["fwmark", &format!("{MARK:#010x}"), "lookup", ROUTES]].concat())
    }
}

impl Drop for MarkedRoute {
    fn drop(&mut self) {
        Self::ip(&["rule", "del"]).ok();
        ip(&["route", "flush", "table", ROUTES]).ok();
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let said = Command::new(program("ip", "iproute2")?).arg("-4").args(words).stdin(Stdio::null()).output();
    let said = said.context("run ip")?;
    if !said.status.success() {
        let (words, why) = (words.join(" "), String::from_utf8_lossy(&said.stderr).trim().to_owned());
        bail!("`ip -4 {words}` failed: {why}\n  hint: this needs root (CAP_NET_ADMIN)");
    }
    Ok(())
}

/// The table as the kernel has it; `None` where there is none.
fn table() -> anyhow::Result<Option<String>> {
    let listed =
        Command::new(program("nft", "nftables")?).args(["list", "table", "ip", TABLE]).stdin(Stdio::null()).output();
    let listed = listed.context("run nft")?;
    Ok(listed.status.success().then(|| String::from_utf8_lossy(&listed.stdout).into_owned()))
}

/// `name` of the package `package`, also where the search path of a user leaves out the folders of root's programs.
fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&searched).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file());
    found.with_context(|| format!("{name} is not installed\n  hint: apt install {package}"))
}

/// Where the agent's transparent listener must be for rules to lead there.
///
/// # Errors
/// Says what to set in `node.toml`.
pub fn port_of(config: &crate::config::TransparentConfig) -> anyhow::Result<u16> {
    if !config.enabled {
        bail!(
            "the agent has no transparent listener\n  hint: set `transparent.enabled = true` in node.toml and start the agent again"
        );
    }
    match config.bind {
        SocketAddr::V4(bind) => Ok(bind.port()),
        SocketAddr::V6(bind) => bail!("{bind} is no IPv4 address, and only those are redirected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(uids: &[u32], cgroups: &[&str]) -> Redirect {
        let cgroups = cgroups.iter().map(|name| (*name).to_owned()).collect();
        Redirect { mode: Mode::Redirect, uids: uids.to_vec(), cgroups, port: 7081 }
    }

    #[test]
    fn rules_name_each_subject_and_stand_in_a_table_that_goes_with_its_owner() {
        assert_eq!(
            redirect(&[1001], &["system.slice/shop.service"]).rules(),
            "add table ip marram { flags owner; }\n\
             add chain ip marram output { type nat hook output priority -100; policy accept; }\n\
             add rule ip marram output meta l4proto tcp meta skuid 1001 redirect to :7081\n\
             add rule ip marram output meta l4proto tcp socket cgroupv2 level 2 \"system.slice/shop.service\" redirect to :7081\n"
        );
    }

    #[test]
    fn tproxy_marks_what_a_subject_begins_and_hands_over_what_comes_back_with_the_mark() {
        let tproxy = Redirect { mode: Mode::Tproxy, ..redirect(&[1001], &["shop"]) };
        assert_eq!(
            tproxy.rules(),
            "add table ip marram { flags owner; }\n\
             add chain ip marram prerouting { type filter hook prerouting priority -150; policy accept; }\n\
             add rule ip marram prerouting iif lo meta mark 0x6d617272 meta l4proto tcp tproxy to 127.0.0.1:7081 accept\n\
             add chain ip marram output { type route hook output priority -150; policy accept; }\n\
             add rule ip marram output meta l4proto tcp meta skuid 1001 ct direction original meta mark set 0x6d617272\n\
             add rule ip marram output meta l4proto tcp socket cgroupv2 level 1 \"shop\" ct direction original meta mark set 0x6d617272\n"
        );
        let marks = "skuid 1001 ct direction original meta mark set 0x6d617272\n";
        assert!(!tproxy.is_in(marks, 1), "nothing takes what is marked");
        assert!(!tproxy.is_in("meta mark 0x6d617272 tproxy to 127.0.0.1:7081 accept\n", 1));
        assert!(tproxy.is_in(&format!("{marks}meta mark 0x6d617272 tproxy to 127.0.0.1:7081 accept\n"), 1));
    }

    #[test]
    fn tproxy_asks_for_an_agent_with_a_capability() {
        for (status, may) in [
            ("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n", false),
            ("CapEff:\t0000000000001000\n", true),
            ("CapEff:\t0000000000002000\n", true),
            ("CapEff:\t0000000000000400\n", false),
            ("", false),
        ] {
            assert_eq!(may_be_transparent(status), may, "{status}");
            let agent = AgentProcess { pid: 7, uid: 1, cgroup: String::new(), may_be_transparent: may };
            let tproxy = Redirect { mode: Mode::Tproxy, ..redirect(&[1001], &[]) };
            assert_eq!(tproxy.check(&agent).is_ok(), may, "{status}");
            assert!(redirect(&[1001], &[]).check(&agent).is_ok());
        }
    }

    #[test]
    fn a_choice_that_holds_the_agent_itself_is_refused() {
        let cgroup = "system.slice/marram.service".to_owned();
        let agent = AgentProcess { pid: 7, uid: 1001, cgroup, may_be_transparent: false };
        for (choice, is_good) in [
            (redirect(&[1002], &[]), true),
            (redirect(&[1002, 1001], &[]), false),
            (redirect(&[], &["system.slice/shop.service", "system.slice/marram"]), true),
            (redirect(&[], &["system.slice"]), false),
            (redirect(&[], &["system.slice/marram.service"]), false),
        ] {
            assert_eq!(choice.check(&agent).is_ok(), is_good, "{choice:?}");
        }
    }

    #[test]
    fn a_cgroup_is_named_by_its_path_and_nothing_else_gets_into_a_rule() {
        for (path, name) in [
            ("/sys/fs/cgroup/system.slice/shop.service", Some("system.slice/shop.service")),
            ("system.slice/", Some("system.slice")),
            ("/", None),
            ("a/../b", None),
            ("a\" accept", None),
            ("a\nflush ruleset", None),
        ] {
            assert_eq!(cgroup_name(path).as_deref(), name, "{path:?}");
        }
    }
}
