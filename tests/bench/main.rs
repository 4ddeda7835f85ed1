//! `make bench`: Mortar beside the kernel's floor and beside its peers, each work in one run of one guest.
//!
//! This binary runs inside the guest, as root (`tests/bench/run` brings it there). It measures as a caller does: one client
//! with a connection to `mortard`'s socket. In each round everybody has his turn, so that whatever else the machine is doing hits
//! all alike. What the words mean:
//!
//! ```text
//!   ours    a call of the agent, from the request to its reply
//!   floor   the one tool that cannot be done without, and the kernel's own answer, by this process in a busy loop
//!   peer    os-brick, the `rbd` command, or what Cinder's drivers do, in one Python process that has started already
//! ```

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should say where")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it says how far it is")]
#![allow(clippy::disallowed_methods, reason = "from outside the agent, with the tools that an operator has")]
#![allow(clippy::cast_precision_loss, reason = "counts are small")]

mod crowd;
mod figures;
mod floor;
mod iscsi;
mod lvm;
mod machine;
mod multipath;
mod processes;
mod rbd;
mod report;

use report::Report;
use std::{collections::BTreeMap, path::Path, process::ExitCode};

/// The works, in the order of the table.
const WORKS: [&str; 6] = ["iscsi", "multipath", "rbd", "images", "lvm", "crowd"];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [output, before, wanted @ ..] = arguments.as_slice() else { panic!("usage: bench OUTPUT BEFORE [WORK…]") };
    if let Some(unknown) = wanted.iter().find(|work| !WORKS.contains(&work.as_str())) {
        panic!("{unknown} is no work; there are {}", WORKS.join(", "));
    }
    let (mut sections, mut failed) = (BTreeMap::new(), Vec::new());
    for work in WORKS.into_iter().filter(|work| wanted.is_empty() || wanted.iter().any(|one| one == work)) {
        println!("-- {work}");
        // One that fails takes the others' figures with it no more than it must.
        match tokio::spawn(measure(work)).await {
            Ok(report) => drop(sections.insert(work, report.section(work))),
            Err(_) => failed.push(work),
        }
    }
    let before = std::fs::read_to_string(before).unwrap_or_default();
    std::fs::write(Path::new(output), report::page(&WORKS, &sections, &before)).unwrap();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("not measured, because it failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

async fn measure(work: &str) -> Report {
    let mut report = Report::default();
    match work {
        "iscsi" => iscsi::measure(&mut report).await,
        "multipath" => multipath::measure(&mut report).await,
        "rbd" => rbd::measure(&mut report).await,
        "images" => rbd::measure_images(&mut report).await,
        "lvm" => lvm::measure(&mut report).await,
        "crowd" => crowd::measure(&mut report).await,
        _ => unreachable!("all of WORKS are here"),
    }
    report
}
