//! A live replica and everything that a peer can say to it, in any order.

use super::{Input, NOW, accept, check, delete, initiate, open, put, talk};
use crate::{
    Replica, SyncSession,
    backend::Disk,
    codec::{FRAME_HEAD_BYTES, WIRE_VERSION},
};

/// Steps of one run.
const STEPS_MAX: usize = 48;
/// Messages taken from a session at a time.
const ANSWERS_MAX: usize = 64;

/// Reads `data` as steps, each a verb and what it needs, most of them a message: a length of 16 bits and its bytes.
///
/// # Panics
/// A finding: a message makes the replica panic, what is on its disk differs from what it says, or it does not get on
/// with an honest peer.
pub fn sync_handlers(data: &[u8]) {
    let Some(mut world) = World::new() else { return };
    let mut input = Input(data);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.check();
}

/// The replica under test, its two sessions with whoever sends the bytes, and an honest peer.
struct World {
    disk: Disk,
    live: Replica,
    honest: Replica,
    honest_disk: Disk,
    called: SyncSession,
    caller: SyncSession,
    now_ms: u64,
}

impl World {
    /// What every run starts from; the same each time, so that messages kept in a corpus name lives that exist.
    fn new() -> Option<Self> {
        let (disk, honest_disk) = (Disk::new(), Disk::new());
        let (live, honest) = start(&disk, &honest_disk)?;
        let mut world = Self { disk, live, honest, honest_disk, called: accept(), caller: initiate(), now_ms: NOW };
        world.answer();
        Some(world)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let verb = input.byte();
        match verb % 13 {
            0 | 1 => self.hear_called(&right(input.run())),
            2 | 3 => self.hear_caller(&right(input.run())),
            4 => self.pushed(&right(input.run())),
            5 => self.hear_called(input.run()),
            6 => self.hear_caller(input.run()),
            7 => self.pushed(input.run()),
            8 => (self.called, self.caller) = (accept(), initiate()),
            9 => self.write(input),
            12 => drop(self.live.collect(self.now_ms, u64::from(input.byte()))),
            10 => self.now_ms = self.now_ms.wrapping_add(u64::from(input.u16()) << (input.byte() % 64)),
            _ => {
                let _either = talk(&mut self.live, &mut self.honest, &mut |_, _| ());
            }
        }
        self.answer();
    }

    fn hear_called(&mut self, message: &[u8]) {
        let _either = self.called.handle_message(&mut self.live, message, self.now_ms);
    }

    fn hear_caller(&mut self, message: &[u8]) {
        let _either = self.caller.handle_message(&mut self.live, message, self.now_ms);
    }

    fn pushed(&mut self, message: &[u8]) {
        let _either = self.live.merge_push(message, self.now_ms);
    }

    /// Takes what the sessions have to say, as the node does after each message.
    fn answer(&mut self) {
        for session in [&mut self.called, &mut self.caller] {
            let said = std::iter::from_fn(|| session.poll_send(&self.live)).take(ANSWERS_MAX).count();
            assert!(said < ANSWERS_MAX, "a session does not stop talking");
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let (number, value) = (input.byte(), input.byte());
        let replica = if value & 0x80 == 0 { &mut self.live } else { &mut self.honest };
        // A hostile context can fill a store or use up its name; then a write is refused, which is an answer.
        let _either = if value == 0 { delete(replica, number) } else { put(replica, number, value) };
    }

    fn check(mut self) {
        drop(check(&self.live, &self.disk, "live"));
        let _either = talk(&mut self.honest, &mut self.live, &mut |_, _| ());
        drop(check(&self.live, &self.disk, "live"));
        drop(check(&self.honest, &self.honest_disk, "peer"));
        // Someone new who hears everything from the replica ends up with the same.
        let disk = Disk::new();
        let Ok(mut new) = open("new", &disk, 0) else { return };
        let told = talk(&mut new, &mut self.live, &mut |_, _| ());
        if told.is_ok() && new.context() == self.live.context() {
            assert_eq!(new.root(), self.live.root(), "equal contexts, unequal roots");
        }
    }
}

/// Two replicas that have talked once and written since; one has let go of a tombstone that the other has not seen.
pub(super) fn start(disk: &Disk, honest_disk: &Disk) -> Option<(Replica, Replica)> {
    let (mut live, mut honest) = (open("live", disk, 0).ok()?, open("peer", honest_disk, 0).ok()?);
    for number in 0..3 {
        put(&mut live, number, number + 1).ok()?;
        put(&mut honest, number + 2, number + 9).ok()?;
    }
    talk(&mut live, &mut honest, &mut |_, _| ()).ok()?;
    delete(&mut live, 1).ok()?;
    live.collect(NOW, 0).ok()?;
    put(&mut live, 2, 30).ok()?;
    put(&mut honest, 2, 33).ok()?;
    Some((live, honest))
}

/// A message with version and length put right; which kind it is stays as given.
pub(super) fn right(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let payload = message.len().saturating_sub(FRAME_HEAD_BYTES);
    let length = u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes();
    message.iter_mut().take(1).for_each(|version| *version = WIRE_VERSION);
    message.iter_mut().skip(2).zip(length).for_each(|(byte, with)| *byte = with);
    message
}
