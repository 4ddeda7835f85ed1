//! A crash after every effect of a rescue and of an unrescue, another after every effect of the recovery, and then the
//! caller's retry: the instance is in one of its two states, ends as asked, and nothing is left.

use super::{Case, Root, UUID, after, sources, uuid};
use crate::machine::SimStage;
use driver::Backend;
use proto::v1;
use tests::stage::Stage;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Rescue,
    Unrescue,
}

impl Verb {
    async fn call(self, stage: &SimStage, request: &v1::RescueRequest) -> bool {
        let mut client = stage.client();
        match self {
            Self::Rescue => client.rescue(request.clone()).await.unwrap().changed,
            Self::Unrescue => client.unrescue("web1").await.unwrap().changed,
        }
    }
}

enum Ran {
    Whole,
    NoSuchEffect,
    NoSuchRecoveryEffect,
}

/// Calls the verb until the process dies after effect `at`. `false`: it came to its end first.
async fn crash(stage: &SimStage, verb: Verb, request: &v1::RescueRequest, at: usize) -> bool {
    stage.machine.crash_after(at);
    tokio::select! {
        () = stage.machine.crashed() => true,
        done = verb.call(stage, request) => {
            assert!(done);
            false
        }
    }
}

async fn schedule(case: Case, verb: Verb, at: usize, again: usize) -> Ran {
    let place = format!("{case:?} {verb:?}, crash after effect {at}, then after effect {again} of the recovery");
    let (mut stage, request) = case.make().await;
    let original = stage.domains.defined(uuid()).unwrap();
    let bare = stage.snapshot().await;
    if verb == Verb::Unrescue {
        assert!(Verb::Rescue.call(&stage, &request).await);
    }
    if !crash(&stage, verb, &request, at).await {
        return Ran::NoSuchEffect;
    }
    stage.kill();
    if again > 0 {
        stage.machine.crash_after(again);
        if stage.start_or_crash().await {
            return Ran::NoSuchRecoveryEffect;
        }
        stage.kill();
    }
    stage.start().await;

    // One of the two states, and wholly.
    let mut client = stage.client();
    let instance = client.instance(UUID).await.unwrap();
    match &instance.rescue {
        Some(rescue) => {
            assert_eq!(rescue.state(), v1::InstanceRescueState::Rescued, "{place}");
            assert_eq!(sources(&instance), case.expected(), "{place}");
            assert_eq!(instance.power(), v1::InstancePower::Running, "{place}");
        }
        None => {
            assert_eq!(stage.domains.defined(uuid()).unwrap(), original, "{place}");
            assert_eq!(instance.power() == v1::InstancePower::Running, case.runs, "{place}");
            let left = after(&bare, &stage).await;
            assert!(left.is_empty(), "{place}: something was left behind\n{left}");
        }
    }
    verb.call(&stage, &request).await;
    assert!(!verb.call(&stage, &request).await, "{place}: a third call changed something");
    if verb == Verb::Rescue {
        assert_eq!(sources(&client.instance(UUID).await.unwrap()), case.expected(), "{place}");
        assert!(Verb::Unrescue.call(&stage, &request).await, "{place}");
    }
    let left = after(&bare, &stage).await;
    assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    let open = client.running().await;
    assert!(open.is_empty(), "{place}: {open:?}");
    Ran::Whole
}

/// All crash points of one verb; returns how many schedules were run.
async fn sweep(case: Case, verb: Verb) -> usize {
    let mut schedules = 0;
    for at in 1.. {
        for again in 0.. {
            match schedule(case, verb, at, again).await {
                Ran::Whole => schedules += 1,
                Ran::NoSuchRecoveryEffect => break,
                Ran::NoSuchEffect => {
                    assert!(at > 5, "{case:?} {verb:?}: {} effects are too few to be true", at - 1);
                    return schedules;
                }
            }
        }
    }
    unreachable!("a verb has an end")
}

macro_rules! sweeps {
    ($($name:ident: $root:expr, $disk:ident, $layout:ident, $runs:literal;)*) => {
        $(
            mod $name {
                use super::*;

                const CASE: Case =
                    Case { root: $root, disk: Backend::$disk, layout: v1::RescueLayout::$layout, runs: $runs };

                #[tokio::test]
                async fn rescue() {
                    println!("{CASE:?} rescue: {} schedules", sweep(CASE, Verb::Rescue).await);
                }

                #[tokio::test]
                async fn unrescue() {
                    println!("{CASE:?} unrescue: {} schedules", sweep(CASE, Verb::Unrescue).await);
                }
            }
        )*
    };
}

sweeps! {
    file_running: Root::File, File, Classic, true;
    file_off: Root::File, File, Stable, false;
    lvm_running: Root::Attached(Backend::Lvm), Lvm, Stable, true;
    lvm_off: Root::Attached(Backend::Lvm), Lvm, Classic, false;
    iscsi_running: Root::Attached(Backend::Iscsi), Iscsi, Classic, true;
    iscsi_off: Root::Attached(Backend::Iscsi), Iscsi, Stable, false;
    rbd_running: Root::NativeRbd, Rbd, Classic, true;
    rbd_off: Root::Attached(Backend::Rbd), Rbd, Stable, false;
}
