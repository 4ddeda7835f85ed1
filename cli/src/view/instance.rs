//! Instances: what instances, show, rescue, unrescue and instance print.

use super::{View, seconds, some, timestamp, word};
use crate::table::{self, Cell, Property, Row, Table, each, perhaps, property};
use jiff::Timestamp;
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Instance {
    uuid: String,
    name: String,
    power: String,
    persistent: bool,
    autostart: bool,
    managed_save: bool,
    snapshots: u32,
    disks: Vec<Disk>,
    rescue: Option<Rescue>,
}

/// One of many: without its disks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct InstanceRow {
    uuid: String,
    name: String,
    power: String,
    persistent: bool,
    autostart: bool,
    managed_save: bool,
    snapshots: u32,
    rescue: Option<Rescue>,
}

#[derive(Debug, Default, Serialize)]
struct Disk {
    target: String,
    source: Option<String>,
    bus: String,
    device: String,
    format: Option<String>,
    serial: Option<String>,
    read_only: bool,
    role: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Rescue {
    state: String,
    image: Option<String>,
    volume: Option<String>,
    disk: String,
    layout: String,
    attachment_id: Option<String>,
    power_before: String,
    changed_since: bool,
    rescued_at: Option<Timestamp>,
}

/// What rescue answers.
#[derive(Default, Serialize)]
pub(crate) struct Rescued {
    instance: Instance,
    changed: bool,
    password: Option<String>,
    warnings: Vec<String>,
    operation_id: Option<String>,
    /// Only after a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would: Vec<String>,
}

/// What unrescue answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Unrescued {
    instance: Option<Instance>,
    changed: bool,
    rebound: Vec<String>,
    operation_id: Option<String>,
}

/// What instance start, stop and reboot answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Powered {
    instance: Option<Instance>,
    changed: bool,
    stopped: Option<String>,
    operation_id: Option<String>,
}

fn power(power: v1::InstancePower) -> String {
    word(power.as_str_name(), "INSTANCE_POWER_")
}

impl From<v1::Instance> for Instance {
    fn from(instance: v1::Instance) -> Self {
        let power = power(instance.power());
        Self {
            uuid: instance.uuid,
            name: instance.name,
            power,
            persistent: instance.persistent,
            autostart: instance.autostart,
            managed_save: instance.managed_save,
            snapshots: instance.snapshots,
            disks: instance.disks.into_iter().map(Disk::from).collect(),
            rescue: instance.rescue.map(Rescue::from),
        }
    }
}

impl From<v1::Instance> for InstanceRow {
    fn from(instance: v1::Instance) -> Self {
        let Instance { uuid, name, power, persistent, autostart, managed_save, snapshots, rescue, .. } =
            instance.into();
        Self { uuid, name, power, persistent, autostart, managed_save, snapshots, rescue }
    }
}

impl From<v1::InstanceDisk> for Disk {
    fn from(disk: v1::InstanceDisk) -> Self {
        let role = match disk.role() {
            v1::InstanceDiskRole::Unspecified => None,
            role => Some(word(role.as_str_name(), "INSTANCE_DISK_ROLE_")),
        };
        Self {
            target: disk.target,
            source: some(disk.source),
            bus: disk.bus,
            device: disk.device,
            format: some(disk.format),
            serial: some(disk.serial),
            read_only: disk.read_only,
            role,
        }
    }
}

impl From<v1::InstanceRescue> for Rescue {
    fn from(rescue: v1::InstanceRescue) -> Self {
        let (state, layout) = (rescue.state().as_str_name(), rescue.layout().as_str_name());
        let (state, layout) = (word(state, "INSTANCE_RESCUE_STATE_"), word(layout, "RESCUE_LAYOUT_"));
        let power_before = power(rescue.power_before());
        let (image, volume) = match rescue.image {
            true => (Some(rescue.locator), None),
            false => (None, Some(rescue.locator)),
        };
        Self {
            state,
            image,
            volume,
            disk: rescue.disk,
            layout,
            attachment_id: some(rescue.attachment_id),
            power_before,
            changed_since: rescue.changed_since,
            rescued_at: timestamp(rescue.rescued_at),
        }
    }
}

impl Rescued {
    /// `None` if the agent's answer has not all that it should.
    pub(crate) fn new(response: v1::RescueResponse) -> Option<Self> {
        Some(Self {
            instance: response.instance?.into(),
            changed: response.changed,
            password: some(response.password),
            warnings: response.warnings,
            operation_id: some(response.operation_id),
            would: response.would,
        })
    }
}

impl From<v1::UnrescueResponse> for Unrescued {
    fn from(response: v1::UnrescueResponse) -> Self {
        Self {
            instance: response.instance.map(Instance::from),
            changed: response.changed,
            rebound: response.rebound,
            operation_id: some(response.operation_id),
        }
    }
}

impl From<v1::PowerResponse> for Powered {
    fn from(response: v1::PowerResponse) -> Self {
        let stopped = match response.stopped() {
            v1::Stopped::Unspecified => None,
            stopped => Some(word(stopped.as_str_name(), "STOPPED_")),
        };
        Self {
            stopped,
            instance: response.instance.map(Instance::from),
            changed: response.changed,
            operation_id: some(response.operation_id),
        }
    }
}

impl Rescue {
    /// The rows of an instance that is not rescued.
    fn none() -> Vec<Property> {
        Self::default().rows().into_iter().map(|(name, _)| (name, None)).collect()
    }

    fn rows(&self) -> Vec<Property> {
        let changed = "by somebody else; unrescue --discard-changes loses that";
        vec![
            property("rescue", table::state(&self.state)),
            perhaps("image", self.image.as_ref()),
            perhaps("volume", self.volume.as_ref()),
            property("rescue_disk", &self.disk),
            property("layout", &self.layout),
            perhaps("attachment", self.attachment_id.as_ref()),
            property("power_before", &self.power_before),
            perhaps("changed_since", self.changed_since.then(|| table::problem(changed))),
            perhaps("rescued_at", self.rescued_at.map(seconds)),
        ]
    }
}

impl Instance {
    fn rows(&self) -> Vec<Property> {
        let power = property("power", table::state(&self.power));
        let mut rows = vec![property("name", &self.name), property("uuid", &self.uuid), power];
        rows.extend(self.rescue.as_ref().map_or_else(Rescue::none, Rescue::rows));
        rows
    }
}

/// As `virsh domblklist` has them, and what each is for.
impl Row for Disk {
    const COLUMNS: &'static [&'static str] = &["Target", "Source", "Role"];

    fn cells(&self) -> Vec<Cell> {
        let source = self.source.as_deref().unwrap_or("-");
        vec![(&self.target).into(), source.into(), (&self.role).into()]
    }
}

/// An instance of which something was asked: the instance, what came of it, and its disks. `None` only if the agent says
/// nothing of it; its columns are known all the same.
fn asked(of: &impl Serialize, instance: Option<&Instance>, came: Vec<Property>, disks: bool) -> Vec<Table> {
    let nothing = || Instance::default().rows().into_iter().map(|(name, _)| (name, None)).collect();
    let mut rows = instance.map_or_else(nothing, Instance::rows);
    rows.extend(came);
    let mut tables = vec![Table::properties(of, rows)];
    if disks {
        tables.push(Table::list(instance.map_or(&[], |instance| &instance.disks)));
    }
    tables
}

impl View for Instance {
    /// Two tables: the instance, and its disks.
    fn tables(&self) -> Vec<Table> {
        let more = vec![
            property("persistent", self.persistent),
            property("autostart", self.autostart),
            property("managed_save", self.managed_save),
            property("snapshots", self.snapshots.to_string()),
        ];
        asked(self, Some(self), more, true)
    }
}

impl Row for InstanceRow {
    const COLUMNS: &'static [&'static str] = &["name", "uuid", "power", "autostart", "rescue"];

    fn cells(&self) -> Vec<Cell> {
        vec![
            (&self.name).into(),
            (&self.uuid).into(),
            table::state(&self.power),
            self.autostart.into(),
            self.rescue.as_ref().map(|rescue| table::state(&rescue.state)).unwrap_or_default(),
        ]
    }
}

impl View for Rescued {
    fn tables(&self) -> Vec<Table> {
        let mut came = vec![perhaps("password", self.password.as_ref()), property("changed", self.changed)];
        came.extend(each("would", &self.would));
        asked(self, Some(&self.instance), came, true)
    }
}

impl View for Unrescued {
    fn tables(&self) -> Vec<Table> {
        asked(self, self.instance.as_ref(), vec![property("changed", self.changed)], true)
    }
}

impl View for Powered {
    fn tables(&self) -> Vec<Table> {
        let came = vec![perhaps("stopped", self.stopped.as_ref()), property("changed", self.changed)];
        asked(self, self.instance.as_ref(), came, false)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    fn instance() -> v1::Instance {
        let disk = |target: &str, source: &str, role: v1::InstanceDiskRole| v1::InstanceDisk {
            target: target.into(),
            source: source.into(),
            bus: "virtio".into(),
            device: "disk".into(),
            role: role.into(),
            ..Default::default()
        };
        v1::Instance {
            uuid: "u".into(),
            name: "web1".into(),
            power: v1::InstancePower::Running.into(),
            persistent: true,
            disks: vec![
                disk("vda", "/dev/mortar/rescue-u", v1::InstanceDiskRole::Rescue),
                disk("vdb", "/dev/vg/root", v1::InstanceDiskRole::Root),
                disk("sda", "", v1::InstanceDiskRole::Unspecified),
            ],
            rescue: Some(v1::InstanceRescue {
                state: v1::InstanceRescueState::Rescued.into(),
                locator: "lvm:vg/image".into(),
                image: true,
                disk: "lvm:vg/rescue-u".into(),
                layout: v1::RescueLayout::Classic.into(),
                power_before: v1::InstancePower::Off.into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn disks_are_listed_as_by_virsh() {
        let shown = drawn(&Instance::from(instance()));
        assert!(
            shown.ends_with(
                "\
+--------+----------------------+--------+
| Target | Source               | Role   |
+--------+----------------------+--------+
| vda    | /dev/mortar/rescue-u | rescue |
| vdb    | /dev/vg/root         | root   |
| sda    | -                    |        |
+--------+----------------------+--------+"
            ),
            "{shown}"
        );
    }

    #[test]
    fn json() {
        let reply = v1::RescueResponse {
            instance: Some(instance()),
            changed: true,
            password: "hush".into(),
            operation_id: "o".into(),
            ..Default::default()
        };
        let rescued = Rescued::new(reply).unwrap();
        assert!(drawn(&rescued).contains("| password     | hush "), "{}", drawn(&rescued));
        let value = to_value(&rescued).unwrap();
        assert_eq!((&value["password"], &value["instance"]["power"]), (&json!("hush"), &json!("running")));
        let rescue = json!({
            "state": "rescued",
            "image": "lvm:vg/image",
            "volume": null,
            "disk": "lvm:vg/rescue-u",
            "layout": "classic",
            "attachment_id": null,
            "power_before": "off",
            "changed_since": false,
            "rescued_at": null,
        });
        assert_eq!(value["instance"]["rescue"], rescue);
        assert_eq!(value["instance"]["disks"][2]["source"], json!(null));
    }
}
