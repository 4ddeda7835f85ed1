//! The names of an export: its id, its target, and the serial number of what it serves.

use driver::{Error, Iqn, Result, Wwn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, fmt::Write, str::FromStr};
use uuid::Uuid;

/// The caller's id of an export. It is a part of the target's name, so it keeps to that alphabet (RFC 7143 section 4.2.7.2):
/// small letters, digits, `-` and `.`, at most 64, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExportId(String);

impl ExportId {
    /// An id where the caller gave none: ordered by time.
    pub fn make_up() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExportId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const LONGEST: usize = 64;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = (1..=LONGEST).contains(&text.len())
            && text.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'.')
            && text.bytes().next().is_some_and(plain);
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::invalid(
                "id",
                "an export's id has 1 to 64 of a-z 0-9 - . and begins with a letter or a digit",
            )),
        }
    }
}

impl fmt::Display for ExportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ExportId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ExportId> for String {
    fn from(id: ExportId) -> Self {
        id.0
    }
}

/// The name of an export's target: below the host's own iSCSI name, which is unique in the world already, so that two hosts
/// with the same host name, or two callers with the same id, never make the same target. Where the host has no such name, or
/// none that can be extended, below ours with the host name.
pub fn target_name(initiator_name: Option<&Iqn>, host_name: &str, id: &ExportId) -> Result<Iqn> {
    let own = initiator_name.filter(|name| name.as_str().starts_with("iqn."));
    if let Some(name) = own.and_then(|name| format!("{name}:export-{id}").parse().ok()) {
        return Ok(name);
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let host: String = host_name.chars().take(64).map(plain).collect();
    format!("iqn.2026-11.org.mortar:{host}:export-{id}").parse()
}

/// A unit serial number (SPC-4 section 7.8.15): 32 hexadecimal digits. LIO makes the WWN of the first 25.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Serial(String);

impl Serial {
    /// From what proves which volume it is. An LV's UUID is not hexadecimal, and LIO leaves out what is not; so it is a hash.
    pub fn of(identity: &driver::Identity) -> Self {
        Self(hexadecimal(&Sha256::digest(identity.to_string().as_bytes())[..16]))
    }

    /// Where nobody knows any more what was served.
    pub(crate) fn none() -> Self {
        Self(String::new())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The WWN that initiators will see: NAA 6, the company 001405h, and 100 bits of the serial number.
    pub fn wwn(&self) -> Result<Wwn> {
        format!("naa.6001405{}", &self.0[..25]).parse()
    }
}

/// In small letters.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::Identity;

    #[test]
    fn an_id_can_stand_in_a_name_and_in_a_path() {
        for good in ["a", "0", "9394b827-4ad0-488e-8df8-26476b3a8680", "a.b-c", &"x".repeat(64)] {
            assert_eq!(good.parse::<ExportId>().unwrap().as_str(), good);
        }
        for bad in ["", "A", "-a", ".", "..", "a/b", "a b", "a:b", "a_b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<ExportId>().is_err(), "{bad}");
        }
        assert_ne!(ExportId::make_up(), ExportId::make_up());
        assert!(ExportId::make_up().to_string().parse::<ExportId>().is_ok());
    }

    #[test]
    fn a_target_is_named_below_the_host() {
        let id: ExportId = "x".parse().unwrap();
        let name = |own: Option<&str>| {
            let own: Option<Iqn> = own.map(|own| own.parse().unwrap());
            target_name(own.as_ref(), "Host_1.example", &id).unwrap().to_string()
        };
        assert_eq!(name(Some("iqn.1993-08.org.debian:01:abc")), "iqn.1993-08.org.debian:01:abc:export-x");
        assert_eq!(name(None), "iqn.2026-11.org.mortar:host-1.example:export-x");
        assert_eq!(name(Some("eui.0123456789abcdef")), "iqn.2026-11.org.mortar:host-1.example:export-x");
        let long = format!("iqn.2026-11.org.example:{}", "x".repeat(199));
        assert_eq!(name(Some(&long)), "iqn.2026-11.org.mortar:host-1.example:export-x");
    }

    #[test]
    fn the_wwn_follows_from_the_volume() {
        let identity = |lv: &str| Identity::Lvm { vg_uuid: "v".into(), lv_uuid: lv.into() };
        let serial = Serial::of(&identity("l"));
        assert_eq!(serial, Serial::of(&identity("l")));
        assert_ne!(serial, Serial::of(&identity("m")));
        let wwn = serial.wwn().unwrap().to_string();
        assert_eq!((wwn.len(), &wwn[..8], &wwn[8..]), (33, "36001405", &serial.as_str()[..25]));
    }
}
