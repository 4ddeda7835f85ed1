//! Managed volumes when others had a hand in: copies, and names that changed.

use crate::machine::{CLUSTER, DIRECTORY, POOL, SimStage, VG};
use driver::Backend;
use proto::v1;
use tests::{
    client::{Refused, attach, manage},
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

#[tokio::test]
async fn a_pool_that_is_spelled_in_two_ways_shows_each_image_once() {
    let stage = SimStage::new().await;
    let image = stage.machine.add_image(CLUSTER, POOL, "", "a", SIZE);
    stage.machine.add_image(CLUSTER, POOL, "", "b", SIZE);
    let volume = stage.client().manage(manage(&format!("rbd:{POOL}/a"))).await.unwrap().volume.unwrap();
    stage.client().manage(manage(&format!("rbd:{POOL}/b?user=cinder"))).await.unwrap();
    let listed = stage.client().volumes("").await.unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    stage.machine.change_image(CLUSTER, &image, |image| image.name = "renamed-by-hand".into());
    let found = stage.client().volumes.get(v1::GetVolumeRequest { id: volume.id.clone() }).await.unwrap().into_inner();
    assert_eq!(found.locator, format!("rbd:{POOL}/renamed-by-hand"));
    assert_eq!(stage.client().unmanage(&volume.id, false).await.unwrap().locator, format!("rbd:{POOL}/a"));
}

#[tokio::test]
async fn a_place_that_cannot_be_looked_at_hides_no_other() {
    let mut stage = SimStage::new().await;
    stage.machine.add_cluster("gone", "127.0.0.9:6789");
    stage.machine.add_image("gone", POOL, "", "lost", SIZE);
    let lost = stage.client().manage(manage(&format!("rbd:{POOL}/lost?cluster=gone"))).await.unwrap().volume.unwrap();
    let lv = stage.volume(Backend::Lvm, "v", SIZE).await;
    let image = stage.volume(Backend::Rbd, "here", SIZE).await;
    host::Host::remove(&stage.machine, std::path::Path::new("/etc/ceph/gone.conf")).await.unwrap();

    let id = "9394b827-4ad0-488e-8df8-26476b3a8662";
    let request = v1::ManageRequest { id: id.into(), ..manage(&image) };
    let here = stage.client().manage(request).await.unwrap().volume.unwrap();
    let volume = stage.client().manage(manage(&lv)).await.unwrap().volume.unwrap();
    let listed = stage.client().volumes.list(v1::ListVolumesRequest::default()).await.unwrap().into_inner();
    let mut expected = [here, volume.clone()];
    expected.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(listed.volumes, expected);
    assert!(matches!(listed.problems.as_slice(), [one] if one.contains("cluster=gone") && one.contains("gone.conf")));

    // What is not found elsewhere may be where nobody can look.
    for id in [lost.id.as_str(), "00000000-0000-4000-8000-000000000000"] {
        let refused = stage.client().unmanage(id, false).await.unwrap_err();
        assert!(refused.reason == "WRONG_STATE" && refused.message.contains("gone.conf"), "{refused:?}");
    }
    stage.machine.rename_lv(VG, volume.locator.rsplit('/').next().unwrap(), "renamed-by-hand");
    assert_eq!(stage.client().unmanage(&volume.id, false).await.unwrap().locator, lv);
}

#[tokio::test]
async fn a_rename_leaves_it_to_each_attachment_how_it_reaches_the_cluster() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Rbd, "a", SIZE).await;
    stage.client().attach(attach("x", &locator)).await.unwrap();
    let other = v1::ManageRequest { allow_in_use: true, ..manage(&format!("{locator}?user=cinder")) };
    let volume = stage.client().manage(other).await.unwrap().volume.unwrap();
    let name = volume.locator.strip_suffix("?user=cinder").unwrap();
    assert_eq!(stage.client().get("x").await.unwrap().locator, name);
    stage.client().unmanage(&volume.id, false).await.unwrap();
    assert_eq!(stage.client().get("x").await.unwrap().locator, locator);
}
