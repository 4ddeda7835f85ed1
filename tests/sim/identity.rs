//! The right device or none: however a volume is named, and whatever took its place meanwhile.

use crate::machine::{CLUSTER, DIRECTORY, IQN, POOL, PORTAL, SimStage, VG};
use driver::Backend;
use host::sim::iscsi::LogicalUnit;
use proto::v1::{self, AttachmentState};
use tests::{
    client::{attach, manage},
    reliability::{Row, Where, note},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;
const OTHER: &str = "6001405fffffffffffffffffffffffff";

#[tokio::test]
async fn one_volume_by_two_names_is_refused() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.machine.add_target(IQN, &[PORTAL, "[::1]:3260"]);
    stage.machine.map_lun(IQN, 0, LogicalUnit::disk(OTHER, SIZE));
    stage.client().attach(attach("a", &locator)).await.unwrap();
    let by_portal = format!("iscsi://[::1]/{IQN}/0");
    let by_case = locator.replace(":t1", ":T1");
    for other in [by_portal, by_case] {
        let refused = stage.client().attach(attach("b", &other)).await.unwrap_err();
        assert_eq!(refused.reason, "WRONG_STATE", "{}", refused.message);
    }
    assert_eq!(stage.client().list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_file_has_one_name_however_it_is_reached() {
    let mut stage = SimStage::new().await;
    stage.volume(Backend::File, "v", SIZE).await;
    stage.machine.put_link("/volumes", DIRECTORY);
    let first = stage.client().attach(attach("a", "file:/volumes/v.raw")).await.unwrap().attachment.unwrap();
    assert_eq!(first.locator, format!("file:{DIRECTORY}/v.raw"));
    assert!(!stage.client().attach(attach("a", &first.locator)).await.unwrap().changed);
    let second = stage.client().attach(attach("b", &first.locator)).await.unwrap().attachment.unwrap();
    assert_eq!(first.path, second.path);
    stage.client().detach("a").await.unwrap();
    assert_eq!(stage.client().get("b").await.unwrap().state(), AttachmentState::Ready);
    assert!(stage.client().detach("file:/volumes/v.raw").await.unwrap().changed);
}

#[tokio::test]
async fn an_id_does_not_move_to_what_took_the_place_of_its_volume() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.client().attach(attach("a", &locator)).await.unwrap();
    // While it is attached: the device is stale, and says so.
    stage.machine.map_lun(IQN, 0, LogicalUnit::disk(OTHER, SIZE));
    let now = stage.client().get("a").await.unwrap();
    assert_eq!(now.state(), AttachmentState::Broken);
    assert!(now.problem.contains(&OTHER[..20]), "{}", now.problem);
    let refused = stage.client().attach(attach("a", &locator)).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{}", refused.message);

    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let before = stage.snapshot().await;
    stage.client().attach(attach("a", &locator)).await.unwrap();
    stage.client().detach("a").await.unwrap();
    assert_eq!(stage.snapshot().await, before);
    stage.client().attach(v1::AttachRequest { persistent: true, ..attach("a", &locator) }).await.unwrap();
    stage.kill();
    stage.machine.reboot();
    stage.machine.recreate_lv(VG, "v");
    stage.start().await;
    let again = v1::AttachRequest { persistent: true, ..attach("a", &locator) };
    let refused = stage.client().attach_patiently(again).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{}", refused.message);
    assert!(stage.machine.lv_device(VG, "v").is_none(), "it was left active");
}

#[tokio::test]
async fn a_detach_that_crashed_takes_nothing_from_a_new_user() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let there = stage.client().attach(attach("a", &locator)).await.unwrap().attachment.unwrap();
        let attached = stage.snapshot().await;
        // After the intent.
        stage.machine.crash_after(1);
        let mut client = stage.client();
        let call = tokio::spawn(async move { client.detach("a").await });
        stage.machine.crashed().await;
        call.abort();
        stage.kill();
        stage.occupy(&there.path).await;
        stage.start().await;
        stage.vacate(&there.path).await;
        assert_eq!(stage.snapshot().await, attached, "{backend}");
        let operations = stage.client().operations.list(v1::ListOperationsRequest::default()).await.unwrap();
        assert_eq!(operations.into_inner().operations[0].state(), v1::OperationState::Undone, "{backend}");
        assert!(stage.client().detach("a").await.unwrap().changed, "{backend}");
    }
}

/// One volume as LUN 0 of two targets, the first at 127.0.0.1, the other at 127.0.0.2; and a multipathd.
fn by_two_targets(stage: &SimStage) -> [&'static str; 2] {
    let targets = ["iqn.2026-11.org.example:one", "iqn.2026-11.org.example:other"];
    for (iqn, portal) in targets.into_iter().zip(["127.0.0.1:3260", "127.0.0.2:3260"]) {
        stage.machine.add_target(iqn, &[portal]);
        stage.machine.map_lun(iqn, 0, LogicalUnit::disk(OTHER, SIZE));
    }
    stage.machine.run_multipathd(true);
    targets
}

#[tokio::test]
async fn a_locator_that_may_mean_an_attached_volume_does_not_pass_for_gone() {
    let stage = SimStage::new().await;
    let [one, other] = by_two_targets(&stage);
    let both = format!("iscsi://127.0.0.1/{one}/0,127.0.0.2/{other}/0");
    stage.client().attach(attach("a", &both)).await.unwrap();
    let target = Some(v1::detach_request::Target::Locator(format!("iscsi://127.0.0.2/{other}/0")));
    let request = v1::DetachRequest { target, ..v1::DetachRequest::default() };
    let refused = stage.client().attachments.detach(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("name it by its id"), "{}", refused.message());
    assert!(stage.client().detach("a").await.unwrap().changed);
}

#[tokio::test]
async fn one_volume_is_attached_by_one_locator() {
    let stage = SimStage::new().await;
    let [one, other] = by_two_targets(&stage);
    let (single, by_other) = (format!("iscsi://127.0.0.1/{one}/0"), format!("iscsi://127.0.0.2/{other}/0"));
    let both = format!("iscsi://127.0.0.1/{one}/0,127.0.0.2/{other}/0");
    let bare = stage.snapshot().await;
    stage.client().attach(attach("a", &single)).await.unwrap();
    let before = stage.snapshot().await;
    // The first is known to overlap; of the second only the device tells.
    for locator in [&both, &by_other] {
        let refused = stage.client().attach(attach("b", locator)).await.unwrap_err();
        assert_eq!(refused.reason, "WRONG_STATE", "{}", refused.message);
        assert!(refused.message.contains("attach it by the same locator"), "{}", refused.message);
        assert_eq!(stage.snapshot().await, before, "{locator}");
    }
    assert!(stage.client().detach("a").await.unwrap().changed);
    assert_eq!(stage.snapshot().await, bare);
}

/// A volume is managed, and then another one has its managed name.
#[tokio::test]
async fn what_took_a_managed_name() {
    const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";
    let named = format!("volume-{ID}");
    let place = format!("{DIRECTORY}/{named}");
    type Replace<'a> = &'a dyn Fn(&SimStage);
    let cases: [(&str, Backend, Replace<'_>); 4] = [
        ("the LV is recreated under its managed name", Backend::Lvm, &|stage| stage.machine.recreate_lv(VG, &named)),
        ("another image takes the managed name", Backend::Rbd, &|stage| {
            stage.machine.rename_image(CLUSTER, POOL, &named, "aside");
            stage.machine.add_image(CLUSTER, POOL, "", &named, SIZE);
        }),
        ("another file takes the managed name", Backend::File, &|stage| stage.machine.put_raw(&place, SIZE)),
        ("another file takes the managed name and the number", Backend::File, &|stage| {
            stage.machine.recreate_raw(&place);
        }),
    ];
    for (attempt, backend, replace) in cases {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        let volume = stage.client().manage(v1::ManageRequest { id: ID.into(), ..manage(&locator) }).await.unwrap();
        let managed = volume.volume.unwrap();
        let was = stage.client().attach(attach("before", &managed.locator)).await.unwrap().attachment.unwrap().identity;
        stage.client().detach("before").await.unwrap();
        replace(&stage);
        stage.kill_and_restart().await;
        let before = stage.snapshot().await;
        let refused = stage.client().attach(attach("a", &managed.locator)).await.unwrap_err();
        assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{attempt}: {}", refused.message);
        let both = refused.message.split_once(", expected ").unwrap();
        assert!(both.1.starts_with(&was), "{attempt}: {}", refused.message);
        let now = format!(" is {}:", was.split(':').next().unwrap());
        assert!(both.0.contains(&now) && both.0.contains(ID), "{attempt}: {}", refused.message);
        assert_eq!(stage.snapshot().await, before, "{attempt}: something was left behind");
        assert!(stage.client().list().await.unwrap().is_empty(), "{attempt}");
        if backend == Backend::Lvm {
            let request = crate::export::request("a", &managed.locator);
            assert_eq!(stage.client().export(request).await.unwrap_err().reason, "IDENTITY_MISMATCH", "{attempt}");
        }
        note(&Row::WrongDevice {
            attempt: attempt.into(),
            driver: backend.to_string(),
            shown: Where::Simulated,
            refusal: refused.message,
        });
        // Who means it says so.
        assert!(stage.client().unmanage(ID, false).await.unwrap().changed, "{attempt}");
        assert!(!stage.client().unmanage(ID, false).await.unwrap().changed, "{attempt}");
        assert!(stage.client().attach(attach("a", &managed.locator)).await.unwrap().changed, "{attempt}");
    }
}

/// Without a memory of it, what the storage says is a managed volume is one.
#[tokio::test]
async fn a_managed_volume_that_the_journal_does_not_know() {
    const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";
    let stage = SimStage::new().await;
    let named = format!("volume-{ID}");
    stage.machine.add_lv(VG, &named, SIZE);
    stage.machine.tag_lv(VG, &named, &format!("mortar.id={ID}"));
    stage.machine.tag_lv(VG, &named, "mortar.origin=v");
    assert!(stage.client().attach(attach("a", &format!("lvm:{VG}/{named}"))).await.unwrap().changed);
}

/// Both ways of a map lead to another volume now.
#[tokio::test]
async fn another_volume_behind_a_multipath_map() {
    let stage = SimStage::new().await;
    let [one, other] = by_two_targets(&stage);
    let both = format!("iscsi://127.0.0.1/{one}/0,127.0.0.2/{other}/0");
    let request = v1::AttachRequest { all_paths: true, ..attach("a", &both) };
    let was = stage.client().attach(request.clone()).await.unwrap().attachment.unwrap().identity;
    for iqn in [one, other] {
        stage.machine.map_lun(iqn, 0, LogicalUnit::disk("6001405eeeeeeeeeeeeeeeeeeeeeeeee", SIZE));
    }
    let refused = stage.client().attach(request).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{}", refused.message);
    assert!(refused.message.contains(was.trim_start_matches("wwn:")), "{}", refused.message);
    assert!(refused.message.contains("eeeeeeeeeeee"), "{}", refused.message);
    let now = stage.client().get("a").await.unwrap();
    assert_eq!(now.state(), AttachmentState::Broken, "{now:?}");
    note(&Row::WrongDevice {
        attempt: "both ways of a map lead to another volume".into(),
        driver: Backend::Iscsi.to_string(),
        shown: Where::Simulated,
        refusal: refused.message,
    });
}

/// Two maps are attached, and the target exchanges what it shows by the second way of each.
#[tokio::test]
async fn two_attached_maps_whose_paths_are_exchanged() {
    const SECOND: &str = "6001405ddddddddddddddddddddddddd";
    let stage = SimStage::new().await;
    let [one, other] = by_two_targets(&stage);
    for iqn in [one, other] {
        stage.machine.map_lun(iqn, 1, LogicalUnit::disk(SECOND, SIZE));
    }
    let bare = stage.snapshot().await;
    let request = |id: &str, lun: u16| {
        let both = format!("iscsi://127.0.0.1/{one}/{lun},127.0.0.2/{other}/{lun}");
        v1::AttachRequest { all_paths: true, ..attach(id, &both) }
    };
    for (id, lun) in [("a", 0), ("b", 1)] {
        assert!(stage.client().attach(request(id, lun)).await.unwrap().changed);
    }
    stage.machine.map_lun(other, 0, LogicalUnit::disk(SECOND, SIZE));
    stage.machine.map_lun(other, 1, LogicalUnit::disk(OTHER, SIZE));
    for (id, lun, was, now) in [("a", 0, OTHER, SECOND), ("b", 1, SECOND, OTHER)] {
        let refused = stage.client().attach(request(id, lun)).await.unwrap_err();
        assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{id}: {}", refused.message);
        assert!(refused.message.contains(was) && refused.message.contains(now), "{id}: {}", refused.message);
        let shown = stage.client().get(id).await.unwrap();
        assert_eq!(shown.state(), AttachmentState::Broken, "{shown:?}");
        note(&Row::WrongDevice {
            attempt: format!("two maps whose paths are exchanged, map {}", lun + 1),
            driver: Backend::Iscsi.to_string(),
            shown: Where::Simulated,
            refusal: refused.message,
        });
    }
    // What is cached for one of them reaches the other by no way.
    for id in ["a", "b"] {
        assert!(stage.client().detach(id).await.unwrap().changed, "{id}");
    }
    stage.machine.map_lun(other, 0, LogicalUnit::disk(OTHER, SIZE));
    stage.machine.map_lun(other, 1, LogicalUnit::disk(SECOND, SIZE));
    assert_eq!(stage.snapshot().await, bare);
}

/// An image of the same name in another namespace of the pool is another image, to each call.
#[tokio::test]
async fn an_image_of_the_same_name_in_another_namespace() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Rbd, "v", SIZE).await;
    stage.machine.add_image(CLUSTER, POOL, "tenant", "v", SIZE);
    let theirs = format!("rbd:{POOL}/tenant/v");
    let bare = stage.snapshot().await;
    let ours = stage.client().attach(attach("a", &locator)).await.unwrap().attachment.unwrap();
    let refused = stage.client().attach(attach("a", &theirs)).await.unwrap_err();
    assert_eq!(refused.reason, "ALREADY_EXISTS", "{}", refused.message);
    assert!(refused.message.contains(&locator), "{}", refused.message);
    note(&Row::WrongDevice {
        attempt: "an image of the same name in another namespace, by the id of the first".into(),
        driver: Backend::Rbd.to_string(),
        shown: Where::Simulated,
        refusal: refused.message,
    });
    assert!(!stage.client().detach(&theirs).await.unwrap().changed);
    let other = stage.client().attach(attach("b", &theirs)).await.unwrap().attachment.unwrap();
    assert!(other.path != ours.path && other.identity != ours.identity, "{ours:?} {other:?}");
    assert!(stage.client().detach(&theirs).await.unwrap().changed);
    assert_eq!(stage.client().get("a").await.unwrap().state(), AttachmentState::Ready);
    assert!(stage.client().detach("a").await.unwrap().changed);
    assert_eq!(stage.snapshot().await, bare);
}

/// The name of a cluster stands for another one since: an image of the same name in a pool of the same name is another image.
#[tokio::test]
async fn an_image_of_the_same_name_in_another_cluster() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Rbd, "v", SIZE).await;
    let request = v1::AttachRequest { persistent: true, ..attach("a", &locator) };
    let was = stage.client().attach(request.clone()).await.unwrap().attachment.unwrap().identity;
    stage.machine.add_cluster("two", "127.0.0.2:6789");
    stage.machine.add_image("two", POOL, "", "v", SIZE);
    stage.kill();
    stage.machine.move_tree("/etc/ceph/two.conf", "/etc/ceph/ceph.conf");
    stage.machine.reboot();
    stage.start().await;
    let refused = stage.client().attach_patiently(request).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{}", refused.message);
    let (now, expected) = refused.message.split_once(", expected ").unwrap();
    assert!(expected.starts_with(&was) && now.contains(" is rbd:"), "{}", refused.message);
    assert!(stage.machine.mapped_images().is_empty(), "it was left mapped");
    note(&Row::WrongDevice {
        attempt: "an image of the same name in another cluster".into(),
        driver: Backend::Rbd.to_string(),
        shown: Where::Simulated,
        refusal: refused.message,
    });
}
