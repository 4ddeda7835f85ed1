//! What the agent works with stops, starts anew, or is busy with somebody else: multipathd, iscsid, udevd, LVM's lock, the clock.

use super::{Afterwards, SIZE, ended, observed};
use crate::{
    cli::{attach, detach, mortar, start, text, until},
    machine::{GuestStage, Multipathd, sh},
};
use driver::Backend;
use std::time::Duration;
use tests::{client, stage::Stage};

/// The map stays, and what is attached stays usable; a detach is refused or done, but never half.
#[tokio::test]
async fn multipathd_is_stopped_while_attached() {
    let _multipathd = Multipathd::up();
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", SIZE).await;
    let iqn = stage.iqn();
    sh(&format!("lio_portal {iqn} 127.0.0.2:3260"));
    let before = stage.snapshot().await;
    let request = proto::v1::AttachRequest {
        all_paths: true,
        ..client::attach("a", &format!("iscsi://127.0.0.1,127.0.0.2/{iqn}/0"))
    };
    let device = stage.client().attach(request).await.unwrap().attachment.unwrap().path;
    sh("systemctl stop multipathd.socket multipathd");
    sh(&format!("dd if={device} of=/dev/null bs=4k count=1 iflag=direct status=none"));
    assert_eq!(text(&mortar(&["show", "a"]).ok(), "path"), device);
    let ran = mortar(&["--timeout", "10s", "detach", "a"]);
    ended();
    sh("systemctl start multipathd.socket multipathd");
    if ran.code != 0 {
        sh(&format!("dd if={device} of=/dev/null bs=4k count=1 iflag=direct status=none"));
    }
    mortar(&["detach", "a"]).ok();
    until("the map to go", Duration::from_secs(10), || {
        (sh("dmsetup ls --target multipath") == "No devices found").then_some(())
    });
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "multipathd is stopped while attached, and then it is detached",
        &ran,
        "nothing was left once it ran again",
    );
}

/// iscsid is started anew in the middle; then udevd does not run at all.
#[tokio::test]
async fn iscsid_is_restarted_and_udevd_stopped() {
    let mut stage = GuestStage::with_target();
    let locator = stage.volume(Backend::Iscsi, "", SIZE).await;
    let before = stage.snapshot().await;
    for verb in [&["attach", &*locator, "--id", "a"][..], &["detach", "a"]] {
        let call = start(&[&["--timeout", "30s"], verb].concat());
        sh("systemctl restart iscsid");
        let ran = call.end();
        assert!(matches!(ran.code, 0 | 5), "{ran:?}");
        ended();
        // Nothing between: the retry ends what was begun.
        mortar(verb).ok();
        observed(&format!("iscsid is restarted during {}", verb[0]), &ran, "the retry succeeded; nothing was left");
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");

    sh("systemctl stop systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd");
    let _runs = Afterwards(
        "systemctl start systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd; udevadm settle",
    );
    for verb in [&["attach", &*locator, "--id", "a"][..], &["detach", "a"]] {
        let ran = mortar(&[&["--timeout", "30s"], verb].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        observed(&format!("udevd is stopped, {}", verb[0]), &ran, "as ever");
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Another command holds the VG's lock for longer than the caller waits: the wait ends in time, and with it all that was
/// there to wait.
#[tokio::test]
async fn another_command_holds_the_vg() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let before = stage.snapshot().await;
    let newest = || mortar(&["operations", "--limit", "1"]).ok().to_string();
    let newest_before = newest();
    let lock = format!("/run/lock/lvm/V_{}", stage.vg());
    let hold = format!("rm -f /run/free; mkfifo /run/free; flock {lock} cat /run/free >/dev/null 2>&1 & sleep 0.2");
    sh(&hold);
    let _free = Afterwards("timeout 5 bash -c 'echo >/run/free'; rm -f /run/free");
    let ran = mortar(&["--timeout", "3s", "attach", &locator, "--id", "a"]);
    assert!(ran.took < Duration::from_secs(9), "{:?}", ran.took);
    ran.refused(5, "TIMED_OUT");
    until("the end of its lvm", Duration::from_secs(5), || sh("pgrep -x lvm || true").is_empty().then_some(()));
    sh("echo >/run/free");
    ended();
    assert_eq!(newest(), newest_before, "it was begun after its caller had been told that it was not");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    attach("a", &locator);
    detach("a");
    // Of a VG that is known, nothing has to be looked at: what waits is the activation, and lvm is not killed at it.
    sh(&hold);
    let begun = mortar(&["--timeout", "3s", "attach", &locator, "--id", "a"]);
    assert!(begun.took < Duration::from_secs(9), "{:?}", begun.took);
    begun.refused(5, "TIMED_OUT");
    sh("echo >/run/free");
    ended();
    attach("a", &locator);
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "another command holds the VG past the deadline",
        &ran,
        "nothing was begun; attached when the lock was free",
    );
}

/// The clock is set back by an hour between an attach and a crash: nothing is decided by it.
#[tokio::test]
async fn the_clock_is_set_back() {
    let mut stage = GuestStage::with_vg();
    let (locator, other) = (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::File, "w", SIZE).await);
    let before = stage.snapshot().await;
    let there = attach("a", &locator);
    // A cluster's tickets do not outlive that, and nor does its next restart.
    sh("ceph_osd_stop; ceph_mon_stop");
    let _again = Afterwards("date -s \"@$(($(date +%s) + 3600))\" >/dev/null");
    sh("date -s \"@$(($(date +%s) - 3600))\" >/dev/null");
    let killed = start(&["attach", &other, "--id", "b"]);
    stage.kill_and_restart().await;
    killed.end();
    ended();
    assert_eq!(mortar(&["attach", &locator, "--id", "a"]).ok()["path"], there["path"]);
    let ran = mortar(&["attach", &other, "--id", "b"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    detach("a");
    detach("b");
    let newest = mortar(&["operations", "--limit", "1"]).ok();
    assert_eq!((text(&newest[0], "kind"), text(&newest[0], "subject")), ("detach", "b"), "{newest}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "the clock is set back an hour, and the agent killed",
        &ran,
        "as ever; operations are listed in their order",
    );
}
