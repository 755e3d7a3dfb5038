//! `marram agent`: opens what a node needs, in order, starts its threads and tasks, and ends them in order.
//!
//! This is the one place that wires the parts together. What can fail for the operator's reasons (a taken port, a
//! damaged store, a file others can read) fails here, before anything is listening, with a message that names the way
//! out.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use transport::addressbook::AddressBook;
use transport::cell::{Cell, CellConfig};
use transport::swim::{CellId, Swim, SwimConfig};
use transport::tcp::JoinDoor;
use transport::trust::{Identity, JoinCounters, JoinServer, JoinServerConfig, LeafLife, LeafSource, PeerVerifier};
use transport::{Clock, Inbound, LinkStream, Links, LinksConfig, NodeId, PeerInfo, StreamKind};

use crate::admin::AdminServer;
use crate::clock::SystemClock;
use crate::config::{Config, GossipPreset, ListenerConfig, ListenerProtocol, ServiceConfig};
use crate::control::{Control, Inputs, resolve};
use crate::demand::Demands;
use crate::dns::{Dns, VirtualAddresses};
use crate::event::Event;
use crate::gossip::Facts;
use crate::hand_over::hand_over;
use crate::keeper::{self, Keeper};
use crate::local::LocalInstances;
use crate::machine;
use crate::passed::PassedSockets;
use crate::pressure::Pressure;
use crate::proxy::{ProxyContext, ProxyParts, is_of_flow};
use crate::snapshot::{Here, Published};
use crate::state::State;
use crate::store::{Opened, StoreHandle, unix_ms};
use crate::supervise::supervised;
use crate::sync::Syncer;
use crate::tally::Tally;
use crate::telemetry::MetricsHandle;
use crate::told::{self, TOLD_TABLE};
use crate::watch::WatchLog;

/// When this variable is set the agent stops as soon as its standard input closes; `marram demo` uses it, so that no
/// agent outlives a demo that was killed.
pub const STOP_WITH_STDIN: &str = "MARRAM_STOP_WITH_STDIN";

/// Events waiting for the control loop; one more is dropped and counted.
const EVENTS: usize = 4096;
/// Seconds before the end of the node's admission from which on the log reminds of it: a quarter of its 90 days.
const REMIND_WITHIN: u64 = 22 * 24 * 3600;
/// Addresses to start from, configured ones first.
const SEEDS_MAX: usize = 64;
/// How often a node without any link tries its seeds again, names looked up anew.
const LONELY_RETRY: Duration = Duration::from_secs(5);
/// How often a node looks whether its own address has changed.
const ADDRESS_CHECK: Duration = Duration::from_secs(30);
/// How often the agent looks at its memory while requests are in flight, and else: bodies may come at hundreds of
/// megabytes a second, and an idle gateway should sleep.
const MEMORY_CHECK: Duration = Duration::from_millis(20);
const MEMORY_CHECK_IDLE: Duration = Duration::from_millis(100);
/// The first look for old deletions after the start; by then peers have told what they have.
const COLLECT_FIRST: Duration = Duration::from_secs(60);
/// Time between two looks for old deletions; the age of a deletion where that is less.
const COLLECT_EVERY: Duration = Duration::from_secs(600);
/// Longest wait for a peer that confirms the newest policy: some three conversations over a bad link. Not longer, for
/// a stop that hangs is cut short by kill.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
/// The same for what was written during the drain.
const HAND_OVER_LAST_MAX: Duration = Duration::from_secs(1);
/// Longest wait for the admin API to end; it gives its own requests less.
const ADMIN_END_MAX: Duration = Duration::from_secs(3);
/// The one gossip cell of this version.
const CELL: &str = "0";
/// Table of the instances that were registered by the admin API.
pub const INSTANCES_TABLE: &str = "instances";

/// Runs an agent in `dir` until SIGTERM or SIGINT; returns after the drain.
///
/// # Errors
/// Whatever keeps the node from starting: the message names the place, the fault and the way out.
pub fn run(dir: &Path, config: Config) -> anyhow::Result<()> {
    let passed = PassedSockets::from_env()?;
    let metrics = MetricsHandle::install().context("install the metrics recorder")?;
    let _lock = lock(dir)?;
    let threads = DataThreads::start(data_threads(&config))?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("start the control runtime")?;
    #[cfg(feature = "jemalloc")]
    for handle in threads.handles.iter().chain([control.handle()]) {
        handle.spawn(crate::give_back::now_and_then());
    }
    let outcome = control.block_on(serve(dir, config, metrics, passed, &threads));
    threads.stop();
    // Blocking lookups may still hang in the pool; nothing waits for them.
    control.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// Everything between "the folder is ours" and "the last request is answered".
async fn serve(
    dir: &Path,
    config: Config,
    metrics: MetricsHandle,
    mut passed: PassedSockets,
    threads: &DataThreads,
) -> anyhow::Result<()> {
    let mut stop_signals = StopSignals::listen();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let identity = Arc::new(Identity::load(dir).context("load the identity")?);
    let here = Here {
        node: identity.node(),
        name: identity.name().to_owned(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        mesh: identity.mesh().to_owned(),
    };
    let unix = clock.unix();
    let lives = keeper::next_life(dir, u64::try_from(unix.as_millis()).unwrap_or(u64::MAX))
        .with_context(|| format!("write {}", dir.join("life").display()))?;

    // The store first: a node that cannot keep policy must not look alive.
    let (store_events, store_inbox) = mpsc::channel(64);
    let mut opened = StoreHandle::open(
        dir,
        Arc::clone(&identity),
        Arc::clone(&clock),
        &[INSTANCES_TABLE, keeper::BOOK_TABLE, TOLD_TABLE],
        store_events,
    )
    .context("open the policy store")?;

    let leaf =
        LeafSource::new(&identity, LeafLife { ttl: config.mesh.leaf_life, ..LeafLife::default() }, unix.as_secs())
            .context("issue a leaf certificate")?;
    let verifier = PeerVerifier::new(identity.roots(), Arc::clone(&clock));
    let (events, events_inbox) = mpsc::channel(EVENTS);
    let inbound = Arc::new(Inbox { events: events.clone(), proxy: OnceLock::new(), dropped: AtomicU64::new(0) });
    let trust = Arc::clone(verifier.counters());
    let links = Links::start(
        LinksConfig {
            bind: config.mesh.bind,
            cell: CELL.to_owned(),
            generation: lives.generation,
            transport: config.mesh.transport.into(),
            ..LinksConfig::default()
        },
        &identity,
        Arc::clone(&leaf),
        verifier,
        threads.handles.clone(),
        Arc::clone(&inbound) as Arc<dyn Inbound>,
        Arc::clone(&clock),
    )
    .context("open the mesh port, `mesh.bind` in node.toml")?;

    let (state, health_inbox) = state(&config, &identity, here.clone(), lives.incarnation, &links, &clock).await;
    let first = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        // Policy on disk is in force before the first request, not a moment after.
        let first = std::mem::take(&mut opened.first);
        state.take_policy(first.filed, first.is_whole, first.state, unix_ms(&*clock));
        state.recovered = opened.recovered.as_ref().map(crate::store::told);
        state.snapshot(clock.now())
    };
    let published = Arc::new(Published::new(first));
    let (outcomes, outcomes_inbox) = mpsc::channel(1024);
    let proxy = ProxyContext::new(ProxyParts {
        published: Arc::clone(&published),
        links: Arc::new(links.clone()),
        clock: Arc::clone(&clock),
        config: config.proxy.clone(),
        cores: threads.handles.len(),
        seed: rand::random(),
        outcomes,
    });
    if inbound.proxy.set(Arc::clone(&proxy)).is_err() {
        bail!("the data path was wired twice");
    }
    let (stop, open) = (CancellationToken::new(), CancellationToken::new());
    let virtual_addresses = Arc::new(VirtualAddresses::default());
    let mut listeners = listen(&config, threads, &proxy, &mut passed, &open)?;
    listeners.extend(take_redirected(&config, threads, &proxy, &virtual_addresses, &open)?);
    listeners.extend(answer_names(&config, threads, &virtual_addresses, &published, &clock));
    let watch = WatchLog::new(lives.generation);
    let (book, seeds) = remembered(&opened, &config);
    // Seeds may be the nodes of the book under other names.
    opened.store.know_peers(book.len().max(usize::from(!seeds.is_empty())));
    let (cell, gossip_in) = cell(&config, &identity, lives.generation, &links, &clock);
    let changes = cell.subscribe();
    let syncer = Arc::new(Syncer::new(opened.store.clone(), links.clone(), Arc::clone(&clock)));
    let last_talks = Arc::clone(&syncer);
    let keeper = Arc::new(Keeper::new(dir, lives.generation, book, opened.store.clone()));
    let joins = Arc::new(OnceLock::new());
    let tally = Tally { links: links.clone(), trust, cell: cell.clone(), join: Arc::clone(&joins) };
    let own_listeners = config.listeners.iter().map(|listener| listener.address).chain([config.proxy.bind]).collect();
    let control = Control {
        sequence: Arc::new(AtomicU64::new(1)),
        own_listeners,
        tally,
        state: Arc::clone(&state),
        identity: Arc::clone(&identity),
        clock: Arc::clone(&clock),
        links: links.clone(),
        cell,
        gossip_in,
        published: Arc::clone(&published),
        proxy: Arc::clone(&proxy),
        store: opened.store.clone(),
        syncer,
        watch,
        generation: lives.generation,
        keeper: Arc::clone(&keeper),
        open,
        remembered: told::read(opened.records.get(TOLD_TABLE).map(Vec::as_slice).unwrap_or_default()).into(),
    };
    register(&control, &config, &opened);

    let api = Arc::new(crate::node_api::AgentApi::new(control.clone(), events.clone(), Arc::clone(&leaf)));
    let passed_to_admin = passed.take(config.admin.bind).pop();
    passed.finish()?;
    let admin = AdminServer::bind_or_take(dir, config.admin.bind, passed_to_admin, api, metrics).await?;
    let mut tasks = Vec::new();
    tasks.push(supervised("control", {
        let inputs = Arc::new(tokio::sync::Mutex::new(Inputs {
            events: events_inbox,
            store: store_inbox,
            health: health_inbox,
            outcomes: outcomes_inbox,
            changes,
        }));
        move || control.clone().run(Arc::clone(&inputs))
    }));
    let admin_task = supervised("admin", {
        let (admin, stop) = (Arc::new(admin), stop.clone());
        move || {
            let (admin, stop) = (Arc::clone(&admin), stop.clone());
            async move { admin.run(stop).await }
        }
    });
    tasks.push({
        // On a data thread: it has to go on when the control thread does not.
        let _runtime = threads.handles.first().map(Handle::enter);
        let (proxy, limit) = (Arc::clone(&proxy), memory_max(&config));
        supervised("memory", move || watch_memory(Arc::clone(&proxy), Pressure::new(limit)))
    });
    tasks.push(supervised("leaf", {
        let (leaf, clock) = (Arc::clone(&leaf), Arc::clone(&clock));
        let node_not_after = identity.not_after_unix();
        move || renew_leaves(Arc::clone(&leaf), node_not_after, Arc::clone(&clock))
    }));
    tasks.push(supervised("join", {
        let door = door(dir, links.local_addr(), &state, &keeper);
        let shared = links.join_door();
        let (identity, leaf, clock, stop) =
            (Arc::clone(&identity), Arc::clone(&leaf), Arc::clone(&clock), stop.clone());
        move || {
            let (identity, leaf, clock) = (Arc::clone(&identity), Arc::clone(&leaf), Arc::clone(&clock));
            admit(door.clone(), shared.clone(), identity, leaf, clock, Arc::clone(&joins), stop.clone())
        }
    }));
    tasks.push(supervised("seeds", {
        let (links, seeds) = (links.clone(), Arc::<[String]>::from(seeds));
        move || look_for_company(links.clone(), Arc::clone(&seeds))
    }));
    tasks.push(supervised("collect", {
        let (store, age) = (opened.store.clone(), config.store.tombstone_age);
        move || collect(store.clone(), age)
    }));
    tasks.push(supervised("addresses", {
        let (config, links, events) = (Arc::new(config.clone()), links.clone(), events.clone());
        move || follow_address(Arc::clone(&config), links.clone(), events.clone())
    }));
    info!(mesh_port = %links.local_addr(), proxy = %config.proxy.bind, admin = %config.admin.bind, "listening");

    stop_signals.next().await;
    events.send(Event::Drain).await.ok();
    let in_order = async {
        // At once, for whoever stops this node may not wait for the drain; and again for what is written meanwhile.
        let handed_over = hand_over(&opened.store, &links, &last_talks, HAND_OVER_MAX);
        let (left, ()) = tokio::join!(proxy.drain(config.proxy.drain_timeout), handed_over);
        if left > 0 {
            warn!(left, "requests were still in flight when the drain time was over");
        }
        stop.cancel();
        tokio::time::timeout(ADMIN_END_MAX, admin_task).await.ok();
        hand_over(&opened.store, &links, &last_talks, HAND_OVER_LAST_MAX).await;
        links.shutdown(Duration::from_millis(500)).await;
    };
    tokio::select! {
        () = in_order => {}
        () = stop_signals.next() => {
            warn!(left = proxy.in_flight(), "told to stop a second time: what is still in flight is cut");
            stop.cancel();
            links.shutdown(Duration::ZERO).await;
        }
    }
    for task in tasks.into_iter().chain(listeners) {
        task.abort();
    }
    opened.store.close().await;
    info!("stopped");
    Ok(())
}

/// Passes what peers send to whoever it is for: requests to the proxy on the same thread, all else to the control loop.
#[derive(Debug)]
struct Inbox {
    events: mpsc::Sender<Event>,
    proxy: OnceLock<Arc<ProxyContext>>,
    dropped: AtomicU64,
}

impl Inbox {
    fn pass(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            metrics::counter!("marram_control_events_dropped_total").increment(1);
        }
    }
}

impl Inbound for Inbox {
    fn stream(&self, core: usize, from: Arc<PeerInfo>, kind: StreamKind, head: Bytes, stream: LinkStream) {
        match kind {
            StreamKind::Service => {
                if let Some(proxy) = self.proxy.get() {
                    Arc::clone(proxy).inbound_stream(core, from, head, stream);
                }
            }
            StreamKind::Sync => self.pass(Event::Sync { from: from.node, stream }),
            StreamKind::Hello | StreamKind::Gossip | StreamKind::Push => {}
        }
    }

    fn message(&self, from: &Arc<PeerInfo>, kind: StreamKind, bytes: Bytes) {
        match kind {
            StreamKind::Gossip => self.pass(Event::Gossip { from: from.node, bytes }),
            StreamKind::Push => self.pass(Event::Push { from: from.node, bytes }),
            StreamKind::Hello | StreamKind::Service | StreamKind::Sync => {}
        }
    }

    fn datagram(&self, from: &Arc<PeerInfo>, bytes: Bytes) {
        if is_of_flow(&bytes) {
            if let Some(proxy) = self.proxy.get() {
                proxy.inbound_datagram(from.node, &bytes);
            }
            return;
        }
        self.pass(Event::Datagram { from: from.node, bytes });
    }

    fn link_up(&self, peer: &Arc<PeerInfo>, _outbound: bool) {
        self.pass(Event::LinkUp(Arc::clone(peer)));
    }

    fn link_down(&self, peer: &Arc<PeerInfo>, reason: &str) {
        self.pass(Event::LinkDown { peer: Arc::clone(peer), reason: reason.to_owned() });
    }
}

/// The state of a node that just started, and the inbox of its health supervisors.
async fn state(
    config: &Config,
    identity: &Identity,
    here: Here,
    incarnation: u32,
    links: &Links,
    clock: &Arc<dyn Clock>,
) -> (Arc<Mutex<State>>, mpsc::Receiver<crate::health::HealthChanged>) {
    let capabilities = machine::capabilities(config.labels.clone());
    let (health, health_inbox) = mpsc::channel(256);
    let local = LocalInstances::new(capabilities.cores, Arc::clone(clock), health);
    let facts = Facts {
        name: here.name.clone(),
        region: here.region.clone(),
        zone: here.zone.clone(),
        addresses: addresses(config, links).await,
        location: config.location,
        capabilities,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        chain: identity.chain().to_vec(),
    };
    let (timing, gossip_every) = match config.gossip.preset {
        GossipPreset::Lan => (SwimConfig::lan(), CellConfig::LAN_INTERVAL),
        GossipPreset::Metered => (SwimConfig::metered(), CellConfig::METERED_INTERVAL),
    };
    let cell = CellId::from_name(&format!("{}/{CELL}", here.mesh));
    let swim = Swim::new(here.node, incarnation, SwimConfig { cell, ..timing });
    let mut state = State::new(here, identity.role(), identity.public_key(), facts, local, swim, clock.now());
    state.demands = Demands::new(gossip_every);
    (Arc::new(Mutex::new(state)), health_inbox)
}

/// Where peers find this node: what the operator said, else the address of the route to the first seed.
async fn addresses(config: &Config, links: &Links) -> Vec<String> {
    let bound = links.local_addr();
    if let Some(advertise) = &config.mesh.advertise {
        return vec![advertise.clone()];
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let seeds = resolve(&config.mesh.seeds).await;
    // Without a seed the question is put for an address set aside for documentation (RFC 5737), which takes the default
    // route; without that one, for a peer there is a link to.
    let towards = seeds.first().copied().unwrap_or_else(|| SocketAddr::from(([192, 0, 2, 1], 9)));
    let towards_peer = || links.links().into_iter().map(|link| link.remote).min().map(source);
    match source(towards).or_else(|fault| towards_peer().unwrap_or(Err(fault))) {
        Ok(local) => vec![SocketAddr::new(local, bound.port()).to_string()],
        Err(fault) => {
            warn!(%fault, "no route to peers yet: set mesh.advertise in node.toml so that they can find this node");
            Vec::new()
        }
    }
}

/// The address that packets to `towards` leave from. Connecting a UDP socket sends nothing; it only asks the kernel which
/// way it would go.
fn source(towards: SocketAddr) -> std::io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind(if towards.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(towards)?;
    Ok(socket.local_addr()?.ip())
}

/// Lets go of old deletions now and then.
async fn collect(store: StoreHandle, age: Duration) {
    tokio::time::sleep(COLLECT_FIRST.min(age)).await;
    loop {
        store.collect(age);
        tokio::time::sleep(COLLECT_EVERY.min(age)).await;
    }
}

/// Dials the seeds, and again as long as this node has no link at all.
async fn look_for_company(links: Links, seeds: Arc<[String]>) {
    loop {
        if !links.links().iter().any(|link| link.control) {
            let found = resolve(&seeds).await;
            if found.is_empty() && !seeds.is_empty() {
                warn!(?seeds, "no address of a peer resolves; trying again");
            }
            for address in found {
                links.dial_seed(address);
            }
        }
        tokio::time::sleep(LONELY_RETRY).await;
    }
}

/// Tells the control loop when this node is reached elsewhere: a new lease, or a network that came up late.
async fn follow_address(config: Arc<Config>, links: Links, events: mpsc::Sender<Event>) {
    loop {
        // Whichever is first.
        tokio::time::timeout(ADDRESS_CHECK, links.moved()).await.ok();
        if events.send(Event::Addresses(addresses(&config, &links).await)).await.is_err() {
            return;
        }
    }
}

/// Starts chitchat and the task that carries its messages to the links.
fn cell(
    config: &Config,
    identity: &Identity,
    generation: u64,
    links: &Links,
    clock: &Arc<dyn Clock>,
) -> (Cell, mpsc::Sender<(NodeId, Bytes)>) {
    let (outbound, mut outbox) = mpsc::channel::<(NodeId, Bytes)>(256);
    let (gossip_in, inbound) = mpsc::channel(256);
    let settings = match config.gossip.preset {
        GossipPreset::Lan => CellConfig::lan(identity.node(), generation, identity.mesh(), CELL),
        GossipPreset::Metered => CellConfig::metered(identity.node(), generation, identity.mesh(), CELL),
    };
    let known = {
        let links = links.clone();
        Arc::new(move || links.links().into_iter().filter(|link| link.control).map(|link| link.node).collect())
    };
    let cell = Cell::start(settings, outbound, inbound, known, Arc::clone(clock));
    let links = links.clone();
    tokio::spawn(async move {
        while let Some((to, bytes)) = outbox.recv().await {
            // A peer without a link misses a message; chitchat repeats itself.
            links.send_message(to, StreamKind::Gossip, bytes).ok();
        }
    });
    (cell, gossip_in)
}

/// The address book as it was kept, and every address to start from.
fn remembered(opened: &Opened, config: &Config) -> (AddressBook, Vec<String>) {
    let kept = opened.records.get(keeper::BOOK_TABLE).and_then(|records| records.first());
    let book = match kept.map(|(_, bytes)| AddressBook::from_bytes(bytes)) {
        Some(Ok(book)) => book,
        Some(Err(fault)) => {
            warn!(%fault, "address book not readable; starting from the seeds alone");
            AddressBook::new()
        }
        None => AddressBook::new(),
    };
    let mut seeds = config.mesh.seeds.clone();
    // The operator's word first, then whom the node met last.
    for node in book.to_try(|_| false) {
        for address in book.entry(&node).into_iter().flat_map(|entry| &entry.addresses).map(SocketAddr::to_string) {
            if !seeds.contains(&address) {
                seeds.push(address);
            }
        }
    }
    seeds.truncate(SEEDS_MAX);
    (book, seeds)
}

/// Puts the instances of `node.toml` and those registered earlier by the admin API into the state.
fn register(control: &Control, config: &Config, opened: &Opened) {
    let kept = opened.records.get(INSTANCES_TABLE).into_iter().flatten();
    let registered = kept.filter_map(|(key, bytes)| match serde_json::from_slice::<ServiceConfig>(bytes) {
        Ok(instance) => Some(instance),
        Err(fault) => {
            warn!(key = %String::from_utf8_lossy(key), %fault, "registered instance not readable; left out");
            None
        }
    });
    let mut state = control.state();
    for instance in config.services.iter().cloned().chain(registered) {
        let name = instance.name.clone();
        if let Err(fault) = state.local.put(instance) {
            warn!(service = name, %fault, "instance left out");
        }
    }
}

/// Binds every local listener on every data thread and starts its accept loop there, which takes connections from their
/// queue when the node is `open`.
fn listen(
    config: &Config,
    threads: &DataThreads,
    proxy: &Arc<ProxyContext>,
    passed: &mut PassedSockets,
    is_open: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut tasks = Vec::new();
    let cores = || threads.handles.iter().enumerate().cycle();
    let mut open = |address, what: &str, option| match passed.take(address) {
        none if none.is_empty() => sockets(address, threads.handles.len(), what, option),
        given => shared(&given, threads.handles.len()),
    };
    let http = open(config.proxy.bind, "the HTTP proxy", "proxy.bind (--proxy)")?;
    for ((core, handle), socket) in cores().zip(http) {
        let proxy = Arc::clone(proxy);
        let serve = move |listener| Arc::clone(&proxy).serve_http(core, listener);
        tasks.push(accept(handle, "proxy", socket, is_open, serve));
    }
    let tcp = config.listeners.iter().filter(|listener| listener.protocol == ListenerProtocol::Tcp);
    for ListenerConfig { service, address, .. } in tcp {
        let tcp = open(*address, &format!("the listener of {service}"), "[[listener]] address")?;
        for ((core, handle), socket) in cores().zip(tcp) {
            let (proxy, service) = (Arc::clone(proxy), service.clone());
            let serve = move |listener| Arc::clone(&proxy).serve_tcp(core, listener, service.clone());
            tasks.push(accept(handle, "listener", socket, is_open, serve));
        }
    }
    let udp = config.listeners.iter().filter(|listener| listener.protocol == ListenerProtocol::Udp);
    for ((core, handle), listener) in threads.handles.iter().enumerate().cycle().zip(udp) {
        tasks.push(take_datagrams(handle, core, listener, proxy)?);
    }
    Ok(tasks)
}

/// Binds the listener for redirected connections, where the configuration wants one.
fn take_redirected(
    config: &Config,
    threads: &DataThreads,
    proxy: &Arc<ProxyContext>,
    names: &Arc<VirtualAddresses>,
    is_open: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    if !config.transparent.enabled {
        return Ok(Vec::new());
    }
    let bind = config.transparent.bind;
    let tcp = sockets(bind, threads.handles.len(), "the listener for redirected connections", "transparent.bind")?;
    for socket in &tcp {
        // For TPROXY; redirected connections come without it, and it needs rights that few agents have.
        socket2::SockRef::from(socket).set_ip_transparent_v4(true).ok();
    }
    let serve = |(core, (handle, socket)): (usize, (&Handle, std::net::TcpListener))| {
        let (proxy, names) = (Arc::clone(proxy), Arc::clone(names));
        accept(handle, "transparent", socket, is_open, move |listener| {
            Arc::clone(&proxy).serve_transparent(core, listener, Arc::clone(&names))
        })
    };
    Ok(threads.handles.iter().zip(tcp).enumerate().map(serve).collect())
}

/// Binds a UDP listener and serves it on one data thread: its flows are that thread's alone.
fn take_datagrams(
    handle: &Handle,
    core: usize,
    listener: &ListenerConfig,
    proxy: &Arc<ProxyContext>,
) -> anyhow::Result<JoinHandle<()>> {
    let ListenerConfig { service, address, .. } = listener;
    let socket = std::net::UdpSocket::bind(address).map_err(|fault| {
        anyhow::anyhow!(
            "the listener of {service} cannot listen on {address}: {fault}\n  hint: choose another address with [[listener]] address"
        )
    })?;
    socket.set_nonblocking(true)?;
    let (socket, proxy, service) = (Arc::new(socket), Arc::clone(proxy), service.clone());
    let _runtime = handle.enter();
    Ok(supervised("udp", move || {
        let (socket, proxy, service) = (Arc::clone(&socket), Arc::clone(&proxy), service.clone());
        async move {
            match socket.try_clone().and_then(UdpSocket::from_std) {
                Ok(socket) => proxy.serve_udp(core, socket, service).await,
                Err(fault) => tracing::error!(%fault, "cannot take datagrams"),
            }
        }
    }))
}

/// Starts the name server on the first data thread, where the control thread cannot hold it up.
fn answer_names(
    config: &Config,
    threads: &DataThreads,
    virtual_addresses: &Arc<VirtualAddresses>,
    published: &Arc<Published>,
    clock: &Arc<dyn Clock>,
) -> Option<JoinHandle<()>> {
    let dns = Dns::new(config, virtual_addresses, Arc::clone(published), Arc::clone(clock))?;
    let _runtime = threads.handles.first()?.enter();
    Some(supervised("dns", move || Arc::clone(&dns).run()))
}

/// Runs an accept loop on a data thread; after a panic it goes on with the same socket.
fn accept<F, Fut>(
    handle: &Handle,
    name: &'static str,
    socket: std::net::TcpListener,
    is_open: &CancellationToken,
    serve: F,
) -> JoinHandle<()>
where
    F: Fn(TcpListener) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (socket, serve, is_open) = (Arc::new(socket), Arc::new(serve), is_open.clone());
    let _runtime = handle.enter();
    supervised(name, move || {
        let (socket, serve, is_open) = (Arc::clone(&socket), Arc::clone(&serve), is_open.clone());
        async move {
            is_open.cancelled().await;
            match socket.try_clone().and_then(TcpListener::from_std) {
                Ok(listener) => serve(listener).await,
                Err(fault) => tracing::error!(listener = name, %fault, "cannot accept connections"),
            }
        }
    })
}

/// Sockets that were passed, as handles for at least `count` threads, which then share the queue of connections.
fn shared(passed: &[std::net::TcpListener], count: usize) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let handles = passed.iter().cycle().take(count.max(passed.len())).map(std::net::TcpListener::try_clone);
    handles.collect::<Result<_, _>>().context("share a socket that was passed (LISTEN_FDS)")
}

/// `count` sockets that listen on one address; the kernel spreads connections over them.
fn sockets(address: SocketAddr, count: usize, what: &str, option: &str) -> anyhow::Result<Vec<std::net::TcpListener>> {
    use socket2::{Domain, Protocol, Socket, Type};
    // Shared sockets would hide that another agent already listens there: ask first with one that does not share.
    drop(std::net::TcpListener::bind(address).map_err(|fault| {
        anyhow::anyhow!("{what} cannot listen on {address}: {fault}\n  hint: choose another address with {option}")
    })?);
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into()).with_context(|| format!("{what}: bind {address}"))?;
        socket.listen(1024)?;
        sockets.push(socket.into());
    }
    Ok(sockets)
}

/// The memory this agent may use, in bytes.
fn memory_max(config: &Config) -> u64 {
    if config.proxy.memory_max > 0 { config.proxy.memory_max } else { machine::memory_bytes() }
}

/// Has new work refused while memory is short, for ever.
async fn watch_memory(proxy: Arc<ProxyContext>, mut pressure: Pressure) {
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    metrics::gauge!("marram_memory_limit_bytes").set(pressure.limit_bytes() as f64);
    loop {
        tokio::time::sleep(if proxy.in_flight() > 0 { MEMORY_CHECK } else { MEMORY_CHECK_IDLE }).await;
        let (resident_bytes, in_flight) = (machine::resident_bytes(), proxy.in_flight());
        let is_short = pressure.look(resident_bytes, in_flight);
        let was_short = proxy.set_short_of_memory(is_short);
        metrics::gauge!("marram_memory_short").set(f64::from(u8::from(is_short)));
        match (was_short, is_short) {
            (false, true) => warn!(resident_bytes, in_flight, "memory is nearly used up: new requests are refused"),
            (true, false) => info!(resident_bytes, in_flight, "new requests are taken again"),
            (true, true) | (false, false) => {}
        }
    }
}

/// Renews the leaf whenever half of its life is over, for ever; says once a day when the admission itself runs out.
async fn renew_leaves(leaf: Arc<LeafSource>, node_not_after: u64, clock: Arc<dyn Clock>) {
    let mut next_reminder = 0;
    loop {
        let now = clock.unix().as_secs();
        let left = node_not_after.saturating_sub(now);
        if left < REMIND_WITHIN && now >= next_reminder {
            next_reminder = now + 24 * 3600;
            warn!(
                days_left = left / (24 * 3600),
                "this node's admission ends soon: join again into the same folder to renew it"
            );
        }
        // A clock that jumps is looked at again within a minute.
        let wait = leaf.renew_at_unix().saturating_sub(now).min(60);
        if !leaf.is_due(now) {
            tokio::time::sleep(Duration::from_secs(wait.max(1))).await;
            continue;
        }
        match leaf.renew(now) {
            Ok(()) => info!(not_after = leaf.not_after_unix(), "leaf certificate renewed"),
            Err(fault) => {
                warn!(%fault, "leaf certificate not renewed; trying again");
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

/// Admits newcomers while a token lives; a node without the admission key has nothing to do here.
async fn admit(
    config: JoinServerConfig,
    shared: Option<Arc<JoinDoor>>,
    identity: Arc<Identity>,
    leaf: Arc<LeafSource>,
    clock: Arc<dyn Clock>,
    counters: Arc<OnceLock<Arc<JoinCounters>>>,
    stop: CancellationToken,
) {
    if !identity.can_admit() {
        return;
    }
    match JoinServer::new(config, identity, leaf, clock) {
        Ok(server) => {
            counters.get_or_init(|| server.counters());
            server.behind(shared).run(stop.cancelled_owned()).await;
        }
        Err(fault) => warn!(%fault, "newcomers cannot join at this node"),
    }
}

/// What the door for newcomers asks the state: whose a name is, and whom to dial.
fn door(dir: &Path, listen: SocketAddr, state: &Arc<Mutex<State>>, keeper: &Arc<Keeper>) -> JoinServerConfig {
    let (for_names, for_peers, keeper) = (Arc::clone(state), Arc::clone(state), Arc::clone(keeper));
    let names = move |name: &str| {
        let state = for_names.lock().unwrap_or_else(PoisonError::into_inner);
        state.catalog.by_name(name).map(|known| known.node).or_else(|| keeper.named(name))
    };
    let peers = move || {
        let state = for_peers.lock().unwrap_or_else(PoisonError::into_inner);
        let addressed =
            state.catalog.nodes().filter_map(|known| Some((known.node, known.facts.addresses.first()?.clone())));
        addressed.collect()
    };
    JoinServerConfig { dir: dir.to_owned(), listen, names: Arc::new(names), peers: Arc::new(peers) }
}

/// The folder belongs to one agent at a time, or to a verb that touches its store; the lock goes with the process.
///
/// # Errors
/// When another process has it, or there is no such folder: the message names the way out.
pub fn lock(dir: &Path) -> anyhow::Result<fs::File> {
    let path = dir.join("lock");
    let file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).with_context(|| {
            format!("open {}\n  hint: `marram init` or `marram join` makes the folder", path.display())
        })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "another agent runs in {}, or a `marram store` verb\n  hint: one agent per folder, and those verbs while none runs",
                dir.display()
            )
        }
        Err(fault) => Err(fault).with_context(|| format!("lock {}", path.display())),
    }
}

/// What tells the agent to stop: the first time in order, the second time at once.
struct StopSignals {
    signals: Option<[Signal; 2]>,
    stdin_closed: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl StopSignals {
    /// From here on the signals no longer kill the process.
    fn listen() -> Self {
        let signals = signal(SignalKind::terminate()).and_then(|one| Ok([one, signal(SignalKind::interrupt())?]));
        if let Err(fault) = &signals {
            warn!(%fault, "signals cannot be waited for: the agent ends without a drain");
        }
        Self { signals: signals.ok(), stdin_closed: Some(Box::pin(stdin_closed())) }
    }

    /// Waits for the next one. That standard input was closed is told once.
    async fn next(&mut self) {
        let stdin_closed = async {
            match &mut self.stdin_closed {
                Some(closed) => closed.await,
                None => std::future::pending().await,
            }
        };
        let signalled = async {
            let Some([terminate, interrupt]) = &mut self.signals else { return std::future::pending().await };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let is_stdin = tokio::select! {
            () = signalled => false,
            () = stdin_closed => true,
        };
        if is_stdin {
            self.stdin_closed = None;
        }
    }
}

async fn stdin_closed() {
    if std::env::var_os(STOP_WITH_STDIN).is_none() {
        return std::future::pending().await;
    }
    let (closed, seen) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own, because a read of standard input cannot be cancelled and must not keep a runtime from ending.
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
        closed.send(()).ok();
    });
    if reader.is_err() || seen.await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn data_threads(config: &Config) -> usize {
    if config.mesh.data_threads > 0 {
        return config.mesh.data_threads;
    }
    if machine::cores() >= 1.5 { 2 } else { 1 }
}

/// The data threads: one current-thread runtime each.
#[derive(Debug)]
struct DataThreads {
    handles: Vec<Handle>,
    stop: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl DataThreads {
    fn start(count: usize) -> anyhow::Result<Self> {
        let mut started = Self { handles: Vec::new(), stop: CancellationToken::new(), threads: Vec::new() };
        for core in 0..count {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a data runtime")?;
            started.handles.push(runtime.handle().clone());
            let stop = started.stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("data-{core}"))
                .spawn(move || {
                    runtime.block_on(stop.cancelled());
                    runtime.shutdown_timeout(Duration::from_millis(200));
                })
                .context("start a data thread")?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    fn stop(self) {
        self.stop.cancel();
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a data thread ended by a panic");
            }
        }
    }
}
