//! Folders, ports and processes of several agents.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use node::config::{Config, Protocol, ServiceConfig};
use node::view::NodeView;
use policy::explain::Explanation;

use crate::http::{Answer, Request, get, send};
use crate::{binary, eventually};

/// How long a fleet may take to see itself whole.
const WHOLE: Duration = Duration::from_secs(30);

/// Changes the configuration of node number `n` before it starts.
pub type Setup<'a> = &'a dyn Fn(usize, &mut Config);

/// Several agents of one mesh; dropping it kills them and removes their folders.
#[derive(Debug)]
pub struct Fleet {
    /// The agents in the order in which they joined; the first ran `init`.
    pub nodes: Vec<Node>,
    _root: tempfile::TempDir,
}

/// One agent.
#[derive(Debug)]
pub struct Node {
    /// Its label: `n0`, `n1` ...
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Mesh address.
    pub mesh: SocketAddr,
    /// Admin API.
    pub admin: SocketAddr,
    /// HTTP proxy.
    pub proxy: SocketAddr,
    child: Option<Child>,
}

impl Fleet {
    /// Makes a mesh of `count` agents, starts them, and waits until all see all alive.
    ///
    /// # Panics
    /// When that does not happen; shows the agents' logs.
    #[must_use]
    pub fn start(count: usize, setup: Setup<'_>) -> Self {
        let fleet = Self::launch(count, setup);
        fleet.wait_whole();
        fleet
    }

    /// Like [`Fleet::start`] without waiting.
    ///
    /// # Panics
    /// When a verb of the command line fails.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn launch(count: usize, setup: Setup<'_>) -> Self {
        let root = tempfile::Builder::new().prefix("marram-it-").tempdir().expect("a temporary folder");
        let mut fleet = Self { nodes: Vec::new(), _root: root };
        for n in 0..count {
            let mut node = Node::prepare(n, fleet._root.path());
            match fleet.nodes.first() {
                None => node.run_ok(&node.options(&["init", "--mesh", "it"])),
                Some(first) => {
                    let token = first.token(&[]);
                    node.run_ok(&node.options(&["join", &token]))
                }
            };
            node.configure(|config| {
                config.mesh.bind = node.mesh;
                setup(n, config);
            });
            node.start();
            fleet.nodes.push(node);
        }
        fleet
    }

    /// Waits until every running agent sees `nodes.len()` members alive.
    ///
    /// # Panics
    /// When that does not happen in 30 s; shows the agents' logs.
    pub fn wait_whole(&self) {
        let wanted = self.nodes.len();
        eventually("the fleet sees itself whole", WHOLE, || {
            for node in &self.nodes {
                let alive = node.members("alive")?;
                if alive.len() != wanted {
                    return Err(format!("{} sees {alive:?} alive\n{}", node.name, self.logs()));
                }
            }
            Ok(())
        });
    }

    /// Waits until every node's `service` has `count` candidates to draw from.
    ///
    /// # Panics
    /// When that does not happen in 30 s; shows the agents' logs.
    pub fn wait_service(&self, service: &str, count: usize) {
        eventually(&format!("{service} has {count} candidates everywhere"), WHOLE, || {
            for node in &self.nodes {
                let found = node.explain(service)?.candidates.len();
                if found != count {
                    return Err(format!("{} sees {found}\n{}", node.name, self.logs()));
                }
            }
            Ok(())
        });
    }

    /// Waits until all nodes have the same policy root and returns it with the time it took.
    ///
    /// # Panics
    /// When they differ after `at_most`.
    #[must_use]
    pub fn wait_roots_equal(&self, at_most: Duration) -> (String, Duration) {
        eventually("policy roots are equal", at_most, || {
            let roots: Vec<String> = self.nodes.iter().map(Node::root).collect::<Result<_, _>>()?;
            if roots.windows(2).all(|pair| pair.first() == pair.last()) {
                roots.into_iter().next().ok_or_else(|| "no nodes".to_owned())
            } else {
                Err(format!("{roots:?}"))
            }
        })
    }

    /// The end of every agent's log.
    #[must_use]
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log_tail(25))).collect()
    }
}

impl Node {
    /// Folder and free ports for node `n` below `root`.
    fn prepare(n: usize, root: &Path) -> Self {
        let name = format!("n{n}");
        Self { dir: root.join(&name), name, mesh: free_mesh_port(), admin: free_port(), proxy: free_port(), child: None }
    }

    /// The words of `init` or `join` with this node's names and ports.
    #[must_use]
    pub fn options(&self, head: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = head.iter().map(|word| (*word).to_owned()).collect();
        let pairs = [
            ("--dir", self.dir.display().to_string()),
            ("--name", self.name.clone()),
            ("--advertise", self.mesh.to_string()),
            ("--mesh-port", self.mesh.port().to_string()),
            ("--admin", self.admin.to_string()),
            ("--proxy", self.proxy.to_string()),
        ];
        words.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        words
    }

    /// Changes `node.toml`.
    ///
    /// # Panics
    /// When the file is not what `init` or `join` write.
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        let path = self.dir.join("node.toml");
        let text = fs::read_to_string(&path).expect("node.toml is there");
        let mut config: Config = toml::from_str(&text).expect("node.toml reads");
        change(&mut config);
        fs::write(&path, toml::to_string(&config).expect("a config prints")).expect("node.toml is written");
    }

    /// Starts the agent; its log goes on in `DIR.log`.
    ///
    /// # Panics
    /// When it runs already or the process cannot be made.
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let child = Command::new(binary())
            .args(["agent", "--dir"])
            .arg(&self.dir)
            .env("MARRAM_STOP_WITH_STDIN", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("marram starts");
        self.child = Some(child);
    }

    /// Kills the agent without a word to it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Sends SIGTERM and waits for the end; returns the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        self.signal_child(&child, rustix::process::Signal::TERM);
        child.wait().ok()?.code()
    }

    /// Stops or continues the process (SIGSTOP, SIGCONT).
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(child) = &self.child {
            self.signal_child(child, signal);
        }
    }

    fn signal_child(&self, child: &Child, signal: rustix::process::Signal) {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, signal).ok();
        }
    }

    /// The process id of the running agent.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs a verb of `marram` and returns its output.
    ///
    /// # Panics
    /// When the binary does not run.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn run(&self, words: &[impl AsRef<std::ffi::OsStr>]) -> Output {
        Command::new(binary()).args(words).stdin(Stdio::null()).output().expect("marram runs")
    }

    /// Runs a verb that must succeed and returns its standard output.
    ///
    /// # Panics
    /// When it fails; shows what it said.
    pub fn run_ok(&self, words: &[impl AsRef<std::ffi::OsStr>]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "marram {}: {said}", self.name);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A token of this node, with these further words for `token create`.
    #[must_use]
    pub fn token(&self, words: &[&str]) -> String {
        let dir = self.dir.display().to_string();
        let mut all = vec!["token", "create", "--dir", &dir];
        all.extend(words);
        self.run_ok(&all).trim().to_owned()
    }

    /// Adds an HTTP instance of `service` at `address` to `config`.
    pub fn serve(config: &mut Config, service: &str, address: SocketAddr, capacity: Option<f64>) {
        config.services.push(ServiceConfig {
            name: service.to_owned(),
            id: None,
            address: address.ip(),
            port: address.port(),
            protocol: Protocol::Http,
            capacity,
            labels: std::collections::BTreeMap::new(),
            checks: Vec::new(),
        });
    }

    /// `GET` of the admin API.
    ///
    /// # Errors
    /// Why there was no answer, or the answer when it is no success.
    pub fn ask(&self, path: &str) -> Result<serde_json::Value, String> {
        let answer = get(self.admin, path, &[])?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{path}: {}: {}", answer.status, answer.body)) }
    }

    /// A write of the admin API with this node's token.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn write(&self, method: &str, path: &str, body: &str) -> Answer {
        let token = fs::read_to_string(self.dir.join("admin.token")).expect("admin.token is there");
        let bearer = format!("Bearer {}", token.trim());
        let kind = if body.trim_start().starts_with('{') { "application/json" } else { "application/yaml" };
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        send(self.admin, &Request { method, path, headers: &headers, body: Some(body) }).expect("the admin API answers")
    }

    /// `GET path` of `service` through this node's proxy.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn get(&self, service: &str, path: &str) -> Result<Answer, String> {
        get(self.proxy, path, &[("host", &format!("{service}.mesh"))])
    }

    /// Labels of the members in `state`, as this node sees them.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn members(&self, state: &str) -> Result<Vec<String>, String> {
        Ok(self.nodes()?.into_iter().filter(|node| node.state == state).map(|node| node.name).collect())
    }

    /// Everything this node knows of all nodes.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn nodes(&self) -> Result<Vec<NodeView>, String> {
        serde_json::from_value(self.ask("/v1/nodes")?).map_err(|fault| fault.to_string())
    }

    /// The decision for `service` as this node would take it now.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn explain(&self, service: &str) -> Result<Explanation, String> {
        serde_json::from_value(self.ask(&format!("/v1/explain/{service}"))?).map_err(|fault| fault.to_string())
    }

    /// This node's policy root.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn root(&self) -> Result<String, String> {
        let status = self.ask("/v1/status")?;
        status.pointer("/policy/root").and_then(|root| root.as_str()).map(str::to_owned).ok_or_else(|| status.to_string())
    }

    /// One counter or gauge of `/metrics`, summed over its labels; 0 when it is not there.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64, String> {
        let text = get(self.admin, "/metrics", &[])?.body;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(labels)
        });
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The last `lines` lines of the agent's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.iter().skip(all.len().saturating_sub(lines)).map(|line| format!("{line}\n")).collect()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A free loopback port for TCP.
///
/// # Panics
/// When none is free.
#[expect(clippy::expect_used, reason = "this is how a test fails")]
pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn free_mesh_port() -> SocketAddr {
    for _ in 0..100 {
        let address = free_port();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no loopback port is free for both TCP and UDP");
}
