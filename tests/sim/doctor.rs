//! The doctor: everything in each of its four states, each beside the same of somebody else, and a repair that takes away
//! what is ours and nobody's, while others work.

use crate::machine::{BACKENDS, CLUSTER, IQN, POOL, PORTAL, SimStage, VG, until};
use driver::Backend;
use host::{Host, LoopSetup, sim::iscsi::LogicalUnit};
use proto::v1::{self, HostObjectKind as Kind, HostObjectState as State};
use std::{collections::BTreeSet, path::Path, time::Duration};
use tests::{
    client::{attach, manage},
    stage::Stage,
};
use tokio::time::sleep;

const SIZE: u64 = 16 << 20;
const THEIRS: &str = "iqn.2026-11.org.example:theirs";
const SECOND_PORTAL: &str = "127.0.0.2:3260";
const TARGETS: &str = "/sys/kernel/config/target";
const ELSEWHERE: &str = "iqn.2026-11.org.example:elsewhere:export-e";
const ELSEWHERE_IN_FABRIC: [&str; 3] = [
    "iscsi/iqn.2026-11.org.example:elsewhere:export-e",
    "iscsi/iqn.2026-11.org.example:elsewhere:export-e/tpgt_1",
    "iscsi/iqn.2026-11.org.example:elsewhere:export-e/tpgt_1/lun/lun_0",
];

async fn doctor(stage: &SimStage, repair: bool) -> v1::DiagnoseResponse {
    let request = v1::DiagnoseRequest { repair, ..Default::default() };
    stage.client().host.diagnose(request).await.unwrap().into_inner()
}

/// What a repair would do.
async fn rehearsed(stage: &SimStage) -> v1::DiagnoseResponse {
    let request = v1::DiagnoseRequest { repair: true, dry_run: true, ..Default::default() };
    stage.client().host.diagnose(request).await.unwrap().into_inner()
}

/// The kinds and names of what is in a state.
fn in_state(response: &v1::DiagnoseResponse, state: State) -> BTreeSet<(Kind, String)> {
    let objects = response.objects.iter().filter(|object| object.state() == state);
    objects.map(|object| (object.kind(), object.name.clone())).collect()
}

fn kinds(of: &BTreeSet<(Kind, String)>) -> BTreeSet<Kind> {
    of.iter().map(|(kind, _)| *kind).collect()
}

#[track_caller]
fn named<'a>(response: &'a v1::DiagnoseResponse, name: &str) -> &'a v1::HostObject {
    let found = response.objects.iter().find(|object| object.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:#?}", response.objects))
}

#[track_caller]
fn assert_clean(response: &v1::DiagnoseResponse) {
    for state in [State::Orphan, State::Stale] {
        assert_eq!(in_state(response, state), BTreeSet::new(), "{response:#?}");
    }
}

/// One of each kind that somebody else has.
#[expect(clippy::disallowed_methods, reason = "from outside, there is nothing to wait on")]
async fn strangers(stage: &mut SimStage) {
    let machine = &stage.machine;
    machine.run_multipathd(true);
    machine.add_target(THEIRS, &["127.0.0.3:3260"]);
    machine.map_lun(THEIRS, 0, LogicalUnit::disk("6001405ffffffffffffffffffffffff0", SIZE));
    machine.operator_login(THEIRS, "127.0.0.3:3260", "manual");
    // Once udev has looked at it.
    while machine.stat(Path::new("/dev/dm-0")).unwrap().is_none() {
        machine.multipathd_at_the_shell("add path sda");
        machine.multipathd_at_the_shell("add map 36001405ffffffffffffffffffffffff0");
        sleep(Duration::from_millis(5)).await;
    }
    machine.put_raw("/srv/theirs.raw", SIZE);
    let setup = LoopSetup { file: "/srv/theirs.raw".into(), read_only: false, label: "theirs".into() };
    machine.loop_attach(&setup).await.unwrap();
    machine.add_image(CLUSTER, POOL, "", "theirs", SIZE);
    machine.map_image(&format!("127.0.0.1:6789 name=admin,secret=x {POOL} theirs -"));
    machine.add_lv(VG, "theirs", SIZE);
    machine.activate_lv(VG, "theirs", false);
    let at = |path: &str| format!("{TARGETS}/{path}");
    for directory in [
        "core/iblock_0",
        "core/iblock_0/mortar-theirs",
        "iscsi",
        "iscsi/iqn.2026-11.org.example:export-theirs",
        "iscsi/iqn.2026-11.org.example:export-theirs/tpgt_1",
        // Called as the target of our export would be, with something else in it.
        ELSEWHERE_IN_FABRIC[0],
        ELSEWHERE_IN_FABRIC[1],
        ELSEWHERE_IN_FABRIC[2],
    ] {
        machine.make_directory(Path::new(&at(directory))).await.unwrap();
    }
    machine.put_file(at("core/iblock_0/mortar-theirs/enable"), "1\n");
    let (lun, store) = (format!("{}/mortar-theirs", ELSEWHERE_IN_FABRIC[2]), "core/iblock_0/mortar-theirs");
    machine.symlink(Path::new(&at(&lun)), Path::new(&at(store))).await.unwrap();
    machine.put_file("/dev/mortar/lost+found", "");
    machine.put_link("/dev/mortar/not an id", "/dev/sda");
}

const FOREIGN: [Kind; 10] = [
    Kind::StablePath,
    Kind::Session,
    Kind::NodeRecord,
    Kind::Device,
    Kind::MultipathMap,
    Kind::Mapping,
    Kind::Activation,
    Kind::Loop,
    Kind::Target,
    Kind::Backstore,
];

/// One attachment of each backend, one by two portals, an export and a managed volume.
async fn ours(stage: &mut SimStage) {
    let mut client = stage.client();
    for backend in BACKENDS {
        let locator = stage.volume(backend, &format!("{backend}-1"), SIZE).await;
        client.attach(attach(backend.as_str(), &locator)).await.unwrap();
    }
    let several = "iqn.2026-11.org.example:several";
    stage.machine.add_target(several, &[PORTAL, SECOND_PORTAL]);
    stage.machine.map_lun(several, 3, LogicalUnit::disk("6001405eeeeeeeeeeeeeeeeeeeeeeee0", SIZE));
    let all = v1::AttachRequest {
        all_paths: true,
        ..attach("several", &format!("iscsi://{PORTAL},{SECOND_PORTAL}/{several}/3"))
    };
    client.attach(all).await.unwrap();
    let exported = stage.volume(Backend::Lvm, "exported", SIZE).await;
    let export = v1::ExportRequest {
        id: "e".into(),
        locator: exported,
        initiator: "iqn.2026-11.org.example:other".into(),
        ..v1::ExportRequest::default()
    };
    client.export(export).await.unwrap();
    let managed = stage.volume(Backend::Lvm, "managed", SIZE).await;
    client.manage(manage(&managed)).await.unwrap();
}

/// The journal is gone, and with it all that is known of what is ours.
#[expect(clippy::disallowed_methods, reason = "what a test does to the agent's own files")]
pub(crate) async fn lose_the_journal(stage: &mut SimStage) {
    stage.kill();
    for file in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        let _may_be_none = std::fs::remove_file(stage.state_directory().join(file));
    }
    stage.start().await;
}

#[tokio::test]
async fn everything_has_an_owner() {
    let mut stage = SimStage::new().await;
    strangers(&mut stage).await;
    ours(&mut stage).await;
    let before = stage.snapshot().await;
    let response = doctor(&stage, true).await;
    assert_clean(&response);
    assert_eq!(response.findings, [], "a host as it should be");
    assert_eq!(stage.snapshot().await, before, "there was nothing to repair");

    let foreign = in_state(&response, State::Foreign);
    assert!(kinds(&foreign).is_superset(&BTreeSet::from(FOREIGN)), "{foreign:#?}");
    let why = |name: &str| named(&response, name).why.clone();
    assert_eq!(why("/dev/mortar/lost+found"), "it is no link");
    assert_eq!(why("iqn.2026-11.org.example:export-theirs"), "there is no backstore of ours for it");
    assert_eq!(why("iblock_0/mortar-theirs"), "its HBA is not ours");
    assert_eq!(why(ELSEWHERE), "it has LUNs that are not ours");

    let ours = in_state(&response, State::Ours);
    let expected = [
        Kind::Record,
        Kind::Volume,
        Kind::StablePath,
        Kind::Session,
        Kind::Device,
        Kind::MultipathMap,
        Kind::Mapping,
        Kind::Activation,
        Kind::Loop,
        Kind::Target,
        Kind::Backstore,
        Kind::Hba,
    ];
    assert_eq!(kinds(&ours), BTreeSet::from(expected), "{ours:#?}");
    let of = |kind: Kind| {
        let of_kind = response.objects.iter().filter(|object| object.kind() == kind && object.state() == State::Ours);
        of_kind.map(|object| object.why.clone()).collect::<BTreeSet<_>>()
    };
    let owners = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(of(Kind::Session), owners(&["attachment iscsi", "attachment several"]));
    assert_eq!(of(Kind::MultipathMap), owners(&["attachment several"]));
    assert_eq!(of(Kind::Activation), owners(&["attachment lvm", "export e"]));
    assert_eq!(of(Kind::Loop), owners(&["attachment file"]));
    assert_eq!(of(Kind::Mapping), owners(&["attachment rbd"]));
    assert_eq!(of(Kind::Target), owners(&["export e"]));
}

#[tokio::test]
async fn what_nobody_has_is_an_orphan_and_goes_and_nothing_else_does() {
    let mut stage = SimStage::new().await;
    strangers(&mut stage).await;
    let volumes = stage.snapshot().await;
    ours(&mut stage).await;
    // What a login leaves that outlived its agent: a session without a unit.
    stage.machine.login_ends_later(THEIRS, "127.0.0.3:3260", "mortar", Duration::ZERO);
    let attached = stage.snapshot().await;
    lose_the_journal(&mut stage).await;
    // An attach of the last agent that died before its record's time.
    let record = format!("/etc/iscsi/nodes/{IQN}/127.0.0.9,3260,0/mortar");
    stage.machine.put_file(&record, "node.name = x\n");
    stage.machine.put_link("/dev/mortar/forgotten", "/dev/sda");
    stage.machine.put_link("/dev/mortar/.forgotten.new", "/dev/sda");

    // The start took away nothing but stable paths, and a look takes away nothing at all.
    let found = doctor(&stage, false).await;
    assert!(attached.contains("iqn.2026-11.org.example:several"), "{attached}");
    let orphans = in_state(&found, State::Orphan);
    let expected = [
        Kind::StablePath,
        Kind::Session,
        Kind::NodeRecord,
        Kind::Device,
        Kind::MultipathMap,
        Kind::Mapping,
        Kind::Loop,
        Kind::Target,
        Kind::Backstore,
        Kind::Hba,
    ];
    assert_eq!(kinds(&orphans), BTreeSet::from(expected), "{orphans:#?}");
    assert!(in_state(&found, State::Stale).is_empty(), "{found:#?}");
    assert!(found.objects.iter().all(|object| object.repair() == v1::RepairOutcome::Unspecified));
    assert_eq!(in_state(&doctor(&stage, false).await, State::Orphan), orphans);

    let untouched = stage.snapshot().await;
    let told = rehearsed(&stage).await;
    assert_eq!(stage.snapshot().await, untouched, "a dry run touched something");
    assert_eq!(in_state(&told, State::Orphan), orphans);
    for object in told.objects.iter().filter(|object| object.state() == State::Orphan) {
        assert_eq!(object.repair(), v1::RepairOutcome::WouldBeRemoved, "{object:#?}");
    }

    let repaired = doctor(&stage, true).await;
    for object in repaired.objects.iter().filter(|object| object.state() == State::Orphan) {
        assert_eq!(object.repair(), v1::RepairOutcome::Removed, "{object:#?}");
    }
    let after = doctor(&stage, false).await;
    assert_clean(&after);
    let foreign = in_state(&found, State::Foreign);
    assert_eq!(in_state(&after, State::Foreign), foreign);
    assert!(kinds(&foreign).is_superset(&BTreeSet::from(FOREIGN)), "{foreign:#?}");
    // Every line of the strangers' is there still.
    let now = stage.snapshot().await;
    let lost: Vec<&str> = volumes.lines().filter(|line| !now.contains(line)).collect();
    assert_eq!(lost, Vec::<&str>::new());
    assert!(!now.contains(&record), "{now}");
}

#[tokio::test]
async fn an_orphan_that_is_used_is_left_and_its_users_are_named() {
    let mut stage = SimStage::new().await;
    let mut devices = Vec::new();
    for backend in [Backend::File, Backend::Iscsi, Backend::Rbd] {
        let locator = stage.volume(backend, "v", SIZE).await;
        let attached = stage.client().attach(attach(backend.as_str(), &locator)).await.unwrap();
        devices.push(attached.attachment.unwrap().path);
    }
    lose_the_journal(&mut stage).await;
    for device in &devices {
        stage.occupy(device).await;
    }
    let before = stage.snapshot().await;
    for told in [rehearsed(&stage).await, doctor(&stage, true).await] {
        for device in &devices {
            let object = named(&told, device);
            assert_eq!((object.state(), object.repair()), (State::Orphan, v1::RepairOutcome::Left), "{object:#?}");
            assert!(object.repair_detail.contains("/mnt/data"), "{object:#?}");
        }
    }
    assert_eq!(stage.snapshot().await, before, "something was touched");
    for device in &devices {
        stage.vacate(device).await;
    }
    doctor(&stage, true).await;
    assert_clean(&doctor(&stage, false).await);
}

#[tokio::test]
async fn what_is_stale_is_told_and_stays() {
    let mut stage = SimStage::new().await;
    let mut paths = Vec::new();
    for (backend, name) in BACKENDS.into_iter().map(|backend| (backend, backend.as_str())).chain([
        (Backend::Iscsi, "reused"),
        (Backend::File, "dangling"),
        (Backend::File, "elsewhere"),
    ]) {
        let locator = stage.volume(backend, name, SIZE).await;
        paths.push(stage.client().attach(attach(name, &locator)).await.unwrap().attachment.unwrap().path);
    }
    let [file, iscsi, _lvm, rbd, reused, dangling, _elsewhere] = &paths[..] else { panic!("{paths:?}") };
    let machine = &stage.machine;
    machine.loop_detach(Path::new(file)).await.unwrap();
    machine.unmap_image(rbd.trim_start_matches("/dev/rbd").parse().unwrap());
    let units = machine.list(Path::new("/sys/class/scsi_device")).unwrap();
    let unit = units.iter().find(|unit| unit.ends_with(":0")).unwrap();
    machine.write(Path::new(&format!("/sys/class/scsi_device/{unit}/device/delete")), "1").await.unwrap();
    machine.remove_lv(VG, "lvm");
    machine.unmap_lun(IQN, 1);
    machine.map_lun(IQN, 1, LogicalUnit::disk("6001405ddddddddddddddddddddddd00", SIZE));
    machine.put_link("/dev/mortar/dangling", "/dev/nowhere");
    machine.put_link("/dev/mortar/elsewhere", dangling);
    assert!(machine.stat(Path::new(iscsi)).unwrap().is_none(), "{iscsi} was to be deleted");

    let before = stage.snapshot().await;
    let response = doctor(&stage, true).await;
    assert!(in_state(&response, State::Orphan).is_empty(), "{response:#?}");
    for (name, words) in [
        ("attachment file", "its device is not there; attach it again, or detach file"),
        ("attachment iscsi", "its device is not there; attach it again, or detach iscsi"),
        ("attachment lvm", "its device is not there; attach it again, or detach lvm"),
        ("attachment rbd", "its device is not there; attach it again, or detach rbd"),
        ("attachment reused", "6001405ddddddddddddddddddddddd00, expected wwn:36001405"),
        (reused, "it answers as 36001405ddddddddddddddddddddddd00 now, and was attached as 3"),
        ("/dev/mortar/dangling", "it dangles"),
        ("/dev/mortar/elsewhere", "the device of elsewhere is"),
    ] {
        let object = named(&response, name);
        assert!(object.state() == State::Stale && object.why.contains(words), "{object:#?}");
        assert_eq!(object.repair(), v1::RepairOutcome::Unspecified, "{object:#?}");
    }
    assert_eq!(named(&response, "attachment dangling").state(), State::Ours);
    assert_eq!(stage.snapshot().await, before, "what is stale was touched");
    assert_eq!(stage.client().list().await.unwrap().len(), 7);
    for name in ["file", "iscsi", "lvm", "rbd", "reused", "dangling", "elsewhere"] {
        stage.client().detach(name).await.unwrap();
    }
    assert_clean(&doctor(&stage, false).await);
}

/// A device that does not answer is no reason to give its attachment up: it is told, and stays.
#[tokio::test]
async fn what_does_not_answer_is_a_finding() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.client().attach(attach("a", &locator)).await.unwrap();
    stage.machine.cut_target(IQN, true);
    let response = doctor(&stage, true).await;
    assert_clean(&response);
    let finding = response.findings.iter().find(|finding| finding.subject == "attachment a");
    assert!(finding.is_some_and(|it| it.severity() == v1::Severity::Warning), "{response:#?}");
    assert_eq!(named(&response, "attachment a").state(), State::Ours);
}

/// A map that hangs in the kernel is an operation's; and when it comes after its caller has gone, it is not the doctor's.
#[tokio::test]
async fn what_an_operation_is_at_is_not_an_orphan() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Rbd, "v", SIZE).await;
    let go = stage.machine.hold_next_map();
    let mut client = stage.client();
    let attaching = tokio::spawn(async move { client.attach(attach("a", &locator)).await });
    until("the attach", async || !stage.client().running().await.is_empty()).await;
    stage.machine.put_link("/dev/mortar/a", "/dev/rbd0");
    let response = doctor(&stage, true).await;
    assert_clean(&response);
    assert_eq!(named(&response, "/dev/mortar/a").why, "the attach of a is under way");
    drop(go);
    attaching.await.unwrap().unwrap();
    assert_clean(&doctor(&stage, true).await);
}

/// Repairs one after the other, while volumes of all backends come and go: no call fails by it, and none finds an orphan.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_repair_is_in_nobodys_way() {
    let mut stage = SimStage::new().await;
    let mut work = Vec::new();
    for number in 0..3 {
        for backend in BACKENDS {
            let locator = stage.volume(backend, &format!("{backend}-{number}"), SIZE).await;
            let (mut client, id) = (stage.client(), format!("{backend}-{number}"));
            work.push(tokio::spawn(async move {
                for _ in 0..15 {
                    client.attach(attach(&id, &locator)).await.unwrap();
                    client.detach(&id).await.unwrap();
                }
            }));
        }
    }
    let all = async {
        for task in work {
            task.await.unwrap();
        }
    };
    tokio::pin!(all);
    let mut repairs = 0;
    loop {
        tokio::select! {
            () = &mut all => break,
            response = doctor(&stage, true) => {
                assert_clean(&response);
                repairs += 1;
            }
        }
    }
    assert!(repairs > 1, "there was nothing to be in the way of");
    assert_clean(&doctor(&stage, false).await);
}

#[tokio::test]
async fn a_host_that_is_not_as_it_should_be() {
    let stage = SimStage::new().await;
    stage.machine.run_multipathd(true);
    assert_eq!(doctor(&stage, false).await.findings, []);
    stage.machine.put_file("/etc/multipath.conf", "defaults {\n  no_path_retry queue\n}\n");
    stage.machine.put_file("/etc/iscsi/iscsid.conf", "node.session.timeo.replacement_timeout = -1\n");
    stage.machine.set_clock(host::Clock { unix_seconds: 0, synchronised: false });
    stage.machine.set_room(host::Room { total_bytes: 1 << 30, free_bytes: 1 << 20 });
    stage.machine.remove_tree("/usr/lib/udev/rules.d/61-mortar.rules");
    stage.machine.remove_tree("/lib/modules");
    stage.machine.remove_tree("/usr/lib64");
    stage.machine.put_file("/etc/lvm/lvm.conf", "use_devicesfile=0\n");
    let findings = doctor(&stage, false).await.findings;
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity()).collect();
    let worst_first = |pair: &[v1::Severity]| pair[0] >= pair[1];
    assert!(severities.windows(2).all(worst_first), "{severities:?}");
    for subject in [
        "/etc/multipath.conf: no_path_retry",
        "/etc/iscsi/iscsid.conf: node.session.timeo.replacement_timeout",
        "the clock",
        "the journal's disk",
        "61-mortar.rules",
        "kernel module iscsi_tcp",
        "kernel module loop",
        "kernel module rbd",
        "kernel module target_core_mod",
        "Ceph's libraries",
        "lvm.conf: devices",
    ] {
        let found = findings.iter().find(|finding| finding.subject == subject);
        assert!(found.is_some_and(|finding| !finding.advice.is_empty()), "{subject}: {findings:#?}");
    }
}
