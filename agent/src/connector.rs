//! The connector properties: what a storage controller must know of this host to let it in. The values are those of
//! os-brick's `get_connector_properties`, but nothing is started, and nothing is written: os-brick makes
//! `/etc/nvme/hostnqn` where there is none.

use driver::{Error, Iqn, Result};
use host::{Facts, Host};
use proto::v1;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";

/// This host's iSCSI name, if it has one.
pub(crate) fn initiator_name(host: &dyn Host) -> Result<Option<Iqn>> {
    let file = attribute(host, Path::new(INITIATOR_NAME))?.unwrap_or_default();
    Ok(initiator(&file).parse().ok())
}

/// Reads them.
pub(crate) async fn read(host: &dyn Host, facts: &Facts) -> Result<v1::Connector> {
    let text = |path: &str| -> Result<String> {
        Ok(attribute(host, Path::new(path))?.unwrap_or_default().trim().trim_end_matches('\0').to_owned())
    };
    let addresses: Vec<String> = facts.addresses.iter().map(ToString::to_string).collect();
    let (wwpns, wwnns) = fibre_channel(host)?;
    Ok(v1::Connector {
        host: facts.name.clone(),
        ip: addresses.first().cloned().unwrap_or_default(),
        initiator: initiator(&text(INITIATOR_NAME)?),
        platform: facts.platform.clone(),
        os_type: "linux".into(),
        multipath: multipath(host).await,
        enforce_multipath: true,
        do_local_attach: true,
        addresses,
        nqn: text("/etc/nvme/hostnqn")?,
        nvme_hostid: text("/etc/nvme/hostid")?,
        nvme_native_multipath: text("/sys/module/nvme_core/parameters/multipath")? == "Y",
        wwpns,
        wwnns,
        uuid: root_uuid(host)?.unwrap_or_default(),
        // By DMI; on POWER the firmware tells it in the device tree.
        system_uuid: match text("/sys/class/dmi/id/product_uuid")? {
            none if none.is_empty() => text("/proc/device-tree/vm,uuid")?,
            uuid => uuid,
        },
    })
}

fn attribute(host: &dyn Host, path: &Path) -> Result<Option<String>> {
    host.read(path).map_err(Error::host("read the connector properties"))
}

/// Whether multipathd answers.
async fn multipath(host: &dyn Host) -> bool {
    /// It answers in milliseconds, if it can.
    const PATIENCE: Duration = Duration::from_secs(2);
    match host.multipathd("show daemon", PATIENCE).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!("no multipath: {error}");
            false
        }
    }
}

/// The value of the last `InitiatorName=` line that is no comment (iscsid(8)).
fn initiator(file: &str) -> String {
    let mut names = file.lines().rev().filter_map(|line| line.trim().strip_prefix("InitiatorName="));
    names.next().unwrap_or_default().trim().to_owned()
}

/// The port names and node names of the adapters that are online (`drivers/scsi/scsi_transport_fc.c`).
fn fibre_channel(host: &dyn Host) -> Result<(Vec<String>, Vec<String>)> {
    let adapters = Path::new("/sys/class/fc_host");
    let (mut ports, mut nodes) = (Vec::new(), Vec::new());
    for name in host.list(adapters).map_err(Error::host("list the Fibre Channel adapters"))? {
        let name = adapters.join(name);
        if attribute(host, &name.join("port_state"))?.as_deref() == Some("Online") {
            for (names, file) in [(&mut ports, "port_name"), (&mut nodes, "node_name")] {
                names.extend(attribute(host, &name.join(file))?.map(|name| name.trim_start_matches("0x").to_owned()));
            }
        }
    }
    Ok((ports, nodes))
}

/// The UUID of the root file system, as udev found it.
fn root_uuid(host: &dyn Host) -> Result<Option<String>> {
    let uuids = Path::new("/dev/disk/by-uuid");
    let mounts = attribute(host, Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
    let Some(root) = Root::of(&mounts) else { return Ok(None) };
    let resolve = |path: &Path| host.resolve(path).map_err(Error::host("find the root file system's device"));
    // Btrfs has a number that is no device's; then only its source says which one.
    let device = match resolve(&Path::new("/sys/dev/block").join(&root.number))?.as_deref().and_then(Path::file_name) {
        Some(name) => Some(Path::new("/dev").join(name)),
        None => resolve(Path::new(&root.source))?,
    };
    let Some(device) = device else { return Ok(None) };
    for uuid in host.list(uuids).map_err(Error::host("list the file systems"))? {
        if resolve(&uuids.join(&uuid))?.as_deref() == Some(&device) {
            return Ok(Some(uuid));
        }
    }
    Ok(None)
}

/// What is mounted at `/`, by a line of mountinfo (proc_pid_mountinfo(5)):
/// `21 1 98:0 / / rw,relatime shared:1 - ext4 /dev/root rw`.
#[derive(Debug, PartialEq, Eq)]
struct Root {
    number: String,
    source: PathBuf,
}

impl Root {
    /// The last one counts: it is mounted over those before it.
    fn of(mounts: &str) -> Option<Self> {
        mounts.lines().rev().find_map(|line| {
            let (place, what) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(2);
            let (number, _within, at) = (place.next()?, place.next()?, place.next()?);
            let source = what.split(' ').nth(1)?;
            (at == "/").then(|| Self { number: number.into(), source: source.into() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_initiator_name() {
        let file = "## a comment\n#InitiatorName=iqn.no\nInitiatorName=iqn.1993-08.org.debian:01:abc\n";
        assert_eq!(initiator(file), "iqn.1993-08.org.debian:01:abc");
        assert_eq!(initiator(""), "");
    }

    #[test]
    fn finds_what_is_mounted_at_the_root() {
        let mounts = "1 1 0:2 / / rw - rootfs rootfs rw\n\
                      21 1 98:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
                      22 21 0:5 / /dev rw,nosuid - devtmpfs udev rw\n";
        assert_eq!(Root::of(mounts), Some(Root { number: "98:0".into(), source: "/dev/root".into() }));
        assert_eq!(Root::of("nonsense"), None);
    }
}
