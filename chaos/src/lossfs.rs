//! A file system in memory that forgets what was not synced when its power is cut, to be mounted through FUSE.
//!
//! Killing a process proves nothing about durability: the kernel keeps what was written. Here `fsync` and `fdatasync`
//! of a file keep its content, `fsync` of a folder keeps the names in it, and nothing else keeps anything; in
//! particular `sync_file_range` does not reach a FUSE file system and so counts for nothing. [`LossFs::cut`] takes all
//! the rest away, whole ([`Cut::Clean`]) or page by page and sector by sector as a seed says ([`Cut::Torn`]), and every
//! call fails with `EIO` until [`LossFs::power_on`]. [`LossFs::cut_after`] cuts at a chosen step, which reaches the
//! moments between a write and its sync that no timer would hit.
//!
//! Other faults: [`LossFs::set_capacity`] makes it full, [`LossFs::fail_next`] makes writes or syncs fail. A failed
//! sync does what Linux does: its pages count as clean afterwards although the disk never saw them, and each handle
//! that was open hears of it once.
//!
//! What it is stricter in than ext4: a name survives only when its own folder was synced; syncing the file does not
//! keep it, and neither does time. What it lacks: hard and symbolic links, extended attributes, shared mappings. Its
//! memory is bounded by the capacity: at most that much as seen by processes, and that much again as synced.

mod content;
mod disk;
mod mount;

pub use disk::{Call, Cut};
pub use mount::{LossFs, obstacle};

#[cfg(test)]
mod tests;
