//! The edge of [`Mux`]: one task that moves bytes between it and a TLS stream, and handles that wake each other.
//!
//! The methods are those of quinn's connection and streams, with its errors, so that what is built on them need not
//! know which of the two it has.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::{
    ApplicationClose, ConnectionClose, ConnectionError, ReadError, SendDatagramError, StoppedError, TransportErrorCode,
    VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsStream;

use super::frame::DATAGRAM_BYTES_MAX;
use super::mux::{Delivery, Dir, End, Event, Mux, MuxLimits, Read, Side, StreamId, Write};
use crate::clock::Clock;
use crate::links::counters::LinkCounters;
use crate::links::lock;
use crate::links::permit::Permit;

/// Bytes read from TLS at a time.
const READ_BYTES: usize = 16 * 1024;
/// Turns of reading and writing before other tasks of the thread get theirs.
const ROUNDS: usize = 16;
/// Time for the last bytes to leave after the connection was closed.
const LINGER: Duration = Duration::from_millis(500);
/// A buffer of this size is not kept while there is nothing to send.
const OUT_KEPT: usize = 4 * 1024;

/// What is known of a connection from its handshake.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) remote: SocketAddr,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) key_exchange: &'static str,
}

/// What a connection is made with besides its stream.
pub(crate) struct Setup {
    pub(crate) side: Side,
    pub(crate) limits: MuxLimits,
    pub(crate) facts: Facts,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<LinkCounters>,
    /// Held until the last byte has left.
    pub(crate) open: Permit,
}

/// A connection. When the last handle is dropped, it is closed.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    _close_on_drop: Arc<CloseOnDrop>,
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.with(|mux| mux.close(0, b""));
    }
}

/// What handles, streams and the driver have in common.
struct Shared {
    state: Mutex<State>,
    facts: Facts,
    accepted_bi: Notify,
    accepted_uni: Notify,
    may_open: Notify,
    datagram: Notify,
    settled: Notify,
    ended: Notify,
}

struct State {
    mux: Mux,
    readers: HashMap<StreamId, Waker>,
    writers: HashMap<StreamId, Waker>,
    driver: Option<Waker>,
}

impl Shared {
    /// Does something with the machine, and wakes whom it concerns.
    fn with<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        self.with_state(|state| act(&mut state.mux))
    }

    fn with_state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut woken = Vec::new();
        let mut state = lock(&self.state);
        let result = act(&mut state);
        if state.mux.wants_transmit() || state.mux.end().is_some() {
            woken.extend(state.driver.take());
        }
        self.tell(state, woken);
        result
    }

    /// The same for the driver, which looks itself what there is to send.
    fn drive<T>(&self, act: impl FnOnce(&mut Mux) -> T) -> T {
        let mut state = lock(&self.state);
        let result = act(&mut state.mux);
        self.tell(state, Vec::new());
        result
    }

    /// Wakes everybody whom the events concern.
    fn tell(&self, mut state: MutexGuard<'_, State>, mut woken: Vec<Waker>) {
        let mut has_ended = false;
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::Readable(id) => woken.extend(state.readers.remove(&id)),
                Event::Writable(id) => woken.extend(state.writers.remove(&id)),
                Event::Settled => self.settled.notify_waiters(),
                Event::Accepted(Dir::Bi) => self.accepted_bi.notify_waiters(),
                Event::Accepted(Dir::Uni) => self.accepted_uni.notify_waiters(),
                Event::MayOpen => self.may_open.notify_waiters(),
                Event::Datagram => self.datagram.notify_waiters(),
                Event::Ended => has_ended = true,
            }
        }
        if has_ended {
            let State { readers, writers, .. } = &mut *state;
            woken.extend(readers.drain().chain(writers.drain()).map(|(_, waker)| waker));
            for waiting in
                [&self.accepted_bi, &self.accepted_uni, &self.may_open, &self.datagram, &self.settled, &self.ended]
            {
                waiting.notify_waiters();
            }
        }
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }

    /// Tries until it gives something or the connection ends, whenever `changed` says that it may.
    async fn wait_for<T>(&self, changed: &Notify, mut attempt: impl FnMut(&mut Mux) -> Option<T>) -> Result<T, End> {
        loop {
            let mut notified = pin!(changed.notified());
            notified.as_mut().enable();
            let tried = self.with(|mux| match attempt(mux) {
                Some(found) => Some(Ok(found)),
                None => mux.end().cloned().map(Err),
            });
            match tried {
                Some(found) => return found,
                None => notified.await,
            }
        }
    }

    fn close_reason(&self) -> Option<ConnectionError> {
        lock(&self.state).mux.end().cloned().map(error)
    }

    /// How it ended; only to be asked when it has.
    fn ended(&self) -> ConnectionError {
        self.close_reason().unwrap_or(ConnectionError::LocallyClosed)
    }
}

impl Connection {
    /// Takes a TLS stream into use on the current runtime.
    pub(crate) fn start(stream: TlsStream<TcpStream>, setup: Setup) -> Self {
        let Setup { side, limits, facts, clock, counters, open } = setup;
        let mux = Mux::new(side, limits, clock.now());
        let state = State { mux, readers: HashMap::new(), writers: HashMap::new(), driver: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            facts,
            accepted_bi: Notify::new(),
            accepted_uni: Notify::new(),
            may_open: Notify::new(),
            datagram: Notify::new(),
            settled: Notify::new(),
            ended: Notify::new(),
        });
        tokio::spawn(Driver {
            shared: Arc::clone(&shared),
            stream,
            clock,
            counters,
            out: Vec::new(),
            sent: 0,
            is_flushed: true,
            timer: Box::pin(sleep(Duration::ZERO)),
            linger: None,
            _open: open,
        });
        Self { _close_on_drop: Arc::new(CloseOnDrop(Arc::clone(&shared))), shared }
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.shared.facts.remote
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.shared.facts.certificates
    }

    pub(crate) fn key_exchange(&self) -> &'static str {
        self.shared.facts.key_exchange
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = self.open(Dir::Bi).await?;
        Ok((self.send_stream(id), self.recv_stream(id)))
    }

    pub(crate) async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        Ok(self.send_stream(self.open(Dir::Uni).await?))
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        let id = self.accept(Dir::Bi).await?;
        Ok((self.send_stream(id), self.recv_stream(id)))
    }

    pub(crate) async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        Ok(self.recv_stream(self.accept(Dir::Uni).await?))
    }

    async fn open(&self, dir: Dir) -> Result<StreamId, ConnectionError> {
        self.shared.wait_for(&self.shared.may_open, |mux| mux.open(dir)).await.map_err(error)
    }

    async fn accept(&self, dir: Dir) -> Result<StreamId, ConnectionError> {
        let accepted = match dir {
            Dir::Bi => &self.shared.accepted_bi,
            Dir::Uni => &self.shared.accepted_uni,
        };
        self.shared.wait_for(accepted, |mux| mux.accept(dir)).await.map_err(error)
    }

    fn send_stream(&self, id: StreamId) -> SendStream {
        SendStream { shared: Arc::clone(&self.shared), id }
    }

    fn recv_stream(&self, id: StreamId) -> RecvStream {
        RecvStream { shared: Arc::clone(&self.shared), id }
    }

    pub(crate) fn send_datagram(&self, bytes: Bytes) -> Result<(), SendDatagramError> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(SendDatagramError::TooLarge);
        }
        self.shared.with(|mux| match mux.end() {
            Some(end) => Err(SendDatagramError::ConnectionLost(error(end.clone()))),
            None => {
                mux.send_datagram(bytes);
                Ok(())
            }
        })
    }

    pub(crate) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        self.shared.wait_for(&self.shared.datagram, Mux::read_datagram).await.map_err(error)
    }

    pub(crate) fn datagram_send_buffer_space(&self) -> usize {
        lock(&self.shared.state).mux.datagram_room()
    }

    pub(crate) fn rtt(&self) -> Duration {
        lock(&self.shared.state).mux.rtt()
    }

    pub(crate) fn raise_bi_streams(&self, limit: u32) {
        self.shared.with(|mux| mux.raise_bi_streams(limit));
    }

    pub(crate) fn close(&self, code: u32, reason: &[u8]) {
        self.shared.with(|mux| mux.close(code, reason));
    }

    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.shared.close_reason()
    }

    pub(crate) async fn closed(&self) -> ConnectionError {
        let waited = self.shared.wait_for(&self.shared.ended, |_| None::<()>).await;
        waited.err().map_or(ConnectionError::LocallyClosed, error)
    }
}

/// The sending side of a stream. Dropped before it was reset, it is finished.
pub(crate) struct SendStream {
    shared: Arc<Shared>,
    id: StreamId,
}

impl SendStream {
    pub(crate) const fn id(&self) -> StreamId {
        self.id
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, WriteError>> {
        self.poll(cx, |mux, id| match mux.room(id) {
            Ok(room) => {
                let piece = bytes.get(..room.min(bytes.len())).unwrap_or_default();
                // Without room this is what asks to be woken.
                let mut piece = if piece.is_empty() && !bytes.is_empty() {
                    Bytes::from_static(&[0])
                } else {
                    Bytes::copy_from_slice(piece)
                };
                mux.write(id, &mut piece)
            }
            Err(refused) => refused,
        })
    }

    pub(crate) async fn write_chunk(&self, mut bytes: Bytes) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            poll_fn(|cx| self.poll(cx, |mux, id| mux.write(id, &mut bytes))).await?;
        }
        Ok(())
    }

    fn poll(
        &self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut Mux, StreamId) -> Write,
    ) -> Poll<Result<usize, WriteError>> {
        let written = self.shared.with_state(|state| {
            let written = write(&mut state.mux, self.id);
            if written == Write::Blocked {
                state.writers.insert(self.id, cx.waker().clone());
            }
            written
        });
        Poll::Ready(match written {
            Write::Taken(count) => Ok(count),
            Write::Blocked => return Poll::Pending,
            Write::Stopped(code) => Err(WriteError::Stopped(VarInt::from_u32(code))),
            Write::Closed => Err(WriteError::ClosedStream),
            Write::ConnectionEnded => Err(WriteError::ConnectionLost(self.shared.ended())),
        })
    }

    pub(crate) fn finish(&self) {
        self.shared.with(|mux| mux.finish(self.id));
    }

    pub(crate) fn reset(&self, code: u32) {
        self.shared.with(|mux| mux.reset(self.id, code));
    }

    /// Returns when the peer has everything (`None`), or wants no more. It may outlive the stream.
    pub(crate) fn stopped(&self) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        async move {
            let settled = shared.wait_for(&shared.settled, |mux| match mux.delivery(id) {
                Delivery::Pending | Delivery::ConnectionEnded => None,
                Delivery::Done => Some(None),
                Delivery::Stopped(code) => Some(Some(VarInt::from_u32(code))),
            });
            settled.await.map_err(|end| StoppedError::ConnectionLost(error(end)))
        }
    }
}

impl SendStream {
    /// Returns when the peer wants no more or is gone, for a stream that is not finished; to be awaited by the task that writes.
    pub(crate) fn unwanted(&self) -> impl Future<Output = ()> + Send + 'static {
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        poll_fn(move |cx| {
            shared.with_state(|state| match state.mux.delivery(id) {
                Delivery::Pending => {
                    state.writers.insert(id, cx.waker().clone());
                    Poll::Pending
                }
                Delivery::Done | Delivery::Stopped(_) | Delivery::ConnectionEnded => Poll::Ready(()),
            })
        })
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.shared.with_state(|state| {
            state.writers.remove(&self.id);
            state.mux.release_send(self.id);
        });
    }
}

/// The receiving side of a stream. Dropped before its end was read, the peer is stopped.
pub(crate) struct RecvStream {
    shared: Arc<Shared>,
    id: StreamId,
}

impl RecvStream {
    pub(crate) const fn id(&self) -> StreamId {
        self.id
    }

    /// The next bytes; `None` at the end.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<Result<Option<Bytes>, ReadError>> {
        let read = self.shared.with_state(|state| {
            let read = state.mux.read(self.id, bytes_max);
            if read == Read::Blocked {
                state.readers.insert(self.id, cx.waker().clone());
            }
            read
        });
        Poll::Ready(match read {
            Read::Bytes(bytes) => Ok(Some(bytes)),
            Read::End => Ok(None),
            Read::Blocked => return Poll::Pending,
            Read::Reset(code) => Err(ReadError::Reset(VarInt::from_u32(code))),
            Read::Closed => Err(ReadError::ClosedStream),
            Read::ConnectionEnded => Err(ReadError::ConnectionLost(self.shared.ended())),
        })
    }

    pub(crate) async fn read_chunk(&self, bytes_max: usize) -> Result<Option<Bytes>, ReadError> {
        poll_fn(|cx| self.poll_read(cx, bytes_max)).await
    }

    pub(crate) fn stop(&self, code: u32) {
        self.shared.with(|mux| mux.stop(self.id, code));
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.shared.with_state(|state| {
            state.readers.remove(&self.id);
            state.mux.release_recv(self.id);
        });
    }
}

/// Moves bytes between the machine and the TLS stream until the connection has ended.
struct Driver {
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    clock: Arc<dyn Clock>,
    counters: Arc<LinkCounters>,
    /// Given out by the machine and not taken by TLS yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    is_flushed: bool,
    timer: Pin<Box<Sleep>>,
    /// Since this side has closed: when to give up on the last bytes.
    linger: Option<Pin<Box<Sleep>>>,
    _open: Permit,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        lock(&self.shared.state).driver = Some(cx.waker().clone());
        for _ in 0..ROUNDS {
            if self.linger.is_some() {
                return self.poll_end(cx);
            }
            let has_read = self.poll_bytes(cx).unwrap_or_else(|lost| {
                self.lose(&lost);
                false
            });
            let moved = self.poll_timer(cx) || has_read;
            if self.is_ended() {
                self.linger = Some(Box::pin(sleep(LINGER)));
                continue;
            }
            if !moved {
                return Poll::Pending;
            }
        }
        // Once more when the runtime has looked for what arrived meanwhile; who wakes itself keeps it from that for long.
        pin!(tokio::task::yield_now()).poll(cx)
    }
}

impl Driver {
    fn is_ended(&self) -> bool {
        lock(&self.shared.state).mux.end().is_some()
    }

    /// Writes what there is and reads what there is; whether anything was read.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        self.poll_write(cx)?;
        self.poll_read(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.sent == self.out.len() && !self.refill() {
                break;
            }
            let bytes = self.out.get(self.sent..).unwrap_or_default();
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.sent += count;
                    self.is_flushed = false;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        if !self.is_flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Asks the machine for more to send; whether there is any.
    fn refill(&mut self) -> bool {
        self.out.clear();
        self.sent = 0;
        let now = self.clock.now();
        let Self { shared, out, .. } = self;
        shared.drive(|mux| mux.poll_transmit(out, now));
        if self.out.is_empty() && self.out.capacity() > OUT_KEPT {
            self.out = Vec::new();
        }
        !self.out.is_empty()
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(())) => {
                let now = self.clock.now();
                let fault = self.shared.drive(|mux| {
                    mux.handle_bytes(buffer.filled(), now);
                    mux.take_fault()
                });
                if let Some(fault) = fault {
                    self.counters.tcp_faults.add(fault);
                    tracing::debug!(remote = %self.shared.facts.remote, %fault, "connection closed");
                }
                // What it calls for is sent in the next round.
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    /// Whether something may have become due.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_fired = false;
        while self.timer.as_mut().poll(cx).is_ready() {
            has_fired = true;
            let now = self.clock.now();
            let next = self.shared.drive(|mux| {
                mux.handle_timeout(now);
                mux.poll_timeout()
            });
            let Some(next) = next else { break };
            self.timer = Box::pin(sleep(next.saturating_sub(now).max(TIMER_MIN)));
        }
        has_fired
    }

    fn lose(&self, lost: &io::Error) {
        let (alert, reason) = told(lost);
        self.shared.drive(|mux| mux.handle_lost(alert, reason));
    }

    /// The connection has ended: the last bytes leave, then both directions of TCP are closed. What still comes is read
    /// and dropped, for closing with unread bytes would reset the connection under our own last ones.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_local = matches!(lock(&self.shared.state).mux.end(), Some(End::Local));
        let is_late = self.linger.as_mut().is_none_or(|linger| linger.as_mut().poll(cx).is_ready());
        if !is_local || is_late || self.poll_write(cx).is_err() {
            return Poll::Ready(());
        }
        if self.sent < self.out.len() || !self.is_flushed {
            return Poll::Pending;
        }
        if ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // When its runtime ends, nobody may wait for it any longer.
        self.shared.with(|mux| mux.handle_lost(None, "no longer served".to_owned()));
    }
}

/// Timers finer than this are late anyway.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// What an error of TCP or TLS says: the alert the peer sent, if it is one, and a text.
fn told(error: &io::Error) -> (Option<u8>, String) {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return (None, "the connection was lost".to_owned());
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => (Some(u8::from(*alert)), error.to_string()),
        _ => (None, error.to_string()),
    }
}

/// An end in the words of quinn.
fn error(end: End) -> ConnectionError {
    match end {
        End::Local => ConnectionError::LocallyClosed,
        End::Closed { code, reason } => {
            ConnectionError::ApplicationClosed(ApplicationClose { error_code: VarInt::from_u32(code), reason })
        }
        End::TimedOut => ConnectionError::TimedOut,
        End::Lost { alert: Some(alert), .. } => {
            ConnectionError::TransportError(TransportErrorCode::crypto(alert).into())
        }
        End::Lost { alert: None, reason } => ConnectionError::ConnectionClosed(ConnectionClose {
            error_code: TransportErrorCode::NO_ERROR,
            frame_type: None,
            reason: reason.into(),
        }),
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("tcp::Connection").field(&self.shared.facts.remote).finish()
    }
}
