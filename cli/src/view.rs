//! What is printed: our own types with our own key names, so that the wire contract can grow without changing what
//! scripts read.

mod attachment;
mod doctor;
mod export;
mod host;
mod instance;
mod operation;
mod reason;
mod status;
mod volume;

pub(crate) use attachment::{Attached, Attachment, Detached, Event};
pub(crate) use doctor::Diagnosis;
pub(crate) use export::{Export, Exported, Unexported};
pub(crate) use host::Host;
pub(crate) use instance::{Instance, InstanceRow, Powered, Rescued, Unrescued};
pub(crate) use operation::{Cancelled, Operation};
pub(crate) use reason::Reason;
pub(crate) use status::Status;
pub(crate) use volume::{Manageable, Managed, Unmanaged, Volume};

use crate::table::{Row, Table};
use jiff::Timestamp;
use serde::Serialize;

/// An answer: tables for people, JSON or YAML for programs.
pub(crate) trait View: Serialize {
    /// From top to bottom.
    fn tables(&self) -> Vec<Table>;

    /// What people read below them.
    fn closing(&self) -> Option<String> {
        None
    }
}

impl<T: Row> View for Vec<T> {
    fn tables(&self) -> Vec<Table> {
        vec![Table::list(self)]
    }
}

/// As people see it, without colour.
#[cfg(test)]
fn drawn(view: &impl View) -> String {
    let tables = view.tables().iter().map(|table| table.draw(false)).collect::<Vec<_>>();
    tables.join("\n")
}

/// The contract's empty string is JSON's null.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn timestamp(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

/// A time for people: RFC 3339, to the second.
fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// `ATTACHMENT_STATE_READY` is `ready`.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some("UNSPECIFIED") | None => "unknown".to_owned(),
        Some(word) => word.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(word("RESIDUAL_KIND_NODE_RECORD", "RESIDUAL_KIND_"), "node_record");
        assert_eq!(word("RESIDUAL_KIND_UNSPECIFIED", "RESIDUAL_KIND_"), "unknown");
    }

    #[test]
    fn times_are_rfc_3339() {
        let time = timestamp(Some(prost_types::Timestamp { seconds: 1_795_363_200, nanos: 250_000_000 })).unwrap();
        assert_eq!(serde_json::to_value(time).unwrap(), "2026-11-22T16:00:00.25Z");
        assert_eq!(seconds(time), "2026-11-22T16:00:00Z");
        assert_eq!(timestamp(None), None);
    }
}
