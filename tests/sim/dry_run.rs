//! A dry run of a manage: it refuses what the real call refuses, says what that would do, and changes nothing on the host or
//! in the journal. Those of a rescue and of a repair stand with them.

use crate::machine::{SimStage, VG};
use driver::Backend;
use proto::v1;
use tests::{
    client::{attach, manage},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";

/// What an operator could see before and after: the host, and what the journal knows.
async fn seen(stage: &SimStage) -> (String, String) {
    let mut client = stage.client();
    let operations = client.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner();
    let volumes = client.volumes("").await.unwrap();
    (stage.snapshot().await, format!("{operations:#?}{volumes:#?}"))
}

#[tokio::test]
async fn what_is_told_of_a_manage_is_what_comes() {
    for backend in [Backend::Lvm, Backend::Rbd, Backend::File] {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        stage.client().attach(attach("a", &locator)).await.unwrap();
        let before = seen(&stage).await;
        let dry = v1::ManageRequest { id: ID.into(), dry_run: true, ..manage(&locator) };
        let refused = stage.client().manage(dry.clone()).await.unwrap_err();
        assert_eq!(refused.reason, "IN_USE", "{backend}: {}", refused.message);

        let dry = v1::ManageRequest { allow_in_use: true, ..dry };
        let told = stage.client().manage(dry.clone()).await.unwrap();
        assert_eq!(seen(&stage).await, before, "{backend}");
        assert!(told.changed && told.operation_id.is_empty(), "{told:?}");
        assert!(told.would[1].starts_with("rename it to ") && told.would[2].contains("attached as a"), "{told:?}");

        let real = v1::ManageRequest { dry_run: false, ..dry.clone() };
        let done = stage.client().manage(real).await.unwrap();
        assert_eq!(done.volume, told.volume, "{backend}: what was told is not what came");
        assert!(done.would.is_empty());
        let again = stage.client().manage(dry.clone()).await.unwrap();
        assert!(!again.changed && again.would.is_empty(), "{again:?}");
        for wrong in [manage(&format!("{locator}-not")), v1::ManageRequest { id: "x".into(), ..dry }] {
            let dry = v1::ManageRequest { dry_run: true, ..wrong.clone() };
            let dry = stage.client().manage(dry).await.unwrap_err();
            let real = stage.client().manage(v1::ManageRequest { dry_run: false, ..wrong }).await.unwrap_err();
            assert_eq!((dry.code, dry.message), (real.code, real.message));
        }
    }
}

#[tokio::test]
async fn a_managed_name_that_is_taken_is_found_out() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    stage.machine.add_lv(VG, &format!("volume-{ID}"), SIZE);
    for dry_run in [true, false] {
        let request = v1::ManageRequest { id: ID.into(), dry_run, ..manage(&locator) };
        let refused = stage.client().manage(request).await.unwrap_err();
        assert_eq!(refused.reason, "ALREADY_EXISTS", "{}", refused.message);
    }
}
