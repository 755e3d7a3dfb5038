use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn settings() -> LineSettings {
    LineSettings { delay: 20 * MS, lost_of_10000: 0, bits_per_second: 8_000_000, queue: 10, seed: 1 }
}

#[test]
fn a_packet_arrives_after_the_delay_and_the_time_its_bits_take() {
    let mut line = Line::new(settings());
    // 1,000 bytes at 8 Mbit/s take a millisecond.
    assert!(line.take(vec![1; 1000], Duration::ZERO));
    assert!(line.take(vec![2; 1000], Duration::ZERO));
    assert_eq!(line.next(), Some(21 * MS));
    assert_eq!(line.arrived(20 * MS), None);
    assert_eq!(line.arrived(21 * MS), Some(vec![1; 1000]));
    assert_eq!(line.arrived(21 * MS), None, "the second waits for the first to be on the wire");
    assert_eq!(line.arrived(22 * MS), Some(vec![2; 1000]));
    assert_eq!(line.next(), None);
}

#[test]
fn packets_beyond_the_queue_are_lost_and_those_on_the_wire_do_not_count() {
    let mut line = Line::new(settings());
    let taken = (0..12).filter(|_| line.take(vec![0; 1000], Duration::ZERO)).count();
    assert_eq!(taken, 10);
    assert!(line.take(vec![0; 1000], MS), "one has left the queue, though it has not arrived");
    assert!(!line.take(vec![0; 1000], MS));
}

#[test]
fn as_many_are_lost_as_was_said_and_the_same_ones_for_a_seed() {
    let lost = |seed| {
        let mut line = Line::new(LineSettings { lost_of_10000: 300, queue: usize::MAX, seed, ..settings() });
        (0..20_000_u32).filter(|_| !line.take(vec![0; 10], Duration::ZERO)).collect::<Vec<_>>()
    };
    assert!((500..700).contains(&lost(1).len()), "{} of 20,000", lost(1).len());
    assert_eq!(lost(1), lost(1));
    assert_ne!(lost(1), lost(2));
}

#[test]
fn tcp_through_the_line_takes_its_delay_twice_for_a_round_trip() {
    if !rustix::process::geteuid().is_root() {
        ::tests::skip("tcp_through_the_line", "network namespaces take root");
        return;
    }
    let wan = Wan::start(LineSettings { bits_per_second: 100_000_000, queue: 1000, ..settings() }).unwrap();
    let listener = wan.right.run(|| Ok(TcpListener::bind("10.77.0.2:0")?)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    assert!(TcpStream::connect(address).is_err(), "from outside of the namespaces there is no way");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    let began = now();
    let mut stream = wan.left.run(|| Ok(TcpStream::connect(address)?)).unwrap();
    let connected = began.elapsed();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    server.join().unwrap();
    assert_eq!(text, "hello");
    assert!(connected >= 40 * MS, "{connected:?}");
    let (carried, lost) = wan.packets();
    assert!(carried >= 4 && lost == 0, "{carried} carried, {lost} lost");
}
