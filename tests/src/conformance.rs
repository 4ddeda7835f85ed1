//! What a caller may rely on, whatever the backend, and whatever the machine. Each function is one promise.

use crate::{
    client::{Refused, attach, manage},
    stage::Stage,
};
use driver::Backend;
use proto::v1::{self, AttachmentState};
use tonic::Code;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

fn refused<T: std::fmt::Debug>(answer: Result<T, Refused>, code: Code, reason: &str) -> String {
    let refused = answer.expect_err("it was taken");
    assert_eq!((refused.code, refused.reason.as_str()), (code, reason), "{}", refused.message);
    refused.message
}

/// Attach twice: the same device, and only the first changed anything. Detach twice: gone, and only the first did.
pub async fn again_is_the_same(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "again", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let first = client.attach(attach("again", &locator)).await.unwrap();
    assert!(first.changed);
    let there = first.attachment.unwrap();
    assert_eq!((there.id.as_str(), there.size_bytes, there.r#type.as_str()), ("again", SIZE, "block"));
    assert!(there.path.starts_with("/dev/"), "{there:?}");
    assert_eq!(there.stable_path, "/dev/mortar/again");
    assert_eq!(there.state(), AttachmentState::Ready);
    assert!(!there.paths.is_empty(), "{there:?}");

    let second = client.attach(attach("again", &locator)).await.unwrap();
    assert!(!second.changed);
    let again = second.attachment.unwrap();
    assert_eq!((&again.path, &again.identity), (&there.path, &there.identity));
    assert_eq!(client.list().await.unwrap().len(), 1);
    assert_eq!(client.get("again").await.unwrap().path, there.path);

    let gone = client.detach("again").await.unwrap();
    assert!(gone.changed && gone.residuals.is_empty(), "{gone:?}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let gone = client.detach("again").await.unwrap();
    assert!(!gone.changed && gone.residuals.is_empty(), "{gone:?}");
    refused(client.get("again").await, Code::NotFound, "NOT_FOUND");
}

/// What was never attached is detached already.
pub async fn detach_of_nothing_succeeds(stage: &mut dyn Stage, backend: Backend) {
    let mut client = stage.client();
    let nowhere = stage.nowhere(backend);
    for target in ["never-heard-of", nowhere.as_str(), "/dev/mortar/never-heard-of", "/dev/never-heard-of"] {
        let gone = client.detach(target).await.unwrap();
        assert!(!gone.changed && gone.residuals.is_empty(), "{target}: {gone:?}");
    }
}

/// A volume that is not there is NOT_FOUND, and leaves nothing.
pub async fn absent_is_not_found(stage: &mut dyn Stage, backend: Backend) {
    stage.volume(backend, "neighbour", SIZE).await;
    let before = stage.snapshot().await;
    let nowhere = stage.nowhere(backend);
    refused(stage.client().attach(attach("absent", &nowhere)).await, Code::NotFound, "NOT_FOUND");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// An id belongs to one volume and one way to attach it.
pub async fn an_id_is_for_one_volume(stage: &mut dyn Stage, backend: Backend) {
    let one = stage.volume(backend, "one", SIZE).await;
    let other = stage.volume(backend, "other", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    client.attach(attach("mine", &one)).await.unwrap();
    refused(client.attach(attach("mine", &other)).await, Code::AlreadyExists, "ALREADY_EXISTS");
    let read_only = v1::AttachRequest { read_only: true, ..attach("mine", &one) };
    refused(client.attach(read_only.clone()).await, Code::AlreadyExists, "ALREADY_EXISTS");
    let by_another_id = v1::AttachRequest { id: "another".into(), ..read_only };
    refused(client.attach(by_another_id).await, Code::FailedPrecondition, "WRONG_STATE");
    assert_eq!(client.list().await.unwrap().len(), 1);
    client.detach("mine").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Two volumes beside each other: detaching one leaves the other at work.
pub async fn neighbours_stay(stage: &mut dyn Stage, backend: Backend) {
    let left = stage.volume(backend, "left", SIZE).await;
    let right = stage.volume(backend, "right", 2 * SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let first = client.attach(attach("left", &left)).await.unwrap().attachment.unwrap();
    let second = client.attach(attach("right", &right)).await.unwrap().attachment.unwrap();
    assert_ne!(first.path, second.path);
    assert_ne!(first.identity, second.identity);
    client.detach("left").await.unwrap();
    let still = client.get("right").await.unwrap();
    assert_eq!((still.state(), &still.path, still.size_bytes), (AttachmentState::Ready, &second.path, 2 * SIZE));
    client.detach("right").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Two ids for one volume share its device, which goes with the last.
pub async fn ids_share_a_device(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "shared", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let one = client.attach(attach("one", &locator)).await.unwrap().attachment.unwrap();
    let two = client.attach(attach("two", &locator)).await.unwrap().attachment.unwrap();
    assert_eq!(one.path, two.path);
    let message = refused(client.detach(&locator).await, Code::FailedPrecondition, "WRONG_STATE");
    assert!(message.contains("one, two"), "{message}");
    client.detach("one").await.unwrap();
    assert_eq!(client.get("two").await.unwrap().state(), AttachmentState::Ready);
    client.detach("two").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Without an id the volume's own attachment is returned, and one is made where there is none. It goes by any name.
pub async fn an_id_is_made_up(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "nameless", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    for by in ["locator", "device", "stable path"] {
        let made = client.attach(attach("", &locator)).await.unwrap().attachment.unwrap();
        let again = client.attach(attach("", &locator)).await.unwrap();
        assert!(!again.changed);
        assert_eq!(again.attachment.unwrap().id, made.id);
        let gone = match by {
            "locator" => client.detach(&made.locator).await,
            "device" => client.detach(&made.path).await,
            _ => client.detach(&made.stable_path).await,
        };
        let gone = gone.unwrap();
        assert!(gone.changed && gone.id == made.id, "{by}: {gone:?}");
        assert_eq!(stage.snapshot().await, before, "detached by {by}, something was left behind");
    }
}

/// Size and WWN are held against what the caller expects; what does not match is not handed out, and leaves nothing.
pub async fn the_right_device_or_none(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "expected", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let wrong = v1::AttachRequest { expected_size_bytes: SIZE + 512, ..attach("expected", &locator) };
    let message = refused(client.attach(wrong).await, Code::FailedPrecondition, "IDENTITY_MISMATCH");
    assert!(message.contains(&SIZE.to_string()) && message.contains(&(SIZE + 512).to_string()), "{message}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let wwn = "360014050000000000000000000099999";
    let wrong = v1::AttachRequest { expected_wwn: wwn.into(), ..attach("expected", &locator) };
    let message = refused(client.attach(wrong).await, Code::FailedPrecondition, "IDENTITY_MISMATCH");
    assert!(message.contains(wwn), "{message}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let right = v1::AttachRequest { expected_size_bytes: SIZE, ..attach("expected", &locator) };
    client.attach(right).await.unwrap();
    client.detach("expected").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A read-only attachment is one for the kernel, too.
pub async fn read_only_is_read_only(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "readonly", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let request = v1::AttachRequest { read_only: true, ..attach("readonly", &locator) };
    let there = client.attach(request.clone()).await.unwrap().attachment.unwrap();
    assert!(there.read_only, "{there:?}");
    assert!(!client.attach(request).await.unwrap().changed);
    client.detach("readonly").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let there = client.attach(attach("readonly", &locator)).await.unwrap().attachment.unwrap();
    assert!(!there.read_only, "{there:?}");
    client.detach("readonly").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A device in use is not touched, and the refusal says by whom.
pub async fn in_use_is_refused(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "busy", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let there = client.attach(attach("busy", &locator)).await.unwrap().attachment.unwrap();
    stage.occupy(&there.path).await;
    let with = stage.snapshot().await;
    let message = refused(client.detach("busy").await, Code::FailedPrecondition, "IN_USE");
    assert!(message.contains("mounted at") || message.contains("held by") || message.contains("open by"), "{message}");
    assert_eq!(stage.snapshot().await, with, "the refusal changed something");
    assert_eq!(client.get("busy").await.unwrap().state(), AttachmentState::Ready);
    stage.vacate(&there.path).await;
    client.detach("busy").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// The agent's memory survives a kill.
pub async fn found_again_after_a_restart(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "kept", SIZE).await;
    let before = stage.snapshot().await;
    let there = stage.client().attach(attach("kept", &locator)).await.unwrap().attachment.unwrap();
    stage.kill_and_restart().await;
    let mut client = stage.client();
    let still = client.get("kept").await.unwrap();
    assert_eq!((still.state(), &still.path, &still.identity), (AttachmentState::Ready, &there.path, &there.identity));
    assert!(!client.attach(attach("kept", &locator)).await.unwrap().changed);
    client.detach("kept").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Every operation is found afterwards, with its end.
pub async fn operations_are_remembered(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "remembered", SIZE).await;
    let mut client = stage.client();
    let id = client.attach(attach("remembered", &locator)).await.unwrap().operation_id;
    let operation = client.operations.get(v1::GetOperationRequest { id }).await.unwrap().into_inner();
    assert_eq!(operation.state(), v1::OperationState::Succeeded);
    assert_eq!((operation.kind(), operation.subject.as_str()), (v1::OperationKind::Attach, "remembered"));
    assert!(operation.ended_at.is_some());
    client.detach("remembered").await.unwrap();
    let list = client.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    assert_eq!(list[0].kind(), v1::OperationKind::Detach);
    assert_eq!(list[1].id, operation.id);
}

/// Manage renames, once; the storage tells; unmanage gives the name back, once.
pub async fn manage_and_back(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "adopted", SIZE).await;
    let scope = stage.scope(backend);
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let listed = client.manageable(&scope).await.unwrap();
    let entry = listed.iter().find(|entry| entry.reference == locator).unwrap();
    assert!(entry.safe_to_manage && entry.size_bytes == SIZE, "{entry:?}");

    let first = client.manage(v1::ManageRequest { name: "int32bit".into(), ..manage(&locator) }).await.unwrap();
    assert!(first.changed);
    let volume = first.volume.unwrap();
    assert_eq!((volume.origin.as_str(), volume.size_bytes, volume.name.as_str()), (locator.as_str(), SIZE, "int32bit"));
    assert!(volume.locator.ends_with(&format!("volume-{}", volume.id)), "{volume:?}");
    for again in
        [manage(&locator), v1::ManageRequest { id: volume.id.clone(), ..manage(&locator) }, manage(&volume.locator)]
    {
        let again = client.manage(again).await.unwrap();
        assert!(!again.changed);
        assert_eq!(again.volume.unwrap(), volume);
    }
    assert_eq!(client.volumes(&scope).await.unwrap(), std::slice::from_ref(&volume));
    assert!(client.volumes("").await.unwrap().contains(&volume));
    let listed = client.manageable(&scope).await.unwrap();
    let entry = listed.iter().find(|entry| entry.reference == volume.locator).unwrap();
    assert!(!entry.safe_to_manage && entry.volume_id == volume.id && !entry.reason_not_safe.is_empty(), "{entry:?}");

    let back = client.unmanage(&volume.id, false).await.unwrap();
    assert!(back.changed);
    assert_eq!(back.locator, locator);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    assert!(!client.unmanage(&volume.id, false).await.unwrap().changed);
}

/// The storage is the truth: another agent, with no memory, reads the same volumes back. And a kept name stays.
pub async fn unmanage_can_keep_the_name(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "keeper", SIZE).await;
    let scope = stage.scope(backend);
    let mut client = stage.client();
    let volume = client.manage(manage(&locator)).await.unwrap().volume.unwrap();
    stage.kill_and_restart().await;
    let mut client = stage.client();
    assert!(client.volumes(&scope).await.unwrap().contains(&volume));
    assert_eq!(client.unmanage(&volume.id, true).await.unwrap().locator, volume.locator);
    assert!(!client.volumes(&scope).await.unwrap().contains(&volume));
    let message = refused(client.manage(manage(&volume.locator)).await, Code::AlreadyExists, "ALREADY_EXISTS");
    assert!(message.contains("named"), "{message}");
}

/// Names that are taken are not taken twice; ids neither.
pub async fn rename_conflicts(stage: &mut dyn Stage, backend: Backend) {
    let one = stage.volume(backend, "first", SIZE).await;
    let other = stage.volume(backend, "second", SIZE).await;
    let mut client = stage.client();
    let id = "9394b827-4ad0-488e-8df8-26476b3a8662";
    let with_id = |locator: &str| v1::ManageRequest { id: id.into(), ..manage(locator) };
    client.manage(with_id(&one)).await.unwrap();
    let managed = stage.snapshot().await;
    refused(client.manage(with_id(&other)).await, Code::AlreadyExists, "ALREADY_EXISTS");
    let another_id = v1::ManageRequest { id: "9394b827-4ad0-488e-8df8-26476b3a8663".into(), ..manage(&one) };
    refused(client.manage(another_id).await, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(stage.snapshot().await, managed, "a refusal changed something");
    // Somebody takes the original name meanwhile.
    stage.volume(backend, "first", SIZE).await;
    let taken = stage.snapshot().await;
    refused(client.unmanage(id, false).await, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(stage.snapshot().await, taken, "a refusal changed something");
    assert!(client.unmanage(id, true).await.unwrap().changed);
}

/// A volume in use is managed only if the caller says that this is fine; who uses it goes on.
pub async fn manage_in_use(stage: &mut dyn Stage, backend: Backend) {
    let locator = stage.volume(backend, "inuse", SIZE).await;
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let there = client.attach(attach("inuse", &locator)).await.unwrap().attachment.unwrap();
    let attached = stage.snapshot().await;
    refused(client.manage(manage(&locator)).await, Code::FailedPrecondition, "IN_USE");
    assert_eq!(stage.snapshot().await, attached, "a refusal changed something");
    let scope = stage.scope(backend);
    let listed = client.manageable(&scope).await.unwrap();
    let entry = listed.iter().find(|entry| entry.reference == locator).unwrap();
    assert!(!entry.safe_to_manage && entry.reason_not_safe.contains("in use"), "{entry:?}");

    let anyway = v1::ManageRequest { allow_in_use: true, ..manage(&locator) };
    let volume = client.manage(anyway).await.unwrap().volume.unwrap();
    let moved = client.get("inuse").await.unwrap();
    assert_eq!((&moved.locator, &moved.path), (&volume.locator, &there.path));
    assert_eq!(moved.state(), AttachmentState::Ready, "{}", moved.problem);
    assert_eq!(client.unmanage(&volume.id, false).await.unwrap().locator, locator);
    assert_eq!(client.get("inuse").await.unwrap().locator, locator);
    client.detach("inuse").await.unwrap();
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What does not exist cannot be managed, listed or read; what cannot be renamed says so.
pub async fn manage_refusals(stage: &mut dyn Stage, backend: Backend) {
    let mut client = stage.client();
    refused(client.manage(manage(&stage.nowhere(backend))).await, Code::NotFound, "NOT_FOUND");
    let id = "9394b827-4ad0-488e-8df8-26476b3a8664";
    let answer = client.volumes.get(v1::GetVolumeRequest { id: id.into() }).await.map_err(Refused::from);
    refused(answer, Code::NotFound, "NOT_FOUND");
    assert!(!client.unmanage(id, false).await.unwrap().changed);
    let iscsi = "iscsi://127.0.0.1/iqn.2026-11.org.example:t1/0";
    refused(client.manage(manage(iscsi)).await, Code::Unimplemented, "UNSUPPORTED");
}

/// Names that try to be options or paths, numbers out of range: one sentence, and nothing done.
pub async fn bad_input_is_refused(stage: &mut dyn Stage) {
    let before = stage.snapshot().await;
    let mut client = stage.client();
    let long = "x".repeat(300);
    let bad = ["--foo", "../x", "a b", &long, "a\tb", "a\u{1}b", "-n", "a/b", "..", "a\nb"];
    for text in bad {
        let message = refused(client.attach(attach(text, "file:/a.raw")).await, Code::InvalidArgument, "INVALID");
        assert!(!message.contains('\n') && message.len() < 250, "{message}");
        refused(client.attach(attach("id", &format!("lvm:vg/{text}"))).await, Code::InvalidArgument, "INVALID");
        refused(client.attach(attach("id", &format!("lvm:{text}/lv"))).await, Code::InvalidArgument, "INVALID");
        let unit = format!("iscsi://127.0.0.1/{text}/0");
        refused(client.attach(attach("id", &unit)).await, Code::InvalidArgument, "INVALID");
        refused(client.get(text).await, Code::InvalidArgument, "INVALID");
        refused(client.manage(manage(&format!("lvm:vg/{text}"))).await, Code::InvalidArgument, "INVALID");
        refused(client.unmanage(text, false).await, Code::InvalidArgument, "INVALID");
        refused(client.manageable(&format!("lvm:{text}")).await, Code::InvalidArgument, "INVALID");
        let named = v1::ManageRequest { name: text.into(), ..manage("lvm:vg/lv") };
        refused(client.manage(named).await, Code::InvalidArgument, "INVALID");
        let wwn = v1::AttachRequest { expected_wwn: text.into(), ..attach("id", "file:/a.raw") };
        refused(client.attach(wwn).await, Code::InvalidArgument, "INVALID");
    }
    for locator in [
        "",
        "x",
        "lvm:",
        "lvm:vg",
        "lvm:vg/",
        "file:a.raw",
        "file:/a/../b",
        "file:/",
        "iscsi://127.0.0.1:0/iqn.2026-11.org.example:t1/0",
        "iscsi://127.0.0.1:65536/iqn.2026-11.org.example:t1/0",
        "iscsi://127.0.0.1/iqn.2026-11.org.example:t1/x",
        "iscsi://127.0.0.1/not-an-iqn/0",
        "iscsi://localhost/iqn.2026-11.org.example:t1/0",
        "rbd:pool",
        "rbd:pool/a b",
        "rbd:pool/image?mon=localhost",
        "rbd:pool/image?key=AQB",
    ] {
        refused(client.attach(attach("id", locator)).await, Code::InvalidArgument, "INVALID");
    }
    refused(client.attach(v1::AttachRequest::default()).await, Code::InvalidArgument, "INVALID");
    let days = v1::AttachRequest { timeout_ms: u64::MAX, ..attach("id", "file:/a.raw") };
    refused(client.attach(days).await, Code::InvalidArgument, "INVALID");
    assert_eq!(stage.snapshot().await, before, "bad input changed something");
}

/// Calls every promise: `attach!(suite)` for each backend, `manage!(suite)` for those that can rename.
#[macro_export]
macro_rules! conformance {
    ($stage:path) => {
        mod file {
            $crate::conformance!(@attach $stage, File);
            $crate::conformance!(@manage $stage, File);
        }
        mod iscsi {
            $crate::conformance!(@attach $stage, Iscsi);
        }
        mod lvm {
            $crate::conformance!(@attach $stage, Lvm);
            $crate::conformance!(@manage $stage, Lvm);
        }
        mod rbd {
            $crate::conformance!(@attach $stage, Rbd);
            $crate::conformance!(@manage $stage, Rbd);
        }
        #[tokio::test]
        async fn bad_input_is_refused() {
            $crate::conformance::bad_input_is_refused(&mut $stage().await).await;
        }
    };
    (@attach $stage:path, $backend:ident) => {
        $crate::conformance!(@each $stage, $backend, again_is_the_same detach_of_nothing_succeeds absent_is_not_found
            an_id_is_for_one_volume neighbours_stay ids_share_a_device an_id_is_made_up the_right_device_or_none
            read_only_is_read_only in_use_is_refused found_again_after_a_restart operations_are_remembered);
    };
    (@manage $stage:path, $backend:ident) => {
        $crate::conformance!(@each $stage, $backend, manage_and_back unmanage_can_keep_the_name rename_conflicts
            manage_in_use manage_refusals);
    };
    (@each $stage:path, $backend:ident, $($promise:ident)*) => {
        $(
            #[tokio::test]
            async fn $promise() {
                $crate::conformance::$promise(&mut $stage().await, driver::Backend::$backend).await;
            }
        )*
    };
}
