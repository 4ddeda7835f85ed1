//! `deny.toml` as cargo-deny reads it, as far as we use it, and what it has against a crate.

use crate::licence;
use serde::Deserialize;
use std::path::PathBuf;

/// The registry that cargo takes crates from unless it is told otherwise, by the name that it has in a lock file.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The whole file. A field with an underscore is read for its type alone: it has one value that is understood.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    pub(crate) graph: Graph,
    licenses: Licences,
    bans: Bans,
    #[serde(rename = "sources")]
    _sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Graph {
    pub(crate) targets: Vec<String>,
    #[serde(rename = "all-features")]
    _all_features: True,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licences {
    allow: Vec<String>,
    #[serde(rename = "unused-allowed-license")]
    _unused: Allow,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    deny: Vec<Banned>,
    #[serde(rename = "multiple-versions")]
    _multiple_versions: Allow,
    #[serde(rename = "wildcards")]
    _wildcards: Deny,
    #[serde(rename = "allow-wildcard-paths")]
    _of_paths: True,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    #[serde(rename = "unknown-registry")]
    _registry: Deny,
    #[serde(rename = "unknown-git")]
    _git: Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Allow {
    Allow,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Deny {
    Deny,
}

/// A flag that has to be set.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct True;

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(set: bool) -> Result<Self, Self::Error> {
        if set { Ok(Self) } else { Err("only true is known here") }
    }
}

/// A crate, as `cargo metadata` tells of it.
#[derive(Deserialize)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    license: Option<String>,
    /// None of one of ours.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<PathBuf>,
}

impl Rules {
    /// Everything that the rules have against a crate, a sentence each.
    pub(crate) fn against(&self, one: &Crate) -> Vec<String> {
        let Crate { name, version, license, source, dependencies } = one;
        let mut refused = Vec::new();
        if self.bans.deny.iter().any(|banned| banned.name == *name) {
            refused.push(format!("{name} {version} is banned"));
        }
        match license.as_deref().map(|text| (text, licence::permits(text, &self.licenses.allow))) {
            Some((_, Ok(true))) => {}
            Some((text, Ok(false))) => refused.push(format!("{name} {version}: no licence of {text} is allowed")),
            Some((text, Err(why))) => refused.push(format!("{name} {version}: {text} is no licence: {why}")),
            None => refused.push(format!("{name} {version} names no licence")),
        }
        match source.as_deref() {
            None => {
                let any = dependencies.iter().filter(|other| other.req == "*" && other.path.is_none());
                refused.extend(any.map(|other| format!("{name} takes any version of {}", other.name)));
            }
            Some(CRATES_IO) => {}
            Some(place) => refused.push(format!("{name} {version} comes from {place}")),
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const RULES: &str = include_str!("../../deny.toml");

    /// What the rules of this repository have against a crate that is in order but for `change`.
    fn against(change: Value) -> Vec<String> {
        let mut one =
            json!({ "name": "a", "version": "1.0.0", "license": "MIT", "source": CRATES_IO, "dependencies": [] });
        one.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        toml::from_str::<Rules>(RULES).unwrap().against(&serde_json::from_value(one).unwrap())
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let none: [&str; 0] = [];
        assert_eq!(against(json!({})), none);
        assert_eq!(against(json!({ "name": "openssl-sys" })), ["openssl-sys 1.0.0 is banned"]);
        assert_eq!(against(json!({ "license": "GPL-3.0" })), ["a 1.0.0: no licence of GPL-3.0 is allowed"]);
        assert_eq!(against(json!({ "license": null })), ["a 1.0.0 names no licence"]);
        assert_eq!(against(json!({ "license": "MIT OR" })), ["a 1.0.0: MIT OR is no licence: it ends too early"]);
        let fork = "git+https://example.org/a";
        assert_eq!(against(json!({ "source": fork })), [format!("a 1.0.0 comes from {fork}")]);
    }

    #[test]
    fn ours_say_which_version_they_take() {
        let takes = |path: Value| {
            let any = json!({ "name": "b", "req": "*", "path": path });
            against(json!({ "source": null, "dependencies": [any] }))
        };
        assert_eq!(takes(Value::Null), ["a takes any version of b"]);
        assert!(takes(json!("/b")).is_empty());
    }

    #[test]
    fn rules_that_are_not_understood_are_refused() {
        let read = |rules: &str| toml::from_str::<Rules>(rules).err().map(|why| why.message().to_owned());
        assert_eq!(read(RULES), None);
        let exception = RULES.replace("[bans]", "exceptions = []\n[bans]");
        assert!(read(&exception).unwrap().contains("exceptions"));
        assert!(read(&RULES.replace("wildcards = \"deny\"", "wildcards = \"warn\"")).unwrap().contains("warn"));
        assert!(read(&RULES.replace("all-features = true", "all-features = false")).unwrap().contains("only true"));
    }
}
