//! Bytes both ways between two streams, with no buffer while both are silent.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::turns::after_others;

/// Bytes taken with one read; they live on the stack of the poll, not in the task.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces moved in one direction before other tasks get their turn.
const PIECES_PER_TURN: usize = 16;

/// How a tunnel ended.
#[derive(Debug)]
pub(super) struct Copied {
    /// From the first stream to the second.
    pub(super) there: u64,
    /// From the second stream to the first.
    pub(super) back: u64,
    /// `Ok` when both sides finished.
    pub(super) end: io::Result<()>,
}

/// Copies until both sides have finished, one of them fails, or nothing moved for `idle` (up to twice as long).
///
/// When one side finishes sending, the other is told so and may go on sending. `ahead` are bytes that were read from
/// the first stream before.
pub(super) async fn copy_both<A, B>(a: &mut A, b: &mut B, ahead: Vec<u8>, idle: Duration) -> Copied
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Half { left: ahead, ..Half::default() };
    let mut back = Half::default();
    let mut seen = 0;
    let end = loop {
        let both = poll_fn(|cx| {
            let first = there.poll(cx, a, b)?;
            let second = back.poll(cx, b, a)?;
            if first.is_ready() && second.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        match tokio::time::timeout(idle, both).await {
            Ok(end) => break end,
            Err(_elapsed) if there.moved + back.moved == seen => break Err(io::ErrorKind::TimedOut.into()),
            Err(_elapsed) => seen = there.moved + back.moved,
        }
    };
    Copied { there: there.moved, back: back.moved, end }
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// Read and not yet written; empty and without memory while nothing waits.
    left: Vec<u8>,
    /// How much of `left` is written.
    written: usize,
    moved: u64,
    is_ended: bool,
    is_shut: bool,
}

impl Half {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..PIECES_PER_TURN {
            ready!(self.poll_left(cx, to))?;
            if self.is_shut {
                return Poll::Ready(Ok(()));
            }
            if self.is_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.is_shut = true;
                return Poll::Ready(Ok(()));
            }
            let mut piece = [const { MaybeUninit::uninit() }; PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut *from).poll_read(cx, &mut piece) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    // Nothing more for now: what was written must not wait in a buffer.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
            if piece.filled().is_empty() {
                self.is_ended = true;
                continue;
            }
            self.poll_piece(cx, to, piece.filled())?;
        }
        after_others(cx);
        Poll::Pending
    }

    /// Writes what it can of a piece and keeps the rest.
    fn poll_piece<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W, piece: &[u8]) -> io::Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(written) => {
                    let written = nonzero(written?)?;
                    self.moved += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.left = rest.to_vec();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn poll_left<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while let Some(rest) = self.left.get(self.written..).filter(|rest| !rest.is_empty()) {
            let written = nonzero(ready!(Pin::new(&mut *to).poll_write(cx, rest))?)?;
            self.written += written;
            self.moved += written as u64;
        }
        self.left = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

fn nonzero(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_half_closed_tunnel_still_carries_the_other_direction() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut server) = duplex(16);
        let tunnel =
            tokio::spawn(async move { copy_both(&mut a, &mut b, b"ahead ".to_vec(), Duration::from_secs(60)).await });
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "ahead request");
        let answering = async {
            server.write_all(&[b'x'; 1000]).await.unwrap();
            drop(server);
        };
        let mut answer = Vec::new();
        let ((), read) = tokio::join!(answering, client.read_to_end(&mut answer));
        assert_eq!(read.unwrap(), 1000);
        let copied = tunnel.await.unwrap();
        assert_eq!((copied.there, copied.back), (13, 1000));
        copied.end.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_ends_after_its_idle_time() {
        let (_client, mut a) = duplex(64);
        let (mut b, _server) = duplex(64);
        let copied = copy_both(&mut a, &mut b, Vec::new(), Duration::from_secs(300)).await;
        assert_eq!(copied.end.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
