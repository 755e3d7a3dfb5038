//! The content of one file: as processes see it, and as the disk holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::chance::Chance;

/// What the kernel writes at once.
pub(super) const PAGE_BYTES: usize = 4096;
/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
const PAGE: u64 = 4096;

type Page = [u8; PAGE_BYTES];

/// A file's bytes at one moment. Pages that nobody wrote are holes and read as zeros.
#[derive(Debug, Clone, Default)]
struct Image {
    length: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Image {
    /// At most `length` bytes from `offset` on; fewer at the end of the file.
    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = offset.saturating_add(bytes(length)).min(self.length);
        let mut found = Vec::with_capacity(usize::try_from(end.saturating_sub(offset)).unwrap_or(0));
        let mut at = offset;
        while at < end {
            let (page, from) = place(at);
            let room = PAGE_BYTES - from;
            let take = usize::try_from(end - at).map_or(room, |left| left.min(room));
            match self.pages.get(&page).and_then(|page| page.get(from..from + take)) {
                Some(slice) => found.extend_from_slice(slice),
                None => found.resize(found.len() + take, 0),
            }
            at += bytes(take);
        }
        found
    }

    /// Writes within one page.
    fn write_in_page(&mut self, page: u64, from: usize, data: &[u8]) {
        let slot = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
        if let Some(target) = Arc::make_mut(slot).get_mut(from..from + data.len()) {
            target.copy_from_slice(data);
        }
    }

    /// Cuts off or extends by a hole; returns the pages that changed.
    fn resize(&mut self, length: u64) -> Vec<u64> {
        let mut changed = Vec::new();
        if length < self.length {
            changed.extend(self.pages.split_off(&length.div_ceil(PAGE)).into_keys());
            let (last, used) = place(length);
            if let Some(page) = self.pages.get_mut(&last) {
                Arc::make_mut(page).iter_mut().skip(used).for_each(|byte| *byte = 0);
                changed.push(last);
            }
        }
        self.length = length;
        changed
    }

    fn put(&mut self, number: u64, page: Option<Arc<Page>>) {
        match page {
            Some(page) => self.pages.insert(number, page),
            None => self.pages.remove(&number),
        };
    }
}

/// A file's bytes in the page cache and on the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    cached: Image,
    synced: Image,
    /// Pages of the cache that the next sync has to write.
    dirty: BTreeSet<u64>,
}

impl Content {
    pub(super) const fn length(&self) -> u64 {
        self.cached.length
    }

    /// Pages that take room.
    pub(super) fn page_count(&self) -> u64 {
        bytes(self.cached.pages.len())
    }

    /// Pages that a write would add.
    pub(super) fn pages_new(&self, offset: u64, length: usize) -> u64 {
        if length == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE, offset.saturating_add(bytes(length) - 1) / PAGE);
        let held = bytes(self.cached.pages.range(first..=last).count());
        (last - first + 1).saturating_sub(held)
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        self.cached.read(offset, length)
    }

    pub(super) fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let (page, from) = place(at);
            let (now, later) = data.split_at(data.len().min(PAGE_BYTES - from));
            self.cached.write_in_page(page, from, now);
            self.dirty.insert(page);
            at = at.saturating_add(bytes(now.len()));
            data = later;
        }
        self.cached.length = self.cached.length.max(at);
    }

    pub(super) fn resize(&mut self, length: u64) {
        self.dirty.extend(self.cached.resize(length));
    }

    /// Brings the disk up to the cache.
    pub(super) fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            self.synced.put(number, self.cached.pages.get(&number).cloned());
        }
        self.synced.resize(self.cached.length);
    }

    /// A sync that failed: the pages count as clean and the disk has none of them.
    pub(super) fn fail_sync(&mut self) {
        self.dirty.clear();
    }

    /// Goes back to what was synced.
    pub(super) fn forget(&mut self) {
        self.cached = self.synced.clone();
        self.dirty.clear();
    }

    /// Lets chance decide of each page that was not synced whether it reached the disk: not, whole, or some of its
    /// sectors; and of the length too. Then goes back to what is on the disk.
    pub(super) fn tear(&mut self, chance: &mut Chance) {
        let mut disk = self.synced.clone();
        for number in std::mem::take(&mut self.dirty) {
            let written = self.cached.pages.get(&number);
            match chance.below(3) {
                0 => {}
                1 => disk.put(number, written.cloned()),
                _ => {
                    let old = disk.pages.get(&number).map_or([0; PAGE_BYTES], |page| **page);
                    let new = written.map_or([0; PAGE_BYTES], |page| **page);
                    disk.put(number, Some(Arc::new(mixed(old, &new, chance))));
                }
            }
        }
        let (low, high) = (self.synced.length.min(self.cached.length), self.synced.length.max(self.cached.length));
        let length = match chance.below(3) {
            0 => self.synced.length,
            1 => self.cached.length,
            _ => low + chance.below(high - low + 1),
        };
        // Pages beyond the length are no part of the file; the size is what makes them one.
        disk.length = u64::MAX;
        disk.resize(length);
        self.synced = disk;
        self.forget();
    }
}

/// Some sectors of `old`, some of `new`.
fn mixed(mut old: Page, new: &Page, chance: &mut Chance) -> Page {
    for (sector, written) in old.chunks_exact_mut(SECTOR_BYTES).zip(new.chunks_exact(SECTOR_BYTES)) {
        if chance.one_in(2) {
            sector.copy_from_slice(written);
        }
    }
    old
}

/// The page of an offset, and the place within it.
fn place(offset: u64) -> (u64, usize) {
    (offset / PAGE, usize::try_from(offset % PAGE).unwrap_or(0))
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
