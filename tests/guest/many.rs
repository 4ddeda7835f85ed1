//! Many callers at once, of many targets or of one; and a stop in the middle of it.

use crate::{
    cli::{Ran, Running, figure, mortar, names, sessions, start, text},
    machine::{GuestStage, PORTAL, sh, try_sh},
};
use proto::v1;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{client::attach, stage::Stage, targets::Targets};
use tokio::task::JoinSet;

/// For calls that stand in a queue.
const PATIENCE: &str = "300s";

/// Targets; a test that failed first detaches what it has of them.
struct Many(Targets);

impl Many {
    fn new(count: usize) -> Self {
        Self(Targets::new("many", count, &[PORTAL]))
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        if std::thread::panicking() {
            try_sh(
                "mortar --output json list | jq -r '.[].id' | while read -r id; do mortar detach \"$id\" || true; done",
            );
        }
    }
}

fn ends(running: Vec<Running>) -> Vec<Ran> {
    running.into_iter().map(Running::end).collect()
}

/// Fifty volumes of fifty targets come at once and go at once; everybody gets his own.
#[tokio::test]
async fn fifty_targets_at_once() {
    const COUNT: usize = 50;
    let (stage, targets) = (GuestStage::bare(), Many::new(COUNT));
    let before = stage.snapshot().await;
    let started = Instant::now();
    let calls = (0..COUNT)
        .map(|number| {
            start(&["--timeout", PATIENCE, "attach", &targets.0.locator(number), "--id", &format!("many-{number}")])
        })
        .collect();
    let mut paths = BTreeSet::new();
    for (number, ran) in ends(calls).into_iter().enumerate() {
        let there = ran.ok();
        assert_eq!(text(&there, "id"), format!("many-{number}"));
        assert_eq!(text(&there, "scsi_wwn"), targets.0.wwn(number));
        assert_eq!(there["size_bytes"], targets.0.size(number));
        // Not only said to be: the kernel's device has this size, and nobody else's does.
        let device = text(&there, "path").to_owned();
        let sectors = std::fs::read_to_string(format!("/sys/block/{}/size", &device["/dev/".len()..])).unwrap();
        assert_eq!(sectors.trim().parse::<u64>().unwrap() * 512, targets.0.size(number), "{device}");
        assert!(paths.insert(device), "handed out twice: {there}");
    }
    figure("50 attaches at once", format!("{:.1?}", started.elapsed()));
    assert_eq!(sessions().len(), COUNT);
    let listed = mortar(&["list"]).ok();
    assert_eq!(listed.as_array().unwrap().iter().filter(|there| there["state"] == "ready").count(), COUNT, "{listed}");
    let started = Instant::now();
    let calls = (0..COUNT).map(|number| start(&["--timeout", PATIENCE, "detach", &format!("many-{number}")])).collect();
    for ran in ends(calls) {
        let gone = ran.ok();
        assert!(gone["changed"] == true && gone["residuals"] == Value::Array(Vec::new()), "{gone}");
    }
    figure("50 detaches at once", format!("{:.1?}", started.elapsed()));
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Twenty callers want the same volume: there is one device, one session, one attachment, and one of them made it.
#[tokio::test]
async fn twenty_callers_of_one_lun() {
    const CALLERS: usize = 20;
    let (stage, targets) = (GuestStage::bare(), Many::new(1));
    let before = stage.snapshot().await;
    let locator = targets.0.locator(0);
    let calls = (0..CALLERS).map(|_| start(&["--timeout", PATIENCE, "attach", &locator])).collect();
    let answers: Vec<Value> = ends(calls).into_iter().map(Ran::ok).collect();
    let of = |key: &str| answers.iter().map(|answer| text(answer, key)).collect::<BTreeSet<_>>();
    for key in ["id", "path", "scsi_wwn", "stable_path"] {
        assert_eq!(of(key).len(), 1, "{key}: {:?}", of(key));
    }
    assert_eq!(answers.iter().filter(|answer| answer["changed"] == true).count(), 1);
    assert_eq!((sessions().len(), mortar(&["list"]).ok().as_array().unwrap().len()), (1, 1));
    let disks = names("/sys/block").into_iter().filter(|name| name.starts_with("sd")).count();
    assert_eq!((disks, names("/dev/mortar").len()), (1, 1));
    let calls = (0..CALLERS).map(|_| start(&["--timeout", PATIENCE, "detach", &locator])).collect();
    let answers: Vec<Value> = ends(calls).into_iter().map(Ran::ok).collect();
    assert_eq!(answers.iter().filter(|answer| answer["changed"] == true).count(), 1);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Told to stop, the service lets its operations finish; their callers get their answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_operations() {
    const COUNT: usize = 12;
    let (stage, targets) = (GuestStage::bare(), Many::new(COUNT));
    let before = stage.snapshot().await;
    // Not by the command line: the first would be done before the last has been started.
    let mut calls = JoinSet::new();
    for number in 0..COUNT {
        let (mut client, request) = (stage.client(), attach(&format!("stop-{number}"), &targets.0.locator(number)));
        calls.spawn(async move { client.attach(request).await.map(drop) });
    }
    let mut client = stage.client();
    let running = loop {
        let request = v1::ListOperationsRequest { running_only: false, limit: 12 };
        let operations = client.operations.list(request).await.unwrap().into_inner().operations;
        let ours: Vec<_> = operations.iter().filter(|operation| operation.subject.starts_with("stop-")).collect();
        if ours.len() == COUNT {
            break ours.iter().filter(|operation| operation.state() == v1::OperationState::Running).count();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    figure("operations that ran at SIGTERM", running);
    assert!(running > 0, "all had ended already");
    sh("systemctl stop mortard.socket mortard.service");
    while let Some(ended) = calls.join_next().await {
        ended.unwrap().unwrap();
    }
    let journal = sh("journalctl --unit mortard --no-pager --output cat --lines 8");
    assert!(journal.contains("mortard.service: Deactivated successfully"), "{journal}");
    mortar(&["list"]).refused(5, "UNREACHABLE");
    sh("systemctl start mortard.socket mortard.service");
    let listed = mortar(&["list"]).ok();
    assert_eq!(listed.as_array().unwrap().iter().filter(|there| there["state"] == "ready").count(), COUNT, "{listed}");
    for ran in ends((0..COUNT).map(|number| start(&["detach", &format!("stop-{number}")])).collect()) {
        ran.ok();
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
