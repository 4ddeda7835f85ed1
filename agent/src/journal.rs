//! The agent's memory: what it is about to do, before it does it; what is attached; how operations ended.
//!
//! SQLite with a write-ahead log: a commit that returned survives the end of the agent, however it comes, and a power cut
//! if it has to (see [`Survives`]). One thread owns the connection. No secret is ever in it.
//!
//! ```text
//!   begin(operation)                   finish(operation, outcome, change)
//!   ── intent committed ──▶ effects ──▶ ── outcome and records committed together ──▶ reply
//!                             │
//!                             └── crash: `unfinished()` at the next start finds the intent
//! ```
//!
//! Operations are ordered as they were begun, by the number of their row. Their ids hold the time of day, which can be set
//! back.
//!
//! A journal that is full refuses commits and goes on to be read. One that is damaged, or of a later layout, is left as it
//! was found: nothing is written to it, not even by SQLite itself when it closes it, and the agent is read-only.

mod change;
mod layout;

pub(crate) use change::Change;

use crate::operation::{Operation, OperationId, Outcome, Plan, RescueRecord};
use change::{Survives, apply};
use driver::{Attached, AttachmentId, Backend, Error, Identity, Locator, Residual, Result, VolumeId};
use export::{Export, ExportId};
use host::Host;
use layout::{JournalError, beside, is_damage, open};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, path::Path, sync::Arc, thread};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// How many attachments there are, or will be when what is under way has ended, without one; 0 if that one is there.
const ATTACHMENTS_BUT: &str = "
    SELECT iif(EXISTS (SELECT 1 FROM attachment WHERE id = ?1), 0,
        (SELECT count(*) FROM attachment) +
        (SELECT count(*) FROM operation WHERE ended IS NULL AND plan ->> 'verb' = 'attach'
            AND subject NOT IN (SELECT id FROM attachment)))
";

const ATTACHMENT: &str = "SELECT record FROM attachment WHERE id = ?";
const ATTACHMENTS_OF: &str = "SELECT record FROM attachment WHERE volume = ? ORDER BY id";
const ATTACHMENTS_THAT_ARE: &str =
    "SELECT record FROM attachment WHERE record -> '$.attached.identity' = ? ORDER BY id";
const EXPORTS_OF: &str = "SELECT record FROM export WHERE volume = ? ORDER BY id";

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

/// A managed volume as the journal remembers it: the storage tells which volume has a managed name, and this one which had
/// it when it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(crate) id: VolumeId,
    pub(crate) at: Locator,
    pub(crate) identity: Identity,
}

/// What there is already of a volume that is to be attached.
#[derive(Debug)]
pub(crate) struct About {
    /// Its exports, ordered by id.
    pub(crate) exports: Vec<ExportRecord>,
    /// Its attachments, ordered by id.
    pub(crate) attachments: Vec<Record>,
    /// The attachment that has the id which was asked for, whichever volume it is of.
    pub(crate) named: Option<Record>,
    /// The volume that was given its name, and that one's id.
    pub(crate) managed: Option<(VolumeId, Identity)>,
}

/// A handle to the thread that owns the database.
#[derive(Clone)]
pub(crate) struct Journal {
    path: Arc<Path>,
    /// `None`: it could not be opened.
    jobs: Option<mpsc::Sender<Job>>,
    /// Why it cannot be used any more, and what to do.
    lost: watch::Sender<Option<Arc<str>>>,
    host: Arc<dyn Host>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

impl Journal {
    /// Opens or makes the journal. Blocks for the disk; meant for the start. One that cannot be used is lost from the
    /// beginning.
    pub(crate) fn open(path: &Path, host: Arc<dyn Host>) -> Self {
        let journal = Self { path: path.into(), jobs: None, lost: watch::Sender::new(None), host };
        let jobs = open(path).and_then(|mut connection| {
            let (jobs, mut inbox) = mpsc::channel::<Job>(64);
            thread::Builder::new().name("journal".into()).spawn(move || {
                while let Some(job) = inbox.blocking_recv() {
                    job(&mut connection);
                }
            })?;
            Ok(jobs)
        });
        match jobs {
            Ok(jobs) => Self { jobs: Some(jobs), ..journal },
            Err(error) => {
                journal.lose(&error);
                journal
            }
        }
    }

    /// Why it cannot be used and what to do, in one sentence; `None` while it can.
    pub(crate) fn lost(&self) -> Option<Arc<str>> {
        self.lost.borrow().clone()
    }

    /// Ends when it cannot be used any more.
    pub(crate) async fn is_lost(&self) {
        let mut lost = self.lost.subscribe();
        // The sender lives as long as `self`.
        let _seen = lost.wait_for(Option::is_some).await;
    }

    /// [`Error::WrongState`] if nothing may be begun, because it could not be noted.
    pub(crate) fn usable(&self) -> Result<()> {
        self.lost().map_or(Ok(()), |why| Err(Error::WrongState { what: why.to_string() }))
    }

    /// Ends when its thread has come to it, with whether there is one. A journal that could not be opened has none, and
    /// needs none.
    pub(crate) async fn answers(&self) -> bool {
        let Some(jobs) = &self.jobs else { return true };
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(|_| {
            let _nobody = reply.send(());
        });
        jobs.send(job).await.is_ok() && answer.await.is_ok()
    }

    fn lose(&self, error: &JournalError) {
        let why = format!("mortard is read-only: the journal {} {error}", self.path.display());
        tracing::error!("{why}");
        self.lost.send_replace(Some(why.into()));
    }

    async fn ask<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.usable()?;
        let gone = || Error::Host { doing: doing.into(), source: "the journal's thread has ended".into() };
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            let _nobody = reply.send(work(connection));
        });
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())? {
            Ok(answer) => Ok(answer),
            Err(error) if is_damage(error.sqlite_error_code()) => {
                self.lose(&JournalError::Damaged(error.to_string()));
                // Nothing of it may be trusted, nor written.
                self.usable().and_then(|()| Err(Error::host(doing)(error)))
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => Err(self.full(&error)),
            Err(error) => Err(Error::host(doing)(error)),
        }
    }

    fn full(&self, said: &dyn std::fmt::Display) -> Error {
        let what = format!("the disk of the journal {}", self.path.display());
        Error::Full { what, why: format!("make room, then try again ({said})") }
    }

    /// At a stop: the log goes into the file, so that whoever copies, replaces or damages the file has the whole journal.
    pub(crate) async fn complete(&self) {
        let into_the_file = |db: &mut Connection| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if self.lost().is_none()
            && let Err(error) = self.ask("write the journal's log into its file", into_the_file).await
        {
            tracing::warn!(error = error.chain(), "the journal's log stays beside it");
        }
    }

    /// Before each commit: whether the machine will take it.
    async fn may_commit(&self, what: &str) -> Result<()> {
        self.host.commits(what).await.map_err(|error| match error {
            host::Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => self.full(&source),
            other => Error::host("write to the journal")(other),
        })
    }

    /// Commits the intent, and with it what changes in the records. After this, a crash is recovered. [`Error::Limit`] if it
    /// would bring one attachment more than `attachments`.
    pub(crate) async fn begin(&self, operation: &Operation, change: Change, attachments: u32) -> Result<()> {
        let (id, subject, locator) =
            (operation.id.to_string(), operation.plan.subject(), operation.plan.locator_text());
        let changes = change.into_rows()?;
        let (plan, started, boot) = (json(&operation.plan)?, operation.started_ms, operation.boot_id.clone());
        let survives = Survives::intent_of(&operation.plan);
        let what = format!("journal: begin {}{}", operation.plan.verb(), survives.words());
        let most = matches!(operation.plan, Plan::Attach { .. }).then_some(attachments);
        self.may_commit(&what).await?;
        let begun = self
            .ask("write the intent to the journal", move |db| {
                survives.commit(db, |all| {
                    if let Some(most) = most
                        && all.query_row(ATTACHMENTS_BUT, [&subject], |row| row.get::<_, u32>(0))? >= most
                    {
                        return Ok(false);
                    }
                    all.execute(
                        "INSERT INTO operation (id, subject, locator, plan, started, boot) VALUES (?, ?, ?, ?, ?, ?)",
                        params![id, subject, locator, plan, started, boot],
                    )?;
                    apply(changes, all).map(|()| true)
                })
            })
            .await?;
        if !begun {
            let what = format!("there are {attachments} attachments already; detach one first");
            return Err(Error::Limit { what, key: "limits.attachments" });
        }
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
        let survives = Survives::outcome_of(&operation.plan, &change);
        let changes = change.into_rows()?;
        let what = format!("journal: finish {}{}", operation.plan.verb(), survives.words());
        self.may_commit(&what).await?;
        self.ask("write the outcome to the journal", move |db| {
            survives.commit(db, |all| {
                all.execute("UPDATE operation SET ended = ?, outcome = ? WHERE id = ?", params![ended, outcome, id])?;
                all.execute(
                    "DELETE FROM operation WHERE ended IS NOT NULL AND rowid <= \
                     (SELECT rowid FROM operation WHERE ended IS NOT NULL ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                    params![keep],
                )?;
                apply(changes, all)
            })
        })
        .await?;
        self.host.effect(&what).await;
        Ok(())
    }

    /// Notes that an operation could not be undone, and why; it stays unfinished.
    pub(crate) async fn stuck(&self, id: OperationId, outcome: &Outcome) -> Result<()> {
        let (id, outcome) = (id.to_string(), json(outcome)?);
        self.may_commit("journal: stuck").await?;
        self.ask("note a failed recovery in the journal", move |db| {
            Survives::PowerCut
                .commit(db, |all| all.execute("UPDATE operation SET outcome = ? WHERE id = ?", params![outcome, id]))
        })
        .await?;
        self.host.effect("journal: stuck").await;
        Ok(())
    }

    /// Changes records outside an operation: what a reboot did to them.
    pub(crate) async fn change(&self, change: Change) -> Result<()> {
        let changes = change.into_rows()?;
        self.may_commit("journal: change").await?;
        self.ask("change the journal's records", move |db| Survives::PowerCut.commit(db, |all| apply(changes, all)))
            .await?;
        self.host.effect("journal: change").await;
        Ok(())
    }

    pub(crate) async fn attachment(&self, id: &AttachmentId) -> Result<Option<Record>> {
        Ok(self.records(ATTACHMENT, Some(id.to_string())).await?.pop())
    }

    /// All attachments, ordered by id.
    pub(crate) async fn attachments(&self) -> Result<Vec<Record>> {
        self.records("SELECT record FROM attachment ORDER BY id", None).await
    }

    /// All that an attach of `volume` as `id` has to know, in one look.
    pub(crate) async fn about(&self, volume: &str, id: Option<&AttachmentId>) -> Result<About> {
        let (volume, id) = (volume.to_owned(), id.map(ToString::to_string));
        let (exports, attachments, named, managed) = self
            .ask("read the journal", move |db| {
                let all = db.transaction()?;
                let exports = texts(&all, EXPORTS_OF, Some(&volume))?;
                let attachments = texts(&all, ATTACHMENTS_OF, Some(&volume))?;
                let named = id.map_or(Ok(Vec::new()), |id| texts(&all, ATTACHMENT, Some(&id)))?;
                Ok((exports, attachments, named, managed_at(&all, &volume)?))
            })
            .await?;
        Ok(About {
            exports: parsed(&exports)?,
            attachments: parsed(&attachments)?,
            named: parsed(&named)?.pop(),
            managed: managed.map(ManagedRow::parse).transpose()?,
        })
    }

    /// The attachments of which it is known that they are of this volume, ordered by id.
    pub(crate) async fn attachments_that_are(&self, identity: &Identity) -> Result<Vec<Record>> {
        self.records(ATTACHMENTS_THAT_ARE, Some(json(identity)?)).await
    }

    /// The attachments of one volume, ordered by id.
    pub(crate) async fn attachments_of(&self, volume: &str) -> Result<Vec<Record>> {
        self.records(ATTACHMENTS_OF, Some(volume.to_owned())).await
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
        self.records(EXPORTS_OF, Some(volume.to_owned())).await
    }

    /// The rescue of one instance.
    pub(crate) async fn rescue(&self, instance: Uuid) -> Result<Option<RescueRecord>> {
        let found = self.records("SELECT record FROM rescue WHERE instance = ?", Some(instance.to_string())).await?;
        Ok(found.into_iter().next())
    }

    /// All rescues, ordered by the UUIDs of their instances.
    pub(crate) async fn rescues(&self) -> Result<Vec<RescueRecord>> {
        self.records("SELECT record FROM rescue ORDER BY instance", None).await
    }

    async fn records<T: DeserializeOwned>(&self, query: &'static str, argument: Option<String>) -> Result<Vec<T>> {
        parsed(&self.ask("read the journal", move |db| texts(db, query, argument.as_deref())).await?)
    }

    /// Intents without an outcome, oldest first: what a crash interrupted.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Operation>> {
        self.operations_where("WHERE ended IS NULL ORDER BY rowid", None).await
    }

    /// The newest operations first.
    pub(crate) async fn operations(&self, running_only: bool, limit: u32) -> Result<Vec<Operation>> {
        let query = if running_only {
            "WHERE ended IS NULL ORDER BY rowid DESC LIMIT ?"
        } else {
            "ORDER BY rowid DESC LIMIT ?"
        };
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

    /// What it takes on its disk, with its log.
    pub(crate) async fn bytes(&self) -> Result<u64> {
        let path = Arc::clone(&self.path);
        self.ask("look at the journal's size", move |_| {
            let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
            Ok(size(&path) + size(&beside(&path, "-wal")))
        })
        .await
    }

    /// The volume that was given this managed name, and its id.
    pub(crate) async fn managed_at(&self, locator: &Locator) -> Result<Option<(VolumeId, Identity)>> {
        let volume = locator.key();
        let found = self.ask("read the journal", move |db| managed_at(db, &volume)).await?;
        found.map(ManagedRow::parse).transpose()
    }

    /// Of which backends a volume is managed under this id.
    pub(crate) async fn managed_as(&self, id: VolumeId) -> Result<Vec<Backend>> {
        let id = id.to_string();
        let found: Vec<String> = self
            .ask("read the journal", move |db| {
                let mut statement = db.prepare_cached("SELECT volume FROM managed WHERE id = ? ORDER BY volume")?;
                let rows = statement.query_map([id], |row| row.get(0))?;
                rows.collect()
            })
            .await?;
        found.iter().map(|volume| Ok(volume.parse::<Locator>()?.backend())).collect()
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

/// The records that a query finds.
fn texts(db: &Connection, query: &str, argument: Option<&str>) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map(rusqlite::params_from_iter(argument), |row| row.get(0))?;
    rows.collect()
}

struct ManagedRow {
    id: String,
    identity: String,
}

impl ManagedRow {
    fn parse(self) -> Result<(VolumeId, Identity)> {
        Ok((self.id.parse()?, parse(&self.identity)?))
    }
}

fn managed_at(db: &Connection, volume: &str) -> rusqlite::Result<Option<ManagedRow>> {
    let mut statement = db.prepare_cached("SELECT id, identity FROM managed WHERE volume = ?")?;
    statement.query_row([volume], |row| Ok(ManagedRow { id: row.get(0)?, identity: row.get(1)? })).optional()
}

fn parsed<T: DeserializeOwned>(texts: &[String]) -> Result<Vec<T>> {
    texts.iter().map(|text| parse(text)).collect()
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
impl Journal {
    /// Keeps the thread busy until `disk` is dropped, as a disk that does not answer does.
    pub(crate) async fn stuck_until(&self, disk: std::sync::mpsc::Receiver<()>) {
        let wait = move |_: &mut Connection| {
            let _answered = disk.recv();
            Ok(())
        };
        self.ask("wait", wait).await.unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::{Footprint, Spec};

    fn plan() -> Plan {
        Plan::Extend { id: "a".parse().unwrap(), locator: "lvm:vg/lv".parse().unwrap() }
    }

    fn operation() -> Operation {
        Operation {
            id: uuid::Uuid::now_v7().to_string().parse().unwrap(),
            plan: plan(),
            started_ms: 0,
            boot_id: String::new(),
            outcome: None,
            ended: false,
        }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("journal.sqlite"), Arc::new(host::sim::Machine::new()));
        assert_eq!(journal.lost(), None);
        (directory, journal)
    }

    #[tokio::test]
    async fn a_full_disk_is_no_damage() {
        let (_directory, journal) = journal();
        let limit = |pages: i64| {
            journal.ask("limit the file", move |db| {
                db.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
            })
        };
        let used = limit(1).await.unwrap();
        let refused = loop {
            match journal.begin(&operation(), Change::None, 1).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(&refused, Error::Full { .. }) && refused.chain().contains("make room"), "{}", refused.chain());
        let begun = journal.unfinished().await.unwrap().len();
        limit(used + 100).await.unwrap();
        journal.begin(&operation(), Change::None, 1).await.unwrap();
        assert_eq!(journal.unfinished().await.unwrap().len(), begun + 1);
    }

    #[tokio::test]
    async fn an_attachment_is_found_by_its_volume_its_id_and_what_it_is() {
        let (_directory, journal) = journal();
        let image = |snapshot_id| Identity::Rbd {
            fsid: "f".into(),
            pool_id: u64::MAX,
            namespace: "a \"b\" ü/\u{1}".into(),
            image_id: "i".into(),
            snapshot_id,
        };
        let record = |id: &str, locator: &str, identity| {
            let locator = locator.parse().unwrap();
            let spec = Spec { locator, read_only: false, exclusive: false, expected_wwn: None, expected_size: None };
            let attached = Attached { spec, footprint: Footprint::Rbd { marks: Vec::new() }, identity };
            let (persistent, boot_id, residuals) = (false, String::new(), Vec::new());
            Record { id: id.parse().unwrap(), attached, persistent, boot_id, created_ms: 0, residuals }
        };
        let one = record("one", "rbd:p/i", Some(image(None)));
        let two = record("two", "rbd:p/i?cluster=two", Some(image(None)));
        let of_snapshot = record("three", "rbd:p/i@s", Some(image(Some(4))));
        let unknown = record("four", "rbd:p/i", None);
        let all = vec![one.clone(), two.clone(), of_snapshot.clone(), unknown.clone()];
        journal.change(Change::Put(all)).await.unwrap();

        assert_eq!(journal.attachments_that_are(&image(None)).await.unwrap(), [one.clone(), two.clone()]);
        assert_eq!(journal.attachments_that_are(&image(Some(4))).await.unwrap(), [of_snapshot]);
        assert_eq!(journal.attachments_that_are(&image(Some(5))).await.unwrap(), []);
        let volume = one.attached.spec.locator.key();
        let about = journal.about(&volume, Some(&two.id)).await.unwrap();
        assert_eq!((about.attachments, about.named), (vec![unknown, one], Some(two)));
        assert_eq!(journal.about(&volume, None).await.unwrap().named, None);
        let plan = journal
            .ask("explain", |db| {
                let query = format!("EXPLAIN QUERY PLAN {ATTACHMENTS_THAT_ARE}");
                db.query_row(&query, [""], |row| row.get::<_, String>(3))
            })
            .await
            .unwrap();
        assert!(plan.contains("attachment_identity"), "{plan}");
    }

    #[tokio::test]
    async fn after_a_stop_the_file_is_the_whole_journal() {
        let (directory, journal) = journal();
        journal.begin(&operation(), Change::None, 1).await.unwrap();
        let log = directory.path().join("journal.sqlite-wal");
        assert_ne!(log.metadata().unwrap().len(), 0);
        journal.complete().await;
        assert_eq!(log.metadata().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn damage_that_is_met_later_ends_all_writing() {
        let (_directory, journal) = journal();
        let met: Result<()> =
            journal.ask("read", |_| Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(11), None))).await;
        assert!(matches!(&met, Err(Error::WrongState { what }) if what.contains("move it away")), "{met:?}");
        assert!(matches!(journal.begin(&operation(), Change::None, 1).await, Err(Error::WrongState { .. })));
        journal.is_lost().await;
    }
}
