//! `connection_info`: what Cinder gives to a host and os-brick takes, read as it stands.
//!
//! Two forms are known, and the replies of Cinder's API around either of them:
//!
//! ```text
//! {"driver_volume_type": "iscsi", "data": {"target_portal": …, …}, "serial": …}    initialize_connection, Nova
//! {"driver_volume_type": "iscsi", "target_portal": …, …}                           the attachments API (v3)
//! {"connection_info": …}, {"attachment": {"connection_info": …}}                   the whole reply
//! ```
//!
//! | type | the volume | how it is attached | what the backend asks for |
//! |---|---|---|---|
//! | `iscsi` | `target_portal`, `target_iqn`, `target_lun`, or each in the plural; `addressing_mode` | `access_mode`, `wwn` or `scsi_wwn` | `auth_method`, `auth_username`, `auth_password` |
//! | `rbd` | `name`, `hosts`, `ports`, `cluster_name`, `auth_username` | `access_mode` | `keyring` |
//! | `local` | `device_path` | `access_mode` | |
//!
//! `encrypted` is refused. All other keys are taken and mean nothing here: `qos_specs`, `cacheable`, `discard`,
//! `volume_id`, `target_discovered`, the block sizes (the device tells its own), `enforce_multipath` (several portals are
//! always brought together by multipath, or refused), `secret_type` and `secret_uuid` (libvirt's), and
//! `discovery_auth_*`: nothing is ever discovered, the portals are those that are named. `null` is as good as absent.

use crate::{
    Access, CephUser, Chap, Error, Image, Iqn, Locator, LogicalUnit, LogicalVolume, Lun, Pool, Portal, RawFile, Result,
    Way, Wwn, image::monitor_address, keyring, locator::shown,
};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroize};
use serde_json::{Map, Value};
use std::net::SocketAddr;

/// The longest text that is read, in bytes. A volume with a hundred portals takes a tenth of it.
pub const LONGEST: usize = 64 << 10;

/// What a `connection_info` asks for.
#[derive(Debug)]
pub struct Requested {
    /// Where the volume is.
    pub locator: Locator,
    /// The device refuses writes.
    pub read_only: bool,
    /// The WWN that the device must have.
    pub expected_wwn: Option<Wwn>,
    /// What the backend asks for.
    pub access: Access,
}

/// All that an attach needs. [`Error::Invalid`] names the key; [`Error::Unsupported`] for another type of volume and for
/// an encrypted one. No error holds a value of a key that is secret.
pub fn read(info: &SecretString) -> Result<Requested> {
    let document = Document::parse(info)?;
    let (backend, keys) = document.open()?;
    if keys.flag("encrypted")? == Some(true) {
        return Err(Error::Unsupported {
            what: "the volume is encrypted, and LUKS is not there yet: its device would show nothing but ciphertext"
                .into(),
        });
    }
    let read_only = match keys.text("access_mode")? {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(Error::invalid("access_mode", format!("{}: expected rw or ro", shown(other)))),
    };
    let locator = keys.locator(backend)?;
    let (access, expected_wwn) = match &locator {
        Locator::Iscsi(_) => (Access { chap: keys.chap()?, cephx: None }, keys.wwn()?),
        Locator::Rbd(image) => (Access { chap: None, cephx: keys.cephx(&image.pool.user)? }, None),
        Locator::Lvm(_) | Locator::File(_) => (Access::default(), None),
    };
    Ok(Requested { locator, read_only, expected_wwn, access })
}

/// Which volume it is: all that a detach needs. Errors as for [`read`].
pub fn locator(info: &SecretString) -> Result<Locator> {
    let document = Document::parse(info)?;
    let (backend, keys) = document.open()?;
    keys.locator(backend)
}

/// The parsed JSON, which may hold secrets and so is wiped when it goes.
struct Document(Value);

impl Document {
    fn parse(info: &SecretString) -> Result<Self> {
        let text = info.expose_secret();
        if text.len() > LONGEST {
            return Err(Error::invalid(ITSELF, format!("it has {} bytes, at most {LONGEST} are read", text.len())));
        }
        // An error of serde_json tells a place, and nothing of what stands there.
        serde_json::from_str(text).map(Self).map_err(|error| Error::invalid(ITSELF, format!("not JSON: {error}")))
    }

    /// The type of volume, and the keys that belong to it.
    fn open(&self) -> Result<(Kind, Keys<'_>)> {
        let mut outer = self.0.as_object().ok_or_else(|| expected(ITSELF, "a JSON object"))?;
        for reply in ["attachment", ITSELF] {
            if let (None, Some(Value::Object(inner))) = (outer.get(TYPE), outer.get(reply)) {
                outer = inner;
            }
        }
        let kind = match Keys(outer).text(TYPE)? {
            Some(name) if name.eq_ignore_ascii_case("iscsi") => Kind::Iscsi,
            Some(name) if name.eq_ignore_ascii_case("rbd") => Kind::Rbd,
            Some(name) if name.eq_ignore_ascii_case("local") => Kind::Local,
            Some(other) => {
                return Err(Error::Unsupported {
                    what: format!(
                        "driver_volume_type {} is not known to this build; iscsi, rbd and local are",
                        shown(other)
                    ),
                });
            }
            None => return Err(expected(TYPE, "iscsi, rbd or local")),
        };
        match outer.get("data") {
            None | Some(Value::Null) => Ok((kind, Keys(outer))),
            Some(Value::Object(data)) => Ok((kind, Keys(data))),
            Some(_) => Err(expected("data", "an object")),
        }
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(keys) => keys.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

const ITSELF: &str = "connection_info";
const TYPE: &str = "driver_volume_type";

/// The types that are known.
#[derive(Clone, Copy)]
enum Kind {
    Iscsi,
    Rbd,
    Local,
}

/// The keys of one volume.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(self, key: &'static str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(expected(key, "a string")),
        }
    }

    fn needed(self, key: &'static str) -> Result<&'a str> {
        self.text(key)?.filter(|text| !text.is_empty()).ok_or_else(|| expected(key, "a string"))
    }

    fn flag(self, key: &'static str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(expected(key, "true or false")),
        }
    }

    /// What stands under a key in the plural. An empty list is none, as os-brick has it.
    fn list(self, key: &'static str) -> Result<Option<&'a [Value]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) if values.is_empty() => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(expected(key, "a list")),
        }
    }

    fn locator(self, kind: Kind) -> Result<Locator> {
        match kind {
            Kind::Iscsi => self.unit().map(Locator::Iscsi),
            Kind::Rbd => self.image().map(Locator::Rbd),
            Kind::Local => self.device(),
        }
    }

    /// The portals with a target and a unit each; one of these is the target or unit of all of them.
    fn unit(self) -> Result<LogicalUnit> {
        let addressing = self.addressing()?;
        let portal = |key, value: &Value| under(key, text(key, value)?.parse::<Portal>());
        let iqn = |key, value: &Value| under(key, text(key, value)?.parse::<Iqn>());
        let lun = |key, value: &Value| addressing.unit(key, number(key, value)?);
        let portals = self.each(("target_portal", "target_portals"), None, portal)?;
        let iqns = self.each(("target_iqn", "target_iqns"), Some(portals.len()), iqn)?;
        let luns = self.each(("target_lun", "target_luns"), Some(portals.len()), lun)?;
        let ways = portals.into_iter().zip(iqns).zip(luns);
        LogicalUnit::new(ways.map(|((portal, iqn), lun)| Way { portal, iqn, lun }))
    }

    /// What stands under the plural; else what stands under the singular, as often as it is wanted.
    fn each<T: Clone>(
        self,
        (one, many): (&'static str, &'static str),
        wanted: Option<usize>,
        parse: impl Fn(&'static str, &Value) -> Result<T>,
    ) -> Result<Vec<T>> {
        if let Some(values) = self.list(many)? {
            return match wanted.filter(|wanted| *wanted != values.len()) {
                Some(wanted) => {
                    let why = format!("it has {}, expected one for each portal, which are {wanted}", values.len());
                    Err(Error::invalid(many, why))
                }
                None => values.iter().map(|value| parse(many, value)).collect(),
            };
        }
        let value = self.get(one).ok_or_else(|| Error::invalid(one, format!("it is missing, and so is {many}")))?;
        Ok(vec![parse(one, value)?; wanted.unwrap_or(1)])
    }

    fn addressing(self) -> Result<Addressing> {
        match self.text("addressing_mode")? {
            None | Some("SAM" | "transparent") => Ok(Addressing::AsItIs),
            Some("SAM2") => Ok(Addressing::FlatFrom(256)),
            Some("SAM3-flat") => Ok(Addressing::FlatFrom(0)),
            Some(other) => {
                let why = format!("{}: expected SAM, transparent, SAM2 or SAM3-flat", shown(other));
                Err(Error::invalid("addressing_mode", why))
            }
        }
    }

    /// One-way CHAP; there is no other in Cinder.
    fn chap(self) -> Result<Option<Chap>> {
        match self.text("auth_method")? {
            Some(method) if method.eq_ignore_ascii_case("chap") => {
                let (user, password) = (self.needed("auth_username")?.to_owned(), self.needed("auth_password")?);
                Ok(Some(Chap { user, password: password.into() }))
            }
            None => Ok(None),
            Some(method) if method.is_empty() || method.eq_ignore_ascii_case("none") => Ok(None),
            Some(other) => Err(Error::Unsupported {
                what: format!("auth_method {} is not known to this build; CHAP is", shown(other)),
            }),
        }
    }

    fn wwn(self) -> Result<Option<Wwn>> {
        let mut found: Option<Wwn> = None;
        for key in ["wwn", "scsi_wwn"] {
            // os-brick says "" where it did not find it in time.
            let Some(text) = self.text(key)?.filter(|text| !text.is_empty()) else { continue };
            let wwn = under(key, text.parse())?;
            if let Some(other) = found.filter(|other| *other != wwn) {
                return Err(Error::invalid(key, format!("it is {wwn}, and wwn is {other}")));
            }
            found = Some(wwn);
        }
        Ok(found)
    }

    fn image(self) -> Result<Image> {
        let name = self.needed("name")?;
        let invalid = || {
            let why = format!("{}: expected POOL/IMAGE or POOL/NAMESPACE/IMAGE", shown(name));
            Error::invalid("name", why)
        };
        let (path, image) = name.rsplit_once('/').ok_or_else(invalid)?;
        let (image, snapshot) = match image.split_once('@') {
            Some((image, snapshot)) => (image, Some(under("name", snapshot.parse())?)),
            None => (image, None),
        };
        let (pool, namespace) = match path.split_once('/') {
            Some((pool, namespace)) => (pool, Some(under("name", namespace.parse())?)),
            None => (path, None),
        };
        let mut pool = Pool::new(under("name", pool.parse())?, namespace);
        pool.monitors = self.monitors()?;
        if let Some(cluster) = self.text("cluster_name")?.filter(|name| !name.is_empty()) {
            pool.cluster = under("cluster_name", cluster.parse())?;
        }
        if let Some(user) = self.text("auth_username")?.filter(|user| !user.is_empty()) {
            pool.user = under("auth_username", user.strip_prefix("client.").unwrap_or(user).parse())?;
        }
        Ok(Image { pool, name: under("name", image.parse())?, snapshot })
    }

    /// In an order of our own: that of the monitors says nothing, and the same volume is to have the same locator when
    /// they are listed anew.
    fn monitors(self) -> Result<Vec<SocketAddr>> {
        let Some(hosts) = self.list("hosts")? else { return Ok(Vec::new()) };
        let ports = self.list("ports")?.unwrap_or_default();
        if ports.len() != hosts.len() {
            let why = format!("it has {}, expected one for each of hosts, which are {}", ports.len(), hosts.len());
            return Err(Error::invalid("ports", why));
        }
        let mut monitors = Vec::new();
        for (host, port) in hosts.iter().zip(ports) {
            let host = text("hosts", host)?;
            let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
            let port = u16::try_from(number("ports", port)?).ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| expected("ports", "numbers from 1 to 65535"))?;
            let bracketed = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            monitors.push(under("hosts", monitor_address(&bracketed))?);
        }
        monitors.sort_unstable();
        monitors.dedup();
        Ok(monitors)
    }

    fn cephx(self, user: &CephUser) -> Result<Option<SecretString>> {
        match self.text("keyring")?.filter(|text| !text.is_empty()) {
            Some(text) => under("keyring", keyring::key(&text.into(), user)).map(Some),
            None => Ok(None),
        }
    }

    /// A volume that is on this host already, by the path that its driver has for it.
    fn device(self) -> Result<Locator> {
        let path = self.needed("device_path")?;
        let refused = || {
            let why = format!(
                "{}: expected /dev/VG/LV, /dev/mapper/VG-LV, or a file that is not below /dev; other devices have no \
                 name that stays theirs",
                shown(path)
            );
            Error::invalid("device_path", why)
        };
        let Some(rest) = path.strip_prefix("/dev/") else {
            return RawFile::new(path).map(Locator::File).map_err(|_| refused());
        };
        let (vg, lv) = match rest.split_once('/') {
            Some(("mapper", name)) => mapped(name).ok_or_else(refused)?,
            Some((vg, lv)) if !DIRECTORIES.contains(&vg) => (vg.to_owned(), lv.to_owned()),
            _ => return Err(refused()),
        };
        match (vg.parse(), lv.parse()) {
            (Ok(vg), Ok(lv)) => Ok(Locator::Lvm(LogicalVolume { vg, lv })),
            _ => Err(refused()),
        }
    }
}

/// What stands in `/dev` and is no VG.
const DIRECTORIES: [&str; 19] = [
    "block", "bsg", "bus", "char", "cpu", "disk", "dri", "fd", "input", "loop", "md", "mortar", "mqueue", "net", "pts",
    "rbd", "shm", "snd", "zvol",
];

/// The VG and LV in a name of the device mapper: `my--vg-lv`. A dash within a name is doubled (lvm(8)).
fn mapped(name: &str) -> Option<(String, String)> {
    let (mut names, mut rest) = (vec![String::new()], name.chars().peekable());
    while let Some(letter) = rest.next() {
        if letter == '-' && rest.next_if_eq(&'-').is_none() {
            names.push(String::new());
        } else {
            names.last_mut()?.push(letter);
        }
    }
    match <[String; 2]>::try_from(names) {
        Ok([vg, lv]) => Some((vg, lv)),
        Err(_) => None,
    }
}

/// How a target writes a unit's number into the eight bytes of an address (SAM-5 section 4.7). What the kernel shows, and
/// what is written to `scan`, is the number that these bytes are: with the flat method 16384 more.
#[derive(Clone, Copy)]
enum Addressing {
    AsItIs,
    /// The flat method, from this unit on.
    FlatFrom(u64),
}

impl Addressing {
    fn unit(self, key: &'static str, number: u64) -> Result<Lun> {
        let flat = match self {
            Self::FlatFrom(first) if number >= first => number.checked_add(Lun::FLAT.into()),
            _ => Some(number),
        };
        let lun = flat.and_then(|number| u16::try_from(number).ok()).and_then(|number| Lun::try_from(number).ok());
        lun.ok_or_else(|| Error::invalid(key, format!("{number}: expected 0 to 16383")))
    }
}

fn text<'v>(key: &'static str, value: &'v Value) -> Result<&'v str> {
    value.as_str().ok_or_else(|| expected(key, "strings"))
}

/// A number, also as a string of digits.
fn number(key: &'static str, value: &Value) -> Result<u64> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| expected(key, "a number, or one as a string"))
}

fn expected(key: &'static str, what: &str) -> Error {
    Error::invalid(key, format!("expected {what}"))
}

/// An error under the key that the caller knows.
fn under<T>(key: &'static str, parsed: Result<T>) -> Result<T> {
    parsed.map_err(|error| match error {
        Error::Invalid { why, .. } => Error::Invalid { field: key, why },
        other => other,
    })
}

#[cfg(test)]
mod tests;
