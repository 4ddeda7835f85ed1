//! Derived volumes: snapshots for rescues.

use super::*;
use driver::{Derivation, Derived, DiskFormat, Means};

const OWNER: &str = "1b671a64-40d5-491e-99b0-da01ff1f3341";
const NAME: &str = "rescue-1b671a64-40d5-491e-99b0-da01ff1f3341";
const MIB: u64 = 1 << 20;

/// As [`machine`], with a thin LV `vg0/thin` in the pool `vg0/tp`.
fn with_thin() -> Machine {
    let machine = machine();
    machine.add_thin_pool("vg0", "tp", GIB);
    machine.add_thin_lv("vg0", "tp", "thin", GIB);
    machine
}

async fn plan(driver: &LvmDriver, image: &str) -> Result<Derivation> {
    driver.plan_derivation(&locator(image), OWNER).await
}

fn tag() -> String {
    format!("mortar.rescue={OWNER}")
}

#[tokio::test(start_paused = true)]
async fn there_and_back_of_a_thick_and_of_a_thin_lv() {
    for (image, extra) in [("vg0/a-1", "--chunksize 4096b --extents 258"), ("vg0/thin", "--setactivationskip n")] {
        let machine = with_thin();
        let driver = driver(&machine);
        let before = machine.snapshot();
        let plan = plan(&driver, image).await.unwrap();
        assert_eq!(plan.to, locator(&format!("vg0/{NAME}")));
        assert_eq!(machine.snapshot(), before, "planning changed something");

        let expected = Derived { means: Means::Snapshot, format: DiskFormat::Raw, size_bytes: GIB };
        let (started, derived) = processes(&machine, driver.derive(&plan, soon())).await;
        assert_eq!((started, derived.unwrap()), (2, expected.clone()));
        let made = machine.commands().into_iter().find(|line| line.starts_with("lvm lvcreate")).unwrap();
        assert!(made.starts_with("lvm lvcreate -an -y --permission rw --snapshot "), "{made}");
        assert!(made.contains(extra) && made.contains(&format!("--name {NAME} --addtag {} {image} ", tag())), "{made}");
        // Again is the same, and costs nothing.
        let (started, again) = processes(&machine, driver.derive(&plan, soon())).await;
        assert_eq!((started, again.unwrap()), (0, expected));
        assert_eq!(driver.derivations(Some(&scope())).await.unwrap(), std::slice::from_ref(&plan));
        assert_eq!(driver.derivations(None).await.unwrap(), std::slice::from_ref(&plan));

        // It is as any other LV to an attach, and writable.
        let (at, device) = attach(&driver, &spec(&format!("vg0/{NAME}"))).await;
        assert_eq!((device.size_bytes, device.read_only), (GIB, false));
        let error = driver.discard(&plan, soon()).await.unwrap_err();
        assert!(matches!(&error, Error::InUse { by, .. } if by == &["attached"]), "{error}");
        driver.detach(&at, soon()).await.unwrap();

        let (started, discarded) = processes(&machine, driver.discard(&plan, soon())).await;
        discarded.unwrap();
        assert_eq!((started, machine.snapshot()), (2, before.clone()));
        let (started, discarded) = processes(&machine, driver.discard(&plan, soon())).await;
        discarded.unwrap();
        assert_eq!((started, machine.snapshot()), (0, before));
        assert_eq!(driver.derivations(None).await.unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_may_be_active_read_only_or_a_thin_snapshot() {
    let machine = with_thin();
    machine.add_lv_snapshot("vg0", "thin", "thin-s");
    machine.set_lv_writable("vg0", "a-1", false);
    machine.activate_lv("vg0", "thin", false);
    machine.activate_lv("vg0", "a-1", false);
    let driver = driver(&machine);
    let before = machine.snapshot();
    for image in ["vg0/thin-s", "vg0/a-1", "vg0/thin"] {
        let plan = plan(&driver, image).await.unwrap();
        driver.derive(&plan, soon()).await.unwrap();
        let (at, device) = attach(&driver, &spec(&format!("vg0/{NAME}"))).await;
        assert!(!device.read_only);
        driver.detach(&at, soon()).await.unwrap();
        driver.discard(&plan, soon()).await.unwrap();
        assert_eq!(machine.snapshot(), before, "{image}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_an_image_is_refused_with_the_reason() {
    let machine = with_thin();
    machine.add_lv_snapshot("vg0", "a-1", "a-1-s");
    machine.add_vg("vgf", &["vdf"]);
    machine.add_lv("vgf", "x", GIB);
    machine.set_vg_system_id("vgf", "other");
    machine.add_vg("vgs", &["vds"]);
    machine.add_lv("vgs", "x", 60 * GIB);
    machine.add_vg("vgl", &["vdl", "vdm"]);
    machine.add_lv("vgl", "x", GIB);
    let driver = driver(&machine);
    let rescue = plan(&driver, "vg0/thin").await.unwrap();
    driver.derive(&rescue, soon()).await.unwrap();
    machine.lose_disk("vdm");
    machine.fill_thin_pool("vg0", "tp", 100.0);
    let before = machine.snapshot();
    let other = "2b671a64-40d5-491e-99b0-da01ff1f3341";
    for (image, owner, reason, part) in [
        ("vg0/none", other, "NOT_FOUND", "vg0/none"),
        ("vg9/none", other, "NOT_FOUND", "vg9"),
        ("vg0/tp", other, "WRONG_STATE", "thin pool"),
        ("vg0/tp_tmeta", other, "WRONG_STATE", "a part of another LV"),
        ("vg0/a-1-s", other, "WRONG_STATE", "name vg0/a-1 itself"),
        ("vg0/thin", OWNER, "WRONG_STATE", "is there already: it is the rescue disk of the instance"),
        (&format!("vg0/{NAME}"), other, "WRONG_STATE", "cannot be an image"),
        ("vg0/thin", other, "NO_SPACE", "100 % of its data"),
        ("vgf/x", other, "WRONG_STATE", "system ID other"),
        // 60 GiB, of which 40 are free, and what the kernel keeps of the chunks.
        ("vgs/x", other, "NO_SPACE", "21730689024 of them are missing"),
        ("vgl/x", other, "WRONG_STATE", "PVs of the VG vgl are missing"),
        ("vg0/a-1", "../a-1", "INVALID", "no UUID"),
        ("vg0/a-1", "1B671A64-40D5-491E-99B0-DA01FF1F3341", "INVALID", "no UUID"),
    ] {
        let error = driver.plan_derivation(&locator(image), owner).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{image}: {error}");
        assert!(error.to_string().contains(part), "{image}: {error}");
    }
    assert_eq!(machine.snapshot(), before);
    assert!(refusal(&driver, &format!("vg0/{NAME}")).await.starts_with("it is the rescue disk of the instance"));
}

#[tokio::test(start_paused = true)]
async fn only_what_bears_the_mark_is_discarded_and_only_when_nobody_has_it() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "vg0/a-1").await.unwrap();
    // Somebody else's, by our name.
    machine.add_lv("vg0", NAME, GIB);
    let before = machine.snapshot();
    for result in [driver.discard(&plan, soon()).await, driver.derive(&plan, soon()).await.map(drop)] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::WrongState { what } if what.contains("does not bear the mark")), "{error}");
    }
    assert_eq!(machine.snapshot(), before);
    machine.remove_lv("vg0", NAME);

    driver.derive(&plan, soon()).await.unwrap();
    machine.activate_lv("vg0", NAME, false);
    let device = machine.lv_device("vg0", NAME).unwrap();
    machine.open(&device, 4711, "qemu-system-x86");
    let before = machine.snapshot();
    let error = driver.discard(&plan, soon()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("vg0/{NAME} is in use: open by qemu-system-x86 (pid 4711)"));
    assert_eq!(machine.snapshot(), before);
    machine.release(&device);
    // Who opens it between our look and lvremove is told by lvremove.
    let opened = device.clone();
    machine.before_next("run lvm lvremove", move |machine| machine.open(&opened, 1, "cat"));
    assert!(matches!(driver.discard(&plan, soon()).await, Err(Error::InUse { .. })));
    machine.release(&device);
    // The mark is taken away in that moment.
    machine.before_next("run lvm lvremove", |machine| {
        machine.remove_lv("vg0", NAME);
        machine.add_lv("vg0", NAME, MIB);
    });
    driver.discard(&plan, soon()).await.unwrap();
    assert!(machine.lvs("vg0").contains_key(NAME), "what took its name was removed");
}

#[tokio::test(start_paused = true)]
async fn the_image_is_held_against_the_plan() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "vg0/a-1").await.unwrap();
    // A name is not what it is.
    machine.rename_lv("vg0", "a-1", "renamed");
    driver.derive(&plan, soon()).await.unwrap();
    driver.discard(&plan, soon()).await.unwrap();
    machine.rename_lv("vg0", "renamed", "a-1");
    // Another LV gets the name between the look and lvcreate.
    machine.before_next("run lvm lvcreate", |machine| {
        machine.rename_lv("vg0", "a-1", "renamed");
        machine.add_lv("vg0", "a-1", GIB);
    });
    let error = driver.derive(&plan, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::WrongState { what } if what.contains("renamed meanwhile")), "{error}");
    driver.discard(&plan, soon()).await.unwrap();
    machine.remove_lv("vg0", "a-1");
    machine.rename_lv("vg0", "renamed", "a-1");
    machine.recreate_lv("vg0", "a-1");
    let before = machine.snapshot();
    assert!(matches!(driver.derive(&plan, soon()).await, Err(Error::Mismatch { .. })));
    assert_eq!(machine.snapshot(), before);
    driver.discard(&plan, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn room_that_goes_meanwhile_is_missed_by_lvm_and_nothing_stays() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "vg0/a-1").await.unwrap();
    machine.before_next("run lvm lvcreate", |machine| machine.add_lv("vg0", "fill", 198 * GIB));
    let before_fill = machine.lvs("vg0");
    let error = driver.derive(&plan, soon()).await.unwrap_err();
    assert_eq!(error.reason(), "NO_SPACE", "{error}");
    machine.remove_lv("vg0", "fill");
    assert_eq!(machine.lvs("vg0"), before_fill);
}

#[tokio::test(start_paused = true)]
async fn a_crash_anywhere_is_gone_on_from_or_discarded() {
    for forward in [true, false] {
        for effects in 0..=3 {
            let mut machine = with_thin();
            let plan = plan(&driver(&machine), "vg0/a-1").await.unwrap();
            let before = machine.snapshot();
            machine.crash_after(effects);
            let dying = driver(&machine);
            let work = async {
                dying.derive(&plan, soon()).await.unwrap();
                dying.discard(&plan, soon()).await.unwrap();
            };
            tokio::select! {
                () = work => {}
                () = machine.crashed() => {}
            }
            machine.restart();
            let driver = driver(&machine);
            if forward {
                driver.derive(&plan, soon()).await.unwrap();
                assert_eq!(driver.derivations(None).await.unwrap(), std::slice::from_ref(&plan), "after {effects}");
            }
            driver.discard(&plan, soon()).await.unwrap();
            assert_eq!(machine.snapshot(), before, "after {effects}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_power_failure_left_of_lvcreate_is_made_anew_or_discarded() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "vg0/a-1").await.unwrap();
    let before = machine.snapshot();
    for forward in [true, false] {
        driver.derive(&plan, soon()).await.unwrap();
        machine.halve_lv_snapshot("vg0", NAME);
        if forward {
            driver.derive(&plan, soon()).await.unwrap();
            assert_eq!(driver.derivations(None).await.unwrap(), std::slice::from_ref(&plan));
        }
        driver.discard(&plan, soon()).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }
}
