//! Maps of multipath: what sysfs tells of them, and what multipathd is asked (`multipathd(8)`, seen with 0.9.4).
//!
//! ```text
//! /sys/block/sda/holders/dm-0            the map over a path
//! /sys/block/dm-0/slaves/{sda,sdb}       the paths of a map
//! /sys/block/dm-0/dm/{uuid,name}         mpath-WWID, and what the operator's configuration calls it
//! /sys/block/dm-0/holders/dm-1/dm/uuid   part1-mpath-WWID: a partition, made by kpartx and removed with its map
//! ```
//!
//! A map is known by its uuid, never by its name. The daemon answers `ok` to much that it does not do (with
//! `find_multipaths strict` it knows a first path but makes no map of it), so what counts is what sysfs shows afterwards.
//! `add map WWID` makes a map of one path, whatever `find_multipaths` says, and notes the WWID in `/etc/multipath/wwids`;
//! from then on later paths join by themselves. It learns a disk's WWID from udev's data base: before udev has looked at a disk,
//! the daemon does not want it.

use crate::machine;
use driver::{Error, Result};
use host::{BlockDevice, Host, block_device};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const BLOCK: &str = "/sys/block";

/// A line for each, between slashes.
const REMEMBERED: &str = "/etc/multipath/wwids";

/// The daemon gives up on its own lock after 4 s (`uxsock_timeout`).
const PATIENCE: Duration = Duration::from_secs(10);

/// A map as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// `dm-0`
    pub(crate) name: String,
    /// What multipathd calls it: the WWID, `mpatha` or an alias.
    label: String,
    /// In udev's form.
    pub(crate) wwid: String,
}

impl Map {
    /// The map over a disk, if there is one.
    pub(crate) fn over(host: &dyn Host, disk: &str) -> host::Result<Option<Self>> {
        for name in host.list(&Path::new(BLOCK).join(disk).join("holders"))? {
            if let Some(map) = Self::read(host, &name)? {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    /// The map of a volume, whatever its paths.
    pub(crate) fn of(host: &dyn Host, wwid: &str) -> host::Result<Option<Self>> {
        for name in host.list(Path::new(BLOCK))?.into_iter().filter(|name| name.starts_with("dm-")) {
            if let Some(map) = Self::read(host, &name)?.filter(|map| map.wwid == wwid) {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    /// Every map of this machine.
    pub(crate) fn all(host: &dyn Host) -> host::Result<Vec<Self>> {
        let mut found = Vec::new();
        for name in host.list(Path::new(BLOCK))?.into_iter().filter(|name| name.starts_with("dm-")) {
            found.extend(Self::read(host, &name)?);
        }
        Ok(found)
    }

    fn read(host: &dyn Host, name: &str) -> host::Result<Option<Self>> {
        let directory = Path::new(BLOCK).join(name).join("dm");
        let Some(uuid) = host.read(&directory.join("uuid"))? else { return Ok(None) };
        let Some(wwid) = uuid.strip_prefix("mpath-") else { return Ok(None) };
        let label = host.read(&directory.join("name"))?.unwrap_or_default();
        Ok(Some(Self { name: name.into(), label, wwid: wwid.into() }))
    }

    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    pub(crate) fn block(&self, host: &dyn Host) -> host::Result<Option<BlockDevice>> {
        block_device(host, &self.name)
    }

    /// The kernel's names of its paths.
    pub(crate) fn slaves(&self, host: &dyn Host) -> host::Result<Vec<String>> {
        host.list(&Path::new(BLOCK).join(&self.name).join("slaves"))
    }

    /// The partitions that kpartx has made of it.
    pub(crate) fn partitions(&self, host: &dyn Host) -> host::Result<Vec<String>> {
        let mut found = Vec::new();
        for name in host.list(&Path::new(BLOCK).join(&self.name).join("holders"))? {
            let uuid = host.read(&Path::new(BLOCK).join(&name).join("dm/uuid"))?.unwrap_or_default();
            if uuid.starts_with("part") && uuid.ends_with(&format!("-mpath-{}", self.wwid)) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Whether it is still there, under the same name and with its node.
    pub(crate) fn is_present(&self, host: &dyn Host) -> host::Result<bool> {
        Ok(Self::read(host, &self.name)?.is_some_and(|now| now.wwid == self.wwid) || host.stat(&self.node())?.is_some())
    }
}

/// What the daemon said to a request that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Ok,
    /// The operator's configuration keeps the disk out of maps. It says so once udev has looked at the disk.
    Blacklisted,
    /// `fail`, `timeout`, …
    No(String),
}

/// Whether commands would pass to a path, whoever's.
pub(crate) fn is_running(host: &dyn Host, disk: &str) -> host::Result<bool> {
    Ok(host.read(&Path::new(BLOCK).join(disk).join("device/state"))?.as_deref() == Some("running"))
}

/// Sees that there is a daemon.
pub(crate) async fn runs(host: &dyn Host) -> Result<()> {
    match host.multipathd("show daemon", PATIENCE).await {
        Ok(_) => Ok(()),
        Err(host::Error::Unreachable { .. }) => Err(absent()),
        Err(error) => Err(machine("ask multipathd")(error)),
    }
}

/// What the daemon says of its own version: the first line of its help, `multipath-tools v0.9.4 (12/19, 2022)`.
pub(crate) async fn version(host: &dyn Host) -> Result<Option<String>> {
    match host.multipathd("help", PATIENCE).await {
        Ok(help) => Ok(version_in(&help).map(str::to_owned)),
        Err(host::Error::Unreachable { .. }) => Ok(None),
        Err(error) => Err(machine("ask multipathd for its version")(error)),
    }
}

pub(crate) fn version_in(help: &str) -> Option<&str> {
    let after = help.lines().find_map(|line| line.trim().strip_prefix("multipath-tools v"))?;
    after.split_whitespace().next()
}

fn absent() -> Error {
    Error::WrongState {
        what: "several portals, and a multipath map, need multipathd, which does not run; install multipath-tools (Debian, \
               Ubuntu, SUSE) or device-mapper-multipath (Fedora, Red Hat) and run `systemctl start multipathd`, or give \
               one portal"
            .into(),
    }
}

/// Whether multipathd makes a map of a volume as soon as one disk of it comes: it does so with what it remembers, and with
/// every volume where `find_multipaths` is `off` or `greedy` (`multipath.conf(5)`).
pub(crate) async fn takes(host: &dyn Host, wwid: &str) -> Result<bool> {
    let config = match host.multipathd("show config local", PATIENCE).await {
        Ok(config) => config,
        Err(host::Error::Unreachable { .. }) => return Ok(false),
        Err(error) => return Err(machine("ask multipathd for its configuration")(error)),
    };
    Ok(takes_every_disk(&config) || remembers(host, wwid)?)
}

/// By the daemon's configuration, as it prints it.
pub(crate) fn takes_every_disk(config: &str) -> bool {
    let mut settings = config.lines().filter_map(|line| line.trim().strip_prefix("find_multipaths "));
    settings.any(|value| matches!(value.trim().trim_matches('"'), "off" | "no" | "greedy"))
}

/// What it once made a map of, it writes down (`multipath(8)`, options -a and -w).
fn remembers(host: &dyn Host, wwid: &str) -> Result<bool> {
    let text = host.read(Path::new(REMEMBERED)).map_err(machine("read which volumes multipathd remembers"))?;
    Ok(text.is_some_and(|text| lists(&text, wwid)))
}

pub(crate) fn lists(remembered: &str, wwid: &str) -> bool {
    let of = |line: &str| line.trim().strip_prefix('/').and_then(|line| line.strip_suffix('/')) == Some(wwid);
    remembered.lines().any(of)
}

/// Lets the daemon take a disk for a path.
pub(crate) async fn add_path(host: &dyn Host, disk: &str) -> Result<Said> {
    ask(host, format!("add path {disk}")).await
}

/// Lets the daemon make a map of the paths that it knows of a volume.
pub(crate) async fn add_map(host: &dyn Host, wwid: &str) -> Result<Said> {
    ask(host, format!("add map {wwid}")).await
}

/// The kernel's names of the disks that the daemon takes for paths.
pub(crate) async fn paths(host: &dyn Host) -> Result<Vec<String>> {
    match host.multipathd("show paths raw format \"%d\"", PATIENCE).await {
        Ok(answer) => Ok(answer.split_whitespace().map(str::to_owned).collect()),
        Err(host::Error::Unreachable { .. }) => Err(absent()),
        Err(error) => Err(machine("ask multipathd for its paths")(error)),
    }
}

/// Lets the daemon take a path out of a map that goes on with others.
pub(crate) async fn del_path(host: &dyn Host, disk: &str) -> Result<Said> {
    ask(host, format!("del path {disk}")).await
}

/// Lets the daemon remove a map with its partitions, unless somebody has one of them open.
pub(crate) async fn del_map(host: &dyn Host, map: &Map) -> Result<Said> {
    ask(host, format!("del map {}", map.label)).await
}

/// Lets a map fail what it would otherwise keep until a path comes back.
pub(crate) async fn stop_queueing(host: &dyn Host, map: &Map) -> Result<Said> {
    ask(host, format!("disablequeueing map {}", map.label)).await
}

/// Lets a map take the size of its paths.
pub(crate) async fn resize_map(host: &dyn Host, map: &Map) -> Result<Said> {
    ask(host, format!("resize map {}", map.label)).await
}

async fn ask(host: &dyn Host, request: String) -> Result<Said> {
    match host.multipathd(&request, PATIENCE).await {
        Ok(answer) => Ok(said(&answer)),
        Err(host::Error::Unreachable { .. }) => Err(absent()),
        Err(error) => Err(machine(format!("ask multipathd `{request}`"))(error)),
    }
}

pub(crate) fn said(answer: &str) -> Said {
    match answer.trim() {
        "ok" => Said::Ok,
        "blacklisted" => Said::Blacklisted,
        other => Said::No(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;
    use proptest::prelude::*;

    #[test]
    fn what_the_daemon_says() {
        for (answer, expected) in [
            ("ok\n", Said::Ok),
            ("blacklisted\n", Said::Blacklisted),
            ("fail\n", Said::No("fail".into())),
            ("", Said::No(String::new())),
        ] {
            assert_eq!(said(answer), expected, "{answer}");
        }
        for (value, expected) in [("off", true), ("no", true), ("greedy", true), ("strict", false), ("yes", false)] {
            // As `show config local` of 0.9.4 prints it.
            let config = format!("defaults {{\n\tverbosity 2\n\tfind_multipaths \"{value}\"\n}}\n");
            assert_eq!(takes_every_disk(&config), expected, "{value}");
        }
        let help = "multipath-tools v0.9.4 (12/19, 2022)\nCLI commands reference:\n list|show paths\n";
        assert_eq!((version_in(help), version_in("fail")), (Some("0.9.4"), None));
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in "(\\PC|\n|find_multipaths |multipath-tools v|ok|blacklisted|/){0,80}") {
            let _ = takes_every_disk(&text);
            let _ = lists(&text, "36001405000");
            let _ = version_in(&text);
            let ended = said(&text);
            prop_assert_eq!(ended == Said::Ok, text.trim() == "ok");
        }

        #[test]
        fn what_is_remembered_is_found(before in "(/[0-9a-f]{1,9}/\n|# \\PC{0,9}\n){0,4}", wwid in "[0-9a-f]{17,33}", other in "[0-9a-f]{34}") {
            let text = format!("{before}/{wwid}/\n");
            prop_assert!(lists(&text, &wwid));
            prop_assert!(!lists(&text, &other));
        }

        #[test]
        fn no_attribute_of_a_map_panics_and_each_map_is_read_back(
            uuid in "(mpath-|part1-mpath-|LVM-)?\\PC{0,40}", label in "\\PC{0,20}", holder in "(part1?)?\\PC{0,20}",
        ) {
            let machine = Machine::new();
            machine.put_file("/sys/block/dm-7/dm/uuid", uuid.clone());
            machine.put_file("/sys/block/dm-7/dm/name", label.clone());
            machine.put_file("/sys/block/dm-8/dm/uuid", holder);
            machine.put_directory("/sys/block/dm-7/holders/dm-8");
            machine.put_directory("/sys/block/sda/holders/dm-7");
            let expected = uuid.strip_prefix("mpath-").map(|wwid| Map { name: "dm-7".into(), label, wwid: wwid.into() });
            prop_assert_eq!(Map::over(&machine, "sda").unwrap(), expected.clone());
            if let Some(map) = expected {
                prop_assert!(map.partitions(&machine).unwrap().len() <= 1);
                prop_assert_eq!(Map::of(&machine, &map.wwid).unwrap(), Some(map));
            }
        }
    }
}
