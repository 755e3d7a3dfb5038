//! The UDP sockets: one per core on the same port, and client sockets on ports of their own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::config::{LinksConfig, Transport};
use crate::link::LinkError;
use crate::tcp::listen;

/// Times another port is tried when any would do and the first one is free for UDP only.
const PORTS_TRIED: usize = 16;

/// The UDP sockets of all cores, and the TCP listener on the same number where links want one.
///
/// When another process has the TCP port, links do without, unless nothing else may carry them.
pub(crate) fn bind_both(
    config: &LinksConfig,
    count: usize,
) -> Result<(Vec<UdpSocket>, Option<TcpListener>), LinkError> {
    let mut tries = PORTS_TRIED;
    loop {
        let sockets = bind_shared(config.bind, count, config.socket_buffer)?;
        let bound = sockets.first().map(UdpSocket::local_addr);
        let (Some(Ok(addr)), false) = (bound, config.transport == Transport::Quic) else {
            return Ok((sockets, None));
        };
        match listen::bind(addr) {
            Ok(listener) => return Ok((sockets, Some(listener))),
            Err(_) if config.bind.port() == 0 && tries > 0 => tries -= 1,
            Err(error) if config.transport == Transport::Auto => {
                tracing::warn!(%addr, %error, "no links over tcp: the tcp side of the mesh port cannot be had");
                return Ok((sockets, None));
            }
            Err(error) => return Err(LinkError::Bind { addr, source: Arc::new(error) }),
        }
    }
}

/// `count` sockets on one port; the kernel gives each packet to the socket of the core that its connection id names.
///
/// The first socket is bound alone and lets others join only then: with `SO_REUSEPORT` from the start, a second agent
/// of the same user would silently share the port and get half of the first one's packets.
///
/// # Errors
/// [`LinkError::PortInUse`] names the address; [`LinkError::Bind`] carries every other reason.
pub(crate) fn bind_shared(bind: SocketAddr, count: usize, buffer: usize) -> Result<Vec<UdpSocket>, LinkError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => LinkError::PortInUse { addr: bind },
        _ => LinkError::Bind { addr: bind, source: Arc::new(error) },
    };
    let first = make(bind, buffer).map_err(failed)?;
    first.bind(&bind.into()).map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    let first = UdpSocket::from(first);
    let addr = first.local_addr().map_err(failed)?;
    let mut sockets = vec![first];
    while sockets.len() < count {
        let next = make(addr, buffer).map_err(failed)?;
        next.set_reuse_port(true).map_err(failed)?;
        next.bind(&addr.into()).map_err(failed)?;
        sockets.push(next.into());
    }
    if let Err(error) = steer_by_id(&sockets) {
        // Then it spreads them by their address pair, and what comes out wrong is handed over (see `steer`).
        tracing::debug!(%error, "the kernel does not steer packets by their connection ids");
    }
    Ok(sockets)
}

/// Has the kernel look at the first byte of the connection id that a packet is sent to. A peer that opens a connection puts
/// its own core there (see `connection_id`), so its connections are spread over the cores as they are on its side.
///
/// This is a program of the classic packet filter, for which no privileges are needed (Linux 4.5, socket(7)). It sees what is
/// behind the UDP header; a load past the end of a packet means the first socket.
fn steer_by_id(sockets: &[UdpSocket]) -> io::Result<()> {
    let Some((first, others)) = sockets.split_first().filter(|(_, others)| !others.is_empty()) else { return Ok(()) };
    let count = u32::try_from(others.len() + 1).unwrap_or(u32::MAX);
    let step = |code: u16, jt: u8, jf: u8, k: u32| nix::libc::sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_BYTE, 0, 0, 0),
        // A long header has the version and the length of the id before the id (RFC 8999, section 5.1).
        step(JUMP_IF_SET, 0, 2, 0x80),
        step(LOAD_BYTE, 0, 0, 6),
        step(JUMP, 0, 0, 1),
        step(LOAD_BYTE, 0, 0, 1),
        step(MODULO, 0, 0, count),
        step(RETURN, 0, 0, 0),
    ];
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
    let program = nix::libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    setsockopt(first, sockopt::AttachReusePortCbpf, &program).map_err(io::Error::from)
}

// The instructions of `steer_by_id`, as linux/bpf_common.h has them.
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_SET: u16 = 0x45;
const JUMP: u16 = 0x05;
const MODULO: u16 = 0x94;
const RETURN: u16 = 0x16;

/// A socket on a free port of the address that peers reach us at, for connections this node opens.
pub(crate) fn bind_client(bind: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let any_port = SocketAddr::new(bind.ip(), 0);
    let socket = make(any_port, buffer)?;
    socket.bind(&any_port.into())?;
    Ok(socket.into())
}

/// The same while addresses come and go: where the node's own is gone, from whichever the route has.
pub(crate) fn bind_client_anew(bind: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    bind_client(bind, buffer).or_else(|error| match (error.kind(), bind) {
        (io::ErrorKind::AddrNotAvailable, SocketAddr::V4(_)) => bind_client((Ipv4Addr::UNSPECIFIED, 0).into(), buffer),
        (io::ErrorKind::AddrNotAvailable, SocketAddr::V6(_)) => bind_client((Ipv6Addr::UNSPECIFIED, 0).into(), buffer),
        _ => Err(error),
    })
}

fn make(addr: SocketAddr, buffer: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // Some systems have no sockets for both families; then IPv4 peers cannot be reached, which dialling reports.
        socket.set_only_v6(false).ok();
    }
    // The kernel grants what its limits allow; smaller buffers cost throughput, not correctness.
    socket.set_recv_buffer_size(buffer).ok();
    socket.set_send_buffer_size(buffer).ok();
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    #[test]
    fn a_taken_port_is_named() {
        let sockets = bind_shared(loopback(), 2, 65_536).expect("a free port");
        let addr = sockets[0].local_addr().expect("bound");
        assert_eq!(sockets[1].local_addr().expect("bound"), addr);
        let error = bind_shared(addr, 2, 65_536).expect_err("two agents must not share a port");
        assert!(matches!(error, LinkError::PortInUse { .. }), "{error:?}");
        assert!(error.to_string().contains(&addr.port().to_string()), "{error}");
    }

    #[test]
    fn the_kernel_gives_a_packet_to_the_core_that_its_id_names() {
        let sockets = bind_shared(loopback(), 3, 65_536).expect("a free port");
        let addr = sockets[0].local_addr().expect("bound");
        for (core, socket) in (0_u8..).zip(&sockets) {
            let short = [0x41, core, 7, 7, 7, 7, 7, 7, 7, 1];
            let long = [0xe0, 0, 0, 0, 1, 8, core, 7, 7, 7, 7, 7, 7, 7, 1];
            let mut first = [&[0xc0, 0, 0, 0, 1, 20][..], &[9; 21]].concat();
            first[6] = core;
            // More cores than this node has, as a larger peer sends.
            let mut larger = first.clone();
            larger[6] = core + 3;
            let packets = [&short[..], &long, &first, &larger];
            for _ in 0..8 {
                let sender = bind_client(loopback(), 65_536).expect("a free port");
                for packet in packets {
                    sender.send_to(packet, addr).expect("loopback takes it");
                }
            }
            let mut buffer = [0; 64];
            let received = std::iter::from_fn(|| socket.recv_from(&mut buffer).ok()).count();
            assert_eq!(received, 8 * packets.len(), "core {core}");
        }
    }

    #[test]
    fn packets_too_short_for_an_id_reach_the_first_core() {
        let sockets = bind_shared(loopback(), 2, 65_536).expect("a free port");
        let addr = sockets[0].local_addr().expect("bound");
        let sender = bind_client(loopback(), 65_536).expect("a free port");
        for packet in [&[][..], &[0x41], &[0xc0, 0, 0, 0, 1, 20]] {
            sender.send_to(packet, addr).expect("loopback takes it");
        }
        let mut buffer = [0; 8];
        assert_eq!(std::iter::from_fn(|| sockets[0].recv_from(&mut buffer).ok()).count(), 3);
    }
}
