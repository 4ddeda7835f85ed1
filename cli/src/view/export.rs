//! Exports: what export, exports and unexport print.

use super::{View, attachment::Residual, seconds, some, timestamp};
use crate::table::{self, Cell, Row, Table, perhaps, property};
use jiff::Timestamp;
use proto::v1;
use serde::{Serialize, Serializer};
use serde_json::Value;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Export {
    id: String,
    locator: String,
    initiator: String,
    target: String,
    portals: Vec<String>,
    read_only: bool,
    scsi_wwn: String,
    size_bytes: u64,
    ready: bool,
    problem: Option<String>,
    sessions: Vec<String>,
    created_at: Option<Timestamp>,
}

impl From<v1::Export> for Export {
    fn from(export: v1::Export) -> Self {
        Self {
            id: export.id,
            locator: export.locator,
            initiator: export.initiator,
            target: export.target,
            portals: export.portals,
            read_only: export.read_only,
            scsi_wwn: export.scsi_wwn,
            size_bytes: export.size_bytes,
            ready: export.ready,
            problem: some(export.problem),
            sessions: export.sessions,
            created_at: timestamp(export.created_at),
        }
    }
}

impl Row for Export {
    const COLUMNS: &'static [&'static str] =
        &["id", "locator", "size", "initiator", "portals", "state", "logged in", "created"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.id).into(),
            (&self.locator).into(),
            table::size(self.size_bytes),
            (&self.initiator).into(),
            self.portals.join(", ").into(),
            self.problem.as_deref().map_or_else(|| table::state("served"), table::problem),
            self.sessions.join(", ").into(),
            self.created_at.map(seconds).unwrap_or_default().into(),
        ]
    }
}

/// What export answers: a table for people, without the password; for programs the `connection_info` and nothing else, so
/// that it can be handed on as it is.
#[derive(Default)]
pub(crate) struct Exported {
    export: Export,
    connection_info: Value,
}

impl Exported {
    /// `None` if the agent's answer has not all that it should.
    pub(crate) fn new(response: v1::ExportResponse) -> Option<Self> {
        let connection_info = serde_json::from_str(&response.connection_info).ok()?;
        Some(Self { export: response.export?.into(), connection_info })
    }
}

impl Serialize for Exported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.connection_info.serialize(serializer)
    }
}

impl View for Exported {
    fn tables(&self) -> Vec<Table> {
        let export = &self.export;
        let rows = vec![
            property("id", &export.id),
            property("locator", &export.locator),
            property("initiator", &export.initiator),
            property("target", &export.target),
            property("portals", export.portals.join(", ")),
            property("scsi_wwn", &export.scsi_wwn),
            property("size", table::size(export.size_bytes)),
            property("read_only", export.read_only),
        ];
        // Its fields are the export's: a column cannot be the password.
        vec![Table::properties(export, rows)]
    }
}

/// What unexport answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Unexported {
    id: Option<String>,
    changed: bool,
    residuals: Vec<Residual>,
    operation_id: Option<String>,
}

impl From<v1::UnexportResponse> for Unexported {
    fn from(response: v1::UnexportResponse) -> Self {
        Self {
            id: some(response.id),
            changed: response.changed,
            residuals: response.residuals.into_iter().map(Residual::from).collect(),
            operation_id: some(response.operation_id),
        }
    }
}

impl Unexported {
    /// One sentence for each thing that could not be removed.
    pub(crate) fn residuals(&self) -> impl Iterator<Item = String> {
        self.residuals.iter().map(Residual::sentence)
    }
}

impl View for Unexported {
    fn tables(&self) -> Vec<Table> {
        let rows = vec![perhaps("id", self.id.as_ref()), property("changed", self.changed)];
        vec![Table::properties(self, rows)]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    #[test]
    fn programs_get_the_connection_info_as_it_stands_and_people_no_password() {
        let info = json!({ "driver_volume_type": "iscsi", "data": { "auth_password": "secret" } });
        let response = v1::ExportResponse {
            export: Some(v1::Export { id: "a".into(), ..Default::default() }),
            connection_info: info.to_string(),
            ..Default::default()
        };
        let exported = Exported::new(response).unwrap();
        assert_eq!(to_value(&exported).unwrap(), info);
        assert!(!drawn(&exported).contains("secret"), "{}", drawn(&exported));
        assert!(Exported::new(v1::ExportResponse::default()).is_none());
    }

    #[test]
    fn a_problem_is_the_state() {
        let export = v1::Export { problem: "its target is not there".into(), ..Default::default() };
        assert_eq!(Export::from(export).cells()[5], table::problem("its target is not there"));
        assert_eq!(Export::from(v1::Export::default()).cells()[5], table::state("served"));
    }
}
