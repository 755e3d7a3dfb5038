//! The disk and the page cache in front of it: files, folders, what of them was synced, and the faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};

use fuser::Errno;

use crate::chance::Chance;
use crate::lossfs::content::{Content, PAGE_BYTES};

/// How the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing that was not synced survives.
    Clean,
    /// Of what was not synced, the seed decides: each page survives whole, in some of its sectors of 512 bytes, or not;
    /// changes of names survive up to some point in their order.
    Torn(
        /// The seed.
        u64,
    ),
}

/// A sort of call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Writing to a file.
    Write,
    /// Syncing a file or a folder.
    Sync,
}

/// The number of a file or folder; never used twice.
pub(super) type Number = u64;
/// The topmost folder.
pub(super) const ROOT: Number = 1;
type Names = BTreeMap<OsString, Number>;

/// What is known of a file or folder without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) number: Number,
    pub(super) is_folder: bool,
    pub(super) length: u64,
    pub(super) mode: u16,
}

#[derive(Debug)]
struct Node {
    mode: u16,
    /// Syncs of it that failed.
    errors: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File(Content),
    Folder { cached: Names, synced: Names },
}

/// An open file.
#[derive(Debug)]
struct Handle {
    number: Number,
    /// How many of the file's errors were told through this handle, or happened before it.
    errors_seen: u64,
}

/// One change of names in a folder, not synced yet; it happens as a whole.
#[derive(Debug)]
struct Renaming {
    folder: Number,
    /// What each name stands for from then on; `None` for nothing.
    names: Vec<(OsString, Option<Number>)>,
}

#[derive(Debug)]
struct Plan {
    steps: u64,
    cut: Cut,
}

/// Everything behind the mount point.
#[derive(Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<Number, Node>,
    handles: BTreeMap<u64, Handle>,
    last_number: Number,
    last_handle: u64,
    renamings: VecDeque<Renaming>,
    capacity_pages: u64,
    failing_writes: u32,
    failing_syncs: u32,
    is_on: bool,
    plan: Option<Plan>,
    steps: u64,
}

impl Disk {
    /// An empty disk, powered.
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let root = Node { mode: 0o755, errors: 0, kind: Kind::Folder { cached: Names::new(), synced: Names::new() } };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            handles: BTreeMap::new(),
            last_number: ROOT,
            last_handle: 0,
            renamings: VecDeque::new(),
            capacity_pages: pages(capacity_bytes),
            failing_writes: 0,
            failing_syncs: 0,
            is_on: true,
            plan: None,
            steps: 0,
        }
    }

    // ---- faults ----

    /// Cuts the power; false where it was off already.
    pub(super) fn cut(&mut self, cut: Cut) -> bool {
        if !self.is_on {
            return false;
        }
        self.is_on = false;
        self.plan = None;
        self.handles.clear();
        self.failing_writes = 0;
        self.failing_syncs = 0;
        let mut chance = match cut {
            Cut::Clean => None,
            Cut::Torn(seed) => Some(Chance::new(seed)),
        };
        if let Some(chance) = &mut chance {
            // Names change in a journal, which ends somewhere.
            let kept = chance.below(self.renamings.len() as u64 + 1);
            for _ in 0..kept {
                self.settle_oldest();
            }
        }
        self.renamings.clear();
        for node in self.nodes.values_mut() {
            match (&mut node.kind, &mut chance) {
                (Kind::File(content), Some(chance)) => content.tear(chance),
                (Kind::File(content), None) => content.forget(),
                (Kind::Folder { cached, synced }, _) => cached.clone_from(synced),
            }
        }
        self.sweep();
        true
    }

    /// Cuts the power instead of carrying out the step after `steps` more.
    pub(super) fn cut_after(&mut self, steps: u64, cut: Cut) {
        self.plan = Some(Plan { steps, cut });
    }

    pub(super) fn power_on(&mut self) {
        self.is_on = true;
        self.plan = None;
    }

    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Changes and syncs carried out since the beginning.
    pub(super) const fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity_pages = pages(bytes);
    }

    /// Pages in all and pages in use.
    pub(super) fn room(&self) -> (u64, u64) {
        (self.capacity_pages, self.pages_used())
    }

    pub(super) const fn fail_next(&mut self, call: Call, times: u32) {
        match call {
            Call::Write => self.failing_writes = times,
            Call::Sync => self.failing_syncs = times,
        }
    }

    // ---- looking ----

    pub(super) fn status(&self, number: Number) -> Result<Status, Errno> {
        self.powered()?;
        let node = self.node(number)?;
        let (is_folder, length) = match &node.kind {
            Kind::File(content) => (false, content.length()),
            Kind::Folder { .. } => (true, 0),
        };
        Ok(Status { number, is_folder, length, mode: node.mode })
    }

    pub(super) fn find(&self, folder: Number, name: &OsStr) -> Result<Status, Errno> {
        self.powered()?;
        self.status(*self.names(folder)?.get(name).ok_or(Errno::ENOENT)?)
    }

    pub(super) fn list(&self, folder: Number) -> Result<Vec<(OsString, Status)>, Errno> {
        self.powered()?;
        self.names(folder)?.iter().map(|(name, number)| Ok((name.clone(), self.status(*number)?))).collect()
    }

    pub(super) fn read(&self, handle: u64, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        self.powered()?;
        Ok(self.content(self.handle(handle)?.number)?.read(offset, length))
    }

    // ---- changing ----

    /// Makes a file and opens it.
    pub(super) fn create(&mut self, folder: Number, name: &OsStr, mode: u16) -> Result<(Status, u64), Errno> {
        let number = self.add(folder, name, mode, Kind::File(Content::default()))?;
        Ok((self.status(number)?, self.open(number)?))
    }

    pub(super) fn make_folder(&mut self, folder: Number, name: &OsStr, mode: u16) -> Result<Status, Errno> {
        let number = self.add(folder, name, mode, Kind::Folder { cached: Names::new(), synced: Names::new() })?;
        self.status(number)
    }

    /// Opens a file; the result is its handle.
    pub(super) fn open(&mut self, number: Number) -> Result<u64, Errno> {
        self.powered()?;
        self.content(number)?;
        let errors_seen = self.node(number)?.errors;
        self.last_handle += 1;
        self.handles.insert(self.last_handle, Handle { number, errors_seen });
        Ok(self.last_handle)
    }

    pub(super) fn release(&mut self, handle: u64) {
        if self.handles.remove(&handle).is_some() {
            self.sweep();
        }
    }

    pub(super) fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.step()?;
        if take_one(&mut self.failing_writes) {
            return Err(Errno::EIO);
        }
        let number = self.handle(handle)?.number;
        let new = self.content(number)?.pages_new(offset, data.len());
        // A file that has its pages already can be written over on a full disk.
        if new > 0 && self.pages_used().saturating_add(new) > self.capacity_pages {
            return Err(Errno::ENOSPC);
        }
        self.content_mut(number)?.write(offset, data);
        Ok(())
    }

    pub(super) fn resize(&mut self, number: Number, length: u64) -> Result<(), Errno> {
        self.step()?;
        self.content_mut(number)?.resize(length);
        Ok(())
    }

    pub(super) fn set_mode(&mut self, number: Number, mode: u16) -> Result<(), Errno> {
        self.powered()?;
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?.mode = mode;
        Ok(())
    }

    pub(super) fn remove_file(&mut self, folder: Number, name: &OsStr) -> Result<(), Errno> {
        self.step()?;
        if self.find(folder, name)?.is_folder {
            return Err(Errno::EISDIR);
        }
        self.rename_in(folder, vec![(name.to_owned(), None)])
    }

    pub(super) fn remove_folder(&mut self, folder: Number, name: &OsStr) -> Result<(), Errno> {
        self.step()?;
        let found = self.find(folder, name)?;
        if !self.names(found.number)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.rename_in(folder, vec![(name.to_owned(), None)])
    }

    /// Gives a file or folder another name; what had that name before is gone, unless it is a folder with content.
    pub(super) fn rename(
        &mut self,
        from: Number,
        name: &OsStr,
        to: Number,
        new_name: &OsStr,
        may_replace: bool,
    ) -> Result<(), Errno> {
        self.step()?;
        let moved = self.find(from, name)?;
        match self.find(to, new_name) {
            Ok(_) if !may_replace => return Err(Errno::EEXIST),
            Ok(old) if old.is_folder && !self.names(old.number)?.is_empty() => return Err(Errno::ENOTEMPTY),
            Ok(old) if old.is_folder != moved.is_folder => {
                return Err(if old.is_folder { Errno::EISDIR } else { Errno::ENOTDIR });
            }
            Ok(old) if old.number == moved.number => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        self.names(to)?;
        let gone = (name.to_owned(), None);
        let come = (new_name.to_owned(), Some(moved.number));
        if from == to {
            return self.rename_in(from, vec![gone, come]);
        }
        self.rename_in(to, vec![come])?;
        self.rename_in(from, vec![gone])
    }

    /// Syncs an open file.
    pub(super) fn sync_file(&mut self, handle: u64) -> Result<(), Errno> {
        self.step()?;
        let number = self.handle(handle)?.number;
        let fails = take_one(&mut self.failing_syncs);
        let node = self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        let Kind::File(content) = &mut node.kind else { return Err(Errno::EISDIR) };
        if fails {
            content.fail_sync();
            node.errors += 1;
        } else {
            content.sync();
        }
        let errors = node.errors;
        let handle = self.handles.get_mut(&handle).ok_or(Errno::EIO)?;
        if std::mem::replace(&mut handle.errors_seen, errors) < errors {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// Syncs the names in a folder.
    pub(super) fn sync_folder(&mut self, number: Number) -> Result<(), Errno> {
        self.step()?;
        if take_one(&mut self.failing_syncs) {
            return Err(Errno::EIO);
        }
        let node = self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        let Kind::Folder { cached, synced } = &mut node.kind else { return Err(Errno::ENOTDIR) };
        synced.clone_from(cached);
        self.renamings.retain(|renaming| renaming.folder != number);
        self.sweep();
        Ok(())
    }

    // ---- inside ----

    fn powered(&self) -> Result<(), Errno> {
        if self.is_on { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Before each change and each sync: the planned cut may come instead.
    fn step(&mut self) -> Result<(), Errno> {
        self.powered()?;
        match &mut self.plan {
            Some(Plan { steps: 0, cut }) => {
                let cut = *cut;
                self.cut(cut);
                return Err(Errno::EIO);
            }
            Some(plan) => plan.steps -= 1,
            None => {}
        }
        self.steps += 1;
        Ok(())
    }

    fn node(&self, number: Number) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    fn names(&self, folder: Number) -> Result<&Names, Errno> {
        match &self.node(folder)?.kind {
            Kind::Folder { cached, .. } => Ok(cached),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn content(&self, number: Number) -> Result<&Content, Errno> {
        match &self.node(number)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder { .. } => Err(Errno::EISDIR),
        }
    }

    fn content_mut(&mut self, number: Number) -> Result<&mut Content, Errno> {
        match &mut self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder { .. } => Err(Errno::EISDIR),
        }
    }

    /// A handle of before the last cut is gone like the process that had it.
    fn handle(&self, handle: u64) -> Result<&Handle, Errno> {
        self.handles.get(&handle).ok_or(Errno::EIO)
    }

    fn pages_used(&self) -> u64 {
        let pages = |node: &Node| match &node.kind {
            Kind::File(content) => content.page_count(),
            // A folder takes a page, so that names are bounded too.
            Kind::Folder { cached, .. } => 1 + cached.len() as u64 / NAMES_PER_PAGE,
        };
        self.nodes.values().map(pages).sum()
    }

    fn add(&mut self, folder: Number, name: &OsStr, mode: u16, kind: Kind) -> Result<Number, Errno> {
        self.step()?;
        if self.names(folder)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if self.nodes.len() >= NODES_MAX || self.pages_used() >= self.capacity_pages {
            return Err(Errno::ENOSPC);
        }
        self.last_number += 1;
        self.nodes.insert(self.last_number, Node { mode, errors: 0, kind });
        self.rename_in(folder, vec![(name.to_owned(), Some(self.last_number))])?;
        Ok(self.last_number)
    }

    fn rename_in(&mut self, folder: Number, names: Vec<(OsString, Option<Number>)>) -> Result<(), Errno> {
        let node = self.nodes.get_mut(&folder).ok_or(Errno::ENOENT)?;
        let Kind::Folder { cached, .. } = &mut node.kind else { return Err(Errno::ENOTDIR) };
        apply(cached, &names);
        self.renamings.push_back(Renaming { folder, names });
        // A real journal is written out when it is full; the oldest change is then safe.
        if self.renamings.len() > RENAMINGS_MAX {
            self.settle_oldest();
        }
        self.sweep();
        Ok(())
    }

    /// Brings the oldest change of names to the disk.
    fn settle_oldest(&mut self) {
        let Some(renaming) = self.renamings.pop_front() else { return };
        let node = self.nodes.get_mut(&renaming.folder);
        if let Some(Node { kind: Kind::Folder { synced, .. }, .. }) = node {
            apply(synced, &renaming.names);
        }
    }

    /// Drops files and folders that no name on disk or in the cache, no pending change and no handle leads to.
    fn sweep(&mut self) {
        let mut reached = BTreeSet::new();
        let mut next = vec![ROOT];
        next.extend(self.handles.values().map(|handle| handle.number));
        next.extend(self.renamings.iter().map(|renaming| renaming.folder));
        next.extend(self.renamings.iter().flat_map(|renaming| renaming.names.iter().filter_map(|(_, number)| *number)));
        while let Some(number) = next.pop() {
            if !reached.insert(number) {
                continue;
            }
            if let Some(Node { kind: Kind::Folder { cached, synced }, .. }) = self.nodes.get(&number) {
                next.extend(cached.values().chain(synced.values()));
            }
        }
        self.nodes.retain(|number, _| reached.contains(number));
    }
}

fn apply(folder: &mut Names, changes: &[(OsString, Option<Number>)]) {
    for (name, number) in changes {
        match number {
            Some(number) => folder.insert(name.clone(), *number),
            None => folder.remove(name),
        };
    }
}

/// Uses up one of the faults to come.
fn take_one(left: &mut u32) -> bool {
    let is_due = *left > 0;
    *left = left.saturating_sub(1);
    is_due
}

fn pages(bytes: u64) -> u64 {
    bytes / PAGE_BYTES as u64
}

const NAME_BYTES_MAX: usize = 255;
const NAMES_PER_PAGE: u64 = 16;
/// Files and folders at most; more are refused like writes on a full disk.
const NODES_MAX: usize = 65_536;
/// Unsynced changes of names at most; beyond that the oldest counts as synced.
const RENAMINGS_MAX: usize = 4_096;
