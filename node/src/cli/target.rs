//! Which node a verb talks to, and how it prints.

use std::path::PathBuf;

use super::CliError;
use super::client::Client;
use crate::admin::{AdminToken, socket_path};

/// Environment variable with the admin API's address.
const ADMIN_VARIABLE: &str = "MARRAM_ADMIN";
/// Environment variable with the admin token.
const TOKEN_VARIABLE: &str = "MARRAM_TOKEN";
/// Asked when nothing else is said: the default of `admin.bind`.
const ADMIN_DEFAULT: &str = "http://127.0.0.1:7070";

const ADMIN_HELP: &str = "Admin API of the node: http://127.0.0.1:7070, or the path of its socket [env: MARRAM_ADMIN]";

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Output {
    /// A table that fits a terminal.
    #[default]
    Table,
    /// A table with every column, however wide.
    Wide,
    /// The admin API's JSON.
    Json,
}

/// Options of every verb that talks to a node.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Reach {
    #[arg(long, value_name = "URL|SOCKET", help = ADMIN_HELP)]
    pub(super) admin: Option<String>,
    /// The node's folder: talk through its socket
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Output,
}

/// An address of an admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Over TCP.
    Tcp {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// Over a unix socket.
    Socket(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Reach {
    /// A client of the node that the options and the environment name.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        let target = self.target(std::env::var(ADMIN_VARIABLE).ok().as_deref())?;
        let given = std::env::var(TOKEN_VARIABLE).ok().map(|token| format!("Bearer {}", token.trim()));
        let from_dir = match (&target, &self.dir) {
            (Target::Tcp { .. }, Some(dir)) => Some(AdminToken::load(dir)?.authorization()),
            _ => None,
        };
        Ok(Client::new(target, from_dir.or(given)))
    }

    /// `--admin`, else `--dir`, else the environment, else the default address.
    pub(super) fn target(&self, environment: Option<&str>) -> Result<Target, CliError> {
        if let Some(admin) = &self.admin {
            return parse(admin);
        }
        if let Some(dir) = &self.dir {
            let path = socket_path(dir).map_err(|error| CliError::File { path: error.path, source: error.source })?;
            return Ok(Target::Socket(path));
        }
        parse(environment.filter(|admin| !admin.is_empty()).unwrap_or(ADMIN_DEFAULT))
    }
}

fn parse(text: &str) -> Result<Target, CliError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Target::Socket(PathBuf::from(path)));
    }
    if text.starts_with(['/', '.']) {
        return Ok(Target::Socket(PathBuf::from(text)));
    }
    let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let parts = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let bare = |host: &str| host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
    match parts {
        Some((host, port)) if !host.is_empty() && !host.contains(['/', '@']) => {
            let host = bare(host).unwrap_or_else(|| host.to_owned());
            Ok(Target::Tcp { host, port })
        }
        _ => Err(CliError::Usage {
            message: format!("`{text}` is no admin address"),
            hint: "write http://HOST:PORT, or the path of a socket",
        }),
    }
}
