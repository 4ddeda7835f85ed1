//! The driver on the simulated machine.

mod ways;

use crate::{IscsiConfig, IscsiDriver, record};
use driver::{
    Access, Attached, Attempt, Chap, Detached, Device, Driver, Error, Footprint, Identity, Locator, ResidualKind,
    Result, Spec,
};
use host::{
    Host, Output, User,
    sim::{Machine, iscsi::LogicalUnit},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;

const PORTAL: &str = "10.0.0.5:3260";
const T1: &str = "iqn.2026-11.org.example:t1";
const A: &str = "600140500000000000000000000000a1";
const B: &str = "600140500000000000000000000000b2";
const SIZE: u64 = 64 << 20;

/// A machine with the target T1 in its network, whose LUN 0 is A and whose LUN 1 is B.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.add_target(T1, &[PORTAL]);
    machine.map_lun(T1, 0, LogicalUnit::disk(A, SIZE));
    machine.map_lun(T1, 1, LogicalUnit::disk(B, 2 * SIZE));
    machine
}

fn driver(machine: &Machine) -> IscsiDriver {
    IscsiDriver::new(Arc::new(machine.clone()), IscsiConfig::default())
}

fn spec(locator: &str) -> Spec {
    Spec {
        locator: locator.parse().unwrap(),
        read_only: false,
        exclusive: false,
        expected_wwn: None,
        expected_size: None,
    }
}

fn lun(lun: u16) -> Spec {
    spec(&format!("iscsi://{PORTAL}/{T1}/{lun}"))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn chap_access(password: &str) -> Attempt {
    let chap = Some(Chap { user: "host-a".into(), password: password.into() });
    Attempt { access: Access { chap, cephx: None }, ..Attempt::until(soon()) }
}

fn nothing_here() -> Footprint {
    Footprint::Iscsi { were_here: Vec::new(), map_was_here: false }
}

fn was_here(way: &Spec) -> Footprint {
    let Locator::Iscsi(unit) = &way.locator else { panic!("an iSCSI volume") };
    Footprint::Iscsi { were_here: unit.ways.clone(), map_was_here: false }
}

async fn attach_with(driver: &IscsiDriver, spec: &Spec, attempt: &Attempt) -> Result<(Attached, Device)> {
    let footprint = driver.prepare(spec).await?;
    let device = driver.attach(spec, &footprint, attempt).await?;
    Ok((Attached { spec: spec.clone(), footprint, identity: Some(device.identity.clone()) }, device))
}

async fn attach(driver: &IscsiDriver, spec: &Spec) -> Result<(Attached, Device)> {
    attach_with(driver, spec, &Attempt::until(soon())).await
}

fn wwn(naa: &str) -> Identity {
    Identity::Scsi { wwn: naa.parse().unwrap() }
}

fn processes(machine: &Machine, word: &str) -> usize {
    machine.commands().iter().filter(|command| command.contains(word)).count()
}

#[tokio::test(start_paused = true)]
async fn there_and_back_without_a_trace() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &lun(0)).await.unwrap();
    assert_eq!(device.path, Path::new("/dev/sda"));
    assert_eq!(device.identity, wwn(A));
    assert_eq!(device.size_bytes, SIZE);
    assert_eq!(device.paths[0].portal.unwrap().to_string(), PORTAL);
    assert_eq!(device.paths[0].state, "running");
    assert_eq!(at.footprint, nothing_here());
    assert_eq!(driver.find(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    assert_eq!(driver.users(&at).await.unwrap(), Vec::<String>::new());
    // No record is left after the login, and so no password.
    assert!(machine.list(Path::new("/etc/iscsi/nodes")).unwrap().is_empty());
    assert_eq!(machine.processes(), 1);

    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.processes(), 2);
    assert_eq!(machine.snapshot(), before);
    assert_eq!(driver.find(&at).await.unwrap(), None);
    // Again is the same, and costs nothing.
    let effects = machine.effects().len();
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.effects().len(), effects);
}

#[tokio::test(start_paused = true)]
async fn attach_again_is_the_same_device() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &lun(0)).await.unwrap();
    let again = driver.attach(&at.spec, &at.footprint, &Attempt::until(soon())).await.unwrap();
    assert_eq!(again, device);
    assert_eq!(processes(&machine, "--login"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lun_that_is_not_offered_is_said_at_once() {
    let machine = machine();
    let before = machine.snapshot();
    let started = Instant::now();
    let error = attach(&driver(&machine), &lun(7)).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    assert!(error.to_string().starts_with("LUN 7 of target iqn.2026-11.org.example:t1 at 10.0.0.5:3260"));
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn portals_that_do_not_answer() {
    let machine = machine();
    machine.silence("10.0.0.9:3260");
    let before = machine.snapshot();
    let driver = driver(&machine);
    let started = Instant::now();
    let refused = attach(&driver, &spec(&format!("iscsi://10.0.0.8/{T1}/0"))).await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(1));
    let silent = attach(&driver, &spec(&format!("iscsi://10.0.0.9/{T1}/0"))).await.unwrap_err();
    assert!(matches!(silent, Error::Unreachable { .. }), "{silent}");
    assert_eq!(started.elapsed().as_secs(), 20);
    assert_eq!(machine.processes(), 0);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_not_there() {
    let machine = machine();
    let before = machine.snapshot();
    let error = attach(&driver(&machine), &spec(&format!("iscsi://{PORTAL}/iqn.2026-11.org.example:no/0"))).await;
    assert!(error.unwrap_err().to_string().contains("check the IQN"));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_succeeds_and_brings_no_session() {
    let machine = machine();
    machine.hide_sessions(T1);
    let before = machine.snapshot();
    let started = Instant::now();
    let error = attach(&driver(&machine), &lun(0)).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. } | Error::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains(T1) && error.to_string().contains(PORTAL), "{error}");
    assert_eq!(started.elapsed().as_secs(), 20);
    assert_eq!(machine.processes(), 1, "{:?}", machine.commands());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_password_is_seen_nowhere() {
    let machine = machine();
    machine.require_chap(T1, "host-a", "right-secret-1");
    let before = machine.snapshot();
    let driver = driver(&machine);
    let wrong = chap_access("wrong-secret-2");
    let denied = attach_with(&driver, &lun(0), &wrong).await.unwrap_err();
    assert!(matches!(denied, Error::Denied { .. }), "{denied}");
    let none = attach(&driver, &lun(0)).await.unwrap_err();
    assert!(matches!(none, Error::Denied { .. }), "{none}");
    assert_eq!(machine.snapshot(), before);
    let (at, device) = attach_with(&driver, &lun(0), &chap_access("right-secret-1")).await.unwrap();
    // Nowhere: not on a command line, not in an effect, an error, a Debug text, or a file.
    let seen =
        format!("{:?} {:?} {denied} {denied:?} {wrong:?} {at:?} {device:?} ", machine.commands(), machine.effects());
    let seen = seen + &machine.snapshot();
    assert!(!seen.contains("secret-1") && !seen.contains("secret-2"), "{seen}");
    assert!(driver.detach(&at, soon()).await.unwrap().residuals.is_empty());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn the_record_is_for_root_only() {
    let machine = machine();
    machine.require_chap(T1, "host-a", "right-secret-1");
    let driver = Arc::new(driver(&machine));
    // The interface, then the record.
    machine.crash_after(2);
    let attaching = tokio::spawn(async move { attach_with(&driver, &lun(0), &chap_access("right-secret-1")).await });
    machine.crashed().await;
    attaching.abort();
    let record = machine.snapshot().lines().find(|line| line.contains(",0/mortar ")).map(str::to_owned).unwrap();
    assert!(record.contains("mortar 600 "), "{record}");
}

#[tokio::test(start_paused = true)]
async fn another_volume_than_expected_leaves_nothing() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let other = Spec { expected_wwn: Some(B.parse().unwrap()), ..lun(0) };
    let error = attach(&driver, &other).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains(&format!("3{A}")) && error.to_string().contains(&format!("3{B}")));
    assert_eq!(machine.snapshot(), before);
    let larger = Spec { expected_size: Some(SIZE + 1), ..lun(0) };
    assert!(matches!(attach(&driver, &larger).await, Err(Error::Mismatch { .. })));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_disk_or_has_no_name() {
    let machine = machine();
    machine.map_lun(T1, 2, LogicalUnit::disk(A, SIZE).of_type(5));
    machine.map_lun(T1, 3, LogicalUnit::disk(A, SIZE).without_name().without_serial());
    machine.map_lun(T1, 4, LogicalUnit::disk(A, SIZE).without_name());
    let before = machine.snapshot();
    let driver = driver(&machine);
    let tape = attach(&driver, &lun(2)).await.unwrap_err();
    assert!(tape.to_string().contains("is no disk: its SCSI device type is 0x5"), "{tape}");
    assert_eq!(machine.snapshot(), before);
    let nameless = attach(&driver, &lun(3)).await.unwrap_err();
    assert!(matches!(nameless, Error::Unreachable { .. } | Error::WrongState { .. }), "{nameless}");
    assert_eq!(machine.snapshot(), before);
    let (_, serial) = attach(&driver, &lun(4)).await.unwrap();
    assert_eq!(serial.identity.to_string(), format!("wwn:S{A}"));
}

#[tokio::test(start_paused = true)]
async fn two_units_share_a_session() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (first, _) = attach(&driver, &lun(0)).await.unwrap();
    let (second, device) = attach(&driver, &lun(1)).await.unwrap();
    assert_eq!(device.identity, wwn(B));
    assert_eq!(processes(&machine, "--login"), 1);
    driver.detach(&first, soon()).await.unwrap();
    assert_eq!(processes(&machine, "--logout"), 0);
    assert_eq!(driver.prove(&second).await.unwrap().unwrap().identity, wwn(B));
    driver.detach(&second, soon()).await.unwrap();
    assert_eq!(processes(&machine, "--logout"), 1);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn twenty_callers_of_one_target_and_fifty_targets_at_once() {
    let machine = machine();
    for number in 2..20 {
        machine.map_lun(T1, number, LogicalUnit::disk(&format!("60014050000000000000000000000f{number:02}"), SIZE));
    }
    for number in 0..50 {
        let iqn = format!("{T1}-{number}");
        machine.add_target(&iqn, &[PORTAL]);
        machine.map_lun(&iqn, 0, LogicalUnit::disk(&format!("60014050000000000000000000001f{number:02}"), SIZE));
    }
    let before = machine.snapshot();
    let driver = Arc::new(driver(&machine));
    let specs = (0..20).map(lun).chain((0..50).map(|number| spec(&format!("iscsi://{PORTAL}/{T1}-{number}/0"))));
    let attaching: Vec<_> = specs
        .map(|spec| {
            let driver = driver.clone();
            tokio::spawn(async move { attach(&driver, &spec).await })
        })
        .collect();
    let mut attached = Vec::new();
    for attaching in attaching {
        attached.push(attaching.await.unwrap().unwrap().0);
    }
    assert_eq!(processes(&machine, "--login"), 51);
    let detaching: Vec<_> = attached
        .into_iter()
        .map(|at| {
            let driver = driver.clone();
            tokio::spawn(async move { driver.detach(&at, soon()).await })
        })
        .collect();
    for detaching in detaching {
        assert_eq!(detaching.await.unwrap().unwrap(), Detached::default());
    }
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn an_operators_device_is_used_and_stays() {
    let machine = machine();
    machine.operator_login(T1, PORTAL, "manual");
    tokio::time::advance(Duration::from_secs(1)).await;
    settle(&machine, "sdb").await;
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &lun(0)).await.unwrap();
    assert_eq!(at.footprint, was_here(&at.spec));
    assert_eq!(device.identity, wwn(A));
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert_eq!(detached.kept, ["/dev/sda was here before"]);
    assert!(detached.residuals.is_empty());
    assert_eq!(machine.processes(), 0);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_we_bring_is_on_a_session_of_ours() {
    let machine = machine();
    machine.unmap_lun(T1, 1);
    machine.operator_login(T1, PORTAL, "manual");
    settle(&machine, "sda").await;
    machine.map_lun(T1, 1, LogicalUnit::disk(B, SIZE));
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &lun(1)).await.unwrap();
    assert_eq!(at.footprint, nothing_here());
    assert_eq!(device.identity, wwn(B));
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), before);
    // The operator finds the unit too. A detach that is repeated now must not take it for ours.
    machine.operator_logout(T1, PORTAL);
    machine.operator_login(T1, PORTAL, "manual");
    settle(&machine, "sdb").await;
    let theirs = machine.snapshot();
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), theirs);
    assert_eq!(driver.find(&at).await.unwrap(), None);
}

/// Waits for a block device that comes by itself.
async fn settle(machine: &Machine, device: &str) {
    let node = Path::new("/dev").join(device);
    let there = || Ok(machine.stat(&node)?.map(drop));
    host::wait_for(machine, soon(), there).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stale_device_is_removed_first() {
    let machine = machine();
    let driver = driver(&machine);
    let (_, device) = attach(&driver, &lun(0)).await.unwrap();
    assert_eq!(device.identity, wwn(A));
    // The target maps another volume there; the kernel does not notice.
    machine.map_lun(T1, 0, LogicalUnit::disk(B, 3 * SIZE));
    let (at, device) = attach(&driver, &Spec { expected_wwn: Some(B.parse().unwrap()), ..lun(0) }).await.unwrap();
    assert_eq!((device.identity, device.size_bytes), (wwn(B), 3 * SIZE));
    // One that somebody uses is not.
    machine.map_lun(T1, 0, LogicalUnit::disk(A, SIZE));
    machine.mount("sda", "/mnt/a");
    let before = machine.snapshot();
    let error = attach(&driver, &lun(0)).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { by, .. } if by == &["mounted at /mnt/a"]), "{error}");
    assert_eq!(machine.snapshot(), before);
    machine.release("sda");
    assert!(matches!(driver.prove(&at).await, Err(Error::Mismatch { .. })));
}

/// Between the look of a detach and its act, all of it goes, and somebody else's disk gets the name.
#[tokio::test(start_paused = true)]
async fn a_name_that_went_to_another_disk_is_not_removed() {
    const THEIRS: &str = "iqn.2026-11.org.example:theirs";
    const C: &str = "600140500000000000000000000000c3";
    let calls = ["users /dev/sda", "claim /dev/sda", "--logout"];
    for (call, proved) in calls.into_iter().flat_map(|call| [(call, true), (call, false)]) {
        let machine = machine();
        machine.add_target(THEIRS, &[PORTAL]);
        machine.map_lun(THEIRS, 0, LogicalUnit::disk(C, SIZE));
        let driver = driver(&machine);
        let (mut at, device) = attach(&driver, &lun(0)).await.unwrap();
        // As after a crash: what was not proved yet is not flushed.
        at.identity = at.identity.filter(|_| proved);
        assert_eq!(device.path, Path::new("/dev/sda"));
        machine.before_next(call, |machine| {
            machine.end_sessions(T1);
            machine.operator_login(THEIRS, PORTAL, "manual");
        });
        // Where the name has nobody just then, the detach ends with that, and is called again.
        let first = driver.detach(&at, soon()).await;
        settle(&machine, "sda").await;
        match first {
            Ok(detached) => assert_eq!(detached, Detached::default(), "{call}"),
            Err(error) => {
                assert!(matches!(error, Error::Host { .. } | Error::Flush { .. }), "{call}: {error}");
                assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default(), "{call}");
            }
        }
        let theirs = attach(&driver, &spec(&format!("iscsi://{PORTAL}/{THEIRS}/0"))).await.unwrap();
        assert_eq!((theirs.1.path.as_path(), theirs.1.identity), (Path::new("/dev/sda"), wwn(C)), "{call}");
        // At the logout it was still ours.
        let flushed = machine.effects().iter().any(|effect| effect == "flush /dev/sda");
        assert!(!flushed || call == "--logout", "{call}: another volume was flushed");
        assert_eq!(processes(&machine, THEIRS), 0, "{call}: what the operator has was used");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_flushed_to_another_volume() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    machine.map_lun(T1, 0, LogicalUnit::disk(B, SIZE));
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    let effects = machine.effects();
    assert!(!effects.iter().any(|effect| effect.starts_with("flush")));
    assert!(effects.iter().any(|effect| effect.ends_with("delete 1")));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_handed_out_is_not_flushed() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    let at = Attached { identity: None, ..at };
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert!(!machine.effects().iter().any(|effect| effect.starts_with("flush")));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn an_operators_stale_device_is_never_handed_out() {
    let machine = machine();
    machine.operator_login(T1, PORTAL, "manual");
    settle(&machine, "sdb").await;
    let before = machine.snapshot();
    let driver = driver(&machine);
    machine.map_lun(T1, 0, LogicalUnit::disk(B, 3 * SIZE));
    machine.mount("sda", "/mnt/a");
    assert!(matches!(attach(&driver, &lun(0)).await, Err(Error::InUse { .. })));
    machine.release("sda");
    assert_eq!(machine.snapshot(), before);
    // Nobody uses it, and it has proved to be another volume.
    let (at, device) = attach(&driver, &lun(0)).await.unwrap();
    assert_eq!(at.footprint, was_here(&at.spec));
    assert_eq!((device.identity, device.size_bytes), (wwn(B), 3 * SIZE));
    assert_eq!(driver.detach(&at, soon()).await.unwrap().kept.len(), 1);
    assert_eq!(processes(&machine, "--login"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operators_device_that_does_not_answer_is_left_alone() {
    let machine = machine();
    machine.operator_login(T1, PORTAL, "manual");
    settle(&machine, "sdb").await;
    let driver = driver(&machine);
    let before = machine.snapshot();
    let timed_out = || host::Error::TimedOut { what: "INQUIRY".into(), after: Duration::from_secs(5) };
    let refused = || host::Error::Io {
        doing: "ask the identity of",
        path: "/dev/sda".into(),
        source: std::io::Error::other("SCSI status 0x2, sense key 0x6, code 0x2900"),
    };
    // It is too slow.
    machine.fail_next("inquiry /dev/sda 0x83", timed_out());
    assert!(matches!(attach(&driver, &lun(0)).await, Err(Error::Unreachable { .. })));
    // It refuses to give its names this once; its serial number alone is no proof that it is another volume.
    machine.fail_next("inquiry /dev/sda 0x83", refused());
    assert!(matches!(attach(&driver, &lun(0)).await, Err(Error::Unreachable { .. })));
    assert_eq!(attach(&driver, &lun(0)).await.unwrap().1.identity, wwn(A));
    // The target maps nothing there for a while.
    machine.unmap_lun(T1, 0);
    let unmapped = attach(&driver, &lun(0)).await.unwrap_err();
    assert!(matches!(&unmapped, Error::Unreachable { why, .. } if why.contains("maps nothing")), "{unmapped}");
    machine.map_lun(T1, 0, LogicalUnit::disk(A, SIZE));
    // Its session has lost its connection.
    machine.cut_target(T1, true);
    let started = Instant::now();
    let cut = attach(&driver, &lun(0)).await.unwrap_err();
    assert!(matches!(&cut, Error::Unreachable { why, .. } if why.contains("FAILED")), "{cut}");
    assert_eq!(started.elapsed(), Duration::ZERO);
    machine.cut_target(T1, false);
    assert_eq!(machine.effects(), Vec::<String>::new());
    assert_eq!(machine.snapshot(), before);
}

/// After a target was away, the first answers may be refusals: no reason to take the volume for another one.
#[tokio::test(start_paused = true)]
async fn a_device_that_refuses_its_names_once_is_flushed_before_it_goes() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    let attention = host::Error::Io {
        doing: "ask the identity of",
        path: "/dev/sda".into(),
        source: std::io::Error::other("SCSI status 0x2, sense key 0x6, code 0x2900"),
    };
    machine.fail_next("inquiry /dev/sda 0x83", attention);
    driver.detach(&at, soon()).await.unwrap();
    assert!(machine.effects().iter().any(|effect| effect == "flush /dev/sda"), "{:?}", machine.effects());
}

#[tokio::test(start_paused = true)]
async fn who_uses_it_keeps_it() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    let before = machine.snapshot();
    machine.open("sda", 4711, "qemu-system-x86");
    assert_eq!(driver.users(&at).await.unwrap(), ["open by qemu-system-x86 (pid 4711)"]);
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert_eq!(error.to_string(), "/dev/sda is in use: open by qemu-system-x86 (pid 4711)");
    machine.release("sda");
    assert_eq!(machine.snapshot(), before);
    machine.engage("sda", User::Swap);
    assert!(matches!(driver.detach(&at, soon()).await, Err(Error::InUse { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_flushed_is_not_detached() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    let before = machine.snapshot();
    let source = std::io::Error::other("input/output error");
    machine.fail_next("flush", host::Error::Io { doing: "sync", path: "/dev/sda".into(), source });
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Flush { .. }), "{error}");
    // Too slow is not lost.
    let after = Duration::from_secs(20);
    machine.fail_next("flush", host::Error::TimedOut { what: "flush of /dev/sda".into(), after });
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(machine.snapshot(), before);
    // Nor is what there was no time for.
    let effects = machine.effects().len();
    let error = driver.detach(&at, Instant::now()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(machine.effects().len(), effects);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_stays_is_a_residual() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    let busy = Output {
        code: 28,
        stderr: "iscsiadm: initiator reported error (28 - device or resource in use)".into(),
        ..Output::default()
    };
    machine.fail_next("--logout", busy);
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert_eq!(detached.residuals.len(), 1);
    assert_eq!(detached.residuals[0].kind, ResidualKind::Session);
    assert!(detached.residuals[0].reason.contains("device or resource in use"));
    // Whoever comes next takes it away.
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_login_whose_end_nobody_saw() {
    let machine = machine();
    let driver = driver(&machine);
    let after = Duration::from_secs(20);
    let before = machine.snapshot();
    // It took longer than the caller had time, and came through: it is taken back.
    machine.lose_next("--login", host::Error::TimedOut { what: "iscsiadm".into(), after });
    let footprint = driver.prepare(&lun(0)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let late = driver.attach(&lun(0), &footprint, &Attempt::until(deadline)).await;
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert_eq!(processes(&machine, "--logout"), 1);
    assert_eq!(machine.snapshot(), before);
    // However much time the caller has: the login is given all of it.
    machine.lose_next("--login", host::Error::TimedOut { what: "iscsiadm".into(), after });
    assert!(matches!(attach(&driver, &lun(0)).await, Err(Error::TimedOut { .. })));
    assert_eq!(processes(&machine, "--logout"), 2);
    assert_eq!(machine.snapshot(), before);
    // It did not.
    machine.fail_next("--login", host::Error::TimedOut { what: "iscsiadm".into(), after });
    assert!(matches!(attach(&driver, &lun(0)).await, Err(Error::TimedOut { .. })));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_ends_after_the_callers_deadline_is_waited_for() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let footprint = driver.prepare(&lun(0)).await.unwrap();
    let after = Duration::from_secs(3);
    machine.before_next("--login", move |machine| {
        machine.login_ends_later(T1, PORTAL, "mortar", after + Duration::from_secs(1));
    });
    machine.fail_next("--login", host::Error::TimedOut { what: "iscsiadm".into(), after });
    let deadline = Instant::now() + after;
    let attached = driver.attach(&lun(0), &footprint, &Attempt::until(deadline)).await;
    assert!(matches!(attached, Err(Error::TimedOut { .. })), "{attached:?}");
    let later = host::wait_for(&machine, Instant::now() + Duration::from_secs(60), || Ok(None::<()>)).await;
    assert!(later.unwrap().is_none());
    assert_eq!(processes(&machine, "--logout"), 1);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_login_that_has_no_time_is_not_begun() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let footprint = driver.prepare(&lun(0)).await.unwrap();
    let deadline = Instant::now() + Duration::from_millis(900);
    let attached = driver.attach(&lun(0), &footprint, &Attempt::until(deadline)).await;
    assert!(matches!(attached, Err(Error::TimedOut { .. })), "{attached:?}");
    assert_eq!(machine.processes(), 0);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_logout_ends_before_the_next_one_comes() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    // It comes through long after the caller's deadline.
    machine.lose_next("--logout", host::Error::TimedOut { what: "iscsiadm".into(), after: Duration::from_secs(1) });
    let started = Instant::now();
    let detached = driver.detach(&at, started + Duration::from_secs(1)).await.unwrap();
    assert_eq!(detached, Detached::default());
    assert!(started.elapsed() >= Duration::from_secs(20));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_has_just_started_is_asked_again() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    // Captured from open-iscsi 2.1.8.
    let stderr = "iscsiadm: initiator reported error (2 - session not found)\n";
    machine.fail_next("--logout", Output { code: 2, stderr: stderr.into(), ..Output::default() });
    machine.fail_next("--logout", Output { code: 32, ..Output::default() });
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn grown() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    machine.resize_lun(T1, 0, 2 * SIZE);
    assert_eq!(driver.find(&at).await.unwrap().unwrap().size_bytes, SIZE);
    assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 * SIZE);
    // Who attaches it again is told the size of now.
    machine.resize_lun(T1, 0, 3 * SIZE);
    assert_eq!(attach(&driver, &lun(0)).await.unwrap().1.size_bytes, 3 * SIZE);
    machine.cut_target(T1, true);
    assert!(matches!(driver.extend(&at, soon()).await, Err(Error::Unreachable { .. })));
    driver.detach(&at, soon()).await.ok();
}

#[tokio::test(start_paused = true)]
async fn read_only() {
    let machine = machine();
    machine.map_lun(T1, 1, LogicalUnit::disk(B, SIZE).write_protected());
    let driver = driver(&machine);
    let (_, device) = attach(&driver, &Spec { read_only: true, ..lun(0) }).await.unwrap();
    assert!(device.read_only);
    assert_eq!(machine.read(Path::new("/sys/block/sda/ro")).unwrap().as_deref(), Some("1"));
    let (_, device) = attach(&driver, &lun(1)).await.unwrap();
    assert!(device.read_only);
}

#[tokio::test(start_paused = true)]
async fn read_only_as_it_is_now() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &lun(0)).await.unwrap();
    machine.before_next("inquiry", |machine| machine.put_file("/sys/block/sda/ro", "1\n"));
    assert!(driver.prove(&at).await.unwrap().unwrap().read_only);
    machine.before_next("inquiry", |machine| machine.put_file("/sys/block/sda/ro", "0\n"));
    assert!(!driver.prove(&at).await.unwrap().unwrap().read_only);
    // One that goes while it is asked is not there.
    machine.before_next("inquiry", |machine| machine.remove_tree("/sys/class/scsi_device/0:0:0:0"));
    assert_eq!(driver.prove(&at).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn read_only_again_after_the_kernel_has_forgotten_it() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &Spec { read_only: true, ..lun(0) }).await.unwrap();
    assert!(device.read_only);
    machine.before_next("rescan", |machine| machine.put_file("/sys/block/sda/ro", "0\n"));
    assert!(driver.extend(&at, soon()).await.unwrap().read_only);
    assert_eq!(machine.read(Path::new("/sys/block/sda/ro")).unwrap().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_an_operators_device_is_found_and_ours_is_gone() {
    let mut machine = machine();
    machine.operator_login(T1, PORTAL, "automatic");
    settle(&machine, "sdb").await;
    let driver_before = driver(&machine);
    let (theirs, _) = attach(&driver_before, &lun(0)).await.unwrap();
    let two = format!("{T1}-2");
    machine.add_target(&two, &[PORTAL]);
    machine.map_lun(&two, 0, LogicalUnit::disk(B, SIZE));
    let (ours, _) = attach(&driver_before, &spec(&format!("iscsi://{PORTAL}/{two}/0"))).await.unwrap();
    machine.reboot();
    settle(&machine, "sda").await;
    let driver = driver(&machine);
    assert!(driver.find(&theirs).await.unwrap().is_some());
    assert_eq!(driver.find(&ours).await.unwrap(), None);
    assert_eq!(driver.detach(&ours, soon()).await.unwrap(), Detached::default());
    // Our interface's file goes with the last of us.
    assert!(machine.list(Path::new("/etc/iscsi/ifaces")).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_effect_of_attach_is_undone_by_detach() {
    for undo_crashes in [None, Some(1), Some(2), Some(3)] {
        for effects in 1.. {
            let mut machine = machine();
            machine.require_chap(T1, "host-a", "right-secret-1");
            let before = machine.snapshot();
            let first = driver(&machine);
            let spec = Spec { read_only: true, ..lun(0) };
            let footprint = first.prepare(&spec).await.unwrap();
            machine.crash_after(effects);
            let access = chap_access("right-secret-1");
            let ended = tokio::select! {
                attached = first.attach(&spec, &footprint, &access) => { attached.unwrap(); true }
                () = machine.crashed() => false,
            };
            let at = Attached { spec, footprint, identity: None };
            if let Some(effects) = undo_crashes {
                machine.restart();
                let second = driver(&machine);
                machine.crash_after(effects);
                tokio::select! {
                    detached = second.detach(&at, soon()) => { detached.unwrap(); }
                    () = machine.crashed() => {}
                }
            }
            machine.restart();
            let third = driver(&machine);
            assert_eq!(third.detach(&at, soon()).await.unwrap(), Detached::default(), "after {effects} effects");
            assert_eq!(machine.snapshot(), before, "after {effects} effects");
            if ended {
                assert!(effects > 5, "an attach has more effects than {effects}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_effect_of_detach_is_finished_by_the_next() {
    for effects in 1.. {
        let mut machine = machine();
        let before = machine.snapshot();
        let first = driver(&machine);
        let (at, _) = attach(&first, &lun(0)).await.unwrap();
        machine.crash_after(effects);
        let ended = tokio::select! {
            detached = first.detach(&at, soon()) => { detached.unwrap(); true }
            () = machine.crashed() => false,
        };
        machine.restart();
        assert_eq!(driver(&machine).detach(&at, soon()).await.unwrap(), Detached::default(), "after {effects} effects");
        assert_eq!(machine.snapshot(), before, "after {effects} effects");
        if ended {
            assert!(effects > 3, "a detach has more effects than {effects}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_left_alone_is_removed() {
    let machine = machine();
    let before = machine.snapshot();
    let spec = lun(0);
    let place = crate::Place::all(&spec.locator).unwrap().remove(0);
    machine.put_file(record::path(Path::new("/etc/iscsi/nodes"), &place), "node.name = x\n");
    machine.put_file("/etc/iscsi/ifaces/mortar", "");
    let at = Attached { spec, footprint: nothing_here(), identity: None };
    assert_eq!(driver(&machine).detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_agent_left_empty_goes_and_what_an_operator_has_there_stays() {
    let machine = machine();
    attach(&driver(&machine), &lun(0)).await.unwrap();
    let attached = machine.snapshot();
    let place = crate::Place::all(&lun(0).locator).unwrap().remove(0);
    let record = record::path(Path::new("/etc/iscsi/nodes"), &place);
    machine.put_directory(record.parent().unwrap());
    driver(&machine).tidy().await;
    assert_eq!(machine.snapshot(), attached);
    let operators = record.with_file_name("default");
    machine.put_file(&operators, "node.name = x\n");
    driver(&machine).tidy().await;
    assert!(machine.stat(&operators).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_a_crash_left_half_written_is_removed() {
    let machine = machine();
    let before = machine.snapshot();
    let spec = lun(0);
    let place = crate::Place::all(&spec.locator).unwrap().remove(0);
    // As host/src/linux/files.rs names them.
    let record = record::path(Path::new("/etc/iscsi/nodes"), &place);
    machine.put_file(record.with_file_name(".mortar.new"), "node.session.auth.password = right-secret-1\n");
    machine.put_file("/etc/iscsi/ifaces/.mortar.new", "");
    let at = Attached { spec, footprint: nothing_here(), identity: None };
    assert_eq!(driver(&machine).detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn readiness() {
    let machine = machine();
    let driver = driver(&machine);
    let ready = driver.readiness().await;
    assert_eq!(ready.problem, None);
    assert_eq!((ready.tools[0].name.as_str(), ready.tools[0].version.as_str()), ("iscsiadm", "2.1.8"));
    // Asked as often as one likes, the attach itself is one process.
    driver.readiness().await;
    attach(&driver, &lun(0)).await.unwrap();
    assert_eq!(processes(&machine, "--version"), 1);
    assert_eq!(machine.processes(), 2);
    machine.put_file("/etc/iscsi/initiatorname.iscsi", "# none\nInitiatorName=\n");
    assert!(driver.readiness().await.problem.unwrap().contains("iscsi-iname"));
    machine.remove_tool(host::Tool::Iscsiadm);
    assert!(driver.readiness().await.problem.unwrap().contains("install the package open-iscsi"));
    assert!(matches!(driver.prepare(&lun(0)).await, Err(Error::WrongState { .. })));
}
