//! Which devices lvm may see: the disks of the host that carry a PV label, and nothing that belongs to a guest.
//!
//! Left to itself lvm reads every block device, and finds the VGs that guests made inside of their volumes. So it is
//! always told what to look at. Left out are the devices of our own attachments (what a link below `/dev/mortar` leads
//! to), LVs, and devices that something else than LVM has built upon (a path below a multipath map, a disk of an array):
//! there the map or the array stands for them.

use crate::label;
use driver::{Error, Result};
use host::Host;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;

/// How long one device may take to show its first sectors. One that hangs is left out, and holds up nobody else.
const PATIENCE: Duration = Duration::from_secs(3);

/// The PVs of this host that lvm may see.
pub(crate) async fn pvs(host: &Arc<dyn Host>, links: &Path) -> Result<Vec<PathBuf>> {
    let suspects = suspects(host.as_ref(), links).map_err(Error::host("list the block devices"))?;
    Ok(labelled(host, suspects).await.into_iter().collect())
}

/// Those of the devices that carry a PV label.
pub(crate) async fn labelled(host: &Arc<dyn Host>, devices: Vec<PathBuf>) -> BTreeSet<PathBuf> {
    let mut reads = JoinSet::new();
    for device in devices {
        let host = Arc::clone(host);
        reads.spawn(async move {
            match host.head(&device, label::LENGTH, PATIENCE).await {
                Ok(head) => label::is_pv(&head).then_some(device),
                Err(error @ host::Error::TimedOut { .. }) => {
                    tracing::warn!(device = %device.display(), %error, "left out of the search for PVs");
                    None
                }
                // An empty drive, or one that has just gone.
                Err(error) => {
                    tracing::debug!(device = %device.display(), %error, "left out of the search for PVs");
                    None
                }
            }
        });
    }
    reads.join_all().await.into_iter().flatten().collect()
}

/// Disks and partitions that may be PVs.
fn suspects(host: &dyn Host, links: &Path) -> host::Result<Vec<PathBuf>> {
    let attached = attached(host, links)?;
    let mut found = Vec::new();
    for disk in host.list(Path::new("/sys/block"))? {
        let directory = Path::new("/sys/block").join(&disk);
        if attached.contains(&disk) || is_lv(host, &disk)? {
            continue;
        }
        if is_free(host, &directory)? {
            found.push(node(&disk));
        }
        for part in host.list(&directory)?.into_iter().filter(|name| name.starts_with(&disk)) {
            let directory = directory.join(&part);
            if !attached.contains(&part)
                && host.read(&directory.join("partition"))?.is_some()
                && is_free(host, &directory)?
            {
                found.push(node(&part));
            }
        }
    }
    Ok(found)
}

/// The kernel's names of the devices that our stable paths lead to.
pub(crate) fn attached(host: &dyn Host, links: &Path) -> host::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for link in host.list(links)? {
        let target = host.resolve(&links.join(link))?;
        names.extend(target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()));
    }
    Ok(names)
}

/// Nobody but LVM has built upon it, and it holds something.
fn is_free(host: &dyn Host, directory: &Path) -> host::Result<bool> {
    if host.read(&directory.join("size"))?.is_none_or(|sectors| sectors == "0") {
        return Ok(false);
    }
    for holder in host.list(&directory.join("holders"))? {
        if !is_lv(host, &holder)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_lv(host: &dyn Host, name: &str) -> host::Result<bool> {
    let uuid = host.read(&Path::new("/sys/block").join(name).join("dm/uuid"))?;
    Ok(uuid.is_some_and(|uuid| uuid.starts_with("LVM-")))
}

/// A `!` in the kernel's name stands for a slash.
fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}
