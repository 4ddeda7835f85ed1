//! Deadlines, hang-ups and two callers at once.

use crate::machine::{IQN, SimStage, until};
use driver::Backend;
use proto::v1;
use std::time::Duration;
use tests::{client::attach, stage::Stage};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SIZE: u64 = 16 << 20;

#[tokio::test]
async fn a_silent_portal_ends_at_the_callers_deadline() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.machine.silence(crate::machine::PORTAL);
    let before = stage.snapshot().await;
    let start = Instant::now();
    let request = v1::AttachRequest { timeout_ms: 700, ..attach("a", &locator) };
    let refused = stage.client().attach(request).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "UNREACHABLE"), "{}", refused.message);
    assert!((Duration::from_millis(600)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(stage.snapshot().await, before);

    // The same through the call's own deadline.
    let start = Instant::now();
    let mut request = tonic::Request::new(attach("a", &locator));
    request.set_timeout(Duration::from_millis(900));
    let status = stage.client().attachments.attach(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
}

/// Another command holds the VG: what has only looked ends at its deadline, and begins nothing when the VG is free.
#[tokio::test]
async fn a_look_ends_at_the_callers_deadline() {
    let mut stage = SimStage::new().await;
    let (locator, other) = (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::Lvm, "w", SIZE).await);
    let mut client = stage.client();
    for verb in ["attach", "export"] {
        // What was reported of the VG is true no more.
        stage.volume(Backend::Lvm, &format!("new-before-{verb}"), SIZE).await;
        let before = stage.snapshot().await;
        let held = stage.machine.hang(0, "run lvm fullreport");
        let start = Instant::now();
        let refused = if verb == "attach" {
            client.attach(v1::AttachRequest { timeout_ms: 700, ..attach("a", &locator) }).await.err()
        } else {
            let initiator = "iqn.2026-11.org.example:other".into();
            let (id, locator) = ("a".into(), locator.clone());
            let request = v1::ExportRequest { id, locator, initiator, timeout_ms: 700, ..v1::ExportRequest::default() };
            client.export(request).await.err()
        };
        let refused = refused.unwrap_or_else(|| panic!("the {verb} did not wait"));
        assert_eq!((refused.code, refused.reason.as_str()), (Code::DeadlineExceeded, "TIMED_OUT"), "{verb}");
        assert!(refused.message.contains(&format!("a look at {locator}")), "{}", refused.message);
        let waited = Duration::from_millis(600)..Duration::from_secs(3);
        assert!(waited.contains(&start.elapsed()), "{verb}: {:?}", start.elapsed());
        // It holds nothing any more, though the other command still holds the VG.
        assert!(client.attach(attach("b", &other)).await.unwrap().changed, "{verb}");
        assert!(client.detach("b").await.unwrap().changed, "{verb}");
        held.let_go();
        let operations = client.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner();
        assert!(operations.operations.iter().all(|operation| operation.subject == "b"), "{verb}: {operations:?}");
        assert_eq!(stage.snapshot().await, before, "{verb}");
    }
    assert!(client.attach(attach("a", &locator)).await.unwrap().changed);
}

/// The server of a file is gone: who asks for the file ends at the deadline, wherever it was looked for, and others go on.
#[tokio::test]
async fn a_look_at_a_file_ends_at_the_callers_deadline() {
    let mut stage = SimStage::new().await;
    let (locator, other) = (stage.volume(Backend::File, "v", SIZE).await, stage.volume(Backend::File, "w", SIZE).await);
    let (before, mut client) = (stage.snapshot().await, stage.client());
    for look in ["real_path", "file /srv/volumes/v.raw"] {
        let held = stage.machine.hang(0, look);
        let start = Instant::now();
        let request = v1::AttachRequest { timeout_ms: 700, ..attach("a", &locator) };
        let refused = client.attach(request).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::DeadlineExceeded, "TIMED_OUT"), "{look}");
        let waited = Duration::from_millis(600)..Duration::from_secs(3);
        assert!(waited.contains(&start.elapsed()), "{look}: {:?}", start.elapsed());
        assert!(client.attach(attach("b", &other)).await.unwrap().changed, "{look}");
        assert!(client.detach("b").await.unwrap().changed, "{look}");
        held.let_go();
        assert_eq!(stage.snapshot().await, before, "{look}");
    }
    assert!(client.attach(attach("a", &locator)).await.unwrap().changed);
}

#[tokio::test]
async fn the_second_caller_learns_who_is_there() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.machine.silence(crate::machine::PORTAL);
    let (mut first, request) = (stage.client(), v1::AttachRequest { timeout_ms: 1500, ..attach("a", &locator) });
    let call = tokio::spawn(async move { first.attach(request).await });
    until("the attach", async || running(&stage).await > 0).await;
    let busy = stage.client().attach(attach("b", &locator)).await.unwrap_err();
    assert_eq!(busy.code, Code::Aborted);
    assert!(busy.message.contains(&format!("attach of iscsi:{IQN}/0 since")), "{}", busy.message);
    let _first = call.await.unwrap();
    let free = stage.volume(Backend::Iscsi, "w", SIZE).await;
    assert_ne!(free, locator);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "from outside, there is nothing to wait on")]
async fn who_hangs_up_stops_nothing() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    for _ in 0..20 {
        let mut client = stage.client();
        let request = attach("a", &locator);
        let call = tokio::spawn(async move { client.attach(request).await });
        tokio::task::yield_now().await;
        call.abort();
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    // Whatever was begun is brought to its end, and the volume is attached or not, but not half.
    while running(&stage).await > 0 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
    let reply = stage.client().attach(attach("a", &locator)).await;
    assert!(reply.is_ok(), "{reply:?}");
}

/// How many operations have not ended.
async fn running(stage: &SimStage) -> usize {
    let request = v1::ListOperationsRequest { running_only: true, limit: 0 };
    stage.client().operations.list(request).await.unwrap().into_inner().operations.len()
}

#[tokio::test]
async fn twenty_callers_get_one_device() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    let callers = (0..20).map(|_| {
        let (mut client, request) = (stage.client(), attach("", &locator));
        tokio::spawn(async move { client.attach_patiently(request).await.unwrap().attachment.unwrap() })
    });
    let mut seen = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        let there = caller.await.unwrap();
        seen.push((there.id, there.path));
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(stage.machine.commands().iter().filter(|line| line.contains("--login")).count(), 1);
}
