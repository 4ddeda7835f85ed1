//! The real thing: mortard as a systemd service on a real kernel, with real LVM, LIO and open-iscsi.
//!
//! This binary runs inside the guest, as root, one test at a time (`tests/guest/suite` starts it). Anywhere else it
//! refuses, so that nobody's own volumes are played with.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::print_stderr, reason = "what a failed test leaves is shown")]
#![allow(clippy::disallowed_methods, reason = "from outside the agent, with the tools that an operator has")]

mod api;
mod brick;
mod callers;
mod cli;
mod commands;
mod connection;
mod controllers;
mod crash;
mod derive;
mod doctor;
mod export;
mod extend;
mod faults;
mod file;
mod hypervisor;
mod inside;
mod instance;
mod iscsi;
mod librbd;
mod lvm;
mod machine;
mod many;
mod metrics;
mod multipath;
mod rbd;
mod rescue;
mod scale;
mod secrets;
mod service;
mod soak;
mod witness;

/// What holds on every machine, simulated or real.
mod conformance {
    tests::conformance!(crate::machine::GuestStage::new);
}
