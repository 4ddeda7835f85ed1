//! Attachments: what attach, extend, detach, list, show and watch print.

use super::{Operation, View, seconds, some, timestamp, word};
use crate::table::{self, Cell, Property, Row, Table, each, perhaps, property};
use jiff::Timestamp;
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Attachment {
    id: String,
    locator: String,
    path: String,
    stable_path: String,
    scsi_wwn: Option<String>,
    multipath_id: Option<String>,
    r#type: String,
    size_bytes: u64,
    read_only: bool,
    paths: Vec<Path>,
    persistent: bool,
    logical_block_size: u32,
    physical_block_size: u32,
    state: String,
    problem: Option<String>,
    held_by: Option<String>,
    identity: Option<String>,
    created_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Path {
    device: String,
    portal: Option<String>,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl From<v1::Attachment> for Attachment {
    fn from(attachment: v1::Attachment) -> Self {
        Self {
            state: word(attachment.state().as_str_name(), "ATTACHMENT_STATE_"),
            id: attachment.id,
            locator: attachment.locator,
            path: attachment.path,
            stable_path: attachment.stable_path,
            scsi_wwn: some(attachment.scsi_wwn),
            multipath_id: some(attachment.multipath_id),
            r#type: attachment.r#type,
            size_bytes: attachment.size_bytes,
            read_only: attachment.read_only,
            paths: attachment.paths.into_iter().map(Path::from).collect(),
            persistent: attachment.persistent,
            logical_block_size: attachment.logical_block_size,
            physical_block_size: attachment.physical_block_size,
            problem: some(attachment.problem),
            held_by: some(attachment.held_by),
            identity: some(attachment.identity),
            created_at: timestamp(attachment.created_at),
        }
    }
}

impl From<v1::Path> for Path {
    fn from(path: v1::Path) -> Self {
        Self { device: path.device, portal: some(path.portal), state: path.state, problem: some(path.problem) }
    }
}

impl Attachment {
    /// The three rows of the post, then what is needed to use the device and to name the attachment.
    fn rows(&self) -> Vec<Property> {
        vec![
            property("path", &self.path),
            perhaps("scsi_wwn", self.scsi_wwn.as_ref()),
            perhaps("multipath_id", self.multipath_id.as_ref()),
            property("type", &self.r#type),
            property("id", &self.id),
            property("stable_path", &self.stable_path),
            property("size", table::size(self.size_bytes)),
        ]
    }
}

impl View for Attachment {
    fn tables(&self) -> Vec<Table> {
        let blocks = format!("{} logical, {} physical", self.logical_block_size, self.physical_block_size);
        let mut rows = self.rows();
        rows.extend([
            property("locator", &self.locator),
            property("state", table::state(&self.state)),
            perhaps("problem", self.problem.as_deref().map(table::problem)),
            perhaps("held_by", self.held_by.as_ref()),
            property("read_only", self.read_only),
            property("persistent", self.persistent),
            property("block_size", blocks),
            perhaps("identity", self.identity.as_ref()),
            perhaps("created_at", self.created_at.map(seconds)),
        ]);
        rows.extend(each("path via", self.paths.iter().map(Path::line)));
        vec![Table::properties(self, rows)]
    }
}

impl Path {
    fn line(&self) -> String {
        let state = match &self.problem {
            Some(problem) => format!("{} ({problem})", self.state),
            None => self.state.clone(),
        };
        let words = [self.portal.as_deref().unwrap_or_default(), &self.device, &state];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

impl Row for Attachment {
    const COLUMNS: &'static [&'static str] = &["id", "path", "size", "state", "locator"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.id).into(),
            (&self.path).into(),
            table::size(self.size_bytes),
            table::state(&self.state),
            (&self.locator).into(),
        ]
    }
}

/// What attach and extend answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Attached {
    #[serde(flatten)]
    attachment: Attachment,
    changed: bool,
    operation_id: Option<String>,
}

impl Attached {
    pub(crate) fn new(attachment: v1::Attachment, changed: bool, operation_id: String) -> Self {
        Self { attachment: attachment.into(), changed, operation_id: some(operation_id) }
    }
}

impl View for Attached {
    fn tables(&self) -> Vec<Table> {
        vec![Table::properties(self, self.attachment.rows())]
    }
}

/// What detach answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Detached {
    id: Option<String>,
    changed: bool,
    residuals: Vec<Residual>,
    kept: Vec<String>,
    operation_id: Option<String>,
}

/// What a detach could not remove.
#[derive(Debug, Serialize)]
pub(super) struct Residual {
    kind: String,
    name: String,
    reason: String,
}

impl From<v1::DetachResponse> for Detached {
    fn from(response: v1::DetachResponse) -> Self {
        Self {
            id: some(response.id),
            changed: response.changed,
            residuals: response.residuals.into_iter().map(Residual::from).collect(),
            kept: response.kept,
            operation_id: some(response.operation_id),
        }
    }
}

impl From<v1::Residual> for Residual {
    fn from(residual: v1::Residual) -> Self {
        Self {
            kind: word(residual.kind().as_str_name(), "RESIDUAL_KIND_"),
            name: residual.name,
            reason: residual.reason,
        }
    }
}

impl Detached {
    /// One sentence for each thing that could not be removed.
    pub(crate) fn residuals(&self) -> impl Iterator<Item = String> {
        self.residuals.iter().map(Residual::sentence)
    }
}

impl Residual {
    pub(super) fn sentence(&self) -> String {
        let kind = self.kind.replace('_', " ");
        format!("the {kind} {} is still there: {}", self.name, self.reason)
    }
}

impl View for Detached {
    fn tables(&self) -> Vec<Table> {
        let mut rows = vec![perhaps("id", self.id.as_ref()), property("changed", self.changed)];
        rows.extend(each("kept", &self.kept));
        vec![Table::properties(self, rows)]
    }
}

/// Something that happened, one line each.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    Attachment { attachment: Attachment },
    AttachmentGone { id: String },
    Operation { operation: Operation },
}

impl From<v1::watch_event::Event> for Event {
    fn from(event: v1::watch_event::Event) -> Self {
        match event {
            v1::watch_event::Event::Attachment(attachment) => Self::Attachment { attachment: attachment.into() },
            v1::watch_event::Event::AttachmentGone(id) => Self::AttachmentGone { id },
            v1::watch_event::Event::Operation(operation) => Self::Operation { operation: operation.into() },
        }
    }
}

impl Event {
    /// The event for people.
    pub(crate) fn line(&self) -> String {
        let text = match self {
            Self::Attachment { attachment } => {
                let mut line = format!(
                    "attachment {} {} {} {}",
                    attachment.id, attachment.state, attachment.path, attachment.locator
                );
                line.extend(attachment.problem.iter().map(|problem| format!(": {problem}")));
                line
            }
            Self::AttachmentGone { id } => format!("attachment {id} gone"),
            Self::Operation { operation } => operation.line(),
        };
        table::visible(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    fn attachment() -> v1::Attachment {
        v1::Attachment {
            id: "a".into(),
            locator: "iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0".into(),
            path: "/dev/sdb".into(),
            stable_path: "/dev/mortar/a".into(),
            scsi_wwn: "360000000000000000e00000000010001".into(),
            r#type: "block".into(),
            size_bytes: 1 << 30,
            logical_block_size: 512,
            physical_block_size: 4096,
            paths: vec![v1::Path {
                device: "/dev/sdb".into(),
                portal: "10.0.0.5:3260".into(),
                state: "running".into(),
                problem: String::new(),
            }],
            state: v1::AttachmentState::Ready.into(),
            created_at: Some(prost_types::Timestamp { seconds: 1_795_363_200, nanos: 0 }),
            identity: "wwn:naa.60000000000000000e00000000010001".into(),
            ..Default::default()
        }
    }

    #[test]
    fn attached_json() {
        assert_eq!(
            to_value(Attached::new(attachment(), true, "op".into())).unwrap(),
            json!({
                "id": "a",
                "locator": "iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0",
                "path": "/dev/sdb",
                "stable_path": "/dev/mortar/a",
                "scsi_wwn": "360000000000000000e00000000010001",
                "multipath_id": null,
                "type": "block",
                "size_bytes": 1_073_741_824,
                "read_only": false,
                "paths": [{ "device": "/dev/sdb", "portal": "10.0.0.5:3260", "state": "running" }],
                "persistent": false,
                "logical_block_size": 512,
                "physical_block_size": 4096,
                "state": "ready",
                "problem": null,
                "held_by": null,
                "identity": "wwn:naa.60000000000000000e00000000010001",
                "created_at": "2026-11-22T16:00:00Z",
                "changed": true,
                "operation_id": "op",
            })
        );
    }

    #[test]
    fn what_there_is_not_is_null() {
        let plain = v1::Attachment { paths: vec![v1::Path::default()], ..Default::default() };
        let json = to_value(Attachment::from(plain)).unwrap();
        for pointer in ["/scsi_wwn", "/problem", "/identity", "/created_at", "/paths/0/portal"] {
            assert_eq!(json.pointer(pointer), Some(&json!(null)), "{pointer}");
        }
        assert_eq!(json.pointer("/state"), Some(&json!("unknown")));
        assert_eq!(json.pointer("/changed"), None);
    }

    #[test]
    fn attached_table_begins_as_in_the_post() {
        assert_eq!(
            drawn(&Attached::new(attachment(), true, String::new())),
            "\
+-------------+-----------------------------------+
| Property    | Value                             |
+-------------+-----------------------------------+
| path        | /dev/sdb                          |
| scsi_wwn    | 360000000000000000e00000000010001 |
| type        | block                             |
| id          | a                                 |
| stable_path | /dev/mortar/a                     |
| size        | 1073741824 (1 GiB)                |
+-------------+-----------------------------------+"
        );
        let file = v1::Attachment { scsi_wwn: String::new(), ..attachment() };
        assert!(!drawn(&Attached::new(file, true, String::new())).contains("scsi_wwn"));
    }

    #[test]
    fn shown_table_has_every_path() {
        let mut two = attachment();
        two.paths.push(v1::Path {
            state: "absent".into(),
            portal: "10.0.1.5:3260".into(),
            problem: "it timed out".into(),
            ..v1::Path::default()
        });
        two.multipath_id.clone_from(&two.scsi_wwn);
        let table = drawn(&Attachment::from(two));
        assert!(table.contains("10.0.0.5:3260 /dev/sdb running"), "{table}");
        assert!(table.contains("10.0.1.5:3260 absent (it timed out)"), "{table}");
        assert!(table.contains("| multipath_id | 360000000000000000e00000000010001 "), "{table}");
    }

    #[test]
    fn detached_json_and_sentences() {
        let residual = v1::Residual {
            kind: v1::ResidualKind::NodeRecord.into(),
            name: "iqn.x".into(),
            reason: "it is busy".into(),
        };
        let detached = Detached::from(v1::DetachResponse {
            id: "a".into(),
            changed: true,
            residuals: vec![residual],
            kept: vec!["vg/lv".into()],
            operation_id: String::new(),
        });
        assert_eq!(detached.residuals().collect::<Vec<_>>(), ["the node record iqn.x is still there: it is busy"]);
        assert_eq!(
            to_value(&detached).unwrap(),
            json!({
                "id": "a",
                "changed": true,
                "residuals": [{ "kind": "node_record", "name": "iqn.x", "reason": "it is busy" }],
                "kept": ["vg/lv"],
                "operation_id": null,
            })
        );
    }

    #[test]
    fn events() {
        let ready = Event::from(v1::watch_event::Event::Attachment(attachment()));
        assert_eq!(ready.line(), "attachment a ready /dev/sdb iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0");
        assert_eq!(to_value(&ready).unwrap().pointer("/event"), Some(&json!("attachment")));
        let gone = Event::from(v1::watch_event::Event::AttachmentGone("a".into()));
        assert_eq!(gone.line(), "attachment a gone");
        assert_eq!(to_value(&gone).unwrap(), json!({ "event": "attachment_gone", "id": "a" }));
    }
}
