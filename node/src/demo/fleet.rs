//! The demo's agents: folders, ports, child processes, and what they are asked.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use policy::explain::Explanation;
use tokio::process::{Child, Command};
use transport::Clock;

use super::http::Client;
use crate::config::{Config, ServiceConfig};
use crate::view::{NodeView, Status};

const NAMES: [&str; 9] = ["west", "east", "north", "south", "hill", "lake", "moor", "dune", "reef"];
/// Capacities by turns, so that the shares are worth looking at.
const CAPACITIES: [f64; 3] = [100.0, 50.0, 200.0];
/// Ports the demo chooses from.
const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;
/// The document that the demo writes on its first node. With a single draw the shares can be checked against P.
const POLICY: &str = "\
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: hello, scope: global, description: written by the demo }
targetRef: { kind: Service, name: hello }
spec:
  loadBalancer: { algorithm: EdgeDecay, halfDistance: 25ms, epsilon: 1, draw: Single }
";

/// One agent of the demo.
#[derive(Debug)]
pub(super) struct DemoNode {
    pub(super) name: String,
    pub(super) service_port: u16,
    dir: PathBuf,
    mesh: SocketAddr,
    admin: SocketAddr,
    proxy: SocketAddr,
    capacity: f64,
    child: Option<Child>,
}

/// All agents; dropping it kills them and removes their folders.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) nodes: Vec<DemoNode>,
    root: PathBuf,
    binary: PathBuf,
    notes: Vec<String>,
}

impl Fleet {
    /// Chooses folders and free ports for `count` nodes.
    pub(super) fn prepare(count: usize) -> anyhow::Result<Self> {
        if !(1..=NAMES.len()).contains(&count) {
            bail!("--nodes {count} is outside 1..={}", NAMES.len());
        }
        let root = std::env::temp_dir().join(format!("marram-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&root).with_context(|| format!("make {}", root.display()))?;
        let binary = std::env::current_exe().context("find this binary")?;
        let mut fleet = Self { nodes: Vec::new(), root, binary, notes: Vec::new() };
        for (name, capacity) in NAMES.iter().zip(CAPACITIES.iter().cycle()).take(count) {
            let first = fleet.nodes.is_empty();
            let admin = fleet.port(first.then_some(7070), "admin API")?;
            let proxy = fleet.port(first.then_some(7080), "proxy")?;
            fleet.nodes.push(DemoNode {
                name: (*name).to_owned(),
                service_port: 0,
                dir: fleet.root.join(name),
                mesh: free_port()?,
                admin,
                proxy,
                capacity: *capacity,
                child: None,
            });
        }
        Ok(fleet)
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    pub(super) fn proxies(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.proxy).collect()
    }

    /// Makes the mesh, lets everybody join by token, and starts every agent.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let (first, rest) = self.nodes.split_first_mut().context("no nodes")?;
        marram(&self.binary, &first.options(&["init", "--mesh", "demo"]))?;
        first.configure()?;
        first.spawn(&self.binary)?;
        let uses = rest.len().max(1).to_string();
        let dir = first.dir.display().to_string();
        let token = marram(&self.binary, &["token", "create", "--dir", &dir, "--uses", &uses].map(str::to_owned))?;
        for node in rest {
            marram(&self.binary, &node.options(&["join", token.trim()]))?;
            node.configure()?;
            node.spawn(&self.binary)?;
        }
        Ok(())
    }

    /// Waits until every node sees every node alive and every instance of `hello`.
    pub(super) async fn wait_until_whole(&mut self, at_most: Duration, clock: &dyn Clock) -> anyhow::Result<()> {
        let began = clock.now();
        let wanted = self.nodes.len();
        loop {
            self.check_alive()?;
            let mut whole = 0;
            for node in &self.nodes {
                whole += usize::from(node.sees(wanted).await.unwrap_or(false));
            }
            if whole == wanted {
                return Ok(());
            }
            if clock.now().saturating_sub(began) > at_most {
                bail!(
                    "only {whole} of {wanted} nodes see the whole mesh after {} s\n{}",
                    at_most.as_secs(),
                    self.logs()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One line about the links: how many, and the key exchange of each kind.
    pub(super) async fn links(&self) -> anyhow::Result<Vec<String>> {
        let mut kinds = std::collections::BTreeMap::<String, usize>::new();
        for node in &self.nodes {
            let status: Status = node.client().json("/v1/status").await?;
            for link in status.links {
                *kinds.entry(link.key_exchange).or_default() += 1;
            }
        }
        Ok(kinds
            .into_iter()
            .map(|(kind, ends)| format!("  mutual TLS with {kind} on {} links", ends.div_ceil(2)))
            .collect())
    }

    /// Writes a document on the first node and waits until all nodes have the same policy root.
    pub(super) async fn write_policy(&self, at_most: Duration, clock: &dyn Clock) -> anyhow::Result<Duration> {
        let first = self.nodes.first().context("no nodes")?;
        let token = fs::read_to_string(first.dir.join("admin.token")).context("read the admin token")?;
        let began = clock.now();
        let request = Request::post("/v1/apply")
            .header("host", first.admin.to_string())
            .header("authorization", format!("Bearer {}", token.trim()))
            .header("content-type", "application/yaml")
            .body(Full::new(Bytes::from_static(POLICY.as_bytes())))?;
        let answer = first.client().send(request).await?;
        if !answer.status().is_success() {
            bail!("policy write: {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
        }
        let wanted = serde_json::from_slice::<crate::view::Applied>(answer.body()).context("read the answer")?.root;
        loop {
            let roots = self.roots().await?;
            let waited = clock.now().saturating_sub(began);
            if roots.iter().all(|root| *root == wanted) {
                return Ok(waited);
            }
            if waited > at_most {
                bail!("policy roots still differ after {} s: {}", at_most.as_secs(), roots.join(", "));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Policy root of every node, in order.
    pub(super) async fn roots(&self) -> anyhow::Result<Vec<String>> {
        let mut roots = Vec::new();
        for node in &self.nodes {
            let status: Status = node.client().json("/v1/status").await?;
            roots.push(status.policy.root);
        }
        Ok(roots)
    }

    /// What the first node says of a service's next decision.
    pub(super) async fn explain(&self, service: &str) -> anyhow::Result<Explanation> {
        self.nodes.first().context("no nodes")?.client().json(&format!("/v1/explain/{service}")).await
    }

    /// What every node says of a service's decisions, by node name.
    pub(super) async fn explain_all(&self, service: &str) -> anyhow::Result<Vec<(String, Explanation)>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push((node.name.clone(), node.client().json(&format!("/v1/explain/{service}")).await?));
        }
        Ok(all)
    }

    /// What a person can do while it runs.
    pub(super) fn invitation(&self) -> String {
        let Some(first) = self.nodes.first() else { return String::new() };
        let mut text: String = self.notes.iter().map(|note| format!("  {note}\n")).collect();
        let binary = self.binary.display();
        text += &format!(
            "\n  Try    curl http://hello.mesh.localhost:{}/\n         {binary} route explain hello --admin http://{}\n         {binary} nodes --admin http://{}\n  Stop   Ctrl-C\n",
            first.proxy.port(),
            first.admin,
            first.admin
        );
        text
    }

    /// Fails when an agent is gone, with the end of its log.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Some(status) = child.try_wait()? {
                bail!("node {} ended: {status}\n{}", node.name, tail(&node.dir.with_extension("log")));
            }
        }
        Ok(())
    }

    /// Ends every agent in good order.
    pub(super) async fn stop(mut self) {
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw)
            {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            }
        }
        for node in &mut self.nodes {
            let Some(mut child) = node.child.take() else { continue };
            if tokio::time::timeout(Duration::from_secs(15), child.wait()).await.is_err() {
                child.kill().await.ok();
            }
        }
    }

    fn port(&mut self, wish: Option<u16>, what: &str) -> anyhow::Result<SocketAddr> {
        let Some(wish) = wish else { return free_port() };
        let address = SocketAddr::from(([127, 0, 0, 1], wish));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
        let other = free_port()?;
        self.notes.push(format!("port {wish} is taken: the {what} of the first node is on {}", other.port()));
        Ok(other)
    }

    fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("--- {}\n{}", node.name, tail(&node.dir.with_extension("log")))).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Children die with their handles; what is left is the folder with their keys and logs.
        self.nodes.clear();
        fs::remove_dir_all(&self.root).ok();
    }
}

impl DemoNode {
    pub(super) fn client(&self) -> Client {
        Client::new(self.admin)
    }

    async fn sees(&self, wanted: usize) -> anyhow::Result<bool> {
        let nodes: Vec<NodeView> = self.client().json("/v1/nodes").await?;
        let alive = nodes.iter().filter(|node| node.state == "alive").count();
        let hello: Explanation = self.client().json("/v1/explain/hello").await?;
        Ok(alive == wanted && hello.candidates.len() == wanted)
    }

    fn options(&self, head: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = head.iter().map(|word| (*word).to_owned()).collect();
        let pairs = [
            ("--dir", self.dir.display().to_string()),
            ("--name", self.name.clone()),
            ("--zone", self.name.clone()),
            ("--region", "demo".to_owned()),
            ("--advertise", self.mesh.to_string()),
            ("--mesh-port", self.mesh.port().to_string()),
            ("--admin", self.admin.to_string()),
            ("--proxy", self.proxy.to_string()),
        ];
        all.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        all
    }

    /// Adds the demo's service to the file that `init` or `join` wrote, and keeps the mesh port on loopback.
    fn configure(&self) -> anyhow::Result<()> {
        let path = self.dir.join("node.toml");
        let mut config: Config = toml::from_str(&fs::read_to_string(&path)?)?;
        config.mesh.bind = self.mesh;
        config.services.push(ServiceConfig {
            name: "hello".to_owned(),
            id: Some(self.name.clone()),
            address: self.mesh.ip(),
            port: self.service_port,
            protocol: crate::config::Protocol::Http,
            capacity: Some(self.capacity),
            labels: std::collections::BTreeMap::new(),
            checks: Vec::new(),
        });
        fs::write(&path, toml::to_string(&config)?).with_context(|| format!("write {}", path.display()))
    }

    fn spawn(&mut self, binary: &Path) -> anyhow::Result<()> {
        let log = fs::File::create(self.dir.with_extension("log"))?;
        let child = Command::new(binary)
            .args(["agent", "--dir"])
            .arg(&self.dir)
            // The agent stops when this pipe closes: no agent outlives a demo that was killed.
            .env(crate::agent::STOP_WITH_STDIN, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C belongs to the demo; it ends the load first and the agents after it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start node {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }
}

/// Runs `marram WORDS` and returns what it printed on stdout.
fn marram(binary: &Path, words: &[String]) -> anyhow::Result<String> {
    let output = std::process::Command::new(binary).args(words).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let verb = words.first().map_or("", String::as_str);
    bail!("marram {verb}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// A loopback port that is free for both UDP (the mesh) and TCP. It lies below the kernel's range for outgoing
/// connections, so that nobody's connect takes it before the agent listens.
fn free_port() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(613);
    for _ in 0..PORTS {
        let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = u16::try_from(FIRST_PORT + step).context("a port below 32768")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no loopback port is free for both UDP and TCP")
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(20)).map(|line| format!("  {line}\n")).collect()
}
