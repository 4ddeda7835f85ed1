//! Volumes: what manageable, manage, unmanage and volumes print.

use super::{View, some};
use crate::table::{self, Cell, Row, Table, each, perhaps, property};
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Volume {
    id: String,
    name: String,
    locator: String,
    origin: String,
    size_bytes: u64,
    snapshot: bool,
}

impl From<v1::Volume> for Volume {
    fn from(volume: v1::Volume) -> Self {
        Self {
            id: volume.id,
            name: volume.name,
            locator: volume.locator,
            origin: volume.origin,
            size_bytes: volume.size_bytes,
            snapshot: volume.snapshot,
        }
    }
}

impl Row for Volume {
    const COLUMNS: &'static [&'static str] = &["id", "name", "kind", "size", "locator", "origin"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.id).into(),
            (&self.name).into(),
            kind(self.snapshot),
            table::size(self.size_bytes),
            (&self.locator).into(),
            (&self.origin).into(),
        ]
    }
}

fn kind(snapshot: bool) -> Cell {
    if snapshot { "snapshot" } else { "volume" }.into()
}

/// What manage answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Managed {
    #[serde(flatten)]
    volume: Volume,
    changed: bool,
    operation_id: Option<String>,
    /// Only after a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would: Vec<String>,
}

impl Managed {
    pub(crate) fn new(volume: v1::Volume, changed: bool, operation_id: String, would: Vec<String>) -> Self {
        Self { volume: volume.into(), changed, operation_id: some(operation_id), would }
    }
}

impl View for Managed {
    fn tables(&self) -> Vec<Table> {
        let volume = &self.volume;
        let mut rows = vec![
            property("id", &volume.id),
            property("name", &volume.name),
            property("kind", kind(volume.snapshot)),
            property("locator", &volume.locator),
            property("origin", &volume.origin),
            property("size", table::size(volume.size_bytes)),
        ];
        rows.extend(each("would", &self.would));
        vec![Table::properties(self, rows)]
    }
}

/// What unmanage answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Unmanaged {
    id: String,
    locator: Option<String>,
    changed: bool,
    operation_id: Option<String>,
}

impl From<v1::UnmanageResponse> for Unmanaged {
    fn from(response: v1::UnmanageResponse) -> Self {
        Self {
            id: response.id,
            locator: some(response.locator),
            changed: response.changed,
            operation_id: some(response.operation_id),
        }
    }
}

impl View for Unmanaged {
    fn tables(&self) -> Vec<Table> {
        let locator = perhaps("locator", self.locator.as_ref());
        let rows = vec![property("id", &self.id), locator, property("changed", self.changed)];
        vec![Table::properties(self, rows)]
    }
}

/// Something that could be managed, or why not.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Manageable {
    reference: String,
    size_bytes: u64,
    safe_to_manage: bool,
    reason_not_safe: Option<String>,
    volume_id: Option<String>,
    snapshot: bool,
}

impl From<v1::Manageable> for Manageable {
    fn from(entry: v1::Manageable) -> Self {
        Self {
            reference: entry.reference,
            size_bytes: entry.size_bytes,
            safe_to_manage: entry.safe_to_manage,
            reason_not_safe: some(entry.reason_not_safe),
            volume_id: some(entry.volume_id),
            snapshot: entry.snapshot,
        }
    }
}

impl Row for Manageable {
    const COLUMNS: &'static [&'static str] =
        &["reference", "kind", "size", "safe_to_manage", "reason_not_safe", "volume_id"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.reference).into(),
            kind(self.snapshot),
            table::size(self.size_bytes),
            self.safe_to_manage.into(),
            (&self.reason_not_safe).into(),
            (&self.volume_id).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    #[test]
    fn managed_json_and_table() {
        let volume = v1::Volume {
            id: "9394b827-4ad0-488e-8df8-26476b3a8662".into(),
            name: "int32bit-test-manage".into(),
            locator: "lvm:cinder-volumes/volume-9394b827-4ad0-488e-8df8-26476b3a8662".into(),
            origin: "lvm:cinder-volumes/int32bit-test-LV".into(),
            size_bytes: 1 << 30,
            snapshot: false,
        };
        let managed = Managed::new(volume, true, String::new(), Vec::new());
        assert_eq!(
            to_value(&managed).unwrap(),
            json!({
                "id": "9394b827-4ad0-488e-8df8-26476b3a8662",
                "name": "int32bit-test-manage",
                "locator": "lvm:cinder-volumes/volume-9394b827-4ad0-488e-8df8-26476b3a8662",
                "origin": "lvm:cinder-volumes/int32bit-test-LV",
                "size_bytes": 1_073_741_824,
                "snapshot": false,
                "changed": true,
                "operation_id": null,
            })
        );
        assert!(drawn(&managed).contains("| name     | int32bit-test-manage "), "{}", drawn(&managed));
    }

    #[test]
    fn manageable_json() {
        let safe =
            v1::Manageable { reference: "lvm:vg/a".into(), size_bytes: 1, safe_to_manage: true, ..Default::default() };
        let taken = v1::Manageable {
            reference: "lvm:vg/b".into(),
            size_bytes: 2,
            reason_not_safe: "it is managed already".into(),
            volume_id: "u".into(),
            snapshot: true,
            ..Default::default()
        };
        assert_eq!(
            to_value([Manageable::from(safe), Manageable::from(taken)]).unwrap(),
            json!([
                { "reference": "lvm:vg/a", "size_bytes": 1, "safe_to_manage": true, "reason_not_safe": null,
                  "volume_id": null, "snapshot": false },
                { "reference": "lvm:vg/b", "size_bytes": 2, "safe_to_manage": false,
                  "reason_not_safe": "it is managed already", "volume_id": "u", "snapshot": true },
            ])
        );
    }

    #[test]
    fn unmanaged_json() {
        let response = v1::UnmanageResponse { id: "u".into(), ..Default::default() };
        assert_eq!(
            to_value(Unmanaged::from(response)).unwrap(),
            json!({ "id": "u", "locator": null, "changed": false, "operation_id": null })
        );
    }
}
