//! Messages waiting for one peer, bounded: when full, the oldest makes room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::counters::{LinkCounters, MessageDrop};
use super::lock;
use crate::frame::StreamKind;

/// How often one message is sent before it is given up, when connections are lost under it.
const SENDS_MAX: u32 = 3;

/// One message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: StreamKind,
    pub(crate) bytes: Bytes,
    sends: u32,
}

/// The queue to one peer. It outlives links: what one link did not get through waits for the next.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    added: Notify,
    messages_max: usize,
    bytes_max: usize,
    counters: Arc<LinkCounters>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Outbox {
    pub(crate) fn new(messages_max: usize, bytes_max: usize, counters: Arc<LinkCounters>) -> Self {
        Self { queue: Mutex::default(), added: Notify::new(), messages_max, bytes_max, counters }
    }

    /// Appends a message; the oldest ones make room and are counted.
    pub(crate) fn push(&self, kind: StreamKind, bytes: Bytes) {
        let mut queue = lock(&self.queue);
        queue.bytes += bytes.len();
        queue.messages.push_back(Message { kind, bytes, sends: 0 });
        while queue.messages.len() > self.messages_max || (queue.bytes > self.bytes_max && queue.messages.len() > 1) {
            let Some(oldest) = queue.messages.pop_front() else { break };
            queue.bytes -= oldest.bytes.len();
            self.counters.messages_dropped.add(MessageDrop::QueueFull);
        }
        drop(queue);
        self.added.notify_one();
    }

    /// Waits for the next message. Dropping the future loses nothing.
    pub(crate) async fn next(&self) -> Message {
        loop {
            if let Some(mut message) = self.pop() {
                message.sends += 1;
                return message;
            }
            self.added.notified().await;
        }
    }

    /// Takes back a message whose connection was lost before the peer had it all, to be sent next.
    pub(crate) fn put_back(&self, message: Message) {
        let mut queue = lock(&self.queue);
        if message.sends >= SENDS_MAX {
            self.counters.messages_dropped.add(MessageDrop::GivenUp);
            return;
        }
        // It is older than anything that waits, so in a full queue it is the one to go.
        if queue.messages.len() >= self.messages_max || queue.bytes + message.bytes.len() > self.bytes_max {
            self.counters.messages_dropped.add(MessageDrop::QueueFull);
            return;
        }
        queue.bytes += message.bytes.len();
        queue.messages.push_front(message);
        drop(queue);
        self.added.notify_one();
    }

    /// Empties the queue because the peer was forgotten.
    pub(crate) fn forget(&self) {
        while self.pop().is_some() {
            self.counters.messages_dropped.add(MessageDrop::Forgotten);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.queue).messages.is_empty()
    }

    fn pop(&self) -> Option<Message> {
        let mut queue = lock(&self.queue);
        let message = queue.messages.pop_front()?;
        queue.bytes -= message.bytes.len();
        // One wake-up may stand for several messages, and another link may be waiting as well.
        if !queue.messages.is_empty() {
            self.added.notify_one();
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(messages_max: usize, bytes_max: usize) -> Outbox {
        Outbox::new(messages_max, bytes_max, Arc::default())
    }

    fn drain(outbox: &Outbox) -> Vec<Bytes> {
        std::iter::from_fn(|| outbox.pop().map(|message| message.bytes)).collect()
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts() {
        let outbox = outbox(2, 1000);
        for text in ["a", "b", "c"] {
            outbox.push(StreamKind::Gossip, Bytes::from(text));
        }
        assert_eq!(outbox.counters.messages_dropped.count(MessageDrop::QueueFull), 1);
        assert_eq!(drain(&outbox), ["b", "c"]);
    }

    #[test]
    fn bytes_are_bounded_too_but_one_message_always_fits() {
        let outbox = outbox(64, 10);
        outbox.push(StreamKind::Push, Bytes::from_static(b"123456"));
        outbox.push(StreamKind::Push, Bytes::from_static(b"654321"));
        assert_eq!(drain(&outbox), ["654321"]);
        outbox.push(StreamKind::Push, Bytes::from_static(b"longer than ten"));
        assert_eq!(drain(&outbox).len(), 1);
    }

    #[tokio::test]
    async fn a_message_under_lost_connections_is_sent_again_and_then_given_up() {
        let outbox = outbox(2, 1000);
        outbox.push(StreamKind::Gossip, Bytes::from_static(b"first"));
        outbox.push(StreamKind::Gossip, Bytes::from_static(b"second"));
        for _ in 0..SENDS_MAX {
            let message = outbox.next().await;
            assert_eq!(message.bytes, "first");
            outbox.put_back(message);
        }
        assert_eq!(outbox.counters.messages_dropped.count(MessageDrop::GivenUp), 1);
        assert_eq!(drain(&outbox), ["second"]);
    }
}
