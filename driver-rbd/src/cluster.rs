//! How a cluster is reached: its monitors and the user's key, from the call or from `/etc/ceph`.
//!
//! A conf is an INI file whose keys may be written with spaces, dashes or underscores; `mon host` has grown several forms
//! (`ceph.conf` of Ceph's documentation, "Configuring Ceph", "Messenger v2"). Names of monitors are refused: the kernel
//! takes addresses, and who answers to a name may change between two looks.

use crate::failed;
use base64::{Engine, prelude::BASE64_STANDARD};
use driver::{Error, Image, Pool, Result, Spec};
use host::{Host, KernelKey};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use crate::mapping::Mark;

/// The port of msgr1, the messenger of before Nautilus.
const V1: u16 = 6789;
/// The port of msgr2.
const V2: u16 = 3300;

/// Which messenger a monitor speaks at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Messenger {
    One,
    Two,
}

/// The monitors, by what they speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Monitors(Vec<(Messenger, SocketAddr)>);

impl Monitors {
    pub(crate) fn speaking(&self, messenger: Messenger) -> Vec<SocketAddr> {
        self.0.iter().filter(|(speaks, _)| *speaks == messenger).map(|(_, address)| *address).collect()
    }

    fn add(&mut self, messenger: Messenger, address: SocketAddr) {
        if !self.0.contains(&(messenger, address)) {
            self.0.push((messenger, address));
        }
    }

    /// An address that does not say what is spoken there: the port tells, and without one both may be.
    fn add_plain(&mut self, address: IpAddr, port: Option<u16>) {
        match port {
            Some(V2) => self.add(Messenger::Two, (address, V2).into()),
            Some(port) => self.add(Messenger::One, (address, port).into()),
            None => {
                self.add(Messenger::One, (address, V1).into());
                self.add(Messenger::Two, (address, V2).into());
            }
        }
    }

    /// The value of `mon host`: `10.0.0.1, 10.0.0.2:6789`, `v1:10.0.0.1:6789`, `[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]`,
    /// with IPv6 addresses in brackets of their own.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut monitors = Self::default();
        for word in ungrouped(text).split([',', ';', ' ', '\t']).filter(|word| !word.is_empty()) {
            let (speaks, rest) = match word.split_once(':') {
                Some(("v1", rest)) => (Some(Messenger::One), rest),
                Some(("v2", rest)) => (Some(Messenger::Two), rest),
                Some(("any", rest)) => (None, rest),
                _ => (None, word),
            };
            let address = rest.split_once('/').map_or(rest, |(address, _nonce)| address);
            let (ip, port) = address_and_port(address).ok_or_else(|| word.to_owned())?;
            match speaks {
                None => monitors.add_plain(ip, port),
                Some(Messenger::One) => monitors.add(Messenger::One, (ip, port.unwrap_or(V1)).into()),
                Some(Messenger::Two) => monitors.add(Messenger::Two, (ip, port.unwrap_or(V2)).into()),
            }
        }
        Ok(monitors)
    }
}

/// The text without the brackets that group the addresses of one monitor; those of IPv6 addresses stay.
fn ungrouped(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['[', ']']) {
        plain.push_str(&rest[..at]);
        let inner = &rest[at + 1..];
        let close = inner.find(']');
        match close.filter(|close| rest[at..].starts_with('[') && inner[..*close].parse::<Ipv6Addr>().is_ok()) {
            Some(close) => {
                plain.push_str(&rest[at..=at + 1 + close]);
                rest = &inner[close + 1..];
            }
            None => {
                plain.push(' ');
                rest = inner;
            }
        }
    }
    plain.push_str(rest);
    plain
}

fn address_and_port(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some((address.ip(), Some(address.port())));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    Some((bare.parse().ok()?, None))
}

/// How a cluster is reached, and as whom.
pub(crate) struct Cluster {
    pub(crate) monitors: Monitors,
    user: String,
    key: SecretBox<Vec<u8>>,
}

impl Cluster {
    /// From what the call says, and for what it does not say from `/etc/ceph`.
    pub(crate) fn of(host: &dyn Host, pool: &Pool, given: Option<&SecretString>) -> Result<Self> {
        let conf = Conf::read(host, pool)?;
        let monitors = match pool.monitors.as_slice() {
            [] => conf.monitors(pool)?,
            some => {
                let mut monitors = Monitors::default();
                some.iter().for_each(|monitor| monitors.add_plain(monitor.ip(), Some(monitor.port())));
                monitors
            }
        };
        let key = match given {
            Some(key) => decoded(key, "the key of the call")?,
            None => conf.key(host, pool)?,
        };
        Ok(Self { monitors, user: pool.user.to_string(), key })
    }

    /// What is written to the kernel to map an image. The key is not in it, only its name.
    pub(crate) fn request(&self, messenger: Messenger, image: &Image, spec: &Spec, mark: &Mark) -> String {
        let monitors: Vec<String> = self.monitors.speaking(messenger).iter().map(SocketAddr::to_string).collect();
        let mut options = vec![format!("name={}", self.user), format!("key={mark}")];
        if messenger == Messenger::Two {
            options.push("ms_mode=prefer-crc".into());
        }
        options.extend(image.pool.namespace.as_ref().map(|namespace| format!("_pool_ns={namespace}")));
        if spec.read_only {
            options.push("ro".into());
        }
        if spec.exclusive {
            options.push("exclusive".into());
        }
        let snapshot = image.snapshot.as_ref().map_or_else(|| "-".into(), ToString::to_string);
        format!("{} {} {} {} {snapshot}", monitors.join(","), options.join(","), image.pool.pool, image.name)
    }

    /// The key, for the kernel to find while it maps.
    pub(crate) fn lend(&self, mark: &Mark) -> KernelKey {
        let payload = SecretBox::new(Box::new(self.key.expose_secret().clone()));
        KernelKey { kind: "ceph", description: mark.to_string(), payload }
    }
}

/// A key as a keyring holds it, in base64, as the kernel takes it.
fn decoded(key: &SecretString, whose: &str) -> Result<SecretBox<Vec<u8>>> {
    match BASE64_STANDARD.decode(key.expose_secret().trim()) {
        Ok(key) if is_aes(&key) => Ok(SecretBox::new(Box::new(key))),
        _ => Err(Error::invalid(
            "credentials",
            format!("{whose} is no cephx key that the kernel can use (AES, 128 bits); `ceph auth get-key` shows one"),
        )),
    }
}

/// A key of 128 bits for AES, the one type that the kernel's client has (`struct ceph_crypto_key`, `net/ceph/crypto.c`): its
/// type, when it was made in two numbers of four bytes, its length, and the key itself.
fn is_aes(key: &[u8]) -> bool {
    matches!(key, [1, 0, rest @ ..] if matches!(rest.get(8..), Some([16, 0, secret @ ..]) if secret.len() == 16))
}

/// `/etc/ceph/NAME.conf`, by sections and keys.
struct Conf {
    path: PathBuf,
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Conf {
    /// Without a file, an empty one: all may be said in the call.
    fn read(host: &dyn Host, pool: &Pool) -> Result<Self> {
        let path = path(pool);
        let text = host.read(&path).map_err(failed(format!("read {}", path.display())))?;
        Ok(Self { sections: parsed(&text.unwrap_or_default()), path })
    }

    /// A setting of this user: his own section before that of all clients, and that before `[global]`.
    fn of_user(&self, pool: &Pool, key: &str) -> Option<&str> {
        let sections = [format!("client.{}", pool.user), "client".into(), "global".into()];
        sections.iter().find_map(|section| self.sections.get(section)?.get(key)).map(String::as_str)
    }

    fn monitors(&self, pool: &Pool) -> Result<Monitors> {
        let nowhere = |why: String| Error::WrongState {
            what: format!(
                "{why}; write `mon host = ADDRESS[:PORT], …` to {}, or name them in the locator: ?mon=ADDRESS:PORT,…",
                self.path.display()
            ),
        };
        let said: Vec<&str> = match self.of_user(pool, "mon_host") {
            Some(said) => vec![said],
            // As it was before there was `mon host`.
            None => {
                let each = self.sections.iter().filter(|(section, _)| section.starts_with("mon."));
                each.filter_map(|(_, keys)| keys.get("mon_addr")).map(String::as_str).collect()
            }
        };
        let monitors = Monitors::parse(&said.join(","))
            .map_err(|word| nowhere(format!("{word} is no address of a monitor that the kernel can use")))?;
        match monitors.0.is_empty() {
            true => Err(nowhere(format!("no monitors of the cluster {} are known", pool.cluster))),
            false => Ok(monitors),
        }
    }

    fn key(&self, host: &dyn Host, pool: &Pool) -> Result<SecretBox<Vec<u8>>> {
        if let Some(key) = self.of_user(pool, "key") {
            return decoded(&key.to_owned().into(), &format!("the key in {}", self.path.display()));
        }
        let user = format!("client.{}", pool.user);
        // `keyring` of Ceph's `global.yaml.in`.
        let usual =
            "/etc/ceph/$cluster.$name.keyring,/etc/ceph/$cluster.keyring,/etc/ceph/keyring,/etc/ceph/keyring.bin";
        let places = self.of_user(pool, "keyring").unwrap_or(usual);
        let places = places
            .replace("$cluster", pool.cluster.as_str())
            .replace("$name", &user)
            .replace("$id", pool.user.as_str())
            .replace("$type", "client");
        let places: Vec<&str> = places.split([',', ';', ' ']).filter(|place| !place.is_empty()).collect();
        for place in &places {
            let text = host.read(place.as_ref()).map_err(failed(format!("read {place}")))?;
            let Some(text) = text.map(SecretString::from) else { continue };
            if let Some(key) = key_of(&text, &user) {
                return decoded(&key, &format!("the key of {user} in {place}"));
            }
        }
        if self.of_user(pool, "auth_client_required").is_some_and(|said| said.trim() == "none") {
            // It is looked for all the same, and not used.
            return Ok(SecretBox::new(Box::new([&[1, 0][..], &[0; 8], &[16, 0], &[0; 16]].concat())));
        }
        Err(Error::invalid(
            "credentials",
            format!("no key of {user} in {}; give it in the call, or put its keyring there", places.join(", ")),
        ))
    }
}

/// The conf of a pool's cluster.
pub(crate) fn path(pool: &Pool) -> PathBuf {
    PathBuf::from(format!("/etc/ceph/{}.conf", pool.cluster))
}

/// A user's key in a keyring.
pub(crate) fn key_of(keyring: &SecretString, user: &str) -> Option<SecretString> {
    let mut within = false;
    keyring.expose_secret().lines().map(str::trim).find_map(|line| {
        if let Some(section) = line.strip_prefix('[') {
            within = section.trim_end_matches(']').trim() == user;
            return None;
        }
        let (key, value) = line.split_once('=')?;
        (within && key.trim() == "key").then(|| value.trim().to_owned().into())
    })
}

pub(crate) fn parsed(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections = BTreeMap::<String, BTreeMap<String, String>>::new();
    // What stands before any section is taken for all.
    let mut section = "global".to_owned();
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim();
        if let Some(name) =
            line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|_| !line.contains('='))
        {
            section = name.trim().to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key
                .trim()
                .to_ascii_lowercase()
                .split([' ', '-', '_'])
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("_");
            sections.entry(section.clone()).or_default().insert(key, value.trim().trim_matches('"').to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn monitors_in_all_forms() {
        for (text, one, two) in [
            ("10.0.0.1", "10.0.0.1:6789", "10.0.0.1:3300"),
            ("10.0.0.1:6789,10.0.0.2:6790", "10.0.0.1:6789 10.0.0.2:6790", ""),
            ("10.0.0.1:3300 10.0.0.2:3300", "", "10.0.0.1:3300 10.0.0.2:3300"),
            ("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", "10.0.0.1:6789", "10.0.0.1:3300"),
            (
                "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:10.0.0.2:3300/0,v1:10.0.0.2:6789/0]",
                "10.0.0.1:6789 10.0.0.2:6789",
                "10.0.0.1:3300 10.0.0.2:3300",
            ),
            ("[v2:[fe80::1]:3300/0,v1:[fe80::1]:6789/0]", "[fe80::1]:6789", "[fe80::1]:3300"),
            ("[::1]:6789;[::2]", "[::1]:6789 [::2]:6789", "[::2]:3300"),
            ("v1:10.0.0.1:7000, v2:10.0.0.1:7001", "10.0.0.1:7000", "10.0.0.1:7001"),
            ("v2:10.0.0.1", "", "10.0.0.1:3300"),
            ("", "", ""),
        ] {
            let monitors = Monitors::parse(text).unwrap();
            let shown = |messenger| {
                monitors.speaking(messenger).iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ")
            };
            assert_eq!((shown(Messenger::One).as_str(), shown(Messenger::Two).as_str()), (one, two), "{text}");
        }
        assert_eq!(Monitors::parse("10.0.0.1,mon-a.example:6789"), Err("mon-a.example:6789".into()));
    }

    #[test]
    fn keys_of_a_conf_are_written_in_many_ways() {
        let conf = parsed(
            "fsid = 1\n# a comment\n[global]\nmon host = [v2:10.0.0.1:3300,v1:10.0.0.1:6789] ; here\n[client.cinder]\n\
             keyring=/etc/ceph/a\n[client]\nKeyring = \"/b\"\nrbd-cache = \\\n true\n",
        );
        assert_eq!(conf["global"]["mon_host"], "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]");
        assert_eq!((conf["global"]["fsid"].as_str(), conf["client"]["rbd_cache"].as_str()), ("1", "true"));
        assert_eq!(
            (conf["client.cinder"]["keyring"].as_str(), conf["client"]["keyring"].as_str()),
            ("/etc/ceph/a", "/b")
        );
    }

    #[test]
    fn a_key_of_another_type_or_length_is_refused_before_anything() {
        let key = |kind: u8, said: u8, length: usize| {
            let key = [&[kind, 0][..], &[7; 8], &[said, 0], &vec![9; length]].concat();
            decoded(&BASE64_STANDARD.encode(key).into(), "the key").map(drop)
        };
        key(1, 16, 16).unwrap();
        for (kind, said, length) in [(2, 32, 32), (0, 16, 16), (1, 16, 15), (1, 16, 17), (1, 32, 32), (1, 0, 0)] {
            let error = key(kind, said, length).unwrap_err();
            assert!(matches!(error, Error::Invalid { field: "credentials", .. }), "{error}");
        }
    }

    #[test]
    fn a_key_is_that_of_its_user() {
        let keyring: SecretString =
            "[client.admin]\n\tkey = first==\n\tcaps mon = \"allow *\"\n[client.b]\n  key=second==\n".to_owned().into();
        let key = |user| key_of(&keyring, user).map(|key| key.expose_secret().to_owned());
        assert_eq!(key("client.admin").as_deref(), Some("first=="));
        assert_eq!(key("client.b").as_deref(), Some("second=="));
        assert_eq!(key("client.c"), None);
    }

    proptest! {
        #[test]
        fn no_text_of_others_panics(text in "(\\PC|[\\[\\]=:,/;#\\\\\n]|v[12]:|mon host){0,80}") {
            let _monitors = Monitors::parse(&text);
            let _sections = parsed(&text);
            let _key = key_of(&text.into(), "client.admin");
        }

        #[test]
        fn monitors_are_read_back(addresses in proptest::collection::btree_set(any::<SocketAddr>(), 1..4)) {
            prop_assume!(addresses.iter().all(|address| address.port() != 0));
            // A zone is a name of this host's, and in no conf.
            let addresses: Vec<SocketAddr> =
                addresses.into_iter().map(|address| (address.ip(), address.port()).into()).collect();
            let one: Vec<String> = addresses.iter().map(|address| format!("v1:{address}/0")).collect();
            let mut read = Monitors::parse(&one.join(",")).unwrap().speaking(Messenger::One);
            let mut given = addresses;
            read.sort();
            given.sort();
            given.dedup();
            prop_assert_eq!(read, given);
        }
    }
}
