//! The disk behind a mount point: FUSE requests in, answers out.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::mount::{UnmountFlags, unmount};

use crate::lossfs::content::PAGE_BYTES;
use crate::lossfs::disk::{Call, Cut, Disk, Status};

/// Why nothing can be mounted here, in one line; `None` where it should work.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting a FUSE file system takes root".to_owned());
    }
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_device) => None,
        Err(error) => Some(format!("{DEVICE} does not open: {error}")),
    }
}

/// The mounted file system; unmounted when dropped, its content gone.
///
/// It is served by a thread of this process, so a thread that uses the mount must not hold one of its locks, and this
/// type has none that stay locked.
#[derive(Debug)]
pub struct LossFs {
    shared: Arc<Shared>,
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

#[derive(Debug)]
struct Shared {
    disk: Mutex<Disk>,
    outage: Condvar,
}

impl LossFs {
    /// Mounts an empty one on `folder`, which must exist. It takes at most `capacity_bytes` of content.
    ///
    /// # Errors
    /// Where FUSE does not mount, see [`obstacle`].
    pub fn mount(folder: &Path, capacity_bytes: u64) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        let shared = Arc::new(Shared { disk: Mutex::new(Disk::new(capacity_bytes)), outage: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("lossfs".to_owned()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
        ];
        let session = fuser::spawn_mount(Served(Arc::clone(&shared)), &folder, &config)?;
        Ok(Self { shared, folder, session: Some(session) })
    }

    /// The mount point.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Cuts the power now; true where it was on. All calls fail from then on, files open until then for good.
    pub fn cut(&self, cut: Cut) -> bool {
        let was_on = self.shared.disk().cut(cut);
        self.shared.outage.notify_all();
        was_on
    }

    /// Cuts the power after `steps` more changes and syncs, instead of the next one. [`LossFs::power_on`] and an
    /// earlier cut make the plan void.
    pub fn cut_after(&self, steps: u64, cut: Cut) {
        self.shared.disk().cut_after(steps, cut);
    }

    /// Waits for the power to go; false where it is still on after `limit`.
    #[must_use]
    pub fn wait_outage(&self, limit: Duration) -> bool {
        let disk = self.shared.disk();
        let waited = self.shared.outage.wait_timeout_while(disk, limit, |disk| disk.is_on());
        let (disk, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !disk.is_on()
    }

    /// Switches the power on again; what is there is what survived.
    pub fn power_on(&self) {
        self.shared.disk().power_on();
    }

    /// Changes and syncs carried out so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.shared.disk().steps()
    }

    /// Bytes of content it takes from now on; with less than it holds it is full: writes that need more fail with
    /// `ENOSPC`.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.disk().set_capacity(bytes);
    }

    /// Bytes of content it holds, in whole pages.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shared.disk().room().1 * PAGE_BYTES as u64
    }

    /// Makes the next `times` calls fail with `EIO`.
    pub fn fail_next(&self, call: Call, times: u32) {
        self.shared.disk().fail_next(call, times);
    }
}

impl Drop for LossFs {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.umount_and_join().is_err() {
            // A file is open still: it goes away with its last handle, and the name is free at once.
            unmount(&self.folder, UnmountFlags::DETACH).ok();
        }
    }
}

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel talks to.
struct Served(Arc<Shared>);

impl Served {
    /// One request. Whoever waits for the power to go is woken when it went.
    fn ask<T>(&self, request: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut disk = self.0.disk();
        let answer = request(&mut disk);
        if !disk.is_on() {
            self.0.outage.notify_all();
        }
        answer
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_write(WRITE_BYTES_MAX).map(drop).or(Ok(()))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.ask(|disk| disk.find(parent.0, name)), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes_reply(self.ask(|disk| disk.status(number.0)), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.ask(|disk| {
            if let Some(mode) = mode {
                disk.set_mode(number.0, permissions(mode))?;
            }
            if let Some(size) = size {
                disk.resize(number.0, size)?;
            }
            disk.status(number.0)
        });
        attributes_reply(set, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(self.ask(|disk| disk.make_folder(parent.0, name, permissions(mode & !umask))), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.ask(|disk| disk.remove_file(parent.0, name)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.ask(|disk| disk.remove_folder(parent.0, name)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            reply.error(Errno::EINVAL);
            return;
        }
        empty(self.ask(|disk| disk.rename(parent.0, name, new_parent.0, new_name, flags.is_empty())), reply);
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.ask(|disk| disk.open(number.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), UNCACHED),
            Err(error) => reply.error(error),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        match self.ask(|disk| disk.create(parent.0, name, permissions(mode & !umask))) {
            Ok((status, handle)) => {
                reply.created(&FORGET_AT_ONCE, &attributes(status), Generation(0), FileHandle(handle), UNCACHED);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.ask(|disk| disk.read(handle.0, offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.ask(|disk| disk.write(handle.0, offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.disk().release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.ask(|disk| disk.sync_file(handle.0)), reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.ask(|disk| disk.sync_folder(number.0)), reply);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = match self.ask(|disk| disk.list(number.0)) {
            Ok(names) => names,
            Err(error) => return reply.error(error),
        };
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, status)) in (offset + 1..).zip(names.into_iter().skip(skipped)) {
            if reply.add(INodeNo(status.number), next, file_type(status), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (all, used) = self.0.disk().room();
        let free = all.saturating_sub(used);
        reply.statfs(all, free, free, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}

fn entry(found: Result<Status, Errno>, reply: ReplyEntry) {
    match found {
        Ok(status) => reply.entry(&FORGET_AT_ONCE, &attributes(status), Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attributes_reply(found: Result<Status, Errno>, reply: ReplyAttr) {
    match found {
        Ok(status) => reply.attr(&FORGET_AT_ONCE, &attributes(status)),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// Times are always 1970: nothing under test asks for them, and no clock is read here.
fn attributes(status: Status) -> FileAttr {
    FileAttr {
        ino: INodeNo(status.number),
        size: status.length,
        blocks: status.length.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(status),
        perm: status.mode,
        nlink: if status.is_folder { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

const fn file_type(status: Status) -> FileType {
    if status.is_folder { FileType::Directory } else { FileType::RegularFile }
}

/// The permission bits of a mode.
fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

const DEVICE: &str = "/dev/fuse";
const BLOCK_BYTES: u32 = 4096;
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// The kernel must ask each time: what it remembered would outlive a power cut.
const FORGET_AT_ONCE: Duration = Duration::ZERO;
const UNCACHED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;
