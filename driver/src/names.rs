//! Names as types: what has been parsed cannot be an option, a path or a control character, and needs no second check
//! before it becomes an argument of a tool.

use crate::{Error, Result, VolumeKind, locator::shown};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};
use uuid::Uuid;

/// A type whose text is its only form elsewhere, in JSON too.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

/// Declares a type that holds a checked string, and serializes as one. How it is checked is written behind its name, as
/// [`checked`] takes it; or else in an implementation of its own.
macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident: $field:literal, $max:expr, $first:expr, $extra:expr) => {
        text_name! { $(#[$doc])* $name }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                checked($field, text, $max, $first, $extra).map(Self)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        as_text!($name);
    };
}

pub(crate) use {as_text, text_name};

/// Checks length, first character and alphabet, and says which of them is wrong.
pub(crate) fn checked(field: &'static str, text: &str, max: usize, first: &str, extra: &str) -> Result<String> {
    let invalid = |why: String| Err(Error::invalid(field, why));
    if text.is_empty() {
        return invalid("it is empty".into());
    }
    if text.len() > max {
        return invalid(format!("{} has {} bytes, at most {max} are allowed", shown(text), text.len()));
    }
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c)) {
        return invalid(format!("{} holds {odd:?}; allowed are A-Z a-z 0-9 {}", shown(text), spaced(extra)));
    }
    if text.starts_with(|c| first.contains(c)) {
        return invalid(format!("{} may not begin with one of {}", shown(text), spaced(first)));
    }
    Ok(text.to_owned())
}

fn spaced(characters: &str) -> String {
    let each: Vec<String> = characters.chars().map(String::from).collect();
    each.join(" ")
}

text_name! {
    /// The caller's id of an attachment, which is also the last part of its stable path.
    AttachmentId: "id", 128, ".-", "._-"
}

impl AttachmentId {
    /// An id where the caller gave none: ordered by time.
    pub fn make_up() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

text_name! {
    /// A managed volume's name for people. Its alphabet is that of LVM tags, where it is kept.
    VolumeName: "name", 127, ".-", "._+-"
}

text_name! {
    /// A volume group's name (lvm(8), VALID NAMES).
    VgName
}

impl FromStr for VgName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        lvm_name("vg", text).map(Self)
    }
}

text_name! {
    /// A logical volume's name (lvm(8), VALID NAMES).
    LvName
}

impl FromStr for LvName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        lvm_name("lv", text).map(Self)
    }
}

fn lvm_name(field: &'static str, text: &str) -> Result<String> {
    if text == "." || text == ".." {
        return Err(Error::invalid(field, format!("{} is not a name", shown(text))));
    }
    checked(field, text, 127, "-", "+_.-")
}

text_name! {
    /// An iSCSI name: `iqn.`, `eui.` or `naa.` (RFC 7143 section 4.2.7). Kept in the case it was given in.
    Iqn
}

impl FromStr for Iqn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| Err(Error::invalid("iqn", format!("{}: {why}", shown(text))));
        if let Some(rest) = text.strip_prefix("iqn.") {
            let date = rest.get(..7).unwrap_or_default().as_bytes();
            let dated = date.len() == 7
                && date[..4].iter().chain(&date[5..]).all(u8::is_ascii_digit)
                && date[4] == b'-'
                && matches!(
                    &rest[5..7],
                    "01" | "02" | "03" | "04" | "05" | "06" | "07" | "08" | "09" | "10" | "11" | "12"
                );
            let authority = rest.get(7..).unwrap_or_default().strip_prefix('.').unwrap_or_default();
            if !dated || authority.is_empty() || authority.starts_with(':') {
                return invalid("write iqn.YYYY-MM.REVERSED.DOMAIN[:NAME]");
            }
        } else if let Some(digits) = text.strip_prefix("eui.") {
            if digits.len() != 16 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return invalid("write eui. and 16 hexadecimal digits");
            }
        } else if let Some(digits) = text.strip_prefix("naa.") {
            if !matches!(digits.len(), 16 | 32) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return invalid("write naa. and 16 or 32 hexadecimal digits");
            }
        } else {
            return invalid("an iSCSI name begins with iqn., eui. or naa.");
        }
        checked("iqn", text, 223, "", ".:_-").map(Self)
    }
}

/// Where an iSCSI target listens. Its text is canonical: however an address is written, it is the same portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Portal {
    /// The address.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
}

impl Portal {
    /// The port that IANA assigned to iSCSI.
    pub const DEFAULT_PORT: u16 = 3260;
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl FromStr for Portal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::invalid("portal", format!("{}: {why}; write ADDRESS[:PORT] or [IPV6][:PORT]", shown(text)))
        };
        let (address, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or_else(|| invalid("the bracket is not closed"))?;
            let port = match rest {
                "" => None,
                _ => Some(rest.strip_prefix(':').ok_or_else(|| invalid("after the bracket comes a colon"))?),
            };
            (IpAddr::V6(address.parse::<Ipv6Addr>().map_err(|_| invalid("it is no IPv6 address"))?), port)
        } else if text.parse::<Ipv6Addr>().is_ok() {
            return Err(invalid("an IPv6 address stands in brackets"));
        } else {
            let (address, port) = match text.split_once(':') {
                Some((address, port)) => (address, Some(port)),
                None => (text, None),
            };
            (IpAddr::V4(address.parse().map_err(|_| invalid("it is no IP address"))?), port)
        };
        let port = match port {
            None => Self::DEFAULT_PORT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| invalid("a port is 1 to 65535"))?
            }
            Some(_) => return Err(invalid("a port is 1 to 65535")),
        };
        Ok(Self { address: address.to_canonical(), port })
    }
}

as_text!(Portal);

/// A logical unit's number as Linux has it (`scsilun_to_int`): the first two bytes of its address, big-endian. So units 0 to
/// 16383 are themselves by the peripheral method, and 16384 more by the flat one (SAM-5 section 4.7.7): which of the two
/// a unit answers to is its target's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Lun(u16);

impl Lun {
    /// What the flat method adds to a unit's number.
    pub const FLAT: u16 = 16384;
    /// Beyond are methods that no target uses for volumes.
    const BEYOND: u16 = 2 * Self::FLAT;

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Lun {
    type Error = Error;

    fn try_from(number: u16) -> Result<Self> {
        if number < Self::BEYOND {
            Ok(Self(number))
        } else {
            Err(Error::invalid("lun", format!("{number}: a LUN is 0 to 32767")))
        }
    }
}

impl From<Lun> for u16 {
    fn from(lun: Lun) -> Self {
        lun.0
    }
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Lun {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u16>() {
            Ok(number) if digits && number < Self::BEYOND => Ok(Self(number)),
            _ => Err(Error::invalid("lun", format!("{}: a LUN is 0 to 32767", shown(text)))),
        }
    }
}

/// A SCSI logical unit's worldwide name in udev's form: the designator type's digit, then the designator.
///
/// | sysfs `wwid` | udev, multipath, os-brick |
/// |---|---|
/// | `naa.6001…` | `36001…` |
/// | `eui.0025…` | `20025…` |
/// | `t10.ATA  …` | `1ATA_…` |
/// | serial number only (VPD 0x80) | `S…` |
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wwn(String);

impl Wwn {
    /// From a VPD page 0x83, as the device itself answered it; `None` if it names no logical unit.
    ///
    /// Of the designators with association 0 (the logical unit), NAA counts before EUI-64 before T10 (SPC-4 section
    /// 7.8.6), and the longer one before the shorter.
    pub fn from_page_83(page: &[u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
        let mut rest = page.get(4..4 + length).unwrap_or(page.get(4..)?);
        let mut best: Option<((u8, usize), String)> = None;
        while rest.len() >= 4 {
            let size = usize::from(rest[3]);
            let Some(designator) = rest.get(4..4 + size) else { break };
            let (association, kind, binary) = (rest[1] >> 4 & 3, rest[1] & 15, rest[0] & 15 == 1);
            let found = match (association, kind) {
                (0, 3) if binary => Some((3, format!("3{}", hex(designator)))),
                (0, 2) if binary => Some((2, format!("2{}", hex(designator)))),
                (0, 1) => Some((1, format!("1{}", udev_text(designator)))),
                _ => None,
            };
            if let Some((rank, text)) = found
                && best.as_ref().is_none_or(|(best, _)| (rank, size) > *best)
            {
                best = Some(((rank, size), text));
            }
            rest = &rest[4 + size..];
        }
        best.map(|(_, text)| Self(text))
    }

    /// From a VPD page 0x80 (unit serial number, SPC-4 section 7.8.15); `None` if it is empty.
    pub fn from_page_80(page: &[u8]) -> Option<Self> {
        let serial = page.get(4..4 + usize::from(*page.get(3)?)).unwrap_or(page.get(4..)?);
        let text = udev_text(serial);
        (!text.is_empty()).then(|| Self(format!("S{text}")))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As udev writes what a device says: without spaces around, runs of spaces as one underscore, no control characters.
fn udev_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join("_")
}

impl fmt::Display for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Wwn {
    type Err = Error;

    /// Takes udev's form, sysfs's (`naa.6…`, `eui.…`, `t10.…`), and bare hexadecimal digits with or without `0x`; those that begin
    /// with 1 are a vendor's name in udev's form, since no NAA identifier does (SPC-4 7.8.6.6.1).
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                "wwn",
                format!(
                    "{}: write it as udev does (3600…), as sysfs does (naa.600…), or as 16 or 32 hexadecimal digits",
                    shown(text)
                ),
            )
        };
        let is_hex = |digits: &str, lengths: &[usize]| {
            lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let is_name = |name: &str| (2..256).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        let t10 = text.strip_prefix("t10.").map(|rest| format!("1{}", udev_text(rest.as_bytes())));
        let bare = text.strip_prefix("0x").unwrap_or(text);
        if let Some(digits) = text.strip_prefix("naa.").filter(|digits| is_hex(digits, &[16, 32])) {
            Ok(Self(format!("3{}", digits.to_ascii_lowercase())))
        } else if let Some(digits) = text.strip_prefix("eui.").filter(|digits| is_hex(digits, &[16, 24, 32])) {
            Ok(Self(format!("2{}", digits.to_ascii_lowercase())))
        } else if let Some(name) = t10.filter(|name| is_name(name)) {
            Ok(Self(name))
        } else if is_hex(bare, &[16, 32]) && !bare.starts_with('1') {
            Ok(Self(format!("3{}", bare.to_ascii_lowercase())))
        } else if text.starts_with('3') && is_hex(&text[1..], &[16, 32])
            || text.starts_with('2') && is_hex(&text[1..], &[16, 24, 32])
        {
            Ok(Self(text.to_ascii_lowercase()))
        } else if text.starts_with(['1', 'S']) && is_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid())
        }
    }
}

/// The id that a volume is managed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(Uuid);

impl VolumeId {
    /// An id where the caller gave none: ordered by time.
    pub fn make_up() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for VolumeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match Uuid::parse_str(text) {
            Ok(id) if !id.is_nil() && text.len() == 36 => Ok(Self(id)),
            _ => Err(Error::invalid(
                "id",
                format!("{}: write a UUID, like 9394b827-4ad0-488e-8df8-26476b3a8662", shown(text)),
            )),
        }
    }
}

/// How managed volumes are named on their backend: text with one `%s`, the id's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTemplate {
    before: String,
    after: String,
}

impl NameTemplate {
    /// The managed name of a volume.
    pub fn name(&self, id: VolumeId) -> String {
        format!("{}{id}{}", self.before, self.after)
    }

    /// The id in a name that was made by this template.
    pub fn id_in(&self, name: &str) -> Option<VolumeId> {
        name.strip_prefix(&self.before)?.strip_suffix(&self.after)?.parse().ok()
    }
}

/// How what is managed is named: volumes one way, snapshots another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Templates {
    /// `volume-%s`
    pub volume: NameTemplate,
    /// `snap-%s`. LVM keeps the names that begin with `snapshot` for itself.
    pub snapshot: NameTemplate,
}

impl Templates {
    /// The managed name.
    pub fn name(&self, kind: VolumeKind, id: VolumeId) -> String {
        match kind {
            VolumeKind::Volume => self.volume.name(id),
            VolumeKind::Snapshot => self.snapshot.name(id),
        }
    }

    /// The id in a name that was made by either.
    pub fn id_in(&self, name: &str) -> Option<VolumeId> {
        self.volume.id_in(name).or_else(|| self.snapshot.id_in(name))
    }
}

impl Default for Templates {
    fn default() -> Self {
        let template = |before: &str| NameTemplate { before: before.into(), after: String::new() };
        Self { volume: template("volume-"), snapshot: template("snap-") }
    }
}

impl FromStr for NameTemplate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid("template", format!("{}: {why}", shown(text)));
        let (before, after) = text.split_once("%s").ok_or_else(|| invalid("it has no %s, the id's place"))?;
        let template = Self { before: before.into(), after: after.into() };
        template.name(VolumeId(Uuid::max())).parse::<LvName>().map_err(|_| invalid("it makes no valid LV name"))?;
        Ok(template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn portals_are_canonical() {
        for (given, canonical) in [
            ("10.0.0.5", "10.0.0.5:3260"),
            ("10.0.0.5:860", "10.0.0.5:860"),
            ("[FE80::A]:3260", "[fe80::a]:3260"),
            ("[0:0:0:0:0:0:0:1]", "[::1]:3260"),
            ("[::ffff:10.0.0.5]", "10.0.0.5:3260"),
        ] {
            assert_eq!(given.parse::<Portal>().unwrap().to_string(), canonical);
        }
        for text in ["", ":3260", "::1", "[::1", "[::1]3260", "1.2.3", "1.2.3.4:", "1.2.3.4:+5", "1.2.3.4:70000", "a b"]
        {
            assert!(text.parse::<Portal>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn iscsi_names() {
        for text in [
            "iqn.2010-10.org.openstack:volume-af767c74",
            "iqn.2003-01.org.x",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ] {
            assert_eq!(text.parse::<Iqn>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "iqn",
            "iqn.",
            "iqn.2010-13.org:x",
            "iqn.2010-1.org:x",
            "iqn.2010-10",
            "iqn.2010-10.",
            "iqn.2010-10.:x",
            "iqn.2010-10.org:a b",
            "iqn.2010-10.org:a/b",
            "eui.1",
            "naa.zz",
            "--foo",
            "../x",
            "iqn.20\u{e9}0-10.org:x",
        ] {
            assert!(text.parse::<Iqn>().is_err(), "{text:?} was taken");
        }
        assert!(format!("iqn.2010-10.org:{}", "x".repeat(300)).parse::<Iqn>().is_err());
    }

    #[test]
    fn wwn_forms_are_one() {
        let udev: Wwn = "360014050000000000000000000010001".parse().unwrap();
        for text in [
            "naa.60014050000000000000000000010001",
            "0x60014050000000000000000000010001",
            "60014050000000000000000000010001",
        ] {
            assert_eq!(text.parse::<Wwn>().unwrap(), udev);
        }
        let vendors: Wwn = "t10.CCCCCCCCCCCCCCC".parse().unwrap();
        assert_eq!(vendors.to_string().parse::<Wwn>().unwrap(), vendors, "it is no NAA identifier");
        for text in ["t10.\u{1}", "", "--foo", "3", "360", "naa.", "a b", "xyz"] {
            assert!(text.parse::<Wwn>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn page_83_prefers_naa() {
        let mut page = vec![0, 0x83, 0, 0];
        page.extend([2, 1, 0, 8]);
        page.extend(b"LIO-ORG ");
        page.extend([1, 3, 0, 16, 0x60, 1, 0x40, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        page.extend([1, 0x13, 0, 8, 0x50, 0, 0, 0, 0, 0, 0, 1]);
        page[3] = u8::try_from(page.len() - 4).unwrap();
        assert_eq!(Wwn::from_page_83(&page).unwrap().to_string(), "3600140050102030405060708090a0b0c");
    }

    #[test]
    fn page_80_is_the_last_resort() {
        assert_eq!(Wwn::from_page_80(b"\0\x80\0\x08 abc  d ").unwrap().to_string(), "Sabc_d");
        assert_eq!(Wwn::from_page_80(b"\0\x80\0\x00"), None);
    }

    #[test]
    fn templates() {
        let id: VolumeId = "9394b827-4ad0-488e-8df8-26476b3a8662".parse().unwrap();
        let template: NameTemplate = "vol_%s-x".parse().unwrap();
        assert_eq!(template.id_in(&template.name(id)), Some(id));
        assert_eq!(template.id_in("vol_-x"), None);
        for text in ["volume", "-%s", "a b%s", "%s/x"] {
            assert!(text.parse::<NameTemplate>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn ids_cannot_be_options_or_paths() {
        for text in ["", "--foo", "-n", "../x", "a b", "a/b", ".", "a\0", "a\n", &"x".repeat(300)] {
            assert!(text.parse::<AttachmentId>().is_err(), "{text:?} was taken");
            assert!(text.parse::<LvName>().is_err(), "{text:?} was taken");
            assert!(text.parse::<VgName>().is_err(), "{text:?} was taken");
            assert!(text.parse::<VolumeName>().is_err(), "{text:?} was taken");
            assert!(text.parse::<VolumeId>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(text in "\\PC{0,40}", page in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (text.parse::<AttachmentId>(), text.parse::<Iqn>(), text.parse::<Portal>(), text.parse::<Lun>());
            let _ = (text.parse::<Wwn>(), text.parse::<VolumeId>(), text.parse::<NameTemplate>());
            let _ = (Wwn::from_page_83(&page), Wwn::from_page_80(&page));
        }

        #[test]
        fn a_name_is_never_an_option(text in "[-A-Za-z0-9+_. /]{1,20}") {
            if let Ok(name) = text.parse::<LvName>() {
                prop_assert!(!name.as_str().starts_with('-'));
                prop_assert!(!name.as_str().contains(['/', ' ']));
            }
        }
    }
}
