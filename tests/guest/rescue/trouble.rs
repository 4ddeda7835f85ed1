//! What goes wrong in the middle of a rescue: whatever it is, the original comes back.

use super::{Bench, RESCUE, ROOT, WEB1};
use crate::{
    cli::{mortar, start, until},
    instance::{Libvirtd, booted, dumpxml},
    machine::sh,
};
use driver::Backend;
use std::time::Duration;

fn nothing_runs() -> Option<()> {
    mortar(&["operations", "--running"]).ok().as_array().unwrap().is_empty().then_some(())
}

#[tokio::test]
async fn libvirtd_killed_in_the_middle() {
    let bench = Bench::new(Backend::Lvm).await;
    // Its guest hears nothing, so that the rescue waits for it.
    sh(&format!("bootable {} '{ROOT}' deaf", bench.root));
    bench.start();
    let (before, definition) = (bench.picture().await, dumpxml(bench.uuid));
    let [option, locator] = &bench.with;
    let rescue = start(&["rescue", &bench.name, option, locator, "--grace", "60s", "--timeout", "3m"]);
    until("the rescue to stop the instance", Duration::from_secs(60), || {
        let running = mortar(&["operations", "--running"]).ok();
        running[0]["waiting"]["for"].as_str().is_some_and(|what| what.starts_with("libvirt: stop")).then_some(())
    });
    Libvirtd::kill();
    let message = rescue.end().refused(5, "UNREACHABLE");
    assert!(message.contains("libvirt"), "{message}");
    Libvirtd::restart();
    until("the rescue to be undone", Duration::from_secs(300), nothing_runs);
    assert_eq!((bench.picture().await, dumpxml(bench.uuid)), (before, definition));
    assert!(bench.runs());
    assert_eq!(booted(WEB1), ROOT);
    bench.rescue(&[]).ok();
    assert_eq!(booted(WEB1), RESCUE);
    // And on the way back.
    Libvirtd::kill();
    mortar(&["unrescue", &bench.name, "--grace", "0"]).refused(5, "UNREACHABLE");
    Libvirtd::restart();
    bench.unrescue();
    assert_eq!(booted(WEB1), ROOT);
    sh(&format!("virsh --quiet destroy {}", bench.uuid));
}

/// The image below the overlay is gone when QEMU is to open it.
#[tokio::test]
async fn when_qemu_refuses_the_original_comes_back() {
    let bench = Bench::new(Backend::File).await;
    sh(&format!("bootable {} '{ROOT}' deaf", bench.root));
    bench.start();
    let definition = dumpxml(bench.uuid);
    let rescue = start(&["rescue", WEB1, "--image", &bench.with[1], "--grace", "15s", "--timeout", "3m"]);
    until("the rescue to stop the instance", Duration::from_secs(60), || {
        let running = mortar(&["operations", "--running"]).ok();
        running[0]["waiting"]["for"].as_str().is_some_and(|what| what.starts_with("libvirt: stop")).then_some(())
    });
    let image = bench.with[1].trim_start_matches("file:");
    sh(&format!("mv {image} {image}.away"));
    let message = rescue.end().refused(4, "WRONG_STATE");
    assert!(message.contains("image.raw") && message.contains("the original of web1 is back"), "{message}");
    assert_eq!(dumpxml(bench.uuid), definition);
    assert_eq!(booted(WEB1), ROOT);
    assert!(bench.runs());
    assert_eq!(sh(&format!("ls {} {}", bench.stage.directory(), super::SEEDS)).matches("rescue-").count(), 0);
    sh(&format!("mv {image}.away {image}"));
    // Nor is a disk taken that another instance has.
    let shared = format!("file:{}", bench.root);
    assert!(mortar(&["rescue", WEB1, "--volume", &shared]).refused(4, "IN_USE").contains("open by qemu"));
}

#[tokio::test]
async fn a_definition_that_somebody_changed_is_kept() {
    let bench = Bench::new(Backend::File).await;
    let definition = dumpxml(bench.uuid);
    bench.rescue(&[]).ok();
    sh(&format!("virsh --quiet desc {} --config 'somebody was here'", bench.uuid));
    let message = mortar(&["unrescue", "web1", "--grace", "0"]).refused(4, "WRONG_STATE");
    assert!(message.contains("--discard-changes"), "{message}");
    assert!(dumpxml(bench.uuid).contains("somebody was here"));
    mortar(&["unrescue", "web1", "--grace", "0", "--timeout", "3m", "--discard-changes"]).ok();
    assert_eq!(dumpxml(bench.uuid), definition);
}

#[tokio::test]
async fn saved_memory_is_refused_and_shows_nothing() {
    let bench = Bench::new(Backend::File).await;
    bench.start();
    sh(&format!("virsh --quiet managedsave {}", bench.uuid));
    let message = bench.rescue(&[]).refused(4, "WRONG_STATE");
    assert!(message.contains("managedsave-remove"), "{message}");
    sh(&format!("virsh --quiet managedsave-remove {}", bench.uuid));
    let paused = format!("virsh --quiet start {0}; virsh --quiet suspend {0}", bench.uuid);
    sh(&paused);
    assert!(bench.rescue(&[]).refused(4, "WRONG_STATE").contains("is paused"));
    mortar(&["rescue", "nobody", "--image", &bench.with[1]]).refused(3, "NOT_FOUND");
    mortar(&["rescue", "../../etc/passwd", "--image", &bench.with[1]]).refused(2, "INVALID");
}

#[tokio::test]
async fn instances_are_listed_and_powered() {
    let bench = Bench::new(Backend::File).await;
    let listed = mortar(&["instances"]).ok();
    assert_eq!((&listed[0]["name"], &listed[0]["power"]), (&"web1".into(), &"off".into()), "{listed}");
    let started = mortar(&["instance", "start", "web1", "--timeout", "3m"]).ok();
    assert_eq!((&started["changed"], &started["instance"]["power"]), (&true.into(), &"running".into()));
    assert_eq!(booted(WEB1), ROOT);
    assert_eq!(mortar(&["instance", "start", "web1", "--timeout", "3m"]).ok()["changed"], false);
    let shown = mortar(&["show", "web1"]).ok();
    assert_eq!((&shown["disks"][0]["target"], &shown["disks"][0]["role"]), (&"vda".into(), &"root".into()));
    assert_eq!(shown["disks"][0]["source"], bench.root);
    let rebooted = mortar(&["instance", "reboot", "web1", "--grace", "1m", "--timeout", "3m"]).ok();
    assert_eq!(rebooted["stopped"], "gracefully", "{rebooted}");
    let stopped = mortar(&["instance", "stop", "web1", "--grace", "0"]).ok();
    assert_eq!((&stopped["stopped"], &stopped["instance"]["power"]), (&"hard".into(), &"off".into()));
    let host = mortar(&["host"]).ok();
    assert_eq!(host["hypervisor"]["available"], true, "{host}");
}
