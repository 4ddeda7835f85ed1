//! Exports over gRPC: the same answer to the same call, two writers nowhere, and a crash after any effect.

use crate::machine::{SimStage, VG};
use driver::Backend;
use host::User;
use proto::v1;
use std::time::Duration;
use tests::{
    client::{Answer, attach, manage},
    reliability::{Row, Sweep, note},
    stage::Stage,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SIZE: u64 = 16 << 20;
const INITIATOR: &str = "iqn.2026-11.org.example:other";
const PORTAL: &str = "10.0.0.1:3260";
const VOLUME_ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";

pub(crate) fn request(id: &str, locator: &str) -> v1::ExportRequest {
    v1::ExportRequest {
        id: id.into(),
        locator: locator.into(),
        initiator: INITIATOR.into(),
        ..v1::ExportRequest::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, words: &str) {
    let refused = answer.unwrap_err();
    assert!(refused.code == code && refused.message.contains(words), "{refused:?}");
}

/// Whether the initiator is let in with what the connection_info says.
fn login(stage: &SimStage, connection_info: &str) -> Result<String, &'static str> {
    let info: serde_json::Value = serde_json::from_str(connection_info).unwrap();
    let text = |key: &str| info["data"][key].as_str().unwrap().to_owned();
    let (target, user, password) = (text("target_iqn"), text("auth_username"), text("auth_password"));
    let given = (user.as_str(), password.as_str());
    let initiator = "iqn.2026-11.org.example:Other";
    stage.machine.initiator_login(&target, &text("target_portal"), initiator, given, "10.0.0.2")?;
    Ok(target)
}

/// A stage with an LV, whose host has its key already: that stays.
async fn stage() -> (SimStage, String) {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    stage.machine.put_file(stage.state_directory().join("export.key"), "01".repeat(32));
    // It comes with the first export and stays.
    let fabric = std::path::Path::new("/sys/kernel/config/target/iscsi");
    host::Host::make_directory(&stage.machine, fabric).await.unwrap();
    (stage, locator)
}

/// Looks until the export is served, and the operation that did it has ended.
#[expect(clippy::disallowed_methods, reason = "from outside, there is nothing to wait on")]
async fn until_served(stage: &SimStage, id: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = stage.client().exported(id).await.unwrap();
        let running = v1::ListOperationsRequest { running_only: true, limit: 0 };
        let open = stage.client().operations.list(running).await.unwrap().into_inner().operations;
        if now.ready && open.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_same_call_gives_the_same_target_and_the_same_password() {
    let (stage, locator) = stage().await;
    let mut client = stage.client();
    let before = stage.snapshot().await;
    let first = client.export(request("a", &locator)).await.unwrap();
    let export = first.export.clone().unwrap();
    assert!(first.changed && export.ready, "{export:?}");
    assert_eq!((export.portals.as_slice(), export.size_bytes), ([PORTAL.to_owned()].as_slice(), SIZE));
    assert_eq!(export.target, "iqn.2026-11.org.example:simulated:export-a");
    assert!(export.scsi_wwn.starts_with("36001405"), "{export:?}");
    for id in ["a", ""] {
        let again = client.export(request(id, &locator)).await.unwrap();
        assert!(!again.changed);
        assert_eq!((again.connection_info, again.export), (first.connection_info.clone(), first.export.clone()));
    }
    let other = v1::ExportRequest { initiator: "iqn.2026-11.org.example:third".into(), ..request("a", &locator) };
    refused(client.export(other.clone()).await, Code::AlreadyExists, "unexport it first");
    let nobody = v1::ExportRequest { id: String::new(), ..other.clone() };
    refused(client.export(nobody).await, Code::FailedPrecondition, "exported as a to iqn.2026-11.org.example:other");
    let other = v1::ExportRequest { id: "b".into(), ..other };
    refused(client.export(other).await, Code::FailedPrecondition, "exported as a to iqn.2026-11.org.example:other");

    let target = login(&stage, &first.connection_info).unwrap();
    assert_eq!(client.exported("a").await.unwrap().sessions, ["iqn.2026-11.org.example:other at 10.0.0.2"]);
    refused(client.unexport("a").await, Code::FailedPrecondition, "other at 10.0.0.2");
    stage.machine.initiator_logout(&target, INITIATOR);
    assert!(client.unexport(&locator).await.unwrap().changed);
    assert_eq!(stage.snapshot().await, before);
    for target in ["a", &locator] {
        assert!(!client.unexport(target).await.unwrap().changed);
    }
    refused(client.exported("a").await, Code::NotFound, "export a");

    // A new export is a new secret, of the same volume.
    let second = client.export(request("a", &locator)).await.unwrap();
    assert_ne!(second.connection_info, first.connection_info);
    assert_eq!(second.export.unwrap().scsi_wwn, export.scsi_wwn);
    assert!(login(&stage, &first.connection_info).is_err(), "the old password still opens");
}

#[tokio::test]
async fn no_volume_has_two_writers() {
    let (mut stage, locator) = stage().await;
    let mut client = stage.client();
    client.attach(attach("here", &locator)).await.unwrap();
    refused(client.export(request("a", &locator)).await, Code::FailedPrecondition, "attached as here");
    client.detach("here").await.unwrap();

    client.export(request("a", &locator)).await.unwrap();
    refused(client.attach(attach("here", &locator)).await, Code::FailedPrecondition, "exported as a to");
    client.unexport("a").await.unwrap();

    // Active before, and open.
    let open = stage.volume(Backend::Lvm, "open", SIZE).await;
    stage.machine.activate_lv(VG, "open", false);
    let device = stage.machine.lv_device(VG, "open").unwrap();
    stage.machine.engage(&device, User::Opener { pid: 7, command: "qemu".into() });
    refused(client.export(request("b", &open)).await, Code::FailedPrecondition, "open by qemu (pid 7)");
    stage.machine.release(&device);
    client.export(request("b", &open)).await.unwrap();
    client.unexport("b").await.unwrap();
    client.attach(attach("c", &open)).await.unwrap();
}

#[tokio::test]
async fn nor_by_another_name() {
    let (mut stage, locator) = stage().await;
    let mut client = stage.client();
    client.export(request("a", &locator)).await.unwrap();
    stage.machine.rename_lv(VG, "v", "renamed");
    let renamed = format!("lvm:{VG}/renamed");
    refused(client.attach(attach("here", &renamed)).await, Code::FailedPrecondition, "exported as a to");
    refused(client.export(request("b", &renamed)).await, Code::FailedPrecondition, "exported as a to");

    let other = stage.volume(Backend::Lvm, "w", SIZE).await;
    client.attach(attach("there", &other)).await.unwrap();
    stage.machine.rename_lv(VG, "w", "renamed-too");
    let renamed = format!("lvm:{VG}/renamed-too");
    refused(client.export(request("c", &renamed)).await, Code::FailedPrecondition, "attached as there");

    // By somebody at the shell.
    let open = stage.volume(Backend::Lvm, "open", SIZE).await;
    stage.machine.activate_lv(VG, "open", false);
    let device = stage.machine.lv_device(VG, "open").unwrap();
    stage.machine.engage(&device, User::Export { by: "LIO", name: "iblock_0/theirs".into() });
    refused(client.attach(attach("e", &open)).await, Code::FailedPrecondition, "exported by LIO as iblock_0/theirs");
    stage.machine.release(&device);
    stage.machine.engage(&device, User::Opener { pid: 7, command: "qemu".into() });
    client.attach(attach("e", &open)).await.unwrap();
}

#[tokio::test]
async fn an_initiators_name_has_no_case() {
    let (stage, locator) = stage().await;
    let shouting = v1::ExportRequest { initiator: "iqn.2026-11.org.example:Other".into(), ..request("a", &locator) };
    let first = stage.client().export(shouting.clone()).await.unwrap();
    assert_eq!(first.export.unwrap().initiator, INITIATOR);
    login(&stage, &first.connection_info).unwrap();
    assert!(!stage.client().export(shouting).await.unwrap().changed);
    assert!(!stage.client().export(request("a", &locator)).await.unwrap().changed);
}

#[tokio::test]
async fn what_cannot_be_exported_is_refused() {
    let (mut stage, locator) = stage().await;
    let mut client = stage.client();
    let file = stage.volume(Backend::File, "f", SIZE).await;
    let before = stage.snapshot().await;
    refused(client.export(request("a", &file)).await, Code::Unimplemented, "only logical volumes");
    refused(client.export(request("A", &locator)).await, Code::InvalidArgument, "an export's id");
    refused(client.export(request("a", "lvm:vg0/none")).await, Code::NotFound, "none");
    let foreign = v1::ExportRequest { portals: vec!["10.9.9.9".into()], ..request("a", &locator) };
    refused(client.export(foreign).await, Code::InvalidArgument, "10.9.9.9 is no address of this host");
    let nobody = v1::ExportRequest { initiator: String::new(), ..request("a", &locator) };
    refused(client.export(nobody).await, Code::InvalidArgument, "iqn");
    stage.machine.fail_next("tpgt_1/enable 1", host::Error::Busy { path: "/x".into() });
    assert!(client.export(request("a", &locator)).await.is_err());
    assert_eq!(stage.snapshot().await, before, "a failed export left something");
    stage.machine.unload_target();
    refused(client.export(request("a", &locator)).await, Code::Unimplemented, "modprobe target_core_mod");
}

#[tokio::test]
async fn an_export_survives_a_reboot_and_a_rename() {
    let (mut stage, locator) = stage().await;
    let read_only = v1::ExportRequest { read_only: true, ..request("a", &locator) };
    let first = stage.client().export(read_only).await.unwrap();
    let managed = v1::ManageRequest { id: VOLUME_ID.into(), allow_in_use: true, ..manage(&locator) };
    let volume = stage.client().manage(managed).await.unwrap().volume.unwrap();
    assert_eq!(stage.client().exported("a").await.unwrap().locator, volume.locator);
    let served = stage.snapshot().await;

    stage.reboot().await;
    let mut client = stage.client();
    until_served(&stage, "a").await;
    let again = client.export(v1::ExportRequest { read_only: true, ..request("a", &volume.locator) }).await.unwrap();
    assert_eq!((again.changed, &again.connection_info), (false, &first.connection_info));
    assert_eq!(lasting(&stage.snapshot().await), lasting(&served));
    client.unmanage(VOLUME_ID, false).await.unwrap();
    assert!(client.unexport(&locator).await.unwrap().changed);
    assert!(!client.unexport("a").await.unwrap().changed);
}

#[tokio::test]
async fn what_somebody_took_down_comes_back_with_the_agent() {
    let (mut stage, locator) = stage().await;
    let first = stage.client().export(request("a", &locator)).await.unwrap();
    let np = format!("/sys/kernel/config/target/iscsi/{}/tpgt_1/np/{PORTAL}", first.export.unwrap().target);
    host::Host::remove(&stage.machine, std::path::Path::new(&np)).await.unwrap();
    let broken = stage.client().exported("a").await.unwrap();
    assert!(!broken.ready && broken.problem.contains("export it again"), "{broken:?}");
    stage.kill_and_restart().await;
    until_served(&stage, "a").await;
    // The LV was not active before the first export, so it is not after the end of the last.
    stage.client().unexport("a").await.unwrap();
    assert!(!stage.snapshot().await.contains("/dev/dm-"), "the LV stayed active");
}

/// What the boot does not change.
fn lasting(snapshot: &str) -> Vec<String> {
    snapshot.lines().filter(|line| !line.contains("boot_id")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_crash_while_it_is_served_again_after_a_reboot() {
    let mut points = 0;
    for at in 1.. {
        let (mut stage, locator) = stage().await;
        let bare = lasting(&stage.snapshot().await);
        let first = stage.client().export(request("a", &locator)).await.unwrap();
        stage.kill();
        stage.machine.reboot();
        stage.machine.crash_after(at);
        let crashed = !stage.start_or_crash().await
            || tokio::select! {
                () = stage.machine.crashed() => true,
                () = until_served(&stage, "a") => false,
            };
        stage.kill();
        stage.start().await;
        until_served(&stage, "a").await;
        login(&stage, &first.connection_info).unwrap_or_else(|why| panic!("crash after effect {at}: {why}"));
        stage.machine.initiator_logout(&first.export.unwrap().target, INITIATOR);
        stage.client().unexport("a").await.unwrap();
        assert_eq!(lasting(&stage.snapshot().await), bare, "crash after effect {at}: something was left");
        if !crashed {
            break;
        }
        points += 1;
    }
    assert!(points > 10, "{points} crash points are too few to be true");
}

/// A crash after each effect of a verb, and another after each effect of the recovery.
async fn sweep(unexport: bool) {
    let (mut schedules, mut points) = (0, 0);
    'points: for at in 1.. {
        for again in 0.. {
            let place = format!("unexport {unexport}, crash after effect {at}, then after {again} of the recovery");
            let (mut stage, locator) = stage().await;
            let bare = stage.snapshot().await;
            let exported = match unexport {
                true => Some(stage.client().export(request("a", &locator)).await.unwrap()),
                false => None,
            };
            stage.machine.crash_after(at);
            let (mut client, of) = (stage.client(), locator.clone());
            let call = tokio::spawn(async move {
                match unexport {
                    true => client.unexport("a").await.unwrap().changed,
                    false => client.export(request("a", &of)).await.unwrap().changed,
                }
            });
            tokio::select! {
                () = stage.machine.crashed() => {}
                done = call => {
                    assert!(done.unwrap());
                    assert!(at > 10, "{at} effects are too few to be true");
                    points = at - 1;
                    break 'points;
                }
            }
            stage.kill();
            if again > 0 {
                stage.machine.crash_after(again);
                if stage.start_or_crash().await {
                    break;
                }
                stage.kill();
            }
            stage.start().await;
            let mut client = stage.client();
            let open = v1::ListOperationsRequest { running_only: true, limit: 0 };
            assert!(client.operations.list(open).await.unwrap().into_inner().operations.is_empty(), "{place}");
            if unexport {
                client.unexport("a").await.unwrap();
                assert_eq!(stage.snapshot().await, bare, "{place}");
                assert!(!client.unexport("a").await.unwrap().changed, "{place}");
            } else {
                let there = client.exported("a").await.is_ok();
                if !there {
                    assert_eq!(stage.snapshot().await, bare, "{place}: it was undone, and left something");
                }
                let reply = client.export(request("a", &locator)).await.unwrap();
                assert_eq!(reply.changed, !there, "{place}");
                login(&stage, &reply.connection_info).unwrap_or_else(|why| panic!("{place}: {why}"));
                stage.machine.initiator_logout(&reply.export.unwrap().target, INITIATOR);
                assert!(client.unexport("a").await.unwrap().changed, "{place}");
                assert_eq!(stage.snapshot().await, bare, "{place}");
            }
            drop(exported);
            schedules += 1;
        }
    }
    assert!(schedules > 50, "{schedules} schedules are too few to be true");
    let operation = if unexport { "unexport" } else { "export" };
    note(&Row::Simulated(Sweep {
        operation: operation.into(),
        driver: "lvm".into(),
        points,
        runs: schedules,
        leftovers: 0,
    }));
}

#[tokio::test]
async fn a_crash_of_an_export() {
    sweep(false).await;
}

#[tokio::test]
async fn a_crash_of_an_unexport() {
    sweep(true).await;
}
