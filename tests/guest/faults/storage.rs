//! The storage itself fails: a device with errors, a cluster without its monitor.

use super::{Afterwards, SIZE, ended, observed, said_of};
use crate::{
    cli::{attach, detach, main_pid, mortar, text, until},
    machine::{GuestStage, sh},
};
use driver::Backend;
use std::time::Duration;
use tests::stage::Stage;

/// Data that cannot be written is not given up: the detach is refused, and the volume stays.
#[tokio::test]
async fn a_flush_with_io_errors() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let before = stage.snapshot().await;
    let device = text(&attach("a", &locator), "path").to_owned();
    let map = format!("{}-v", stage.vg());
    let sectors = SIZE / 512;
    sh(&format!(
        "dmsetup table {map} >/run/table; echo 0 {sectors} error | dmsetup reload {map}; dmsetup resume --noflush {map}
         head -c 1M /dev/zero >{device}"
    ));
    let ran = mortar(&["detach", "a"]);
    let (code, reason) = (ran.code, said_of(&ran));
    assert_eq!(reason.0, "FLUSH_FAILED", "{ran:?}");
    assert_ne!(code, 0);
    assert!(reason.1.contains(&device), "{ran:?}");
    assert_eq!(text(&mortar(&["list"]).ok()[0], "path"), device);
    sh(&format!("dmsetup reload {map} </run/table; dmsetup resume --noflush {map}; rm /run/table"));
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "I/O errors while data is written out before a detach",
        &ran,
        "still attached; detached when the device was well",
    );
}

/// A disk stands still below a file system of volumes, as a server that is gone does: who asks for one of its files is told so
/// in time, however often, and nobody else waits.
#[tokio::test]
async fn the_file_system_of_a_volume_stands_still() {
    let mut stage = GuestStage::with_vg();
    let other = stage.volume(Backend::File, "w", SIZE).await;
    let before = stage.snapshot().await;
    sh(&format!(
        "lvcreate -q -y -n under -L 64M {0} >/dev/null; mkfs.ext4 -q /dev/{0}/under; mkdir /mnt/still; mount /dev/{0}/under /mnt/still
         truncate -s 1M /mnt/still/{{0,1,2,3}}.raw; umount /mnt/still; mount /dev/{0}/under /mnt/still",
        stage.vg()
    ));
    let map = format!("{}-under", stage.vg());
    let resume = format!("dmsetup resume {map}");
    let well =
        Afterwards(format!("{resume}; umount /mnt/still; rmdir /mnt/still; lvremove -q -y {}/under", stage.vg()));
    sh(&format!("dmsetup suspend --nolockfs --noflush {map}"));
    let stuck = || {
        let states = sh(&format!("cut -d ' ' -f 3 /proc/{}/task/*/stat", main_pid()));
        states.lines().filter(|state| *state == "D").count()
    };
    let mut last = None;
    for number in 0..4 {
        let file = format!("file:/mnt/still/{number}.raw");
        let ran = mortar(&["--timeout", "2s", "attach", &file, "--id", "a"]);
        assert!(ran.took < Duration::from_secs(5), "{:?}", ran.took);
        ran.refused(5, "TIMED_OUT");
        last = Some(ran);
        attach("b", &other);
        detach("b");
    }
    assert_eq!(stuck(), 1, "each call has left a thread in the kernel");
    sh(&resume);
    until("the kernel's answer", Duration::from_secs(20), || (stuck() == 0).then_some(()));
    attach("a", "file:/mnt/still/3.raw");
    detach("a");
    drop(well);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "the file system of a file volume stands still",
        &last.unwrap(),
        "nothing was begun, and nobody else waited; attached when the disk went on",
    );
}

/// Without its monitor a cluster lets nobody in, but what is mapped works on, and can go.
#[tokio::test]
async fn the_monitor_is_down() {
    let mut stage = GuestStage::with_pool();
    let (locator, other) = (stage.volume(Backend::Rbd, "v", SIZE).await, stage.volume(Backend::Rbd, "w", SIZE).await);
    let before = stage.snapshot().await;
    let device = text(&attach("a", &locator), "path").to_owned();
    sh("ceph_mon_stop");
    let _up = Afterwards("ceph_up");
    let ran = mortar(&["--timeout", "4s", "attach", &other, "--id", "b"]);
    assert!(ran.took < Duration::from_secs(8), "{:?}", ran.took);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(matches!(said_of(&ran).0.as_str(), "UNREACHABLE" | "TIMED_OUT"), "{ran:?}");
    sh(&format!("dd if=/dev/zero of={device} bs=4k count=1 oflag=direct status=none"));
    assert_eq!(text(&mortar(&["show", "a"]).ok(), "state"), "ready");
    sh("ceph_up");
    until("the agent to have done with it", Duration::from_secs(90), || {
        (mortar(&["operations", "--running"]).ok() == serde_json::Value::Array(Vec::new())).then_some(())
    });
    ended();
    attach("b", &other);
    detach("b");
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed("the cluster's monitor is down", &ran, "what was attached worked on; attached when it was back");
}
