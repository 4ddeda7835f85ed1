//! The driver on the simulated machine.

mod derive;

use super::*;
use driver::{Footprint, Refusal, VolumeName};
use host::{LoopSetup, sim::Machine};
use std::time::Duration;

const A: &str = "file:/srv/volumes/a.raw";
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";
const MANAGED: &str = "file:/srv/volumes/volume-9394b827-4ad0-488e-8df8-26476b3a8662";

fn machine() -> Machine {
    let machine = Machine::new();
    machine.put_raw("/srv/volumes/a.raw", 1 << 20);
    machine
}

fn driver(machine: &Machine) -> FileDriver {
    let directories = vec!["/srv/volumes".into(), "/srv/absent".into()];
    FileDriver::new(Arc::new(machine.clone()), FileConfig { directories, templates: driver::Templates::default() })
}

fn locator(text: &str) -> Locator {
    text.parse().unwrap()
}

fn spec(text: &str) -> Spec {
    Spec { locator: locator(text), read_only: false, exclusive: false, expected_wwn: None, expected_size: None }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn attach(driver: &FileDriver, spec: &Spec) -> Result<(Attached, Device)> {
    let footprint = driver.prepare(spec).await?;
    let device = driver.attach(spec, &footprint, &Attempt::until(soon())).await?;
    Ok((Attached { spec: spec.clone(), footprint, identity: Some(device.identity.clone()) }, device))
}

fn scope() -> Scope {
    "file:/srv/volumes".parse().unwrap()
}

/// The reason and the whole text of what went wrong.
fn said<T: std::fmt::Debug>(result: Result<T>) -> (&'static str, String) {
    let error = result.unwrap_err();
    (error.reason(), error.chain())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, reason: &str, part: &str) {
    let (found, text) = said(result);
    assert_eq!(found, reason, "{text}");
    assert!(text.contains(part), "{text:?} does not say {part:?}");
}

mod attaching {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn there_and_back_leaves_nothing_and_starts_no_process() {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let (at, device) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!((device.path.as_path(), device.size_bytes), (Path::new("/dev/loop0"), 1 << 20));
        assert_eq!(device.paths.len(), 1);
        assert_eq!(driver.find(&at).await.unwrap().as_ref(), Some(&device));
        assert_eq!(driver.prove(&at).await.unwrap().as_ref(), Some(&device));

        let (_, again) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!(again, device);
        for _ in 0..2 {
            assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
            assert_eq!(machine.snapshot(), before);
        }
        assert_eq!(driver.find(&at).await.unwrap(), None);
        assert_eq!(driver.prove(&at).await.unwrap(), None);
        assert_eq!(machine.effects(), ["loop_attach /srv/volumes/a.raw", "flush /dev/loop0", "loop_detach /dev/loop0"]);
        assert_eq!(machine.processes(), 0);
    }

    #[tokio::test]
    async fn a_device_that_was_seen_is_asked_before_all_others_and_believed_in_what_it_says() {
        let machine = machine();
        machine.put_raw("/srv/volumes/b.raw", 1 << 20);
        let driver = driver(&machine);
        let (a, device) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!(driver.find(&a).await.unwrap().as_ref(), Some(&device));
        let all = || host::Error::TimedOut { what: "all of them".into(), after: Duration::ZERO };
        machine.fail_next("loop_devices", all());
        assert_eq!(driver.prove(&a).await.unwrap(), Some(device), "it was found without the others");
        assert!(driver.listing().await.is_err(), "all of them were asked before");
        // Another file takes its node.
        driver.detach(&a, soon()).await.unwrap();
        let (b, other) = attach(&driver, &spec("file:/srv/volumes/b.raw")).await.unwrap();
        assert_eq!(other.path, Path::new("/dev/loop0"));
        assert_eq!(driver.find(&a).await.unwrap(), None);
        assert_eq!(driver.find(&b).await.unwrap(), Some(other));
    }

    #[tokio::test]
    async fn many_are_found_as_each_is_but_by_one_look() {
        let machine = machine();
        let driver = driver(&machine);
        let mut all = Vec::new();
        for number in 0..FEW + 4 {
            let path = format!("/srv/volumes/{number}.raw");
            machine.put_raw(&path, 4096);
            all.push(attach(&driver, &spec(&format!("file:{path}"))).await.unwrap().0);
        }
        driver.detach(&all[0], soon()).await.unwrap();
        machine.silence_loop("loop1", true);
        machine.open("loop2", 4711, "dd");
        host::Host::loop_detach(&machine, Path::new("/dev/loop2")).await.unwrap();
        all[3].identity = None;
        all[3].footprint = Footprint::Lvm {
            identity: Identity::Lvm { vg_uuid: "v".into(), lv_uuid: "l".into() },
            was_active: false,
            was_read_only: false,
        };
        let each = || host::Error::TimedOut { what: "one of them".into(), after: Duration::ZERO };
        machine.fail_next("loop_device loop4", each());
        let found = driver.find_each(&all.iter().collect::<Vec<_>>()).await;
        assert!(driver.find(&all[4]).await.is_err(), "each of them was asked before");
        let told = |found: &Result<Option<Device>>| match found {
            Ok(device) => format!("{device:?}"),
            Err(error) => error.chain(),
        };
        for (number, (at, found)) in all.iter().zip(&found).enumerate() {
            assert_eq!(told(found), told(&driver.find(at).await), "{number}");
            assert_eq!(found.as_ref().is_ok_and(Option::is_some), number > 3, "{number}");
        }
        assert_eq!(found.len(), all.len());
    }

    #[tokio::test]
    async fn only_a_regular_file_of_whole_sectors() {
        let machine = machine();
        let driver = driver(&machine);
        machine.put_raw("/srv/volumes/empty", 0);
        machine.put_raw("/srv/volumes/odd", 1000);
        machine.put_link("/srv/volumes/link", "a.raw");
        for (name, reason, part) in [
            ("file:/srv/volumes/none", "NOT_FOUND", "/srv/volumes/none"),
            ("file:/srv/volumes", "WRONG_STATE", "directory"),
            ("file:/srv/volumes/link", "WRONG_STATE", "regular file"),
            ("file:/srv/volumes/empty", "WRONG_STATE", "truncate -s SIZE"),
            ("file:/srv/volumes/odd", "WRONG_STATE", "truncate -s %512"),
            ("lvm:vg/lv", "INVALID", "file:/"),
        ] {
            refused(driver.prepare(&spec(name)).await, reason, part);
        }
    }

    #[tokio::test]
    async fn a_loop_device_of_somebody_else_is_named_and_left() {
        let machine = machine();
        let driver = driver(&machine);
        let setup =
            LoopSetup { file: "/srv/volumes/a.raw".into(), read_only: false, label: "/srv/volumes/a.raw".into() };
        machine.loop_attach(&setup).await.unwrap();
        let before = machine.snapshot();
        refused(driver.prepare(&spec(A)).await, "IN_USE", "losetup -d /dev/loop0");
        let host::FileStat { device, inode, .. } = machine.stat(&setup.file).unwrap().unwrap();
        let footprint = Footprint::File { identity: Identity::File { device, inode } };
        let attached = driver.attach(&spec(A), &footprint, &Attempt::until(soon())).await;
        refused(attached, "IN_USE", "/dev/loop0");
        let at = Attached { spec: spec(A), footprint, identity: None };
        assert_eq!(driver.find(&at).await.unwrap(), None);
        driver.detach(&at, soon()).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }

    #[tokio::test]
    async fn read_only_is_kept_and_not_changed_underway() {
        let machine = machine();
        let driver = driver(&machine);
        let read_only = Spec { read_only: true, ..spec(A) };
        let (_, device) = attach(&driver, &read_only).await.unwrap();
        assert!(device.read_only);
        refused(attach(&driver, &spec(A)).await, "WRONG_STATE", "read-only");
        assert!(attach(&driver, &read_only).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_not_as_expected_is_taken_away_again() {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let size = Spec { expected_size: Some(4096), ..spec(A) };
        refused(attach(&driver, &size).await, "IDENTITY_MISMATCH", "expected 4096");
        assert_eq!(machine.snapshot(), before);
        let wwn = Spec { expected_wwn: Some("naa.6001405000000000".parse().unwrap()), ..spec(A) };
        refused(attach(&driver, &wwn).await, "IDENTITY_MISMATCH", "WWN");
        assert_eq!(machine.snapshot(), before);
        let right = Spec { expected_size: Some(1 << 20), ..spec(A) };
        let (at, _) = attach(&driver, &right).await.unwrap();
        refused(attach(&driver, &size).await, "IDENTITY_MISMATCH", "expected 4096");
        assert!(driver.find(&at).await.unwrap().is_some(), "what was there before was taken away");
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_is_another_volume() {
        let machine = machine();
        let driver = driver(&machine);
        let footprint = driver.prepare(&spec(A)).await.unwrap();
        machine.put_raw("/srv/volumes/a.raw", 1 << 20);
        let attached = driver.attach(&spec(A), &footprint, &Attempt::until(soon())).await;
        refused(attached, "IDENTITY_MISMATCH", "replaced");
        assert_eq!(machine.effects(), Vec::<String>::new());

        let (at, device) = attach(&driver, &spec(A)).await.unwrap();
        machine.move_tree("/srv/volumes/a.raw", "/srv/volumes/b.raw");
        assert_eq!(driver.prove(&at).await.unwrap().as_ref(), Some(&device), "a rename changes no identity");
        machine.put_raw("/srv/volumes/a.raw", 4096);
        refused(driver.prove(&at).await, "IDENTITY_MISMATCH", &device.identity.to_string());
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_while_it_is_attached_leaves_nothing() {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        machine.before_next("loop_attach", |machine| {
            machine.move_tree("/srv/volumes/a.raw", "/srv/volumes/old.raw");
            machine.put_raw("/srv/volumes/a.raw", 1 << 20);
        });
        refused(attach(&driver, &spec(A)).await, "IDENTITY_MISMATCH", "replaced");
        machine.move_tree("/srv/volumes/old.raw", "/srv/volumes/a.raw");
        assert_eq!(machine.snapshot(), before);
    }

    #[tokio::test]
    async fn a_crash_at_any_effect_is_undone_with_the_footprint_alone() {
        for n in 1..=3 {
            let mut machine = machine();
            let before = machine.snapshot();
            let old = driver(&machine);
            let footprint = old.prepare(&spec(A)).await.unwrap();
            let at = Attached { spec: spec(A), footprint: footprint.clone(), identity: None };
            machine.crash_after(n);
            let work = async {
                let device = old.attach(&spec(A), &footprint, &Attempt::until(soon())).await.unwrap();
                let handed_out = Attached { identity: Some(device.identity), ..at.clone() };
                old.detach(&handed_out, soon()).await.unwrap();
            };
            tokio::select! { () = work => panic!("no crash after {n}"), () = machine.crashed() => {} }
            machine.restart();
            let new = driver(&machine);
            let footprint_again = new.prepare(&spec(A)).await.unwrap();
            assert_eq!(footprint_again, footprint);
            assert_eq!(new.detach(&at, soon()).await.unwrap(), Detached::default());
            assert_eq!(machine.snapshot(), before, "after effect {n}");
        }
    }

    #[tokio::test]
    async fn a_second_name_of_the_file_is_no_second_device() {
        let machine = machine();
        let driver = driver(&machine);
        machine.put_hard_link("/srv/volumes/a.raw", "/srv/volumes/b.raw");
        machine.put_link("/srv/alias", "/srv/volumes");
        let (_, device) = attach(&driver, &spec("file:/srv/alias/a.raw")).await.unwrap();
        assert_eq!(attach(&driver, &spec(A)).await.unwrap().1, device, "a directory's other name is the same file");
        refused(
            driver.prepare(&spec("file:/srv/volumes/b.raw")).await,
            "IN_USE",
            "at /dev/loop0 as file:/srv/volumes/a.raw",
        );
    }
}

mod detaching {
    use super::*;

    #[tokio::test]
    async fn users_are_named_and_nothing_is_touched() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!(driver.users(&at).await.unwrap(), Vec::<String>::new());
        machine.mount("loop0", "/mnt/a");
        assert_eq!(driver.users(&at).await.unwrap(), ["mounted at /mnt/a"]);
        let effects = machine.effects().len();
        refused(driver.detach(&at, soon()).await, "IN_USE", "mounted at /mnt/a");
        assert_eq!(machine.effects().len(), effects);
        machine.release("loop0");
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    }

    #[tokio::test]
    async fn what_cannot_be_flushed_is_not_detached() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.fail_next("flush", host::Error::Unreachable { why: "input/output error".into() });
        refused(driver.detach(&at, soon()).await, "FLUSH_FAILED", "input/output error");
        assert!(driver.find(&at).await.unwrap().is_some());
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_that_does_not_end_may_end_later() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.fail_next("flush", host::Error::TimedOut { what: "flush".into(), after: Duration::from_secs(5) });
        refused(driver.detach(&at, soon()).await, "TIMED_OUT", "/dev/loop0");
        assert!(driver.find(&at).await.unwrap().is_some());
        machine.fail_next("users", host::Error::TimedOut { what: "search".into(), after: Duration::from_secs(5) });
        refused(driver.users(&at).await, "TIMED_OUT", "/dev/loop0");
    }

    #[tokio::test]
    async fn what_was_never_handed_out_is_not_flushed() {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        let at = Attached { identity: None, ..at };
        machine.fail_next("flush", host::Error::Unreachable { why: "input/output error".into() });
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
        assert_eq!(machine.snapshot(), before);
    }

    /// Between the look of a detach and its act, somebody unbinds ours and binds the device to his own file.
    #[tokio::test(start_paused = true)]
    async fn a_device_that_went_to_another_file_is_not_unbound() {
        let machine = machine();
        machine.put_raw("/srv/theirs.raw", 1 << 20);
        let driver = driver(&machine);
        let (at, device) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!(device.path, Path::new("/dev/loop0"));
        machine.before_next("claim /dev/loop0", |machine| machine.rebind_loop("loop0", "/srv/theirs.raw"));
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
        let now = machine.loop_device("loop0").await.unwrap().unwrap();
        assert_eq!(now.file, Path::new("/srv/theirs.raw"));
        assert!(!machine.effects().iter().any(|effect| effect == "flush /dev/loop0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_leaves_is_offered_to_nobody() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.before_next("loop_detach", |machine| machine.open("loop0", 4711, "dd"));
        assert_eq!(driver.detach(&at, soon()).await.unwrap().residuals.len(), 1);
        assert_eq!(driver.find(&at).await.unwrap(), None);
        assert_eq!(driver.prove(&at).await.unwrap(), None);
        assert_eq!(driver.users(&at).await.unwrap(), ["open by dd (pid 4711)"]);
        refused(driver.extend(&at, soon()).await, "NOT_FOUND", A);
        refused(driver.prepare(&spec(A)).await, "IN_USE", "goes when its last user closes it");
        let attached = driver.attach(&spec(A), &at.footprint, &Attempt::until(soon())).await;
        refused(attached, "IN_USE", "/dev/loop0");
        machine.release("loop0");
        assert!(attach(&driver, &spec(A)).await.is_ok());
    }

    #[tokio::test]
    async fn a_device_that_does_not_answer_is_not_gone_and_holds_up_no_other() {
        let machine = machine();
        let driver = driver(&machine);
        machine.put_raw("/srv/volumes/b.raw", 4096);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.silence_loop("loop0", true);
        let (other, _) = attach(&driver, &spec("file:/srv/volumes/b.raw")).await.unwrap();
        assert_eq!(driver.detach(&other, soon()).await.unwrap(), Detached::default());
        refused(driver.find(&at).await, "TIMED_OUT", "/dev/loop0");
        refused(driver.detach(&at, soon()).await, "TIMED_OUT", "/dev/loop0");
        refused(driver.prepare(&spec(A)).await, "TIMED_OUT", "/dev/loop0");
        machine.silence_loop("loop0", false);
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_falls_silent_while_it_is_unbound_is_a_residual() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.before_next("loop_detach", |machine| {
            machine.open("loop0", 4711, "dd");
            machine.silence_loop("loop0", true);
        });
        assert_eq!(driver.detach(&at, soon()).await.unwrap().residuals.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_is_a_residual_until_its_last_user_leaves() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.before_next("loop_detach", |machine| machine.open("loop0", 4711, "dd"));
        let start = Instant::now();
        let detached = driver.detach(&at, soon()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        let [left] = detached.residuals.as_slice() else { panic!("{detached:?}") };
        assert_eq!((left.kind, left.name.as_str()), (driver::ResidualKind::Loop, "/dev/loop0"));
        assert!(left.reason.contains("open by dd (pid 4711)"), "{}", left.reason);
        machine.release("loop0");
        assert_eq!(driver.detach(&at, soon()).await.unwrap(), Detached::default());
    }
}

mod extending {
    use super::*;

    #[tokio::test]
    async fn the_device_grows_with_its_file_and_never_shrinks() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, _) = attach(&driver, &spec(A)).await.unwrap();
        machine.truncate("/srv/volumes/a.raw", 2 << 20);
        assert_eq!(driver.find(&at).await.unwrap().unwrap().size_bytes, 1 << 20);
        for _ in 0..2 {
            assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 << 20);
        }
        assert_eq!(machine.effects().len(), 2);
        machine.truncate("/srv/volumes/a.raw", (2 << 20) + 1);
        refused(driver.extend(&at, soon()).await, "WRONG_STATE", "truncate -s %512");
        machine.truncate("/srv/volumes/a.raw", 1 << 20);
        refused(driver.extend(&at, soon()).await, "WRONG_STATE", "truncate -s 2097152");
        machine.put_file("/sys/block/loop0/queue/logical_block_size", "4096\n");
        machine.truncate("/srv/volumes/a.raw", (2 << 20) + 512);
        refused(driver.extend(&at, soon()).await, "WRONG_STATE", "truncate -s %4096");
        driver.detach(&at, soon()).await.unwrap();
        refused(driver.extend(&at, soon()).await, "NOT_FOUND", A);
    }
}

mod managing {
    use super::*;

    pub(super) async fn adoption(driver: &FileDriver) -> Adoption {
        Adoption {
            id: ID.parse().unwrap(),
            name: "int32bit-test-manage".parse().unwrap(),
            from: locator(A),
            to: locator(MANAGED),
            identity: driver.inspect(&locator(A)).await.unwrap().identity,
        }
    }

    fn release(volume: &Volume, to: &Locator) -> Release {
        Release { id: volume.id, from: volume.locator.clone(), to: to.clone(), identity: volume.identity.clone() }
    }

    #[tokio::test]
    async fn there_and_back() {
        let machine = machine();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let adoption = adoption(&driver).await;
        let volume = driver.manage(&adoption).await.unwrap();
        assert_eq!((&volume.locator, &volume.origin, volume.size_bytes), (&adoption.to, &adoption.from, 1 << 20));
        let effects = machine.effects().len();
        assert_eq!(driver.manage(&adoption).await.unwrap(), volume);
        assert_eq!(machine.effects().len(), effects, "the second time changed something");
        assert_eq!(driver.volumes(None).await.unwrap(), std::slice::from_ref(&volume));
        assert_eq!(driver.volumes(Some(&scope())).await.unwrap(), std::slice::from_ref(&volume));
        let candidate = driver.inspect(&volume.locator).await.unwrap();
        assert_eq!(candidate.refusal, Some(Refusal::Managed(format!("managed as {ID}"))));
        assert_eq!(candidate.managed.as_ref(), Some(&volume));

        let release = release(&volume, &volume.origin);
        for _ in 0..2 {
            driver.unmanage(&release).await.unwrap();
            assert_eq!(machine.snapshot(), before);
        }
        assert_eq!(machine.effects().len(), effects + 4);
        assert_eq!(driver.volumes(None).await.unwrap(), []);
        assert_eq!(machine.processes(), 0);
    }

    #[tokio::test]
    async fn a_crash_at_any_effect_is_gone_on_from_or_undone() {
        for n in 1..=4 {
            for forward in [true, false] {
                let mut machine = machine();
                let before = machine.snapshot();
                let old = driver(&machine);
                let adoption = adoption(&old).await;
                machine.crash_after(n);
                tokio::select! { _ = old.manage(&adoption) => panic!("no crash"), () = machine.crashed() => {} }
                machine.restart();
                let new = driver(&machine);
                if forward {
                    let volume = new.manage(&adoption).await.unwrap();
                    assert_eq!(new.volumes(None).await.unwrap(), [volume], "after effect {n}");
                } else {
                    let Adoption { id, to: from, from: to, identity, .. } = adoption;
                    new.unmanage(&Release { id, from, to, identity }).await.unwrap();
                    assert_eq!(machine.snapshot(), before, "after effect {n}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_origin_that_was_lost_after_the_rename_is_written_again() {
        let machine = machine();
        let driver = driver(&machine);
        let adoption = adoption(&driver).await;
        let volume = driver.manage(&adoption).await.unwrap();
        let path = volume::file(&volume.locator).unwrap().path();
        machine.set_attributes(path, &[("mortar.id", None)]).await.unwrap();
        assert_eq!(driver.volumes(None).await.unwrap(), []);
        driver.manage(&adoption).await.unwrap();
        assert_eq!(driver.volumes(None).await.unwrap(), [volume]);
    }

    #[tokio::test]
    async fn a_crash_in_unmanage_is_gone_on_from() {
        for n in 1..=4 {
            let mut machine = machine();
            let before = machine.snapshot();
            let old = driver(&machine);
            let volume = old.manage(&adoption(&old).await).await.unwrap();
            let release = release(&volume, &volume.origin);
            machine.crash_after(n);
            tokio::select! { _ = old.unmanage(&release) => panic!("no crash"), () = machine.crashed() => {} }
            machine.restart();
            driver(&machine).unmanage(&release).await.unwrap();
            assert_eq!(machine.snapshot(), before, "after effect {n}");
        }
    }

    #[tokio::test]
    async fn the_managed_name_can_be_kept() {
        let machine = machine();
        let driver = driver(&machine);
        let volume = driver.manage(&adoption(&driver).await).await.unwrap();
        for _ in 0..2 {
            driver.unmanage(&release(&volume, &volume.locator)).await.unwrap();
        }
        let candidate = driver.inspect(&volume.locator).await.unwrap();
        assert_eq!(candidate.managed, None);
        assert_eq!(candidate.refusal, Some(Refusal::Managed(format!("named like a managed volume, as {ID}"))));
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_never_overwritten() {
        let machine = machine();
        let driver = driver(&machine);
        let adoption = adoption(&driver).await;
        let managed = adoption.to.to_string();
        let path = managed.strip_prefix("file:").unwrap();
        machine.put_raw(path, 512);
        let before = machine.snapshot();
        refused(driver.manage(&adoption).await, "ALREADY_EXISTS", path);
        assert_eq!(machine.snapshot(), before);
        machine.remove_tree(path);

        let volume = driver.manage(&adoption).await.unwrap();
        machine.put_raw("/srv/volumes/a.raw", 512);
        let before = machine.snapshot();
        refused(driver.unmanage(&release(&volume, &volume.origin)).await, "ALREADY_EXISTS", "/srv/volumes/a.raw");
        assert_eq!(machine.snapshot(), before);
    }

    #[tokio::test]
    async fn another_file_under_the_name_is_not_the_volume() {
        let machine = machine();
        let driver = driver(&machine);
        let adoption = adoption(&driver).await;
        machine.put_raw("/srv/volumes/a.raw", 512);
        refused(driver.manage(&adoption).await, "IDENTITY_MISMATCH", A);
        machine.remove_tree("/srv/volumes/a.raw");
        refused(driver.manage(&adoption).await, "NOT_FOUND", MANAGED);
        let to = adoption.to.clone();
        let elsewhere = Adoption { to: locator("file:/srv/elsewhere"), ..adoption.clone() };
        refused(driver.manage(&elsewhere).await, "INVALID", "/srv/elsewhere");

        machine.put_raw("/srv/volumes/a.raw", 512);
        let identity = driver.inspect(&locator(A)).await.unwrap().identity;
        driver.manage(&Adoption { identity: identity.clone(), ..adoption.clone() }).await.unwrap();
        let id = "11111111-4ad0-488e-8df8-26476b3a8662".parse().unwrap();
        let other = Release { id, from: to.clone(), to: locator(A), identity: identity.clone() };
        refused(driver.unmanage(&other).await, "IDENTITY_MISMATCH", ID);
        let again = Adoption { id, from: to, to: locator("file:/srv/volumes/x"), identity, ..adoption };
        refused(driver.manage(&again).await, "ALREADY_EXISTS", ID);
    }

    #[tokio::test]
    async fn a_directory_that_was_moved_takes_its_volumes_along() {
        let machine = machine();
        let driver = driver(&machine);
        driver.manage(&adoption(&driver).await).await.unwrap();
        machine.move_tree("/srv/volumes", "/mnt/new");
        assert_eq!(driver.volumes(None).await.unwrap(), []);
        let volumes = driver.volumes(Some(&"file:/mnt/new".parse().unwrap())).await.unwrap();
        assert_eq!(volumes[0].origin, locator("file:/mnt/new/a.raw"));
        driver.unmanage(&release(&volumes[0], &volumes[0].origin)).await.unwrap();
        assert!(machine.stat(Path::new("/mnt/new/a.raw")).unwrap().is_some());
    }

    #[tokio::test]
    async fn an_attached_volume_is_renamed_beneath_its_device() {
        let machine = machine();
        let driver = driver(&machine);
        let (at, device) = attach(&driver, &spec(A)).await.unwrap();
        let refusal = driver.inspect(&locator(A)).await.unwrap().refusal;
        assert_eq!(refusal, Some(Refusal::InUse(vec!["bound to /dev/loop0".into()])));
        let volume = driver.manage(&adoption(&driver).await).await.unwrap();
        assert_eq!(driver.prove(&at).await.unwrap().as_ref(), Some(&device));
        let at = Attached { spec: Spec { locator: volume.locator, ..at.spec }, ..at };
        assert_eq!(driver.prove(&at).await.unwrap().as_ref(), Some(&device));
        machine.truncate(volume_path(&at), 2 << 20);
        assert_eq!(driver.extend(&at, soon()).await.unwrap().size_bytes, 2 << 20);
        driver.detach(&at, soon()).await.unwrap();
        assert_eq!(driver.find(&at).await.unwrap(), None);
    }

    fn volume_path(at: &Attached) -> &Path {
        volume::file(&at.spec.locator).unwrap().path()
    }

    #[tokio::test]
    async fn every_name_that_can_be_named_parses_back() {
        let name: VolumeName = "x".repeat(127).parse().unwrap();
        let machine = machine();
        let driver = driver(&machine);
        let adoption = Adoption { name: name.clone(), ..adoption(&driver).await };
        driver.manage(&adoption).await.unwrap();
        assert_eq!(driver.volumes(None).await.unwrap()[0].name, name);
    }
}

mod refusing {
    use super::*;
    use std::io::{Error as IoError, ErrorKind};

    fn fault(kind: ErrorKind) -> host::Error {
        host::Error::Io { doing: "write", path: "/srv/volumes/a.raw".into(), source: IoError::from(kind) }
    }

    #[tokio::test]
    async fn what_the_machine_says_tells_the_caller_what_to_do() {
        for (kind, reason, part) in [
            (ErrorKind::ReadOnlyFilesystem, "WRONG_STATE", "read-only"),
            (ErrorKind::PermissionDenied, "WRONG_STATE", "chattr -i"),
            (ErrorKind::ExecutableFileBusy, "IN_USE", "swap"),
            (ErrorKind::NotFound, "NOT_FOUND", A),
            (ErrorKind::Other, "INTERNAL", "bind a loop device"),
        ] {
            let machine = machine();
            let driver = driver(&machine);
            machine.fail_next("loop_attach", fault(kind));
            refused(attach(&driver, &spec(A)).await, reason, part);
        }
        for (kind, reason, part) in [
            (ErrorKind::Unsupported, "UNSUPPORTED", "extended attributes"),
            (ErrorKind::StorageFull, "NO_SPACE", A),
            (ErrorKind::Other, "INTERNAL", "write the attributes"),
        ] {
            let machine = machine();
            let driver = driver(&machine);
            let adoption = managing::adoption(&driver).await;
            machine.fail_next("set_attributes", fault(kind));
            refused(driver.manage(&adoption).await, reason, part);
        }
    }

    #[tokio::test]
    async fn what_was_bound_but_not_answered_is_found_again() {
        let machine = machine();
        let driver = driver(&machine);
        machine.lose_next("loop_attach", fault(ErrorKind::Other));
        assert!(attach(&driver, &spec(A)).await.is_err());
        let (_, device) = attach(&driver, &spec(A)).await.unwrap();
        assert_eq!(device.path, Path::new("/dev/loop0"));
        assert_eq!(machine.loop_devices().await.unwrap().len(), 1);
    }
}

mod listing {
    use super::*;

    #[tokio::test]
    async fn every_regular_file_with_its_reason() {
        let machine = machine();
        let driver = driver(&machine);
        machine.put_raw("/srv/volumes/empty", 0);
        machine.put_raw("/srv/volumes/odd", 1000);
        machine.put_raw("/srv/volumes/mounted", 4096);
        machine.put_raw("/srv/volumes/foreign", 4096);
        machine.put_raw("/srv/volumes/.hidden", 4096);
        machine.put_raw("/srv/volumes/line\nbreak", 4096);
        machine.put_raw(format!("/srv/volumes/volume-{ID}"), 4096);
        machine.put_raw("/srv/volumes/below/x", 4096);
        machine.put_link("/srv/volumes/link", "a.raw");
        machine.set_attributes(Path::new("/srv/volumes/foreign"), &[("mortar.id", Some("x"))]).await.unwrap();
        attach(&driver, &spec("file:/srv/volumes/mounted")).await.unwrap();
        machine.mount("loop0", "/mnt");

        let candidates = driver.manageable(&scope()).await.unwrap();
        let listed: Vec<(String, Option<String>)> = candidates
            .iter()
            .map(|it| (it.locator.to_string(), it.refusal.as_ref().map(ToString::to_string)))
            .collect();
        let expected = [
            ("a.raw", None),
            ("empty", Some("it is empty; `truncate -s SIZE` gives it a size")),
            (
                "foreign",
                Some(
                    "its attributes mortar.* are not ours (id: \"x\": write a UUID, like 9394b827-4ad0-488e-8df8-26476b3a8662); `setfattr -x` removes them",
                ),
            ),
            ("mounted", Some("in use: bound to /dev/loop0, mounted at /mnt")),
            ("odd", Some("it has 1000 bytes, which is no multiple of 512; `truncate -s %512` rounds it up")),
            (&format!("volume-{ID}"), Some(&format!("named like a managed volume, as {ID}") as &str)),
        ];
        let expected: Vec<(String, Option<String>)> =
            expected.map(|(name, why)| (format!("file:/srv/volumes/{name}"), why.map(str::to_owned))).into();
        assert_eq!(listed, expected);
        assert_eq!(candidates[0].size_bytes, 1 << 20);
        assert_eq!(driver.volumes(None).await.unwrap(), []);
        assert_eq!(machine.processes(), 0);
    }

    #[tokio::test]
    async fn copies_that_carry_the_same_id_are_all_listed() {
        let machine = machine();
        let driver = driver(&machine);
        let volume = driver.manage(&managing::adoption(&driver).await).await.unwrap();
        // As `cp -a` does.
        machine.put_raw("/srv/volumes/copy", 1 << 20);
        let attributes = machine.attributes(volume::file(&volume.locator).unwrap().path(), "").await.unwrap();
        for (name, value) in &attributes {
            machine.set_attributes(Path::new("/srv/volumes/copy"), &[(name, Some(value))]).await.unwrap();
        }
        let [copy, original] = driver.volumes(None).await.unwrap().try_into().unwrap();
        assert_eq!((copy.id, copy.locator), (volume.id, locator("file:/srv/volumes/copy")));
        assert_eq!(original, volume);
        assert_eq!(driver.manageable(&scope()).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn only_directories_that_are_there() {
        let driver = driver(&machine());
        let scope = |text: &str| text.parse::<Scope>().unwrap();
        refused(driver.manageable(&scope("file:/srv/absent")).await, "NOT_FOUND", "/srv/absent");
        refused(driver.volumes(Some(&scope("file:/srv/absent"))).await, "NOT_FOUND", "/srv/absent");
        refused(driver.manageable(&scope("file:/srv/volumes/a.raw")).await, "INVALID", "not a directory");
        refused(driver.manageable(&scope("lvm:vg")).await, "INVALID", "file:/DIRECTORY");
        refused(driver.inspect(&locator("file:/srv/volumes/none")).await, "NOT_FOUND", "/srv/volumes/none");
        assert_eq!(driver.volumes(None).await.unwrap(), []);
    }
}

#[tokio::test]
async fn ready_where_the_kernel_has_loop_devices() {
    let machine = machine();
    let driver = driver(&machine);
    assert_eq!(driver.readiness().await.problem, None);
    machine.remove_tree("/dev/loop-control");
    assert_eq!(driver.readiness().await.problem.as_deref(), Some("loop devices are missing: modprobe loop"));
}
