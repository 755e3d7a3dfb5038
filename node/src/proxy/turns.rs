//! A connection that reads for a while and then lets others have their turn.
//!
//! Everything on a data thread shares it. Whoever sends more than is read in one go, as a flood of small frames does, would
//! keep the thread for as long as the runtime lets a task read, which is megabytes; with small frames that is tens of
//! milliseconds for one turn. So a turn ends after some bytes, and for who makes much work with few of them after some time.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use transport::Clock;

use super::tcp::Wire;

/// Bytes that are read in one turn: a few thousand of the smallest frames.
const TURN_BYTES: usize = 64 * 1024;

/// The time of a turn, counted from its first [`UNTIMED_BYTES`].
const TURN_TIME: Duration = Duration::from_micros(500);
/// So much is read without a look at the clock: more than most requests have.
const UNTIMED_BYTES: usize = 4 * 1024;

/// A connection read in turns; some of its bytes may have been read before.
pub(super) struct Turns {
    io: Box<dyn Wire>,
    ahead: BytesMut,
    /// Bytes read in this turn.
    read: usize,
    clock: Option<Arc<dyn Clock>>,
    /// When the timed part of this turn began.
    timed_from: Option<Duration>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("io", &self.io).field("ahead", &self.ahead).finish_non_exhaustive()
    }
}

impl Turns {
    /// With `ahead` read of it already.
    pub(super) const fn new(io: Box<dyn Wire>, ahead: BytesMut) -> Self {
        Self { io, ahead, read: 0, clock: None, timed_from: None }
    }

    /// The same with a limit on the time of a turn.
    pub(super) fn timed(self, clock: &Arc<dyn Clock>) -> Self {
        Self { clock: Some(Arc::clone(clock)), ..self }
    }

    fn is_over(&mut self) -> bool {
        if self.read >= TURN_BYTES {
            return true;
        }
        let Some(clock) = self.clock.as_ref().filter(|_| self.read >= UNTIMED_BYTES) else { return false };
        let now = clock.now();
        now.saturating_sub(*self.timed_from.get_or_insert(now)) >= TURN_TIME
    }

    const fn end_turn(&mut self) {
        self.read = 0;
        self.timed_from = None;
    }
}

/// Has a task polled again when all who are ready now were polled, and the kernel was asked who else is. Who just wakes itself
/// keeps the runtime from asking for as long as it lets tasks go on, which is tens of turns.
pub(super) fn after_others(cx: &mut Context<'_>) {
    let waits = pin!(tokio::task::yield_now()).poll(cx);
    debug_assert!(waits.is_pending(), "it yields once");
}

impl AsyncRead for Turns {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_over() {
            self.end_turn();
            after_others(cx);
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
            self.end_turn();
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
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A clock that is a tenth of a millisecond later each time it is asked.
    #[derive(Debug, Default)]
    struct Ticking(AtomicU64);

    impl Clock for Ticking {
        fn now(&self) -> Duration {
            Duration::from_micros(100 * self.0.fetch_add(1, Ordering::Relaxed))
        }

        fn unix(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// What is read in each turn, `piece_bytes` at once.
    async fn turns_of(turns: &mut Turns, piece_bytes: usize) -> Vec<usize> {
        let mut sizes = Vec::new();
        let mut in_turn = 0;
        poll_fn(|cx| {
            let mut piece = vec![0; piece_bytes];
            let mut piece = ReadBuf::new(&mut piece);
            loop {
                match Pin::new(&mut *turns).poll_read(cx, &mut piece) {
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
        sizes
    }

    #[tokio::test]
    async fn who_takes_long_with_few_bytes_has_shorter_turns() {
        let (mut far, near) = tokio::io::duplex(1024 * 1024);
        far.write_all(&vec![7; 40 * 1024]).await.unwrap();
        drop(far);
        let clock: Arc<dyn Clock> = Arc::new(Ticking::default());
        let mut turns = Turns::new(Box::new(near), BytesMut::new()).timed(&clock);
        // Four pieces of 1 KiB before the clock is looked at, and five until half a millisecond is over.
        assert_eq!(turns_of(&mut turns, 1024).await, [9, 9, 9, 9, 4].map(|pieces| pieces * 1024));
    }

    #[tokio::test]
    async fn who_sends_without_end_is_read_in_turns_and_all_of_it_arrives() {
        let (mut far, near) = tokio::io::duplex(1024 * 1024);
        far.write_all(&vec![7; 3 * TURN_BYTES]).await.unwrap();
        drop(far);
        let mut turns = Turns::new(Box::new(near), BytesMut::from(&b"ahead"[..]));
        let sizes = turns_of(&mut turns, 5000).await;
        assert_eq!(sizes.iter().sum::<usize>(), 3 * TURN_BYTES + "ahead".len());
        assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size < TURN_BYTES + 5000), "{sizes:?}");
    }

    #[tokio::test]
    async fn who_lets_others_go_first_is_not_polled_again_before_it_is_known_what_has_arrived() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut near, _) = listener.accept().await.unwrap();
        let arrived = tokio::spawn(async move { near.read_u8().await });
        // A waiting reader is one that was polled.
        tokio::task::yield_now().await;
        let mut turns = 0;
        // A task of its own: what the test itself does, the runtime interrupts anyway.
        let busy = poll_fn(move |cx| {
            turns += 1;
            if turns == 3 {
                far.write_all(b"x").unwrap();
            }
            if arrived.is_finished() {
                return Poll::Ready(turns);
            }
            after_others(cx);
            Poll::Pending
        });
        let turns = tokio::spawn(busy).await.unwrap();
        assert!(turns <= 6, "{turns} turns");
    }
}
