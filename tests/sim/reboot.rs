//! A reboot: what is persistent comes back, as the volume that it was; the rest is forgotten; what the system brought up
//! by itself is left to it.

use crate::{
    crash::{Verb, crash},
    machine::{IQN, PORTAL, SimStage, VG},
};
use driver::Backend;
use host::sim::iscsi::LogicalUnit;
use proto::v1::{self, AttachmentState};
use std::time::Duration;
use tests::{
    client::{Client, attach},
    stage::Stage,
};
use tokio::time::{Instant, sleep};

const SIZE: u64 = 16 << 20;

fn persistent(id: &str, locator: &str) -> v1::AttachRequest {
    v1::AttachRequest { persistent: true, ..attach(id, locator) }
}

/// Looks until the attachment is in this state.
#[expect(clippy::disallowed_methods, reason = "from outside, there is nothing to wait on")]
async fn until(client: &mut Client, id: &str, state: AttachmentState) -> v1::Attachment {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = client.get(id).await.unwrap();
        if now.state() == state {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_not_persistent_is_forgotten() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        stage.client().attach(attach("a", &locator)).await.unwrap();
        stage.reboot().await;
        assert!(stage.client().list().await.unwrap().is_empty(), "{backend}");
        assert!(!stage.snapshot().await.contains("/dev/mortar/a"), "{backend}");
        assert!(stage.client().attach(attach("a", &locator)).await.unwrap().changed, "{backend}");
    }
}

#[tokio::test]
async fn what_is_forgotten_leaves_no_file() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let before = stage.snapshot().await;
        stage.client().attach(attach("a", &locator)).await.unwrap();
        stage.reboot().await;
        let left = crate::crash::difference(&before, &stage.snapshot().await);
        assert!(left.lines().all(|line| line.contains("boot_id")), "{backend}: something was left behind\n{left}");
    }
}

#[tokio::test]
async fn what_is_persistent_comes_back() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let request = v1::AttachRequest { read_only: true, ..persistent("a", &locator) };
        stage.client().attach(request.clone()).await.unwrap();
        stage.reboot().await;
        let back = until(&mut stage.client(), "a", AttachmentState::Ready).await;
        assert!(back.read_only && back.persistent, "{backend}: {back:?}");
        assert!(!stage.client().attach_patiently(request).await.unwrap().changed, "{backend}");
        assert!(stage.snapshot().await.contains("/dev/mortar/a ->"), "{backend}");
        stage.client().detach("a").await.unwrap();
        assert!(!stage.snapshot().await.contains("/dev/mortar/a"), "{backend}");
    }
}

#[tokio::test]
async fn two_of_one_volume_come_back_and_leave_nothing() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let before = stage.snapshot().await;
        for id in ["a", "b"] {
            stage.client().attach(persistent(id, &locator)).await.unwrap();
        }
        stage.reboot().await;
        for id in ["a", "b"] {
            until(&mut stage.client(), id, AttachmentState::Ready).await;
            assert!(!stage.client().attach_patiently(persistent(id, &locator)).await.unwrap().changed, "{backend}");
        }
        for id in ["a", "b"] {
            let gone = stage.client().detach(id).await.unwrap();
            assert_eq!((gone.residuals.len(), gone.kept.len()), (0, 0), "{backend}: {gone:?}");
        }
        let left = crate::crash::difference(&before, &stage.snapshot().await);
        assert!(left.lines().all(|line| line.contains("boot_id")), "{backend}: something was left behind\n{left}");
    }
}

#[tokio::test]
async fn what_took_its_place_does_not_come_back() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    let was = stage.client().attach(persistent("a", &locator)).await.unwrap().attachment.unwrap().identity;
    stage.machine.map_lun(IQN, 0, LogicalUnit::disk("6001405fffffffffffffffffffffffff", SIZE));
    stage.reboot().await;
    let refused = stage.client().attach_patiently(persistent("a", &locator)).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{}", refused.message);
    assert!(refused.message.contains(&was) && refused.message.contains("fffffff"), "{}", refused.message);
    assert!(!stage.snapshot().await.contains("/dev/mortar/a"));
    assert!(!stage.snapshot().await.contains(PORTAL), "a session is left");
    stage.client().detach("a").await.unwrap();
    assert!(stage.client().attach(attach("a", &locator)).await.unwrap().changed, "a new attachment is a new start");
}

#[tokio::test]
async fn what_the_system_activated_stays_active() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    stage.client().attach(persistent("a", &locator)).await.unwrap();
    stage.kill();
    stage.machine.reboot();
    stage.machine.activate_lv(VG, "v", false);
    stage.start().await;
    until(&mut stage.client(), "a", AttachmentState::Ready).await;
    let gone = stage.client().detach("a").await.unwrap();
    assert!(gone.changed && gone.residuals.is_empty() && gone.kept.len() == 1, "{gone:?}");
    assert!(stage.machine.lv_device(VG, "v").is_some(), "it was deactivated");
}

/// What an attach had noted before the reboot says nothing of this boot: the LV was not active then, and is now, by the system.
#[tokio::test]
async fn an_undo_after_a_reboot_leaves_what_the_system_activated() {
    let mut points = 0;
    for at in 1.. {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
        if !crash(&stage, Verb::Attach, &locator, at).await {
            break;
        }
        stage.kill();
        stage.machine.reboot();
        stage.machine.activate_lv(VG, "v", false);
        stage.start().await;
        assert!(stage.client().running().await.is_empty(), "it is not undone");
        assert!(stage.machine.lv_device(VG, "v").is_some(), "crash after effect {at}: it was deactivated");
        points += 1;
    }
    assert!(points > 2, "{points} effects are too few to be true");
}
