//! Operations: what operations and watch print.

use super::{View, seconds, some, timestamp, word};
use crate::table::{self, Cell, Row, Table, perhaps, property};
use jiff::Timestamp;
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Operation {
    id: String,
    kind: String,
    state: String,
    subject: String,
    locator: Option<String>,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    error: Option<Problem>,
    waiting: Option<Waiting>,
}

/// What an operation waits for.
#[derive(Debug, Serialize)]
struct Waiting {
    #[serde(rename = "for")]
    what: String,
    since_ms: u64,
    process_id: Option<u32>,
    wedged: bool,
}

/// What cancel prints.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Cancelled {
    operation: Operation,
    changed: bool,
}

/// Why an operation failed.
#[derive(Debug, Serialize)]
struct Problem {
    code: String,
    reason: String,
    message: String,
}

impl From<v1::Operation> for Operation {
    fn from(operation: v1::Operation) -> Self {
        Self {
            kind: word(operation.kind().as_str_name(), "OPERATION_KIND_"),
            state: word(operation.state().as_str_name(), "OPERATION_STATE_"),
            id: operation.id,
            subject: operation.subject,
            locator: some(operation.locator),
            started_at: timestamp(operation.started_at),
            ended_at: timestamp(operation.ended_at),
            error: operation.error.map(Problem::from),
            waiting: operation.waiting.map(Waiting::from),
        }
    }
}

impl From<v1::Waiting> for Waiting {
    fn from(waiting: v1::Waiting) -> Self {
        Self {
            what: waiting.r#for,
            since_ms: waiting.since_ms,
            process_id: (waiting.process_id != 0).then_some(waiting.process_id),
            wedged: waiting.wedged,
        }
    }
}

impl Cancelled {
    /// `None` if the agent's answer has not all that it should.
    pub(crate) fn new(reply: v1::CancelOperationResponse) -> Option<Self> {
        Some(Self { operation: reply.operation?.into(), changed: reply.changed })
    }
}

impl Waiting {
    /// For people: `flush /dev/sdb, for 93 s (process 4711), wedged`.
    fn words(&self) -> String {
        let process = self.process_id.map(|process| format!(" (process {process})")).unwrap_or_default();
        let wedged = if self.wedged { ", wedged" } else { "" };
        format!("{}, for {} s{process}{wedged}", self.what, self.since_ms / 1000)
    }

    fn cell(&self) -> Cell {
        if self.wedged { table::problem(&self.words()) } else { self.words().into() }
    }
}

impl View for Cancelled {
    fn tables(&self) -> Vec<Table> {
        let mut tables = self.operation.tables();
        tables.push(Table::properties(self, vec![property("changed", self.changed)]));
        tables
    }
}

impl From<v1::OperationError> for Problem {
    fn from(error: v1::OperationError) -> Self {
        Self { code: error.code, reason: error.reason, message: error.message }
    }
}

impl Operation {
    /// The operation in one line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("operation {} {} {} {}", self.id, self.kind, self.subject, self.state);
        line.extend(self.error.iter().map(|error| format!(": {}", error.message)));
        line
    }
}

impl View for Operation {
    fn tables(&self) -> Vec<Table> {
        let error = self.error.as_ref();
        let rows = vec![
            property("id", &self.id),
            property("kind", &self.kind),
            property("state", table::state(&self.state)),
            property("subject", &self.subject),
            perhaps("locator", self.locator.as_ref()),
            perhaps("started_at", self.started_at.map(seconds)),
            perhaps("ended_at", self.ended_at.map(seconds)),
            perhaps("waiting_for", self.waiting.as_ref().map(Waiting::cell)),
            perhaps("code", error.map(|error| &error.code)),
            perhaps("reason", error.map(|error| &error.reason)),
            perhaps("message", error.map(|error| table::problem(&error.message))),
        ];
        vec![Table::properties(self, rows)]
    }
}

impl Row for Operation {
    const COLUMNS: &'static [&'static str] = &["id", "kind", "state", "subject", "started_at", "waiting_for", "error"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.id).into(),
            (&self.kind).into(),
            table::state(&self.state),
            (&self.subject).into(),
            self.started_at.map(seconds).unwrap_or_default().into(),
            self.waiting.as_ref().map(Waiting::cell).unwrap_or_default(),
            self.error.as_ref().map(|error| table::problem(&error.message)).unwrap_or_default(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    #[test]
    fn json() {
        let operation = v1::Operation {
            id: "o".into(),
            kind: v1::OperationKind::Attach.into(),
            state: v1::OperationState::Failed.into(),
            subject: "a".into(),
            locator: "lvm:vg/lv".into(),
            started_at: Some(prost_types::Timestamp { seconds: 1_795_363_200, nanos: 0 }),
            ended_at: None,
            error: Some(v1::OperationError {
                code: "NOT_FOUND".into(),
                reason: "NOT_FOUND".into(),
                message: "no LV vg/lv".into(),
                next_step: "Look what there is.".into(),
            }),
            waiting: Some(v1::Waiting {
                r#for: "flush /dev/sdb".into(),
                since_ms: 93_500,
                process_id: 4711,
                wedged: true,
            }),
        };
        let operation = Operation::from(operation);
        assert_eq!(
            to_value(&operation).unwrap(),
            json!({
                "id": "o",
                "kind": "attach",
                "state": "failed",
                "subject": "a",
                "locator": "lvm:vg/lv",
                "started_at": "2026-11-22T16:00:00Z",
                "ended_at": null,
                "error": { "code": "NOT_FOUND", "reason": "NOT_FOUND", "message": "no LV vg/lv" },
                "waiting": { "for": "flush /dev/sdb", "since_ms": 93_500, "process_id": 4711, "wedged": true },
            })
        );
        assert!(drawn(&operation).contains("flush /dev/sdb, for 93 s (process 4711), wedged"));
        assert_eq!(operation.line(), "operation o attach a failed: no LV vg/lv");
    }
}
