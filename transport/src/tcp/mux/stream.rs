//! The two sides of one stream.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

use super::super::frame::{DATA_BYTES_MAX, Kind, TcpFault};
use super::{Read, STREAM_CREDIT, put};

/// A buffer of this size or more is given back when it has been read empty.
const BUFFER_KEPT: usize = 16 * 1024;

/// A stream that is not over yet.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) send: Option<SendSide>,
    pub(super) recv: Option<RecvSide>,
    /// The peer has not been told of it.
    pub(super) is_open_due: bool,
    /// Whether it is among those that take turns.
    pub(super) has_turn: bool,
}

impl Stream {
    pub(super) const fn opened(send: SendSide, recv: Option<RecvSide>) -> Self {
        Self { send: Some(send), recv, is_open_due: true, has_turn: false }
    }

    pub(super) const fn accepted(send: Option<SendSide>, recv: RecvSide) -> Self {
        Self { send, recv: Some(recv), is_open_due: false, has_turn: false }
    }

    /// Over on both sides, with nothing left to say, and nobody holds it.
    pub(super) fn is_over(&self) -> bool {
        !self.is_open_due
            && self.send.as_ref().is_none_or(|send| send.is_over() && send.is_released)
            && self.recv.as_ref().is_none_or(|recv| recv.is_over() && recv.is_released)
    }
}

/// How far sending has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    /// More may be written.
    Open,
    /// Finished; the end follows what is buffered.
    FinDue,
    /// All is sent; the peer has not confirmed it.
    FinSent,
    /// Broken off; the peer has not been told.
    ResetDue(u32),
    /// Nothing more is sent: the peer has confirmed the end.
    Acked,
    /// Nothing more is sent: it was broken off.
    Over,
}

/// Bytes on their way to the peer.
#[derive(Debug)]
pub(super) struct SendSide {
    state: SendState,
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    pub(super) buffered: usize,
    /// Bytes that may still be written.
    pub(super) credit: u64,
    /// The code with which the peer stopped it.
    pub(super) stopped: Option<u32>,
    /// Whether a writer waits.
    pub(super) is_awaited: bool,
    /// Whether it waits for room on the connection, and is listed there.
    pub(super) is_waiting: bool,
    /// Whether the application has let go of it.
    pub(super) is_released: bool,
}

impl SendSide {
    pub(super) fn new() -> Self {
        Self {
            state: SendState::Open,
            chunks: VecDeque::new(),
            buffered: 0,
            credit: u64::from(STREAM_CREDIT),
            stopped: None,
            is_awaited: false,
            is_waiting: false,
            is_released: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == SendState::Open
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, SendState::Acked | SendState::Over)
    }

    /// Whether the peer has confirmed the end.
    pub(super) fn is_acked(&self) -> bool {
        self.state == SendState::Acked
    }

    pub(super) fn has_more(&self) -> bool {
        !self.chunks.is_empty() || matches!(self.state, SendState::FinDue | SendState::ResetDue(_))
    }

    /// Buffers bytes for which there is credit.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.credit -= bytes.len() as u64;
        self.buffered += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// Whether this call was what finished it.
    pub(super) fn finish(&mut self) -> bool {
        let is_first = self.is_open();
        if is_first {
            self.state = SendState::FinDue;
        }
        is_first
    }

    /// Drops what is buffered, and says how much that was; `None` when all was sent or broken off before.
    pub(super) fn reset(&mut self, code: u32) -> Option<usize> {
        match self.state {
            SendState::Open | SendState::FinDue | SendState::FinSent => {
                self.state = SendState::ResetDue(code);
                self.chunks.clear();
                Some(std::mem::take(&mut self.buffered))
            }
            SendState::ResetDue(_) | SendState::Acked | SendState::Over => None,
        }
    }

    /// The peer wants no more, so what is buffered is of no use and the stream is broken off.
    pub(super) fn handle_stop(&mut self, code: u32) -> Option<usize> {
        if self.stopped.is_none() && !self.is_over() {
            self.stopped = Some(code);
        }
        self.is_awaited = false;
        self.reset(code)
    }

    /// The peer has all of it; `false` when it cannot have, because the end was not sent.
    pub(super) fn handle_ack(&mut self) -> bool {
        match self.state {
            SendState::FinSent => {
                self.state = SendState::Acked;
                true
            }
            // Broken off while the confirmation was under way.
            SendState::ResetDue(_) | SendState::Acked | SendState::Over => true,
            SendState::Open | SendState::FinDue => false,
        }
    }

    /// Appends one frame of bytes, or the end; how many bytes that were.
    pub(super) fn transmit(&mut self, id: u64, out: &mut Vec<u8>) -> usize {
        if let SendState::ResetDue(code) = self.state {
            put(out, Kind::Reset, id, code);
            self.state = SendState::Over;
            return 0;
        }
        let given = self.buffered.min(DATA_BYTES_MAX);
        if given > 0 {
            put(out, Kind::Data, id, u32::try_from(given).unwrap_or(u32::MAX));
            let mut left = given;
            while left > 0
                && let Some(chunk) = self.chunks.front_mut()
            {
                let piece = left.min(chunk.len());
                out.extend_from_slice(chunk.get(..piece).unwrap_or_default());
                chunk.advance(piece);
                left -= piece;
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
            }
            self.buffered -= given;
        }
        if self.state == SendState::FinDue && self.chunks.is_empty() {
            put(out, Kind::Fin, id, 0);
            self.state = SendState::FinSent;
        }
        given
    }
}

/// How far receiving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecvState {
    /// More may come.
    Open,
    /// The peer has sent the last byte.
    Finished,
    /// The peer broke off.
    Reset(u32),
}

/// Bytes that came from the peer.
#[derive(Debug)]
pub(super) struct RecvSide {
    state: RecvState,
    buffer: BytesMut,
    /// Bytes the peer may still send.
    credit: u64,
    /// Bytes it is to be allowed in addition.
    due: u32,
    is_stopped: bool,
    stop_due: Option<u32>,
    ack_due: bool,
    /// Whether the application has let go of it.
    pub(super) is_released: bool,
}

impl RecvSide {
    pub(super) fn new(window: u32) -> Self {
        Self {
            state: RecvState::Open,
            buffer: BytesMut::new(),
            credit: u64::from(STREAM_CREDIT),
            due: window.saturating_sub(STREAM_CREDIT),
            is_stopped: false,
            stop_due: None,
            ack_due: false,
            is_released: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state != RecvState::Open && !self.ack_due && self.stop_due.is_none()
    }

    /// Whether the peer should be told now that it may send more: it has used up half of what it may.
    pub(super) fn is_credit_due(&self) -> bool {
        self.state == RecvState::Open && !self.is_stopped && self.due > 0 && u64::from(self.due) >= self.credit
    }

    /// A frame with so many bytes has begun.
    pub(super) fn expect_bytes(&mut self, length: u32) -> Result<(), TcpFault> {
        if self.state != RecvState::Open {
            return Err(TcpFault::AfterEnd);
        }
        self.credit = self.credit.checked_sub(u64::from(length)).ok_or(TcpFault::OverCredit)?;
        Ok(())
    }

    /// Takes bytes in; `false` when nobody will read them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        if self.is_stopped {
            return false;
        }
        self.buffer.extend_from_slice(bytes);
        true
    }

    /// The peer has finished (`None`) or broken off. How many unread bytes were dropped.
    pub(super) fn end(&mut self, code: Option<u32>) -> Result<usize, TcpFault> {
        // A stream may be broken off after its end was sent, as its sender need not know that the end has arrived.
        match (self.state, code) {
            (RecvState::Open, None) => {
                self.state = RecvState::Finished;
                self.ack_due = true;
                Ok(0)
            }
            (RecvState::Open, Some(code)) => {
                self.state = RecvState::Reset(code);
                Ok(self.clear())
            }
            (RecvState::Finished, Some(_)) => Ok(0),
            (RecvState::Finished, None) | (RecvState::Reset(_), _) => Err(TcpFault::AfterEnd),
        }
    }

    /// Drops what was not read, and how much that was.
    pub(super) fn stop(&mut self, code: u32) -> usize {
        if self.state == RecvState::Open && !self.is_stopped {
            self.stop_due = Some(code);
        }
        self.is_stopped = true;
        self.clear()
    }

    fn clear(&mut self) -> usize {
        std::mem::take(&mut self.buffer).len()
    }

    pub(super) fn read(&mut self, bytes_max: usize) -> Read {
        if self.is_stopped {
            return Read::Closed;
        }
        if let RecvState::Reset(code) = self.state {
            return Read::Reset(code);
        }
        if self.buffer.is_empty() {
            return if self.state == RecvState::Finished { Read::End } else { Read::Blocked };
        }
        let count = self.buffer.len().min(bytes_max);
        let bytes = self.buffer.split_to(count).freeze();
        if self.buffer.is_empty() && bytes.len() >= BUFFER_KEPT {
            self.buffer = BytesMut::new();
        }
        self.due = self.due.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        Read::Bytes(bytes)
    }

    /// Appends what the peer is to know of this side.
    pub(super) fn transmit(&mut self, id: u64, out: &mut Vec<u8>) {
        if let Some(code) = self.stop_due.take() {
            put(out, Kind::Stop, id, code);
        }
        if self.is_credit_due() {
            let due = std::mem::take(&mut self.due);
            self.credit += u64::from(due);
            put(out, Kind::Credit, id, due);
        }
        if std::mem::take(&mut self.ack_due) {
            put(out, Kind::Ack, id, 0);
        }
    }
}
