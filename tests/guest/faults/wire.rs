//! The target goes, or the network to it, in the middle of an attach, of a detach, and in between.

use super::{Afterwards, SIZE, ended, observed, running};
use crate::{
    cli::{attach, detach, mortar, sessions, start, text, until},
    machine::{GuestStage, sh},
};
use driver::Backend;
use std::time::Duration;
use tests::stage::Stage;

/// A target that is reached by an address which can be cut off; with the locator of its volume.
async fn far_target() -> (GuestStage, String) {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", SIZE).await;
    let iqn = stage.iqn();
    sh(&format!("lio_remove_portal {iqn} 127.0.0.1:3260; lio_portal {iqn} 127.0.0.2:3260"));
    (stage, format!("iscsi://127.0.0.2/{iqn}/0"))
}

const HEALED: Afterwards<&str> = Afterwards("[[ $(ip rule show) != *blackhole* ]] || net_heal 127.0.0.2");

/// The caller gets his answer in time, and nothing stays; when the target is back, so is the volume.
#[tokio::test]
async fn the_target_is_gone_during_an_attach() {
    let (stage, locator) = far_target().await;
    let iqn = stage.iqn();
    let _healed = HEALED;
    let before = stage.snapshot().await;
    sh("net_cut 127.0.0.2");
    let attaching = start(&["--timeout", "4s", "attach", &locator, "--id", "a"]);
    running("attach");
    sh(&format!("lio_disable {iqn}; net_heal 127.0.0.2"));
    let ran = attaching.end();
    assert!(ran.took < Duration::from_secs(10), "{:?}", ran.took);
    let said = ran.refused(5, "UNREACHABLE");
    assert!(said.contains("127.0.0.2:3260"), "{said}");
    ended();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("lio_enable {iqn}"));
    attach("a", &locator);
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed("the target is gone during an attach", &ran, "nothing was left; attached when the target was back");
}

/// At several moments of it; whatever it has come to by then, it is all or nothing.
#[tokio::test]
async fn the_target_is_disabled_in_the_middle_of_an_attach() {
    let (stage, locator) = far_target().await;
    let iqn = stage.iqn();
    let before = stage.snapshot().await;
    for after in [20, 100, 200, 400].map(Duration::from_millis) {
        let attaching = start(&["--timeout", "5s", "attach", &locator, "--id", "a"]);
        std::thread::sleep(after);
        sh(&format!("lio_disable {iqn}"));
        let ran = attaching.end();
        assert!(ran.took < Duration::from_secs(11), "{:?}", ran.took);
        assert!(matches!(ran.code, 0 | 5), "{ran:?}");
        sh(&format!("lio_enable {iqn}"));
        ended();
        if ran.code != 0 {
            assert_eq!(stage.snapshot().await, before, "something was left behind, disabled after {after:?}");
        }
        attach("a", &locator);
        detach("a");
        assert_eq!(stage.snapshot().await, before, "something was left behind, disabled after {after:?}");
    }
}

/// What is in the page cache cannot be written: it stays attached, and nothing is lost when the target is back.
#[tokio::test]
async fn the_target_is_gone_during_a_detach() {
    let (stage, locator) = far_target().await;
    let iqn = stage.iqn();
    let _healed = HEALED;
    let before = stage.snapshot().await;
    let device = text(&attach("a", &locator), "path").to_owned();
    sh(&format!("net_cut 127.0.0.2; head -c 1M /dev/zero | tr '\\0' k >{device}"));
    let detaching = start(&["--timeout", "4s", "detach", "a"]);
    running("detach");
    sh(&format!("lio_disable {iqn}; net_heal 127.0.0.2"));
    let ran = detaching.end();
    assert!(ran.took < Duration::from_secs(10), "{:?}", ran.took);
    let said = ran.refused(5, "TIMED_OUT");
    assert!(said.contains(&device) || said.contains("detach"), "{said}");
    sh(&format!("lio_enable {iqn}"));
    // It goes on behind the caller's back, or was given up; to say it again is right in either case.
    ended();
    mortar(&["detach", "a"]).ok();
    assert_eq!(sh(&format!("head -c 1M /var/tmp/{}.img | tr -d k | wc -c", stage.store(0))), "0", "data was lost");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed("the target is gone during a detach", &ran, "nothing was lost; detached when the target was back");
}

/// While it is cut, nothing is lost and the agent answers; healed, what was begun goes on.
#[tokio::test]
async fn the_network_is_cut_and_healed() {
    let (stage, locator) = far_target().await;
    let _healed = HEALED;
    let before = stage.snapshot().await;
    let device = text(&attach("a", &locator), "path").to_owned();
    let session = sessions();
    sh(&format!(
        "net_cut 127.0.0.2; head -c 1M /dev/zero | tr '\\0' k | dd of={device} bs=1M iflag=fullblock conv=fsync \
                 status=none </dev/stdin >/run/written 2>&1 & sleep 0"
    ));
    let shown = mortar(&["--timeout", "3s", "show", "a"]);
    assert!(shown.took < Duration::from_secs(6), "{:?}", shown.took);
    assert_eq!(mortar(&["list"]).ok().as_array().unwrap().len(), 1);
    sh("net_heal 127.0.0.2");
    until("the volume to answer", Duration::from_secs(60), || {
        let shown = mortar(&["--timeout", "3s", "show", "a"]);
        (shown.code == 0 && text(&shown.ok(), "state") == "ready").then_some(())
    });
    sh(&format!("sync {device}"));
    assert_eq!(sessions(), session, "it is another session");
    detach("a");
    assert_eq!(sh(&format!("head -c 1M /var/tmp/{}.img | tr -d k | wc -c", stage.store(0))), "0", "data was lost");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed("the network is cut and healed while a volume is attached", &shown, "the same session; nothing was lost");
}

/// A stop of the service in the middle of a dozen attaches that all wait: everybody gets an answer, and nothing is left.
#[tokio::test]
async fn a_stop_while_a_dozen_operations_wait() {
    const COUNT: usize = 12;
    let (stage, locator) = far_target().await;
    let _healed = HEALED;
    let before = stage.snapshot().await;
    sh("net_cut 127.0.0.2");
    let calls: Vec<_> = (0..COUNT)
        .map(|number| {
            let unit = format!("{}/{number}", locator.rsplit_once('/').unwrap().0);
            start(&["--timeout", "60s", "attach", &unit, "--id", &format!("stop-{number}")])
        })
        .collect();
    until("all of them to run", Duration::from_secs(30), || {
        (mortar(&["operations", "--running"]).ok().as_array().unwrap().len() == COUNT).then_some(())
    });
    sh("systemctl stop --no-block mortard; net_heal 127.0.0.2");
    let answers: Vec<_> = calls.into_iter().map(crate::cli::Running::end).collect();
    // One unit is there; the others are not.
    assert_eq!(answers.iter().filter(|ran| ran.code == 0).count(), 1, "{answers:?}");
    let refused = answers.iter().filter(|ran| ran.code != 0);
    for ran in refused {
        assert!(ran.code == 3 || ran.code == 5, "{ran:?}");
    }
    sh("systemctl stop mortard; systemctl start mortard");
    ended();
    detach("stop-0");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    observed(
        "SIGTERM while 12 operations run",
        &answers[1],
        "each had its answer before the agent ended; nothing was left",
    );
}

/// An attach that waits is cancelled by its operation's id: both callers are told, and nothing is left.
#[tokio::test]
async fn a_cancel() {
    let (stage, locator) = far_target().await;
    let _healed = HEALED;
    let before = stage.snapshot().await;
    sh("net_cut 127.0.0.2");
    let attaching = start(&["--timeout", "60s", "attach", &locator, "--id", "a"]);
    let operation = running("attach");
    let cancelled = mortar(&["--timeout", "30s", "cancel", text(&operation, "id")]).ok();
    assert_eq!(cancelled["changed"], true, "{cancelled}");
    let ran = attaching.end();
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["error"]["reason"], "CANCELLED", "{ran:?}");
    sh("net_heal 127.0.0.2");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    attach("a", &locator);
    detach("a");
    observed("an attach is cancelled while it waits", &ran, "nothing was left; attached afterwards");
}
