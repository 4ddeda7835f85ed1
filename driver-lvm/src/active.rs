//! Which LVs are active, as the kernel tells it: `/sys/block/dm-*/dm/uuid` is `LVM-`, the VG's UUID and the LV's, and for
//! the inner layers of an LV a suffix (lvm2 `lib/activate/dev_manager.c`, `build_dm_uuid`). No process, no device asked.

use crate::failed;
use driver::{Device, DevicePath, Identity, LogicalVolume, Result};
use host::{Host, block_device};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// An LV's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Active {
    /// `dm-3`
    pub(crate) device: String,
    pub(crate) vg_uuid: String,
    pub(crate) lv_uuid: String,
    /// Its names of today.
    pub(crate) at: LogicalVolume,
}

impl Active {
    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.device)
    }

    /// What sysfs tells of the device; `None` if it has just gone.
    pub(crate) fn device(&self, host: &dyn Host) -> Result<Option<Device>> {
        let looking = || failed(format!("look at {}", self.device));
        let Some(block) = block_device(host, &self.device).map_err(looking())? else { return Ok(None) };
        let suspended = Path::new("/sys/block").join(&self.device).join("dm/suspended");
        let suspended = host.read(&suspended).map_err(looking())?.is_some_and(|text| text == "1");
        Ok(Some(Device {
            path: self.node(),
            identity: Identity::Lvm { vg_uuid: self.vg_uuid.clone(), lv_uuid: self.lv_uuid.clone() },
            size_bytes: block.size_bytes,
            logical_block_size: block.logical_block_size,
            physical_block_size: block.physical_block_size,
            read_only: block.read_only,
            paths: vec![DevicePath {
                device: self.node(),
                portal: None,
                state: if suspended { "suspended" } else { "active" }.into(),
                problem: None,
            }],
        }))
    }
}

/// What the device mapper knows an LV by.
pub(crate) fn mapper_uuid(vg_uuid: &str, lv_uuid: &str) -> String {
    format!("LVM-{vg_uuid}{lv_uuid}")
}

/// Every LV that is active, without its inner layers.
pub(crate) fn list(host: &dyn Host) -> Result<Vec<Active>> {
    read(host).map_err(failed("list the active LVs"))
}

pub(crate) fn read(host: &dyn Host) -> host::Result<Vec<Active>> {
    let mut found = Vec::new();
    for device in host.list(Path::new("/sys/block"))?.into_iter().filter(|name| name.starts_with("dm-")) {
        found.extend(one(host, device)?);
    }
    Ok(found)
}

/// The LV that has this device now.
fn one(host: &dyn Host, device: String) -> host::Result<Option<Active>> {
    let directory = Path::new("/sys/block").join(&device).join("dm");
    let (uuid, name) = (host.read(&directory.join("uuid"))?, host.read(&directory.join("name"))?);
    let (Some(uuid), Some(name)) = (uuid, name) else { return Ok(None) };
    let Some(((vg_uuid, lv_uuid), at)) = uuids(&uuid).zip(names(&name)) else { return Ok(None) };
    Ok(Some(Active { device, vg_uuid: vg_uuid.into(), lv_uuid: lv_uuid.into(), at }))
}

/// Which device each LV had when all were last read: that one is looked at first, and believed only in what it says now. To
/// read all of them for each attachment would be a million looks for a thousand attachments.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<(String, String), String>>);

impl Seen {
    /// The device of the LV with these UUIDs.
    pub(crate) fn find(&self, host: &dyn Host, vg_uuid: &str, lv_uuid: &str) -> Result<Option<Active>> {
        let is_it = |lv: &Active| lv.vg_uuid == vg_uuid && lv.lv_uuid == lv_uuid;
        let last = self.devices().get(&(vg_uuid.to_owned(), lv_uuid.to_owned())).cloned();
        if let Some(device) = last
            && let Some(lv) = one(host, device).map_err(failed("look at an active LV"))?.filter(is_it)
        {
            return Ok(Some(lv));
        }
        let all = list(host)?;
        let device_of = |lv: &Active| ((lv.vg_uuid.clone(), lv.lv_uuid.clone()), lv.device.clone());
        *self.devices() = all.iter().map(device_of).collect();
        Ok(all.into_iter().find(is_it))
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<(String, String), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The LVs that come and go with this one: a thick snapshot's origin and the other snapshots of it. Below all of them is
/// the origin's own data, a device whose UUID ends in `-real`.
pub(crate) fn companions(host: &dyn Host, of: &Active) -> Result<Vec<Active>> {
    let mut names = Vec::new();
    let mut follow = || -> host::Result<()> {
        let block = Path::new("/sys/block");
        for slave in host.list(&block.join(&of.device).join("slaves"))? {
            let uuid = host.read(&block.join(&slave).join("dm/uuid"))?;
            if uuid.is_some_and(|uuid| uuid.starts_with("LVM-") && uuid.ends_with("-real")) {
                names.extend(host.list(&block.join(slave).join("holders"))?);
            }
        }
        Ok(())
    };
    follow().map_err(failed(format!("look for the snapshots of {}", of.device)))?;
    let others = list(host)?.into_iter().filter(|other| other.device != of.device);
    Ok(others.filter(|other| names.contains(&other.device)).collect())
}

/// The VG's UUID and the LV's; `None` of an inner layer, and of what is not LVM's.
pub(crate) fn uuids(dm_uuid: &str) -> Option<(&str, &str)> {
    let uuids = dm_uuid.strip_prefix("LVM-")?;
    (uuids.len() == 64 && uuids.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| uuids.split_at(32))
}

/// The names in a device mapper name: joined by a dash, with their own dashes doubled (lvm2 `dm_build_dm_name`).
pub(crate) fn names(dm_name: &str) -> Option<LogicalVolume> {
    let mut parts = vec![String::new()];
    let mut rest = dm_name.chars().peekable();
    while let Some(c) = rest.next() {
        let doubled = c == '-' && rest.next_if_eq(&'-').is_some();
        match parts.last_mut() {
            Some(part) if c != '-' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    let [vg, lv] = parts.as_slice() else { return None };
    Some(LogicalVolume { vg: vg.parse().ok()?, lv: lv.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn inner_layers_and_strangers_are_not_lvs() {
        let uuid = format!("LVM-{}{}", "v".repeat(32), "l".repeat(32));
        assert_eq!(uuids(&uuid), Some(("v".repeat(32).as_str(), "l".repeat(32).as_str())));
        for other in [&format!("{uuid}-real"), &format!("{uuid}-tpool"), "mpath-36001", "LVM-", "CRYPT-LUKS2-x", ""] {
            assert_eq!(uuids(other), None, "{other}");
        }
    }

    #[test]
    fn names_with_dashes() {
        let both = |name: &str| names(name).map(|at| (at.vg.to_string(), at.lv.to_string()));
        assert_eq!(both("vga-a--b"), Some(("vga".into(), "a-b".into())));
        assert_eq!(both("v--g-volume--1--2"), Some(("v-g".into(), "volume-1-2".into())));
        assert_eq!(both("vg-x---y"), None, "three dashes are a doubled one and a third part");
        for other in ["", "vg", "vg-", "-lv", "vg-orig-real"] {
            assert_eq!(both(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn names_survive_the_kernel(vg in "[a-z0-9_+.][a-z0-9_+.-]{0,20}", lv in "[a-z0-9_+.][a-z0-9_+.-]{0,20}") {
            let joined = format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"));
            if let (Ok(vg), Ok(lv)) = (vg.parse(), lv.parse()) {
                prop_assert_eq!(names(&joined), Some(LogicalVolume { vg, lv }));
            }
        }

        #[test]
        fn no_name_panics(text in "\\PC{0,40}") {
            let _ = (names(&text), uuids(&text));
        }
    }
}
