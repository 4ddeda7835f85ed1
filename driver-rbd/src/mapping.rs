//! The mappings of this host, as the kernel tells them: `/sys/bus/rbd/devices/N` (Linux,
//! `Documentation/ABI/testing/sysfs-bus-rbd`). No process, no cluster asked.
//!
//! What is ours says so itself: `config_info` shows what was written to map it, and in ours the key has the name of a
//! [`Mark`]. So no state, and no loss of it, can make us take away what somebody else has mapped.

use crate::failed;
use driver::{Device, DevicePath, Identity, Image, Result};
use host::{Host, block_device};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where krbd lists its devices.
const DEVICES: &str = "/sys/bus/rbd/devices";

/// What the kernel says where a mapping has no snapshot (`CEPH_NOSNAP`).
const NO_SNAPSHOT: u64 = u64::MAX - 1;

/// What a mapping of ours is known by: it is the name under which the kernel is lent the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    /// Which locator was mapped, as a digest of its text.
    locator: String,
    /// Which write it was.
    once: String,
}

impl Mark {
    /// For one write.
    pub(crate) fn new(image: &Image) -> Self {
        Self { locator: digest(&image.to_string()), once: uuid::Uuid::now_v7().simple().to_string() }
    }

    /// Whether it was made for this locator.
    pub(crate) fn is_for(&self, image: &Image) -> bool {
        self.locator == digest(&image.to_string())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (locator, once) = text.strip_prefix("mortar-")?.split_once('-')?;
        Some(Self { locator: locator.into(), once: once.into() })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mortar-{}-{}", self.locator, self.once)
    }
}

/// FNV-1a, 64 bits: the same in each build of ours.
fn digest(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// An image that is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The kernel's number of it.
    pub(crate) id: u32,
    pub(crate) identity: Identity,
    /// Ours, if there is one.
    pub(crate) mark: Option<Mark>,
    /// It was mapped with the exclusive lock.
    pub(crate) exclusive: bool,
    /// `pool/image@snapshot`, as they were called when it was mapped.
    pub(crate) name: String,
}

impl Mapping {
    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev").join(self.block())
    }

    /// Its attribute in sysfs.
    pub(crate) fn attribute(&self, name: &str) -> PathBuf {
        Path::new(DEVICES).join(self.id.to_string()).join(name)
    }

    /// Whether this is that mapping, and not another one that has its number by now.
    pub(crate) fn is_still(&self, before: &Self) -> bool {
        (self.id, &self.identity, &self.mark) == (before.id, &before.identity, &before.mark)
    }

    /// Whether it is there now. No mark is given twice, so that it tells all.
    pub(crate) fn is_there(&self, host: &dyn Host) -> host::Result<bool> {
        match &self.mark {
            Some(mark) => Ok(Config::of(host, self.id)?.is_some_and(|now| now.mark.as_ref() == Some(mark))),
            None => Ok(one(host, self.id)?.is_some_and(|now| now.is_still(self))),
        }
    }

    fn block(&self) -> String {
        format!("rbd{}", self.id)
    }

    /// What sysfs tells of the device; `None` if it has just gone.
    pub(crate) fn device(&self, host: &dyn Host) -> Result<Option<Device>> {
        let block = block_device(host, &self.block()).map_err(failed(format!("look at {}", self.block())))?;
        Ok(block.map(|block| Device {
            path: self.node(),
            identity: self.identity.clone(),
            size_bytes: block.size_bytes,
            logical_block_size: block.logical_block_size,
            physical_block_size: block.physical_block_size,
            read_only: block.read_only,
            paths: vec![DevicePath { device: self.node(), portal: None, state: "active".into(), problem: None }],
        }))
    }
}

/// Every mapping, ours or not.
pub(crate) fn list(host: &dyn Host) -> Result<Vec<Mapping>> {
    read(host).map_err(failed("list what is mapped"))
}

/// As [`list`], each with what the cluster knows the kernel's client by: `10.0.0.1:0/123456`.
pub(crate) fn with_clients(host: &dyn Host) -> Result<Vec<(String, Mapping)>> {
    let look = |id| match (attribute(host, id, "client_addr")?, one(host, id)?) {
        (Some(client), Some(mapping)) => Ok(Some((client, mapping))),
        _ => Ok(None),
    };
    each(host, look).map_err(failed("list what is mapped, and by whom"))
}

/// The mappings of an image or snapshot. Of all others only one attribute is read.
pub(crate) fn of(host: &dyn Host, identity: &Identity) -> Result<Vec<Mapping>> {
    of_image(host, identity, |_| true)
}

fn of_image(host: &dyn Host, identity: &Identity, among: impl Fn(u32) -> bool) -> Result<Vec<Mapping>> {
    let Identity::Rbd { image_id, .. } = identity else { return Ok(Vec::new()) };
    let look = |id| match among(id) && attribute(host, id, "image_id")?.as_ref() == Some(image_id) {
        true => one(host, id),
        false => Ok(None),
    };
    let same = each(host, look).map_err(failed("look what the image is mapped as"))?;
    Ok(same.into_iter().filter(|mapping| mapping.identity == *identity).collect())
}

/// What is mapped as a device, if anything is.
pub(crate) fn at(host: &dyn Host, node: &Path) -> Result<Option<Mapping>> {
    let number = node.strip_prefix("/dev").ok().and_then(|name| name.to_str()?.strip_prefix("rbd")?.parse().ok());
    let look = |id| one(host, id).map_err(failed(format!("look what is mapped as {}", node.display())));
    number.map_or(Ok(None), look)
}

/// What else the image or snapshot of a mapping is mapped as.
pub(crate) fn others(host: &dyn Host, than: &Mapping) -> Result<Vec<Mapping>> {
    of_image(host, &than.identity, |id| id != than.id)
}

/// The mapping of a mark. It is looked for from the highest number down, where a new one mostly is, and of the others only
/// one attribute is read.
pub(crate) fn marked(host: &dyn Host, mark: &Mark) -> Result<Option<Mapping>> {
    let look = |id| match Config::of(host, id)? {
        Some(config) if config.mark.as_ref() == Some(mark) => mapped(host, id, config),
        _ => Ok(None),
    };
    let found = ids(host).and_then(|ids| ids.into_iter().rev().find_map(|id| look(id).transpose()).transpose());
    found.map_err(failed("look for what was mapped"))
}

/// The marks of all mappings of ours.
pub(crate) fn marks(host: &dyn Host) -> Result<Vec<Mark>> {
    let look = |id| Ok(Config::of(host, id)?.and_then(|config| config.mark));
    each(host, look).map_err(failed("list what is mapped"))
}

/// As [`list`], in the host's own words: for `wait_for`.
pub(crate) fn read(host: &dyn Host) -> host::Result<Vec<Mapping>> {
    each(host, |id| one(host, id))
}

/// Looks at all numbers that there are, in their order.
fn each<T>(host: &dyn Host, look: impl Fn(u32) -> host::Result<Option<T>>) -> host::Result<Vec<T>> {
    ids(host)?.into_iter().filter_map(|id| look(id).transpose()).collect()
}

fn ids(host: &dyn Host) -> host::Result<Vec<u32>> {
    let mut ids: Vec<u32> = host.list(Path::new(DEVICES))?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids)
}

fn attribute(host: &dyn Host, id: u32, name: &str) -> host::Result<Option<String>> {
    host.read(&Path::new(DEVICES).join(id.to_string()).join(name))
}

/// How something was mapped: `MONITORS OPTIONS POOL IMAGE SNAPSHOT`, as it was written. It may hold somebody's secret: what
/// is not looked for is not kept.
struct Config {
    mark: Option<Mark>,
    exclusive: bool,
    pool: String,
    image: String,
    snapshot: String,
}

impl Config {
    /// `None` if nothing has this number.
    fn of(host: &dyn Host, id: u32) -> host::Result<Option<Self>> {
        Ok(attribute(host, id, "config_info")?.map(|text| Self::parse(&text)))
    }

    fn parse(text: &str) -> Self {
        let mut words = text.split_ascii_whitespace().skip(1);
        let options: Vec<&str> = words.next().unwrap_or_default().split(',').collect();
        let mut word = || words.next().unwrap_or_default().to_owned();
        Self {
            mark: options.iter().find_map(|option| Mark::parse(option.strip_prefix("key=")?)),
            exclusive: options.contains(&"exclusive"),
            pool: word(),
            image: word(),
            snapshot: word(),
        }
    }
}

/// The mapping of this number; `None` if there is none, or it goes in this moment.
fn one(host: &dyn Host, id: u32) -> host::Result<Option<Mapping>> {
    match Config::of(host, id)? {
        Some(config) => mapped(host, id, config),
        None => Ok(None),
    }
}

/// The rest of a mapping. Of which image it is, the kernel says by the ids that the cluster told it.
fn mapped(host: &dyn Host, id: u32, config: Config) -> host::Result<Option<Mapping>> {
    let read = |name: &str| attribute(host, id, name);
    let (Some(fsid), Some(pool_id), Some(image_id), Some(snap_id)) =
        (read("cluster_fsid")?, read("pool_id")?, read("image_id")?, read("snap_id")?)
    else {
        return Ok(None);
    };
    let (Ok(pool_id), Ok(snap_id)) = (pool_id.parse(), snap_id.parse::<u64>()) else { return Ok(None) };
    let namespace = read("pool_ns")?.unwrap_or_default();
    let mut name = config.pool;
    for part in [namespace.as_str(), &config.image].into_iter().filter(|part| !part.is_empty()) {
        name = format!("{name}/{part}");
    }
    if snap_id != NO_SNAPSHOT {
        name = format!("{name}@{}", config.snapshot);
    }
    Ok(Some(Mapping {
        id,
        mark: config.mark,
        exclusive: config.exclusive,
        name,
        identity: Identity::Rbd {
            fsid,
            pool_id,
            namespace,
            image_id,
            snapshot_id: (snap_id != NO_SNAPSHOT).then_some(snap_id),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mark_is_read_back_and_knows_its_locator() {
        let (one, other): (Image, Image) = ("rbd:p/a".parse().unwrap(), "rbd:p/a?cluster=two".parse().unwrap());
        let mark = Mark::new(&one);
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark.clone()));
        assert!(mark.is_for(&one) && !mark.is_for(&other));
        assert_ne!(Mark::new(&one), mark, "two writes");
        for other in ["", "mortar-", "client.admin", "mortar"] {
            assert_eq!(Mark::parse(other), None, "{other}");
        }
    }

    #[test]
    fn how_something_was_mapped_is_read() {
        let image: Image = "rbd:p/i".parse().unwrap();
        let mark = Mark::new(&image);
        let ours = Config::parse(&format!("10.0.0.1:6789 name=a,key={mark},exclusive,_pool_ns=n p i s"));
        assert_eq!((ours.mark, ours.exclusive), (Some(mark), true));
        assert_eq!([ours.pool, ours.image, ours.snapshot], ["p", "i", "s"]);
        let of_others = Config::parse("10.0.0.1:6789,10.0.0.2:6789 name=a,secret=x p i -");
        assert_eq!((of_others.mark, of_others.exclusive, of_others.image.as_str()), (None, false, "i"));
        assert!(Config::parse("").image.is_empty());
    }

    proptest! {
        #[test]
        fn no_mark_panics_and_each_is_read_back(text in "(mortar-)?\\PC{0,40}") {
            if let Some(mark) = Mark::parse(&text) {
                prop_assert_eq!(mark.to_string(), text);
            }
        }
    }
}
