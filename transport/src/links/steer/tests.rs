use quinn_proto::{ConnectionIdGenerator as _, EcnCodepoint};

use super::*;

/// A socket out of which nothing comes.
#[derive(Debug)]
struct Silent;

impl AsyncUdpSocket for Silent {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        unreachable!("nothing is sent")
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Ok(())
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 7440)))
    }
}

fn ids(core: usize) -> CoreConnectionIds {
    CoreConnectionIds::new(core, 1, 0x5a)
}

/// Two sockets as they are joined, with what they count.
fn crossing() -> ([SteeredSocket; 2], Arc<LinkCounters>) {
    let counters = Arc::<LinkCounters>::default();
    let crossing = Crossing::new(2);
    let mut strays = crossing.from.into_iter();
    let sockets = [0, 1].map(|core| SteeredSocket {
        inner: Arc::new(Silent),
        ids: ids(core),
        to: Arc::clone(&crossing.to),
        strays: Mutex::new(strays.next().expect("one for each core")),
        counters: Arc::clone(&counters),
    });
    (sockets, counters)
}

/// A packet of `length` bytes for a connection of this core, with a number at its end.
fn packet(core: usize, length: usize, number: u8) -> Vec<u8> {
    let mut packet = [&[0x40], &*ids(core).generate_cid()].concat();
    packet.resize(length, number);
    packet
}

fn meta(len: usize, stride: usize) -> RecvMeta {
    let addr = SocketAddr::from(([10, 0, 0, 9], 5000));
    RecvMeta { addr, len, stride, ecn: EcnCodepoint::from_bits(2).and_then(to_udp), dst_ip: Some(addr.ip()) }
}

fn to_udp(ecn: EcnCodepoint) -> Option<quinn::udp::EcnCodepoint> {
    quinn::udp::EcnCodepoint::from_bits(ecn as u8)
}

/// What a socket gives its endpoint: the packets with their metadata.
fn received(socket: &SteeredSocket, room: usize) -> Vec<(Vec<u8>, RecvMeta)> {
    let mut space = vec![[0; 1500]; room];
    let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
    let mut metas = vec![RecvMeta::default(); room];
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let Poll::Ready(Ok(count)) = socket.poll_recv(&mut cx, &mut bufs, &mut metas) else { return Vec::new() };
    bufs.iter().zip(metas).take(count).map(|(buf, meta)| (buf[..meta.len].to_vec(), meta)).collect()
}

#[test]
fn what_is_for_another_core_leaves_the_batch_and_comes_out_of_its_own_socket_as_it_arrived() {
    let ([first, second], counters) = crossing();
    let batch = [packet(0, 100, 1), packet(1, 100, 2), packet(0, 100, 3), packet(1, 60, 4)];
    let mut bytes = batch.concat();
    let mut all = meta(bytes.len(), 100);
    first.pass_on(&mut bytes, &mut all);
    assert_eq!(all.len, 200);
    assert_eq!(bytes[..200], [&*batch[0], &*batch[2]].concat());

    let strays = received(&second, 8);
    let told: Vec<_> = strays.iter().map(|(bytes, _)| bytes.clone()).collect();
    assert_eq!(told, [batch[1].clone(), batch[3].clone()]);
    for (bytes, stray) in strays {
        assert_eq!((stray.len, stray.stride), (bytes.len(), bytes.len()));
        assert_eq!((stray.addr, stray.ecn, stray.dst_ip), (all.addr, all.ecn, all.dst_ip));
    }
    assert_eq!((counters.packets_steered.count(), counters.packets_steered_dropped.count()), (2, 0));
    assert!(received(&first, 8).is_empty());
}

#[test]
fn a_batch_of_ones_own_is_left_as_it_is() {
    let ([first, _], counters) = crossing();
    let mut bytes = [packet(0, 100, 1), packet(0, 30, 2)].concat();
    let before = bytes.clone();
    let mut all = meta(130, 100);
    first.pass_on(&mut bytes, &mut all);
    assert_eq!((bytes, all.len), (before, 130));
    assert_eq!(counters.packets_steered.count(), 0);
}

#[test]
fn past_the_limit_packets_are_dropped_and_counted_and_half_of_the_room_is_left_for_the_socket() {
    let ([first, second], counters) = crossing();
    for _ in 0..STRAYS_MAX + 3 {
        let mut bytes = packet(1, 100, 1);
        first.pass_on(&mut bytes, &mut meta(100, 100));
    }
    let limit = u64::try_from(STRAYS_MAX).expect("a small number");
    assert_eq!((counters.packets_steered.count(), counters.packets_steered_dropped.count()), (limit, 3));
    assert_eq!(received(&second, 8).len(), 4);
    assert_eq!(received(&second, 1).len(), 1);
}

#[test]
fn an_id_of_a_core_that_is_not_there_goes_nowhere() {
    let ([first, _], counters) = crossing();
    let mut bytes = packet(7, 100, 1);
    let mut one = meta(100, 100);
    first.pass_on(&mut bytes, &mut one);
    assert_eq!(one.len, 0);
    assert_eq!((counters.packets_steered.count(), counters.packets_steered_dropped.count()), (0, 0));
}
