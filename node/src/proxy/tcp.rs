//! Raw TCP: a listener per service, and the tunnels that CONNECT and switched protocols leave behind.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::admit::Admission;
use super::attempt::{connect, open_stream, stream_head};
use super::context::{OutcomeKind, ProxyContext};
use super::copy::copy_both;
use super::head::Content;
use super::lanes::Place;
use super::links::Volume;
use super::record::{Direction, LocalInFlight, Record};
use super::refuse::{Reason, Refusal};
use super::retry::Tries;
use crate::snapshot::{Endpoint, Snapshot};

/// Bytes both ways to an instance.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug> Wire for T {}

/// The tunnel that a request left behind for the connection it came on.
#[derive(Debug, Clone, Default)]
pub(super) struct TunnelSlot {
    tunnel: Arc<Mutex<Option<Tunnel>>>,
}

impl TunnelSlot {
    pub(super) fn put(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    pub(super) fn take(&self) -> Option<Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An open way to an instance, and the record of what goes through.
#[derive(Debug)]
pub(super) struct Tunnel {
    instance: Box<dyn Wire>,
    record: Record,
}

impl Tunnel {
    pub(super) fn new(instance: Box<dyn Wire>, record: Record) -> Self {
        Self { instance, record }
    }

    /// Connects to an instance of `service`; nothing was sent, so another one is tried when the first fails.
    ///
    /// # Errors
    /// The refusal to answer with, where the client speaks HTTP.
    pub(super) async fn open(
        context: &Arc<ProxyContext>,
        core: usize,
        snapshot: &Snapshot,
        service: &str,
        mut tries: Tries,
        record: &mut Record,
    ) -> Result<Box<dyn Wire>, Refusal> {
        if snapshot.services.contains_key(service) {
            record.service = Some(service.into());
        }
        let admission = Admission::of(context, snapshot, service);
        admission.tunnel(record)?;
        let mut last: Option<Refusal> = None;
        loop {
            let pick = tries.pick(context, core, snapshot, service)?;
            if let Some(refusal) = last.take() {
                admission.second_try(record, true).map_err(|denied| refusal.not_sent_again(denied))?;
                record.retries += 1;
                metrics::counter!("marram_retries_total", "service" => service.to_owned()).increment(1);
            }
            record.via = pick.endpoint.via(&snapshot.here.name);
            record.probability = Some(pick.probability);
            match reach(context, core, &pick.endpoint, record).await {
                Ok(instance) => {
                    pick.endpoint.stats.succeeded();
                    return Ok(instance);
                }
                Err((OutcomeKind::TimedOut, detail)) => {
                    return Err(Refusal::new(Reason::Timeout, detail).hint("too many connections to that node at once"));
                }
                Err((kind, detail)) => {
                    record.at(None, None);
                    tries.fail(context, snapshot, &pick.endpoint, kind, detail);
                    last = Some(tries.refusal(service, true));
                }
            }
        }
    }

    /// Copies until both sides are done.
    pub(super) async fn run<S>(mut self, context: &ProxyContext, client: &mut S, ahead: Vec<u8>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let copied = copy_both(client, &mut self.instance, ahead, context.config.idle_timeout).await;
        self.record.tunnelled(copied.there, copied.back);
        if let Err(error) = copied.end {
            tracing::debug!(%error, bytes_there = copied.there, bytes_back = copied.back, "tunnel ended");
            self.record.broken();
        }
    }
}

async fn reach(
    context: &Arc<ProxyContext>,
    core: usize,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Box<dyn Wire>, (OutcomeKind, String)> {
    let mine = endpoint.stats.begin();
    if let Some(instance) = &endpoint.local {
        let (local, _count) = LocalInFlight::begin(instance);
        record.at(Some(mine), Some(local));
        return match connect(instance, context.config.connect_timeout).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(detail) => Err((OutcomeKind::ConnectFailed, detail)),
        };
    }
    record.at(Some(mine), None);
    let head = stream_head(context, endpoint, Content::Tcp, 1);
    let place = place(context, core, endpoint).await?;
    Ok(Box::new(open_stream(context, core, endpoint.node, &head, Volume::of(&endpoint.stats), place).await?))
}

/// The right to one more stream to an endpoint behind a peer, which may take a kept one's.
pub(super) async fn place(
    context: &Arc<ProxyContext>,
    core: usize,
    endpoint: &Endpoint,
) -> Result<Place, (OutcomeKind, String)> {
    let lane = context.lane(core, endpoint.node).share(&endpoint.service);
    let waiting = async {
        loop {
            let place = lane.place_of(|service| context.pool(core).close_one(endpoint.node, service));
            match place {
                Some(place) => return place,
                None => lane.changed().await,
            }
        }
    };
    let waited = tokio::time::timeout(context.config.connect_timeout, waiting).await;
    waited.map_err(|_elapsed| (OutcomeKind::TimedOut, "every stream to its node is in use".to_owned()))
}

/// Serves one connection of a listener for `service`.
pub(super) async fn connection(context: &Arc<ProxyContext>, core: usize, mut client: TcpStream, service: &str) {
    // A tunnel has neither method nor path; CONNECT is what it amounts to.
    let mut record = Record::new(context, core, Direction::Outbound, &Method::CONNECT, String::new(), "");
    let snapshot = context.published.load();
    let opened = match context.has_memory() {
        Ok(()) => Tunnel::open(context, core, &snapshot, service, Tries::default(), &mut record).await,
        Err(refusal) => Err(refusal),
    };
    match opened {
        Ok(instance) => {
            drop(snapshot);
            Tunnel::new(instance, record).run(context, &mut client, Vec::new()).await;
        }
        Err(refusal) => {
            // The client speaks a protocol unknown here: closing is all that can be said to it.
            refusal.count();
            tracing::info!(
                service,
                code = refusal.reason().code(),
                detail = refusal.detail(),
                "tcp connection refused"
            );
            record.broken();
        }
    }
}
