//! What the doctor says of rescues, and what it takes away when nobody knows of them any more.

use super::{Case, Root, UUID, image, small, uuid};
use crate::{doctor::lose_the_journal, machine::DIRECTORY};
use driver::Backend;
use proto::v1::{self, HostObjectKind as Kind, HostObjectState as State};
use tests::{client::Client, stage::Stage};

async fn diagnose(mut client: Client, repair: bool) -> Vec<v1::HostObject> {
    client.host.diagnose(v1::DiagnoseRequest { repair, ..Default::default() }).await.unwrap().into_inner().objects
}

#[track_caller]
fn state(objects: &[v1::HostObject], kind: Kind) -> (State, String) {
    let found: Vec<_> = objects.iter().filter(|object| object.kind() == kind).collect();
    assert_eq!(found.len(), 1, "{kind:?}: {objects:#?}");
    (found[0].state(), found[0].why.clone())
}

#[tokio::test]
async fn what_a_rescue_has_is_ours() {
    for (root, disk) in [
        (Root::File, Backend::File),
        (Root::Attached(Backend::Lvm), Backend::Lvm),
        (Root::NativeRbd, Backend::Rbd),
        (Root::Attached(Backend::Rbd), Backend::Rbd),
    ] {
        let (stage, request) = Case { root, disk, layout: v1::RescueLayout::Classic, runs: true }.make().await;
        stage.client().rescue(request).await.unwrap();
        let objects = diagnose(stage.client(), false).await;
        for kind in [Kind::RescueDisk, Kind::Seed] {
            assert_eq!(state(&objects, kind), (State::Ours, "the rescue of web1".into()));
        }
        let amiss = |object: &&v1::HostObject| matches!(object.state(), State::Orphan | State::Stale);
        assert_eq!(objects.iter().find(amiss), None);
        let ours = stage.domains.defined(uuid()).unwrap();
        stage.domains.put(&ours.replace("<devices>", "<!-- his --><devices>"));
        let objects = diagnose(stage.client(), true).await;
        let record = objects.iter().find(|object| object.name == format!("rescue {UUID}")).unwrap();
        assert!(record.state() == State::Stale && record.why.contains("--discard-changes"), "{record:?}");
        assert_eq!(state(&objects, Kind::RescueDisk).0, State::Ours, "a repair touches it not");
    }
}

#[tokio::test]
async fn what_nobody_knows_of_is_taken_away_once_nobody_uses_it() {
    let mut stage = small(true).await;
    stage.client().rescue(image()).await.unwrap();
    lose_the_journal(&mut stage).await;
    let objects = diagnose(stage.client(), false).await;
    for kind in [Kind::RescueDisk, Kind::Seed] {
        assert_eq!(state(&objects, kind).0, State::Orphan);
    }
    stage.domains.power(&stage.machine, uuid(), false);
    let objects = diagnose(stage.client(), true).await;
    for kind in [Kind::RescueDisk, Kind::Seed] {
        let gone: Vec<_> = objects.iter().filter(|object| object.kind() == kind).collect();
        assert_eq!(gone[0].repair(), v1::RepairOutcome::Removed, "{gone:?}");
    }
    let left = diagnose(stage.client(), false).await;
    assert!(!left.iter().any(|object| matches!(object.kind(), Kind::RescueDisk | Kind::Seed)), "{left:#?}");
    assert!(!stage.machine.snapshot().contains(&format!("{DIRECTORY}/rescue-")));
    let refused = stage.client().rescue(image()).await.unwrap_err();
    assert!(refused.message.contains("a rescue that this agent knows nothing of"), "{refused:?}");
}
