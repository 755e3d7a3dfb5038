//! The instance's end of one flow: a socket of its own, so that the instance tells clients apart by their ports.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::table::LastUse;
use super::{Lost, drop_datagram, taken};
use crate::proxy::context::ProxyContext;
use crate::proxy::record::LocalInFlight;
use crate::snapshot::LocalInstance;

/// Longest payload of a datagram.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams taken from one socket before other tasks get their turn.
const DATAGRAMS_PER_TURN: usize = 16;

/// Why the answers of an instance came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing in either direction for the time a flow may be idle.
    Idle,
    /// Nobody listens at its port.
    Refused,
    /// The flow is not wanted any more.
    Stopped,
}

/// A socket to an instance; dropping it ends the flow.
#[derive(Debug)]
pub(super) struct InstanceSocket {
    socket: Arc<UdpSocket>,
    last: LastUse,
    refused: CancellationToken,
    _stop: DropGuard,
    _in_flight: LocalInFlight,
}

impl InstanceSocket {
    /// Opens a flow to the instance. `back` gets each of its datagrams, `ended` is told once why there will be no more;
    /// both are called on this runtime.
    ///
    /// # Errors
    /// When the system has no socket.
    pub(super) async fn open(
        context: &Arc<ProxyContext>,
        instance: &Arc<LocalInstance>,
        last: LastUse,
        back: impl Fn(&[u8]) + Send + Sync + 'static,
        ended: impl FnOnce(Ended) + Send + 'static,
    ) -> io::Result<Self> {
        let any = match instance.address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = Arc::new(UdpSocket::bind(any).await?);
        socket.connect(instance.address).await?;
        // A new socket is taken for full until the runtime has heard otherwise, and the first datagrams would be dropped.
        socket.writable().await?;
        let (stop, refused) = (CancellationToken::new(), CancellationToken::new());
        let flow = Self {
            socket: Arc::clone(&socket),
            last: last.clone(),
            refused: refused.clone(),
            _stop: stop.clone().drop_guard(),
            _in_flight: LocalInFlight::begin(instance).0,
        };
        let context = Arc::clone(context);
        tokio::spawn(async move {
            let why = tokio::select! {
                why = answers(&context, &socket, &last, &back) => why,
                () = refused.cancelled() => Ended::Refused,
                () = stop.cancelled() => Ended::Stopped,
            };
            ended(why);
        });
        Ok(flow)
    }

    /// Hands one datagram to the instance.
    pub(super) fn send(&self, payload: &[u8], now: Duration) {
        self.last.touch(now);
        match self.socket.try_send(payload) {
            Ok(_) => {}
            // What the datagram before met is told to whoever uses the socket next: to this call, or to the reading one.
            Err(fault) if fault.kind() == io::ErrorKind::ConnectionRefused => {
                drop_datagram(Lost::InstanceRefused);
                self.refused.cancel();
            }
            Err(_no_room) => drop_datagram(Lost::NotSent),
        }
    }
}

async fn answers(context: &ProxyContext, socket: &UdpSocket, last: &LastUse, back: &impl Fn(&[u8])) -> Ended {
    let timeout = context.config.udp_flow_timeout;
    loop {
        let left = timeout.saturating_sub(last.idle_for(context.clock.now()));
        if left.is_zero() {
            return Ended::Idle;
        }
        if tokio::time::timeout(left, socket.readable()).await.is_err() {
            continue;
        }
        match take(socket, back) {
            Ok(0) => {}
            Ok(_) => last.touch(context.clock.now()),
            Err(_refused) => {
                drop_datagram(Lost::InstanceRefused);
                return Ended::Refused;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Takes what has arrived, at most [`DATAGRAMS_PER_TURN`]. The bytes live on the stack of the call and not in the task.
fn take(socket: &UdpSocket, back: &impl Fn(&[u8])) -> io::Result<usize> {
    let mut payload = [0; DATAGRAM_BYTES_MAX];
    for count in 0..DATAGRAMS_PER_TURN {
        match socket.try_recv(&mut payload) {
            Ok(length) => {
                taken("instance");
                back(payload.get(..length).unwrap_or_default());
            }
            Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(fault) => return Err(fault),
        }
    }
    Ok(DATAGRAMS_PER_TURN)
}
