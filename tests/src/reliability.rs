//! What the tests found out, for `docs/reliability.md`. Each finding is a line of JSON, appended to the file that
//! `$MORTAR_RELIABILITY` names; without it nothing is noted. Two guests that run side by side have a file each.

use serde::{Deserialize, Serialize};
use std::{fs::OpenOptions, io::Write};

/// A line of one of the page's tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "section", rename_all = "snake_case")]
pub enum Row {
    /// A crash after every effect on the simulated machine.
    Simulated(Sweep),
    /// `mortard` killed after every effect in the guest.
    Guest(Sweep),
    /// Something that went wrong around the agent.
    Fault {
        /// `the target is gone during a detach`
        what: String,
        /// Code, reason and sentence, or what it did instead.
        caller_saw: String,
        /// What was left, and what mended it.
        afterwards: String,
    },
    /// Random sequences of calls, crashes and faults, held against a model.
    Model { driver: String, schedules: u64, steps: u64, crashes: u64 },
    /// Another volume where the right one should be.
    WrongDevice {
        /// `the LV is recreated under its managed name before it is attached`
        attempt: String,
        driver: String,
        /// `simulated` or `guest`
        shown: Where,
        /// The refusal, which names both identities.
        refusal: String,
    },
    /// `RSS with 1,000 attachments`, `< 20 MiB`, `11.2 MiB`
    Figure { what: String, wanted: String, found: String },
    /// Something of the recovery that was left out.
    Breakage {
        what: String,
        /// The tests that failed; empty: nothing noticed.
        caught_by: Vec<String>,
    },
}

/// Where something was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    Simulated,
    Guest,
}

/// All crash points of one operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sweep {
    /// `attach, persistent`
    pub operation: String,
    /// `iSCSI, two paths`
    pub driver: String,
    /// Effects after which it was killed.
    pub points: usize,
    /// With those in which the recovery was killed, too.
    pub runs: usize,
    /// Runs after which the host was not as it had been.
    pub leftovers: usize,
}

/// Notes a finding.
pub fn note(row: &Row) {
    let Some(path) = std::env::var_os("MORTAR_RELIABILITY") else { return };
    let line = serde_json::to_string(row).unwrap() + "\n";
    let file = OpenOptions::new().create(true).append(true).open(&path);
    // One write, so that tests which run side by side do not mix their lines.
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot note what was found in {}: {error}", path.display()));
}
