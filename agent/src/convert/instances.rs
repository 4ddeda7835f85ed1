//! Instances and their rescue, for the wire and from it.

use super::{Patience, timestamp};
use crate::{
    config,
    operation::{
        InstanceNow, PowerReply, PowerRequest, PowerVerb, RescueDisk, RescueReply, RescueRequest, RescueState, Rescued,
        Role, UnrescueReply, UnrescueRequest,
    },
    seed::Seed,
};
use driver::{Error, Result};
use hypervisor::{
    InstanceName, Power, Stopped,
    definition::{Bus, Device, Layout, Source},
};
use proto::v1;
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;

/// How long a guest may take, and the time for everything else on top of it.
fn times(
    patience: Patience,
    config: &config::Rescue,
    asked: Option<u64>,
    timeout_ms: u64,
) -> Result<(Duration, tokio::time::Instant)> {
    let grace = asked.map_or_else(|| config.grace(), Duration::from_millis);
    if grace > config::Rescue::LONGEST_GRACE {
        return Err(Error::invalid("grace_ms", "it is more than 10 minutes; write milliseconds"));
    }
    Ok((grace, patience.deadline_after(grace, timeout_ms)?))
}

pub(crate) fn rescue_request(
    wire: v1::RescueRequest,
    patience: Patience,
    config: &config::Rescue,
) -> Result<RescueRequest> {
    let (grace, deadline) = times(patience, config, wire.grace_ms, wire.timeout_ms)?;
    let layout = match wire.layout() {
        v1::RescueLayout::Stable => Layout::Stable,
        v1::RescueLayout::Unspecified | v1::RescueLayout::Classic => Layout::Classic,
    };
    let bus = match wire.bus() {
        v1::DiskBus::Unspecified => None,
        v1::DiskBus::Virtio => Some(Bus::Virtio),
        v1::DiskBus::Scsi => Some(Bus::Scsi),
        v1::DiskBus::Sata => Some(Bus::Sata),
        v1::DiskBus::Ide => Some(Bus::Ide),
        v1::DiskBus::Usb => Some(Bus::Usb),
    };
    if wire.without_data_disks && layout == Layout::Stable {
        return Err(Error::invalid(
            "without_data_disks",
            "in the stable layout every disk keeps its place; leave it out",
        ));
    }
    let some = |text: String| (!text.is_empty()).then(|| SecretString::from(text));
    let seed = Seed { password: some(wire.password), ssh_keys: wire.ssh_keys, user_data: some(wire.user_data) };
    seed.check()?;
    let is_empty = seed.password.is_none() && seed.ssh_keys.is_empty() && seed.user_data.is_none();
    if wire.no_seed && !is_empty {
        let why = "a password, keys and user data reach the rescue system by the seed only; leave out one of the two";
        return Err(Error::invalid("no_seed", why));
    }
    Ok(RescueRequest {
        instance: wire.instance.parse()?,
        disk: match wire.disk {
            Some(v1::rescue_request::Disk::Image(locator)) => RescueDisk::Image(parse("image", &locator)?),
            Some(v1::rescue_request::Disk::Volume(locator)) => RescueDisk::Volume(parse("volume", &locator)?),
            None => return Err(Error::invalid("disk", "say what to boot from: give an image or a volume")),
        },
        layout,
        bus,
        data_disks: !wire.without_data_disks,
        seed: (!wire.no_seed).then_some(seed),
        grace,
        deadline,
        dry_run: wire.dry_run,
    })
}

/// A locator, refused by the name of its field.
fn parse(field: &'static str, text: &str) -> Result<driver::Locator> {
    text.parse().map_err(|error| match error {
        Error::Invalid { why, .. } => Error::Invalid { field, why },
        other => other,
    })
}

pub(crate) fn unrescue_request(
    wire: &v1::UnrescueRequest,
    patience: Patience,
    config: &config::Rescue,
) -> Result<UnrescueRequest> {
    let (grace, deadline) = times(patience, config, wire.grace_ms, wire.timeout_ms)?;
    Ok(UnrescueRequest { instance: wire.instance.parse()?, discard_changes: wire.discard_changes, grace, deadline })
}

pub(crate) fn power_request(
    power: PowerVerb,
    (instance, grace_ms, timeout_ms): (&str, Option<u64>, u64),
    patience: Patience,
    config: &config::Rescue,
) -> Result<PowerRequest> {
    let (grace, deadline) = times(patience, config, grace_ms, timeout_ms)?;
    Ok(PowerRequest { instance: instance.parse()?, power, grace, deadline })
}

pub(crate) fn instance_name(text: &str) -> Result<InstanceName> {
    text.parse()
}

pub(crate) fn rescue_response(from: RescueReply) -> v1::RescueResponse {
    v1::RescueResponse {
        instance: Some(instance(from.instance)),
        changed: from.changed,
        password: from.password.map(|password| password.expose_secret().to_owned()).unwrap_or_default(),
        warnings: from.warnings,
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
        would: from.would,
    }
}

pub(crate) fn unrescue_response(from: UnrescueReply) -> v1::UnrescueResponse {
    v1::UnrescueResponse {
        instance: from.instance.map(instance),
        changed: from.changed,
        rebound: from.rebound,
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(crate) fn power_response(from: PowerReply) -> v1::PowerResponse {
    let stopped = match from.stopped {
        None => v1::Stopped::Unspecified,
        Some(Stopped::WasOff) => v1::Stopped::WasOff,
        Some(Stopped::Gracefully) => v1::Stopped::Gracefully,
        Some(Stopped::Hard) => v1::Stopped::Hard,
    };
    v1::PowerResponse {
        instance: from.instance.map(instance),
        changed: from.changed,
        stopped: stopped.into(),
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(crate) fn instance(from: InstanceNow) -> v1::Instance {
    let InstanceNow { instance, disks, rescue } = from;
    v1::Instance {
        uuid: instance.uuid.to_string(),
        name: instance.name,
        power: power(instance.power).into(),
        persistent: instance.persistent,
        autostart: instance.autostart,
        managed_save: instance.managed_save,
        snapshots: instance.snapshots,
        disks: disks.into_iter().map(disk).collect(),
        rescue: rescue.map(rescued),
    }
}

fn disk((disk, role): (hypervisor::definition::Disk, Role)) -> v1::InstanceDisk {
    let role = match role {
        Role::Own => v1::InstanceDiskRole::Unspecified,
        Role::Root => v1::InstanceDiskRole::Root,
        Role::Rescue => v1::InstanceDiskRole::Rescue,
        Role::Seed => v1::InstanceDiskRole::Seed,
    };
    let device = match disk.device {
        Device::Disk => "disk",
        Device::Lun => "lun",
        Device::Cdrom => "cdrom",
        Device::Floppy => "floppy",
    };
    v1::InstanceDisk {
        target: disk.target,
        source: match disk.source {
            Source::Empty => String::new(),
            Source::Rbd(image) => format!("rbd:{image}"),
            other => other.to_string(),
        },
        bus: disk.bus,
        device: device.into(),
        format: disk.format.unwrap_or_default(),
        serial: disk.serial.unwrap_or_default(),
        read_only: disk.read_only,
        role: role.into(),
    }
}

fn power(from: Power) -> v1::InstancePower {
    match from {
        Power::Running => v1::InstancePower::Running,
        Power::Paused => v1::InstancePower::Paused,
        Power::Off => v1::InstancePower::Off,
        Power::Other => v1::InstancePower::Other,
    }
}

fn rescued(from: Rescued) -> v1::InstanceRescue {
    let Rescued { record, changed_since } = from;
    let state = match record.state {
        RescueState::Rescuing => v1::InstanceRescueState::Rescuing,
        RescueState::Rescued => v1::InstanceRescueState::Rescued,
        RescueState::Unrescuing { .. } => v1::InstanceRescueState::Unrescuing,
    };
    let layout = match record.layout {
        Layout::Classic => v1::RescueLayout::Classic,
        Layout::Stable => v1::RescueLayout::Stable,
    };
    v1::InstanceRescue {
        state: state.into(),
        locator: record.disk.locator().to_string(),
        image: matches!(record.disk, RescueDisk::Image(_)),
        disk: record.at().to_string(),
        layout: layout.into(),
        attachment_id: record.attachment().map(ToString::to_string).unwrap_or_default(),
        power_before: power(record.power).into(),
        changed_since,
        rescued_at: timestamp(record.created_ms),
    }
}
