//! Cancel: what is under way is undone, or goes on if it cannot be; and an operation that the machine does not answer is
//! shown, contained, and ends when the machine does.

use crate::{
    crash::difference,
    machine::{IQN, PORTAL, SimStage, until},
};
use agent::config::Config;
use driver::Backend;
use proto::v1;
use std::time::Duration;
use tests::{
    client::{Answer, Client, attach, manage},
    stage::Stage,
};
use tokio::{task::JoinHandle, time::Instant};
use tonic::Code;

const SIZE: u64 = 16 << 20;
const BACKENDS: [Backend; 4] = [Backend::File, Backend::Iscsi, Backend::Lvm, Backend::Rbd];

fn attaching(stage: &SimStage, locator: &str) -> JoinHandle<Answer<v1::AttachResponse>> {
    let (mut client, request) = (stage.client(), attach("a", locator));
    tokio::spawn(async move { client.attach(request).await })
}

/// Asks, and returns once the agent has been asked.
async fn cancel(client: &Client, id: &str) -> JoinHandle<Answer<v1::CancelOperationResponse>> {
    let (mut client, request) = (client.clone(), v1::CancelOperationRequest { id: id.into() });
    let mut list = client.clone();
    let asked = tokio::spawn(async move { Ok(client.operations.cancel(request).await?.into_inner()) });
    // Answers to what is asked later on the same connection come after the question.
    for _ in 0..3 {
        list.running().await;
    }
    asked
}

async fn only_operation(stage: &SimStage) -> v1::Operation {
    let mut operations = stage.client().running().await;
    assert_eq!(operations.len(), 1, "{operations:?}");
    operations.remove(0)
}

/// An attach, cancelled after each of its effects: nothing is left, and its caller is told.
#[tokio::test]
async fn an_attach_is_undone() {
    for backend in BACKENDS {
        let mut points = 0;
        for after in 1.. {
            let mut stage = SimStage::new().await;
            let locator = stage.volume(backend, "v", SIZE).await;
            let before = stage.snapshot().await;
            let held = stage.machine.hang(after, "");
            let mut call = attaching(&stage, &locator);
            tokio::select! {
                done = &mut call => {
                    done.unwrap().unwrap();
                    break;
                }
                () = held.reached() => {}
            }
            let at = format!("{backend}, cancelled after effect {after}");
            let id = match stage.client().running().await.as_slice() {
                [one] => one.id.clone(),
                // It has ended, all but the answer.
                _ => break,
            };
            let asked = cancel(&stage.client(), &id).await;
            held.let_go();
            let refused = match call.await.unwrap() {
                Err(refused) => refused,
                Ok(_) => {
                    // It was too late: the end was being committed.
                    let late = asked.await.unwrap();
                    assert!(late.is_err() || !late.unwrap().changed, "{at}");
                    continue;
                }
            };
            assert_eq!(
                (refused.code, refused.reason.as_str()),
                (Code::Cancelled, "CANCELLED"),
                "{at}: {}",
                refused.message
            );
            let ended = asked.await.unwrap().unwrap();
            assert!(ended.changed, "{at}");
            let operation = ended.operation.unwrap();
            assert_eq!(
                (operation.state(), operation.error.unwrap().reason.as_str()),
                (v1::OperationState::Failed, "CANCELLED")
            );
            let left = difference(&before, &stage.snapshot().await);
            assert!(left.is_empty(), "{at}: something was left behind\n{left}");
            assert!(stage.client().running().await.is_empty(), "{at}");
            // Again is the same, and the volume is free.
            let again = cancel(&stage.client(), &id).await.await.unwrap().unwrap();
            assert!(!again.changed && again.operation.unwrap().id == id, "{at}");
            stage.client().attach(attach("b", &locator)).await.unwrap();
            points += 1;
        }
        println!("{backend}: cancelled at {points} points");
        assert!(points >= 1, "{backend}: {points} points are too few to be true");
    }
}

/// The agent dies after each effect of the undo of an attach that was cancelled: the start finishes it.
#[tokio::test]
async fn a_crash_while_an_attach_is_cancelled() {
    let mut schedules = 0;
    for backend in BACKENDS {
        'points: for after in 1.. {
            for at in 1.. {
                let mut stage = SimStage::new().await;
                let locator = stage.volume(backend, "v", SIZE).await;
                let before = stage.snapshot().await;
                let held = stage.machine.hang(after, "");
                let mut call = attaching(&stage, &locator);
                tokio::select! {
                    _done = &mut call => break 'points,
                    () = held.reached() => {}
                }
                let Some(operation) = stage.client().running().await.pop() else { break 'points };
                let asked = cancel(&stage.client(), &operation.id).await;
                stage.machine.crash_after(at);
                held.let_go();
                let crashed = tokio::select! {
                    () = stage.machine.crashed() => true,
                    _done = &mut call => false,
                };
                asked.abort();
                if !crashed {
                    break;
                }
                stage.kill();
                stage.start().await;
                if !stage.client().list().await.unwrap().is_empty() {
                    // It was too late to cancel it.
                    break 'points;
                }
                let left = difference(&before, &stage.snapshot().await);
                let at = format!("{backend}, cancelled after effect {after}, crash after {at} more");
                assert!(left.is_empty(), "{at}: something was left behind\n{left}");
                assert!(stage.client().running().await.is_empty(), "{at}");
                stage.client().attach(attach("a", &locator)).await.unwrap();
                schedules += 1;
            }
        }
    }
    println!("{schedules} schedules");
    assert!(schedules >= 20, "{schedules} schedules are too few to be true");
}

/// A detach is given up while it flushes, and the volume stays attached; past that it goes on.
#[tokio::test]
async fn a_detach_until_its_first_change() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let mut client = stage.client();
    client.attach(attach("a", &locator)).await.unwrap();
    let before = stage.snapshot().await;
    for (call, gives_up) in [("flush", true), ("run lvm lvchange", false)] {
        let held = stage.machine.hang(0, call);
        let mut other = stage.client();
        let detach = tokio::spawn(async move { other.detach("a").await });
        held.reached().await;
        let operation = only_operation(&stage).await;
        let waiting = operation.waiting.unwrap();
        assert!(waiting.r#for.starts_with(call) && !waiting.wedged, "{waiting:?}");
        let asked = cancel(&stage.client(), &operation.id).await;
        if gives_up {
            let refused = detach.await.unwrap().unwrap_err();
            assert_eq!((refused.code, refused.reason.as_str()), (Code::Cancelled, "CANCELLED"));
            assert!(asked.await.unwrap().unwrap().changed);
            assert_eq!(client.get("a").await.unwrap().state(), v1::AttachmentState::Ready);
            assert_eq!(stage.snapshot().await, before);
            held.let_go();
        } else {
            let refused = asked.await.unwrap().unwrap_err();
            assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"));
            assert!(refused.message.contains("has changed something already (run lvm lvchange"), "{}", refused.message);
            held.let_go();
            assert!(detach.await.unwrap().unwrap().changed);
        }
    }
    assert!(client.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_rename_half_way_goes_on() {
    let mut stage = SimStage::new().await;
    for backend in [Backend::Lvm, Backend::File, Backend::Rbd] {
        let locator = stage.volume(backend, "v", SIZE).await;
        // Past the intent and one change.
        let held = stage.machine.hang(2, "");
        let (mut other, request) = (stage.client(), manage(&locator));
        let managed = tokio::spawn(async move { other.manage(request).await });
        held.reached().await;
        let operation = only_operation(&stage).await;
        let refused = cancel(&stage.client(), &operation.id).await.await.unwrap().unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"), "{backend}");
        held.let_go();
        assert!(managed.await.unwrap().unwrap().changed, "{backend}");
    }
}

#[tokio::test]
async fn an_operation_that_nobody_knows_is_not_cancelled() {
    let stage = SimStage::new().await;
    let unknown = cancel(&stage.client(), "0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10").await.await.unwrap().unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    assert_eq!(cancel(&stage.client(), "x").await.await.unwrap().unwrap_err().code, Code::InvalidArgument);
}

/// A caller's gRPC deadline ends its wait; the operation is seen to go on, with what it waits for.
#[tokio::test]
async fn a_deadline_ends_the_wait_only() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let held = stage.machine.hang(0, "run lvm lvchange");
    let mut request = tonic::Request::new(attach("a", &locator));
    request.set_timeout(Duration::from_millis(500));
    let status = stage.client().attachments.attach(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let waiting = only_operation(&stage).await.waiting.unwrap();
    assert!(waiting.r#for.starts_with("run lvm lvchange"), "{waiting:?}");
    held.let_go();
    until("the end", async || stage.client().running().await.is_empty()).await;
}

/// A device that does not answer its flush: the detach is wedged, everybody else goes on, and it ends when the kernel does.
#[tokio::test]
async fn a_stuck_device_holds_up_nobody_else() {
    let mut config = Config::default();
    config.limits.wedged_after_ms = 100;
    let mut stage = SimStage::with(config).await;
    let (locator, other) = (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::Lvm, "w", SIZE).await);
    let bare = stage.snapshot().await;
    let mut client = stage.client();
    client.attach(attach("a", &locator)).await.unwrap();
    let held = stage.machine.hang(0, "flush");
    let target = Some(v1::detach_request::Target::Id("a".into()));
    let detach = v1::DetachRequest { target, timeout_ms: 300 };
    let status = client.attachments.detach(detach).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let patience = Instant::now() + Duration::from_secs(20);
    let waiting = loop {
        let waiting = only_operation(&stage).await.waiting.unwrap();
        if waiting.wedged {
            break waiting;
        }
        assert!(Instant::now() < patience, "{waiting:?}");
        tokio::task::yield_now().await;
    };
    assert!(waiting.r#for.starts_with("flush /dev/dm-") && waiting.since_ms >= 300, "{waiting:?}");
    // Another LV of the same VG, and what is nearby.
    client.attach(attach("b", &other)).await.unwrap();
    client.detach("b").await.unwrap();
    let held_by = client.detach("a").await.unwrap_err();
    assert_eq!((held_by.code, held_by.reason.as_str()), (Code::Aborted, "BUSY"));
    let cancelled = cancel(&client, &only_operation(&stage).await.id).await.await.unwrap().unwrap_err();
    assert_eq!(cancelled.code, Code::FailedPrecondition, "{}", cancelled.message);

    held.let_go();
    until("the end", async || client.running().await.is_empty()).await;
    assert!(client.list().await.unwrap().is_empty());
    assert_eq!(stage.snapshot().await, bare);
}

/// It does not keep the agent from stopping, nor from starting.
#[tokio::test]
async fn a_stuck_device_keeps_no_agent_from_stopping() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let bare = stage.snapshot().await;
    let mut client = stage.client();
    client.attach(attach("a", &locator)).await.unwrap();
    let held = stage.machine.hang(0, "flush");
    let target = Some(v1::detach_request::Target::Id("a".into()));
    client.attachments.detach(v1::DetachRequest { target, timeout_ms: 200 }).await.unwrap_err();
    drop(client);
    let start = Instant::now();
    stage.stop().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    stage.start().await;
    assert!(stage.client().running().await.is_empty());
    assert_eq!(stage.snapshot().await, bare);
    held.let_go();
}

/// Several ways are walked side by side by tasks of their own: they are cancelled as well.
#[tokio::test]
async fn all_ways_of_a_multipath_attach() {
    let mut stage = SimStage::new().await;
    let _first = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.machine.silence(PORTAL);
    let locator = format!("iscsi://{PORTAL},127.0.0.9:3260/{IQN}/0");
    stage.machine.silence("127.0.0.9:3260");
    stage.machine.run_multipathd(true);
    let before = stage.snapshot().await;
    let call = attaching(&stage, &locator);
    let operation = loop {
        if let Some(operation) = stage.client().running().await.pop()
            && operation.waiting.is_some()
        {
            break operation;
        }
        tokio::task::yield_now().await;
    };
    let start = Instant::now();
    let ended = cancel(&stage.client(), &operation.id).await.await.unwrap().unwrap();
    assert!(ended.changed && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(call.await.unwrap().unwrap_err().code, Code::Cancelled);
    assert_eq!(stage.snapshot().await, before);
}
