//! Requests on a connection of HTTP/2 to an instance, which others share: one stream each, sent and read by whoever wants the
//! answer. Only a body that still comes is sent by a task of its own, for the answer may be taken late.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use hyper::Request;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, HeaderMap};
use hyper::http::response;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::body::{BodyError, RequestBody};
use super::http2::{CONNECTION_WINDOW, FRAME_BYTES_MAX, RESETS_OWN_MAX, SEND_BYTES_MAX, STREAM_WINDOW};
use super::shares;
use super::tcp::Wire;

/// A connection of which streams can be had.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    requests: SendRequest<Bytes>,
    driver: AbortHandle,
}

/// An answer's body.
#[derive(Debug)]
pub(crate) struct Receiving {
    stream: RecvStream,
    /// How much of it is left, where its head said so.
    left: Option<u64>,
    is_data_over: bool,
    /// Ends the task that still sends the request: who drops the answer wants nothing more of either.
    _sending: Option<oneshot::Sender<Infallible>>,
}

impl Connection {
    /// Begins one over `io`; it ends when nobody has it any more and its last stream is done.
    ///
    /// # Errors
    /// Those of the connection; nothing of a request was sent.
    pub(super) async fn begin(io: impl Wire + 'static, head_bytes_max: u32) -> Result<Self, h2::Error> {
        let (requests, connection) = Builder::new()
            .enable_push(false)
            .max_header_list_size(head_bytes_max)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_send_buffer_size(SEND_BYTES_MAX)
            .max_local_error_reset_streams(Some(RESETS_OWN_MAX))
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await?;
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer learns of the error.
            connection.await.ok();
        });
        Ok(Self { requests, driver: driver.abort_handle() })
    }

    /// Whether it takes no further request: it has ended, or the instance has said that it will.
    pub(super) fn is_over(&mut self) -> bool {
        // First of all, for a panic in there leaves a lock that nobody can take.
        self.driver.is_finished()
            || matches!(self.requests.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Waits until it takes a request.
    ///
    /// # Errors
    /// It takes none any more.
    pub(super) async fn ready(&mut self) -> Result<(), h2::Error> {
        poll_fn(|cx| self.requests.poll_ready(cx)).await
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// Those of its stream or of the connection.
    pub(super) async fn ask(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<(response::Parts, Receiving), h2::Error> {
        let (parts, body) = request.into_parts();
        let is_end = body.is_end_stream();
        let (answer, mut stream) = self.requests.send_request(Request::from_parts(parts, ()), is_end)?;
        let sending = match &body {
            _ if is_end => None,
            RequestBody::Whole(bytes) => {
                stream.send_data(bytes.clone(), true)?;
                None
            }
            RequestBody::Stream(..) => {
                let (sending, wanted) = oneshot::channel();
                shares::spawn(send(body, stream, wanted));
                Some(sending)
            }
        };
        let (parts, stream) = answer.await?.into_parts();
        let left = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Ok((parts, Receiving { stream, left, is_data_over: false, _sending: sending }))
    }
}

/// Sends a body as it comes, until it is no longer `wanted`: then the stream is taken back, where its answer is not whole.
async fn send(body: RequestBody, mut stream: SendStream<Bytes>, wanted: oneshot::Receiver<Infallible>) {
    tokio::select! {
        biased;
        _dropped = wanted => {}
        sent = send_all(body, &mut stream) => {
            if let Err(reason) = sent {
                stream.send_reset(reason);
            }
        }
    }
}

async fn send_all(body: RequestBody, stream: &mut SendStream<Bytes>) -> Result<(), Reason> {
    let mut body = pin!(body);
    loop {
        // Nothing is asked for that could not be sent.
        stream.reserve_capacity(1);
        while stream.capacity() == 0 {
            body.held_up();
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                // The stream has ended; whoever waits for the answer learns why.
                Some(Err(_)) | None => return Ok(()),
            }
        }
        let next = poll_fn(|cx| match stream.poll_reset(cx) {
            // An instance that has said all may want no more of the request.
            Poll::Ready(_ended) => Poll::Ready(None),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Some),
        });
        let sent = match next.await {
            None => return Ok(()),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let is_end = body.is_end_stream();
                    match stream.send_data(data, is_end) {
                        Ok(()) if !is_end => continue,
                        sent => sent,
                    }
                }
                Err(frame) => stream.send_trailers(frame.into_trailers().unwrap_or_default()),
            },
            Some(Some(Err(_broke_off))) => return Err(Reason::CANCEL),
            Some(None) => stream.send_data(Bytes::new(), true),
        };
        // Fails where the stream has ended, and then this changes nothing.
        return sent.map_err(|_ended| Reason::INTERNAL_ERROR);
    }
}

impl Receiving {
    /// Waits for the next piece; `None` at the end. A stream that was reset before its end is an error, whatever the reason.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.is_data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    // Fails where the stream has ended.
                    self.stream.flow_control().release_capacity(data.len()).unwrap_or_default();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.is_data_over = true,
            }
        }
        let trailers: Option<HeaderMap> = match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// Whether all was taken.
    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// How much is left, where that is known.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

/// Whether the instance says that nothing was done with the request (RFC 9113 section 8.7): it refused the stream, or went away
/// before it.
pub(super) fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && match error.reason() {
            Some(Reason::REFUSED_STREAM) => true,
            Some(Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        }
}

/// Whether the connection just ended, as a silent one does, rather than saying nonsense or being given up.
pub(super) fn is_clean_close(error: &h2::Error) -> bool {
    let kind = error.get_io().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected))
}

/// Whether the request itself could not be sent: neither the instance nor the connection has said anything.
pub(super) fn is_ours(error: &h2::Error) -> bool {
    error.reason().is_none() && !error.is_io()
}
