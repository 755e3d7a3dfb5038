//! An exchange in a task of its own: the request goes on whether its answer is taken or not.
//!
//! The answer to a client of HTTP/2 is asked for by hyper, and only when there is room for it. A client that reads nothing
//! before it has sent all would wait for ever if the rest of its request went out only then.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::body::BodyError;
use super::exchange::Exchange;
use super::shares;

/// Pieces of an answer that wait to be taken.
const PIECES_MAX: usize = 2;

/// A piece of an answer; `None` is its end.
pub(super) type Piece = Option<Result<Frame<Bytes>, BodyError>>;

/// What the task tells: a task that ends without the end of the answer has not come to it.
#[derive(Debug)]
pub(super) struct Told {
    piece: Piece,
    /// The exchange, where both its answer and its request end with this piece.
    over: Option<Box<Exchange>>,
}

/// What comes of an exchange that goes on by itself; dropping it ends the exchange.
#[derive(Debug)]
pub(crate) struct Driven {
    pieces: mpsc::Receiver<Told>,
    has_ended: bool,
    over: Option<Box<Exchange>>,
}

impl Driven {
    /// Lets `exchange`, of whose answer the head was read, go on to the end of that answer.
    pub(super) fn begin(exchange: Box<Exchange>) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        shares::spawn(drive(exchange, sender));
        Self { pieces, has_ended: false, over: None }
    }

    /// These pieces, as of an exchange.
    #[cfg(test)]
    pub(super) fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        let pieces: Vec<Piece> = pieces.into_iter().collect();
        let (sender, receiver) = mpsc::channel(pieces.len());
        for piece in pieces {
            sender.try_send(Told { piece, over: None }).unwrap();
        }
        Self { pieces: receiver, has_ended: false, over: None }
    }

    /// Waits for the next piece of the answer; `None` at its end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(cx).map(|told| match told {
            Some(Told { piece, over }) => {
                self.has_ended = piece.is_none() || over.is_some();
                self.over = over;
                piece
            }
            None => Some(Err("the answer broke off".into())),
        })
    }

    /// Whether all of the answer was taken.
    pub(super) const fn is_over(&self) -> bool {
        self.has_ended
    }

    /// The exchange, once it is over on both sides.
    pub(super) fn into_exchange(self) -> Option<Box<Exchange>> {
        self.over
    }
}

async fn drive(mut exchange: Box<Exchange>, pieces: mpsc::Sender<Told>) {
    loop {
        let place = tokio::select! {
            biased;
            // Fails when nobody waits for the answer any more.
            place = pieces.reserve() => match place {
                Ok(place) => place,
                Err(_gone) => return,
            },
            () = upload(&mut exchange, Until::Never) => return,
        };
        let piece = tokio::select! {
            biased;
            piece = poll_fn(|cx| exchange.poll_body(cx)) => piece,
            () = pieces.closed() => return,
        };
        if exchange.is_read() && exchange.is_sent() {
            place.send(Told { piece, over: Some(exchange) });
            return;
        }
        let (is_end, is_broken) = (piece.is_none(), matches!(piece, Some(Err(_))));
        place.send(Told { piece, over: None });
        if is_broken {
            return;
        }
        if is_end {
            break;
        }
    }
    // Until the end is taken the rest of the request goes on: who reads nothing before all is sent would not come to it.
    tokio::select! {
        () = pieces.closed() => {}
        () = upload(&mut exchange, Until::Sent) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Never,
    Sent,
}

/// Sends what comes of the request. A fault of it is told by the answer's next piece.
async fn upload(exchange: &mut Exchange, until: Until) {
    poll_fn(|cx| {
        let is_broken = exchange.poll_upload(cx).is_err();
        if until == Until::Sent && (is_broken || exchange.is_sent()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
