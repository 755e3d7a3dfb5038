//! `store`: the policy store in a node's folder, looked at, written to a file and read back while no agent runs there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crdt_store::{
    BundleError, Replica, Report, SledStorage, StoreError, examine, merge_bundle, open_frozen, save_bundle,
};
use transport::Clock as _;
use transport::trust::Identity;

use super::{CliError, Exit, print};
use crate::clock::SystemClock;
use crate::store::{authority, folder};

/// The store in the folder of a node whose agent does not run.
#[derive(Debug, clap::Subcommand)]
pub(super) enum StoreVerb {
    Verify(Verify),
    Export(Export),
    Import(Import),
}

impl StoreVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Verify(verb) => verb.run(),
            Self::Export(verb) => verb.run(),
            Self::Import(verb) => verb.run(),
        }
    }
}

/// Checks every record and signature, and says `ok` or what is wrong; exits 1 when anything is. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram store verify --dir a")]
pub(super) struct Verify {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Verify {
    fn run(self) -> Result<Exit, CliError> {
        let closed = Closed::new(&self.dir)?;
        closed.must_exist()?;
        let (identity, random, now_ms) = closed.parts();
        let mesh = identity.mesh().to_owned();
        let report = examine(&closed.folder, authority(identity), &mesh, random, now_ms)
            .map_err(|fault| closed.failed(fault))?;
        print(&report_text(&closed.folder, &report))?;
        Ok(if report.faults.is_empty() { Exit::Ok } else { Exit::Failed })
    }
}

/// Writes everything live, signed as it is, into one file that any node of the mesh can import. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram store export --dir a shop.bundle")]
pub(super) struct Export {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The file; replaced whole where there is one
    file: PathBuf,
}

impl Export {
    fn run(self) -> Result<Exit, CliError> {
        let closed = Closed::new(&self.dir)?;
        closed.must_exist()?;
        let (identity, random, now_ms) = closed.parts();
        let mesh = identity.mesh().to_owned();
        let replica = open_frozen(&closed.folder, authority(identity), &mesh, random, now_ms)
            .map_err(|fault| closed.failed(fault))?;
        let ops = save_bundle(&replica, &self.file).map_err(|fault| bundle_error(&self.file, fault))?;
        print(&format!("{ops} ops written to {}\n", self.file.display()))?;
        Ok(Exit::Ok)
    }
}

/// Merges a file of `export`: each op is verified by its signature, and what is newer here stays. The agent spreads it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram store import --dir b shop.bundle")]
pub(super) struct Import {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The file
    file: PathBuf,
}

impl Import {
    fn run(self) -> Result<Exit, CliError> {
        let closed = Closed::new(&self.dir)?;
        let mut file = File::open(&self.file).map_err(|source| CliError::File { path: self.file.clone(), source })?;
        let (identity, random, now_ms) = closed.parts();
        let mesh = identity.mesh().to_owned();
        let mut replica = SledStorage::open(&closed.folder)
            .map_err(StoreError::from)
            .and_then(|storage| Replica::open(Box::new(storage), authority(identity), &mesh, random, now_ms))
            .map_err(|fault| closed.failed(fault))?;
        let merged = merge_bundle(&mut replica, &mut file, now_ms).map_err(|fault| bundle_error(&self.file, fault));
        // What was merged is durable already; the fault that counts is the one of merging.
        let closing = replica.close();
        let merged = merged?;
        closing.map_err(|fault| closed.failed(fault))?;
        let refused = merged.refused.len();
        let known = merged.ops.saturating_sub(merged.new).saturating_sub(refused);
        print(&format!("{} ops: {} new, {known} known or superseded, {refused} refused\n", merged.ops, merged.new))?;
        for (dot, reason) in &merged.refused {
            let which = dot.map_or_else(|| "an op".to_owned(), |dot| dot.to_string());
            print(&format!("refused  {which}: {reason}\n"))?;
        }
        Ok(if refused == 0 { Exit::Ok } else { Exit::Invalid })
    }
}

/// A node's folder that no agent uses, for as long as this lives.
struct Closed {
    folder: PathBuf,
    dir: PathBuf,
    identity: Arc<Identity>,
    _lock: File,
}

impl Closed {
    fn new(dir: &Path) -> Result<Self, CliError> {
        let lock = crate::agent::lock(dir).map_err(CliError::Agent)?;
        let identity = Arc::new(Identity::load(dir)?);
        Ok(Self { folder: folder(dir), dir: dir.to_owned(), identity, _lock: lock })
    }

    fn must_exist(&self) -> Result<(), CliError> {
        if self.folder.exists() {
            return Ok(());
        }
        let hint = "the agent makes it when it first starts: `marram agent --dir DIR`";
        Err(CliError::Usage { message: format!("there is no store in {} yet", self.dir.display()), hint })
    }

    /// Identity, fresh random bytes and the time, as opening asks for them.
    fn parts(&self) -> (Arc<Identity>, [u8; 16], u64) {
        let now_ms = u64::try_from(SystemClock::start().unix().as_millis()).unwrap_or(u64::MAX);
        (Arc::clone(&self.identity), rand::random(), now_ms)
    }

    fn failed(&self, fault: StoreError) -> CliError {
        CliError::Store { path: self.folder.clone(), source: Box::new(fault) }
    }
}

fn bundle_error(path: &Path, source: BundleError) -> CliError {
    CliError::Bundle { path: path.to_owned(), source: Box::new(source) }
}

/// What `verify` prints: the numbers, then `ok` or a line for each fault.
pub(super) fn report_text(folder: &Path, report: &Report) -> String {
    let root = report.root.map_or_else(|| "unknown".to_owned(), |root| crate::state::hex(&root));
    let snapshot = report.snapshot_ops.map_or_else(|| "none that reads".to_owned(), |ops| format!("{ops} ops"));
    let mut text = format!(
        "store      {}\ndocuments  {}\nconflicts  {}\ntombstones {}\nops        {}\nroot       {root}\n\
         disk       {} bytes\nsnapshot   {snapshot}\n",
        folder.display(),
        report.documents,
        report.conflicts,
        report.tombstones,
        report.ops,
        report.disk_bytes,
    );
    if report.faults.is_empty() {
        text.push_str("ok\n");
        return text;
    }
    for fault in &report.faults {
        text.push_str(&format!("fault      {fault}\n"));
    }
    text.push_str(
        "the agent sets a damaged store aside when it starts, and refills it from its snapshot and its peers\n",
    );
    text
}
