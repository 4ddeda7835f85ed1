//! The driver on the simulated machine.

mod derive;

use super::*;
use driver::{Access, Identity, Refusal};
use host::{
    rbd_job::{self, Mirroring, Watcher},
    sim::{Machine, rbd::KEY},
};
use std::time::Duration;
use tokio::task::JoinHandle;

const GIB: u64 = 1 << 30;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";
const MANAGED: &str = "volume-9394b827-4ad0-488e-8df8-26476b3a8662";

/// Two clusters; in the first one the image `p/a` of 1 GiB.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.add_cluster("ceph", "10.0.0.1:6789");
    machine.add_cluster("two", "10.0.0.2:6789");
    machine.add_image("ceph", "p", "", "a", GIB);
    machine
}

fn driver(machine: &Machine) -> RbdDriver {
    RbdDriver::new(Arc::new(machine.clone()), RbdConfig::default())
}

fn locator(text: &str) -> Locator {
    format!("rbd:{text}").parse().unwrap()
}

fn spec(text: &str) -> Spec {
    Spec::of(locator(text))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn try_attach(driver: &RbdDriver, spec: &Spec) -> Result<(Attached, Device)> {
    let footprint = driver.prepare(spec).await?;
    let device = driver.attach(spec, &footprint, &Attempt::until(soon())).await?;
    Ok((Attached { spec: spec.clone(), footprint, identity: Some(device.identity.clone()) }, device))
}

async fn attach(driver: &RbdDriver, text: &str) -> (Attached, Device) {
    try_attach(driver, &spec(text)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn attach_and_detach_start_no_process_and_leave_nothing() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, "p/a").await;
    assert_eq!((device.path.as_path(), device.size_bytes, device.read_only), (Path::new("/dev/rbd0"), GIB, false));
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    let [asked] = machine.mapped_images().try_into().unwrap();
    assert!(asked.starts_with("10.0.0.1:6789 name=admin,key=mortar-") && asked.ends_with(" p a -"), "{asked}");
    assert!(!asked.contains(KEY), "the key is for all to see: {asked}");
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    assert_eq!((machine.snapshot(), machine.processes()), (before, 0));
}

#[tokio::test(start_paused = true)]
async fn one_name_in_many_places_is_many_images() {
    let machine = machine();
    machine.add_image("ceph", "q", "", "a", GIB);
    machine.add_image("ceph", "p", "n", "a", GIB);
    let id = machine.add_image("two", "p", "", "a", GIB);
    machine.add_image_snapshot("two", &id, "s");
    let driver = driver(&machine);
    let places = ["p/a", "q/a", "p/n/a", "p/a?cluster=two", "p/a@s?cluster=two"];
    let mut there = Vec::new();
    for place in places {
        there.push(attach(&driver, place).await);
    }
    for gone in 0..places.len() {
        driver.detach(&there[gone].0, soon()).await.unwrap();
        for (number, (at, device)) in there.iter().enumerate() {
            let expected = (number > gone).then_some(device);
            assert_eq!(
                driver.find(at).await.unwrap().as_ref(),
                expected,
                "{} without {}",
                places[number],
                places[gone]
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_mapped_is_used_and_stays() {
    let machine = machine();
    let theirs = machine.map_image("10.0.0.1:6789 name=admin,secret=x p a -");
    let before = machine.snapshot();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, "p/a").await;
    assert_eq!(device.path, theirs);
    machine.mount("rbd0", "/mnt");
    assert!(driver.users(&at).await.unwrap().is_empty(), "those who use what stays go on to");
    let detached = driver.detach(&at, soon()).await.unwrap();
    assert!(detached.kept[0].contains("/dev/rbd0"), "{detached:?}");
    machine.release("rbd0");
    assert_eq!(machine.snapshot(), before);
    // Nor is it changed.
    for wanted in [Spec { read_only: true, ..spec("p/a") }, Spec { exclusive: true, ..spec("p/a") }] {
        let error = try_attach(&driver, &wanted).await.unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error}");
        assert_eq!(machine.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn one_image_by_two_names_has_one_device() {
    let machine = machine();
    let driver = driver(&machine);
    let (_, first) = attach(&driver, "p/a").await;
    let Identity::Rbd { image_id, .. } = &first.identity else { panic!("{first:?}") };
    machine.change_image("ceph", image_id, |image| image.name = "b".into());
    let (at, second) = attach(&driver, "p/b").await;
    assert_eq!((&first, machine.mapped_images().len()), (&second, 1));
    // The agent knows that another attachment has the device; the last one takes it away.
    driver.detach(&at, soon()).await.unwrap();
    assert!(machine.mapped_images().is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_attaches_of_one_image_at_once_have_one_device() {
    let machine = machine();
    machine.put_file("/etc/ceph/other.conf", "[global]\nmon host = v1:10.0.0.1:6789\n");
    machine.put_file("/etc/ceph/keyring", format!("[client.admin]\nkey = {KEY}\n"));
    let driver = driver(&machine);
    let (one, other) = tokio::join!(attach(&driver, "p/a"), attach(&driver, "p/a?cluster=other"));
    assert_eq!((one.1.path, machine.mapped_images().len()), (other.1.path, 1));
}

/// Lets everything go as far as it can.
async fn settle() {
    let _waited = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
}

fn attach_later(driver: &Arc<RbdDriver>, text: &'static str) -> JoinHandle<Result<(Attached, Device)>> {
    let driver = Arc::clone(driver);
    tokio::spawn(async move { try_attach(&driver, &spec(text)).await })
}

fn late(what: &str) -> host::Error {
    host::Error::TimedOut { what: what.into(), after: Duration::ZERO }
}

const BY_MONITOR: &str = "p/a?mon=10.0.0.1:6789";

#[tokio::test(start_paused = true)]
async fn what_is_not_settled_is_nobodys_device() {
    let machine = machine();
    let driver = Arc::new(driver(&machine));
    let (at, device) = attach(&driver, "p/a").await;
    // A detach has the turn, and hangs; another waits; behind them the new mapping waits to be settled.
    machine.fail_next("flush /dev/rbd0", late("flush"));
    let detach = |driver: &Arc<RbdDriver>, seconds| {
        let (driver, at) = (Arc::clone(driver), at.clone());
        tokio::spawn(async move { driver.detach(&at, Instant::now() + Duration::from_secs(seconds)).await })
    };
    let hangs = detach(&driver, 10);
    settle().await;
    let second = detach(&driver, 30);
    settle().await;
    let other = attach_later(&driver, BY_MONITOR);
    settle().await;
    assert_eq!(machine.mapped_images().len(), 2, "the temporary one is there");
    assert_eq!(driver.prove(&at).await.unwrap(), Some(device));
    hangs.await.unwrap().unwrap_err();
    assert_eq!(second.await.unwrap().unwrap(), Detached::default());
    let (other, device) = other.await.unwrap().unwrap();
    assert_eq!(device.path, Path::new("/dev/rbd1"), "it was not taken away with the other");
    assert_eq!(driver.find(&other).await.unwrap(), Some(device));
    driver.detach(&other, soon()).await.unwrap();
    assert!(machine.mapped_images().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_number_that_went_to_another_image_is_not_handed_out() {
    let machine = machine();
    machine.add_image("ceph", "p", "", "b", GIB);
    let driver = Arc::new(driver(&machine));
    let (at, _) = attach(&driver, "p/a").await;
    machine.fail_next("flush /dev/rbd0", late("flush"));
    let hangs = {
        let (driver, at) = (Arc::clone(&driver), at.clone());
        tokio::spawn(async move { driver.detach(&at, Instant::now() + Duration::from_secs(10)).await })
    };
    settle().await;
    let other = attach_later(&driver, BY_MONITOR);
    settle().await;
    machine.unmap_image(1);
    machine.map_image("10.0.0.1:6789 name=admin,secret=x p b -");
    hangs.await.unwrap().unwrap_err();
    let begun = Instant::now();
    // The first of the image's two is left, and has the detach that failed behind it.
    let (at, device) = other.await.unwrap().unwrap();
    assert_eq!((device.path.as_path(), Some(&device.identity)), (Path::new("/dev/rbd0"), at.identity.as_ref()));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(machine.mapped_images().len(), 2, "what an operator mapped stays, and what was not detached");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_went_to_another_image_is_not_unmapped() {
    for call in ["users /dev/rbd0", "claim /dev/rbd0", "flush /dev/rbd0", "write /sys/bus/rbd/remove_single_major 0"] {
        let machine = machine();
        machine.add_image("ceph", "p", "", "b", GIB);
        let driver = driver(&machine);
        let (at, _) = attach(&driver, "p/a").await;
        let busy = call.starts_with("write");
        if busy {
            // The first write is refused; the number goes to another one before the second.
            machine.fail_next(call, errno(libc::EBUSY));
        }
        let call = if busy { "users /dev/rbd0".to_owned() } else { call.to_owned() };
        let swap = |machine: &Machine| {
            machine.unmap_image(0);
            machine.map_image("10.0.0.1:6789 name=admin,secret=x p b -");
        };
        if busy {
            let again = call.clone();
            machine.before_next(call.clone(), move |machine| machine.before_next(again, swap));
        } else {
            machine.before_next(call.clone(), swap);
        }
        driver.detach(&at, soon()).await.unwrap();
        let [left] = machine.mapped_images().try_into().unwrap();
        assert!(left.ends_with(" p b -"), "{call}: {left}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_map_that_comes_late_is_taken_back_and_kept_from_the_undo_until_then() {
    let machine = machine();
    let before = machine.snapshot();
    let driver = Arc::new(driver(&machine));
    let go = machine.hold_next_map();
    let error = try_attach(&driver, &spec("p/a")).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let footprint = driver.prepare(&spec("p/a")).await.unwrap();
    let lost = Attached { spec: spec("p/a"), footprint, identity: None };
    let error = driver.detach(&lost, soon()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "what is still to come is not gone: {error}");
    go.send(()).unwrap();
    settle().await;
    assert_eq!(machine.snapshot(), before);
    assert_eq!(driver.detach(&lost, soon()).await.unwrap(), Detached::default());
}

#[tokio::test(start_paused = true)]
async fn an_undo_takes_away_only_what_was_mapped_for_its_locator() {
    let machine = machine();
    let driver = driver(&machine);
    let (one, _) = attach(&driver, "p/a").await;
    let lost = |footprint| Attached { spec: spec("p/a"), footprint, identity: None };
    let were_here = driver.prepare(&spec("p/a")).await.unwrap();
    driver.detach(&lost(were_here), soon()).await.unwrap();
    assert_eq!(machine.mapped_images().len(), 1, "it was here before");
    let elsewhere = Attached { spec: spec("p/b"), ..lost(one.footprint.clone()) };
    driver.detach(&elsewhere, soon()).await.unwrap();
    assert_eq!(machine.mapped_images().len(), 1, "it was mapped for another locator");
    driver.detach(&lost(one.footprint), soon()).await.unwrap();
    assert!(machine.mapped_images().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_undo_knows_its_own_whatever_number_it_was_given() {
    let machine = machine();
    machine.map_image("10.0.0.1:6789 name=admin,secret=x p a -");
    let driver = driver(&machine);
    let footprint = driver.prepare(&spec("p/a")).await.unwrap();
    // The number that was taken then is ours now.
    machine.unmap_image(0);
    driver.attach(&spec("p/a"), &footprint, &Attempt::until(soon())).await.unwrap();
    driver.detach(&Attached { spec: spec("p/a"), footprint, identity: None }, soon()).await.unwrap();
    assert!(machine.mapped_images().is_empty());
}

#[test]
fn the_footprint_of_an_older_journal_is_read() {
    let read: Footprint = serde_json::from_str(r#"{"backend":"rbd","were_here":[0,3]}"#).unwrap();
    assert_eq!(read, Footprint::Rbd { marks: Vec::new() });
}

#[tokio::test(start_paused = true)]
async fn a_watcher_has_the_name_of_its_own_device() {
    let machine = machine();
    machine.add_image("ceph", "p", "", "b", GIB);
    for image in ["a", "b"] {
        machine.map_image(&format!("10.0.0.1:6789 name=admin,secret=x p {image} -"));
    }
    let refusal = driver(&machine).inspect(&locator("p/b")).await.unwrap().refusal.unwrap().to_string();
    assert!(refusal.contains("/dev/rbd1") && !refusal.contains("/dev/rbd0"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn refusals_say_what_to_do_and_leave_nothing() {
    let machine = machine();
    let id = machine.add_image("ceph", "p", "", "j", GIB);
    machine.change_image("ceph", &id, |image| image.features.push("journaling".into()));
    let before = machine.snapshot();
    let driver = driver(&machine);
    let mut errors = Vec::new();
    for text in ["none/a", "p/none", "p/a@none", "p/a?user=nobody", "p/a?cluster=none", "p/a?mon=10.0.0.9:6789", "p/j"]
    {
        errors.push(try_attach(&driver, &spec(text)).await.unwrap_err());
    }
    let [pool, image, snapshot, user, cluster, monitor, features] = errors.try_into().unwrap();
    for absent in [pool, image, snapshot] {
        assert!(matches!(absent, Error::NotFound { .. }), "{absent}");
    }
    assert!(matches!(user, Error::Invalid { field: "credentials", .. }), "{user}");
    assert!(matches!(cluster, Error::WrongState { .. }) && cluster.to_string().contains("none.conf"), "{cluster}");
    assert!(matches!(&monitor, Error::Unreachable { why, .. } if why.contains("10.0.0.9:6789")), "{monitor}");
    assert!(features.to_string().contains("rbd feature disable p/j journaling"), "{features}");
    assert_eq!((machine.snapshot(), machine.processes()), (before, 1));
    let attempt = Attempt { access: Access { chap: None, cephx: Some("x".into()) }, ..Attempt::until(soon()) };
    let footprint = driver.prepare(&spec("p/a")).await.unwrap();
    let error = driver.attach(&spec("p/a"), &footprint, &attempt).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "credentials", .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn in_use_is_not_touched() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, _) = attach(&driver, "p/a").await;
    let with = machine.snapshot();
    machine.mount("rbd0", "/mnt/a");
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { by, .. } if by == &["mounted at /mnt/a"]), "{error}");
    machine.release("rbd0");
    assert_eq!(machine.snapshot(), with);
    // Somebody has it open for a moment, as udev does after a map.
    machine.fail_next("write /sys/bus/rbd/remove", errno(libc::EBUSY));
    assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
}

fn errno(number: i32) -> host::Error {
    host::Error::Io { doing: "write", path: "/sys/bus/rbd".into(), source: std::io::Error::from_raw_os_error(number) }
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_hangs_detaches_nothing() {
    let machine = machine();
    let driver = driver(&machine);
    let (at, device) = attach(&driver, "p/a").await;
    let late = || host::Error::TimedOut { what: "flush".into(), after: Duration::ZERO };
    machine.fail_next("flush /dev/rbd0", late());
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(driver.find(&at).await.unwrap(), Some(device));
    machine.fail_next("flush /dev/rbd0", errno(libc::EIO));
    let error = driver.detach(&at, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Flush { .. }), "{error}");
}

async fn adoption(driver: &RbdDriver, from: &str, to: &str) -> Adoption {
    Adoption {
        id: ID.parse().unwrap(),
        name: "for-people".parse().unwrap(),
        from: locator(from),
        to: locator(to),
        identity: driver.inspect(&locator(from)).await.unwrap().identity,
    }
}

fn back(adoption: &Adoption) -> Release {
    let (from, to) = (adoption.to.clone(), adoption.from.clone());
    Release { id: adoption.id, from, to, identity: adoption.identity.clone() }
}

#[tokio::test(start_paused = true)]
async fn an_image_and_its_snapshot_are_managed_and_let_go() {
    let machine = machine();
    let id = machine.add_image("ceph", "p", "", "b", GIB);
    machine.add_image_snapshot("ceph", &id, "s");
    let before = machine.snapshot();
    let driver = driver(&machine);
    let snapshot = format!("p/b@snap-{ID}");
    for (from, to) in [("p/b", format!("p/{MANAGED}")), ("p/b@s", snapshot)] {
        let adoption = adoption(&driver, from, &to).await;
        let volume = driver.manage(&adoption).await.unwrap();
        assert_eq!(
            (&volume.locator, &volume.origin, &volume.identity),
            (&adoption.to, &adoption.from, &adoption.identity)
        );
        assert_eq!(driver.manage(&adoption).await.unwrap(), volume);
        let processes = machine.processes();
        assert_eq!(driver.volumes(Some(&"rbd:p".parse().unwrap())).await.unwrap(), [volume]);
        assert_eq!(machine.processes(), processes + 1);
        driver.unmanage(&back(&adoption)).await.unwrap();
        driver.unmanage(&back(&adoption)).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_is_not_what_its_parent_is() {
    let machine = machine();
    let driver = driver(&machine);
    let parent = adoption(&driver, "p/a", &format!("p/{MANAGED}")).await;
    let volume = driver.manage(&parent).await.unwrap();
    let Identity::Rbd { image_id, .. } = &volume.identity else { panic!("{volume:?}") };
    let mut inherited = None;
    machine.change_image("ceph", image_id, |image| inherited = Some(image.metadata.clone()));
    let clone = machine.add_image("ceph", "p", "", "clone", GIB);
    machine.change_image("ceph", &clone, |image| image.metadata = inherited.unwrap());

    let scope = "rbd:p".parse().unwrap();
    assert_eq!(driver.volumes(Some(&scope)).await.unwrap(), [volume]);
    let candidate = driver.inspect(&locator("p/clone")).await.unwrap();
    assert_eq!((candidate.refusal, candidate.managed), (None, None));
    let id = "9394b827-4ad0-488e-8df8-26476b3a8663";
    let own = Adoption { id: id.parse().unwrap(), ..adoption(&driver, "p/clone", &format!("p/volume-{id}")).await };
    driver.manage(&own).await.unwrap();
    let mut ids: Vec<_> = driver.volumes(Some(&scope)).await.unwrap().into_iter().map(|volume| volume.id).collect();
    ids.sort();
    assert_eq!(ids, [parent.id, own.id]);
    driver.unmanage(&back(&own)).await.unwrap();
    machine.change_image("ceph", &clone, |image| assert!(image.metadata.is_empty(), "{image:?}"));
}

#[tokio::test(start_paused = true)]
async fn a_manage_that_goes_on_is_not_undone_before_its_end() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "p/a", &format!("p/{MANAGED}")).await;
    let begun = Instant::now();
    // It does its work, and ends very late.
    machine.lose_next("run mortar-rbd", late("mortar-rbd"));
    let error = driver.manage(&adoption).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(125), "{:?}", begun.elapsed());
    let processes = machine.processes();
    let error = driver.unmanage(&back(&adoption)).await.unwrap_err();
    assert!(matches!(&error, Error::TimedOut { waiting_for } if waiting_for.contains("earlier")), "{error}");
    assert_eq!(machine.processes(), processes + 1, "only looked at");
    while driver.unmanage(&back(&adoption)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(3600));
    }
    assert_eq!(driver.inspect(&locator("p/a")).await.unwrap().managed, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_exclusively_says_by_whom() {
    let machine = machine();
    let driver = driver(&machine);
    let adoption = adoption(&driver, "p/a", &format!("p/{MANAGED}")).await;
    let error = rbd_job::Failure {
        errno: Some(libc::EROFS),
        ..rbd_job::Failure::new(rbd_job::Step::Metadata, "set the metadata", "held exclusively by client.4")
    };
    let stdout = serde_json::to_string(&rbd_job::Failed { error }).unwrap();
    machine.fail_next("run mortar-rbd", host::Output { code: 1, stdout, stderr: String::new() });
    let error = driver.manage(&adoption).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { by, .. } if by[0].contains("client.4")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_is_said_in_words() {
    let machine = machine();
    let id = machine.add_image("ceph", "p", "", "plain", GIB);
    machine.change_image("ceph", &id, |image| image.features = vec!["layering".into()]);
    let driver = driver(&machine);
    let error = try_attach(&driver, &Spec { exclusive: true, ..spec("p/plain") }).await.unwrap_err();
    let says = |error: &Error, words| error.to_string().contains(words);
    assert!(matches!(error, Error::WrongState { .. }) && says(&error, "exclusive-lock"), "{error}");
    machine.fail_next("write /sys/bus/rbd/add", errno(libc::ESHUTDOWN));
    let error = try_attach(&driver, &spec("p/a")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && says(&error, "blocklist"), "{error}");
    // `ENOENT`, but of no image.
    let source = std::io::Error::from_raw_os_error(libc::ENOENT);
    machine.fail_next("write /sys/bus/rbd/add", host::Error::Io { doing: "open", path: "/sys/bus/rbd".into(), source });
    let error = try_attach(&driver, &spec("p/a")).await.unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_managed_says_why() {
    let machine = machine();
    let image = |name| machine.add_image("ceph", "p", "", name, GIB);
    image(MANAGED);
    let (mirror, watched, old, trash) = (image("mirror"), image("watched"), image("old"), image("trash"));
    machine.change_image("ceph", &mirror, |image| image.mirroring = Some(Mirroring { primary: false }));
    let watcher = Watcher { address: "10.0.0.7:0/1".into(), client: "client.4".into() };
    machine.change_image("ceph", &watched, |image| image.watchers.push(watcher));
    machine.change_image("ceph", &old, |image| image.id.clear());
    machine.trash_image("ceph", &trash);
    let driver = driver(&machine);
    let listed = driver.manageable(&"rbd:p".parse().unwrap()).await.unwrap();
    assert_eq!(machine.processes(), 1);
    let why = |name: &str| {
        let candidate = listed.iter().find(|candidate| candidate.locator == locator(&format!("p/{name}"))).unwrap();
        candidate.refusal.as_ref().map(Refusal::to_string).unwrap_or_default()
    };
    assert_eq!(why("a"), "");
    for (name, words) in [
        (MANAGED, "named as the managed volume"),
        ("mirror", "not the primary"),
        ("watched", "in use: watched from 10.0.0.7:0/1 (client.4)"),
        ("old", "format 1"),
        ("trash", "rbd trash restore p/"),
    ] {
        assert!(why(name).contains(words), "{name}: {}", why(name));
    }
    let error = driver.inspect(&locator("p/trash")).await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    let error = driver.inspect(&locator("p/none")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_the_kernel_or_the_libraries() {
    let machine = machine();
    machine.remove_tool(host::Tool::Rbd);
    let driver = driver(&machine);
    assert_eq!(driver.readiness().await.problem, None);
    attach(&driver, "p/a").await;
    let error = driver.inspect(&locator("p/a")).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    machine.remove_tree("/sys/bus/rbd");
    assert!(driver.readiness().await.problem.unwrap().contains("modprobe rbd"));
}
