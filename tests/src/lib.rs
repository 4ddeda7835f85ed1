//! The whole agent from outside. What is here is shared by the two test binaries: `sim` (the simulated machine, seconds,
//! no root) and `guest` (a real kernel).
//!
//! The conformance suite runs on both, word for word: that is what keeps the simulation honest.

#![allow(missing_docs, reason = "read by its own tests only")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

pub mod client;
pub mod conformance;
pub mod openmetrics;
pub mod peer;
pub mod pki;
pub mod reliability;
pub mod stage;
pub mod targets;
