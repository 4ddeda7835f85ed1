//! Rescue on the simulated machine: what is seen of it, what is refused, and a crash after every effect of a rescue and of
//! an unrescue, again after every effect of the recovery, and then the caller's retry.

mod crash;
mod doctor;
mod refusal;

use crate::machine::{CLUSTER, DIRECTORY, POOL, SimStage, VG, until};
use driver::Backend;
use proto::v1::{self, rescue_request::Disk};
use tests::{client::attach, stage::Stage};
use uuid::Uuid;

const UUID: &str = "5f1e8f0a-0000-4000-8000-000000000001";
const SIZE: u64 = 16 << 20;

/// An instance, and what it is rescued with.
#[derive(Debug, Clone, Copy)]
struct Case {
    root: Root,
    disk: Backend,
    layout: v1::RescueLayout,
    runs: bool,
}

/// What an instance's root disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// On a device that the agent has attached.
    Attached(Backend),
    File,
    /// An image that QEMU opens by itself.
    NativeRbd,
}

impl Root {
    async fn make(self, stage: &mut SimStage) -> String {
        let backend = match self {
            Self::File => {
                stage.machine.put_raw(format!("{DIRECTORY}/root.img"), SIZE);
                return disk("file", &format!("file='{DIRECTORY}/root.img'/>"), "vda");
            }
            Self::NativeRbd => {
                stage.machine.add_image(CLUSTER, POOL, "", "root", SIZE);
                let source = format!("protocol='rbd' name='{POOL}/root'><host name='127.0.0.1' port='6789'/></source>");
                return disk("network", &source, "vda");
            }
            Self::Attached(backend) => backend,
        };
        let locator = stage.volume(backend, "root", SIZE).await;
        let request = v1::AttachRequest { persistent: true, ..attach("root", &locator) };
        stage.client().attach(request).await.unwrap();
        disk("block", "dev='/dev/mortar/root'/>", "vda")
    }

    fn source(self) -> String {
        match self {
            Self::Attached(_) => "/dev/mortar/root".into(),
            Self::File => format!("{DIRECTORY}/root.img"),
            Self::NativeRbd => format!("rbd:{POOL}/root"),
        }
    }
}

fn disk(kind: &str, source: &str, target: &str) -> String {
    format!(
        "\n    <disk type='{kind}' device='disk'>\n      <driver name='qemu' type='raw'/>\n      <source {source}\n      \
         <target dev='{target}' bus='virtio'/>\n    </disk>"
    )
}

fn domain(disks: &str) -> String {
    format!(
        "<domain type='qemu'>\n  <name>web1</name>\n  <uuid>{UUID}</uuid>\n  <os>\n    <type>hvm</type>\n    <boot \
         dev='hd'/>\n  </os>\n  <devices>{disks}\n  </devices>\n</domain>\n"
    )
}

/// A machine with an instance whose root is a file, and a file for an image.
async fn small(runs: bool) -> SimStage {
    let case = Case { root: Root::File, disk: Backend::File, layout: v1::RescueLayout::Classic, runs };
    case.make().await.0
}

fn image() -> v1::RescueRequest {
    v1::RescueRequest {
        instance: "web1".into(),
        disk: Some(Disk::Image(format!("file:{DIRECTORY}/image.raw"))),
        ..v1::RescueRequest::default()
    }
}

fn uuid() -> Uuid {
    UUID.parse().unwrap()
}

impl Case {
    /// The machine with the instance on it, and the request to rescue it.
    async fn make(self) -> (SimStage, v1::RescueRequest) {
        let mut stage = SimStage::new().await;
        stage.machine.put_directory("/var/lib/mortar-rescue");
        let root = self.root.make(&mut stage).await;
        stage.machine.put_raw(format!("{DIRECTORY}/data.img"), SIZE);
        let data = disk("file", &format!("file='{DIRECTORY}/data.img'/>"), "vdb");
        stage.domains.put(&domain(&format!("{root}{data}")));
        if self.runs {
            stage.domains.power(&stage.machine, uuid(), true);
        }
        let locator = stage.volume(self.disk, "image", SIZE).await;
        let disk = match self.disk {
            Backend::Iscsi => Disk::Volume(locator),
            _ => Disk::Image(locator),
        };
        let request = v1::RescueRequest {
            instance: "web1".into(),
            disk: Some(disk),
            layout: self.layout.into(),
            ..v1::RescueRequest::default()
        };
        (stage, request)
    }

    /// The source of the rescue disk, as the definition has it.
    fn rescue_source(self) -> String {
        match (self.disk, self.root) {
            (Backend::File, _) => format!("{DIRECTORY}/rescue-{UUID}.img"),
            (Backend::Rbd, Root::NativeRbd) => format!("rbd:{POOL}/rescue-{UUID}"),
            _ => format!("/dev/mortar/rescue-{UUID}"),
        }
    }

    /// Sources by their targets, as `virsh domblklist` has them, without the seed.
    fn expected(self) -> Vec<(String, String)> {
        let (rescue, root, data) = (self.rescue_source(), self.root.source(), format!("{DIRECTORY}/data.img"));
        let order = match self.layout {
            v1::RescueLayout::Stable => [root, data, rescue],
            _ => [rescue, root, data],
        };
        ["vda", "vdb", "vdc"].map(str::to_owned).into_iter().zip(order).collect()
    }
}

fn sources(instance: &v1::Instance) -> Vec<(String, String)> {
    let seed = v1::InstanceDiskRole::Seed;
    let disks = instance.disks.iter().filter(|disk| disk.role() != seed);
    let mut sources: Vec<_> = disks.map(|disk| (disk.target.clone(), disk.source.clone())).collect();
    sources.sort();
    sources
}

/// The whole of it, undisturbed.
async fn there_and_back(case: Case) {
    let (stage, request) = case.make().await;
    let (before, definition) = (stage.snapshot().await, stage.domains.defined(uuid()).unwrap());
    let mut client = stage.client();
    let reply = client.rescue(request.clone()).await.unwrap();
    assert!(reply.changed);
    assert_eq!(reply.password.len(), 16, "one was made up");
    let instance = client.instance(UUID).await.unwrap();
    assert_eq!(sources(&instance), case.expected(), "{case:?}");
    assert_eq!(instance.power(), v1::InstancePower::Running);
    let booted = stage.domains.booted_from(uuid()).unwrap();
    assert!(case.rescue_source().ends_with(&booted), "{booted}");
    let rescue = instance.rescue.unwrap();
    assert_eq!((rescue.state(), rescue.changed_since), (v1::InstanceRescueState::Rescued, false));
    for (role, source) in [
        (v1::InstanceDiskRole::Rescue, case.rescue_source()),
        (v1::InstanceDiskRole::Root, case.root.source()),
        (v1::InstanceDiskRole::Seed, format!("/var/lib/mortar-rescue/seed-{UUID}.img")),
    ] {
        let found: Vec<_> = instance.disks.iter().filter(|disk| disk.role() == role).collect();
        assert_eq!(found.iter().map(|disk| &*disk.source).collect::<Vec<_>>(), [source], "{case:?} {role:?}");
    }
    assert!(!everything(&stage).await.contains(&reply.password), "the password is to be found");

    let again = client.rescue(request.clone()).await.unwrap();
    assert!(!again.changed && again.password.is_empty());
    let other = v1::RescueRequest { without_data_disks: true, layout: v1::RescueLayout::Classic.into(), ..request };
    let refused = client.rescue(other).await.unwrap_err();
    assert!(refused.reason == "WRONG_STATE" && refused.message.contains("unrescue it first"), "{refused:?}");
    if !rescue.attachment_id.is_empty() {
        let refused = client.detach(&rescue.attachment_id).await.unwrap_err();
        assert!(refused.message.contains("the rescue of web1"), "{refused:?}");
        assert_eq!(client.get(&rescue.attachment_id).await.unwrap().held_by, "the rescue of web1");
    }

    let back = client.unrescue("web1").await.unwrap();
    assert!(back.changed && back.rebound.is_empty());
    assert_eq!(back.instance.unwrap().rescue, None);
    assert_eq!(stage.domains.defined(uuid()).unwrap(), definition);
    if case.runs {
        assert!(case.root.source().ends_with(&stage.domains.booted_from(uuid()).unwrap()));
    }
    assert_eq!(after(&before, &stage).await, "", "{case:?}: something was left behind");
    assert!(!client.unrescue("web1").await.unwrap().changed);
}

/// What is on the machine and was not there before, or is gone. QEMU is another process each time.
async fn after(before: &str, stage: &SimStage) -> String {
    let without_pids = |text: &str| {
        let mut parts = text.split("(pid ");
        let mut plain = parts.next().unwrap_or_default().to_owned();
        plain.extend(parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())));
        plain
    };
    crate::crash::difference(&without_pids(before), &without_pids(&stage.snapshot().await))
}

/// All that an agent leaves in writing, and the machine with it.
#[expect(clippy::disallowed_methods, reason = "the agent's own files, from outside")]
async fn everything(stage: &SimStage) -> String {
    let mut text = stage.snapshot().await;
    for file in std::fs::read_dir(stage.state_directory()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    text + &stage.machine.commands().join("\n")
}

macro_rules! everywhere {
    ($($name:ident: $root:expr, $disk:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                for layout in [v1::RescueLayout::Classic, v1::RescueLayout::Stable] {
                    for runs in [true, false] {
                        there_and_back(Case { root: $root, disk: Backend::$disk, layout, runs }).await;
                    }
                }
            }
        )*
    };
}

everywhere! {
    file_root: Root::File, File;
    lvm_root: Root::Attached(Backend::Lvm), Lvm;
    iscsi_root: Root::Attached(Backend::Iscsi), Iscsi;
    mapped_rbd_root: Root::Attached(Backend::Rbd), Rbd;
    native_rbd_root: Root::NativeRbd, Rbd;
    lvm_root_and_a_file: Root::Attached(Backend::Lvm), File;
    file_root_and_an_lv: Root::File, Lvm;
    file_root_and_an_rbd_image: Root::File, Rbd;
}

#[tokio::test]
async fn the_data_disks_are_left_out_when_asked() {
    let stage = small(true).await;
    let mut client = stage.client();
    let request = v1::RescueRequest { without_data_disks: true, ..image() };
    client.rescue(request).await.unwrap();
    let targets: Vec<String> = sources(&client.instance(UUID).await.unwrap()).into_iter().map(|it| it.0).collect();
    assert_eq!(targets, ["vda", "vdb"], "{}", stage.domains.defined(uuid()).unwrap());
    client.unrescue("web1").await.unwrap();
}

#[tokio::test]
async fn power() {
    let stage = small(false).await;
    let mut client = stage.client().instances;
    let name = || UUID.to_owned();
    let start = || v1::StartInstanceRequest { instance: name(), timeout_ms: 0 };
    let stop = |grace_ms| v1::StopInstanceRequest { instance: name(), grace_ms, timeout_ms: 0 };
    let reboot = || v1::RebootInstanceRequest { instance: name(), grace_ms: None, timeout_ms: 0 };
    let outcome = |reply: v1::PowerResponse| (reply.changed, reply.stopped(), reply.instance.unwrap().power());
    let running = v1::InstancePower::Running;
    let started = client.start(start()).await.unwrap().into_inner();
    assert!(!started.operation_id.is_empty());
    assert_eq!(outcome(started), (true, v1::Stopped::Unspecified, running));
    assert_eq!(outcome(client.start(start()).await.unwrap().into_inner()), (false, v1::Stopped::Unspecified, running));
    let rebooted = client.reboot(reboot()).await.unwrap().into_inner();
    assert_eq!(outcome(rebooted), (true, v1::Stopped::Gracefully, running));
    stage.domains.deafen(uuid());
    let stopped = client.stop(stop(Some(0))).await.unwrap().into_inner();
    assert_eq!(outcome(stopped), (true, v1::Stopped::Hard, v1::InstancePower::Off));
    let again = client.stop(stop(None)).await.unwrap().into_inner();
    assert_eq!(outcome(again), (false, v1::Stopped::WasOff, v1::InstancePower::Off));
    assert_eq!(stage.client().running().await.len(), 0);
}

/// The device of the root disk has another name when the original comes back.
#[tokio::test]
async fn the_original_gets_its_disks_by_what_they_are() {
    let (stage, request) =
        Case { root: Root::File, disk: Backend::File, layout: v1::RescueLayout::Classic, runs: false }.make().await;
    let machine = &stage.machine;
    for (name, wwid) in [("sdx", "naa.a"), ("sdy", "naa.b")] {
        machine.put_file(format!("/sys/block/{name}/device/wwid"), wwid);
        machine.put_raw(format!("/dev/{name}"), SIZE);
    }
    let root = disk("block", "dev='/dev/sdx'/>", "vda");
    stage.domains.put(&domain(&root));
    let before = stage.domains.defined(uuid()).unwrap();
    let mut client = stage.client();
    client.rescue(request).await.unwrap();
    machine.put_file("/sys/block/sdx/device/wwid", "naa.b");
    machine.put_file("/sys/block/sdy/device/wwid", "naa.c");
    let refused = client.unrescue("web1").await.unwrap_err();
    assert!(refused.message.contains("vda, /dev/sdx, is another device now"), "{refused:?}");
    machine.put_file("/sys/block/sdy/device/wwid", "naa.a");
    let back = client.unrescue("web1").await.unwrap();
    assert_eq!(back.rebound, ["vda was /dev/sdx and is /dev/sdy now"]);
    assert_eq!(stage.domains.defined(uuid()).unwrap(), before.replace("/dev/sdx", "/dev/sdy"));
}

/// A rescue outlives a reboot of the host: its disk is attached again.
#[tokio::test]
async fn a_rescued_instance_is_rescued_after_a_reboot() {
    let case =
        Case { root: Root::Attached(Backend::Lvm), disk: Backend::Lvm, layout: v1::RescueLayout::Classic, runs: true };
    let (mut stage, request) = case.make().await;
    let definition = stage.domains.defined(uuid()).unwrap();
    stage.client().rescue(request).await.unwrap();
    stage.reboot().await;
    let mut client = stage.client();
    for id in ["root".to_owned(), format!("rescue-{UUID}")] {
        until(&id, async || client.get(&id).await.unwrap().state() == v1::AttachmentState::Ready).await;
    }
    let start = v1::StartInstanceRequest { instance: UUID.into(), timeout_ms: 0 };
    client.instances.start(start).await.unwrap();
    assert!(stage.domains.booted_from(uuid()).unwrap().ends_with(&format!("rescue-{UUID}")));
    client.unrescue("web1").await.unwrap();
    assert_eq!(stage.domains.defined(uuid()).unwrap(), definition);
    assert_eq!(client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dry_run_tells_what_a_rescue_does_and_changes_nothing() {
    for (backend, first) in [
        (Backend::Lvm, format!("derive lvm:{VG}/rescue-{UUID} from lvm:{VG}/image")),
        (Backend::File, format!("derive file:{DIRECTORY}/rescue-{UUID}.img from file:{DIRECTORY}/image.raw")),
    ] {
        let case =
            Case { root: Root::File, disk: backend, layout: v1::RescueLayout::Stable, runs: backend == Backend::Lvm };
        let (stage, request) = case.make().await;
        let before = stage.snapshot().await;
        let dry = v1::RescueRequest { dry_run: true, grace_ms: Some(60_000), ..request.clone() };
        let told = stage.client().rescue(dry.clone()).await.unwrap();
        assert_eq!(stage.snapshot().await, before, "{backend}");
        let operations = stage.client().operations.list(v1::ListOperationsRequest::default()).await.unwrap();
        let kinds: Vec<_> = operations.into_inner().operations.iter().map(v1::Operation::kind).collect();
        assert!(!kinds.contains(&v1::OperationKind::Rescue), "{kinds:?}");
        assert!(told.changed && told.password.is_empty() && told.operation_id.is_empty(), "{told:?}");
        assert!(told.instance.unwrap().rescue.is_none());
        let mut would = vec![first];
        if backend == Backend::Lvm {
            would.push(format!("attach lvm:{VG}/rescue-{UUID} as rescue-{UUID}"));
        }
        would.push(format!("write the seed /var/lib/mortar-rescue/seed-{UUID}.img"));
        if case.runs {
            would.push("stop web1, whose guest has 60 s to shut down".into());
        }
        would.push("define web1 to boot from it: it comes last, every other in its place".into());
        would.push("start web1".into());
        assert_eq!(told.would, would);

        stage.client().rescue(request).await.unwrap();
        let again = stage.client().rescue(dry).await.unwrap();
        assert!(!again.changed && again.would.is_empty(), "{again:?}");
        let other = v1::RescueRequest { layout: v1::RescueLayout::Classic.into(), dry_run: true, ..image() };
        assert_eq!(stage.client().rescue(other).await.unwrap_err().reason, "WRONG_STATE");
    }
}
