//! Memory that a database takes, in a process that does nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use crdt_store::WriteMeta;

use super::documents::edit;
use super::node::{NOW_MS, Node};
use super::sqlite::Sqlite;
use crate::process::{resident_kib, status_kib};

/// Writes before memory is looked at, and the pause after each: allocators keep what was freed for ten seconds.
const WRITES: usize = 250;
const PAUSE: Duration = Duration::from_millis(50);
/// A version that no other write of this program has.
const VERSION: usize = 900_000_000;

/// Which of the two is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// The policy store on sled.
    Store,
    /// The table of documents.
    Sqlite,
}

/// What opening and serving added, in MB: anonymous memory, and pages of files (code, mostly).
#[derive(Debug, Clone, Copy)]
pub(super) struct Added {
    pub(super) anonymous_mb: f64,
    pub(super) file_mb: f64,
    /// All that was resident at the worst moment, while opening.
    pub(super) peak_mb: f64,
}

/// Opens each database in a process of its own.
pub(super) fn measure(node: &Node, store: &Path, sqlite: &Path) -> anyhow::Result<[Added; 2]> {
    Ok([ask("store", store, &node.identity_folder)?, ask("sqlite", sqlite, &node.identity_folder)?])
}

fn ask(engine: &str, database: &Path, identity: &Path) -> anyhow::Result<Added> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["store-memory", engine]).arg(database).arg(identity).output()?;
    anyhow::ensure!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [anonymous_mb, file_mb, peak_mb] = *figures.as_slice() else { anyhow::bail!("not three figures: {text}") };
    Ok(Added { anonymous_mb, file_mb, peak_mb })
}

/// The other process: opens, reads every document, writes some, and prints what that added.
pub(crate) fn tell_memory(engine: Engine, database: &Path, identity: &Path) -> anyhow::Result<()> {
    let node = Node::load(identity, 1 << 20)?;
    let before = resident_kib()?;
    let after = match engine {
        Engine::Store => {
            let mut replica = node.open(database)?;
            let bytes: usize = replica.documents().flat_map(|view| view.sections.into_values()).map(|b| b.len()).sum();
            anyhow::ensure!(bytes > 0, "an empty store measures nothing");
            for number in 0..WRITES {
                replica.write(vec![edit(number, VERSION)], WriteMeta::default(), NOW_MS)?;
                // As a node does it once a minute, with its snapshot.
                if number == WRITES / 5 {
                    replica.compact()?;
                }
                pause();
            }
            let after = resident_kib()?;
            replica.close()?;
            after
        }
        Engine::Sqlite => {
            let mut opened = Sqlite::open(database)?;
            anyhow::ensure!(opened.read_all()? > 0, "an empty database measures nothing");
            for number in 0..WRITES {
                opened.write([number].into_iter(), VERSION)?;
                pause();
            }
            resident_kib()?
        }
    };
    let peak = status_kib(std::process::id(), "VmHWM")? - before.0 - before.1;
    println!("{:.2} {:.2} {:.2}", (after.0 - before.0) / 1024.0, (after.1 - before.1) / 1024.0, peak / 1024.0);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "memory is looked at after a while of light work")]
fn pause() {
    std::thread::sleep(PAUSE);
}
