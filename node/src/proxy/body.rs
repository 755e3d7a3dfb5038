//! Bodies as they pass through: never collected, except small ones that may have to be sent twice.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::watch;

use super::drive::Driven;
use super::exchange::Exchange;
use super::gate::{SharedGate, lock};
use super::grpc::Ending;
use super::headers::strip_trailers;
use super::http2::InUse;
use super::record::Record;
use super::tcp::Wire;
use super::two::Receiving;
use super::upstream::Lease;

/// Boxed error of a body; the connection it is written to is closed on it, so that a cut body is never taken for a whole one.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that arrives.
#[derive(Debug)]
pub(crate) enum Arriving {
    /// There is none.
    Nothing,
    /// From a client of HTTP/1.1, or a peer; the number of the request it belongs to.
    Request(SharedGate, u64),
    /// From an instance of HTTP/1.1, or a peer.
    Answer(Box<Exchange>),
    /// The same, by a task of its own.
    Driven(Driven),
    /// From a client of HTTP/2.
    Two(Incoming),
    /// From an instance of HTTP/2.
    Received(Receiving),
}

impl Arriving {
    /// Sends what there is of the request that this answers.
    ///
    /// # Errors
    /// The client broke off.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        match self {
            Self::Answer(exchange) => exchange.poll_upload(cx),
            Self::Nothing | Self::Request(..) | Self::Driven(_) | Self::Two(_) | Self::Received(_) => Ok(()),
        }
    }

    /// The bare connection behind the head of an answer, and what was read of it ahead; only HTTP/1.1 has one.
    pub(super) fn into_wire(self) -> Option<(Box<dyn Wire>, BytesMut)> {
        match self {
            Self::Answer(exchange) => Some(exchange.into_parts()),
            Self::Nothing | Self::Request(..) | Self::Driven(_) | Self::Two(_) | Self::Received(_) => None,
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Nothing => Poll::Ready(None),
            Self::Request(gate, number) => lock(gate).poll_body(cx, *number),
            Self::Answer(exchange) => exchange.poll_body(cx),
            Self::Driven(driven) => driven.poll_frame(cx),
            Self::Two(incoming) => Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                Some(frame) => Some(frame.map_err(Into::into)),
                // A stream that was reset without a fault looks like one that came to its end.
                None if !incoming.is_end_stream() => Some(Err("the client took its request back".into())),
                None => None,
            }),
            Self::Received(receiving) => receiving.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Request(gate, number) => lock(gate).left(*number) == Some(0),
            Self::Answer(exchange) => exchange.is_read(),
            Self::Driven(driven) => driven.is_over(),
            Self::Two(incoming) => incoming.is_end_stream(),
            Self::Received(receiving) => receiving.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let left = match self {
            Self::Nothing => Some(0),
            Self::Request(gate, number) => lock(gate).left(*number),
            Self::Answer(exchange) => exchange.left(),
            Self::Driven(driven) => driven.is_over().then_some(0),
            Self::Two(incoming) => return incoming.size_hint(),
            Self::Received(receiving) => return receiving.size_hint(),
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A request body on its way to an instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Known bytes, which can be sent again.
    Whole(Bytes),
    /// Whatever the client sends, once; the first frames may have been read before.
    Stream(VecDeque<Frame<Bytes>>, Arriving, Upload),
}

/// How far a streamed request body is; the time for a response head counts from its end.
///
/// The body ends it when it is dropped at the latest. Clones look at the same body.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    way: watch::Sender<Way>,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    at: UploadAt,
    /// Pieces that were taken on to the instance.
    pieces: u64,
    /// There is nothing of it that the instance could take: it was not asked for, or has not come.
    is_awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UploadAt {
    UnderWay,
    Ended,
    /// The client did not send what it announced, or took the request back.
    Broken,
}

impl Upload {
    /// A body that has just begun.
    pub(crate) fn begin() -> Self {
        Self { way: watch::Sender::new(Way { at: UploadAt::UnderWay, pieces: 0, is_awaited: true }) }
    }

    /// Waits for the body's end.
    pub(crate) async fn end(&self) {
        // Fails only without a sender, and this is one.
        self.way.subscribe().wait_for(|way| way.at != UploadAt::UnderWay).await.ok();
    }

    /// Waits until nothing of the body was taken for `limit`, at most twice that, though more of it has come.
    async fn untaken(&self, limit: Duration) {
        let mut seen = *self.way.borrow();
        loop {
            tokio::time::sleep(limit).await;
            let way = *self.way.borrow();
            if way.pieces == seen.pieces && !way.is_awaited && !seen.is_awaited {
                return;
            }
            seen = way;
        }
    }

    /// Whether it ended before its end.
    pub(crate) fn is_broken(&self) -> bool {
        self.way.borrow().at == UploadAt::Broken
    }

    fn ended(&self, how: UploadAt) {
        self.way.send_if_modified(|way| {
            let is_news = way.at == UploadAt::UnderWay;
            if is_news {
                way.at = how;
            }
            is_news
        });
    }

    /// What came of it cannot be written.
    fn held_up(&self) {
        self.way.send_if_modified(|way| {
            way.is_awaited = false;
            false
        });
    }

    /// A piece was asked for, and has come or not.
    fn asked(&self, has_come: bool) {
        // Nobody waits for that.
        self.way.send_if_modified(|way| {
            way.pieces += u64::from(has_come);
            way.is_awaited = !has_come;
            false
        });
    }
}

impl RequestBody {
    /// A second body of the same bytes, if that is possible.
    pub(crate) fn replay(&self) -> Option<Self> {
        match self {
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::Stream(..) => None,
        }
    }

    /// What came of it is held up: whoever is to take it does not.
    pub(super) fn held_up(&self) {
        if let Self::Stream(.., upload) = self {
            upload.held_up();
        }
    }

    /// Whether more of it comes over HTTP/2.
    pub(super) const fn comes_over_two(&self) -> bool {
        matches!(self, Self::Stream(_, Arriving::Two(_), _))
    }

    /// Takes what has arrived already, at most `bytes_max` and the last piece: a small body over HTTP/2 is there with its
    /// head, though nothing in the head says so.
    ///
    /// # Errors
    /// When the client breaks off.
    pub(crate) async fn read_arrived(mut body: Arriving, bytes_max: usize) -> Result<Self, BodyError> {
        let mut frames = VecDeque::new();
        let mut length = 0;
        while length <= bytes_max {
            match body.frame().now_or_never() {
                Some(Some(frame)) => {
                    let mut frame = frame?;
                    settle_trailers(&mut frame);
                    length += frame.data_ref().map_or(0, Bytes::len);
                    frames.push_back(frame);
                }
                Some(None) if frames.iter().all(Frame::is_data) => {
                    let pieces: Vec<Bytes> = frames.into_iter().filter_map(|frame| frame.into_data().ok()).collect();
                    return Ok(Self::Whole(pieces.concat().into()));
                }
                Some(None) | None => break,
            }
        }
        Ok(Self::Stream(frames, body, Upload::begin()))
    }

    /// Reads `body` of `length` bytes whole.
    ///
    /// # Errors
    /// When the client breaks off, or sends more or less than that.
    pub(crate) async fn read_whole(mut body: Arriving, length: usize) -> Result<Self, BodyError> {
        let mut whole = BytesMut::new();
        let mut trailers = None;
        while let Some(mut frame) = body.frame().await.transpose()? {
            settle_trailers(&mut frame);
            match frame.into_data() {
                Ok(data) if whole.len() + data.len() > length => {
                    return Err("the body is longer than its content-length".into());
                }
                Ok(data) => whole.extend_from_slice(&data),
                Err(frame) => trailers = Some(frame),
            }
        }
        if whole.len() < length {
            return Err("the body is shorter than its content-length".into());
        }
        let whole = whole.freeze();
        Ok(match trailers {
            None => Self::Whole(whole),
            Some(trailers) => Self::Stream([Frame::data(whole), trailers].into(), Arriving::Nothing, Upload::begin()),
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(arrived, incoming, upload) => {
                if let Some(frame) = arrived.pop_front() {
                    upload.asked(true);
                    if arrived.is_empty() && incoming.is_end_stream() {
                        upload.ended(UploadAt::Ended);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                upload.asked(polled.is_ready());
                let mut frame = ready!(polled);
                if let Some(Ok(frame)) = &mut frame {
                    settle_trailers(frame);
                }
                match &frame {
                    Some(Err(_)) => upload.ended(UploadAt::Broken),
                    Some(Ok(_)) if !incoming.is_end_stream() => {}
                    Some(Ok(_)) | None => upload.ended(UploadAt::Ended),
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(arrived, incoming, _) => arrived.is_empty() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(arrived, incoming, _) if arrived.is_empty() => incoming.size_hint(),
            Self::Stream(..) => SizeHint::default(),
        }
    }
}

/// Takes out of trailers what may not stand in them.
fn settle_trailers(frame: &mut Frame<Bytes>) {
    if let Some(trailers) = frame.trailers_mut() {
        strip_trailers(trailers);
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Self::Stream(.., upload) = self {
            upload.ended(UploadAt::Ended);
        }
    }
}

/// Why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// Its answer did not come in time.
    NoAnswer,
    /// Nothing of its body was taken in time.
    BodyNotTaken,
}

/// Runs `sending` for at most `limit`, counted from the end of the streamed request body if there is one; of that body a
/// piece must be taken within `idle`, at most twice that.
///
/// A client of HTTP/1.1 that stops in the middle of its body is not waited for: its connection ends after
/// `proxy.idle_timeout`, and the body with it. One of HTTP/2 is, as long as it answers pings.
///
/// # Errors
/// The time is over.
pub(crate) async fn within<T>(
    limit: Duration,
    idle: Duration,
    upload: Option<&Upload>,
    sending: impl Future<Output = T>,
) -> Result<T, Late> {
    let over = async {
        match upload {
            None => {
                tokio::time::sleep(limit).await;
                Late::NoAnswer
            }
            // Boxed, as most requests have their bodies at hand and need not be as large.
            Some(upload) => Box::pin(late(limit, idle, upload)).await,
        }
    };
    tokio::select! {
        biased;
        sent = sending => Ok(sent),
        late = over => Err(late),
    }
}

async fn late(limit: Duration, idle: Duration, upload: &Upload) -> Late {
    tokio::select! {
        biased;
        () = upload.end() => {}
        () = upload.untaken(idle) => return Late::BodyNotTaken,
    }
    tokio::time::sleep(limit).await;
    Late::NoAnswer
}

/// A response body on its way to the client: the proxy's own words, or what an instance sends.
///
/// Dropping it ends the record of the request, and gives the connection to the instance back when it was read whole.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    record: Option<Box<Record>>,
    /// For a gRPC client: what it is told when the instance does not end the answer.
    ending: Option<Ending>,
    in_use: Option<InUse>,
}

#[derive(Debug)]
enum Source {
    Own(Bytes),
    Instance { incoming: Arriving, lease: Option<Lease> },
}

impl ResponseBody {
    /// The proxy's own answer.
    pub(crate) const fn full(bytes: Bytes) -> Self {
        Self { source: Source::Own(bytes), record: None, ending: None, in_use: None }
    }

    /// What an instance answers over the connection of `lease`.
    pub(crate) fn instance(incoming: Arriving, lease: Lease) -> Self {
        let source = Source::Instance { incoming, lease: Some(lease) };
        let mut body = Self { source, record: None, ending: None, in_use: None };
        body.finish_if_ended();
        body
    }

    /// The same over a connection that nobody wants back.
    #[cfg(test)]
    pub(super) fn arriving(incoming: Arriving) -> Self {
        Self { source: Source::Instance { incoming, lease: None }, record: None, ending: None, in_use: None }
    }

    /// Keeps `record` until the body is done or dropped.
    pub(crate) fn recorded(mut self, record: Record) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    /// Ends with trailers of gRPC when the instance does not.
    pub(crate) fn ending(mut self, ending: Ending) -> Self {
        self.ending = Some(ending);
        self
    }

    /// Counts as a request of its connection until the body is done or dropped.
    pub(crate) fn held(mut self, in_use: InUse) -> Self {
        self.in_use = Some(in_use);
        self
    }

    /// Sends what there is of the request while nothing of the answer can be written.
    ///
    /// # Errors
    /// The client broke off.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        match &mut self.source {
            Source::Instance { incoming, .. } => incoming.poll_upload(cx),
            Source::Own(_) => Ok(()),
        }
    }

    /// Whether trailers may come behind it.
    pub(super) fn may_have_trailers(&self) -> bool {
        matches!(self.source, Source::Instance { .. }) && !self.is_end_stream()
    }

    /// Lets go of the instance and says the last words itself.
    fn end_with(&mut self, trailers: HeaderMap) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.source = Source::Own(Bytes::new());
        if let Some(record) = &mut self.record {
            record.broken();
        }
        Some(Ok(Frame::trailers(trailers)))
    }

    fn finish_if_ended(&mut self) {
        if let Source::Instance { incoming, lease } = &mut self.source
            && incoming.is_end_stream()
        {
            give_back(incoming, lease);
        }
    }
}

/// Gives the connection of an answer that was read whole back for the next request.
fn give_back(incoming: &mut Arriving, lease: &mut Option<Lease>) {
    if let Some(lease) = lease.take() {
        lease.give_back(std::mem::replace(incoming, Arriving::Nothing));
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let (Source::Instance { .. }, Some(ending)) = (&this.source, &mut this.ending)
            && let Poll::Ready(trailers) = ending.poll_deadline(cx)
        {
            return Poll::Ready(this.end_with(trailers));
        }
        let mut frame = match &mut this.source {
            Source::Own(bytes) if bytes.is_empty() => None,
            Source::Own(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Source::Instance { incoming, lease } => match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                Some(Ok(frame)) => Some(Ok(frame)),
                Some(Err(error)) if this.ending.is_some() => {
                    return Poll::Ready(this.end_with(Ending::broken(&*error)));
                }
                Some(Err(error)) => {
                    drop(lease.take());
                    if let Some(record) = &mut this.record {
                        record.broken();
                    }
                    Some(Err(error))
                }
                None => {
                    give_back(incoming, lease);
                    None
                }
            },
        };
        if let Some(Ok(frame)) = &mut frame {
            settle_trailers(frame);
            if let (Some(data), Some(record)) = (frame.data_ref(), &mut this.record) {
                record.sent(data.len());
            }
        }
        this.finish_if_ended();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_empty(),
            Source::Instance { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Instance { incoming, .. } => incoming.size_hint(),
        }
    }
}
