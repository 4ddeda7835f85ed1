//! A crash after every effect of every verb, another after every effect of the recovery, and then the caller's retry:
//! each operation is finished or undone, and nothing is left that nobody owns.

use crate::machine::SimStage;
use driver::Backend;
use proto::v1;
use std::collections::BTreeSet;
use tests::{
    client::{Client, attach, manage},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";

/// What is crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Attach,
    Detach,
    Manage,
    Unmanage,
}

impl Verb {
    /// The call, and whether it changed anything.
    async fn call(self, mut client: Client, locator: &str) -> bool {
        match self {
            Self::Attach => client.attach(attach("a", locator)).await.unwrap().changed,
            Self::Detach => client.detach("a").await.unwrap().changed,
            Self::Manage => {
                let request = v1::ManageRequest { id: ID.into(), ..manage(locator) };
                client.manage(request).await.unwrap().changed
            }
            Self::Unmanage => client.unmanage(ID, false).await.unwrap().changed,
        }
    }

    /// What has to be done before it can be called.
    fn before(self) -> Option<Self> {
        match self {
            Self::Attach | Self::Manage => None,
            Self::Detach => Some(Self::Attach),
            Self::Unmanage => Some(Self::Manage),
        }
    }

    /// What takes it back.
    fn back(self) -> Self {
        match self {
            Self::Attach => Self::Detach,
            Self::Detach => Self::Attach,
            Self::Manage => Self::Unmanage,
            Self::Unmanage => Self::Manage,
        }
    }
}

/// Calls `verb` until the process dies after effect `at`. `false`: it came to its end first.
async fn crash(stage: &SimStage, verb: Verb, locator: &str, at: usize) -> bool {
    stage.machine.crash_after(at);
    let (client, locator) = (stage.client(), locator.to_owned());
    let call = tokio::spawn(async move { verb.call(client, &locator).await });
    tokio::select! {
        () = stage.machine.crashed() => true,
        done = call => {
            assert!(done.unwrap());
            false
        }
    }
}

/// All crash points of one verb; returns how many schedules were run.
async fn sweep(backend: Backend, verb: Verb) -> usize {
    let mut schedules = 0;
    for at in 1.. {
        // The recovery runs to its end (0), or crashes after its first effect, its second, …
        for again in 0.. {
            match schedule(backend, verb, at, again).await {
                Ran::Whole => schedules += 1,
                Ran::NoSuchRecoveryEffect => break,
                Ran::NoSuchEffect => {
                    assert!(at > 3, "{backend} {verb:?}: {} effects are too few to be true", at - 1);
                    return schedules;
                }
            }
        }
    }
    unreachable!("a verb has an end")
}

enum Ran {
    Whole,
    NoSuchEffect,
    NoSuchRecoveryEffect,
}

async fn schedule(backend: Backend, verb: Verb, at: usize, again: usize) -> Ran {
    let place = format!("{backend} {verb:?}, crash after effect {at}, then after effect {again} of the recovery");
    let mut stage = SimStage::new().await;
    let locator = stage.volume(backend, "v", SIZE).await;
    let bare = stage.snapshot().await;
    if let Some(before) = verb.before() {
        assert!(before.call(stage.client(), &locator).await);
    }
    let start = stage.snapshot().await;
    if !crash(&stage, verb, &locator, at).await {
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

    // The retry answers, the next one has nothing to do, and the way back leads to where it all began.
    verb.call(stage.client(), &locator).await;
    assert_ne!(stage.snapshot().await, start, "{place}: the repeated call did nothing");
    if verb.before().is_some() {
        let left = difference(&bare, &stage.snapshot().await);
        assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    }
    assert!(!verb.call(stage.client(), &locator).await, "{place}: a third call changed something");
    assert!(verb.back().call(stage.client(), &locator).await, "{place}");
    let left = difference(&start, &stage.snapshot().await);
    assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    let unfinished = v1::ListOperationsRequest { running_only: true, limit: 0 };
    let open = stage.client().operations.list(unfinished).await.unwrap().into_inner().operations;
    assert!(open.is_empty(), "{place}: {open:?}");
    Ran::Whole
}

/// The lines that only one of them has.
fn difference(before: &str, after: &str) -> String {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let gone = before.difference(&after).map(|line| format!("- {line}\n"));
    let new = after.difference(&before).map(|line| format!("+ {line}\n"));
    gone.chain(new).collect()
}

macro_rules! sweeps {
    ($($name:ident: $backend:ident $verb:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let schedules = sweep(Backend::$backend, Verb::$verb).await;
                println!("{} {:?}: {schedules} schedules", Backend::$backend, Verb::$verb);
                assert!(schedules >= 10, "{schedules} schedules are too few to be true");
            }
        )*
    };
}

sweeps! {
    file_attach: File Attach;
    file_detach: File Detach;
    file_manage: File Manage;
    file_unmanage: File Unmanage;
    iscsi_attach: Iscsi Attach;
    iscsi_detach: Iscsi Detach;
    lvm_attach: Lvm Attach;
    lvm_detach: Lvm Detach;
    lvm_manage: Lvm Manage;
    lvm_unmanage: Lvm Unmanage;
    rbd_attach: Rbd Attach;
    rbd_detach: Rbd Detach;
    rbd_manage: Rbd Manage;
    rbd_unmanage: Rbd Unmanage;
}
