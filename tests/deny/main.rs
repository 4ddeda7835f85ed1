//! Holds the crates that Cargo.lock pins against `deny.toml`: their licences, those that must not be, and where they come from.
//!
//! Usage: `deny DENY.TOML`
//!
//! Cargo-deny does the same and more (`make deny`), but it has to be compiled first, which takes minutes; this is what
//! `make check` can afford. What it would not understand in `deny.toml` it refuses.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "it runs beside the agent")]
#![allow(clippy::print_stderr, reason = "it says what to do")]

mod licence;
mod rules;

use rules::{Crate, Rules};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, ExitCode},
};

/// Of what `cargo metadata` prints, the crates.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path] = arguments.as_slice() else { panic!("usage: deny DENY.TOML") };
    let rules: Rules = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // A crate that several kinds of machine need is told of once.
    let mut crates = BTreeMap::new();
    for target in &rules.graph.targets {
        for one in built_for(target) {
            crates.insert((one.name.clone(), one.version.clone()), one);
        }
    }
    let refused: BTreeSet<String> = crates.values().flat_map(|one| rules.against(one)).collect();
    for why in &refused {
        eprintln!("deny: {why}");
    }
    if refused.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "do without what {path} does not allow, or allow it there and say why; make deny tells which crate needs it"
    );
    ExitCode::FAILURE
}

/// Every crate that is compiled for such a machine, with all features, and for the tests.
fn built_for(target: &str) -> Vec<Crate> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut asked = Command::new(cargo);
    asked.args(["metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target]);
    let answer = asked.output().unwrap();
    assert!(answer.status.success(), "{asked:?}: {}", String::from_utf8_lossy(&answer.stderr));
    serde_json::from_slice::<Metadata>(&answer.stdout).unwrap().packages
}
