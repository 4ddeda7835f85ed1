//! Where a volume is, as text and as a type: what parses here can be handed to a tool without another look.

use crate::{CephUser, Error, Image, Iqn, Lun, LvName, Pool, Portal, Result, VgName, names::as_text};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// The backends that this build knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A raw file on a loop device.
    File,
    /// A logical unit of an iSCSI target.
    Iscsi,
    /// A logical volume.
    Lvm,
    /// An image of a Ceph cluster.
    Rbd,
}

impl Backend {
    /// Every backend, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::File, Self::Iscsi, Self::Lvm, Self::Rbd];

    /// `file`, `iscsi`, `lvm`, `rbd`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Iscsi => "iscsi",
            Self::Lvm => "lvm",
            Self::Rbd => "rbd",
        }
    }

    /// Whether an attach may leave something on this host's disks, so that a power cut in the middle of one does not take
    /// it away: the node record of an iSCSI login.
    pub fn attach_outlives_a_boot(self) -> bool {
        match self {
            Self::Iscsi => true,
            Self::File | Self::Lvm | Self::Rbd => false,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is needed to find a volume.
///
/// | backend | text |
/// |---|---|
/// | iSCSI | `iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0`; several ways to it: see [`LogicalUnit`] |
/// | LVM | `lvm:vg/lv` |
/// | RBD | `rbd:pool/image`; with all its parts: see [`Image`] |
/// | file | `file:/srv/volumes/a.raw` |
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Locator {
    /// A logical unit of an iSCSI target.
    Iscsi(LogicalUnit),
    /// A logical volume.
    Lvm(LogicalVolume),
    /// A raw file.
    File(RawFile),
    /// An RBD image or a snapshot of one.
    Rbd(Image),
}

/// A logical unit of an iSCSI target, by one way or several. Several are brought together by multipath.
///
/// As text, portals with commas between them share the target and unit that follow; a comma behind a unit begins the next
/// way: `iscsi://10.0.0.5,10.0.1.5/iqn.a/1`, `iscsi://10.0.0.5/iqn.a/1,10.0.1.5/iqn.b/7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogicalUnit {
    /// At least one; in the caller's order, without repeats.
    pub ways: Vec<Way>,
}

/// One way to a logical unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Way {
    /// Where the target listens.
    pub portal: Portal,
    /// The target.
    pub iqn: Iqn,
    /// The unit.
    pub lun: Lun,
}

impl LogicalUnit {
    /// From ways of which some may be named twice. [`Error::Invalid`] if there is none.
    pub fn new(ways: impl IntoIterator<Item = Way>) -> Result<Self> {
        let mut unit = Self { ways: Vec::new() };
        for way in ways {
            if !unit.ways.contains(&way) {
                unit.ways.push(way);
            }
        }
        if unit.ways.is_empty() { Err(Error::invalid("locator", "it has no portal")) } else { Ok(unit) }
    }

    /// Whether its paths are to be brought together by multipath.
    pub fn is_multipath(&self) -> bool {
        self.ways.len() > 1
    }

    fn parse(text: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                "locator",
                format!(
                    "{}: write iscsi://ADDRESS[:PORT][,ADDRESS[:PORT]…]/IQN/LUN",
                    shown(&format!("iscsi://{text}"))
                ),
            )
        };
        let (mut ways, mut rest) = (Vec::new(), text);
        loop {
            let (portals, behind) = rest.split_once('/').ok_or_else(invalid)?;
            let (iqn, behind) = behind.split_once('/').ok_or_else(invalid)?;
            let (lun, next) = match behind.split_once(',') {
                Some((lun, next)) => (lun, Some(next)),
                None => (behind, None),
            };
            let (iqn, lun): (Iqn, Lun) = (iqn.parse()?, lun.parse()?);
            for portal in portals.split(',') {
                ways.push(Way { portal: portal.parse()?, iqn: iqn.clone(), lun });
            }
            match next {
                Some(next) => rest = next,
                None => return Self::new(ways),
            }
        }
    }
}

impl fmt::Display for LogicalUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("iscsi://")?;
        for (number, way) in self.ways.iter().enumerate() {
            let shares = |other: Option<&Way>| other.is_some_and(|other| other.iqn == way.iqn && other.lun == way.lun);
            if number > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}", way.portal)?;
            if !shares(self.ways.get(number + 1)) {
                write!(f, "/{}/{}", way.iqn, way.lun)?;
            }
        }
        Ok(())
    }
}

/// A logical volume by its names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LogicalVolume {
    /// The volume group.
    pub vg: VgName,
    /// The logical volume.
    pub lv: LvName,
}

/// A raw file by its absolute path, which has no `.`, `..` or empty parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RawFile {
    path: PathBuf,
}

impl RawFile {
    /// The longest path that the kernel takes, its final NUL included (`PATH_MAX`).
    const MAX: usize = 4096;

    /// Checks an absolute path.
    pub fn new(path: &str) -> Result<Self> {
        Ok(Self { path: absolute("locator", path)? })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file `name` in the same directory.
    pub fn sibling(&self, name: &str) -> Self {
        Self { path: self.path.with_file_name(name) }
    }
}

/// A part of a backend in which volumes are listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// `lvm:VG`
    Lvm(VgName),
    /// `file:/DIRECTORY`
    File(PathBuf),
    /// `rbd:POOL[/NAMESPACE]`
    Rbd(Pool),
}

impl Scope {
    /// The backend it is a part of.
    pub fn backend(&self) -> Backend {
        match self {
            Self::Lvm(_) => Backend::Lvm,
            Self::File(_) => Backend::File,
            Self::Rbd(_) => Backend::Rbd,
        }
    }
}

impl Locator {
    /// Which backend the volume is on.
    pub fn backend(&self) -> Backend {
        match self {
            Self::Iscsi(_) => Backend::Iscsi,
            Self::Lvm(_) => Backend::Lvm,
            Self::File(_) => Backend::File,
            Self::Rbd(_) => Backend::Rbd,
        }
    }

    /// The volume `name` beside this one: what a rename within the VG, directory or pool makes of it. A snapshot is renamed
    /// within its image.
    pub fn beside(&self, name: &str) -> Result<Self> {
        match self {
            Self::Lvm(volume) => Ok(Self::Lvm(LogicalVolume { vg: volume.vg.clone(), lv: name.parse()? })),
            Self::File(file) => RawFile::new(&file.sibling(name).path.to_string_lossy()).map(Self::File),
            Self::Rbd(image) if image.snapshot.is_some() => {
                Ok(Self::Rbd(Image { snapshot: Some(name.parse()?), ..image.clone() }))
            }
            Self::Rbd(image) => Ok(Self::Rbd(Image { name: name.parse()?, ..image.clone() })),
            Self::Iscsi(_) => {
                Err(Error::Unsupported { what: "a logical unit has no name on this host that could be changed".into() })
            }
        }
    }

    /// Where a list of it and the volumes beside it is found.
    pub fn scope(&self) -> Result<Scope> {
        match self {
            Self::Lvm(volume) => Ok(Scope::Lvm(volume.vg.clone())),
            Self::File(file) => Ok(Scope::File(file.path.parent().unwrap_or(Path::new("/")).to_owned())),
            Self::Rbd(image) => Ok(Scope::Rbd(image.pool.clone())),
            Self::Iscsi(_) => Err(Error::Unsupported {
                what: "the volumes of an iSCSI target are managed on the host that serves it".into(),
            }),
        }
    }

    /// The name by which the attachments of one volume are found. Portals are no part of it: two ways to the same unit are
    /// the same volume. So is case: iSCSI names that differ in nothing else are one (RFC 7143 section 4.2.7.1). Of several
    /// targets the first in order counts. Nor is the user that an image is reached as, nor the order of monitors.
    pub fn key(&self) -> String {
        match self {
            Self::Iscsi(_) => self.keys().swap_remove(0),
            Self::Rbd(image) => {
                let mut image = image.clone();
                image.pool.user = CephUser::default();
                image.pool.monitors.sort_unstable();
                image.to_string()
            }
            other => other.to_string(),
        }
    }

    /// Whether both may well mean the same volume, though their keys differ: an RBD image can be told by some monitors of its
    /// cluster or by others, a unit of several targets by some of them. Not enough to act upon.
    pub fn resembles(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Rbd(one), Self::Rbd(other)) => {
                let bare = |image: &Image| {
                    let (user, monitors) = (CephUser::default(), Vec::new());
                    Image { pool: Pool { user, monitors, ..image.pool.clone() }, ..image.clone() }
                };
                bare(one) == bare(other)
            }
            (Self::Iscsi(_), Self::Iscsi(_)) => {
                let keys = self.keys();
                other.keys().iter().any(|key| keys.contains(key))
            }
            _ => self.key() == other.key(),
        }
    }

    /// What operations on the volume exclude each other by, sorted: its [`Locator::key`], and for a unit of several targets
    /// that of each. Never empty.
    pub fn keys(&self) -> Vec<String> {
        let Self::Iscsi(unit) = self else { return vec![self.key()] };
        let mut keys: Vec<String> = unit
            .ways
            .iter()
            .map(|way| format!("iscsi:{}/{}", way.iqn.as_str().to_ascii_lowercase(), way.lun))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iscsi(unit) => unit.fmt(f),
            Self::Rbd(image) => image.fmt(f),
            Self::Lvm(volume) => write!(f, "lvm:{}/{}", volume.vg, volume.lv),
            Self::File(file) => write!(f, "file:{}", file.path.display()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm(vg) => write!(f, "lvm:{vg}"),
            Self::File(directory) => write!(f, "file:{}", directory.display()),
            Self::Rbd(pool) => pool.fmt(f),
        }
    }
}

impl FromStr for Locator {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid("locator", format!("{}: {why}", shown(text)));
        if let Some(rest) = text.strip_prefix("iscsi://") {
            LogicalUnit::parse(rest).map(Self::Iscsi)
        } else if let Some(rest) = text.strip_prefix("lvm:") {
            let (vg, lv) = rest.split_once('/').ok_or_else(|| invalid("write lvm:VG/LV"))?;
            Ok(Self::Lvm(LogicalVolume { vg: vg.parse()?, lv: lv.parse()? }))
        } else if let Some(rest) = text.strip_prefix("file:") {
            Ok(Self::File(RawFile::new(rest)?))
        } else if text.starts_with("rbd:") {
            text.parse().map(Self::Rbd)
        } else {
            Err(invalid("write iscsi://ADDRESS[:PORT]/IQN/LUN, lvm:VG/LV, rbd:POOL/IMAGE or file:/ABSOLUTE/PATH"))
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(vg) = text.strip_prefix("lvm:") {
            Ok(Self::Lvm(vg.parse()?))
        } else if let Some(directory) = text.strip_prefix("file:") {
            Ok(Self::File(absolute("scope", directory)?))
        } else if text.starts_with("rbd:") {
            text.parse().map(Self::Rbd)
        } else if text.starts_with("iscsi:") {
            Err(Error::Unsupported {
                what: "the volumes of an iSCSI target are managed on the host that serves it".into(),
            })
        } else {
            Err(Error::invalid("scope", format!("{}: write lvm:VG, rbd:POOL or file:/DIRECTORY", shown(text))))
        }
    }
}

as_text!(Locator);

/// A path that means the same wherever it is read: absolute, without `.`, `..` or empty parts.
fn absolute(field: &'static str, text: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let rebuilt: PathBuf = path.components().collect();
    if !path.is_absolute() || !plain || rebuilt.as_os_str().len() != text.len() || text == "/" {
        return Err(Error::invalid(
            field,
            format!("{}: write an absolute path without `.`, `..` or empty parts", shown(text)),
        ));
    }
    if text.len() >= RawFile::MAX {
        return Err(Error::invalid(field, format!("the path has {} bytes, at most 4095 are allowed", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, format!("{}: a path may not hold control characters", shown(text))));
    }
    Ok(path)
}

/// The caller's text as it may stand in an error: escaped, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 80;
    let cut: String = text.chars().take(LIMIT).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_text() {
        for (given, canonical) in [
            ("iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0", "iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0"),
            (
                "iscsi://[FE80::A]:3260,[fe80:0::a]/iqn.2026-11.org.example:t1/7",
                "iscsi://[fe80::a]:3260/iqn.2026-11.org.example:t1/7",
            ),
            (
                "iscsi://10.0.0.5,10.0.1.5/iqn.2026-11.org.example:a/1,10.0.2.5/iqn.2026-11.org.example:b/1,10.0.0.5/\
                 iqn.2026-11.org.example:a/1",
                "iscsi://10.0.0.5:3260,10.0.1.5:3260/iqn.2026-11.org.example:a/1,10.0.2.5:3260/\
                 iqn.2026-11.org.example:b/1",
            ),
            ("rbd:volumes/a?cluster=ceph", "rbd:volumes/a"),
            ("lvm:cinder-volumes/int32bit-test-LV", "lvm:cinder-volumes/int32bit-test-LV"),
            ("file:/srv/a b.raw", "file:/srv/a b.raw"),
        ] {
            assert_eq!(given.parse::<Locator>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "lvm:",
            "lvm:vg",
            "lvm:vg/",
            "lvm:/lv",
            "lvm:--foo/lv",
            "lvm:vg/-n",
            "lvm:vg/../x",
            "lvm:vg/a b",
            "lvm:vg/a\n",
            "file:",
            "file:/",
            "file:relative",
            "file:/a/../b",
            "file:/a//b",
            "file:/a/",
            "file:/a/./b",
            "file:/a\u{7}",
            "iscsi://10.0.0.5",
            "iscsi://10.0.0.5/iqn.2026-11.org.example:t1",
            "iscsi://10.0.0.5:0/iqn.2026-11.org.example:t1/0",
            "iscsi://10.0.0.5:65536/iqn.2026-11.org.example:t1/0",
            "iscsi://10.0.0.5:x/iqn.2026-11.org.example:t1/0",
            "iscsi://host/iqn.2026-11.org.example:t1/0",
            "iscsi:///iqn.2026-11.org.example:t1/0",
            "iscsi://10.0.0.5,/iqn.2026-11.org.example:t1/0",
            "iscsi://10.0.0.5/example:t1/0",
            "iscsi://10.0.0.5/iqn.2026-11.org.example:t1/-1",
            "iscsi://10.0.0.5/iqn.2026-11.org.example:t1/32768",
            "iscsi://10.0.0.5/iqn.2026-11.org.example:../t1/0",
            "https://10.0.0.5/x",
        ] {
            assert!(matches!(text.parse::<Locator>(), Err(Error::Invalid { .. })), "{text:?} was taken");
        }
        assert!(format!("lvm:vg/{}", "x".repeat(300)).parse::<Locator>().is_err());
    }

    #[test]
    fn two_ways_to_a_unit_are_one_volume() {
        let a: Locator = "iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0".parse().unwrap();
        let b: Locator = "iscsi://10.0.0.6/iqn.2026-11.org.example:t1/0".parse().unwrap();
        let c: Locator = "iscsi://10.0.0.5/iqn.2026-11.org.example:T1/0".parse().unwrap();
        assert_eq!((a.key(), a.key()), (b.key(), c.key()));
        let several: Locator =
            "iscsi://10.0.0.5/iqn.2026-11.org.example:t2/3,10.0.0.6/iqn.2026-11.org.example:t1/0".parse().unwrap();
        assert_eq!(several.key(), a.key());
        assert_eq!(several.keys(), ["iscsi:iqn.2026-11.org.example:t1/0", "iscsi:iqn.2026-11.org.example:t2/3"]);
    }

    #[test]
    fn an_image_is_the_same_for_every_user_and_may_be_so_for_other_monitors() {
        let locator = |text: &str| text.parse::<Locator>().unwrap();
        let (a, b) = (locator("rbd:p/a?user=x&mon=10.0.0.1,10.0.0.2"), locator("rbd:p/a?mon=10.0.0.2,10.0.0.1"));
        assert_eq!(a.key(), b.key());
        let other = locator("rbd:p/a?mon=10.0.0.3");
        assert_ne!(a.key(), other.key());
        assert!(a.resembles(&other));
        assert!(!a.resembles(&locator("rbd:p/a?cluster=two")));
        let two = locator("iscsi://10.0.0.5/iqn.2026-11.org.example:a/0,10.0.0.6/iqn.2026-11.org.example:b/0");
        assert!(two.resembles(&locator("iscsi://10.0.0.6/iqn.2026-11.org.example:B/0")));
        assert!(!two.resembles(&locator("iscsi://10.0.0.6/iqn.2026-11.org.example:b/1")));
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "(iscsi://|lvm:|file:/|rbd:)?[ -~\u{e9}/]{0,60}") {
            if let Ok(locator) = text.parse::<Locator>() {
                prop_assert_eq!(locator.to_string().parse::<Locator>().unwrap(), locator);
            }
        }
    }
}
