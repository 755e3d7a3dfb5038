//! Clients that flood an agent with frames: its memory stays bounded, and what others ask is answered meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tests::frames::{ACK, END_HEADERS, END_STREAM, Frames, Gone, PRIORITY, fields, frame, kind};
use tests::{App, Fleet, Node, Recorder, Script, Stopwatch, get, pause};

/// Connections of each flood at once.
const CONNECTIONS: usize = 4;
/// How long each flood lasts, also when the agent cuts it off again and again.
const LASTS: Duration = Duration::from_millis(1200);
/// What an agent may grow by; measured growth is printed.
const GROWTH_MAX: u64 = 96 << 20;
/// The longest that anybody else may wait meanwhile, on a machine that has other things to do too.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The fewest answers that somebody else gets meanwhile who asks again and again.
const ANSWERS_MIN: usize = 20;

const GET: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "hello.mesh")];
const LARGE: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/large"), (":authority", "raw.mesh")];
const POST: &[(&str, &str)] = &[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "hello.mesh")];

/// One kind of flood: what a connection begins with, and what follows again and again.
struct Flood {
    name: &'static str,
    settings: &'static [(u16, u32)],
    begins: Vec<u8>,
    /// The frames of one round, for stream numbers that grow.
    again: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
    /// Whether an agent that is well ends the connection.
    is_cut: bool,
}

fn floods() -> Vec<Flood> {
    let all = END_HEADERS | END_STREAM;
    let id = |number: u32| (2 * number + 1) & 0x7fff_ffff;
    let flood = |name, begins: Vec<u8>, again: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>, is_cut| Flood {
        name,
        settings: &[],
        begins,
        again,
        is_cut,
    };
    let open = || frame(kind::HEADERS, END_HEADERS, 1, &fields(POST));
    // Fills the table with one field of 4,000 bytes, which one byte then stands for.
    let filled = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4000]].concat();
    let bomb = [fields(GET), filled, vec![0xbe; 12_000]].concat();
    let mut floods = vec![
        flood(
            "rapid reset",
            Vec::new(),
            Box::new(move |number| {
                [
                    frame(kind::HEADERS, all, id(number), &fields(GET)),
                    frame(kind::RST_STREAM, 0, id(number), &[0, 0, 0, 8]),
                ]
                .concat()
            }),
            true,
        ),
        flood(
            "resets that the agent is made to send",
            Vec::new(),
            Box::new(move |number| {
                let headers = frame(kind::HEADERS, END_HEADERS, id(number), &fields(POST));
                [headers, frame(kind::WINDOW_UPDATE, 0, id(number), &[0, 0, 0, 0])].concat()
            }),
            true,
        ),
        flood(
            "CONTINUATION without end",
            frame(kind::HEADERS, END_STREAM, 1, &fields(GET)),
            Box::new(|_| frame(kind::CONTINUATION, 0, 1, &fields(&[("x", "y")]))),
            true,
        ),
        flood(
            "large CONTINUATION without end",
            frame(kind::HEADERS, END_STREAM, 1, &fields(GET)),
            Box::new(|_| frame(kind::CONTINUATION, 0, 1, &fields(&[("x", "y")]).repeat(3000))),
            true,
        ),
        flood(
            "empty CONTINUATION",
            frame(kind::HEADERS, END_STREAM, 1, &fields(GET)),
            Box::new(|_| frame(kind::CONTINUATION, 0, 1, &[])),
            true,
        ),
        flood("SETTINGS", Vec::new(), Box::new(|_| frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])), false),
        flood("PING", Vec::new(), Box::new(|_| frame(kind::PING, 0, 0, b"whatever")), false),
        flood("answers to no PING", Vec::new(), Box::new(|_| frame(kind::PING, ACK, 0, b"whatever")), false),
        flood(
            "PRIORITY",
            Vec::new(),
            Box::new(move |number| frame(kind::PRIORITY, 0, id(number), &[0, 0, 0, 0, 9])),
            false,
        ),
        flood("WINDOW_UPDATE", Vec::new(), Box::new(|_| frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())), false),
        flood("empty DATA", open(), Box::new(|_| frame(kind::DATA, 0, 1, &[])), true),
        flood("DATA of one byte", open(), Box::new(|_| frame(kind::DATA, 0, 1, b"x")), false),
        flood("unknown frames", Vec::new(), Box::new(|_| frame(0xfa, 0, 0, &[0; 1000])), false),
        flood("header bombs", Vec::new(), Box::new(move |number| frame(kind::HEADERS, all, id(number), &bomb)), false),
        flood(
            "header bombs in HEADERS with priority",
            Vec::new(),
            Box::new(move |number| {
                let block = [&[0, 0, 0, 0, 1][..], &fields(GET), &fields(&[("x", "y")]).repeat(2000)].concat();
                frame(kind::HEADERS, all | PRIORITY, id(number), &block)
            }),
            false,
        ),
        flood(
            "streams that never end",
            Vec::new(),
            Box::new(move |number| {
                [
                    frame(kind::HEADERS, END_HEADERS, id(number), &fields(POST)),
                    frame(kind::DATA, 0, id(number), &[b'x'; 1000]),
                ]
                .concat()
            }),
            false,
        ),
    ];
    // Asks for large bodies and has no room for any of them.
    let stalled = (0..100).flat_map(|number| frame(kind::HEADERS, all, id(number), &fields(LARGE))).collect();
    let mut stall = flood("a window of nothing", stalled, Box::new(|_| frame(kind::PING, 0, 0, b"whatever")), false);
    stall.settings = &[(4, 0)];
    floods.push(stall);
    floods
}

/// Frames of one flood, made before it begins: who floods should not need the processor that the agent would have.
#[derive(Debug, Clone)]
struct Round {
    bytes: Vec<u8>,
    /// Where stream numbers are that grow from round to round.
    growing: Vec<usize>,
}

impl Round {
    const NUMBERS: u32 = 50;

    fn first(flood: &Flood) -> Self {
        let bytes: Vec<u8> = (0..Self::NUMBERS).flat_map(|number| (flood.again)(number)).collect();
        let is_growing = (flood.again)(0) != (flood.again)(1);
        let mut growing = Vec::new();
        let mut at = 0;
        while is_growing && at < bytes.len() {
            growing.push(at + 5);
            at += 9 + usize::try_from(u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]])).unwrap();
        }
        Self { bytes, growing }
    }

    fn next(&mut self) {
        for &at in &self.growing {
            let stream: &mut [u8; 4] = (&mut self.bytes[at..at + 4]).try_into().unwrap();
            *stream = ((u32::from_be_bytes(*stream) + 2 * Self::NUMBERS) & 0x7fff_ffff).to_be_bytes();
        }
    }
}

/// Floods an agent from one connection after the other; returns how many it cut off.
fn run(flood: &Flood, address: SocketAddr) -> usize {
    let first = Round::first(flood);
    let watch = Stopwatch::start();
    let mut cut = 0;
    while watch.elapsed() < LASTS {
        let mut connection = Frames::open(address, flood.settings);
        let mut gone = connection.try_send(&flood.begins, LASTS);
        let mut round = first.clone();
        while gone == Gone::All && watch.elapsed() < LASTS {
            // Nothing is read: what the agent has to say piles up at its own end.
            gone = connection.try_send(&round.bytes, Duration::from_millis(200));
            round.next();
        }
        cut += usize::from(gone == Gone::Cut);
        // Who is not read any more holds on to its connection.
        while gone == Gone::Stuck && watch.elapsed() < LASTS {
            pause(Duration::from_millis(20));
        }
    }
    cut
}

/// Asks again and again over connections of its own; returns the count of answers and the longest wait.
struct Neighbour {
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<Result<(usize, Duration), String>>,
}

impl Neighbour {
    fn of(address: SocketAddr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let asking = std::thread::spawn(move || {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !until.load(Ordering::Relaxed) {
                let watch = Stopwatch::start();
                let answer = get(address, "/", &[("host", "other.mesh")])?;
                if answer.status != 200 {
                    return Err(format!("{answer:?}"));
                }
                (count, longest) = (count + 1, longest.max(watch.elapsed()));
            }
            Ok((count, longest))
        });
        Self { is_over, asking }
    }

    fn end(self) -> Result<(usize, Duration), String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.asking.join().map_err(|_panicked| "panicked".to_owned())?
    }
}

/// Bytes of memory that a process has in use.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[test]
fn floods_leave_memory_bounded_and_others_unharmed() {
    // The neighbour's service is not the flooded one: how many connections an application bears is for its own limits.
    let (app, other) = (App::start("a"), App::start("other"));
    let recorder = Recorder::start(|_| Script::saying(&"x".repeat(1 << 20)));
    let fleet = Fleet::start(1, &|_, config| {
        Node::serve(config, "hello", app.address(), None);
        Node::serve(config, "other", other.address(), None);
        Node::serve(config, "raw", recorder.address(), None);
    });
    fleet.wait_service("raw", 1);
    let node = &fleet.nodes[0];
    let pid = node.pid().unwrap();
    // What a first connection of each kind takes once is not growth.
    assert_eq!(node.get("hello", "/").unwrap().status, 200);
    run(&floods()[0], node.proxy);
    let before = resident(pid);
    let mut faults = Vec::new();
    for flood in floods() {
        let neighbour = Neighbour::of(node.proxy);
        let flood = Arc::new(flood);
        let (cut, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(CONNECTIONS)));
        for _ in 0..CONNECTIONS {
            let (flood, cut, left, address) = (Arc::clone(&flood), Arc::clone(&cut), Arc::clone(&left), node.proxy);
            std::thread::spawn(move || {
                cut.fetch_add(run(&flood, address), Ordering::SeqCst);
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut most = 0;
        while left.load(Ordering::SeqCst) > 0 {
            most = most.max(resident(pid));
            pause(Duration::from_millis(20));
        }
        let growth = most.saturating_sub(before);
        let (name, cut) = (flood.name, cut.load(Ordering::SeqCst));
        match neighbour.end() {
            Ok((count, longest)) => {
                eprintln!(
                    "{name}: {} KiB more, {cut} cut, neighbour {count} answers, longest {longest:?}",
                    growth >> 10
                );
                if count < ANSWERS_MIN || longest > WAIT_MAX {
                    faults.push(format!("{name}: the neighbour got {count} answers, the slowest after {longest:?}"));
                }
            }
            Err(fault) => faults.push(format!("{name}: the neighbour got {fault}")),
        }
        if growth > GROWTH_MAX {
            faults.push(format!("{name}: {} MiB more", growth >> 20));
        }
        if flood.is_cut && cut == 0 {
            faults.push(format!("{name}: no connection was cut off"));
        }
    }
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), fleet.logs());
}
