//! The agent's memory: what it is about to do, before it does it; what is attached; how operations ended.
//!
//! SQLite with a write-ahead log and `synchronous=FULL`: a commit that returned survives a power cut. One thread owns the
//! connection. No secret is ever in it.
//!
//! ```text
//!   begin(operation)                   finish(operation, outcome, change)
//!   ── intent committed ──▶ effects ──▶ ── outcome and records committed together ──▶ reply
//!                             │
//!                             └── crash: `unfinished()` at the next start finds the intent
//! ```

use crate::operation::{Operation, OperationId, Outcome, Plan};
use driver::{Attached, AttachmentId, Error, Locator, Residual, Result};
use export::{Export, ExportId};
use host::Host;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};
use tokio::sync::{mpsc, oneshot};

/// The layout of the tables, kept in `user_version`. A journal of a later layout is refused.
const LAYOUT: i64 = 2;

const SCHEMA: &str = "
    CREATE TABLE attachment (
        id     TEXT PRIMARY KEY,
        volume TEXT NOT NULL,            -- the locator's key: attachments of one volume share its device
        record TEXT NOT NULL             -- JSON
    ) STRICT;
    CREATE INDEX attachment_volume ON attachment (volume);
    CREATE TABLE operation (
        id      TEXT PRIMARY KEY,        -- UUID version 7: ordered by time
        subject TEXT NOT NULL,
        locator TEXT NOT NULL,
        plan    TEXT NOT NULL,           -- JSON
        started INTEGER NOT NULL,        -- milliseconds since 1970
        boot    TEXT NOT NULL,           -- the boot id of that time
        ended   INTEGER,                 -- NULL: unfinished
        outcome TEXT                     -- JSON
    ) STRICT;
    CREATE INDEX operation_unfinished ON operation (id) WHERE ended IS NULL;
    CREATE TABLE place (                 -- where volumes were managed, so that `volumes` looks there
        scope TEXT PRIMARY KEY
    ) STRICT;
";

/// What layout 2 has that layout 1 had not.
const SCHEMA_OF_EXPORTS: &str = "
    CREATE TABLE export (
        id     TEXT PRIMARY KEY,
        volume TEXT NOT NULL,            -- the locator's key
        record TEXT NOT NULL             -- JSON
    ) STRICT;
    CREATE INDEX export_volume ON export (volume);
";

/// An attachment as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: AttachmentId,
    pub(crate) attached: Attached,
    /// It comes back after a reboot.
    pub(crate) persistent: bool,
    /// The boot in which it was made: its footprint means nothing in another.
    pub(crate) boot_id: String,
    /// Milliseconds since 1970.
    pub(crate) created_ms: i64,
    /// What a detach could not remove.
    pub(crate) residuals: Vec<Residual>,
}

/// An export as the journal keeps it: without its password, which is derived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportRecord {
    pub(crate) export: Export,
    /// The LV, and how it was before it was activated.
    pub(crate) attached: Attached,
    pub(crate) size_bytes: u64,
    /// The boot in which it was last served.
    pub(crate) boot_id: String,
    /// Milliseconds since 1970.
    pub(crate) created_ms: i64,
    /// What an unexport could not remove.
    pub(crate) residuals: Vec<Residual>,
}

/// What changes in the records when an operation ends, in the same commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// These records are put in place.
    Put(Vec<Record>),
    /// This record goes.
    Remove(AttachmentId),
    /// Volumes are managed here.
    Place(String),
    /// These exports are put in place.
    PutExports(Vec<ExportRecord>),
    /// This export goes.
    RemoveExport(ExportId),
    /// Both.
    Both(Box<Change>, Box<Change>),
}

/// A handle to the thread that owns the database.
#[derive(Clone)]
pub(crate) struct Journal {
    jobs: mpsc::Sender<Job>,
    host: Arc<dyn Host>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite's word.
    #[error("the journal {}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// It was written by a later version.
    #[error("the journal {} has layout {found}, this mortard knows {LAYOUT}; start the version that wrote it", path.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
}

impl Journal {
    /// Opens or makes the journal. Blocks for the disk; meant for the start.
    pub(crate) fn open(path: &Path, host: Arc<dyn Host>) -> std::result::Result<Self, JournalError> {
        let failed = |source| JournalError::Sqlite { path: path.into(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        prepare(&mut connection, path)?;
        let (jobs, mut inbox) = mpsc::channel::<Job>(64);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                while let Some(job) = inbox.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|error| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        Ok(Self { jobs, host })
    }

    async fn ask<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            let _nobody = reply.send(work(connection));
        });
        let gone = |_| Error::Host { doing: doing.into(), source: "the journal's thread has ended".into() };
        self.jobs
            .send(job)
            .await
            .map_err(|_| Error::Host { doing: doing.into(), source: "the journal's thread has ended".into() })?;
        answer.await.map_err(gone)?.map_err(|error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                Error::Full { what: "the journal's disk".into(), why: error.to_string() }
            }
            _ => Error::host(doing)(error),
        })
    }

    /// Commits the intent. After this, a crash is recovered.
    pub(crate) async fn begin(&self, operation: &Operation) -> Result<()> {
        let (id, subject, locator) =
            (operation.id.to_string(), operation.plan.subject(), operation.plan.locator().to_string());
        let (plan, started, boot) = (json(&operation.plan)?, operation.started_ms, operation.boot_id.clone());
        let what = format!("journal: begin {}", operation.plan.verb());
        self.ask("write the intent to the journal", move |db| {
            db.execute(
                "INSERT INTO operation (id, subject, locator, plan, started, boot) VALUES (?, ?, ?, ?, ?, ?)",
                params![id, subject, locator, plan, started, boot],
            )
        })
        .await?;
        self.host.effect(&what).await;
        Ok(())
    }

    /// Commits the outcome, and with it what changed in the records.
    pub(crate) async fn finish(
        &self,
        operation: &Operation,
        outcome: &Outcome,
        change: Change,
        keep: u32,
    ) -> Result<()> {
        let (id, ended, outcome) = (operation.id.to_string(), outcome.ended_ms, json(outcome)?);
        let changes = change.into_rows()?;
        self.ask("write the outcome to the journal", move |db| {
            let all = db.transaction()?;
            all.execute("UPDATE operation SET ended = ?, outcome = ? WHERE id = ?", params![ended, outcome, id])?;
            all.execute(
                "DELETE FROM operation WHERE ended IS NOT NULL AND id <= \
                 (SELECT id FROM operation WHERE ended IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
                params![keep],
            )?;
            for row in changes {
                row.apply(&all)?;
            }
            all.commit()
        })
        .await?;
        self.host.effect(&format!("journal: finish {}", operation.plan.verb())).await;
        Ok(())
    }

    /// Notes that an operation could not be undone, and why; it stays unfinished.
    pub(crate) async fn stuck(&self, id: OperationId, outcome: &Outcome) -> Result<()> {
        let (id, outcome) = (id.to_string(), json(outcome)?);
        self.ask("note a failed recovery in the journal", move |db| {
            db.execute("UPDATE operation SET outcome = ? WHERE id = ?", params![outcome, id])
        })
        .await?;
        Ok(())
    }

    /// Changes records outside an operation: what a reboot did to them.
    pub(crate) async fn change(&self, change: Change) -> Result<()> {
        let changes = change.into_rows()?;
        self.ask("change the journal's records", move |db| {
            let all = db.transaction()?;
            for row in changes {
                row.apply(&all)?;
            }
            all.commit()
        })
        .await?;
        self.host.effect("journal: change").await;
        Ok(())
    }

    pub(crate) async fn attachment(&self, id: &AttachmentId) -> Result<Option<Record>> {
        let id = id.to_string();
        let found = self
            .ask("read the journal", move |db| {
                db.query_row("SELECT record FROM attachment WHERE id = ?", [id], |row| row.get::<_, String>(0))
                    .optional()
            })
            .await?;
        found.map(|text| parse(&text)).transpose()
    }

    /// All attachments, ordered by id.
    pub(crate) async fn attachments(&self) -> Result<Vec<Record>> {
        self.records("SELECT record FROM attachment ORDER BY id", None).await
    }

    /// The attachments of one volume, ordered by id.
    pub(crate) async fn attachments_of(&self, volume: &str) -> Result<Vec<Record>> {
        self.records("SELECT record FROM attachment WHERE volume = ? ORDER BY id", Some(volume.to_owned())).await
    }

    pub(crate) async fn export(&self, id: &ExportId) -> Result<Option<ExportRecord>> {
        let found = self.records("SELECT record FROM export WHERE id = ?", Some(id.to_string())).await?;
        Ok(found.into_iter().next())
    }

    /// All exports, ordered by id.
    pub(crate) async fn exports(&self) -> Result<Vec<ExportRecord>> {
        self.records("SELECT record FROM export ORDER BY id", None).await
    }

    /// The exports of one volume, ordered by id.
    pub(crate) async fn exports_of(&self, volume: &str) -> Result<Vec<ExportRecord>> {
        self.records("SELECT record FROM export WHERE volume = ? ORDER BY id", Some(volume.to_owned())).await
    }

    async fn records<T: DeserializeOwned>(&self, query: &'static str, argument: Option<String>) -> Result<Vec<T>> {
        let rows = self
            .ask("read the journal", move |db| {
                let mut statement = db.prepare_cached(query)?;
                let rows = statement.query_map(rusqlite::params_from_iter(argument), |row| row.get::<_, String>(0))?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        rows.iter().map(|text| parse(text)).collect()
    }

    /// Intents without an outcome, oldest first: what a crash interrupted.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Operation>> {
        self.operations_where("WHERE ended IS NULL ORDER BY id", None).await
    }

    /// The newest operations first.
    pub(crate) async fn operations(&self, running_only: bool, limit: u32) -> Result<Vec<Operation>> {
        let query =
            if running_only { "WHERE ended IS NULL ORDER BY id DESC LIMIT ?" } else { "ORDER BY id DESC LIMIT ?" };
        self.operations_where(query, Some(limit.to_string())).await
    }

    pub(crate) async fn operation(&self, id: OperationId) -> Result<Option<Operation>> {
        Ok(self.operations_where("WHERE id = ?", Some(id.to_string())).await?.pop())
    }

    async fn operations_where(&self, condition: &'static str, argument: Option<String>) -> Result<Vec<Operation>> {
        let rows = self
            .ask("read the journal", move |db| {
                let query = format!("SELECT id, plan, started, outcome, ended, boot FROM operation {condition}");
                let mut statement = db.prepare_cached(&query)?;
                let rows = statement.query_map(rusqlite::params_from_iter(argument), OperationRow::read)?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        rows.into_iter().map(OperationRow::parse).collect()
    }

    /// Where volumes were managed.
    pub(crate) async fn places(&self) -> Result<Vec<String>> {
        self.ask("read the journal", |db| {
            let mut statement = db.prepare_cached("SELECT scope FROM place ORDER BY scope")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        })
        .await
    }
}

fn prepare(connection: &mut Connection, path: &Path) -> std::result::Result<(), JournalError> {
    let failed = |source| JournalError::Sqlite { path: path.into(), source };
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    match found {
        LAYOUT => Ok(()),
        0 | 1 => {
            let all = connection.transaction().map_err(failed)?;
            if found == 0 {
                all.execute_batch(SCHEMA).map_err(failed)?;
            }
            all.execute_batch(SCHEMA_OF_EXPORTS).map_err(failed)?;
            name_ways(&all).map_err(failed)?;
            all.pragma_update(None, "user_version", LAYOUT).map_err(failed)?;
            all.commit().map_err(failed)
        }
        found => Err(JournalError::Later { path: path.into(), found }),
    }
}

/// Layout 1 noted of an iSCSI device whether it was here before; layout 2 notes which ways of it were.
fn name_ways(db: &Connection) -> rusqlite::Result<()> {
    for (table, column, root) in [("attachment", "record", "$.attached"), ("operation", "plan", "$.attached")] {
        let mut old = db.prepare(&format!(
            "SELECT id, json_extract({column}, '{root}.spec.locator') FROM {table} \
             WHERE json_extract({column}, '{root}.footprint.device_was_here')"
        ))?;
        let rows = old.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
            let Ok(Locator::Iscsi(unit)) = row.1.parse::<Locator>() else { continue };
            let ways = serde_json::to_string(&unit.ways)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            db.execute(
                &format!("UPDATE {table} SET {column} = json_set({column}, '{root}.footprint.were_here', json(?)) WHERE id = ?"),
                params![ways, row.0],
            )?;
        }
    }
    Ok(())
}

/// A change of one row, ready for the journal's thread.
enum RowChange {
    Put { id: String, volume: String, record: String },
    Remove(String),
    Place(String),
    PutExport { id: String, volume: String, record: String },
    RemoveExport(String),
}

impl Change {
    fn into_rows(self) -> Result<Vec<RowChange>> {
        let put = |record: Record| {
            let volume = record.attached.spec.locator.key();
            Ok(RowChange::Put { id: record.id.to_string(), volume, record: json(&record)? })
        };
        match self {
            Self::None => Ok(Vec::new()),
            Self::Put(records) => records.into_iter().map(put).collect(),
            Self::Remove(id) => Ok(vec![RowChange::Remove(id.to_string())]),
            Self::PutExports(records) => records
                .into_iter()
                .map(|record| {
                    let (id, volume) = (record.export.id.to_string(), record.attached.spec.locator.key());
                    Ok(RowChange::PutExport { id, volume, record: json(&record)? })
                })
                .collect(),
            Self::RemoveExport(id) => Ok(vec![RowChange::RemoveExport(id.to_string())]),
            Self::Both(one, other) => Ok([one.into_rows()?, other.into_rows()?].into_iter().flatten().collect()),
            Self::Place(scope) => Ok(vec![RowChange::Place(scope)]),
        }
    }
}

impl RowChange {
    fn apply(self, db: &Connection) -> rusqlite::Result<usize> {
        match self {
            Self::Put { id, volume, record } => db.execute(
                "INSERT OR REPLACE INTO attachment (id, volume, record) VALUES (?, ?, ?)",
                params![id, volume, record],
            ),
            Self::Remove(id) => db.execute("DELETE FROM attachment WHERE id = ?", [id]),
            Self::Place(scope) => db.execute("INSERT OR IGNORE INTO place (scope) VALUES (?)", [scope]),
            Self::PutExport { id, volume, record } => db.execute(
                "INSERT OR REPLACE INTO export (id, volume, record) VALUES (?, ?, ?)",
                params![id, volume, record],
            ),
            Self::RemoveExport(id) => db.execute("DELETE FROM export WHERE id = ?", [id]),
        }
    }
}

struct OperationRow {
    id: String,
    plan: String,
    started_ms: i64,
    outcome: Option<String>,
    ended: bool,
    boot_id: String,
}

impl OperationRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            plan: row.get(1)?,
            started_ms: row.get(2)?,
            outcome: row.get(3)?,
            ended: row.get::<_, Option<i64>>(4)?.is_some(),
            boot_id: row.get(5)?,
        })
    }

    fn parse(self) -> Result<Operation> {
        let plan: Plan = parse(&self.plan)?;
        let outcome: Option<Outcome> = self.outcome.as_deref().map(parse).transpose()?;
        let (started_ms, boot_id, ended) = (self.started_ms, self.boot_id, self.ended);
        Ok(Operation { id: self.id.parse()?, plan, started_ms, boot_id, outcome, ended })
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(Error::host("write a record for the journal"))
}

fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(Error::host("read a record of the journal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::Footprint;

    #[test]
    fn a_device_that_was_here_in_layout_1_still_was_in_layout_2() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(SCHEMA).unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
        let record = |was_here: bool| {
            serde_json::json!({
                "id": "a", "persistent": false, "boot_id": "x", "created_ms": 0, "residuals": [],
                "attached": {
                    "spec": {
                        "locator": "iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/7", "read_only": false,
                        "expected_wwn": null, "expected_size": null,
                    },
                    "footprint": { "backend": "iscsi", "device_was_here": was_here },
                    "identity": null,
                },
            })
        };
        for (id, was_here) in [("a", true), ("b", false)] {
            let row = params![id, "v", record(was_here).to_string()];
            db.execute("INSERT INTO attachment (id, volume, record) VALUES (?, ?, ?)", row).unwrap();
        }
        prepare(&mut db, Path::new("journal")).unwrap();
        let ways = |id: &str| {
            let query = "SELECT record FROM attachment WHERE id = ?";
            let text: String = db.query_row(query, [id], |row| row.get(0)).unwrap();
            match parse::<Record>(&text).unwrap().attached.footprint {
                Footprint::Iscsi { were_here, .. } => were_here.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((ways("a"), ways("b")), (1, 0));
    }
}
