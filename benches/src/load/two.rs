//! The same over HTTP/2: a backend and a load generator, for plain requests and for calls of gRPC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use hdrhistogram::Histogram;
use hyper::http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{ANSWER_MAX, BODY_BYTES, Outcome, gathered, histogram, now};

/// Bytes of the message of a call, without its prefix.
const CALL_BYTES: usize = 100;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// So large that no answer waits for room.
const WINDOW: u32 = 1 << 20;

/// What is asked over HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// GET of 1 KiB.
    Get,
    /// A unary call of gRPC: a message of 100 bytes, answered by one of 1 KiB.
    Grpc,
}

/// Starts a server on a thread of its own that speaks nothing but HTTP/2; it lives as long as the process.
pub(crate) fn backend() -> anyhow::Result<SocketAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("backend-h2".to_owned()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            tell.send(listener.local_addr()?).ok();
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream));
            }
        })
    })?;
    told.recv().context("the backend listens")
}

async fn serve(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_concurrent_streams(1000);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(answer(request, respond));
    }
    Ok(())
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> anyhow::Result<()> {
    static BODY: [u8; BODY_BYTES] = [b'x'; BODY_BYTES];
    let is_call = request.headers().get("content-type") == Some(&GRPC);
    drain(request.into_body()).await?;
    let mut response = Response::new(());
    if !is_call {
        respond.send_response(response, false)?.send_data(Bytes::from_static(&BODY), true)?;
        return Ok(());
    }
    response.headers_mut().insert("content-type", GRPC);
    let mut body: SendStream<Bytes> = respond.send_response(response, false)?;
    body.send_data(message(BODY_BYTES), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    body.send_trailers(trailers)?;
    Ok(())
}

/// A message as gRPC frames it: not compressed, so many bytes.
fn message(bytes: usize) -> Bytes {
    let length = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &vec![b'x'; bytes]].concat().into()
}

/// Reads a body to its end; returns how long it was, and its trailers.
async fn drain(mut body: RecvStream) -> anyhow::Result<(usize, Option<HeaderMap>)> {
    let mut length = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        length += piece.len();
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok((length, body.trailers().await?))
}

/// Asks over `connections` connections with `streams` requests at a time on each, for `duration`.
pub(crate) fn run(
    address: SocketAddr,
    (call, host): (Call, &str),
    (connections, streams): (usize, usize),
    duration: Duration,
) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for _ in 0..connections {
            let sender = connect(address).await?;
            for _ in 0..streams {
                workers.push(tokio::spawn(worker(sender.clone(), call, host.to_owned(), Arc::clone(&stop))));
            }
        }
        let began = now();
        tokio::time::sleep(duration).await;
        stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        gathered(workers, took).await
    })
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = super::connect(address).await?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(16 * WINDOW).enable_push(false);
    let (sender, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn worker(
    sender: SendRequest<Bytes>,
    call: Call,
    host: String,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<(Histogram<u64>, u64)> {
    let (mut latency, mut failures) = (histogram()?, 0);
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        match timeout(ANSWER_MAX, ask(sender.clone(), call, &host)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(()) => latency.saturating_record(u64::try_from(began.elapsed().as_micros())?),
            Err(_) => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    Ok((latency, failures))
}

/// One request and its whole answer.
async fn ask(sender: SendRequest<Bytes>, call: Call, host: &str) -> anyhow::Result<()> {
    let mut sender = sender.ready().await?;
    let uri = format!("http://{host}/1024");
    let (response, length) = match call {
        Call::Get => (sender.send_request(Request::get(uri).body(())?, true)?.0, BODY_BYTES),
        Call::Grpc => {
            let request = Request::post(uri).header("content-type", GRPC).header("te", "trailers").body(())?;
            let (response, mut body) = sender.send_request(request, false)?;
            body.send_data(message(CALL_BYTES), true)?;
            (response, BODY_BYTES + 5)
        }
    };
    let response = response.await?;
    anyhow::ensure!(response.status() == 200, "{}", response.status());
    let (came, trailers) = drain(response.into_body()).await?;
    anyhow::ensure!(came == length, "{came} bytes");
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    anyhow::ensure!(call == Call::Get || status.is_some_and(|status| status == "0"), "status {status:?}");
    Ok(())
}
