//! A client of HTTP/2 and an instance that speaks it, frame by frame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use hyper::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::bench::PATIENCE;

/// One HTTP/2 connection to a proxy.
pub(super) struct Streams {
    sender: SendRequest<Bytes>,
    connection: Option<JoinHandle<Result<(), h2::Error>>>,
}

/// One whole answer.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    pub(super) trailers: HeaderMap,
}

impl Streams {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) =
            // Streams that are not read must not use up the window of them all.
            h2::client::Builder::new().initial_connection_window_size(16 << 20).handshake(stream).await.unwrap();
        Self { sender: sender.ready().await.unwrap(), connection: Some(tokio::spawn(connection)) }
    }

    /// The same connection, for another task.
    pub(super) fn of(other: &Self) -> Self {
        Self { sender: other.sender.clone(), connection: None }
    }

    /// Begins a request whose body the caller sends.
    pub(super) async fn begin(&mut self, request: Request<()>) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut sender = self.sender.clone().ready().await.unwrap();
        sender.send_request(request, false).unwrap()
    }

    /// Sends a whole request.
    pub(super) async fn ask(&self, request: Request<()>, body: &'static str) -> Result<Whole, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body.as_bytes()), true)?;
        }
        whole(response.await?).await
    }

    pub(super) async fn get(&self, authority: &str, path: &str) -> Result<Whole, h2::Error> {
        self.ask(Request::get(format!("http://{authority}{path}")).body(()).unwrap(), "").await
    }

    /// Waits until the proxy has closed the connection.
    pub(super) async fn closed(self) -> Result<(), h2::Error> {
        let Self { sender, connection } = self;
        let ended = tokio::time::timeout(PATIENCE, connection.unwrap()).await.unwrap().unwrap();
        drop(sender);
        ended
    }
}

pub(super) async fn whole(response: Response<RecvStream>) -> Result<Whole, h2::Error> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = piece(&mut body).await? {
        bytes.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let body = String::from_utf8(bytes).unwrap();
    Ok(Whole { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

/// The next piece of a body.
pub(super) async fn piece(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(piece) = body.data().await.transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(piece.len())?;
    Ok(Some(piece))
}

impl Whole {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What an instance saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
    pub(super) resets: AtomicUsize,
    /// Bytes that `/flood` could send.
    pub(super) flooded: AtomicUsize,
}

/// An instance that speaks nothing but HTTP/2; the path says what it does with a request.
///
/// `/head` answers with the head it got, `/sized` with four bytes and says so, `/echo` at once and then piece by piece, `/hang` never, `/drip` with a head
/// only, `/flood` with as much as it can, `/break` in the middle of an answer with a reset (which says why, or that nothing is wrong), `/refuse` by refusing the
/// stream.
pub(super) async fn http2_instance() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&all);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                seen.connections.fetch_add(1, Ordering::SeqCst);
                while let Some(Ok((request, respond))) = connection.accept().await {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let seen = Arc::clone(&seen);
                    tokio::spawn(async move {
                        if serve(request, respond, &seen).await.is_err() {
                            seen.resets.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                }
            });
        }
    });
    (address, seen)
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: &Seen,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let head = || Response::builder().header("content-type", "application/grpc").header("marram-forged", "1");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    match parts.uri.path() {
        "/head" => {
            let mut length = 0;
            while let Some(piece) = piece(&mut body).await? {
                length += piece.len();
            }
            let mut text = format!("{} {}\n", parts.method, parts.uri);
            for (name, value) in &parts.headers {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            for (name, value) in &body.trailers().await?.unwrap_or_default() {
                text.push_str(&format!("trailer {name}: {}\n", value.to_str().unwrap()));
            }
            text.push_str(&format!("body: {length}\n"));
            let mut stream = respond.send_response(head().body(()).unwrap(), false)?;
            stream.send_data(text.into(), false)?;
            stream.send_trailers(trailers)
        }
        "/sized" => {
            while piece(&mut body).await?.is_some() {}
            let mut stream = respond.send_response(head().header("content-length", "4").body(()).unwrap(), false)?;
            stream.send_data("four".into(), false)?;
            stream.send_trailers(trailers)
        }
        "/echo" => {
            let mut stream = respond.send_response(head().body(()).unwrap(), false)?;
            while let Some(piece) = piece(&mut body).await? {
                stream.send_data(piece, false)?;
            }
            stream.send_trailers(trailers)
        }
        "/drip" => {
            let mut stream = respond.send_response(head().body(()).unwrap(), false)?;
            stream.send_data("drip".into(), false)?;
            until_reset(&mut stream).await
        }
        "/flood" => {
            let mut stream = respond.send_response(head().body(()).unwrap(), false)?;
            loop {
                stream.reserve_capacity(16 * 1024);
                let count = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap()?;
                stream.send_data(vec![b'x'; count].into(), false)?;
                seen.flooded.fetch_add(count, Ordering::SeqCst);
            }
        }
        "/break" | "/break/cancel" | "/break/silent" => {
            let mut stream = respond.send_response(head().body(()).unwrap(), false)?;
            stream.send_data("half".into(), false)?;
            tokio::task::yield_now().await;
            stream.send_reset(match parts.uri.path() {
                "/break/cancel" => Reason::CANCEL,
                "/break/silent" => Reason::NO_ERROR,
                _ => Reason::INTERNAL_ERROR,
            });
            Ok(())
        }
        "/refuse" => {
            respond.send_reset(Reason::REFUSED_STREAM);
            Ok(())
        }
        _ => {
            std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
            Err(Reason::CANCEL.into())
        }
    }
}

async fn until_reset(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    std::future::poll_fn(|cx| stream.poll_reset(cx)).await?;
    Err(Reason::CANCEL.into())
}
