//! How far a rule reaches: to everything, or to volumes in places and to instances that it names.

use super::pattern::Pattern;
use crate::operation::Plan;
use driver::{ClusterName, Error, Locator, Pool, Result, Scope};
use std::{fmt, path::Path};

/// The places. Empty: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach(Vec<Place>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A VG.
    Lvm(Pattern),
    /// `POOL[/NAMESPACE]` of a cluster, whoever its monitors are said to be.
    Rbd(Pattern, String),
    /// A target, wherever it is said to listen.
    Iscsi(Pattern),
    /// A directory, and what is below it.
    File(Pattern),
    /// An instance, by its name.
    Instance(Pattern),
}

impl Reach {
    pub(crate) fn of(only: &[String]) -> Result<Self> {
        only.iter().map(|text| Place::of(text)).collect::<Result<_>>().map(Self)
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a volume is in it. Of one that is reached by several targets, each has to be.
    pub(crate) fn covers(&self, locator: &Locator) -> bool {
        match locator {
            Locator::Iscsi(unit) => unit.ways.iter().all(|way| {
                self.is_everything()
                    || self.0.iter().any(|place| place.is_target(&way.iqn.as_str().to_ascii_lowercase()))
            }),
            _ => locator.scope().is_ok_and(|scope| self.covers_all_of(&scope)),
        }
    }

    /// Whether all volumes of a place are in it.
    pub(crate) fn covers_all_of(&self, scope: &Scope) -> bool {
        self.is_everything() || self.0.iter().any(|place| place.holds(scope))
    }
}

impl Reach {
    pub(crate) fn covers_instance(&self, name: &str) -> bool {
        self.is_everything()
            || self.0.iter().any(|place| matches!(place, Place::Instance(pattern) if pattern.fits(name)))
    }

    /// Whether all that an operation changes is in it.
    pub(crate) fn covers_all_that(&self, plan: &Plan) -> bool {
        plan.locator().is_none_or(|locator| self.covers(locator))
            && plan.instance().is_none_or(|name| self.covers_instance(name))
    }
}

impl Place {
    fn of(text: &str) -> Result<Self> {
        let invalid = || {
            let why = format!(
                "{text:?} in `only` is no place: write lvm:VG, rbd:POOL[/NAMESPACE], iscsi:IQN, file:/DIRECTORY or instance:NAME, \
                 with * for any characters"
            );
            Error::invalid("only", why)
        };
        let (backend, name) = text.split_once(':').ok_or_else(invalid)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(invalid());
        }
        match backend {
            "lvm" if !name.contains('/') => Ok(Self::Lvm(Pattern::new(name))),
            // Names of targets have no case (RFC 7143 section 4.2.7.1).
            "iscsi" if !name.contains('/') => Ok(Self::Iscsi(Pattern::new(&name.to_ascii_lowercase()))),
            "rbd" => {
                let (pool, cluster) = match name.split_once('?') {
                    None => (name, ClusterName::default().to_string()),
                    Some((pool, options)) => (pool, options.strip_prefix("cluster=").ok_or_else(invalid)?.to_owned()),
                };
                if pool.split('/').count() > 2 || pool.split('/').any(str::is_empty) {
                    return Err(invalid());
                }
                Ok(Self::Rbd(Pattern::new(pool), cluster))
            }
            "instance" => Ok(Self::Instance(Pattern::new(name))),
            "file" if name.starts_with('/') => {
                let directory = name.trim_end_matches('/');
                let plain = directory.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part));
                if plain && !directory.is_empty() { Ok(Self::File(Pattern::new(directory))) } else { Err(invalid()) }
            }
            _ => Err(invalid()),
        }
    }

    fn is_target(&self, iqn: &str) -> bool {
        matches!(self, Self::Iscsi(pattern) if pattern.fits(iqn))
    }

    fn holds(&self, scope: &Scope) -> bool {
        match (self, scope) {
            (Self::Lvm(pattern), Scope::Lvm(vg)) => pattern.fits(vg.as_str()),
            (Self::Rbd(pattern, of), Scope::Rbd(Pool { cluster, pool, namespace, .. })) => {
                let name = match namespace {
                    Some(namespace) => format!("{pool}/{namespace}"),
                    None => pool.to_string(),
                };
                cluster.as_str() == of && pattern.fits(&name)
            }
            (Self::File(pattern), Scope::File(directory)) => {
                directory.ancestors().filter_map(Path::to_str).any(|directory| pattern.fits(directory))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm(vg) => write!(f, "lvm:{vg}"),
            Self::Rbd(pool, cluster) if *cluster == ClusterName::default().to_string() => write!(f, "rbd:{pool}"),
            Self::Rbd(pool, cluster) => write!(f, "rbd:{pool}?cluster={cluster}"),
            Self::Iscsi(target) => write!(f, "iscsi:{target}"),
            Self::File(directory) => write!(f, "file:{directory}"),
            Self::Instance(name) => write!(f, "instance:{name}"),
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(if places.is_empty() { "everything" } else { "" })?;
        f.write_str(&places.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(only: &[&str], locator: &str) -> bool {
        let only: Vec<String> = only.iter().map(ToString::to_string).collect();
        Reach::of(&only).unwrap().covers(&locator.parse().unwrap())
    }

    #[test]
    fn what_is_in_reach() {
        let iqn = "iqn.2026-11.org.example:t1";
        for (only, locator, is) in [
            (vec![], "lvm:vg0/a", true),
            (vec!["lvm:vg0"], "lvm:vg0/a", true),
            (vec!["lvm:vg0"], "lvm:vg00/a", false),
            (vec!["lvm:ssd-*", "lvm:vg0"], "lvm:ssd-1/a", true),
            (vec!["lvm:vg0"], "rbd:vg0/a", false),
            (vec!["rbd:volumes"], "rbd:volumes/a@b?user=cinder&mon=10.0.0.1:3300", true),
            (vec!["rbd:volumes"], "rbd:volumes/a?cluster=other", false),
            (vec!["rbd:volumes?cluster=other"], "rbd:volumes/a?cluster=other", true),
            (vec!["rbd:volumes"], "rbd:volumes/space/a", false),
            (vec!["rbd:volumes/*"], "rbd:volumes/space/a", true),
            (vec!["rbd:volumes/*"], "rbd:volumes/a", false),
            (vec!["file:/srv/volumes"], "file:/srv/volumes/a.raw", true),
            (vec!["file:/srv/volumes/"], "file:/srv/volumes/below/a.raw", true),
            (vec!["file:/srv/volumes"], "file:/srv/volumes-2/a.raw", false),
            (vec!["file:/srv/volumes"], "file:/srv/a.raw", false),
            (vec!["iscsi:iqn.2026-11.org.example:*"], &format!("iscsi://10.0.0.5/{iqn}/0"), true),
            (vec!["iscsi:IQN.2026-11.org.example:T1"], &format!("iscsi://10.0.0.5/{iqn}/0"), true),
            (vec!["iscsi:iqn.2026-11.org.example:t1"], &format!("iscsi://10.0.0.5/{iqn}/0,10.0.1.5/{iqn}2/0"), false),
        ] {
            assert_eq!(covers(&only, locator), is, "{only:?} {locator}");
        }
    }

    #[test]
    fn instances() {
        let only = |only: &[&str]| Reach::of(&only.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        assert!(only(&[]).covers_instance("web1") && only(&["instance:web*"]).covers_instance("web1"));
        assert!(!only(&["instance:web*"]).covers_instance("db1") && !only(&["lvm:web1"]).covers_instance("web1"));
        assert!(!only(&["instance:web*"]).covers(&"lvm:web1/a".parse().unwrap()));
    }

    #[test]
    fn what_is_no_place() {
        for text in [
            "",
            "vg0",
            "lvm:",
            "lvm:vg/lv",
            "nbd:x",
            "file:a",
            "file:/a/../b",
            "rbd:/a",
            "rbd:p?user=x",
            "iscsi://10.0.0.5/x/0",
        ] {
            assert!(Reach::of(&[text.to_owned()]).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_place_panics_and_what_is_rendered_is_read_back(text in "(lvm:|rbd:|file:/|iscsi:)?[a-z*/?.=]{0,12}") {
            if let Ok(reach) = Reach::of(&[text]) {
                prop_assert_eq!(Reach::of(&[reach.to_string()]).unwrap(), reach);
            }
        }
    }
}
