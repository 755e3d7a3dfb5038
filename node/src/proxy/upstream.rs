//! Kept-alive HTTP/1.1 connections to instances and, through peers, to theirs: one pool per data thread.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use transport::NodeId;

use super::body::RequestBody;
use super::context::ProxyContext;

/// Silent connections kept per instance and data thread; one more is closed instead.
const IDLE_PER_KEY_MAX: usize = 64;
/// Silent connections kept per data thread; one more is closed instead.
const IDLE_MAX: usize = 512;
/// A silent connection is closed after this, between one and one and a half times of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(40);
/// Time between two looks for connections that were silent too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// A connection silent for longer is not trusted with a request that must not be sent twice: the instance may be
/// closing it this very moment.
const FRESH_ENOUGH: Duration = Duration::from_millis(500);
/// Time for a connection to become ready again after a response was read; else it is closed.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// Which connections can stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PoolKey {
    /// A process on this machine.
    Local(SocketAddr),
    /// An instance behind a peer.
    Remote {
        /// The peer.
        node: NodeId,
        /// The service's name.
        service: String,
        /// The instance.
        instance: String,
    },
}

/// Silent connections of one data thread, the latest used first.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: HashMap<PoolKey, Vec<Idle>>,
    count: usize,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Duration,
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Pool {
    /// A connection that was usable when last seen, silent for at most [`FRESH_ENOUGH`] if `fresh`.
    fn take(&mut self, key: &PoolKey, fresh: bool, now: Duration) -> Option<SendRequest<RequestBody>> {
        let idle = self.idle.get_mut(key)?;
        let taken = loop {
            let Some(last) = idle.pop() else { break None };
            self.count -= 1;
            if !last.sender.is_ready() {
                continue;
            }
            if fresh && now.saturating_sub(last.since) > FRESH_ENOUGH {
                // All others are older still, but good for other requests.
                idle.push(last);
                self.count += 1;
                break None;
            }
            break Some(last.sender);
        };
        if idle.is_empty() {
            self.idle.remove(key);
        }
        taken
    }

    fn put(&mut self, key: PoolKey, sender: SendRequest<RequestBody>, now: Duration) {
        if self.count >= IDLE_MAX {
            return;
        }
        let idle = self.idle.entry(key).or_default();
        if idle.len() < IDLE_PER_KEY_MAX {
            idle.push(Idle { sender, since: now });
            self.count += 1;
        }
    }

    /// Closes what has been silent too long.
    fn sweep(&mut self, now: Duration) {
        self.keep(|_, idle| !idle.sender.is_closed() && now.saturating_sub(idle.since) < IDLE_TIMEOUT);
    }

    /// Closes the connection through `node` that has been silent longest; its stream ends shortly after.
    pub(super) fn close_one(&mut self, node: NodeId) {
        let through = |key: &PoolKey| matches!(key, PoolKey::Remote { node: through, .. } if *through == node);
        let oldest = self
            .idle
            .iter_mut()
            .filter(|(key, idle)| through(key) && !idle.is_empty())
            .min_by_key(|(_, idle)| idle.first().map(|one| one.since));
        if let Some((_, idle)) = oldest {
            idle.remove(0);
            self.count -= 1;
        }
    }

    /// Closes every connection through `node`.
    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.keep(|key, _| !matches!(key, PoolKey::Remote { node: through, .. } if *through == node));
    }

    fn keep(&mut self, wanted: impl Fn(&PoolKey, &Idle) -> bool) {
        for (key, idle) in &mut self.idle {
            idle.retain(|one| wanted(key, one));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
        self.count = self.idle.values().map(Vec::len).sum();
    }

    /// How many connections are kept.
    pub(super) const fn len(&self) -> usize {
        self.count
    }
}

/// A connection in use by one request. Dropping it closes the connection.
pub(super) struct Lease {
    context: Arc<ProxyContext>,
    core: usize,
    key: PoolKey,
    sender: SendRequest<RequestBody>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why a request got no response head on one connection.
#[derive(Debug)]
pub(super) enum NotSent {
    /// Not a byte of it left this node; here it is again.
    Unsent(Box<Request<RequestBody>>),
    /// At least a part of it left, or may have.
    Closed(hyper::Error),
    /// The client's body ended before its end.
    ClientBroke,
}

impl Lease {
    /// A kept connection, if there is one. With `fresh`, only one that was in use a moment ago.
    pub(super) fn reuse(context: &Arc<ProxyContext>, core: usize, key: &PoolKey, fresh: bool) -> Option<Self> {
        let sender = context.pool(core).take(key, fresh, context.clock.now())?;
        Some(Self { context: Arc::clone(context), core, key: key.clone(), sender })
    }

    /// A new connection over `io`.
    ///
    /// # Errors
    /// Those of the handshake, which sends nothing.
    pub(super) async fn open<S>(context: &Arc<ProxyContext>, core: usize, key: PoolKey, io: S) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let head_bytes_max = context.config.head_bytes_max.max(8 * 1024);
        let (sender, connection) = http1::Builder::new()
            .max_header_size(head_bytes_max)
            .max_buf_size(head_bytes_max.saturating_mul(4))
            .handshake(TokioIo::new(io))
            .await?;
        tokio::spawn(async move {
            // Whoever waits for a response learns of the error; a silent connection may end as it likes.
            connection.with_upgrades().await.ok();
        });
        Ok(Self { context: Arc::clone(context), core, key, sender })
    }

    /// Sends one request and waits for the response head.
    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, NotSent> {
        self.sender.try_send_request(request).await.map_err(|mut failed| match failed.take_message() {
            Some(request) => NotSent::Unsent(Box::new(request)),
            None if failed.error().is_user() => NotSent::ClientBroke,
            None => NotSent::Closed(failed.into_error()),
        })
    }

    /// Keeps the connection for the next request; the response was read whole.
    pub(super) fn give_back(mut self) {
        if self.sender.is_closed() {
            return;
        }
        if self.sender.is_ready() {
            self.keep();
            return;
        }
        // The request may still be on its way out although the response is here already.
        tokio::spawn(async move {
            if matches!(tokio::time::timeout(READY_TIMEOUT, self.sender.ready()).await, Ok(Ok(()))) {
                self.keep();
            }
        });
    }

    /// Keeps a connection that has not served yet, as soon as it can; false when it was closed before.
    pub(super) async fn give_back_ready(mut self) -> bool {
        let is_ready = self.sender.ready().await.is_ok();
        if is_ready {
            self.keep();
        }
        is_ready
    }

    fn keep(self) {
        let Self { context, core, key, sender, .. } = self;
        let through = match &key {
            PoolKey::Local(_) => None,
            PoolKey::Remote { node, .. } => Some(*node),
        };
        context.pool(core).put(key, sender, context.clock.now());
        if let Some(node) = through {
            context.lane(core, node).kept();
        }
        if context.begin_sweeping(core) {
            tokio::spawn(sweep(Arc::downgrade(&context), core));
        }
    }
}

/// Closes silent connections until none is left.
async fn sweep(context: Weak<ProxyContext>, core: usize) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(context) = context.upgrade() else { return };
        let left = {
            let mut pool = context.pool(core);
            pool.sweep(context.clock.now());
            pool.len()
        };
        if left == 0 {
            context.end_sweeping(core);
            return;
        }
    }
}
