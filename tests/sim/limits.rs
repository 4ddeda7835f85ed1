//! Each limit of the config: whoever is past it is told so at once, with its key; everybody else goes on.

use crate::machine::{PORTAL, SimStage, until};
use agent::config::Config;
use driver::Backend;
use proto::v1;
use std::time::Duration;
use tests::{
    client::{Client, Refused, attach},
    stage::Stage,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tonic::Code;

const SIZE: u64 = 16 << 20;

async fn stage(limit: impl FnOnce(&mut agent::config::Limits)) -> SimStage {
    let mut config = Config::default();
    limit(&mut config.limits);
    SimStage::with(config).await
}

#[track_caller]
fn is_past(refused: &Refused, key: &str) {
    assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "LIMIT"), "{}", refused.message);
    assert!(refused.message.ends_with(&format!("{key} in the config")), "{}", refused.message);
}

/// Calls that wait for a portal that says nothing, begun.
async fn hanging(stage: &mut SimStage, client: &Client, count: usize) -> Vec<JoinHandle<()>> {
    stage.machine.silence(PORTAL);
    let mut calls = Vec::new();
    for number in 0..count {
        let locator = stage.volume(Backend::Iscsi, &format!("hangs-{number}"), SIZE).await;
        let request = v1::AttachRequest { timeout_ms: 1500, ..attach("", &locator) };
        let mut client = client.clone();
        calls.push(tokio::spawn(async move { drop(client.attach(request).await.unwrap_err()) }));
    }
    let mut other = stage.client();
    until("all of them", async || other.running().await.len() >= count).await;
    calls
}

#[tokio::test]
async fn operations() {
    let mut stage = stage(|limits| limits.operations = 2).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    let calls = hanging(&mut stage, &client, 2).await;
    let (before, start) = (stage.snapshot().await, Instant::now());
    is_past(&client.attach(attach("a", &locator)).await.unwrap_err(), "limits.operations");
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(stage.snapshot().await, before);
    assert!(client.list().await.unwrap().is_empty());
    for call in calls {
        call.await.unwrap();
    }
    client.attach(attach("a", &locator)).await.unwrap();
}

#[tokio::test]
async fn attachments() {
    let mut stage = stage(|limits| limits.attachments = 2).await;
    let mut locators = Vec::new();
    for name in ["v", "w", "x"] {
        locators.push(stage.volume(Backend::Lvm, name, SIZE).await);
    }
    let mut client = stage.client();
    client.attach(attach("a", &locators[0])).await.unwrap();
    client.attach(attach("b", &locators[1])).await.unwrap();
    let before = stage.snapshot().await;
    is_past(&client.attach(attach("c", &locators[2])).await.unwrap_err(), "limits.attachments");
    is_past(&client.attach(attach("d", &locators[0])).await.unwrap_err(), "limits.attachments");
    assert_eq!(stage.snapshot().await, before);
    assert!(client.running().await.is_empty());
    // Those that are there may be asked for again, and one that goes makes room.
    assert!(!client.attach(attach("a", &locators[0])).await.unwrap().changed);
    client.detach("a").await.unwrap();
    client.attach(attach("c", &locators[2])).await.unwrap();
}

/// What is on its way counts, too.
#[tokio::test]
async fn attachments_that_are_under_way() {
    let mut stage = stage(|limits| limits.attachments = 1).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    let calls = hanging(&mut stage, &client, 1).await;
    is_past(&client.attach(attach("a", &locator)).await.unwrap_err(), "limits.attachments");
    for call in calls {
        call.await.unwrap();
    }
    client.attach(attach("a", &locator)).await.unwrap();
}

#[tokio::test]
async fn connections() {
    let stage = stage(|limits| limits.connections = 2).await;
    let (mut first, mut second) = (stage.client(), stage.client());
    first.list().await.unwrap();
    second.list().await.unwrap();
    // More than can be told why, at once: each has an answer or is hung up, and soon.
    let start = Instant::now();
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let mut client = stage.client();
            tokio::spawn(async move { client.list().await.unwrap_err() })
        })
        .collect();
    let mut told = 0;
    for call in calls {
        let refused = call.await.unwrap();
        if refused.code == Code::ResourceExhausted {
            is_past(&refused, "limits.connections");
            told += 1;
        }
    }
    assert!(told >= 16, "{told}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    first.list().await.unwrap();
    drop(second);
    let end = Instant::now() + Duration::from_secs(10);
    while stage.client().list().await.is_err() {
        assert!(Instant::now() < end, "the place is not given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_per_connection() {
    let mut stage = stage(|limits| limits.requests_per_connection = 2).await;
    let mut client = stage.client();
    let calls = hanging(&mut stage, &client, 2).await;
    // The agent asks for no more streams than a few, but a client may have sent them before it heard of that.
    is_past(&client.list().await.unwrap_err(), "limits.requests_per_connection");
    stage.client().list().await.unwrap();
    for call in calls {
        call.await.unwrap();
    }
    client.list().await.unwrap();
}

#[tokio::test]
async fn watchers() {
    let stage = stage(|limits| limits.watchers = 1).await;
    let mut client = stage.client();
    let first = client.attachments.watch(v1::WatchRequest {}).await.unwrap();
    let refused = client.attachments.watch(v1::WatchRequest {}).await.unwrap_err();
    is_past(&refused.into(), "limits.watchers");
    client.list().await.unwrap();
    drop(first);
    let again = until("the seat", async || client.attachments.watch(v1::WatchRequest {}).await.is_ok());
    timeout(Duration::from_secs(10), again).await.expect("the seat is given back");
}

#[tokio::test]
async fn request_bytes() {
    let mut stage = stage(|limits| limits.request_bytes = 1000).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    let long = v1::AttachRequest { expected_wwn: "x".repeat(1000), ..attach("a", &locator) };
    is_past(&client.attach(long).await.unwrap_err(), "limits.request_bytes");
    client.attach(attach("a", &locator)).await.unwrap();
}

/// No process can be started, no device be opened: said in so many words, nothing is left, and the retry works.
#[tokio::test]
async fn a_host_without_processes_or_descriptors() {
    let io = |doing, errno: i32| host::Error::Io {
        doing,
        path: "/dev/x".into(),
        source: std::io::Error::from_raw_os_error(errno),
    };
    let start = |tool| host::Error::Start { tool, source: std::io::Error::from_raw_os_error(11) };
    let faults = [
        (Backend::Lvm, "run lvm lvchange", start("lvm"), "no processes left"),
        (Backend::Lvm, "run lvm fullreport", start("lvm"), "no processes left"),
        (Backend::Iscsi, "run iscsiadm", start("iscsiadm"), "no processes left"),
        (Backend::Iscsi, "inquiry", io("open", 24), "no file descriptors left"),
        (Backend::File, "loop_attach", io("open", 23), "no file descriptors left"),
        (Backend::Rbd, "write /sys/bus/rbd/add", io("open", 24), "no file descriptors left"),
    ];
    for (backend, call, fault, words) in faults {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let before = stage.snapshot().await;
        let mut client = stage.client();
        stage.machine.fail_next(call, fault);
        let refused = client.attach(attach("a", &locator)).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::ResourceExhausted, "NO_RESOURCES"),
            "{call}: {}",
            refused.message
        );
        assert!(refused.message.contains(words), "{call}: {}", refused.message);
        assert_eq!(stage.snapshot().await, before, "{call}: something was left behind");
        assert!(client.running().await.is_empty(), "{call}");
        client.attach(attach("a", &locator)).await.unwrap();
    }
}
