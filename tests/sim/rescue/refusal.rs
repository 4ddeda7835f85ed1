//! What is refused, with nothing touched; and what goes wrong in the middle.

use super::{UUID, after, disk, domain, image, small, uuid};
use crate::machine::{DIRECTORY, SimStage, VG};
use proto::v1::{self, rescue_request::Disk};
use tests::{client::Refused, stage::Stage};
use tonic::Code;

/// Rescues what `spoil` made of an instance that runs, in vain.
async fn refused(spoil: impl FnOnce(&SimStage)) -> Refused {
    refused_with(image(), spoil).await
}

async fn refused_with(request: v1::RescueRequest, spoil: impl FnOnce(&SimStage)) -> Refused {
    let (_, refused) = dry_and_real(request, spoil).await;
    refused
}

/// What a dry run knows of it, too.
async fn refused_before(request: v1::RescueRequest, spoil: impl FnOnce(&SimStage)) -> Refused {
    let (dry, refused) = dry_and_real(request, spoil).await;
    let dry = dry.expect_err("the dry run does not see it");
    assert_eq!((dry.code, &dry.reason, &dry.message), (refused.code, &refused.reason, &refused.message));
    refused
}

async fn dry_and_real(
    request: v1::RescueRequest,
    spoil: impl FnOnce(&SimStage),
) -> (Result<v1::RescueResponse, Refused>, Refused) {
    let stage = small(true).await;
    spoil(&stage);
    let before = stage.snapshot().await;
    let dry = stage.client().rescue(v1::RescueRequest { dry_run: true, ..request.clone() }).await;
    assert_eq!(stage.snapshot().await, before, "a dry run touched something");
    let refused = stage.client().rescue(request).await.unwrap_err();
    assert_eq!(after(&before, &stage).await, "", "{refused:?}: something was left behind");
    assert!(stage.client().running().await.is_empty());
    (dry, refused)
}

async fn is_wrong_state(said: &str, spoil: impl FnOnce(&SimStage)) {
    let refused = refused_before(image(), spoil).await;
    assert_eq!((refused.code, &*refused.reason), (Code::FailedPrecondition, "WRONG_STATE"), "{refused:?}");
    assert!(refused.message.contains(said), "{refused:?}");
}

#[tokio::test]
async fn what_a_rescue_would_lose_is_refused() {
    is_wrong_state("has its memory saved", |stage| {
        stage.domains.power(&stage.machine, uuid(), false);
        stage.domains.set_managed_save(uuid(), true);
    })
    .await;
    is_wrong_state("is paused", |stage| stage.domains.pause(uuid(), true)).await;
    is_wrong_state("is transient", |stage| stage.domains.make_transient(uuid())).await;
    is_wrong_state("has vdc only while it runs", |stage| {
        let defined = stage.domains.defined(uuid()).unwrap();
        let plugged = disk("file", "file='/tmp/plugged.img'/>", "vdc");
        stage.domains.run_as(uuid(), &defined.replace("\n  </devices>", &format!("{plugged}\n  </devices>")));
    })
    .await;
    is_wrong_state("runs with another vdb", |stage| {
        let defined = stage.domains.defined(uuid()).unwrap();
        stage.domains.run_as(uuid(), &defined.replace("data.img", "data.snap1"));
    })
    .await;
    let with = |stage: &SimStage, what: &str| {
        let defined = stage.domains.defined(uuid()).unwrap();
        stage.domains.put(&defined.replace("<devices>", &format!("<devices>{what}")));
    };
    is_wrong_state("has a TPM", |stage| with(stage, "<tpm model='tpm-crb'><backend type='emulator'/></tpm>")).await;
    is_wrong_state("has no hard disk", |stage| {
        stage.domains.power(&stage.machine, uuid(), false);
        stage.domains.put(&domain(""));
    })
    .await;
    is_wrong_state("is not there: /dev/nowhere", |stage| {
        stage.domains.power(&stage.machine, uuid(), false);
        stage.domains.put(&domain(&disk("block", "dev='/dev/nowhere'/>", "vda")));
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_is_refused() {
    let named = |instance: &str| v1::RescueRequest { instance: instance.into(), ..image() };
    for (request, code, said) in [
        (named("nobody"), Code::NotFound, "nobody"),
        (named(""), Code::InvalidArgument, "instance: "),
        (named("../../etc"), Code::InvalidArgument, "instance: "),
        (named("web1\n"), Code::InvalidArgument, "instance: "),
        (named("--all"), Code::NotFound, "--all"),
        (v1::RescueRequest { disk: None, ..image() }, Code::InvalidArgument, "disk: "),
        (v1::RescueRequest { disk: Some(Disk::Image("x".into())), ..image() }, Code::InvalidArgument, "image: "),
        (
            v1::RescueRequest { disk: Some(Disk::Image(format!("file:{DIRECTORY}/no.raw"))), ..image() },
            Code::NotFound,
            "no.raw",
        ),
        (
            v1::RescueRequest { disk: Some(Disk::Volume(format!("file:{DIRECTORY}/no.raw"))), ..image() },
            Code::NotFound,
            "no.raw",
        ),
        (v1::RescueRequest { grace_ms: Some(600_001), ..image() }, Code::InvalidArgument, "grace_ms: "),
        (v1::RescueRequest { no_seed: true, password: "hush".into(), ..image() }, Code::InvalidArgument, "no_seed: "),
        (v1::RescueRequest { password: "hu\nsh".into(), ..image() }, Code::InvalidArgument, "password: "),
        (v1::RescueRequest { ssh_keys: vec!["x".into()], ..image() }, Code::InvalidArgument, "ssh_keys: "),
    ] {
        let refused = refused_before(request.clone(), |_| {}).await;
        assert_eq!(refused.code, code, "{request:?}: {refused:?}");
        assert!(refused.message.contains(said) && !refused.message.contains("hu"), "{refused:?}");
    }
}

#[tokio::test]
async fn when_qemu_refuses_the_original_is_back_and_runs() {
    let refused = refused(|stage| stage.domains.fail_next_start("Cannot allocate memory")).await;
    assert_eq!(refused.reason, "WRONG_STATE");
    assert!(refused.message.contains("Cannot allocate memory"), "what QEMU said is missing: {refused:?}");
    assert!(refused.message.contains("the original of web1 is back"), "{refused:?}");
}

#[tokio::test]
async fn when_qemu_refuses_the_original_as_well_that_is_said() {
    let stage = small(true).await;
    let definition = stage.domains.defined(uuid()).unwrap();
    stage.domains.fail_next_start("no memory");
    stage.domains.fail_next_start("still no memory");
    let refused = stage.client().rescue(image()).await.unwrap_err();
    assert!(
        refused.message.contains("web1 does not start again") && refused.message.contains("still no"),
        "{refused:?}"
    );
    assert_eq!(stage.domains.defined(uuid()).unwrap(), definition);
    assert_eq!(stage.client().instance("web1").await.unwrap().rescue, None);
    // And on the way back from a rescue.
    stage.client().rescue(image()).await.unwrap();
    stage.domains.fail_next_start("no memory at all");
    // It was off by then.
    stage.client().unrescue("web1").await.unwrap();
    stage.domains.power(&stage.machine, uuid(), false);
}

#[tokio::test]
async fn an_original_that_does_not_start_is_back_all_the_same() {
    let stage = small(true).await;
    let definition = stage.domains.defined(uuid()).unwrap();
    stage.client().rescue(image()).await.unwrap();
    stage.domains.fail_next_start("no memory");
    let refused = stage.client().unrescue("web1").await.unwrap_err();
    assert!(refused.message.contains("the original of web1 is back, but") && refused.message.contains("no memory"));
    assert_eq!(stage.domains.defined(uuid()).unwrap(), definition);
    assert!(!stage.client().unrescue("web1").await.unwrap().changed);
}

/// libvirt goes away in the middle, and comes back.
#[tokio::test]
async fn libvirt_away_in_the_middle() {
    let stage = small(true).await;
    let before = stage.snapshot().await;
    for effect in ["stop", "define", "start"] {
        let domains = stage.domains.clone();
        let name = match effect {
            "define" => "commit libvirt: define web1".to_owned(),
            other => format!("commit libvirt: {other} {UUID}"),
        };
        stage.machine.before_next(name, move |_| domains.away(true));
        let refused = stage.client().rescue(image()).await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (Code::Unavailable, "UNREACHABLE"), "{effect}: {refused:?}");
        assert!(stage.client().instance("web1").await.unwrap_err().message.contains("systemctl start libvirtd"));
        stage.domains.away(false);
        while !stage.client().running().await.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(after(&before, &stage).await, "", "{effect}: something was left behind");
    }
    stage.client().rescue(image()).await.unwrap();
    let domains = stage.domains.clone();
    stage.machine.before_next("commit libvirt: define web1", move |_| domains.away(true));
    let refused = stage.client().unrescue("web1").await.unwrap_err();
    assert_eq!(refused.reason, "UNREACHABLE", "{refused:?}");
    stage.domains.away(false);
    while !stage.client().running().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(after(&before, &stage).await, "", "unrescue: something was left behind");
}

#[tokio::test]
async fn a_definition_that_somebody_else_changed_is_kept() {
    let stage = small(true).await;
    let original = stage.domains.defined(uuid()).unwrap();
    stage.client().rescue(image()).await.unwrap();
    let changed = stage.domains.defined(uuid()).unwrap().replace("<devices>", "<!-- his --><devices>");
    stage.domains.put(&changed);
    let refused = stage.client().unrescue("web1").await.unwrap_err();
    assert!(
        refused.message.contains("somebody changed the definition") && refused.message.contains("--discard-changes")
    );
    assert_eq!(stage.domains.defined(uuid()).unwrap(), changed);
    assert!(stage.client().instance("web1").await.unwrap().rescue.unwrap().changed_since);
    let discard =
        v1::UnrescueRequest { instance: "web1".into(), discard_changes: true, ..v1::UnrescueRequest::default() };
    assert!(stage.client().instances.unrescue(discard).await.unwrap().into_inner().changed);
    assert_eq!(stage.domains.defined(uuid()).unwrap(), original);
}

/// Changed between the look and the define: nothing of it is overwritten.
#[tokio::test]
async fn a_definition_that_changes_while_it_is_rescued_is_kept() {
    let stage = small(true).await;
    let changed = stage.domains.defined(uuid()).unwrap().replace("<devices>", "<!-- his --><devices>");
    let (domains, his) = (stage.domains.clone(), changed.clone());
    stage.machine.before_next(format!("commit libvirt: stop {UUID}"), move |_| {
        domains.put(&his);
    });
    let refused = stage.client().rescue(image()).await.unwrap_err();
    assert!(refused.message.contains("somebody changed the definition of web1 meanwhile"), "{refused:?}");
    assert_eq!(stage.domains.defined(uuid()).unwrap(), changed);
    assert_eq!(stage.client().instance("web1").await.unwrap().power(), v1::InstancePower::Running);
    assert!(stage.client().rescue(image()).await.unwrap().changed, "it is not to be rescued any more");
}

/// Somebody changes our definition, and the agent dies: it stays rescued, and can be put back.
#[tokio::test]
async fn a_rescue_that_somebody_changed_in_the_middle_stays() {
    let mut stage = small(true).await;
    let original = stage.domains.defined(uuid()).unwrap();
    let domains = stage.domains.clone();
    stage.machine.before_next(format!("commit libvirt: start {UUID}"), move |_| {
        let ours = domains.defined(uuid()).unwrap();
        domains.put(&ours.replace("<devices>", "<!-- his --><devices>"));
        domains.fail_next_start("no memory");
    });
    let refused = stage.client().rescue(image()).await.unwrap_err();
    assert!(refused.message.contains("stays rescued") && refused.message.contains("no memory"), "{refused:?}");
    assert!(stage.domains.defined(uuid()).unwrap().contains("his"));
    stage.kill_and_restart().await;
    let discard =
        v1::UnrescueRequest { instance: UUID.into(), discard_changes: true, ..v1::UnrescueRequest::default() };
    assert!(stage.client().instances.unrescue(discard).await.unwrap().into_inner().changed);
    assert_eq!(stage.domains.defined(uuid()).unwrap(), original);
}

#[tokio::test]
async fn an_instance_that_was_undefined_leaves_what_can_be_taken_away() {
    let stage = small(false).await;
    let image = image();
    stage.client().rescue(image).await.unwrap();
    stage.domains.power(&stage.machine, uuid(), false);
    stage.domains.forget(uuid());
    let refused = stage.client().unrescue("web1").await.unwrap_err();
    assert!(refused.message.contains("was undefined while it was rescued"), "{refused:?}");
    let discard =
        v1::UnrescueRequest { instance: "web1".into(), discard_changes: true, ..v1::UnrescueRequest::default() };
    let reply = stage.client().instances.unrescue(discard).await.unwrap().into_inner();
    assert!(reply.changed && reply.instance.is_none());
    let left = stage.snapshot().await;
    assert!(!left.contains("rescue-5f1e") && !left.contains("seed-"), "{left}");
}

#[tokio::test]
async fn a_rescue_can_be_cancelled() {
    let stage = small(true).await;
    let before = stage.snapshot().await;
    let held = stage.machine.hang(0, format!("commit libvirt: stop {UUID}"));
    let mut client = stage.client();
    let rescue = tokio::spawn(async move { client.rescue(image()).await });
    let mut client = stage.client();
    held.reached().await;
    let id = client.running().await.remove(0).id;
    let cancel = tokio::spawn(async move {
        client.operations.cancel(v1::CancelOperationRequest { id }).await.unwrap().into_inner().changed
    });
    // Until it has been asked.
    for _ in 0..20 {
        assert_eq!(stage.client().running().await.len(), 1);
    }
    held.let_go();
    assert!(cancel.await.unwrap());
    assert_eq!(rescue.await.unwrap().unwrap_err().reason, "CANCELLED");
    assert_eq!(after(&before, &stage).await, "", "something was left behind");
}

#[tokio::test]
async fn a_volume_that_is_a_qcow2_file_is_refused() {
    let disk = Some(Disk::Volume(format!("file:{DIRECTORY}/v.img")));
    let refused = refused_with(v1::RescueRequest { disk, ..image() }, |stage| {
        stage.machine.put_bytes(format!("{DIRECTORY}/v.img"), b"QFI\xfb\0\0\0\x03");
    })
    .await;
    assert!(refused.reason == "UNSUPPORTED" && refused.message.contains("give it as an image"), "{refused:?}");
}

#[tokio::test]
async fn a_volume_that_somebody_uses_is_refused() {
    let disk = Some(Disk::Volume(format!("lvm:{VG}/v")));
    let refused = refused_with(v1::RescueRequest { disk, ..image() }, |stage| {
        stage.machine.add_lv(VG, "v", 16 << 20);
        stage.machine.activate_lv(VG, "v", false);
        stage.machine.mount("dm-0", "/mnt/data");
    })
    .await;
    assert!(refused.reason == "IN_USE" && refused.message.contains("mounted at /mnt/data"), "{refused:?}");
}

/// Names that would break out of XML or of a path, in all that is written of them.
#[tokio::test]
async fn names_break_out_of_nothing() {
    let mut stage = small(false).await;
    stage.domains.forget(uuid());
    let name = "a&quot;&lt;/name&gt;&lt;devices&gt;&apos;$(reboot);--x";
    let root = disk("file", &format!("file='{DIRECTORY}/root.img'/>"), "vda");
    stage.domains.put(&domain(&root).replace("web1", name));
    let definition = stage.domains.defined(uuid()).unwrap();
    let reply = stage.client().rescue(v1::RescueRequest { instance: UUID.into(), ..image() }).await.unwrap();
    let instance = reply.instance.unwrap();
    assert_eq!(instance.name, "a\"</name><devices>'$(reboot);--x");
    assert_eq!(instance.disks.len(), 3, "{instance:?}");
    stage.kill_and_restart().await;
    assert!(stage.client().unrescue(UUID).await.unwrap().changed);
    assert_eq!(stage.domains.defined(uuid()).unwrap(), definition);
}

#[tokio::test]
async fn twins_are_warned_of() {
    let stage = small(true).await;
    let xfs = |uuid: &str| format!("XFSB{}{uuid}{}", "\0".repeat(28), "\0".repeat(464));
    stage.machine.put_file(format!("{DIRECTORY}/image.raw"), xfs("0123456789abcdef"));
    assert_eq!(stage.client().rescue(image()).await.unwrap().warnings.len(), 0);
    stage.client().unrescue("web1").await.unwrap();
    stage.machine.put_file(format!("{DIRECTORY}/root.img"), xfs("0123456789abcdef"));
    let warnings = stage.client().rescue(image()).await.unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the same file system UUID 30313233-3435-3637"), "{warnings:?}");
}
