//! One request and its answer on a connection of HTTP/1.1 to an instance, or through a peer to one.
//!
//! The request goes out while the answer may come in already; both are driven by whoever waits for the answer. Answers are
//! read as strictly as requests: one on which two readers could disagree is an error of the connection, so the request has
//! failed and the connection is not kept.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper::body::{Body as _, Frame};
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::{request, response};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio_util::io::poll_read_buf;
use transport::Retirement;

use super::body::{BodyError, RequestBody};
use super::framing::{AnswerEnd, Chunks, FIELDS_MAX, Framing, PEER_FIELDS_MAX, Taken, head_end, read_answer};
use super::headers::restore_length;
use super::serve::REST_BYTES_MAX;
use super::tcp::Wire;
use super::turns::after_others;
use super::wire::{Coding, TURN_BYTES, Trailers, Trailing, WrongLength, put_fields, put_fields_of_chunked};

/// Informational answers before the one; one more is taken for a flood.
const INFORMATIONAL_MAX: usize = 16;
/// So much of a body waits for more of it at most.
const UNWRITTEN_BYTES_MAX: usize = 16 * 1024;
/// What a piece of a body costs beside its bytes, counted as bytes.
const FRAME_COST: usize = 64;
/// How every answer begins.
const BEGINNING: &[u8] = b"HTTP/1.";
/// Bytes asked for with one read at first; where they all come, twice as many are asked for next. jemalloc has such pieces of
/// eight to a slab; of 4 KiB each is a slab of its own, which costs more to get.
const READ_BYTES: usize = 3584;
/// The most of that.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A connection between two requests.
#[derive(Debug)]
pub(super) struct Connection {
    io: Box<dyn Wire>,
    /// Of the link it is on, where it leads through a peer.
    link: Option<Retirement>,
    trailing: Trailing,
    unread: BytesMut,
    head_bytes_max: usize,
    fields_max: usize,
}

impl Connection {
    /// A new one; heads of answers may have `head_bytes_max` bytes.
    pub(super) fn new(io: Box<dyn Wire>, head_bytes_max: usize) -> Self {
        Self {
            io,
            link: None,
            trailing: Trailing::Announced,
            unread: BytesMut::new(),
            head_bytes_max,
            fields_max: FIELDS_MAX,
        }
    }

    /// The same on a link to a peer.
    pub(super) fn on(self, link: Option<Retirement>, trailing: Trailing) -> Self {
        let fields_max = if link.is_some() { PEER_FIELDS_MAX } else { FIELDS_MAX };
        Self { link, trailing, fields_max, ..self }
    }

    /// Whether the link it is on has been left, so that it serves no further request.
    pub(super) fn is_left(&self) -> bool {
        self.link.as_ref().is_some_and(Retirement::has_begun)
    }

    /// Ends it behind what was sent, which the other side still reads.
    pub(super) fn close(mut self) {
        // A link takes the end at once; what does not is cut off, as it would be without.
        let _ended = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    /// Whether it is open, silent and not on a link that was left: what arrives before something was asked is no answer.
    pub(super) fn is_usable(&mut self) -> bool {
        if self.is_left() {
            return false;
        }
        let io = &mut self.io;
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        // Unconstrained: a task that has had its share of turns would be told that nothing has come, whatever has.
        let mut looking = pin!(tokio::task::unconstrained(poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut byte))));
        self.unread.is_empty() && looking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// The bare connection, and what was read of it ahead.
    pub(super) fn into_parts(self) -> (Box<dyn Wire>, BytesMut) {
        (self.io, self.unread)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Broke {
    /// Not a byte of the request was taken.
    Unsent,
    /// The connection just ended.
    Ended(String),
    /// What came is no answer, or the connection broke.
    Wrong(String),
    /// The client's body ended before its end.
    Client,
}

/// A request under way, and later its answer's body.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: Connection,
    /// To be written.
    unwritten: BytesMut,
    /// The same, behind that.
    piece: Bytes,
    /// The body of the request, while it is not all in `unwritten`.
    upload: Option<Upload>,
    sending: Sending,
    /// The connection takes nothing more; an answer may have come before.
    write_error: Option<io::Error>,
    is_head: bool,
    reading: Reading,
    /// Whether the connection stays after the answer.
    is_kept: bool,
    /// Bytes of a body that went out piece by piece.
    uploaded: u64,
    /// Whether all of the request was out before the answer came.
    was_sent_first: bool,
    read_bytes: usize,
}

#[derive(Debug)]
struct Upload {
    body: RequestBody,
    coding: Coding,
    trailers: Trailers,
}

/// How far a request is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Not a byte was taken.
    Untouched,
    Begun,
    Done,
    /// The client broke off; what would come of its body after that is not its end.
    Broken,
}

#[derive(Debug)]
enum Reading {
    /// In the head: so many bytes looked at, so many informational answers before it.
    Head {
        scanned: usize,
        informational: usize,
    },
    Length(u64),
    /// In chunks, which are so many bytes in all, where that is known.
    Chunked(Box<Chunks>, Option<u64>),
    UntilClose,
    /// All was read.
    Done,
    /// It broke off.
    Broken,
}

/// What stopped a request on its way out.
enum Stopped {
    Io(io::Error),
    Client,
}

impl Exchange {
    /// Begins to send a request. Of a body that is at hand a copy goes.
    pub(super) fn begin(connection: Connection, parts: &request::Parts, body: RequestBody) -> Box<Self> {
        let mut unwritten = BytesMut::with_capacity(1024);
        put_request_line(&mut unwritten, parts);
        let may_have_trailers = connection.trailing == Trailing::All && matches!(body, RequestBody::Stream(..));
        if may_have_trailers {
            put_fields_of_chunked(&mut unwritten, &parts.headers);
        } else {
            put_fields(&mut unwritten, &parts.headers);
        }
        let mut upload = None;
        match body {
            RequestBody::Whole(ref bytes) => {
                if !bytes.is_empty() && !parts.headers.contains_key(CONTENT_LENGTH) {
                    unwritten.put_slice(b"content-length: ");
                    unwritten.put_slice(HeaderValue::from(bytes.len()).as_bytes());
                    unwritten.put_slice(b"\r\n");
                }
                unwritten.put_slice(b"\r\n");
            }
            RequestBody::Stream(..) => {
                let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                let coding = length.filter(|_| !may_have_trailers).map_or(Coding::Chunked, Coding::Length);
                if coding == Coding::Chunked {
                    unwritten.put_slice(TRANSFER_ENCODING.as_str().as_bytes());
                    unwritten.put_slice(b": chunked\r\n");
                }
                unwritten.put_slice(b"\r\n");
                upload = Some(coding);
            }
        }
        let (upload, piece) = match (upload, body) {
            (Some(coding), body) => {
                let trailers = match connection.trailing {
                    Trailing::All => Trailers::All,
                    Trailing::Announced => Trailers::Announced(parts.headers.clone()),
                };
                (Some(Upload { body, coding, trailers }), Bytes::new())
            }
            (None, body) => (None, put_whole(&mut unwritten, &body)),
        };
        Box::new(Self {
            connection,
            unwritten,
            piece,
            upload,
            sending: Sending::Untouched,
            write_error: None,
            is_head: parts.method == Method::HEAD,
            reading: Reading::Head { scanned: 0, informational: 0 },
            is_kept: false,
            uploaded: 0,
            was_sent_first: false,
            read_bytes: READ_BYTES,
        })
    }

    /// Waits for the head of the answer, or says why there is none.
    pub(super) async fn answer(&mut self) -> Result<response::Parts, Broke> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// What is left of the request where not a byte of it was taken: the body, if it streams.
    pub(super) fn into_unsent(self) -> Option<RequestBody> {
        self.upload.map(|upload| upload.body)
    }

    /// The connection for another protocol, and what was read of it ahead.
    pub(super) fn into_parts(self) -> (Box<dyn Wire>, BytesMut) {
        self.connection.into_parts()
    }

    /// The connection for the next request, where this one is over on both sides.
    pub(super) fn into_connection(self) -> Option<Connection> {
        let is_over =
            matches!(self.reading, Reading::Done) && self.sending == Sending::Done && self.write_error.is_none();
        // Who answered before it had read the body may not read so much of it after, and close.
        let is_whole = self.was_sent_first || self.uploaded <= REST_BYTES_MAX as u64;
        let is_good = is_over && is_whole && self.is_kept && self.connection.unread.is_empty();
        // Without its buffer, which a silent connection does not need.
        is_good.then(|| Connection { unread: BytesMut::new(), ..self.connection })
    }

    /// Whether the request goes on while its answer comes, and whoever takes that might not take care of it: hyper asks for
    /// a body only when it can be written.
    pub(super) fn goes_on_by_itself(&self) -> bool {
        let is_sending = matches!(self.sending, Sending::Untouched | Sending::Begun) && self.write_error.is_none();
        is_sending && !self.is_read() && self.upload.as_ref().is_some_and(|upload| upload.body.comes_over_two())
    }

    /// Whether the connection has all of the request.
    pub(super) fn is_sent(&self) -> bool {
        self.sending == Sending::Done
    }

    /// Whether the answer was read to its end.
    pub(super) const fn is_read(&self) -> bool {
        matches!(self.reading, Reading::Done)
    }

    /// How much of the answer's body is left, where that is known.
    pub(super) const fn left(&self) -> Option<u64> {
        match self.reading {
            Reading::Length(left) => Some(left),
            Reading::Chunked(_, left) => left,
            Reading::Done => Some(0),
            Reading::Head { .. } | Reading::UntilClose | Reading::Broken => None,
        }
    }

    /// Sends what there is of the request.
    ///
    /// # Errors
    /// The client broke off.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        if self.sending == Sending::Done || self.write_error.is_some() {
            return Ok(());
        }
        match self.poll_send(cx) {
            Ok(()) => Ok(()),
            Err(Stopped::Client) => Err("the request body broke off".into()),
            Err(Stopped::Io(error)) => {
                self.write_error = Some(error);
                Ok(())
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        let sent = if self.sending == Sending::Broken { Err(Stopped::Client) } else { self.send_more(cx) };
        if matches!(sent, Err(Stopped::Client)) {
            self.sending = Sending::Broken;
        }
        sent
    }

    fn send_more(&mut self, cx: &mut Context<'_>) -> Result<(), Stopped> {
        let mut in_turn = 0;
        let mut is_more_coming = false;
        loop {
            // Small pieces of a body go out together.
            let is_to_wait = is_more_coming && self.piece.is_empty() && self.unwritten.len() < UNWRITTEN_BYTES_MAX;
            while !is_to_wait && (!self.unwritten.is_empty() || !self.piece.is_empty()) {
                let from = if self.unwritten.is_empty() { &self.piece[..] } else { &self.unwritten[..] };
                match Pin::new(&mut self.connection.io).poll_write(cx, from) {
                    Poll::Ready(Ok(0)) => return Err(Stopped::Io(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => {
                        self.sending = Sending::Begun;
                        if self.unwritten.is_empty() {
                            self.piece.advance(count);
                        } else {
                            self.unwritten.advance(count);
                        }
                    }
                    Poll::Ready(Err(error)) => return Err(Stopped::Io(error)),
                    Poll::Pending => {
                        if let Some(upload) = &self.upload {
                            upload.body.held_up();
                        }
                        return Ok(());
                    }
                }
            }
            let Some(upload) = &mut self.upload else {
                if self.poll_flush(cx)? {
                    self.sending = Sending::Done;
                }
                return Ok(());
            };
            if in_turn > TURN_BYTES {
                after_others(cx);
                return Ok(());
            }
            let ended = match Pin::new(&mut upload.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        in_turn += data.len() + FRAME_COST;
                        self.uploaded = self.uploaded.saturating_add(data.len() as u64);
                        self.piece = upload.coding.put(&mut self.unwritten, data).map_err(|_wrong| Stopped::Client)?;
                        is_more_coming = true;
                        continue;
                    }
                    Err(frame) => frame.into_trailers().unwrap_or_default(),
                },
                Poll::Ready(Some(Err(_broke_off))) => return Err(Stopped::Client),
                Poll::Ready(None) => HeaderMap::new(),
                Poll::Pending if is_more_coming => {
                    // What has come goes out before the rest is waited for; it is asked for again after that.
                    is_more_coming = false;
                    continue;
                }
                Poll::Pending => {
                    self.poll_flush(cx)?;
                    return Ok(());
                }
            };
            is_more_coming = false;
            upload.coding.end(&mut self.unwritten, &upload.trailers, &ended).map_err(|_wrong| Stopped::Client)?;
            self.upload = None;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<bool, Stopped> {
        match Pin::new(&mut self.connection.io).poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(Stopped::Io(error)),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<response::Parts, Broke>> {
        if self.sending != Sending::Done && self.write_error.is_none() {
            match self.poll_send(cx) {
                Ok(()) => {}
                Err(Stopped::Client) => return Poll::Ready(Err(Broke::Client)),
                Err(Stopped::Io(_)) if self.sending == Sending::Untouched => return Poll::Ready(Err(Broke::Unsent)),
                // What the instance said before it closed counts.
                Err(Stopped::Io(error)) => self.write_error = Some(error),
            }
        }
        loop {
            if let Some(parts) = self.take_head().map_err(Broke::Wrong)? {
                return Poll::Ready(Ok(parts));
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(Broke::Ended("connection closed before message completed".to_owned())));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broke(&error))),
                Poll::Pending => match self.write_error.take() {
                    Some(error) => return Poll::Ready(Err(broke(&error))),
                    None => return Poll::Pending,
                },
            }
        }
    }

    /// The head of the answer, where it is whole; informational ones before it are passed over.
    fn take_head(&mut self) -> Result<Option<response::Parts>, String> {
        let Reading::Head { scanned, informational } = &mut self.reading else { return Ok(None) };
        loop {
            let unread = &mut self.connection.unread;
            let end =
                head_end(unread, scanned).map_err(|_refusal| "a line of its answer's head does not end with CR LF")?;
            if end.unwrap_or(unread.len()) > self.connection.head_bytes_max {
                let limit = self.connection.head_bytes_max;
                return Err(format!("the head of its answer is longer than {limit} bytes"));
            }
            let Some(end) = end else {
                let begun = unread.len().min(BEGINNING.len());
                if unread.get(..begun) != BEGINNING.get(..begun) {
                    // What is no HTTP/1 may never come to the end of a head.
                    return Err("its answer does not begin as one of HTTP/1".to_owned());
                }
                return Ok(None);
            };
            let head = unread.split_to(end).freeze();
            let (mut parts, end) = read_answer(&head, self.connection.fields_max)
                .map_err(|fault| format!("its answer is malformed: {fault}"))?;
            if !parts.status.is_informational() || parts.status == StatusCode::SWITCHING_PROTOCOLS {
                let length = match self.connection.trailing {
                    Trailing::All => restore_length(&mut parts.headers),
                    Trailing::Announced => None,
                };
                self.behind_head(parts.status, end, length);
                return Ok(Some(parts));
            }
            *scanned = 0;
            *informational += 1;
            if *informational > INFORMATIONAL_MAX {
                return Err(format!("it sent more than {INFORMATIONAL_MAX} informational answers"));
            }
        }
    }

    /// RFC 9112 section 6.3. A peer may have said the `length` of what comes in chunks.
    fn behind_head(&mut self, status: StatusCode, end: AnswerEnd, length: Option<u64>) {
        let has_none = self.is_head
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::SWITCHING_PROTOCOLS);
        self.was_sent_first = self.sending == Sending::Done;
        self.is_kept = end.is_kept && status != StatusCode::SWITCHING_PROTOCOLS;
        self.reading = match end.framing {
            _ if has_none => Reading::Done,
            Some(Framing::None) => Reading::Done,
            Some(Framing::Length(length)) => Reading::Length(length),
            Some(Framing::Chunked) => Reading::Chunked(Box::new(Chunks::new(self.connection.head_bytes_max)), length),
            None => {
                self.is_kept = false;
                Reading::UntilClose
            }
        };
    }

    /// Waits for the next piece of the answer's body, and sends what there is of the request; `None` at the end.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Err(error) = self.poll_upload(cx) {
            self.reading = Reading::Broken;
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.take_frame() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.is_read() => return Poll::Ready(None),
                Ok(None) => {}
                Err(error) => {
                    self.reading = Reading::Broken;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if matches!(self.reading, Reading::UntilClose) => {
                    self.reading = Reading::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    self.reading = Reading::Broken;
                    return Poll::Ready(Some(Err("the instance closed in the middle of its answer".into())));
                }
                Ok(_) => {}
                Err(error) => {
                    self.reading = Reading::Broken;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }

    /// The next piece of the body among what was read.
    fn take_frame(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        let unread = &mut self.connection.unread;
        match &mut self.reading {
            Reading::Done => Ok(None),
            Reading::Head { .. } | Reading::Broken => Err("the answer broke off".into()),
            Reading::Length(_) | Reading::UntilClose if unread.is_empty() => Ok(None),
            Reading::UntilClose => Ok(Some(Frame::data(unread.split().freeze()))),
            Reading::Length(left) => {
                let here = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
                *left -= here as u64;
                if *left == 0 {
                    self.reading = Reading::Done;
                }
                Ok(Some(Frame::data(unread.split_to(here).freeze())))
            }
            Reading::Chunked(chunks, left) => match chunks.take(unread) {
                Ok(Taken::Data(data)) => {
                    if let Some(bytes) = left {
                        *left = Some(bytes.checked_sub(data.len() as u64).ok_or(WrongLength)?);
                    }
                    Ok(Some(Frame::data(data)))
                }
                Ok(Taken::Nothing) => Ok(None),
                Ok(Taken::End(_)) if left.is_some_and(|left| left > 0) => Err(WrongLength.into()),
                Ok(Taken::End(trailers)) => {
                    self.reading = Reading::Done;
                    Ok(trailers.map(Frame::trailers))
                }
                Err(refusal) => Err(format!("its answer is malformed: {}", refusal.detail()).into()),
            },
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let wanted = self.read_bytes;
        let connection = &mut self.connection;
        connection.unread.reserve(wanted);
        let count = ready!(poll_read_buf(Pin::new(&mut connection.io), cx, &mut connection.unread))?;
        if count >= wanted {
            self.read_bytes = wanted.saturating_mul(2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(count))
    }
}

fn put_request_line(out: &mut BytesMut, parts: &request::Parts) {
    out.put_slice(parts.method.as_str().as_bytes());
    out.put_u8(b' ');
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
}

/// Puts a body that is at hand behind its head; returns it where it is too long for a copy.
fn put_whole(out: &mut BytesMut, body: &RequestBody) -> Bytes {
    match body {
        RequestBody::Whole(bytes) => Coding::UntilClose.put(out, bytes.clone()).unwrap_or_default(),
        RequestBody::Stream(..) => Bytes::new(),
    }
}

/// Whether the connection just ended, as a silent one does, rather than being given up.
fn broke(error: &io::Error) -> Broke {
    let detail = error.to_string();
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => {
            Broke::Ended(detail)
        }
        _ => Broke::Wrong(detail),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::Request;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use std::collections::VecDeque;

    use super::super::body::{Arriving, Upload};
    use super::super::drive::Driven;
    use super::*;

    fn get() -> request::Parts {
        Request::get("/").header("host", "a").body(()).unwrap().into_parts().0
    }

    fn begin(far_bytes: usize) -> (Box<Exchange>, DuplexStream) {
        let (near, far) = duplex(far_bytes);
        let connection = Connection::new(Box::new(near), 1024);
        (Exchange::begin(connection, &get(), RequestBody::Whole(Bytes::new())), far)
    }

    /// What comes of an answer that arrives in `pieces`, and then the end.
    async fn answer(pieces: &[&[u8]]) -> Result<(StatusCode, Box<Exchange>), Broke> {
        let (mut exchange, mut far) = begin(64 * 1024);
        let sending = async {
            for piece in pieces {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            far
        };
        let (came, far) = tokio::join!(exchange.answer(), sending);
        let parts = came?;
        drop(far);
        Ok((parts.status, exchange))
    }

    #[tokio::test]
    async fn a_head_is_found_behind_informational_ones_however_it_is_cut() {
        let bytes =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        for cut in 0..bytes.len() {
            let came = answer(&[&bytes[..cut], &bytes[cut..]]).await;
            assert_eq!(came.unwrap().0, StatusCode::NO_CONTENT, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(answer(&single).await.unwrap().0, StatusCode::NO_CONTENT);
    }

    #[tokio::test]
    async fn lenient_lines_long_heads_and_floods_of_informational_answers_are_errors() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1024));
        let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(INFORMATIONAL_MAX + 1);
        let lenient = b"HTTP/1.1 200 OK\nContent-Length: 1\n\n";
        for bytes in [&lenient[..], b"HTTP/1.1 200 OK\rX", b"nonsense\r\n\r\n", long.as_bytes(), &flood] {
            for pieces in [bytes.chunks(bytes.len()).collect::<Vec<_>>(), bytes.chunks(20).collect()] {
                let came = answer(&pieces).await;
                assert!(matches!(came, Err(Broke::Wrong(_))), "{}: {came:?}", bytes.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_by_its_beginning() {
        for begun in [&b"\0\0\x12\x04"[..], b"HTTP/2.0 200", b"h"] {
            let (mut exchange, mut far) = begin(1024);
            let saying = async {
                far.write_all(begun).await.unwrap();
                far
            };
            let (came, _far) = tokio::join!(exchange.answer(), saying);
            assert!(matches!(came, Err(Broke::Wrong(_))), "{}: {came:?}", begun.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_connection_is_kept_where_both_messages_are_over_and_nothing_follows() {
        for (bytes, body, is_kept) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"[..], Ok("abc"), true),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", Ok("abc"), true),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Ok(""), true),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", Ok("abc"), false),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: x, Close\r\n\r\nabc", Ok("abc"), false),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", Ok("abc"), false),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: Keep-Alive\r\n\r\nabc", Ok("abc"), true),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", Ok("abc"), false),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", Err(()), false),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", Err(()), false),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", Err(()), false),
        ] {
            let (_, exchange) = answer(&[bytes]).await.unwrap();
            let mut arriving = Arriving::Answer(exchange);
            let read = (&mut arriving).collect().await.map_err(|_broke_off| ());
            let read = read.map(|read| String::from_utf8(read.to_bytes().to_vec()).unwrap());
            assert_eq!(read.as_deref(), body.as_ref().map(|body| &**body), "{}", bytes.escape_ascii());
            let Arriving::Answer(exchange) = arriving else { panic!("it was an answer") };
            assert_eq!(exchange.into_connection().is_some(), is_kept, "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn chunks_of_which_a_peer_said_how_long_they_are_are_as_long_or_an_error() {
        for (length, is_good) in [(2, false), (3, true), (4, false)] {
            let (near, mut far) = duplex(1024);
            let connection = Connection::new(Box::new(near), 1024).on(None, Trailing::All);
            let mut exchange = Exchange::begin(connection, &get(), RequestBody::Whole(Bytes::new()));
            let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nmarram-length: {length}\r\n\r\n");
            far.write_all(format!("{head}3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n").as_bytes()).await.unwrap();
            let parts = exchange.answer().await.unwrap();
            assert_eq!(parts.headers[CONTENT_LENGTH], length.to_string());
            assert_eq!(exchange.left(), Some(length));
            let read = Arriving::Answer(exchange).collect().await;
            assert_eq!(read.is_ok_and(|read| read.trailers().is_some()), is_good, "{length}");
        }
    }

    #[tokio::test]
    async fn what_arrives_before_something_was_asked_makes_a_connection_useless() {
        let (near, mut far) = duplex(1024);
        let mut connection = Connection::new(Box::new(near), 1024);
        assert!(connection.is_usable());
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert!(!connection.is_usable());
        let (near, far) = duplex(1024);
        let mut connection = Connection::new(Box::new(near), 1024);
        drop(far);
        assert!(!connection.is_usable(), "its end");
    }

    #[tokio::test]
    async fn a_request_of_which_nothing_was_taken_is_unsent() {
        let (mut exchange, far) = begin(1024);
        drop(far);
        assert!(matches!(exchange.answer().await, Err(Broke::Unsent)));
    }

    #[tokio::test]
    async fn the_end_behind_a_fault_of_a_body_is_not_its_end() {
        let (near, mut far) = duplex(1024);
        let pieces = [Some(Ok(Frame::data(Bytes::from_static(b"begun")))), Some(Err("broke off".into())), None];
        let body = RequestBody::Stream(VecDeque::new(), Arriving::Driven(Driven::of(pieces)), Upload::begin());
        let mut exchange = Exchange::begin(Connection::new(Box::new(near), 1024), &get(), body);
        assert!(matches!(exchange.answer().await, Err(Broke::Client)));
        assert!(matches!(exchange.answer().await, Err(Broke::Client)));
        drop(exchange);
        let mut sent = String::new();
        far.read_to_string(&mut sent).await.unwrap();
        assert!(!sent.ends_with("0\r\n\r\n"), "{sent}");
    }

    #[tokio::test]
    async fn an_instance_that_answers_and_leaves_before_it_read_all_is_heard() {
        let body = RequestBody::Whole(vec![b'x'; 60_000].into());
        let (near, mut far) = duplex(1024);
        let mut exchange = Exchange::begin(Connection::new(Box::new(near), 1024), &get(), body);
        let answering = async {
            let mut piece = [0; 512];
            far.read_exact(&mut piece).await.unwrap();
            far.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            drop(far);
        };
        let (came, ()) = tokio::join!(exchange.answer(), answering);
        assert_eq!(came.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(exchange.is_read() && exchange.into_connection().is_none());
    }
}
