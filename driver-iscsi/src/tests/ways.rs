//! Several ways to a unit, on the simulated machine with multipathd.

use super::{A, B, SIZE, T1, attach, attach_with, chap_access, driver, processes, soon, spec, wwn};
use driver::{Attached, Attempt, Device, Driver, Error, Footprint, Identity, ResidualKind, Spec};
use host::{
    Host, Uevents,
    sim::{Machine, iscsi::LogicalUnit},
    wait_for,
};
use std::time::Duration;
use tokio::time::Instant;

const PORTALS: [&str; 4] = ["10.0.0.5:3260", "10.0.1.5:3260", "10.0.2.5:3260", "10.0.3.5:3260"];
const T2: &str = "iqn.2026-11.org.example:t2";

/// A machine with multipathd, and the target T1 with four portals, whose LUN 0 is A.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.add_target(T1, &PORTALS);
    machine.map_lun(T1, 0, LogicalUnit::disk(A, SIZE));
    machine.run_multipathd(true);
    machine
}

/// With a unit at a target of its own, the second way of [`two_targets`].
fn also_at_another_target(unit: LogicalUnit) -> Machine {
    let machine = machine();
    machine.add_target(T2, &["10.9.0.5:3260"]);
    machine.map_lun(T2, 5, unit);
    machine
}

fn four() -> Spec {
    spec(&format!("iscsi://{}/{T1}/0", PORTALS.join(",")))
}

/// LUN 0 of T1 by its first portal, and LUN 5 of T2 by a portal of its own.
fn two_targets() -> Spec {
    spec(&format!("iscsi://{}/{T1}/0,10.9.0.5:3260/{T2}/5", PORTALS[0]))
}

/// LUN 0 of T1 by its first portal alone.
fn one() -> Spec {
    spec(&format!("iscsi://{}/{T1}/0", PORTALS[0]))
}

/// The operator's session by a portal, and a map of its disk.
async fn operators_map(machine: &Machine, portal: &str) {
    machine.operator_login(T1, portal, "manual");
    events(machine.uevents(), 1).await;
    let looked_at = Instant::now() + Duration::from_millis(200);
    let _nothing: Option<()> = wait_for(machine, looked_at, || Ok(None)).await.unwrap();
    assert_eq!(machine.multipathd_at_the_shell(&format!("add map 3{A}")), "ok");
}

fn all() -> Attempt {
    Attempt { all_paths: true, ..Attempt::until(soon()) }
}

fn states(device: &Device) -> Vec<&str> {
    device.paths.iter().map(|path| path.state.as_str()).collect()
}

/// Waits until so many ways are paths of the map.
async fn joined(machine: &Machine, map: &str, ways: usize) {
    let slaves = || Ok((machine.list(format!("/sys/block/{map}/slaves").as_ref())?.len() == ways).then_some(()));
    let deadline = Instant::now() + Duration::from_secs(300);
    assert!(wait_for(machine, deadline, slaves).await.unwrap().is_some(), "not {ways} paths in {map}");
}

async fn events(mut events: Uevents, how_many: usize) {
    for _ in 0..how_many {
        events.next().await;
    }
}

#[tokio::test(start_paused = true)]
async fn four_paths_and_back_without_a_trace() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach_with(&driver, &four(), &all()).await.unwrap();
    assert_eq!((device.path.to_str(), &device.identity, device.size_bytes), (Some("/dev/dm-0"), &wwn(A), SIZE));
    assert_eq!(states(&device), ["running"; 4]);
    let portals: Vec<_> = device.paths.iter().map(|path| path.portal.unwrap().to_string()).collect();
    assert_eq!(portals, PORTALS);
    assert_eq!(machine.commands().len(), 4, "a process for each login: {:?}", machine.commands());
    let writes = |effect: &&String| effect.starts_with("replace /etc/iscsi/ifaces/");
    assert_eq!(machine.effects().iter().filter(writes).count(), 1, "{:?}", machine.effects());
    assert_eq!(driver.find(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(driver.users(&at).await.unwrap(), Vec::<String>::new());
    let again = driver.attach(&at.spec, &at.footprint, &all()).await.unwrap();
    assert_eq!((again, processes(&machine, "--login")), (device, 4));
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert_eq!((detached.residuals, detached.kept), (vec![], vec![]));
    assert_eq!(machine.snapshot(), before);
    assert_eq!(driver.find(&at).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn without_multipathd_nothing_is_begun() {
    let machine = machine();
    machine.run_multipathd(false);
    let driver = driver(&machine);
    let error = driver.prepare(&four()).await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
    assert!(error.to_string().contains("systemctl start multipathd") && error.to_string().contains("one portal"));
    let nothing = Footprint::Iscsi { were_here: Vec::new(), map_was_here: false };
    assert!(driver.attach(&four(), &nothing, &all()).await.is_err());
    assert_eq!(machine.effects(), Vec::<String>::new());
}

/// The first good path is handed out, however dead the others are; they join when they come to life, until the detach.
#[tokio::test(start_paused = true)]
async fn a_dead_portal_delays_nothing_and_joins_later() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    machine.cut_portal(PORTALS[0], true);
    machine.cut_portal(PORTALS[2], true);
    let begun = Instant::now();
    let (at, device) = attach(&driver, &four()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((states(&device)[0], states(&device)[2]), ("absent", "absent"));
    joined(&machine, "dm-0", 2).await;
    machine.cut_portal(PORTALS[0], false);
    joined(&machine, "dm-0", 3).await;
    assert_eq!(states(&driver.prove(&at).await.unwrap().unwrap()), ["running", "running", "absent", "running"]);
    driver.detach(&at, soon()).await.unwrap();
    machine.cut_portal(PORTALS[2], false);
    let later = Instant::now() + Duration::from_secs(300);
    let _nothing: Option<()> = wait_for(&machine, later, || Ok(None)).await.unwrap();
    assert_eq!(machine.snapshot(), before, "a way came after the detach");
}

/// The first to answer logs in alone, until the attach is recorded; a caller who wants all ways has them all begun at once.
#[tokio::test(start_paused = true)]
async fn one_way_goes_ahead_of_the_others() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    machine.silence(PORTALS[0]);
    let (at, device) = attach(&driver, &four()).await.unwrap();
    assert_eq!((processes(&machine, "--login"), states(&device)[0]), (1, "absent"));
    let recorded = Instant::now();
    driver.tend(&at).await;
    joined(&machine, "dm-0", 3).await;
    assert!(recorded.elapsed() < Duration::from_millis(500), "{:?}", recorded.elapsed());
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);

    // Nobody says so, as when the agent could not record it: they go all the same.
    let (at, _) = attach(&driver, &four()).await.unwrap();
    joined(&machine, "dm-0", 3).await;
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

/// One that answers and then is mute costs the head start, and no more.
#[tokio::test(start_paused = true)]
async fn a_mute_way_leads_for_a_second() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let mute = machine.hang(0, "--login");
    let begun = Instant::now();
    let (at, device) = attach(&driver, &four()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(states(&device).iter().filter(|state| **state == "absent").count(), 1, "{device:?}");
    mute.let_go();
    joined(&machine, "dm-0", 4).await;
    driver.detach(&at, soon()).await.unwrap();
    // Who has little time waits for half of it.
    let mute = machine.hang(0, "--login");
    let hurried = Attempt::until(Instant::now() + Duration::from_millis(1600));
    let (at, _) = attach_with(&driver, &four(), &hurried).await.unwrap();
    mute.let_go();
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

/// One that leads and fails frees the others at once.
#[tokio::test(start_paused = true)]
async fn a_denied_way_leads_for_a_moment() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    machine.require_chap(T1, "host-a", "open sesame");
    let before = machine.snapshot();
    let driver = driver(&machine);
    let begun = Instant::now();
    let (at, device) = attach(&driver, &two_targets()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(states(&device), ["absent", "running"]);
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_goes_on_with_the_ways_that_are_missing() {
    let mut machine = machine();
    let before = machine.snapshot();
    machine.cut_portal(PORTALS[3], true);
    let first = driver(&machine);
    let (at, _) = attach(&first, &four()).await.unwrap();
    joined(&machine, "dm-0", 3).await;
    machine.restart();
    let driver = driver(&machine);
    machine.cut_portal(PORTALS[3], false);
    driver.tend(&at).await;
    joined(&machine, "dm-0", 4).await;
    driver.detach(&at, soon()).await.unwrap();
    // The way of the first process that never came to its end left a record.
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn all_paths_means_all_and_the_one_that_fails_is_named() {
    let machine = machine();
    let before = machine.snapshot();
    machine.cut_portal(PORTALS[3], true);
    let error = attach_with(&driver(&machine), &four(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains(PORTALS[3]), "{error}");
    machine.cut_portal(PORTALS[3], false);
    assert_eq!(machine.snapshot(), before);
}

/// When no way works, all are told, under the code of the one that tells most.
#[tokio::test(start_paused = true)]
async fn when_every_way_fails_all_errors_are_told() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let nowhere = spec(&format!("iscsi://{}/{T1}/99", PORTALS.join(",")));
    let begun = Instant::now();
    let error = attach(&driver, &nowhere).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert!(PORTALS.iter().all(|portal| error.to_string().contains(portal)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    machine.cut_portal(PORTALS[0], true);
    let begun = Instant::now();
    let error = attach(&driver, &nowhere).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("no answer"), "{error:?}");
    assert!(begun.elapsed() <= Duration::from_secs(21), "{:?}", begun.elapsed());
    machine.cut_portal(PORTALS[0], false);
    assert_eq!(machine.snapshot(), before);
}

/// The ways have to lead to one volume of one size; both are named, and nothing is left.
#[tokio::test(start_paused = true)]
async fn ways_that_disagree_are_refused() {
    for (unit, named) in
        [(LogicalUnit::disk(B, SIZE), format!("3{B}")), (LogicalUnit::disk(A, 2 * SIZE), (2 * SIZE).to_string())]
    {
        let machine = also_at_another_target(unit);
        let before = machine.snapshot();
        let error = attach_with(&driver(&machine), &two_targets(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&named) && text.contains("LUN 5") && text.contains("LUN 0"), "{text}");
        assert_eq!(machine.snapshot(), before);
    }
}

/// A way that disagrees when the attachment stands already is told, once, and nothing of it stays.
#[tokio::test(start_paused = true)]
async fn a_late_way_that_disagrees_is_left_out() {
    let machine = also_at_another_target(LogicalUnit::disk(B, SIZE));
    let before = machine.snapshot();
    machine.cut_portal("10.9.0.5:3260", true);
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &two_targets()).await.unwrap();
    let attached = machine.snapshot();
    machine.cut_portal("10.9.0.5:3260", false);
    let later = Instant::now() + Duration::from_secs(300);
    let _nothing: Option<()> = wait_for(&machine, later, || Ok(None)).await.unwrap();
    assert_eq!(machine.snapshot(), attached, "the way left something");
    let logins = machine.effects().iter().filter(|effect| effect.contains(T2) && effect.contains("--login")).count();
    assert_eq!(logins, 1, "{:?}", machine.effects());
    let device = driver.prove(&at).await.unwrap().unwrap();
    let problems: Vec<_> = device.paths.iter().map(|path| path.problem.as_deref().unwrap_or_default()).collect();
    assert!(
        problems[0].is_empty() && problems[1].contains("another volume") && problems[1].contains(B),
        "{problems:?}"
    );
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn several_targets_and_units_are_one_volume() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach_with(&driver, &two_targets(), &all()).await.unwrap();
    assert_eq!(states(&device), ["running"; 2]);
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

/// Once attached, a path that became another volume is seen, and gets nothing of what is flushed.
#[tokio::test(start_paused = true)]
async fn a_path_that_became_another_volume_is_named() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &two_targets(), &all()).await.unwrap();
    machine.map_lun(T2, 5, LogicalUnit::disk(B, SIZE));
    let error = driver.prove(&at).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { found, .. } if found.contains(B)), "{error:?}");
    machine.map_lun(T2, 5, LogicalUnit::disk(A, SIZE));
    machine.before_next("inquiry", |machine| machine.map_lun(T2, 5, LogicalUnit::disk(B, SIZE)));
    driver.detach(&at, soon()).await.unwrap();
    let effects = machine.effects();
    let out = effects.iter().position(|effect| effect.starts_with("multipathd del path")).unwrap();
    assert!(out < effects.iter().position(|effect| effect == "flush /dev/dm-0").unwrap());
    machine.map_lun(T2, 5, LogicalUnit::disk(A, SIZE));
    assert_eq!(machine.snapshot(), before);
}

/// As long as such a path is in the map, what is flushed could reach it.
#[tokio::test(start_paused = true)]
async fn a_path_that_became_another_volume_and_stays_in_the_map() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &two_targets(), &all()).await.unwrap();
    machine.map_lun(T2, 5, LogicalUnit::disk(B, SIZE));
    machine.refuse_to_remove_paths(true);
    let attached = machine.snapshot();
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::TimedOut { waiting_for } if waiting_for.contains(B)), "{error:?}");
    assert_eq!(machine.snapshot(), attached, "nothing is touched");
    assert!(!machine.effects().iter().any(|effect| effect.starts_with("flush")), "{:?}", machine.effects());
    machine.refuse_to_remove_paths(false);
    driver.detach(&at, soon()).await.unwrap();
    machine.map_lun(T2, 5, LogicalUnit::disk(A, SIZE));
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_map_in_use_is_not_touched() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    machine.mount("dm-0", "/mnt/data");
    let before = machine.snapshot();
    assert_eq!(driver.users(&at).await.unwrap(), ["mounted at /mnt/data"]);
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { what, by } if what == "/dev/dm-0" && by == &["mounted at /mnt/data"]));
    machine.release("dm-0");
    machine.open("sdb", 7, "dd");
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { by, .. } if by == &["open by dd (pid 7)"]), "{error:?}");
    machine.release("sdb");
    machine.mount("dm-0", "/mnt/data");
    assert_eq!(machine.snapshot(), before);
}

/// While no path answers, nothing can be flushed: the detach ends in time, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn with_every_path_dead_a_detach_ends_in_time() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    machine.cut_target(T1, true);
    let attached = machine.snapshot();
    let begun = Instant::now();
    let error = driver.detach(&at, Instant::now() + Duration::from_secs(7)).await.unwrap_err();
    assert!(matches!(&error, Error::TimedOut { waiting_for } if waiting_for.contains("/dev/sdc")), "{error:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
    assert_eq!(machine.snapshot(), attached);
    assert!(matches!(driver.prove(&at).await, Err(Error::Unreachable { .. })));
    machine.cut_target(T1, false);
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
    // One that was never handed out has nothing to lose.
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    machine.cut_target(T1, true);
    let undone = driver.detach(&Attached { identity: None, ..at }, soon()).await.unwrap();
    assert_eq!(undone.residuals, vec![]);
    machine.cut_target(T1, false);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_map_that_will_not_go_is_a_residual() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    machine.refuse_to_remove_maps(true);
    let left = driver.detach(&at, soon()).await.unwrap().residuals;
    assert_eq!((left.len(), left[0].kind, left[0].name.as_str()), (1, ResidualKind::MultipathMap, "/dev/dm-0"));
    assert!(driver.find(&at).await.unwrap().is_some(), "its paths were taken away");
    machine.refuse_to_remove_maps(false);
    machine.run_multipathd(false);
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::WrongState { what } if what.contains("systemctl start multipathd")), "{error:?}");
    machine.run_multipathd(true);
    assert_eq!(driver.detach(&at, soon()).await.unwrap().residuals, vec![]);
}

/// An operator's map, paths and sessions stay; ours leave them.
#[tokio::test(start_paused = true)]
async fn an_operators_map_stays() {
    let machine = machine();
    operators_map(&machine, PORTALS[1]).await;
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach_with(&driver, &four(), &all()).await.unwrap();
    assert!(matches!(&at.footprint, Footprint::Iscsi { were_here, map_was_here: true } if were_here.len() == 1));
    assert_eq!(states(&device), ["running"; 4]);
    // Somebody has one of our paths open past the map, which itself stays.
    let theirs = PORTALS[1].parse().unwrap();
    let ours = device.paths.iter().find(|path| path.portal != Some(theirs)).unwrap().device.clone();
    let attached = machine.snapshot();
    let name = ours.file_name().unwrap().to_str().unwrap().to_owned();
    machine.open(&name, 4711, "qemu");
    assert!(matches!(driver.detach(&at, soon()).await, Err(Error::InUse { .. })));
    machine.release(&name);
    assert_eq!(machine.snapshot(), attached, "nothing is touched");
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert_eq!(detached.kept.len(), 2, "{detached:?}");
    assert_eq!(detached.residuals, vec![]);
    assert_eq!(machine.snapshot(), before);
}

/// Nor is an operator's map handed out that leads to another volume by one of his own paths.
#[tokio::test(start_paused = true)]
async fn an_operators_path_that_became_another_volume() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    machine.operator_login(T2, "10.9.0.5:3260", "manual");
    operators_map(&machine, PORTALS[1]).await;
    let before = machine.snapshot();
    let driver = driver(&machine);
    let one_way = spec(&format!("iscsi://{}/{T1}/0", PORTALS[0]));
    let (at, _) = attach_with(&driver, &one_way, &all()).await.unwrap();
    machine.map_lun(T2, 5, LogicalUnit::disk(B, SIZE));
    let error = driver.prove(&at).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { found, .. } if found.contains(B)), "{error:?}");
    driver.detach(&at, soon()).await.unwrap();
    for locator in [one_way, four()] {
        let error = attach_with(&driver, &locator, &all()).await.unwrap_err();
        assert!(matches!(&error, Error::Mismatch { found, .. } if found.contains(B)), "{error:?}");
    }
    machine.map_lun(T2, 5, LogicalUnit::disk(A, SIZE));
    assert_eq!(machine.snapshot(), before);
}

/// What multipathd once made a map of, it takes again, with the first disk: so the map is what is handed out.
#[tokio::test(start_paused = true)]
async fn one_way_to_a_volume_that_multipathd_remembers() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &one()).await.unwrap();
    assert_eq!(device.path.to_str(), Some("/dev/sda"));
    driver.detach(&at, soon()).await.unwrap();
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    driver.detach(&at, soon()).await.unwrap();
    let before = machine.snapshot();

    let spec = Spec { read_only: true, ..one() };
    let (at, device) = attach(&driver, &spec).await.unwrap();
    assert_eq!((device.path.to_str(), &device.identity, device.size_bytes), (Some("/dev/dm-0"), &wwn(A), SIZE));
    assert_eq!((states(&device), device.read_only), (vec!["running"], true));
    assert_eq!(driver.find(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(attach(&driver, &spec).await.unwrap().1, device);
    machine.resize_lun(T1, 0, 2 * SIZE);
    assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 * SIZE);
    machine.mount("dm-0", "/mnt");
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { what, by } if what == "/dev/dm-0" && by[0].contains("/mnt")), "{error:?}");
    machine.release("dm-0");
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert_eq!((detached.residuals, detached.kept), (vec![], vec![]));
    assert_eq!(machine.snapshot(), before);

    // Nobody takes it.
    machine.blacklist(&format!("3{A}"));
    for running in [true, false] {
        machine.run_multipathd(running);
        let (at, device) = attach(&driver, &one()).await.unwrap();
        assert_eq!(device.path.to_str(), Some("/dev/sda"));
        driver.detach(&at, soon()).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn one_way_where_multipathd_takes_every_disk() {
    let machine = machine();
    machine.take_every_disk();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &one()).await.unwrap();
    assert_eq!(device.path.to_str(), Some("/dev/dm-0"));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    assert_eq!(driver.detach(&at, soon()).await.unwrap().residuals, vec![]);
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn several_ways_to_what_is_kept_out_of_maps() {
    let machine = machine();
    machine.blacklist(&format!("3{A}"));
    let before = machine.snapshot();
    let started = Instant::now();
    let error = attach(&driver(&machine), &four()).await.unwrap_err();
    assert!(matches!(&error, Error::WrongState { what } if what.contains("show blacklist")), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(machine.snapshot(), before);
}

/// A map of somebody else's takes the disk of an attachment by one way as well; it loses it again, and stays.
#[tokio::test(start_paused = true)]
async fn one_way_into_an_operators_map() {
    for portal in [PORTALS[0], PORTALS[1]] {
        let machine = machine();
        operators_map(&machine, portal).await;
        let before = machine.snapshot();
        let driver = driver(&machine);
        let refused = attach(&driver, &Spec { read_only: true, ..one() }).await.unwrap_err();
        assert!(matches!(&refused, Error::WrongState { what } if what.contains("/dev/dm-0")), "{refused:?}");
        assert_eq!(machine.snapshot(), before);
        let (at, device) = attach(&driver, &one()).await.unwrap();
        assert_eq!((device.path.to_str(), states(&device)), (Some("/dev/dm-0"), vec!["running"]));
        assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
        machine.mount("dm-0", "/mnt");
        let detached = driver.detach(&at, soon()).await.unwrap();
        machine.release("dm-0");
        assert_eq!((detached.residuals, detached.kept.len()), (vec![], 1));
        assert_eq!(machine.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_refuses_writes() {
    let machine = machine();
    let driver = driver(&machine);
    let spec = Spec { read_only: true, ..four() };
    let (at, device) = attach_with(&driver, &spec, &all()).await.unwrap();
    assert!(device.read_only && driver.prove(&at).await.unwrap().unwrap().read_only);
    driver.detach(&at, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn four_paths_grow_together_or_not_at_all() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &four(), &all()).await.unwrap();
    machine.resize_lun(T1, 0, 2 * SIZE);
    machine.cut_portal(PORTALS[2], true);
    let error = driver.extend(&at, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains(PORTALS[2]), "{error}");
    assert!(error.to_string().contains("nothing was resized"), "{error}");
    assert_eq!(driver.find(&at).await.unwrap().unwrap().size_bytes, SIZE);
    machine.cut_portal(PORTALS[2], false);
    assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 * SIZE);
    assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 * SIZE);
    driver.detach(&at, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ways_that_grew_differently_are_not_resized() {
    let machine = also_at_another_target(LogicalUnit::disk(A, SIZE));
    let driver = driver(&machine);
    let (at, _) = attach_with(&driver, &two_targets(), &all()).await.unwrap();
    machine.resize_lun(T2, 5, 2 * SIZE);
    let error = driver.extend(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { what, .. } if what.contains("LUN 5")), "{error:?}");
    assert_eq!(driver.find(&at).await.unwrap().unwrap().size_bytes, SIZE);
    driver.detach(&at, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_password_opens_every_way_and_the_wrong_one_is_denied() {
    let machine = machine();
    machine.require_chap(T1, "host-a", "open sesame");
    let driver = driver(&machine);
    let error = attach_with(&driver, &four(), &chap_access("wrong")).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let (at, _) = attach_with(&driver, &four(), &chap_access("open sesame")).await.unwrap();
    joined(&machine, "dm-0", 4).await;
    assert_eq!(at.identity, Some(Identity::Scsi { wwn: A.parse().unwrap() }));
    driver.detach(&at, soon()).await.unwrap();
}
