//! An instance's connection as the HTTP machine sees it: a head on which two readers could disagree does not pass.
//!
//! The machine is lenient with answers too: a lone line feed ends a line, `Transfer-Encoding` beats `Content-Length`, a
//! coding it does not know makes a body that ends with the connection, and informational answers may follow one another
//! for ever. Here such an answer is an error of the connection, so the request has failed and the connection is not kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use hyper::Request;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::RequestBody;
use super::framing::{check_answer_head, head_end};

/// Informational answers before the one; one more is taken for a flood.
const INFORMATIONAL_MAX: usize = 16;

/// Sends requests over a connection whose answers are looked at.
#[derive(Debug)]
pub(super) struct Asking {
    sender: SendRequest<RequestBody>,
    asked: Asked,
}

/// How many requests were sent over a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<AtomicU64>);

impl Asking {
    pub(super) const fn new(sender: SendRequest<RequestBody>, asked: Asked) -> Self {
        Self { sender, asked }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn ready(&mut self) -> hyper::Result<()> {
        self.sender.ready().await
    }

    /// Sends one request; the next head on the connection is that of its answer.
    pub(super) fn try_send_request(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<hyper::Response<hyper::body::Incoming>, TrySendError<Request<RequestBody>>>> + use<>
    {
        self.asked.0.fetch_add(1, Ordering::AcqRel);
        self.sender.try_send_request(request)
    }
}

/// A connection to an instance that only lets strictly read heads of answers through.
#[derive(Debug)]
pub(super) struct Answers<S> {
    io: S,
    asked: Asked,
    /// Of so many requests a byte was written.
    written: u64,
    at: At,
}

#[derive(Debug)]
enum At {
    /// Nothing was asked yet, so nothing may be answered.
    Quiet,
    /// In the head of an answer.
    Head(Head),
    /// Behind it, where the HTTP machine knows how far the body goes; nothing is looked at.
    Behind,
}

/// A head that is arriving.
#[derive(Debug, Default)]
struct Head {
    /// What arrived of it before.
    before: Vec<u8>,
    /// So much of that was looked at.
    scanned: usize,
    /// Informational answers that came first.
    informational: usize,
}

impl<S> Answers<S> {
    /// Watches `io`, over which requests counted by `asked` are sent.
    pub(super) const fn new(io: S, asked: Asked) -> Self {
        Self { io, asked, written: 0, at: At::Quiet }
    }

    /// The same for a connection to another proxy, whose answers were looked at there.
    pub(super) const fn trusting(io: S, asked: Asked) -> Self {
        Self { io, asked, written: u64::MAX, at: At::Behind }
    }

    /// Looks at bytes that have just arrived.
    fn look(&mut self, bytes: &[u8]) -> Result<(), String> {
        match &mut self.at {
            At::Behind => Ok(()),
            At::Quiet if bytes.is_empty() => Ok(()),
            At::Quiet => Err("it sent an answer before anything was asked".into()),
            At::Head(head) => {
                if head.look(bytes)? {
                    self.at = At::Behind;
                }
                Ok(())
            }
        }
    }

    /// Bytes of a request that was not seen before are going out: an answer follows.
    fn note_request(&mut self) {
        let asked = self.asked.0.load(Ordering::Acquire);
        if self.written < asked {
            self.written = asked;
            self.at = At::Head(Head::default());
        }
    }
}

impl Head {
    /// Whether the head of the final answer is whole with these bytes.
    fn look(&mut self, bytes: &[u8]) -> Result<bool, String> {
        if self.before.is_empty() {
            let (is_whole, rest) = self.look_at(bytes)?;
            self.before.extend_from_slice(rest);
            return Ok(is_whole);
        }
        let mut all = std::mem::take(&mut self.before);
        all.extend_from_slice(bytes);
        let (is_whole, rest) = self.look_at(&all)?;
        self.before = rest.to_vec();
        Ok(is_whole)
    }

    /// The same; returns what is left of an unfinished head.
    fn look_at<'b>(&mut self, mut bytes: &'b [u8]) -> Result<(bool, &'b [u8]), String> {
        loop {
            let end = head_end(bytes, &mut self.scanned)
                .map_err(|_refusal| "a line of its answer's head does not end with CR LF")?;
            let Some(end) = end else { return Ok((false, bytes)) };
            let (head, rest) = bytes.split_at_checked(end).unwrap_or_default();
            let status = check_answer_head(head).map_err(|fault| format!("its answer is malformed: {fault}"))?;
            if !matches!(status, 100 | 102..=199) {
                return Ok((true, &[]));
            }
            self.informational += 1;
            if self.informational > INFORMATIONAL_MAX {
                return Err(format!("it sent more than {INFORMATIONAL_MAX} informational answers"));
            }
            self.scanned = 0;
            bytes = rest;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answers<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let arrived = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.look(arrived).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answers<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.note_request();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.note_request();
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(pieces: &[&[u8]]) -> Result<bool, String> {
        let mut head = Head::default();
        let mut is_whole = false;
        for piece in pieces {
            is_whole = head.look(piece)?;
        }
        Ok(is_whole)
    }

    #[test]
    fn a_head_is_found_behind_informational_ones_however_it_is_cut() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(look(&[&bytes[..cut], &bytes[cut..]]), Ok(true), "cut at {cut}");
            assert_eq!(look(&[&bytes[..cut]]), Ok(false), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(look(&single), Ok(true));
    }

    #[test]
    fn lenient_lines_and_floods_of_informational_answers_are_errors() {
        assert!(look(&[b"HTTP/1.1 200 OK\nContent-Length: 1\n\n"]).is_err());
        assert!(look(&[b"HTTP/1.1 200 OK\r", b"X"]).is_err());
        let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(INFORMATIONAL_MAX + 1);
        assert!(look(&[&flood]).is_err() && look(&flood.chunks(20).collect::<Vec<_>>()).is_err());
    }

    #[tokio::test]
    async fn nothing_is_answered_before_something_was_asked() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = tokio::io::duplex(1024);
        let asked = Asked::default();
        let mut watched = Answers::new(near, asked.clone());
        asked.0.fetch_add(1, Ordering::AcqRel);
        watched.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\nanything\n").await.unwrap();
        let mut piece = [0; 64];
        assert_eq!(watched.read(&mut piece).await.unwrap(), 28);
        asked.0.fetch_add(1, Ordering::AcqRel);
        watched.write_all(b"GET").await.unwrap();
        far.write_all(b"nonsense\n").await.unwrap();
        assert!(watched.read(&mut piece).await.is_err());

        let (near, mut far) = tokio::io::duplex(1024);
        let mut watched = Answers::new(near, Asked::default());
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert!(watched.read(&mut piece).await.is_err());
    }
}
