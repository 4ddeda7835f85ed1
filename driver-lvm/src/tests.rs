//! The driver on the simulated machine.

mod derive;

use super::*;
use driver::{Adoption, Attached, Release, ResidualKind};
use host::{Output, sim::Machine};
use std::time::Duration;

const GIB: u64 = 1 << 30;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";
const MANAGED: &str = "volume-9394b827-4ad0-488e-8df8-26476b3a8662";

/// A machine with the VG `vg0` on two disks and the LV `vg0/a-1` of 1 GiB.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.add_vg("vg0", &["vda", "vdb"]);
    machine.add_lv("vg0", "a-1", GIB);
    machine
}

fn driver(machine: &Machine) -> LvmDriver {
    let config = LvmConfig { templates: Templates::default(), exclude_links: "/dev/mortar".into() };
    LvmDriver::new(Arc::new(machine.clone()), config)
}

fn locator(name: &str) -> Locator {
    format!("lvm:{name}").parse().unwrap()
}

fn scope() -> Scope {
    "lvm:vg0".parse().unwrap()
}

fn spec(name: &str) -> Spec {
    Spec { locator: locator(name), read_only: false, exclusive: false, expected_wwn: None, expected_size: None }
}

fn read_only(name: &str) -> Spec {
    Spec { read_only: true, ..spec(name) }
}

/// Somebody whom a call waited for too long.
fn late() -> host::Error {
    host::Error::TimedOut { what: "a call".into(), after: Duration::ZERO }
}

/// A disk that fails.
fn broken() -> host::Error {
    host::Error::Io { doing: "sync", path: "/dev/dm-0".into(), source: std::io::Error::other("input/output error") }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn try_attach(driver: &LvmDriver, spec: &Spec) -> Result<(Attached, Device)> {
    let footprint = driver.prepare(spec).await?;
    let device = driver.attach(spec, &footprint, &Attempt::until(soon())).await?;
    Ok((Attached { spec: spec.clone(), footprint, identity: Some(device.identity.clone()) }, device))
}

async fn attach(driver: &LvmDriver, spec: &Spec) -> (Attached, Device) {
    try_attach(driver, spec).await.unwrap()
}

/// How many processes something starts.
async fn processes<T>(machine: &Machine, work: impl Future<Output = T>) -> (u64, T) {
    let before = machine.processes();
    let done = work.await;
    (machine.processes() - before, done)
}

async fn adoption(driver: &LvmDriver, name: &str) -> Adoption {
    Adoption {
        id: ID.parse().unwrap(),
        name: "for-people".parse().unwrap(),
        from: locator(name),
        to: locator(&format!("vg0/{MANAGED}")),
        identity: driver.inspect(&locator(name)).await.unwrap().identity,
    }
}

fn release(adoption: &Adoption) -> Release {
    Release {
        id: adoption.id,
        from: adoption.to.clone(),
        to: adoption.from.clone(),
        identity: adoption.identity.clone(),
    }
}

/// The footprint of an LV that was not active.
fn inactive(identity: &Identity) -> Footprint {
    Footprint::Lvm { identity: identity.clone(), was_active: false, was_read_only: false }
}

fn uuids_of(footprint: &Footprint) -> Identity {
    let Footprint::Lvm { identity, .. } = footprint else { panic!("{footprint:?} is of no LV") };
    identity.clone()
}

/// What keeps an LV from being managed, as text.
async fn refusal(driver: &LvmDriver, name: &str) -> String {
    driver.inspect(&locator(name)).await.unwrap().refusal.map(|refusal| refusal.to_string()).unwrap_or_default()
}

// ---- attaching ----

#[tokio::test(start_paused = true)]
async fn where_an_lv_was_seen_is_only_where_it_is_looked_for_first() {
    let machine = machine();
    machine.add_lv("vg0", "b", GIB);
    let driver = driver(&machine);
    let (a, device) = attach(&driver, &spec("vg0/a-1")).await;
    assert_eq!(driver.find(&a).await.unwrap(), Some(device.clone()));
    driver.detach(&a, soon()).await.unwrap();
    let (b, other) = attach(&driver, &spec("vg0/b")).await;
    assert_eq!(other.path, device.path, "the kernel gives the node to the next one");
    assert_eq!(driver.find(&a).await.unwrap(), None);
    assert_eq!(driver.find(&b).await.unwrap(), Some(other));
    let (a, moved) = attach(&driver, &spec("vg0/a-1")).await;
    assert_ne!(moved.path, device.path);
    assert_eq!(driver.prove(&a).await.unwrap(), Some(moved));
}

#[tokio::test(start_paused = true)]
async fn attach_and_detach_leave_no_trace_and_take_three_processes() {
    let machine = machine();
    let driver = driver(&machine);
    let before = machine.snapshot();

    let (started, (at, device)) = processes(&machine, attach(&driver, &spec("vg0/a-1"))).await;
    assert_eq!(started, 2);
    assert_eq!(device.path, Path::new("/dev/dm-0"));
    assert_eq!((device.size_bytes, device.read_only, device.paths.len()), (GIB, false, 1));
    assert_eq!(device.paths[0].state, "active");
    assert_eq!(at.footprint, inactive(&device.identity));
    assert_eq!(driver.find(&at).await.unwrap(), Some(device.clone()));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device.clone()));

    let (started, again) = processes(&machine, driver.attach(&at.spec, &at.footprint, &Attempt::until(soon()))).await;
    assert_eq!((started, again.unwrap()), (0, device));

    let (started, detached) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!((started, detached.unwrap()), (1, Detached::default()));
    assert_eq!(machine.snapshot(), before);

    let (started, detached) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!((started, detached.unwrap()), (0, Detached::default()));
    assert_eq!((driver.find(&at).await.unwrap(), driver.prove(&at).await.unwrap()), (None, None));
    assert!(driver.users(&at).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_active_stays_active() {
    let machine = machine();
    machine.activate_lv("vg0", "a-1", false);
    let driver = driver(&machine);
    let before = machine.snapshot();
    let (started, (at, _)) = processes(&machine, attach(&driver, &spec("vg0/a-1"))).await;
    assert_eq!(started, 1);
    // Those who used it before us go on to: there is nothing that they could be in the way of.
    machine.mount("dm-0", "/srv");
    assert_eq!(driver.users(&at).await.unwrap(), Vec::<String>::new());
    let (started, detached) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!((started, detached.unwrap().kept), (0, vec!["vg0/a-1 was active before and stays active".to_owned()]));
    machine.release("dm-0");
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_not_detached() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    let attached = machine.snapshot();
    machine.mount("dm-0", "/mnt/a");
    let (started, error) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!(error.unwrap_err().to_string(), "/dev/dm-0 is in use: mounted at /mnt/a");
    assert_eq!(started, 0);
    machine.release("dm-0");
    // Whom no claim keeps out is seen by lvm.
    machine.open("dm-0", 7, "cat");
    assert_eq!(driver.detach(&at, soon()).await.unwrap_err().to_string(), "/dev/dm-0 is in use: open by cat (pid 7)");
    machine.release("dm-0");
    assert_eq!(machine.snapshot(), attached);
}

#[tokio::test(start_paused = true)]
async fn data_that_cannot_be_written_keeps_the_device() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    for (fault, reason) in [(broken(), "FLUSH_FAILED"), (late(), "TIMED_OUT")] {
        machine.fail_next("flush /dev/dm-0", fault);
        assert_eq!(driver.detach(&at, soon()).await.unwrap_err().reason(), reason);
        assert!(driver.find(&at).await.unwrap().is_some());
    }
}

/// Between the look of a detach and its act, ours goes, and another LV gets the number.
#[tokio::test(start_paused = true)]
async fn a_number_that_went_to_another_lv_is_not_deactivated() {
    for call in ["users /dev/dm-0", "claim /dev/dm-0", "flush /dev/dm-0", "run lvm lvchange"] {
        let machine = machine();
        machine.add_lv("vg0", "theirs", GIB);
        let driver = driver(&machine);
        let (at, device) = attach(&driver, &spec("vg0/a-1")).await;
        assert_eq!(device.path, Path::new("/dev/dm-0"));
        machine.before_next(call, |machine| {
            machine.deactivate_lv("vg0", "a-1");
            machine.activate_lv("vg0", "theirs", false);
        });
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default(), "{call}");
        assert_eq!(machine.lv_device("vg0", "theirs").as_deref(), Some("dm-0"), "{call}");
        assert_eq!(machine.lv_device("vg0", "a-1"), None, "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_stays_may_be_written_later() {
    for fault in [broken(), late()] {
        let machine = machine();
        machine.activate_lv("vg0", "a-1", false);
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
        machine.fail_next("flush /dev/dm-0", fault);
        let start = Instant::now();
        assert_eq!(driver.detach(&at, soon()).await.unwrap().kept.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_may_be_tried_again() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    machine.fail_next("users /dev/dm-0", late());
    assert_eq!(driver.users(&at).await.unwrap_err().reason(), "TIMED_OUT");
    machine.fail_next("claim /dev/dm-0", late());
    assert_eq!(driver.detach(&at, soon()).await.unwrap_err().reason(), "TIMED_OUT");
    let wanted = read_only("vg0/a-1");
    driver.detach(&at, soon()).await.unwrap();
    machine.fail_next("set_read_only /dev/dm-0", late());
    assert_eq!(try_attach(&driver, &wanted).await.unwrap_err().reason(), "TIMED_OUT");
    assert_eq!(machine.lv_device("vg0", "a-1"), None);
}

#[tokio::test(start_paused = true)]
async fn another_lv_of_the_same_name_is_not_the_volume() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &spec("vg0/a-1")).await;
    machine.recreate_lv("vg0", "a-1");
    assert_eq!((driver.find(&at).await.unwrap(), driver.prove(&at).await.unwrap()), (None, None));
    machine.activate_lv("vg0", "a-1", false);
    assert_eq!(driver.find(&at).await.unwrap(), None);
    let error = driver.prove(&at).await.unwrap_err();
    assert_eq!(error.reason(), "IDENTITY_MISMATCH");
    assert!(error.to_string().contains(&device.identity.to_string()), "{error}");
    // The other one is left alone, by a detach and by an attach that was prepared for the first.
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert!(machine.lv_device("vg0", "a-1").is_some());
    machine.recreate_lv("vg0", "a-1");
    let error = driver.attach(&at.spec, &at.footprint, &Attempt::until(soon())).await.unwrap_err();
    assert!(error.to_string().contains("renamed or replaced"), "{error}");
    assert_eq!(machine.lv_device("vg0", "a-1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_renamed_lv_is_detached_by_its_name_of_today() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, &spec("vg0/a-1")).await;
    machine.rename_lv("vg0", "a-1", "b--2");
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    let (started, detached) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!((started, detached.unwrap()), (1, Detached::default()));
    assert_eq!(machine.lv_device("vg0", "b--2"), None);
}

#[tokio::test(start_paused = true)]
async fn a_grown_volume_is_seen() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    machine.extend_lv("vg0", "a-1", 3 * GIB);
    let (started, device) = processes(&machine, driver.extend(&at, soon())).await;
    assert_eq!((started, device.unwrap().size_bytes), (0, 3 * GIB));
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(driver.extend(&at, soon()).await.unwrap_err().reason(), "NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn an_unexpected_size_leaves_nothing_behind() {
    let machine = machine();
    let driver = driver(&machine);
    let before = machine.snapshot();
    let error = try_attach(&driver, &Spec { expected_size: Some(7), ..spec("vg0/a-1") }).await.unwrap_err();
    assert_eq!(error.reason(), "IDENTITY_MISMATCH");
    assert_eq!(machine.snapshot(), before);
}

/// Attaches read-only, dies after each effect, and undoes with the footprint alone.
async fn sweep(set_up: impl Fn() -> Machine) {
    for effects in 1.. {
        let mut machine = set_up();
        let before = machine.snapshot();
        let wanted = read_only("vg0/a-1");
        let footprint = driver(&machine).prepare(&wanted).await.unwrap();
        machine.crash_after(effects);
        let crashed = tokio::select! {
            _done = async { driver(&machine).attach(&wanted, &footprint, &Attempt::until(soon())).await } => false,
            () = machine.crashed() => true,
        };
        machine.restart();
        let at = Attached { spec: wanted, footprint, identity: None };
        machine.crash_after(effects);
        tokio::select! {
            _done = async { driver(&machine).detach(&at, soon()).await } => {}
            () = machine.crashed() => {}
        }
        machine.restart();
        assert!(driver(&machine).detach(&at, soon()).await.unwrap().residuals.is_empty());
        assert_eq!(machine.snapshot(), before);
        if !crashed {
            assert!(effects > 1);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_crash_of_an_attach_can_be_undone() {
    sweep(machine).await;
    sweep(|| {
        let machine = machine();
        machine.activate_lv("vg0", "a-1", false);
        machine
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_lvm_does_too_late_is_unknown_and_can_be_undone() {
    let machine = machine();
    let driver = driver(&machine);
    let wanted = spec("vg0/a-1");
    let footprint = driver.prepare(&wanted).await.unwrap();
    machine.lose_next("run lvm lvchange", host::Error::TimedOut { what: "lvm".into(), after: Duration::ZERO });
    let deadline = soon();
    let error = driver.attach(&wanted, &footprint, &Attempt::until(deadline)).await.unwrap_err();
    assert_eq!(error.reason(), "TIMED_OUT");
    let at = Attached { spec: wanted, footprint, identity: None };
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.lv_device("vg0", "a-1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_leaves_nothing_to_detach() {
    let mut machine = machine();
    let (at, _) = attach(&driver(&machine), &spec("vg0/a-1")).await;
    machine.reboot();
    let driver = driver(&machine);
    assert_eq!(driver.find(&at).await.unwrap(), None);
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    attach(&driver, &spec("vg0/a-1")).await;
}

#[tokio::test(start_paused = true)]
async fn what_lvm_leaves_is_a_residual() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    machine.fail_next("run lvm lvchange -an", Output::default());
    let residuals = driver.detach(&at, soon()).await.unwrap().residuals;
    assert_eq!((residuals[0].kind, residuals[0].name.as_str()), (ResidualKind::Activation, "dm-0 (vg0/a-1)"));
}

#[tokio::test(start_paused = true)]
async fn the_disks_of_an_attached_lv_die() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    machine.lose_disk("vda");
    machine.lose_disk("vdb");
    let residuals = driver.detach(&at, soon()).await.unwrap().residuals;
    assert!(residuals[0].reason.contains("vg0"), "{residuals:?}");
}

// ---- read-only ----

#[tokio::test(start_paused = true)]
async fn read_only_takes_no_more_processes() {
    let machine = machine();
    let driver = driver(&machine);
    let before = machine.snapshot();
    let (started, (at, device)) = processes(&machine, attach(&driver, &read_only("vg0/a-1"))).await;
    assert_eq!((started, device.read_only), (2, true));
    let (started, _) = processes(&machine, driver.detach(&at, soon())).await;
    assert_eq!(started, 1);
    assert_eq!(machine.snapshot(), before);
}

/// A machine with an LV of every sort that can be attached.
fn every_sort() -> Machine {
    let machine = machine();
    machine.add_lv("vg0", "origin", GIB);
    machine.add_lv_snapshot("vg0", "origin", "snap");
    machine.add_thin_pool("vg0", "tp", GIB);
    machine.add_thin_lv("vg0", "tp", "thin", GIB);
    machine.add_lv_snapshot("vg0", "thin", "thinsnap");
    machine
}

const EVERY_SORT: [&str; 5] = ["a-1", "origin", "snap", "thin", "thinsnap"];

#[tokio::test(start_paused = true)]
async fn read_only_stays_read_only_whatever_lvm_does() {
    let machine = every_sort();
    let driver = driver(&machine);
    let before = machine.snapshot();
    for name in EVERY_SORT {
        let (at, device) = attach(&driver, &read_only(&format!("vg0/{name}"))).await;
        assert!(device.read_only, "{name}");
        machine.refresh_lv("vg0", name);
        machine.extend_lv("vg0", name, 2 * GIB);
        machine.rename_lv("vg0", name, "renamed");
        for device in [driver.find(&at).await, driver.prove(&at).await, driver.extend(&at, soon()).await.map(Some)] {
            let device = device.unwrap().unwrap();
            assert!(device.read_only && device.size_bytes == 2 * GIB, "{name}: {device:?}");
        }
        machine.rename_lv("vg0", "renamed", name);
        machine.extend_lv("vg0", name, GIB);
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default(), "{name}");
        assert_eq!(machine.snapshot(), before, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_active_lv_becomes_read_only_for_a_while() {
    for name in EVERY_SORT {
        let machine = every_sort();
        machine.activate_lv("vg0", name, false);
        let driver = driver(&machine);
        let before = machine.snapshot();
        let (started, (at, device)) = processes(&machine, attach(&driver, &read_only(&format!("vg0/{name}")))).await;
        assert_eq!((started, device.read_only), (1, true), "{name}");
        let node = machine.lv_device("vg0", name).unwrap();
        // It does not become writable again under somebody who counts on it.
        machine.mount(&node, "/mnt");
        assert_eq!(driver.users(&at).await.unwrap(), ["mounted at /mnt"], "{name}");
        assert_eq!(driver.detach(&at, soon()).await.unwrap_err().reason(), "IN_USE", "{name}");
        machine.release(&node);
        let (started, detached) = processes(&machine, driver.detach(&at, soon())).await;
        assert_eq!((started, detached.unwrap().kept.len()), (0, 1), "{name}");
        assert_eq!(machine.snapshot(), before, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_only_stays_read_only() {
    // The table, the LV itself, the device.
    let ways: [Spoil; 3] = [
        |machine| machine.activate_lv("vg0", "a-1", true),
        |machine| {
            machine.set_lv_writable("vg0", "a-1", false);
            machine.activate_lv("vg0", "a-1", false);
        },
        |machine| {
            machine.activate_lv("vg0", "a-1", false);
            machine.put_file("/sys/block/dm-0/ro", "1\n");
        },
    ];
    for make_read_only in ways {
        let machine = machine();
        make_read_only(&machine);
        let before = machine.snapshot();
        let driver = driver(&machine);
        assert_eq!(driver.prepare(&spec("vg0/a-1")).await.unwrap_err().reason(), "WRONG_STATE");
        machine.mount("dm-0", "/mnt");
        let (at, device) = attach(&driver, &read_only("vg0/a-1")).await;
        assert!(device.read_only);
        assert!(driver.users(&at).await.unwrap().is_empty());
        assert_eq!(driver.detach(&at, soon()).await.unwrap().kept.len(), 1);
        machine.release("dm-0");
        assert_eq!(machine.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn the_mode_is_not_changed_under_its_users() {
    let machine = machine();
    machine.activate_lv("vg0", "a-1", false);
    machine.open("dm-0", 7, "qemu");
    let driver = driver(&machine);
    let error = driver.prepare(&read_only("vg0/a-1")).await.unwrap_err().to_string();
    assert!(error.contains("open by qemu (pid 7)"), "{error}");
    machine.release("dm-0");
    // Somebody comes between.
    let wanted = read_only("vg0/a-1");
    let footprint = driver.prepare(&wanted).await.unwrap();
    machine.open("dm-0", 7, "qemu");
    let attached = driver.attach(&wanted, &footprint, &Attempt::until(soon())).await;
    assert_eq!(attached.unwrap_err().reason(), "WRONG_STATE");

    machine.release("dm-0");
    let unaware = inactive(&uuids_of(&footprint));
    let error = driver.attach(&wanted, &unaware, &Attempt::until(soon())).await.unwrap_err();
    assert!(error.to_string().contains("meanwhile"), "{error}");
    machine.activate_lv("vg0", "a-1", true);
    let error = driver.prepare(&spec("vg0/a-1")).await.unwrap_err().to_string();
    assert!(error.contains("lvchange -an"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_lv_that_is_read_only_itself() {
    let machine = machine();
    machine.set_lv_writable("vg0", "a-1", false);
    let driver = driver(&machine);
    let error = driver.prepare(&spec("vg0/a-1")).await.unwrap_err().to_string();
    assert!(error.contains("lvchange -prw"), "{error}");
    assert!(attach(&driver, &read_only("vg0/a-1")).await.1.read_only);
}

#[tokio::test(start_paused = true)]
async fn thin_volumes() {
    let machine = machine();
    machine.add_thin_pool("vg0", "tp", GIB);
    machine.add_thin_lv("vg0", "tp", "t1", GIB);
    machine.add_lv_snapshot("vg0", "t1", "t1s");
    let driver = driver(&machine);
    let before = machine.snapshot();
    // One that LVM would skip, and the pool below it.
    let (at, _) = attach(&driver, &spec("vg0/t1s")).await;
    let (other, _) = attach(&driver, &spec("vg0/t1")).await;
    driver.detach(&at, soon()).await.unwrap();
    assert!(driver.find(&other).await.unwrap().is_some());
    driver.detach(&other, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_goes_together_with_its_origin() {
    let machine = machine();
    machine.add_lv_snapshot("vg0", "a-1", "s1");
    let driver = driver(&machine);
    let before = machine.snapshot();
    let (snapshot, _) = attach(&driver, &spec("vg0/s1")).await;
    let (origin, _) = attach(&driver, &spec("vg0/a-1")).await;
    // Its stable path is made later.
    let error = driver.detach(&snapshot, soon()).await.unwrap_err().to_string();
    assert_eq!(error, "vg0/a-1, which goes with s1, is in use: attached");
    driver.detach(&origin, soon()).await.unwrap();
    machine.put_link("/dev/mortar/x", driver.find(&origin).await.unwrap().unwrap().path);
    let error = driver.detach(&snapshot, soon()).await.unwrap_err().to_string();
    assert_eq!(error, "vg0/a-1, which goes with s1, is in use: attached");
    machine.remove_tree("/dev/mortar/x");
    assert_eq!(driver.detach(&origin, soon()).await.unwrap().kept.len(), 1);
    driver.detach(&snapshot, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

// ---- what may be attached, and where it is looked for ----

#[tokio::test(start_paused = true)]
async fn what_cannot_be_attached() {
    let machine = machine();
    machine.add_thin_pool("vg0", "tp", GIB);
    for (vg, disk) in [("foreign", "vdc"), ("exported", "vdd"), ("broken", "vde")] {
        machine.add_vg(vg, &[disk]);
        machine.add_lv(vg, "lv", GIB);
    }
    machine.set_vg_system_id("foreign", "elsewhere");
    machine.export_vg("exported");
    machine.extend_vg("broken", "vdf");
    machine.lose_disk("vdf");
    let driver = driver(&machine);
    for (name, reason, named) in [
        ("vg0/nope", "NOT_FOUND", "vg0/nope"),
        ("nope/lv", "NOT_FOUND", "volume group nope"),
        ("vg0/tp", "WRONG_STATE", "thin pool"),
        ("vg0/tp_tmeta", "WRONG_STATE", "part of another LV"),
        ("foreign/lv", "WRONG_STATE", "elsewhere"),
        ("foreign/nope", "WRONG_STATE", "elsewhere"),
        ("exported/lv", "WRONG_STATE", "vgimport"),
        ("broken/lv", "WRONG_STATE", "missing"),
    ] {
        let error = driver.prepare(&spec(name)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{name}: {error}");
        assert!(error.to_string().contains(named), "{name}: {error}");
    }
    machine.set_system_id("elsewhere");
    driver.prepare(&spec("foreign/lv")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_a_guest_is_not_looked_at() {
    let machine = machine();
    // A guest's VG of the same name on a disk that is attached.
    machine.add_vg("vg0", &["sdx"]);
    machine.put_link("/dev/mortar/guest", "/dev/sdx");
    // A path below a multipath map, which has the label as well.
    machine.add_vg("paths", &["sdy"]);
    machine.put_file("/sys/block/dm-9/dm/uuid", "mpath-36001\n");
    machine.put_link("/sys/block/sdy/holders/dm-9", "/sys/block/dm-9");
    // A guest's VG in an LV.
    machine.activate_lv("vg0", "a-1", false);
    machine.label_pv(&machine.lv_device("vg0", "a-1").unwrap());
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    driver.detach(&at, soon()).await.unwrap();
    for command in machine.commands() {
        assert!(!command.contains("/dev/sd") && !command.contains("/dev/dm"), "{command}");
        assert!(command.contains("--devices /dev/vda --devices /dev/vdb"), "{command}");
    }
}

/// The link to an attachment's device is made last and goes first. What else is there of it counts just as much.
#[tokio::test(start_paused = true)]
async fn what_belongs_to_a_guest_is_known_without_a_stable_path() {
    let machine = machine();
    // A disk on a session of ours, a partition of it, and a map upon that one; then a disk of an operator's session.
    for (session, disk, interface) in [(1, "sda", "mortar"), (2, "sdb", "default")] {
        let device = format!("/sys/devices/platform/host{session}/session{session}");
        let class = format!("/sys/class/iscsi_session/session{session}");
        machine.put_file(format!("{class}/ifacename"), format!("{interface}\n"));
        machine.put_link(format!("{class}/device"), &device);
        let block = format!("{device}/target{session}:0:0/{session}:0:0:1/block/{disk}");
        machine.put_file(format!("{block}/size"), "2048\n");
        machine.put_file(format!("{block}/{disk}1/size"), "1024\n");
        machine.put_file(format!("{block}/{disk}1/partition"), "1\n");
        machine.put_link(format!("/sys/block/{disk}"), &block);
    }
    machine.put_file("/sys/block/dm-9/dm/uuid", "part1-mpath-36001\n");
    machine.put_file("/sys/block/dm-9/size", "1024\n");
    machine.put_link("/sys/block/dm-9/slaves/sda1", "/sys/block/sda/sda1");
    // Loop devices: ours, somebody's, and one that does not answer.
    machine.put_file("/sys/block/loop7/size", "1024\n");
    machine.put_file("/sys/block/loop7/loop/backing_file", "/net/c.raw\n");
    for (file, label) in [("/srv/a.raw", "mortar"), ("/srv/b.raw", "/srv/b.raw")] {
        machine.put_raw(file, 1 << 20);
        let setup = host::LoopSetup { file: file.into(), read_only: false, label: label.into() };
        machine.loop_attach(&setup).await.unwrap();
    }
    let suspects = scan::suspects(&machine, Path::new("/dev/mortar")).await.unwrap();
    let names: Vec<_> = suspects.iter().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["/dev/loop1", "/dev/sdb", "/dev/sdb1", "/dev/vda", "/dev/vdb"]);
}

/// The kernel gives the name of a disk that went to the next one that comes.
#[tokio::test(start_paused = true)]
async fn a_guests_vg_in_the_place_of_ours_is_not_used() {
    let machine = machine();
    let driver = driver(&machine);
    let wanted = spec("vg0/a-1");
    let footprint = driver.prepare(&wanted).await.unwrap();
    let known = machine.commands().len();
    // As if it were another disk: LVM would find the same VG on it.
    machine.put_link("/dev/mortar/guest", "/dev/vda");
    for error in [
        driver.prepare(&wanted).await.unwrap_err(),
        driver.attach(&wanted, &footprint, &Attempt::until(soon())).await.unwrap_err(),
    ] {
        assert_eq!(error.reason(), "WRONG_STATE", "{error}");
    }
    for command in &machine.commands()[known..] {
        assert!(!command.contains("/dev/vda"), "{command}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_vgs_of_one_name_are_told_apart_by_nobody() {
    let machine = machine();
    machine.add_vg("vg0", &["sdx"]);
    let error = driver(&machine).prepare(&spec("vg0/a-1")).await.unwrap_err().to_string();
    assert!(error.contains("vgrename"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_holds_up_nobody_and_is_asked_once() {
    let machine = machine();
    machine.add_vg("hung", &["sdx"]);
    machine.add_lv("hung", "lv", GIB);
    let driver = driver(&machine);
    machine.fail_next("head /dev/sdx", late());
    let start = Instant::now();
    let (one, two) = tokio::join!(driver.volumes(None), driver.volumes(None));
    assert!(one.is_ok() && two.is_ok());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    // Nothing that reads a device can be taken back: a second read would hang just as the first does.
    let asked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ask = Arc::clone(&asked);
    machine.before_next("head /dev/sdx", move |_| ask.store(true, std::sync::atomic::Ordering::Relaxed));
    let start = Instant::now();
    attach(&driver, &spec("vg0/a-1")).await;
    let error = driver.prepare(&spec("hung/lv")).await.unwrap_err();
    assert!(error.reason() == "UNREACHABLE" && error.chain().contains("/dev/sdx does not"), "{error:?}");
    assert_eq!((start.elapsed(), asked.load(std::sync::atomic::Ordering::Relaxed)), (Duration::ZERO, false));
    // It has answered in the end.
    tokio::time::advance(Duration::from_secs(400 * 24 * 60 * 60)).await;
    tokio::task::yield_now().await;
    driver.prepare(&spec("hung/lv")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_the_disks_of_the_vg_are_seen_once_they_are_known() {
    let machine = machine();
    machine.add_vg("other", &["vdc"]);
    let driver = driver(&machine);
    let (at, _) = attach(&driver, &spec("vg0/a-1")).await;
    assert!(machine.commands()[0].contains("/dev/vdc"));
    machine.tag_lv("vg0", "a-1", "x");
    driver.inspect(&locator("vg0/a-1")).await.unwrap();
    driver.detach(&at, soon()).await.unwrap();
    for command in &machine.commands()[1..] {
        assert!(!command.contains("/dev/vdc"), "{command}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_report_has_said_is_asked_for_again_once_it_may_be_wrong() {
    let machine = machine();
    machine.add_vg("other", &["vdc"]);
    let driver = driver(&machine);
    let prepared = |name: &'static str| {
        let (machine, driver) = (&machine, &driver);
        async move {
            let (started, prepared) = processes(machine, driver.prepare(&spec(name))).await;
            (started, prepared.map_or_else(|error| error.reason(), |_| "there"))
        }
    };
    let listed = || async { processes(&machine, driver.volumes(None)).await.0 };
    assert_eq!(prepared("vg0/a-1").await, (1, "there"));
    assert_eq!(
        (prepared("vg0/a-1").await, prepared("vg0/b").await, listed().await),
        ((0, "there"), (0, "NOT_FOUND"), 0)
    );
    machine.activate_lv("vg0", "a-1", false);
    assert_eq!(
        (prepared("vg0/a-1").await, listed().await),
        ((0, "there"), 0),
        "the kernel tells it, and not the metadata"
    );

    machine.rename_lv("vg0", "a-1", "b");
    assert_eq!((prepared("vg0/a-1").await, prepared("vg0/b").await), ((1, "NOT_FOUND"), (0, "there")));
    machine.tag_lv("vg0", "b", "theirs");
    assert_eq!((listed().await, listed().await, prepared("vg0/b").await), (1, 0, (0, "there")));
    machine.add_lv("other", "c", GIB);
    assert_eq!((prepared("vg0/b").await, prepared("other/c").await, listed().await), ((0, "there"), (1, "there"), 0));
    machine.add_vg("third", &["vdd"]);
    assert_eq!((prepared("vg0/b").await, listed().await, listed().await), ((0, "there"), 1, 0));

    // Whether somebody has an LV open the kernel tells as well, and who closes it at once is nobody.
    let device = machine.lv_device("vg0", "b").unwrap();
    machine.open(&device, 7, "dd");
    let (started, why) = processes(&machine, refusal(&driver, "vg0/b")).await;
    assert!(started == 0 && why.contains("dd"), "{started} {why}");
    let looked_into = device.clone();
    machine.before_next(format!("users /dev/{device}"), move |machine| machine.release(&looked_into));
    assert_eq!(refusal(&driver, "vg0/b").await, "");
    machine.set_vg_system_id("vg0", "elsewhere");
    assert_eq!(prepared("vg0/b").await.1, "WRONG_STATE");
    machine.lose_disk("vdc");
    assert_eq!(prepared("other/c").await.1, "NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_the_call_is_read_again() {
    let machine = machine();
    let driver = Arc::new(driver(&machine));
    driver.prepare(&spec("vg0/a-1")).await.unwrap();
    let prepare = || {
        let driver = Arc::clone(&driver);
        tokio::spawn(async move { driver.prepare(&spec("vg0/a-1")).await })
    };
    let held = machine.hang(0, "head /dev/vda");
    let first = prepare();
    held.reached().await;
    let again = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = Arc::clone(&again);
    machine.before_next("head /dev/vda", |_| {});
    machine.before_next("head /dev/vda", move |_| read.store(true, std::sync::atomic::Ordering::Relaxed));
    let second = prepare();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    held.let_go();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert!(again.load(std::sync::atomic::Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_vg_that_has_grown_is_looked_for_again() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "vg0/a-1").await;
    machine.extend_vg("vg0", "vdc");
    driver.manage(&adoption).await.unwrap();
    assert!(!machine.vg_is_damaged("vg0"));
    // It grows between the look and the tagging.
    machine.extend_vg("vg0", "vdd");
    let at = LogicalVolume { vg: "vg0".parse().unwrap(), lv: MANAGED.parse().unwrap() };
    let tag = ["x".to_owned()];
    driver.lvm.change(&at, &adoption.identity, lvm::Change::Tag { add: &tag, remove: &[] }, None).await.unwrap();
    assert!(!machine.vg_is_damaged("vg0"));
    assert!(!machine.lvs("vg0")[MANAGED].contains("x"));
    // And before an activation.
    attach(&driver, &spec(&format!("vg0/{MANAGED}"))).await;
}

#[tokio::test(start_paused = true)]
async fn activation_looks_again_when_the_vg_has_moved() {
    let machine = machine();
    let driver = driver(&machine);
    let wanted = spec("vg0/a-1");
    let footprint = driver.prepare(&wanted).await.unwrap();
    machine.extend_vg("vg0", "vdc");
    let (started, attached) = processes(&machine, driver.attach(&wanted, &footprint, &Attempt::until(soon()))).await;
    attached.unwrap();
    assert_eq!(started, 3, "one that fails, a look, and the second try");
}

#[tokio::test(start_paused = true)]
async fn a_report_that_crashed_is_asked_for_once_more() {
    let machine = machine();
    let driver = driver(&machine);
    let crash = || Output { code: 139, ..Output::default() };
    machine.fail_next("fullreport", crash());
    let (started, inspected) = processes(&machine, driver.inspect(&locator("vg0/a-1"))).await;
    inspected.unwrap();
    assert_eq!(started, 2);
    machine.tag_lv("vg0", "a-1", "x");
    machine.fail_next("fullreport", crash());
    machine.fail_next("fullreport", crash());
    assert_eq!(driver.inspect(&locator("vg0/a-1")).await.unwrap_err().reason(), "TOOL_FAILED");
}

#[tokio::test(start_paused = true)]
async fn without_any_pv_nothing_is_started() {
    let machine = Machine::new();
    let driver = driver(&machine);
    assert_eq!(driver.prepare(&spec("vg0/a")).await.unwrap_err().reason(), "NOT_FOUND");
    assert!(driver.volumes(None).await.unwrap().is_empty());
    assert_eq!(machine.processes(), 0);
}

#[tokio::test(start_paused = true)]
async fn readiness_says_what_to_do() {
    let machine = machine();
    let driver = driver(&machine);
    let ready = driver.readiness().await;
    assert_eq!((ready.problem, ready.tools[0].version.as_str()), (None, "2.03.16(2)"));
    let (started, _) = processes(&machine, driver.readiness()).await;
    assert_eq!(started, 0, "the version is asked for once");
    machine.remove_tree("/sys/class/misc/device-mapper");
    assert!(driver.readiness().await.problem.unwrap().contains("modprobe dm_mod"));
    machine.remove_tool(host::Tool::Lvm);
    assert!(driver.readiness().await.problem.unwrap().contains("install"));
}

// ---- managing ----

#[tokio::test(start_paused = true)]
async fn the_list_says_of_each_why_not() {
    let machine = machine();
    machine.add_lv("vg0", "volume-0000b827-4ad0-488e-8df8-26476b3a8662", GIB);
    machine.add_lv("vg0", "tagged", GIB);
    machine.tag_lv("vg0", "tagged", &format!("mortar.id={ID}"));
    machine.add_lv("vg0", "open", GIB);
    machine.activate_lv("vg0", "open", false);
    machine.open(&machine.lv_device("vg0", "open").unwrap(), 7, "qemu");
    machine.add_lv("vg0", "pv", GIB);
    machine.activate_lv("vg0", "pv", false);
    machine.label_pv(&machine.lv_device("vg0", "pv").unwrap());
    machine.add_lv("vg0", "origin", GIB);
    machine.add_lv_snapshot("vg0", "origin", "snap");
    machine.add_thin_pool("vg0", "tp", GIB);
    machine.add_thin_lv("vg0", "tp", "thin", 2 * GIB);
    machine.add_lv_snapshot("vg0", "thin", "thinsnap");
    let driver = driver(&machine);
    let (started, list) = processes(&machine, driver.manageable(&scope())).await;
    assert_eq!(started, 1);
    let lines: Vec<String> = list
        .unwrap()
        .iter()
        .map(|one| {
            let why = one.refusal.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{} {} {why}", one.locator, one.size_bytes / GIB)
        })
        .collect();
    assert_eq!(
        lines,
        [
            "lvm:vg0/a-1 1 ",
            "lvm:vg0/volume-0000b827-4ad0-488e-8df8-26476b3a8662 1 \
             named as the managed volume 0000b827-4ad0-488e-8df8-26476b3a8662",
            "lvm:vg0/tagged 1 managed as 9394b827-4ad0-488e-8df8-26476b3a8662",
            "lvm:vg0/open 1 in use: open by qemu (pid 7)",
            "lvm:vg0/pv 1 vg0/pv is a PV of another VG; if that is one that a guest made inside of its disk, manage vg0/pv \
             while it is inactive (lvchange -an)",
            "lvm:vg0/origin 1 ",
            "lvm:vg0/snap 1 ",
            "lvm:vg0/tp 1 vg0/tp is a thin pool: it holds volumes and is none",
            "lvm:vg0/thin 2 ",
            "lvm:vg0/thinsnap 2 ",
        ]
    );
    assert_eq!(refusal(&driver, "vg0/tp_tmeta").await, "vg0/tp_tmeta is a part of another LV");
    assert_eq!(driver.inspect(&locator("vg0/nope")).await.unwrap_err().reason(), "NOT_FOUND");
    machine.set_vg_system_id("vg0", "elsewhere");
    assert!(refusal(&driver, "vg0/a-1").await.contains("elsewhere"));
}

#[tokio::test(start_paused = true)]
async fn manage_and_unmanage() {
    let machine = machine();
    machine.tag_lv("vg0", "a-1", "theirs");
    let driver = driver(&machine);
    let before = machine.snapshot();
    let adoption = adoption(&driver, "vg0/a-1").await;

    let (started, volume) = processes(&machine, driver.manage(&adoption)).await;
    let volume = volume.unwrap();
    assert_eq!(started, 3, "the tags, the name, and a look at what came of it");
    assert_eq!((volume.id, volume.size_bytes, volume.name.as_str()), (adoption.id, GIB, "for-people"));
    assert_eq!((&volume.locator, &volume.origin), (&adoption.to, &adoption.from));
    assert_eq!(volume.identity, adoption.identity);
    let (started, again) = processes(&machine, driver.manage(&adoption)).await;
    assert_eq!((started, again.unwrap()), (0, volume.clone()));
    for scope in [None, Some(&scope())] {
        assert_eq!(driver.volumes(scope).await.unwrap(), std::slice::from_ref(&volume));
    }
    let candidate = driver.inspect(&adoption.to).await.unwrap();
    assert_eq!(
        (candidate.refusal, candidate.managed),
        (Some(Refusal::Managed(format!("managed as {ID}"))), Some(volume))
    );

    let (started, released) = processes(&machine, driver.unmanage(&release(&adoption))).await;
    released.unwrap();
    assert_eq!(started, 3);
    assert_eq!(machine.snapshot(), before);
    let (started, again) = processes(&machine, driver.unmanage(&release(&adoption))).await;
    again.unwrap();
    assert_eq!(started, 0);
    assert!(driver.volumes(None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_may_keep_its_managed_name() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "vg0/a-1").await;
    driver.manage(&adoption).await.unwrap();
    driver.unmanage(&Release { to: adoption.to.clone(), ..release(&adoption) }).await.unwrap();
    assert!(machine.lvs("vg0")[MANAGED].is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attached_volume_is_managed_in_place() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "vg0/a-1").await;
    let (at, device) = attach(&driver, &spec("vg0/a-1")).await;
    machine.open("dm-0", 7, "qemu");
    driver.manage(&adoption).await.unwrap();
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    machine.release("dm-0");
    driver.detach(&at, soon()).await.unwrap();
    assert_eq!(machine.lv_device("vg0", MANAGED), None);
}

#[tokio::test(start_paused = true)]
async fn every_crash_of_manage_and_unmanage_is_gone_on_from() {
    for effects in 1.. {
        let mut machine = machine();
        let before = machine.snapshot();
        let adoption = adoption(&driver(&machine), "vg0/a-1").await;
        machine.crash_after(effects);
        let crashed = tokio::select! {
            _done = async { driver(&machine).manage(&adoption).await } => false,
            () = machine.crashed() => true,
        };
        machine.restart();
        let volume = driver(&machine).manage(&adoption).await.unwrap();
        assert_eq!((&volume.locator, &volume.origin), (&adoption.to, &adoption.from));
        assert_eq!(machine.lvs("vg0").len(), 1);

        let release = release(&adoption);
        machine.crash_after(effects);
        tokio::select! {
            _done = async { driver(&machine).unmanage(&release).await } => {}
            () = machine.crashed() => {}
        }
        machine.restart();
        driver(&machine).unmanage(&release).await.unwrap();
        assert_eq!(machine.snapshot(), before);
        if !crashed {
            assert_eq!(effects, 3, "it tags, it renames, and that is all");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn half_managed_can_be_let_go() {
    let mut machine = machine();
    let before = machine.snapshot();
    let adoption = adoption(&driver(&machine), "vg0/a-1").await;
    machine.crash_after(1);
    tokio::select! {
        _done = async { driver(&machine).manage(&adoption).await } => panic!("it has more than one effect"),
        () = machine.crashed() => {}
    }
    machine.restart();
    let driver = driver(&machine);
    let half = driver.volumes(None).await.unwrap();
    assert_eq!((&half[0].locator, &half[0].origin), (&adoption.from, &adoption.from));
    driver.unmanage(&release(&adoption)).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn names_and_identities_must_fit() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "vg0/a-1").await;

    machine.add_lv("vg0", MANAGED, GIB);
    let before = machine.snapshot();
    assert_eq!(driver.manage(&adoption).await.unwrap_err().reason(), "ALREADY_EXISTS");
    assert_eq!(machine.snapshot(), before);
    machine.remove_lv("vg0", MANAGED);

    driver.manage(&adoption).await.unwrap();
    let other = Adoption { id: "0000b827-4ad0-488e-8df8-26476b3a8662".parse().unwrap(), ..adoption.clone() };
    assert_eq!(driver.manage(&other).await.unwrap_err().reason(), "ALREADY_EXISTS");
    let wrong = Release { id: other.id, ..release(&adoption) };
    assert_eq!(driver.unmanage(&wrong).await.unwrap_err().reason(), "IDENTITY_MISMATCH");
    machine.add_lv("vg0", "a-1", GIB);
    let before = machine.snapshot();
    assert_eq!(driver.unmanage(&release(&adoption)).await.unwrap_err().reason(), "ALREADY_EXISTS");
    assert_eq!(machine.snapshot(), before);

    // Another LV has the old name, and ours is gone.
    machine.remove_lv("vg0", MANAGED);
    assert_eq!(driver.manage(&adoption).await.unwrap_err().reason(), "IDENTITY_MISMATCH");
    machine.remove_lv("vg0", "a-1");
    assert_eq!(driver.manage(&adoption).await.unwrap_err().reason(), "NOT_FOUND");
    assert_eq!(driver.unmanage(&release(&adoption)).await.unwrap_err().reason(), "NOT_FOUND");

    let elsewhere = Adoption { to: locator("vg1/x"), ..adoption };
    assert_eq!(driver.manage(&elsewhere).await.unwrap_err().reason(), "INVALID");
}

/// What somebody else does to a machine.
type Spoil = fn(&Machine);

#[tokio::test(start_paused = true)]
async fn what_lvm_would_not_change_is_not_begun() {
    let ways: [(Spoil, &str); 3] = [
        (|machine| machine.set_vg_system_id("vg0", "elsewhere"), "elsewhere"),
        (|machine| machine.export_vg("vg0"), "vgimport"),
        (|machine| machine.lose_disk("vdb"), "missing"),
    ];
    for (spoil, named) in ways {
        for managed in [true, false] {
            let machine = machine();
            let driver = driver(&machine);
            let adoption = adoption(&driver, "vg0/a-1").await;
            if managed {
                driver.manage(&adoption).await.unwrap();
            }
            spoil(&machine);
            let began = machine.effects().len();
            let error = match managed {
                true => driver.unmanage(&release(&adoption)).await.unwrap_err(),
                false => driver.manage(&adoption).await.unwrap_err(),
            };
            assert_eq!(error.reason(), "WRONG_STATE", "{error}");
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(machine.effects().len(), began, "{:?}", machine.effects());
            if !managed {
                // There is nothing to take back, and so nothing to refuse.
                driver.unmanage(&release(&adoption)).await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_unmanage_says_whether_anything_was_changed() {
    let odd = || Output { code: 5, stderr: "  device-mapper: something odd\n".into(), ..Output::default() };
    let gone = || Output { code: 5, stderr: "  Volume group \"vg0\" not found\n".into(), ..Output::default() };
    let ways: [(&str, host::sim::Fault, bool, &str); 6] = [
        ("lvrename", odd().into(), false, "WRONG_STATE"),
        ("lvrename", gone().into(), false, "NOT_FOUND"),
        ("lvrename", odd().into(), true, "TOOL_FAILED"),
        ("lvrename", gone().into(), true, "TOOL_FAILED"),
        ("lvchange", gone().into(), false, "TOOL_FAILED"),
        ("lvrename", late().into(), true, "TIMED_OUT"),
    ];
    for (tool, fault, done, reason) in ways {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let adoption = adoption(&driver, "vg0/a-1").await;
        driver.manage(&adoption).await.unwrap();
        let managed = machine.snapshot();
        match done {
            true => machine.lose_next(format!("run lvm {tool}"), fault),
            false => machine.fail_next(format!("run lvm {tool}"), fault),
        }
        let error = driver.unmanage(&release(&adoption)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{tool} {done}: {error}");
        let says_unchanged = matches!(reason, "WRONG_STATE" | "NOT_FOUND");
        assert_eq!(machine.snapshot() == managed, says_unchanged, "{tool} {done}: {error}");
        driver.unmanage(&release(&adoption)).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }
}

/// A copy of an LV may carry its tags: it is listed as what it says it is, and so is every other that says the same.
#[tokio::test(start_paused = true)]
async fn every_lv_that_says_it_is_a_volume_is_listed() {
    let machine = machine();
    let driver = driver(&machine);
    driver.manage(&adoption(&driver, "vg0/a-1").await).await.unwrap();
    machine.add_lv("vg0", "copy", GIB);
    for tag in machine.lvs("vg0")[MANAGED].clone() {
        machine.tag_lv("vg0", "copy", &tag);
    }
    for scope in [None, Some(&scope())] {
        let volumes = driver.volumes(scope).await.unwrap();
        let said: Vec<_> = volumes.iter().map(|volume| (volume.id.to_string(), volume.locator.to_string())).collect();
        assert_eq!(said, [(ID.into(), format!("lvm:vg0/{MANAGED}")), (ID.into(), "lvm:vg0/copy".into())]);
    }
    assert_eq!(refusal(&driver, "vg0/copy").await, format!("managed as {ID}"));
}

#[tokio::test(start_paused = true)]
async fn lost_tags_cost_the_name_not_the_volume() {
    let machine = machine();
    machine.tag_lv("vg0", "a-1", &format!("mortar.id={ID}"));
    machine.add_lv("vg0", "odd", GIB);
    machine.tag_lv("vg0", "odd", "mortar.id=7");
    let driver = driver(&machine);
    let volumes = driver.volumes(None).await.unwrap();
    assert_eq!(volumes.len(), 1);
    assert_eq!((volumes[0].name.as_str(), &volumes[0].origin), (ID, &locator("vg0/a-1")));
    assert_eq!(refusal(&driver, "vg0/odd").await, "managed as 7");
}

#[tokio::test(start_paused = true)]
async fn requests_for_other_backends_are_refused() {
    let machine = machine();
    let driver = driver(&machine);
    let file: Locator = "file:/srv/a.raw".parse().unwrap();
    assert_eq!(driver.inspect(&file).await.unwrap_err().reason(), "INVALID");
    assert_eq!(driver.prepare(&Spec { locator: file, ..spec("vg0/a-1") }).await.unwrap_err().reason(), "INVALID");
    let directory = "file:/srv".parse().unwrap();
    assert_eq!(driver.manageable(&directory).await.unwrap_err().reason(), "INVALID");
    assert_eq!(machine.processes(), 0);
}
