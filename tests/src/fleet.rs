//! Folders, ports and processes of several agents.

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use node::config::{Config, Protocol, ServiceConfig};
use node::view::NodeView;
use policy::explain::Explanation;

use crate::http::{Answer, Request, get, send};
use crate::process::{Process, Said, run};
use crate::{binary, eventually, free_port};

/// How long a fleet may take to see itself whole.
const WHOLE: Duration = Duration::from_secs(30);

/// Changes the configuration of node number `n` before it starts.
pub type Setup<'a> = &'a dyn Fn(usize, &mut Config);

/// Several agents of one mesh; dropping it kills them and removes their folders.
#[derive(Debug)]
pub struct Fleet {
    /// The agents in the order in which they joined; the first ran `init`.
    pub nodes: Vec<Node>,
    root: tempfile::TempDir,
}

/// Sockets that listen while an agent restarts.
#[derive(Debug)]
pub struct HeldSockets {
    /// For the HTTP proxy.
    pub proxy: TcpListener,
    /// For the admin API.
    pub admin: TcpListener,
}

impl HeldSockets {
    /// Listens where the node would.
    ///
    /// # Panics
    /// When an address is taken.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn of(node: &Node) -> Self {
        let listen = |address| TcpListener::bind(address).expect("the address is free while the node is stopped");
        Self { proxy: listen(node.proxy), admin: listen(node.admin) }
    }
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
    child: Option<Process>,
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
        let mut fleet = Self { nodes: Vec::new(), root };
        for _ in 0..count {
            fleet.add(&[], setup);
        }
        fleet
    }

    /// Makes one more node, by `init` or with a token of the first node for which `token create` gets `words`, starts
    /// it and returns it.
    ///
    /// # Panics
    /// When a verb of the command line fails.
    #[expect(clippy::indexing_slicing, reason = "the node was just pushed")]
    pub fn add(&mut self, words: &[&str], setup: Setup<'_>) -> &mut Node {
        let n = self.nodes.len();
        let mut node = self.newcomer();
        match self.nodes.first() {
            None => {
                let said = run(&node.options(&["init", "--mesh", "it"]));
                assert_eq!(said.code, 0, "{}: {}", node.name, said.err);
            }
            // The first node may still be starting.
            Some(first) => join(&node, &first.token(words)),
        }
        node.configure(|config| {
            config.mesh.bind = node.mesh;
            setup(n, config);
        });
        node.start();
        self.nodes.push(node);
        let last = self.nodes.len() - 1;
        &mut self.nodes[last]
    }

    /// A node with a name, a folder and ports, but without an identity: neither `init` nor `join` has run.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    pub fn newcomer(&self) -> Node {
        Node::prepare(self.nodes.len(), self.root.path())
    }

    /// The folder in which the nodes have theirs; goes with the fleet.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
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

    /// The end of every agent's log, without the lines of single requests.
    #[must_use]
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, node.log_tail(25))).collect()
    }
}

/// Joins, again and again as long as nobody listens at the token's address.
fn join(node: &Node, token: &str) {
    eventually(&format!("{} joins", node.name), WHOLE, || {
        let said = run(&node.options(&["join", token]));
        assert!(said.code == 0 || said.code == 5, "{}: {}", node.name, said.err);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
}

impl Node {
    /// Folder and free ports for node `n` below `root`.
    fn prepare(n: usize, root: &Path) -> Self {
        let name = format!("n{n}");
        Self { dir: root.join(&name), name, mesh: free_port(), admin: free_port(), proxy: free_port(), child: None }
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
    pub fn start(&mut self) {
        self.start_by(Command::new(binary()));
    }

    /// Starts the agent by a program that ends in executing its last words: `command` gets `agent --dir DIR` added.
    ///
    /// # Panics
    /// When it runs already or the process cannot be made.
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start_by(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        command.args(["agent", "--dir"]).arg(&self.dir).env("MARRAM_STOP_WITH_STDIN", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.child = Some(Process::start(&mut command));
    }

    /// Starts the agent with listening sockets that stay open when it ends, as a systemd socket unit passes them.
    ///
    /// # Panics
    /// When it runs already or the process cannot be made.
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start_on(&mut self, held: &HeldSockets) {
        // The protocol wants them as number 3 and 4 (sd_listen_fds(3)), where no safe call of ours can put them.
        let script = r#"exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec "$0" "$@""#;
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let fd = |socket: &TcpListener| Stdio::from(OwnedFd::from(socket.try_clone().expect("one more descriptor")));
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(binary()).args(["agent", "--dir"]).arg(&self.dir);
        command.stdin(fd(&held.proxy)).stdout(fd(&held.admin)).stderr(log);
        self.child = Some(Process::start(&mut command));
    }

    /// Kills the agent without a word to it.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Sends SIGTERM and waits for the end; returns the exit code.
    ///
    /// # Panics
    /// When it has not ended after 20 s.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.ended(Duration::from_secs(20))
    }

    /// Waits until the agent ends by itself; returns the exit code.
    ///
    /// # Panics
    /// When it has not ended after `at_most`.
    pub fn ended(&mut self, at_most: Duration) -> Option<i32> {
        self.child.take()?.ended(at_most)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(child) = &self.child {
            child.signal(signal);
        }
    }

    /// Whether the agent was started and has neither been stopped nor ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(Process::is_running)
    }

    /// The process id of the running agent.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Process::pid)
    }

    /// Runs a verb of `marram` against this node, through its folder.
    ///
    /// # Panics
    /// When the binary does not run.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Said {
        let mut all: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        all.extend([OsStr::new("--dir"), self.dir.as_os_str()]);
        run(&all)
    }

    /// A token of this node, with these further words for `token create`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn token(&self, words: &[&str]) -> String {
        let said = self.run(&[&["token", "create"], words].concat());
        assert_eq!(said.code, 0, "{}: {}", self.name, said.err);
        said.out.trim().to_owned()
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
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(format!("{path}: {}: {}", answer.status, answer.body))
        }
    }

    /// A write of the admin API with this node's token.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn write(&self, method: &str, path: &str, body: &str) -> Answer {
        self.write_with(method, path, body, &[])
    }

    /// A write of the admin API with this node's token and these headers besides.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn write_with(&self, method: &str, path: &str, body: &str, more: &[(&str, &str)]) -> Answer {
        let token = fs::read_to_string(self.dir.join("admin.token")).expect("admin.token is there");
        let bearer = format!("Bearer {}", token.trim());
        let kind = if body.trim_start().starts_with('{') { "application/json" } else { "application/yaml" };
        let headers = [&[("authorization", bearer.as_str()), ("content-type", kind)], more].concat();
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
        status
            .pointer("/policy/root")
            .and_then(|root| root.as_str())
            .map(str::to_owned)
            .ok_or_else(|| status.to_string())
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

    /// Waits until the admin API says that the node is ready.
    ///
    /// # Panics
    /// When that does not happen in 30 s; shows the agent's log.
    pub fn wait_ready(&self) {
        eventually(&format!("{} is ready", self.name), WHOLE, || match get(self.admin, "/readyz", &[]) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}\n{}", self.log_tail(25))),
        });
    }

    /// The last `lines` lines of the agent's log, those of single requests left out.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<&str> = text.lines().filter(|line| !line.contains(" access: ")).collect();
        all.iter().skip(all.len().saturating_sub(lines)).map(|line| format!("{line}\n")).collect()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }
}
