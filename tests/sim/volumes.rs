//! Managed volumes when others had a hand in: copies, and names that changed.

use crate::machine::{DIRECTORY, SimStage, VG};
use driver::Backend;
use proto::v1;
use tests::{
    client::{Refused, manage},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;

#[tokio::test]
async fn a_copy_that_carries_the_id_is_not_the_volume() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let volume = stage.client().manage(manage(&locator)).await.unwrap().volume.unwrap();
    stage.machine.add_lv(VG, "a-copy", SIZE);
    for tag in [format!("mortar.id={}", volume.id), "mortar.origin=v".into(), "mortar.name=v".into()] {
        stage.machine.tag_lv(VG, "a-copy", &tag);
    }
    let found = stage.client().volumes.get(v1::GetVolumeRequest { id: volume.id.clone() }).await.unwrap();
    assert_eq!(found.into_inner(), volume);
    stage.machine.rename_lv(VG, volume.locator.rsplit('/').next().unwrap(), "renamed-by-hand");
    let both = stage.client().volumes.get(v1::GetVolumeRequest { id: volume.id.clone() }).await.map_err(Refused::from);
    let refused = both.unwrap_err();
    assert_eq!(refused.reason, "WRONG_STATE");
    assert!(refused.message.contains("a-copy") && refused.message.contains("renamed-by-hand"), "{}", refused.message);
}

#[tokio::test]
async fn a_rename_by_hand_does_not_lose_the_origin() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let volume = stage.client().manage(manage(&locator)).await.unwrap().volume.unwrap();
    stage.machine.rename_lv(VG, volume.locator.rsplit('/').next().unwrap(), "renamed-by-hand");
    let refused = stage.client().manage(manage(&format!("lvm:{VG}/renamed-by-hand"))).await.unwrap_err();
    assert_eq!(refused.reason, "ALREADY_EXISTS", "{}", refused.message);
    assert_eq!(stage.client().unmanage(&volume.id, false).await.unwrap().locator, locator);
}

#[tokio::test]
async fn files_are_found_where_they_were_managed() {
    let stage = SimStage::new().await;
    stage.machine.put_directory("/data");
    stage.machine.put_raw("/data/a.raw", SIZE);
    let volume = stage.client().manage(manage("file:/data/a.raw")).await.unwrap().volume.unwrap();
    assert_eq!(stage.client().volumes("").await.unwrap(), std::slice::from_ref(&volume));
    assert!(stage.client().volumes(&format!("file:{DIRECTORY}")).await.unwrap().is_empty());
    assert_eq!(stage.client().unmanage(&volume.id, false).await.unwrap().locator, "file:/data/a.raw");
}
