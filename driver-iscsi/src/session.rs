//! What sysfs tells of iSCSI sessions and the units behind them (`drivers/scsi/scsi_transport_iscsi.c`,
//! `Documentation/ABI/testing/sysfs-class-iscsi*`, `drivers/scsi/scsi_sysfs.c`).
//!
//! ```text
//! /sys/class/iscsi_session/session3/      targetname, state, ifacename, target_id
//!                         …/device  ────▶ /sys/devices/platform/host2/session3
//! /sys/class/iscsi_connection/connection3:0/  persistent_address, persistent_port
//! /sys/class/scsi_host/host2/scan             ◀── "0 0 1"
//! /sys/class/scsi_device/2:0:0:1/device/      type, state, wwid, block/sdb, delete, rescan
//! ```

use crate::{place::Place, record::INTERFACE};
use driver::{Iqn, Lun, Portal};
use host::{BlockDevice, Host, Result, block_device};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

const SESSIONS: &str = "/sys/class/iscsi_session";
const UNITS: &str = "/sys/class/scsi_device";

/// A login to a target by one portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// The number that `iscsiadm` knows it by.
    pub(crate) id: u32,
    /// It was made through our interface.
    pub(crate) ours: bool,
    state: String,
    host: u32,
    target: u32,
}

impl Session {
    /// Commands pass. Otherwise it has lost its connection, and the daemon tries to get it back.
    pub(crate) fn is_up(&self) -> bool {
        self.state == "LOGGED_IN"
    }

    /// Its name in sysfs.
    pub(crate) fn name(&self) -> String {
        format!("session{}", self.id)
    }

    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// Where units are looked for.
    pub(crate) fn scan(&self) -> PathBuf {
        PathBuf::from(format!("/sys/class/scsi_host/host{}/scan", self.host))
    }

    /// What is written there to look for one unit: channel, target, unit.
    pub(crate) fn scan_for(&self, lun: Lun) -> String {
        format!("0 {} {lun}", self.target)
    }

    /// A unit's place on this session, whether or not it is there.
    pub(crate) fn unit(&self, lun: Lun) -> Unit {
        Unit { address: format!("{}:0:{}:{lun}", self.host, self.target) }
    }

    /// Whether the kernel has a device for any unit on this session.
    pub(crate) fn has_units(&self, host: &dyn Host) -> Result<bool> {
        let ours = format!("{}:0:{}:", self.host, self.target);
        Ok(host.list(Path::new(UNITS))?.iter().any(|address| address.starts_with(&ours)))
    }

    /// The numbers of the units for which the kernel has a device.
    pub(crate) fn luns(&self, host: &dyn Host) -> Result<Vec<Lun>> {
        let ours = format!("{}:0:{}:", self.host, self.target);
        let mut luns: Vec<Lun> =
            host.list(Path::new(UNITS))?.iter().filter_map(|unit| unit.strip_prefix(&ours)?.parse().ok()).collect();
        luns.sort_unstable();
        Ok(luns)
    }

    /// The same session as it is now; `None` if it is gone.
    pub(crate) fn again(&self, host: &dyn Host) -> Result<Option<Self>> {
        Ok(read(host, &self.name())?.map(|(session, _)| session))
    }
}

/// Whose sessions are whose: the target of each that was seen and still stands, so that a hundred others cost no more than
/// one. A session's number comes only once in the life of its kernel module, and with that the class's directory is another.
#[derive(Debug, Default)]
pub(crate) struct Targets(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The inode of the class's directory.
    class: Option<u64>,
    /// By the session's name.
    iqns: BTreeMap<String, String>,
}

impl Targets {
    /// The names of the sessions to a target.
    fn sessions_to(&self, host: &dyn Host, target: &Iqn) -> Result<Vec<String>> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = host.list(Path::new(SESSIONS))?;
        let class = host.stat(Path::new(SESSIONS))?.map(|class| class.inode);
        let mut before = std::mem::take(&mut seen.iqns);
        if std::mem::replace(&mut seen.class, class) != class {
            before.clear();
        }
        let mut found = Vec::new();
        for name in names {
            let iqn = match before.remove(&name) {
                Some(iqn) => iqn,
                None => match host.read(&Path::new(SESSIONS).join(&name).join("targetname"))? {
                    Some(iqn) => iqn,
                    None => continue,
                },
            };
            // Without regard to case (RFC 7143 section 4.2.7.2).
            if iqn.eq_ignore_ascii_case(target.as_str()) {
                found.push(name.clone());
            }
            // The kernel makes a session before it is told of its target (`(null)`, until then).
            if iqn.parse::<Iqn>().is_ok() {
                seen.iqns.insert(name, iqn);
            }
        }
        Ok(found)
    }
}

/// The sessions to a target by a portal: ours first, those that are up first.
pub(crate) fn sessions(host: &dyn Host, targets: &Targets, place: &Place) -> Result<Vec<Session>> {
    let mut found = Vec::new();
    for name in targets.sessions_to(host, &place.iqn)? {
        if let Some((session, portal)) = read(host, &name)?
            && portal == Some(place.portal)
        {
            found.push(session);
        }
    }
    found.sort_by_key(|session| (!session.ours, !session.is_up(), session.id));
    Ok(found)
}

/// A session, whoever's, with the names of its target and portal as the kernel tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) session: Session,
    pub(crate) iqn: String,
    pub(crate) interface: String,
    pub(crate) portal: Option<Portal>,
}

/// Every session on this machine, by number.
pub(crate) fn all(host: &dyn Host) -> Result<Vec<Named>> {
    let mut found = Vec::new();
    for name in host.list(Path::new(SESSIONS))? {
        let attribute = |attribute| host.read(&Path::new(SESSIONS).join(&name).join(attribute));
        if let (Some((session, portal)), Some(iqn)) = (read(host, &name)?, attribute("targetname")?) {
            found.push(Named { session, iqn, interface: attribute("ifacename")?.unwrap_or_default(), portal });
        }
    }
    found.sort_by_key(|named| named.session.id);
    Ok(found)
}

/// Whether there is any session of ours on this machine.
pub(crate) fn any_ours(host: &dyn Host) -> Result<bool> {
    for name in host.list(Path::new(SESSIONS))? {
        if host.read(&Path::new(SESSIONS).join(name).join("ifacename"))?.as_deref() == Some(INTERFACE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One session and its portal; `None` if it goes just now.
fn read(host: &dyn Host, name: &str) -> Result<Option<(Session, Option<Portal>)>> {
    let directory = Path::new(SESSIONS).join(name);
    let attribute = |name: &str| host.read(&directory.join(name));
    let Some(id) = name.strip_prefix("session").and_then(|id| id.parse().ok()) else { return Ok(None) };
    let Some(state) = attribute("state")? else { return Ok(None) };
    let Some(device) = host.resolve(&directory.join("device"))? else { return Ok(None) };
    let Some(number) = device.parent().and_then(scsi_host) else { return Ok(None) };
    let target = attribute("target_id")?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let ours = attribute("ifacename")?.as_deref() == Some(INTERFACE);
    Ok(Some((Session { id, ours, state, host: number, target }, portal(host, id)?)))
}

/// `/sys/devices/platform/host2` → 2
fn scsi_host(directory: &Path) -> Option<u32> {
    directory.file_name()?.to_str()?.strip_prefix("host")?.parse().ok()
}

/// The portal as it was given at the login: a target may have sent us on to another (RFC 7143 section 11.13.5).
fn portal(host: &dyn Host, session: u32) -> Result<Option<Portal>> {
    let directory = PathBuf::from(format!("/sys/class/iscsi_connection/connection{session}:0"));
    let address = host.read(&directory.join("persistent_address"))?.and_then(|text| text.parse::<IpAddr>().ok());
    let port = host.read(&directory.join("persistent_port"))?.and_then(|text| text.parse().ok());
    Ok(address.zip(port).map(|(address, port)| Portal { address: address.to_canonical(), port }))
}

/// A logical unit by its address on this machine: `2:0:0:1` is host, channel, target, unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    address: String,
}

impl Unit {
    pub(crate) fn attribute(&self, name: &str) -> PathBuf {
        Path::new(UNITS).join(&self.address).join("device").join(name)
    }

    pub(crate) fn is_present(&self, host: &dyn Host) -> Result<bool> {
        Ok(host.stat(&Path::new(UNITS).join(&self.address))?.is_some())
    }

    /// The peripheral device type (SPC-4 section 6.6.2).
    pub(crate) fn kind(&self, host: &dyn Host) -> Result<Option<u8>> {
        Ok(host.read(&self.attribute("type"))?.and_then(|text| text.parse().ok()))
    }

    /// `running`, `blocked`, `transport-offline`, …
    pub(crate) fn state(&self, host: &dyn Host) -> Result<String> {
        Ok(host.read(&self.attribute("state"))?.unwrap_or_else(|| "gone".into()))
    }

    /// The name that the unit had when the kernel first met it, in sysfs's form.
    pub(crate) fn cached_name(&self, host: &dyn Host) -> Result<Option<String>> {
        Ok(host.read(&self.attribute("wwid"))?.filter(|name| !name.is_empty()))
    }

    /// Its block device; `None` until the disk driver has taken it.
    pub(crate) fn disk(&self, host: &dyn Host) -> Result<Option<BlockDevice>> {
        match host.list(&self.attribute("block"))?.first() {
            Some(name) => block_device(host, name),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;
    use proptest::prelude::*;

    /// A session 3 on host 2, by its attributes.
    fn machine(attributes: &[(&str, &str)]) -> Machine {
        let machine = Machine::new();
        machine.put_directory("/sys/devices/platform/host2/session3");
        machine.put_link("/sys/class/iscsi_session/session3/device", "/sys/devices/platform/host2/session3");
        for (name, value) in attributes {
            let class = if name.starts_with("persistent") {
                "iscsi_connection/connection3:0"
            } else {
                "iscsi_session/session3"
            };
            machine.put_file(format!("/sys/class/{class}/{name}"), *value);
        }
        machine
    }

    #[test]
    fn whose_a_session_is_is_read_once_it_is_known_and_anew_after_the_kernel_module() {
        const TARGETS: [&str; 2] = ["iqn.2026-11.org.example:t1", "iqn.2026-11.org.example:t2"];
        let machine = machine(&[("targetname", "(null)"), ("state", "LOGGED_IN"), ("target_id", "0")]);
        let name = "/sys/class/iscsi_session/session3/targetname";
        let targets = Targets::default();
        let found = |target: &str| targets.sessions_to(&machine, &target.parse().unwrap()).unwrap().len();
        assert_eq!(TARGETS.map(found), [0, 0]);
        machine.put_file(name, TARGETS[0]);
        assert_eq!(TARGETS.map(found), [1, 0]);
        // No kernel does this: it shows that nobody asks again.
        machine.put_file(name, TARGETS[1]);
        assert_eq!(TARGETS.map(found), [1, 0]);
        machine.remove_tree(SESSIONS);
        machine.put_file(name, TARGETS[1]);
        assert_eq!(TARGETS.map(found), [0, 1]);
    }

    proptest! {
        #[test]
        fn no_attribute_panics(
            values in proptest::array::uniform6("(\\PC|\n|LOGGED_IN|mortar|[0-9:.]){0,20}"), unit in "[0-9:]{0,12}",
        ) {
            let names = ["targetname", "state", "ifacename", "target_id", "persistent_address", "persistent_port"];
            let attributes: Vec<_> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
            let machine = machine(&attributes);
            machine.put_directory(format!("/sys/class/scsi_device/2:0:0:{unit}"));
            machine.put_directory(format!("/sys/class/iscsi_session/session{}", values[0].replace(['/', '\n', '\0'], "")));
            let _ours = any_ours(&machine).unwrap();
            for named in all(&machine).unwrap() {
                let _luns = named.session.luns(&machine).unwrap();
                prop_assert!(named.session.again(&machine).unwrap().is_some());
            }
        }

        #[test]
        fn a_session_is_read_back(address in any::<IpAddr>(), port in any::<u16>(), target in any::<u32>(), ours: bool, up: bool, lun in 0..16_384_u16) {
            let interface = if ours { INTERFACE } else { "default" };
            let machine = machine(&[
                ("targetname", "iqn.2026-11.org.example:t1"),
                ("state", if up { "LOGGED_IN" } else { "FAILED" }),
                ("ifacename", interface),
                ("target_id", &target.to_string()),
                ("persistent_address", &address.to_string()),
                ("persistent_port", &port.to_string()),
            ]);
            machine.put_directory(format!("/sys/class/scsi_device/2:0:{target}:{lun}"));
            let [named] = all(&machine).unwrap().try_into().unwrap();
            prop_assert_eq!((named.session.id, named.session.ours, named.session.is_up()), (3, ours, up));
            prop_assert_eq!((named.iqn.as_str(), named.interface.as_str()), ("iqn.2026-11.org.example:t1", interface));
            prop_assert_eq!(named.portal, Some(Portal { address: address.to_canonical(), port }));
            let luns: Vec<String> = named.session.luns(&machine).unwrap().iter().map(Lun::to_string).collect();
            prop_assert_eq!(luns, [lun.to_string()]);
        }
    }
}
