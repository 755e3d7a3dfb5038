//! The command line: one verb per thing a person wants, each a thin client of the admin API or a step of setting up.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded, 4 stale context,
//! 5 not reachable, 6 denied, 7 invalid.

mod client;
mod failure;
mod look;
mod policy;
mod route;
mod settings;
mod start;
mod store;
mod table;
mod target;
mod transparent;

#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::{CliError, Exit};

/// A service mesh without a control plane.
#[derive(Debug, Parser)]
#[command(name = "marram", version, max_term_width = 100, help_template = HELP, after_help = GROUPS, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "{about}\n\n{usage-heading} {usage}{after-help}\n\nOptions:\n{options}\n";

/// The verbs by what they are for. A test holds this list to the verbs there are.
const GROUPS: &str = "\
Start
  demo           nodes, services and load, all here       marram demo --for 30s
  init           a new mesh with its first node           marram init --dir a --mesh shop --name a
  token create   let one more node in                     marram token create --dir a
  join           a new node from a token                  marram join TOKEN --dir b --name b
  agent          run the node of a folder                 marram agent --dir a

Look
  status         this node, its members, links, policy    marram status --dir a
  nodes          every node, its state and why            marram nodes --dir a -o wide
  services       every service and its instances          marram services --dir a
  route explain  why requests go where they go            marram route explain hello --dir a

Policy
  policy         write, look, undo, settle conflicts      marram policy apply --dir a -f split.yaml
  store          verify, export, import; agent stopped    marram store verify --dir a

Ways in
  transparent    lead processes through the agent         marram transparent on --dir a --uid 1001

Settings
  config         check or print a node.toml               marram config check --dir a

Readers reach a node by --admin, MARRAM_ADMIN or --dir; else http://127.0.0.1:7070 is asked.
Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded, 4 stale context, 5 not reachable, 6 denied,
7 invalid.";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(start::Demo),
    Init(start::Init),
    /// Tokens that let nodes join.
    #[command(subcommand)]
    Token(start::Token),
    Join(start::Join),
    Agent(start::Agent),
    Status(look::StatusVerb),
    Nodes(look::NodesVerb),
    Services(look::ServicesVerb),
    /// How requests are routed.
    #[command(subcommand)]
    Route(route::Route),
    /// Policy documents.
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// The policy store on disk, while its agent is stopped.
    #[command(subcommand)]
    Store(store::StoreVerb),
    /// Processes that know nothing of the mesh, led through the agent.
    #[command(subcommand)]
    Transparent(transparent::TransparentVerb),
    /// The file node.toml.
    #[command(subcommand)]
    Config(settings::ConfigVerb),
}

/// Runs the verb the process was called with; the whole of `main`.
#[must_use]
pub fn run() -> ExitCode {
    // clap prints usage faults itself and exits with 2.
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(exit) => exit.into(),
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok.into(),
        Err(error) => {
            // Nobody is left to tell when stderr is closed too.
            drop(writeln!(io::stderr(), "{}", error.report()));
            error.exit().into()
        }
    }
}

fn execute(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Demo(verb) => verb.run(),
        Command::Init(verb) => verb.run(),
        Command::Token(verb) => verb.run(),
        Command::Join(verb) => verb.run(),
        Command::Agent(verb) => verb.run(),
        Command::Status(verb) => verb.run(),
        Command::Nodes(verb) => verb.run(),
        Command::Services(verb) => verb.run(),
        Command::Route(verb) => verb.run(),
        Command::Policy(verb) => verb.run(),
        Command::Store(verb) => verb.run(),
        Command::Transparent(verb) => verb.run(),
        Command::Config(verb) => verb.run(),
    }
}

/// Prints a result; a reader that went away is told apart from a failure.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| CliError::Output(error.into()))?;
    text.push('\n');
    print(&text)
}
