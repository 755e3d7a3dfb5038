//! What a person would do without the store: a table of documents with an index, written by transactions.

use std::path::Path;

use rusqlite::{Connection, params};

use super::documents::{KIND, SCOPE, metadata, name, spec};
use super::node::NOW_MS;

/// A database in write-ahead mode that syncs at every commit.
#[derive(Debug)]
pub(super) struct Sqlite(Connection);

impl Sqlite {
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let connection = Connection::open(folder.join("documents.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS documents (
                 kind TEXT NOT NULL, scope TEXT NOT NULL, name TEXT NOT NULL,
                 metadata BLOB NOT NULL, spec BLOB NOT NULL, version INTEGER NOT NULL, written_ms INTEGER NOT NULL,
                 PRIMARY KEY (kind, scope, name));
             CREATE INDEX IF NOT EXISTS documents_by_scope ON documents (scope, kind);",
        )?;
        Ok(Self(connection))
    }

    /// A new database with so many documents in their first version.
    pub(super) fn filled(folder: &Path, count: usize) -> anyhow::Result<()> {
        Self::open(folder)?.write(0..count, 0)
    }

    /// Writes documents in one transaction.
    pub(super) fn write(&mut self, numbers: impl Iterator<Item = usize>, version: usize) -> anyhow::Result<()> {
        let transaction = self.0.transaction()?;
        {
            let mut statement = transaction.prepare_cached(
                "INSERT INTO documents VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET metadata = ?4, spec = ?5, version = ?6, written_ms = ?7",
            )?;
            for number in numbers {
                statement.execute(params![
                    KIND,
                    SCOPE,
                    name(number),
                    metadata(number, version),
                    spec(number, version),
                    i64::try_from(version)?,
                    i64::try_from(NOW_MS)?,
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Reads every document; returns how many there are.
    pub(super) fn read_all(&self) -> anyhow::Result<usize> {
        let mut statement = self.0.prepare("SELECT name, metadata, spec FROM documents")?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let spec: Vec<u8> = row.get(2)?;
            count += usize::from(!spec.is_empty());
        }
        Ok(count)
    }
}
