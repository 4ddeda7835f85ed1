//! The simulated machine: everything that can be known of the agent without root, in seconds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod audit;
mod callers;
mod cancel;
mod client;
mod crash;
mod deadline;
mod doctor;
mod dry_run;
mod export;
mod extend;
mod identity;
mod journal;
mod limits;
mod losses;
mod machine;
mod metrics;
mod model;
mod power;
mod reboot;
mod rescue;
mod socket;
mod start;
mod tls;
mod volumes;

use machine::SimStage;

tests::conformance!(crate::SimStage::new);
