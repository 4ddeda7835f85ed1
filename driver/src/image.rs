//! RBD images: their names as types, and how they stand in a locator.
//!
//! ```text
//! rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][?cluster=NAME&user=NAME&mon=ADDRESS:PORT[,ADDRESS:PORT…]]
//! rbd:POOL[/NAMESPACE][?…]                                             where images are listed
//! ```
//!
//! What follows the question mark says which cluster, and as whom. Defaults are left out of the canonical text: the cluster
//! `ceph` (`/etc/ceph/ceph.conf` and its keyrings), the user `admin`, the monitors that the conf names.

use crate::{
    Error, Result,
    locator::shown,
    names::{as_text, checked, text_name},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// What the names of Ceph may hold besides letters and digits. Ceph itself takes more; these are safe wherever we write
/// them: the kernel's map string, JSON, a locator.
const EXTRA: &str = "._-+:=~%#!^*";
const LONGEST: usize = 255;

text_name! {
    /// A cluster's name on this host: that of its `/etc/ceph/NAME.conf`.
    ClusterName: "cluster", 64, "-.", "._-"
}

impl Default for ClusterName {
    fn default() -> Self {
        Self("ceph".into())
    }
}

text_name! {
    /// A cephx user, without `client.` before it.
    CephUser: "user", 128, "-", "._-"
}

impl Default for CephUser {
    fn default() -> Self {
        Self("admin".into())
    }
}

text_name! {
    /// A pool.
    PoolName: "pool", LONGEST, "-", "._-"
}

text_name! {
    /// A namespace of a pool.
    RbdNamespace: "namespace", LONGEST, "-", "._-"
}

text_name! {
    /// An image.
    ImageName: "image", LONGEST, "-", EXTRA
}

text_name! {
    /// A snapshot of an image.
    SnapshotName: "snapshot", LONGEST, "-", EXTRA
}

/// A pool, or a namespace of one, and how its cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pool {
    /// Which conf and keyrings of `/etc/ceph`.
    pub cluster: ClusterName,
    /// The monitors; empty: those of the conf.
    pub monitors: Vec<SocketAddr>,
    /// As whom.
    pub user: CephUser,
    /// The pool.
    pub pool: PoolName,
    /// The namespace in it; `None` is the pool's own.
    pub namespace: Option<RbdNamespace>,
}

/// An RBD image, or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Image {
    /// Where it is.
    pub pool: Pool,
    /// The image.
    pub name: ImageName,
    /// One of its snapshots, which is read-only.
    pub snapshot: Option<SnapshotName>,
}

impl Pool {
    /// Monitors listen here if nothing else is said: the port of the protocol's second version (msgr2).
    pub const MONITOR_PORT: u16 = 3300;

    /// A pool of the cluster `ceph`, as `admin`.
    pub fn new(pool: PoolName, namespace: Option<RbdNamespace>) -> Self {
        Self { cluster: ClusterName::default(), monitors: Vec::new(), user: CephUser::default(), pool, namespace }
    }

    /// `POOL[/NAMESPACE]`
    fn path(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}/{namespace}", self.pool),
            None => self.pool.to_string(),
        }
    }

    /// `?cluster=…&user=…&mon=…`, without what is the default.
    fn options(&self) -> String {
        let mut options = Vec::new();
        if self.cluster != ClusterName::default() {
            options.push(format!("cluster={}", self.cluster));
        }
        if self.user != CephUser::default() {
            options.push(format!("user={}", self.user));
        }
        if !self.monitors.is_empty() {
            let monitors: Vec<String> = self.monitors.iter().map(SocketAddr::to_string).collect();
            options.push(format!("mon={}", monitors.join(",")));
        }
        if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) }
    }

    /// From the parts of `POOL[/NAMESPACE]` and the options behind the question mark.
    fn parse(parts: &[&str], options: Option<&str>) -> Result<Self> {
        let mut pool = match parts {
            [pool] => Self::new(pool.parse()?, None),
            [pool, namespace] => Self::new(pool.parse()?, Some(namespace.parse()?)),
            _ => return Err(Error::invalid("locator", "write rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]")),
        };
        for option in options.into_iter().flat_map(|options| options.split('&')) {
            match option.split_once('=') {
                Some(("cluster", name)) => pool.cluster = name.parse()?,
                Some(("user", name)) => pool.user = name.strip_prefix("client.").unwrap_or(name).parse()?,
                Some(("mon", list)) => {
                    pool.monitors = Vec::new();
                    for monitor in list.split(',') {
                        let monitor = monitor_address(monitor)?;
                        if !pool.monitors.contains(&monitor) {
                            pool.monitors.push(monitor);
                        }
                    }
                }
                _ => {
                    return Err(Error::invalid(
                        "locator",
                        format!(
                            "{}: what can be said is cluster=NAME, user=NAME and mon=ADDRESS:PORT,…",
                            shown(option)
                        ),
                    ));
                }
            }
        }
        Ok(pool)
    }
}

/// `10.0.0.5`, `10.0.0.5:6789`, `[fe80::5]:3300`
pub(crate) fn monitor_address(text: &str) -> Result<SocketAddr> {
    let invalid = || Error::invalid("mon", format!("{}: write ADDRESS[:PORT] or [IPV6][:PORT]", shown(text)));
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(invalid()) } else { Ok(canonical(address)) };
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse::<Ipv6Addr>().map_err(|_| invalid())?),
        None => IpAddr::V4(text.parse().map_err(|_| invalid())?),
    };
    Ok(canonical(SocketAddr::new(address, Pool::MONITOR_PORT)))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The text behind `rbd:` up to the question mark, and what follows it.
fn split(text: &str) -> Result<(&str, Option<&str>)> {
    let rest = text
        .strip_prefix("rbd:")
        .ok_or_else(|| Error::invalid("locator", format!("{}: it does not begin with rbd:", shown(text))))?;
    Ok(match rest.split_once('?') {
        Some((path, options)) => (path, Some(options)),
        None => (rest, None),
    })
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rbd:{}{}", self.path(), self.options())
    }
}

impl FromStr for Pool {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (path, options) = split(text)?;
        let parts: Vec<&str> = path.split('/').collect();
        Self::parse(&parts, options)
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rbd:{}/{}", self.pool.path(), self.name)?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        f.write_str(&self.pool.options())
    }
}

impl FromStr for Image {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (path, options) = split(text)?;
        let mut parts: Vec<&str> = path.split('/').collect();
        let last = parts.pop().filter(|_| !parts.is_empty()).ok_or_else(|| {
            Error::invalid("locator", format!("{}: write rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]", shown(text)))
        })?;
        let (name, snapshot) = match last.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot.parse()?)),
            None => (last, None),
        };
        Ok(Self { pool: Pool::parse(&parts, options)?, name: name.parse()?, snapshot })
    }
}

as_text!(Pool);
as_text!(Image);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text() {
        for (given, canonical) in [
            ("rbd:volumes/a", "rbd:volumes/a"),
            ("rbd:volumes/ns/a@s1", "rbd:volumes/ns/a@s1"),
            ("rbd:p/a?user=client.admin&cluster=ceph", "rbd:p/a"),
            (
                "rbd:p/a?mon=10.0.0.5,[FE80::A]:6789,10.0.0.5:3300&user=cinder",
                "rbd:p/a?user=cinder&mon=10.0.0.5:3300,[fe80::a]:6789",
            ),
            ("rbd:p/a?cluster=backup", "rbd:p/a?cluster=backup"),
        ] {
            assert_eq!(given.parse::<Image>().unwrap().to_string(), canonical);
        }
        assert_eq!("rbd:p/ns?user=x".parse::<Pool>().unwrap().to_string(), "rbd:p/ns?user=x");
    }

    #[test]
    fn refused() {
        for text in [
            "rbd:",
            "rbd:p",
            "rbd:p/",
            "rbd:/a",
            "rbd:p/a/b/c",
            "rbd:p//a",
            "rbd:p/a@",
            "rbd:p/a@s@t",
            "rbd:p/-a",
            "rbd:p/a b",
            "rbd:p/a,b",
            "rbd:p/a?",
            "rbd:p/a?mon=",
            "rbd:p/a?mon=host",
            "rbd:p/a?mon=10.0.0.5:0",
            "rbd:p/a?key=x",
            "rbd:p/a?user=a,b",
            "rbd:p/a?cluster=../x",
            "rbd:p/a\n",
        ] {
            assert!(matches!(text.parse::<Image>(), Err(Error::Invalid { .. })), "{text:?} was taken");
        }
    }
}
