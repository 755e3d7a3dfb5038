//! A connection that reads for a while and then lets others have their turn.
//!
//! Everything on a data thread shares it. Whoever sends more than is read in one go, as a flood of small frames does, would
//! keep the thread for as long as the runtime lets a task read, which is megabytes; with small frames that is tens of
//! milliseconds for one turn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tcp::Wire;

/// Bytes that are read in one turn: a few thousand of the smallest frames.
const TURN_BYTES: usize = 64 * 1024;

/// A connection read in turns; some of its bytes may have been read before.
#[derive(Debug)]
pub(super) struct Turns {
    io: Box<dyn Wire>,
    ahead: BytesMut,
    /// Bytes read in this turn.
    read: usize,
}

impl Turns {
    /// With `ahead` read of it already.
    pub(super) const fn new(io: Box<dyn Wire>, ahead: BytesMut) -> Self {
        Self { io, ahead, read: 0 }
    }
}

impl AsyncRead for Turns {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read >= TURN_BYTES {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_pending() {
            self.read = 0;
        }
        ready!(read)?;
        self.read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Turns {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn who_sends_without_end_is_read_in_turns_and_all_of_it_arrives() {
        let (mut far, near) = tokio::io::duplex(1024 * 1024);
        far.write_all(&vec![7; 3 * TURN_BYTES]).await.unwrap();
        drop(far);
        let mut turns = Turns::new(Box::new(near), BytesMut::from(&b"ahead"[..]));
        let mut sizes = Vec::new();
        let mut in_turn = 0;
        poll_fn(|cx| {
            let mut piece = [0; 5000];
            let mut piece = ReadBuf::new(&mut piece);
            loop {
                match Pin::new(&mut turns).poll_read(cx, &mut piece) {
                    Poll::Ready(read) => read.unwrap(),
                    Poll::Pending => {
                        sizes.push(std::mem::take(&mut in_turn));
                        return Poll::Pending;
                    }
                }
                if piece.filled().is_empty() {
                    sizes.push(in_turn);
                    return Poll::Ready(());
                }
                in_turn += piece.filled().len();
                piece.clear();
            }
        })
        .await;
        assert_eq!(sizes.iter().sum::<usize>(), 3 * TURN_BYTES + "ahead".len());
        assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size < TURN_BYTES + 5000), "{sizes:?}");
    }
}
