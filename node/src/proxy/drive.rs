//! An exchange in a task of its own: the request goes on whether its answer is taken or not.
//!
//! The answer to a client of HTTP/2 is asked for by hyper, and only when there is room for it. A client that reads nothing
//! before it has sent all would wait for ever if the rest of its request went out only then.

use std::convert::Infallible;
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

/// A piece of an answer, `None` for its end: a task that ends without that has not come to it.
pub(super) type Piece = Option<Result<Frame<Bytes>, BodyError>>;

/// What comes of an exchange that goes on by itself; dropping it ends the exchange.
#[derive(Debug)]
pub(crate) struct Driven {
    pieces: mpsc::Receiver<Piece>,
}

impl Driven {
    /// Lets `exchange`, of whose answer the head was read, go on to the end of that answer. Its connection is not kept.
    pub(super) fn begin(exchange: Box<Exchange>) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        shares::spawn(drive(exchange, sender));
        Self { pieces }
    }

    /// What comes through a channel.
    #[cfg(test)]
    pub(super) const fn of(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces }
    }

    /// Waits for the next piece of the answer; `None` at its end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.pieces.poll_recv(cx).map(|told| told.unwrap_or_else(|| Some(Err("the answer broke off".into()))))
    }
}

async fn drive(mut exchange: Box<Exchange>, pieces: mpsc::Sender<Piece>) {
    loop {
        let place = tokio::select! {
            biased;
            // Fails when nobody waits for the answer any more.
            place = pieces.reserve() => match place {
                Ok(place) => place,
                Err(_gone) => return,
            },
            never = upload(&mut exchange) => match never {},
        };
        let piece = tokio::select! {
            biased;
            piece = poll_fn(|cx| exchange.poll_body(cx)) => piece,
            () = pieces.closed() => return,
        };
        let goes_on = matches!(piece, Some(Ok(_)));
        place.send(piece);
        if !goes_on {
            return;
        }
    }
}

/// Sends what comes of the request. A fault of it is told by the answer's next piece.
async fn upload(exchange: &mut Exchange) -> Infallible {
    poll_fn(|cx| {
        exchange.poll_upload(cx).ok();
        Poll::Pending
    })
    .await
}
