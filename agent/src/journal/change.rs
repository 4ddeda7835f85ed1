//! What changes in the records, and how durable a commit of it has to be.

use super::{ExportRecord, Managed, Plan, Record, RescueRecord, json};
use driver::{Backend, Result, VolumeId};
use export::ExportId;
use rusqlite::{Connection, params};
use uuid::Uuid;

/// What changes in the records when an operation ends, in the same commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// These records are put in place.
    Put(Vec<Record>),
    /// This record goes.
    Remove(Box<Record>),
    /// Volumes are managed here.
    Place(String),
    /// This volume has a managed name now.
    Managed(Box<Managed>),
    /// The volume of this id has none any more.
    Released(VolumeId, Backend),
    /// These exports are put in place.
    PutExports(Vec<ExportRecord>),
    /// This export goes.
    RemoveExport(ExportId),
    /// This rescue is put in place.
    PutRescue(Box<RescueRecord>),
    /// The rescue of this instance goes.
    RemoveRescue(Uuid),
    /// Each of these.
    All(Vec<Change>),
}

impl Change {
    /// Whether it changes what will be of the next boot.
    pub(super) fn outlives_this_boot(&self) -> bool {
        match self {
            Self::None => false,
            Self::Put(records) => records.iter().any(|record| record.persistent),
            Self::Remove(record) => record.persistent,
            Self::All(changes) => changes.iter().any(Self::outlives_this_boot),
            _ => true,
        }
    }
}

/// What a commit has to survive.
///
/// The kernel has all of it as soon as it returns, and keeps it if the agent is killed; to survive a power cut it has to be
/// on the disk, and that is dear. A later commit that is there takes all before it along.
///
/// | operation | intent | outcome |
/// |---|---|---|
/// | attach | a power cut, if it may leave something on a disk; else a crash | a crash; persistent: a power cut |
/// | detach | a crash: what is attached is forgotten after a power cut, or persistent and back | as an attach's |
/// | all others | a power cut | a power cut |
///
/// That costs no promise: a power cut takes away what an attach has made, and the next boot forgets what is not persistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survives {
    Crash,
    PowerCut,
}

impl Survives {
    pub(super) fn intent_of(plan: &Plan) -> Self {
        match plan {
            Plan::Attach { attached, .. } if attached.spec.locator.backend().attach_outlives_a_boot() => Self::PowerCut,
            Plan::Attach { .. } | Plan::Detach { .. } => Self::Crash,
            _ => Self::PowerCut,
        }
    }

    pub(super) fn outcome_of(plan: &Plan, change: &Change) -> Self {
        match plan {
            Plan::Attach { .. } | Plan::Detach { .. } if !change.outlives_this_boot() => Self::Crash,
            _ => Self::PowerCut,
        }
    }

    /// One transaction that does.
    pub(super) fn commit<T>(
        self,
        db: &mut Connection,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let level = match self {
            Self::Crash => "NORMAL",
            Self::PowerCut => "FULL",
        };
        db.pragma_update(None, "synchronous", level)?;
        let all = db.transaction()?;
        let done = work(&all)?;
        all.commit()?;
        Ok(done)
    }

    /// As it is told to the machine.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Crash => ", not yet on the disk",
            Self::PowerCut => "",
        }
    }
}

/// A change of one row, ready for the journal's thread.
pub(super) enum RowChange {
    Put { id: String, volume: String, record: String },
    Remove(String),
    Place(String),
    Managed { id: String, backend: String, volume: String, identity: String },
    Released { id: String, backend: String },
    PutExport { id: String, volume: String, record: String },
    RemoveExport(String),
    PutRescue { instance: String, record: String },
    RemoveRescue(String),
}

impl Change {
    pub(super) fn into_rows(self) -> Result<Vec<RowChange>> {
        let put = |record: Record| {
            let volume = record.attached.spec.locator.key();
            Ok(RowChange::Put { id: record.id.to_string(), volume, record: json(&record)? })
        };
        match self {
            Self::None => Ok(Vec::new()),
            Self::Put(records) => records.into_iter().map(put).collect(),
            Self::Remove(record) => Ok(vec![RowChange::Remove(record.id.to_string())]),
            Self::PutExports(records) => records
                .into_iter()
                .map(|record| {
                    let (id, volume) = (record.export.id.to_string(), record.attached.spec.locator.key());
                    Ok(RowChange::PutExport { id, volume, record: json(&record)? })
                })
                .collect(),
            Self::RemoveExport(id) => Ok(vec![RowChange::RemoveExport(id.to_string())]),
            Self::PutRescue(record) => {
                Ok(vec![RowChange::PutRescue { instance: record.instance.to_string(), record: json(&record)? }])
            }
            Self::RemoveRescue(instance) => Ok(vec![RowChange::RemoveRescue(instance.to_string())]),
            Self::All(changes) => {
                let rows: Result<Vec<_>> = changes.into_iter().map(Self::into_rows).collect();
                Ok(rows?.into_iter().flatten().collect())
            }
            Self::Place(scope) => Ok(vec![RowChange::Place(scope)]),
            Self::Managed(managed) => {
                let Managed { id, at, identity } = *managed;
                let (backend, identity) = (at.backend().to_string(), json(&identity)?);
                Ok(vec![RowChange::Managed { id: id.to_string(), backend, volume: at.key(), identity }])
            }
            Self::Released(id, backend) => {
                Ok(vec![RowChange::Released { id: id.to_string(), backend: backend.to_string() }])
            }
        }
    }
}

pub(super) fn apply(changes: Vec<RowChange>, db: &Connection) -> rusqlite::Result<()> {
    changes.into_iter().try_for_each(|row| row.apply(db).map(drop))
}

impl RowChange {
    pub(super) fn apply(self, db: &Connection) -> rusqlite::Result<usize> {
        match self {
            Self::Put { id, volume, record } => db.execute(
                "INSERT OR REPLACE INTO attachment (id, volume, record) VALUES (?, ?, ?)",
                params![id, volume, record],
            ),
            Self::Remove(id) => db.execute("DELETE FROM attachment WHERE id = ?", [id]),
            Self::Place(scope) => db.execute("INSERT OR IGNORE INTO place (scope) VALUES (?)", [scope]),
            Self::Managed { id, backend, volume, identity } => {
                // A name is one volume's: whoever had it before has it no more.
                db.execute("DELETE FROM managed WHERE volume = ?", [&volume])?;
                db.execute(
                    "INSERT OR REPLACE INTO managed (id, backend, volume, identity) VALUES (?, ?, ?, ?)",
                    params![id, backend, volume, identity],
                )
            }
            Self::Released { id, backend } => {
                db.execute("DELETE FROM managed WHERE id = ? AND backend = ?", [id, backend])
            }
            Self::PutExport { id, volume, record } => db.execute(
                "INSERT OR REPLACE INTO export (id, volume, record) VALUES (?, ?, ?)",
                params![id, volume, record],
            ),
            Self::RemoveExport(id) => db.execute("DELETE FROM export WHERE id = ?", [id]),
            Self::PutRescue { instance, record } => {
                db.execute("INSERT OR REPLACE INTO rescue (instance, record) VALUES (?, ?)", params![instance, record])
            }
            Self::RemoveRescue(instance) => db.execute("DELETE FROM rescue WHERE instance = ?", [instance]),
        }
    }
}
