//! A database whose pairs were damaged, opened.

use std::sync::OnceLock;

use super::{Input, NOW, check, delete, open, put, talk};
use crate::{
    Edit, MemoryStorage, Pairs, Storage, WriteMeta, backend::Disk, codec::FRAME_HEAD_BYTES, error::StoreError,
};

/// Damages done in one run.
const DAMAGES_MAX: usize = 32;

/// Does to a database what `data` says, opens it, and goes on with it where it opens.
///
/// # Panics
/// A finding: opening panics, or a database that opened does not work.
pub fn stored(data: &[u8]) {
    let disk = Disk::new();
    restore(&disk);
    let mut input = Input(data);
    for _ in 0..DAMAGES_MAX {
        if input.is_empty() {
            break;
        }
        damage(&disk, &mut input);
    }
    let Ok(mut replica) = open("live", &disk, 1) else { return };
    drop(check(&replica, &disk, "live"));
    replica.records().scan("table").count();
    for number in 0..8 {
        let _either = replica.history(&super::key(number));
    }
    let _either = replica.collect(NOW, 0);
    drop(check(&replica, &disk, "live"));
    let before = replica.root();
    match put(&mut replica, 1, 77) {
        Ok(_) => {}
        Err(error) => assert!(is_expected(&error) && replica.root() == before, "write: {error:?}"),
    }
    drop(check(&replica, &disk, "live"));
    if let Ok(mut other) = open("other", &Disk::new(), 0) {
        // An honest peer may refuse what a damaged disk says, and must not mind it otherwise.
        let _either = talk(&mut replica, &mut other, &mut |_, _| ());
    }
    drop(check(&replica, &disk, "live"));
}

/// What a write may say on a database that someone made up: it is at a limit, or its own name is used up.
const fn is_expected(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::TooLarge { .. }
            | StoreError::Invalid { .. }
            | StoreError::TooManySiblings { .. }
            | StoreError::NotAuthor
            | StoreError::NotAdmitted { .. }
    )
}

/// What one run starts from: documents with a conflict, tombstones, a floor, an op of which only one change still counts,
/// a late deletion, an outcome, history, records.
fn restore(disk: &Disk) {
    static PAIRS: OnceLock<(Pairs, [u8; 16])> = OnceLock::new();
    let (pairs, mark) = PAIRS.get_or_init(made);
    for (key, value) in pairs {
        disk.damage(key, Some(value.clone()));
    }
    let marked = MemoryStorage::on(disk).set_boot_mark(*mark);
    assert!(marked.is_ok(), "memory takes a mark");
}

pub(super) fn made() -> (Pairs, [u8; 16]) {
    let disk = Disk::new();
    let make = || -> Result<(), StoreError> {
        let (mut live, mut peer) = (open("live", &disk, 0)?, open("peer", &Disk::new(), 0)?);
        for number in 0..4 {
            put(&mut live, number, 1)?;
        }
        // One op on two documents, of which one is deleted and forgotten.
        let two = [6, 7].map(|number| Edit::put(super::key(number), super::body(number, 9)));
        live.write(two.into(), WriteMeta::default(), NOW)?;
        delete(&mut live, 6)?;
        live.collect(NOW, 0)?;
        let talked = talk(&mut live, &mut peer, &mut |_, _| ());
        assert!(talked.is_ok(), "honest replicas talk");
        put(&mut live, 0, 2)?;
        put(&mut peer, 0, 5)?;
        put(&mut live, 1, 3)?;
        delete(&mut peer, 1)?;
        delete(&mut live, 2)?;
        let meta = WriteMeta { idempotency_key: "once".to_owned(), ..WriteMeta::default() };
        live.write(vec![Edit::delete(super::key(3))], meta, NOW)?;
        put(&mut live, 3, 4)?;
        live.records().put_record("table", b"one", b"1")?;
        let talked = talk(&mut live, &mut peer, &mut |_, _| ());
        assert!(talked.is_ok(), "honest replicas talk");
        Ok(())
    };
    let made = make();
    assert!(made.is_ok(), "the database to damage is made: {made:?}");
    (disk.pairs(), MemoryStorage::on(&disk).boot_mark().ok().flatten().unwrap_or_default())
}

/// One damage: which pair, what is done to it, and whether its checksum is put right afterwards.
fn damage(disk: &Disk, input: &mut Input<'_>) {
    let pairs = disk.pairs();
    let at = usize::from(input.byte());
    let Some((key, value)) = pairs.get(at % pairs.len().max(1)) else { return };
    let mut value = value.clone();
    let verb = input.byte();
    match verb % 8 {
        0 => return disk.damage(key, None),
        1 => value.truncate(usize::from(input.u16())),
        2 => value.extend_from_slice(input.run()),
        3 => {
            let (place, bits) = (usize::from(input.u16()), input.byte());
            let place = place % value.len().max(1);
            value.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= bits);
        }
        4 => {
            let place = usize::from(input.u16()).min(value.len());
            value.iter_mut().skip(place).zip(input.run()).for_each(|(byte, with)| *byte = *with);
        }
        5 => value = input.run().to_vec(),
        6 => {
            let other = usize::from(input.byte());
            value = pairs.get(other % pairs.len().max(1)).map_or(value, |(_, value)| value.clone());
        }
        _ => {
            let new_key = input.run().to_vec();
            disk.damage(key, None);
            // An empty key is never written, and no key is longer than this.
            if new_key.is_empty() || new_key.len() > 1024 {
                return;
            }
            return disk.damage(&new_key, Some(value));
        }
    }
    if verb & 0x80 == 0 {
        mend(&mut value);
    }
    disk.damage(key, Some(value));
}

/// Puts length and checksum right, so that what lies behind them is tried as well.
pub(super) fn mend(value: &mut Vec<u8>) {
    let payload = value.len().saturating_sub(4 + FRAME_HEAD_BYTES);
    let length = u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes();
    value.truncate(value.len().saturating_sub(4));
    value.iter_mut().skip(2).zip(length).for_each(|(byte, with)| *byte = with);
    let sum = crc32c::crc32c(value);
    value.extend_from_slice(&sum.to_be_bytes());
}
