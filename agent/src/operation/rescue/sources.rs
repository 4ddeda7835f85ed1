//! The devices that a definition names, by what they are: `/dev/sdb` may be another disk when the original comes back.
//!
//! What the kernel remembers of a device is enough here: nothing is written to it, and the original named it by its bare path
//! before.

use driver::{Error, Result};
use host::Host;
use hypervisor::definition::{Definition, Disk, Source};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A disk of the original on a block device, and what that was when the rescue began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    target: String,
    path: PathBuf,
    /// `None`: the kernel does not tell; then the path alone counts.
    identity: Option<String>,
}

/// A disk whose device is called otherwise by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rebound {
    pub(super) target: String,
    pub(super) path: PathBuf,
    was: PathBuf,
}

impl Rebound {
    /// In one sentence.
    pub(super) fn sentence(&self) -> String {
        format!("{} was {} and is {} now", self.target, self.was.display(), self.path.display())
    }
}

/// What the block devices of these disks are. [`Error::WrongState`] if one is not there.
pub(super) fn bind(host: &dyn Host, disks: &[Disk]) -> Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for disk in disks {
        let Source::Block(path) = &disk.source else { continue };
        let path = PathBuf::from(path);
        let Some(node) = resolve(host, &path)? else {
            return Err(Error::WrongState {
                what: format!("its disk {} is not there: {}; attach it first", disk.target, path.display()),
            });
        };
        bound.push(Bound { target: disk.target.clone(), identity: identity(host, &node)?, path });
    }
    Ok(bound)
}

/// Those that have to be named otherwise today. `links` is where our stable paths are: one is preferred to a device's own
/// name. [`Error::WrongState`] if a device is nowhere on this host.
pub(super) fn rebind(host: &dyn Host, links: &Path, bound: &[Bound]) -> Result<Vec<Rebound>> {
    let mut rebound = Vec::new();
    for Bound { target, path, identity: was } in bound {
        let here = resolve(host, path)?;
        let is_there = match (was, &here) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(was), Some(node)) => identity(host, node)?.as_ref() == Some(was),
        };
        if is_there {
            continue;
        }
        let Some(node) = was.as_deref().map(|was| elsewhere(host, was)).transpose()?.flatten() else {
            let is = match here {
                Some(_) => "is another device now",
                None => "is not there",
            };
            let was = was.as_deref().unwrap_or("of unknown identity");
            return Err(Error::WrongState {
                what: format!(
                    "its disk {target}, {}, {is}, and what it was ({was}) is nowhere on this host; attach it first",
                    path.display()
                ),
            });
        };
        let path = stable(host, links, &node)?.unwrap_or(node);
        rebound.push(Rebound { target: target.clone(), path, was: bound_path(bound, target) });
    }
    Ok(rebound)
}

/// The original, with the names of today.
pub(super) fn with_names_of_today(original: &str, rebound: &[Rebound]) -> Result<String> {
    if rebound.is_empty() {
        return Ok(original.to_owned());
    }
    let sources: Vec<(String, PathBuf)> = rebound.iter().map(|it| (it.target.clone(), it.path.clone())).collect();
    Definition::parse(original)?.with_sources(&sources)
}

fn bound_path(bound: &[Bound], target: &str) -> PathBuf {
    bound.iter().find(|it| it.target == target).map(|it| it.path.clone()).unwrap_or_default()
}

fn resolve(host: &dyn Host, path: &Path) -> Result<Option<PathBuf>> {
    host.resolve(path).map_err(Error::host(format!("look for {}", path.display())))
}

fn stable(host: &dyn Host, links: &Path, node: &Path) -> Result<Option<PathBuf>> {
    for name in host.list(links).map_err(Error::host("list the stable paths"))? {
        let link = links.join(name);
        if resolve(host, &link)?.as_deref() == Some(node) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// The device that has an identity, or the partition of it.
fn elsewhere(host: &dyn Host, wanted: &str) -> Result<Option<PathBuf>> {
    let block = Path::new("/sys/block");
    for disk in host.list(block).map_err(Error::host("list the block devices"))? {
        let Some(of_disk) = identity_of_disk(host, &disk)? else { continue };
        if of_disk == wanted {
            return Ok(Some(node_of(&disk)));
        }
        let Some(number) = wanted.strip_prefix(&of_disk).and_then(|rest| rest.strip_prefix(PART)) else { continue };
        for part in host.list(&block.join(&disk)).map_err(Error::host("list the partitions"))? {
            if read(host, &block.join(&disk).join(&part).join("partition"))?.as_deref() == Some(number) {
                return Ok(Some(node_of(&part)));
            }
        }
    }
    Ok(None)
}

/// Between a disk's identity and the number of its partition.
const PART: &str = " partition ";

/// What a device is, whatever it is called; `None` if the kernel does not tell.
fn identity(host: &dyn Host, node: &Path) -> Result<Option<String>> {
    let Ok(name) = node.strip_prefix("/dev") else { return Ok(None) };
    let name = name.to_string_lossy().replace('/', "!");
    let block = Path::new("/sys/block");
    if host.stat(&block.join(&name)).map_err(Error::host("look at a block device"))?.is_some() {
        return identity_of_disk(host, &name);
    }
    for disk in host.list(block).map_err(Error::host("list the block devices"))? {
        if let Some(number) = read(host, &block.join(&disk).join(&name).join("partition"))? {
            return Ok(identity_of_disk(host, &disk)?.map(|disk| format!("{disk}{PART}{number}")));
        }
    }
    Ok(None)
}

fn identity_of_disk(host: &dyn Host, name: &str) -> Result<Option<String>> {
    let directory = Path::new("/sys/block").join(name);
    let of = |attribute: &str| read(host, &directory.join(attribute));
    if let Some(number) = name.strip_prefix("rbd") {
        let mapping = Path::new("/sys/bus/rbd/devices").join(number);
        let mut parts = Vec::new();
        for attribute in ["cluster_fsid", "pool_id", "pool_ns", "image_id", "snap_id"] {
            parts.push(read(host, &mapping.join(attribute))?.unwrap_or_default());
        }
        return Ok((!parts[3].is_empty()).then(|| format!("rbd:{}", parts.join("/"))));
    }
    if let Some(file) = of("loop/backing_file")? {
        return Ok(Some(format!("loop:{file}:{}", of("loop/offset")?.unwrap_or_default())));
    }
    for (kind, attribute) in [("dm", "dm/uuid"), ("wwid", "device/wwid"), ("wwid", "wwid"), ("serial", "serial")] {
        if let Some(text) = of(attribute)?.filter(|text| !text.trim().is_empty()) {
            return Ok(Some(format!("{kind}:{}", text.trim())));
        }
    }
    Ok(None)
}

fn read(host: &dyn Host, path: &Path) -> Result<Option<String>> {
    host.read(path).map_err(Error::host(format!("read {}", path.display())))
}

fn node_of(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;

    fn disk(target: &str, path: &str) -> Disk {
        let xml = format!(
            "<domain><name>a</name><devices><disk type='block' device='disk'><source dev='{path}'/><target dev='{target}' \
             bus='virtio'/></disk></devices></domain>"
        );
        Definition::parse(&xml).unwrap().disks().remove(0)
    }

    fn machine() -> Machine {
        let machine = Machine::new();
        for (name, wwid) in [("sdx", "naa.a"), ("sdy", "naa.b")] {
            machine.put_file(format!("/sys/block/{name}/device/wwid"), wwid);
            machine.put_file(format!("/sys/block/{name}/{name}1/partition"), "1");
            machine.put_file(format!("/dev/{name}"), "");
            machine.put_file(format!("/dev/{name}1"), "");
        }
        machine
    }

    /// The two disks change their names.
    fn swap(machine: &Machine) {
        machine.put_file("/sys/block/sdx/device/wwid", "naa.b");
        machine.put_file("/sys/block/sdy/device/wwid", "naa.a");
    }

    #[test]
    fn a_device_is_found_under_another_name() {
        let (machine, links) = (machine(), Path::new("/dev/mortar"));
        let bound = bind(&machine, &[disk("vda", "/dev/sdx"), disk("vdb", "/dev/sdx1")]).unwrap();
        assert_eq!(rebind(&machine, links, &bound).unwrap(), []);
        swap(&machine);
        let said: Vec<String> = rebind(&machine, links, &bound).unwrap().iter().map(Rebound::sentence).collect();
        assert_eq!(said, ["vda was /dev/sdx and is /dev/sdy now", "vdb was /dev/sdx1 and is /dev/sdy1 now"]);
        machine.put_link("/dev/mortar/root", "/dev/sdy");
        assert_eq!(rebind(&machine, links, &bound).unwrap()[0].path, Path::new("/dev/mortar/root"));
    }

    #[test]
    fn a_device_that_is_nowhere_is_refused() {
        let machine = machine();
        let bound = bind(&machine, &[disk("vda", "/dev/sdx")]).unwrap();
        machine.put_file("/sys/block/sdx/device/wwid", "naa.c");
        let refused = rebind(&machine, Path::new("/dev/mortar"), &bound).unwrap_err().to_string();
        assert!(refused.contains("is another device now") && refused.contains("wwid:naa.a"), "{refused}");
        machine.remove_tree("/dev/sdx");
        let refused = rebind(&machine, Path::new("/dev/mortar"), &bound).unwrap_err().to_string();
        assert!(refused.contains("is not there") && refused.contains("attach it first"), "{refused}");
        assert!(bind(&machine, &[disk("vda", "/dev/sdz")]).is_err());
    }

    #[test]
    fn what_tells_nothing_goes_by_its_path() {
        let machine = machine();
        machine.put_file("/sys/block/vdq/size", "8");
        machine.put_file("/dev/vdq", "");
        let bound = bind(&machine, &[disk("vda", "/dev/vdq")]).unwrap();
        assert_eq!(rebind(&machine, Path::new("/dev/mortar"), &bound).unwrap(), []);
    }
}
