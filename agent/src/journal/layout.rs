//! The journal's file: what its tables are, how an older one is brought to that, and what is looked at before it is trusted.

use super::{ExportRecord, Plan, Record, RescueRecord};
use driver::{Identity, Locator};
use rusqlite::{Connection, ErrorCode, config::DbConfig, params};
use serde::de::DeserializeOwned;
use std::{
    io,
    path::{Path, PathBuf},
};

/// The layout of the tables, kept in `user_version`. A journal of a later layout is refused.
const LAYOUT: i64 = 5;

/// What SQLite keeps of the journal in memory.
const CACHE_KIB: i64 = 256;

const SCHEMA: &str = "
    CREATE TABLE attachment (
        id     TEXT PRIMARY KEY,
        volume TEXT NOT NULL,            -- the locator's key: attachments of one volume share its device
        record TEXT NOT NULL             -- JSON
    ) STRICT;
    CREATE INDEX attachment_volume ON attachment (volume);
    CREATE TABLE operation (
        id      TEXT PRIMARY KEY,        -- UUID version 7
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

/// What layout 3 has that layout 2 had not.
const SCHEMA_OF_MANAGED: &str = "
    CREATE TABLE managed (               -- which volume was given a managed name
        id       TEXT NOT NULL,          -- the volume's
        backend  TEXT NOT NULL,
        volume   TEXT NOT NULL,          -- the key of its managed locator
        identity TEXT NOT NULL,          -- JSON
        PRIMARY KEY (id, backend)
    ) STRICT;
    CREATE INDEX managed_volume ON managed (volume);
";

/// What layout 4 has that layout 3 had not.
const SCHEMA_OF_RESCUES: &str = "
    CREATE TABLE rescue (
        instance TEXT PRIMARY KEY,       -- its UUID
        record   TEXT NOT NULL           -- JSON
    ) STRICT;
";

/// What layout 5 has that layout 4 had not.
const SCHEMA_OF_IDENTITIES: &str = "
    CREATE INDEX attachment_identity ON attachment (record -> '$.attached.identity');
";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// The disk or the file system.
    #[error("cannot be opened ({0}); see to that, then restart mortard")]
    Io(String),
    #[error("cannot be opened, because its disk is full; make room, then restart mortard")]
    Full,
    /// Not what we wrote.
    #[error(
        "is damaged ({0}); move it away together with its -wal and -shm, restart mortard, and attach again, by its id, what \
         `mortar list` shows: mortar touches none of it meanwhile"
    )]
    Damaged(String),
    #[error("has layout {0}, and this mortard knows {LAYOUT}; start the version that wrote it")]
    Later(i64),
    /// SQLite would take it for the log of the new one.
    #[error("is not there, but its log {} is; bring it back, or move its log away as well, then restart mortard", .0.display())]
    OnlyItsLog(PathBuf),
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            code if is_damage(code) => Self::Damaged(error.to_string()),
            Some(ErrorCode::Unknown) | None => Self::Damaged(error.to_string()),
            Some(_) => Self::Io(error.to_string()),
        }
    }
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Full,
            _ => Self::Io(error.to_string()),
        }
    }
}

pub(super) fn is_damage(code: Option<ErrorCode>) -> bool {
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Opens a journal that is what it should be, or makes one where none is.
pub(super) fn open(path: &Path) -> std::result::Result<Connection, JournalError> {
    match std::fs::metadata(path) {
        // SQLite would take it for a new data base, and throw its log away.
        Ok(meta) if meta.len() == 0 => return Err(JournalError::Damaged("it is empty".into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
        Err(error) => return Err(error.into()),
    }
    let mut connection = Connection::open(path)?;
    // As it was found, until it has been looked at.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The journal is small, and the kernel has its pages: SQLite needs no two megabytes of its own.
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(JournalError::Damaged(said));
    }
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match found {
        1..=LAYOUT => {}
        ..1 => return Err(JournalError::Damaged("it is none of mortard's".into())),
        _ => return Err(JournalError::Later(found)),
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    prepare(&mut connection, found)?;
    examine(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(connection)
}

/// An empty journal, whole from its first moment: what stands under the name and is none was not left by a crash of ours.
#[expect(clippy::disallowed_methods, reason = "SQLite opens it, so that it is not the host's to make")]
fn make(path: &Path) -> std::result::Result<(), JournalError> {
    let log = beside(path, "-wal");
    if log.exists() {
        return Err(JournalError::OnlyItsLog(log));
    }
    let new = beside(path, ".new");
    for half in [&new, &beside(path, ".new-journal")] {
        match std::fs::remove_file(half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let mut connection = Connection::open(&new)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    prepare(&mut connection, 0)?;
    connection.close().map_err(|(_, error)| error)?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(())
}

/// A file of SQLite's beside the journal.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Brings an older layout (0: none) to ours.
fn prepare(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    if found == LAYOUT {
        return Ok(());
    }
    let all = connection.transaction()?;
    if found == 0 {
        all.execute_batch(SCHEMA)?;
    }
    if found < 2 {
        all.execute_batch(SCHEMA_OF_EXPORTS)?;
        name_ways(&all)?;
    }
    if found < 3 {
        all.execute_batch(SCHEMA_OF_MANAGED)?;
    }
    if found < 4 {
        all.execute_batch(SCHEMA_OF_RESCUES)?;
    }
    all.execute_batch(SCHEMA_OF_IDENTITIES)?;
    all.pragma_update(None, "user_version", LAYOUT)?;
    all.commit()
}

/// Everything that will be relied on can be read. SQLite has no check sums: bytes that were overwritten within a text are
/// seen here only.
fn examine(db: &Connection) -> std::result::Result<(), JournalError> {
    fn each<T: DeserializeOwned>(db: &Connection, query: &str) -> std::result::Result<(), JournalError> {
        let mut statement = db.prepare(query)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        for text in rows {
            serde_json::from_str::<T>(&text?)
                .map_err(|error| JournalError::Damaged(format!("a record does not parse: {error}")))?;
        }
        Ok(())
    }
    each::<Record>(db, "SELECT record FROM attachment")?;
    each::<ExportRecord>(db, "SELECT record FROM export")?;
    each::<Identity>(db, "SELECT identity FROM managed")?;
    each::<RescueRecord>(db, "SELECT record FROM rescue")?;
    each::<Plan>(db, "SELECT plan FROM operation WHERE ended IS NULL")?;
    let query = "SELECT count(*) FROM operation WHERE NOT json_valid(plan) OR NOT json_valid(ifnull(outcome, 'null'))";
    let torn: i64 = db.query_row(query, [], |row| row.get(0))?;
    if torn > 0 {
        return Err(JournalError::Damaged(format!("{torn} operations do not parse")));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::{
        super::{change::RowChange, parse},
        *,
    };
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
        prepare(&mut db, 1).unwrap();
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

    #[test]
    fn layout_2_is_brought_to_layout_3() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(SCHEMA).unwrap();
        db.execute_batch(SCHEMA_OF_EXPORTS).unwrap();
        prepare(&mut db, 2).unwrap();
        let of_each = |change: RowChange| change.apply(&db).unwrap();
        let managed = |id: &str, identity: &str| RowChange::Managed {
            id: id.into(),
            backend: "lvm".into(),
            volume: "lvm:vg/v".into(),
            identity: identity.into(),
        };
        of_each(managed("one", "first"));
        of_each(managed("other", "second"));
        let all = || db.query_row("SELECT group_concat(id || ' ' || identity) FROM managed", [], |row| row.get(0));
        assert_eq!(all(), Ok(Some("other second".to_owned())), "a name is one volume's");
        of_each(RowChange::Released { id: "other".into(), backend: "lvm".into() });
        assert_eq!(all(), Ok(None));
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.sqlite");
        std::fs::File::create_new(directory.path().join("journal.sqlite.new")).unwrap();
        drop(open(&path).unwrap());
        let log = directory.path().join("other.sqlite-wal");
        std::fs::File::create_new(&log).unwrap();
        let refused = open(&directory.path().join("other.sqlite")).unwrap_err().to_string();
        assert!(refused.contains("other.sqlite-wal"), "{refused}");
    }
}
