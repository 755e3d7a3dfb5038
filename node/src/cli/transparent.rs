//! `transparent`: processes that know nothing of the mesh, led through the agent.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{CliError, Exit, print};
use crate::config::Config;
use crate::transparent::{AgentProcess, Mode, Redirect, cgroup_name, end, hold, in_force, port_of};

/// Leads the TCP connections of chosen processes through the agent, as long as it lives.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TransparentVerb {
    On(On),
    Off(Off),
    Status(Status),
    Hold(Hold),
}

impl TransparentVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::On(verb) => verb.run(),
            Self::Off(verb) => verb.run(),
            Self::Status(verb) => verb.run(),
            Self::Hold(verb) => verb.run(),
        }
    }
}

/// Which processes, of which agent.
#[derive(Debug, clap::Args)]
struct Choice {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Processes of this user; may be repeated
    #[arg(long = "uid", value_name = "UID", required_unless_present = "cgroups")]
    uids: Vec<u32>,
    /// Processes of this control group (version 2), as a path below /sys/fs/cgroup; may be repeated
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<String>,
    /// How the kernel leads them here
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
}

impl Choice {
    fn redirect(&self) -> Result<Redirect, CliError> {
        let port = port_of(&Config::load_dir(&self.dir)?.transparent).map_err(CliError::Agent)?;
        let cgroup = |path: &String| {
            cgroup_name(path).ok_or_else(|| CliError::Usage {
                message: format!("`{}` is no control group", path.escape_debug()),
                hint: "a path below /sys/fs/cgroup: system.slice/shop.service",
            })
        };
        let cgroups = self.cgroups.iter().map(cgroup).collect::<Result<_, _>>()?;
        Ok(Redirect { mode: self.mode, uids: self.uids.clone(), cgroups, port })
    }

    fn words(&self) -> impl Iterator<Item = String> {
        let uids = self.uids.iter().flat_map(|uid| ["--uid".to_owned(), uid.to_string()]);
        let mode = (self.mode == Mode::Tproxy).then(|| ["--mode".to_owned(), "tproxy".to_owned()]);
        let cgroups = self.cgroups.iter().flat_map(|path| ["--cgroup".to_owned(), path.clone()]);
        uids.chain(cgroups).chain(mode.into_iter().flatten())
    }
}

/// Redirects them by rules that go when the agent does; needs root and nftables.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram transparent on --dir a --uid 1001")]
pub(super) struct On {
    #[command(flatten)]
    choice: Choice,
    /// Print the rules and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl On {
    fn run(self) -> Result<Exit, CliError> {
        let redirect = self.choice.redirect()?;
        if self.dry_run {
            print(&redirect.rules())?;
            return Ok(Exit::Ok);
        }
        let agent = AgentProcess::of(&self.choice.dir).map_err(CliError::Agent)?;
        redirect.check(&agent).map_err(CliError::Agent)?;
        self.start_holder()?;
        print(&format!(
            "connections of {} go to 127.0.0.1:{} for as long as the agent lives, process {}\n",
            redirect.subjects(),
            redirect.port,
            agent.pid
        ))?;
        Ok(Exit::Ok)
    }

    /// The holder says one line when the rules are in force, and goes on alone.
    fn start_holder(&self) -> Result<(), CliError> {
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["transparent", "hold", "--dir"]).arg(&self.choice.dir).args(self.choice.words());
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            Ok((child.stdout.take(), child.stderr.take(), child))
        };
        // Nobody waits for the holder: it goes on when this process has ended.
        let (out, err, _holder) = start().map_err(CliError::Runtime)?;
        let (mut line, mut fault) = (String::new(), String::new());
        if let Some(out) = out {
            BufReader::new(out).read_line(&mut line).map_err(CliError::Runtime)?;
        }
        if !line.is_empty() {
            return Ok(());
        }
        if let Some(mut err) = err {
            err.read_to_string(&mut fault).map_err(CliError::Runtime)?;
        }
        let fault = fault.trim().strip_prefix("error: ").unwrap_or(fault.trim()).to_owned();
        Err(CliError::Agent(anyhow::anyhow!("{fault}")))
    }
}

/// Takes the rules away; connections that are open through the agent stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram transparent off --dir a")]
pub(super) struct Off {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Off {
    fn run(self) -> Result<Exit, CliError> {
        let was_on = end(&self.dir).map_err(CliError::Agent)?;
        print(if was_on { "off\n" } else { "off already\n" })?;
        Ok(Exit::Ok)
    }
}

/// Says whose connections go through the agent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram transparent status --dir a")]
pub(super) struct Status {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Status {
    fn run(self) -> Result<Exit, CliError> {
        let text = match in_force(&self.dir).map_err(CliError::Agent)? {
            Some(held) => {
                let (subjects, port) = (held.redirect.subjects(), held.redirect.port);
                let (agent, holder) = (held.agent, held.holder);
                let by = if held.redirect.mode == Mode::Tproxy { " by TPROXY" } else { "" };
                format!(
                    "on: connections of {subjects} go to 127.0.0.1:{port}{by}, agent process {agent}, held by process {holder}\n"
                )
            }
            None => "off\n".to_owned(),
        };
        print(&text)?;
        Ok(Exit::Ok)
    }
}

/// What `on` leaves behind: keeps the rules until the agent ends.
#[derive(Debug, clap::Args)]
#[command(hide = true, after_help = "Example:\n  marram transparent hold --dir a --uid 1001")]
pub(super) struct Hold {
    #[command(flatten)]
    choice: Choice,
}

impl Hold {
    fn run(self) -> Result<Exit, CliError> {
        let told = || print("on\n").map_err(std::io::Error::other);
        hold(&self.choice.dir, &self.choice.redirect()?, told).map_err(CliError::Agent)?;
        Ok(Exit::Ok)
    }
}
