//! Derived volumes: files for rescues.

use super::*;
use crate::header::tests::qcow2;
use driver::{Derivation, Derived, DiskFormat, Means};
use std::slice;

const OWNER: &str = "1b671a64-40d5-491e-99b0-da01ff1f3341";
const OTHER: &str = "2b671a64-40d5-491e-99b0-da01ff1f3341";
const TO: &str = "file:/srv/volumes/rescue-1b671a64-40d5-491e-99b0-da01ff1f3341.img";
const PATH: &str = "/srv/volumes/rescue-1b671a64-40d5-491e-99b0-da01ff1f3341.img";
const HALF: &str = "/srv/volumes/.rescue-1b671a64-40d5-491e-99b0-da01ff1f3341.img.new";

async fn plan(driver: &FileDriver, image: &str) -> Result<Derivation> {
    driver.plan_derivation(&locator(image), OWNER).await
}

/// A machine on which a file is derived by one of the three means.
fn by(means: Means) -> Machine {
    let machine = machine();
    machine.set_reflinks(means == Means::Reflink);
    if means == Means::Copy {
        machine.remove_tool(host::Tool::QemuImg);
    }
    machine.put_bytes("/srv/volumes/b.qcow2", &qcow2(3, 0, 0, 0));
    machine
}

const MEANS: [Means; 3] = [Means::Reflink, Means::Overlay, Means::Copy];

#[tokio::test(start_paused = true)]
async fn there_and_back_by_each_means() {
    for means in MEANS {
        for (image, format, size_bytes) in
            [(A, DiskFormat::Raw, 1 << 20), ("file:/srv/volumes/b.qcow2", DiskFormat::Qcow2, 1 << 30)]
        {
            let machine = by(means);
            let driver = driver(&machine);
            let before = machine.snapshot();
            let plan = plan(&driver, image).await.unwrap();
            assert_eq!(plan.to, locator(TO));
            assert_eq!(machine.snapshot(), before, "planning changed something");

            let format_now = if means == Means::Overlay { DiskFormat::Qcow2 } else { format };
            let expected = Derived { means, format: format_now, size_bytes };
            assert_eq!(driver.derive(&plan, soon()).await.unwrap(), expected);
            let after = machine.snapshot();
            assert_eq!(driver.derive(&plan, soon()).await.unwrap(), expected);
            assert_eq!(machine.snapshot(), after, "again is not the same");
            let path = image.strip_prefix("file:").unwrap();
            let made = match means {
                Means::Overlay => {
                    vec![format!("qemu-img create -q -f qcow2 -F {format} -b {path} -u {HALF} {size_bytes}")]
                }
                _ => Vec::new(),
            };
            assert_eq!(machine.commands(), made);
            let [listed] = driver.derivations(None).await.unwrap().try_into().unwrap();
            assert_eq!((listed.owner.as_str(), &listed.to), (OWNER, &plan.to));
            let refusal = driver.inspect(&plan.to).await.unwrap().refusal.unwrap().to_string();
            assert!(refusal.starts_with(&format!("it is the rescue disk of the instance {OWNER}")), "{refusal}");

            for which in [&plan, &plan] {
                driver.discard(which, soon()).await.unwrap();
                assert_eq!(machine.snapshot(), before);
            }
            driver.derive(&plan, soon()).await.unwrap();
            driver.discard(&listed, soon()).await.unwrap();
            assert_eq!(machine.snapshot(), before, "by what was listed");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_an_image_is_refused_with_the_reason() {
    let machine = by(Means::Reflink);
    machine.put_bytes("/srv/volumes/over", &qcow2(3, 104, 0, 0));
    machine.put_bytes("/srv/volumes/vmdk", b"KDMV and more");
    machine.put_raw("/srv/volumes/odd", 513);
    machine.put_directory("/srv/volumes/directory");
    machine.put_link("/srv/volumes/link", "a.raw");
    machine.put_raw(format!("/srv/volumes/rescue-{OTHER}.img"), 512);
    let driver = driver(&machine);
    driver.derive(&plan(&driver, A).await.unwrap(), soon()).await.unwrap();
    let before = machine.snapshot();
    for (image, owner, reason, part) in [
        ("/srv/volumes/none", OTHER, "NOT_FOUND", "none"),
        ("/srv/volumes/over", OTHER, "WRONG_STATE", "over another file"),
        ("/srv/volumes/vmdk", OTHER, "WRONG_STATE", "VMDK"),
        ("/srv/volumes/odd", OTHER, "WRONG_STATE", "multiple of 512"),
        ("/srv/volumes/directory", OTHER, "WRONG_STATE", "a directory"),
        ("/srv/volumes/link", OTHER, "WRONG_STATE", "a link"),
        ("/srv/volumes/a.raw", OWNER, "WRONG_STATE", "is there already: it is the rescue disk of the instance"),
        ("/srv/volumes/a.raw", OTHER, "WRONG_STATE", "does not bear the mark"),
        (PATH, OTHER, "WRONG_STATE", "cannot be an image: it is the rescue disk"),
        ("/srv/volumes/a.raw", "../x", "INVALID", "no UUID"),
    ] {
        let planned = driver.plan_derivation(&locator(&format!("file:{image}")), owner).await;
        refused(planned, reason, part);
    }
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn only_what_bears_the_mark_is_discarded_and_only_when_nobody_has_it() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, A).await.unwrap();
    machine.put_raw(PATH, 512);
    let before = machine.snapshot();
    refused(driver.discard(&plan, soon()).await, "WRONG_STATE", "does not bear the mark");
    refused(driver.derive(&plan, soon()).await, "WRONG_STATE", "does not bear the mark");
    assert_eq!(machine.snapshot(), before);
    machine.remove_tree(PATH);
    // It comes while ours is made.
    machine.before_next("rename", |machine| machine.put_raw(PATH, 512));
    refused(driver.derive(&plan, soon()).await, "WRONG_STATE", "does not bear the mark");
    assert_eq!(machine.snapshot(), before, "the half is left, or the other is not");
    machine.remove_tree(PATH);

    driver.derive(&plan, soon()).await.unwrap();
    machine.open(PATH, 4711, "qemu-system-x86");
    let before = machine.snapshot();
    refused(driver.discard(&plan, soon()).await, "IN_USE", "open by qemu-system-x86 (pid 4711)");
    assert_eq!(machine.snapshot(), before);
    machine.release(PATH);
    let (at, _) = attach(&driver, &spec(TO)).await.unwrap();
    refused(driver.discard(&plan, soon()).await, "IN_USE", "bound to /dev/loop0");
    driver.detach(&at, soon()).await.unwrap();
    driver.discard(&plan, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_image_is_held_against_the_plan() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, A).await.unwrap();
    // Before the copy is made, and in that moment.
    machine.put_raw("/srv/volumes/a.raw", 1 << 20);
    refused(driver.derive(&plan, soon()).await, "IDENTITY_MISMATCH", "was replaced");
    let plan = Derivation { identity: driver.inspect(&locator(A)).await.unwrap().identity, ..plan };
    machine.before_next("reflink", |machine| machine.put_raw("/srv/volumes/a.raw", 1 << 20));
    refused(driver.derive(&plan, soon()).await, "IDENTITY_MISMATCH", "was replaced");
    assert_eq!(driver.derivations(None).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn without_room_or_attributes_nothing_is_left() {
    for means in MEANS {
        let machine = by(means);
        let driver = driver(&machine);
        let plan = plan(&driver, A).await.unwrap();
        let before = machine.snapshot();
        let errno = |path: &str, number| host::Error::Io {
            doing: "write",
            path: path.into(),
            source: std::io::Error::from_raw_os_error(number),
        };
        match means {
            Means::Overlay => machine.fail_next(
                "run qemu-img",
                host::Output {
                    code: 1,
                    stderr: "qemu-img: x: No space left on device\n".into(),
                    ..host::Output::default()
                },
            ),
            Means::Reflink => machine.fail_next("reflink", errno(HALF, 28)),
            _ => machine.fail_next("copy", errno(HALF, 28)),
        }
        refused(driver.derive(&plan, soon()).await, "NO_SPACE", "");
        assert_eq!(machine.snapshot(), before, "{means:?}");
        machine.fail_next("set_attributes", errno(HALF, 95));
        refused(driver.derive(&plan, soon()).await, "UNSUPPORTED", "no extended attributes");
        assert_eq!(machine.snapshot(), before, "{means:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_anywhere_is_gone_on_from_or_discarded() {
    for means in MEANS {
        for forward in [true, false] {
            for effects in 1..=10 {
                let mut machine = by(means);
                let plan = plan(&driver(&machine), A).await.unwrap();
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
                let listed = driver.derivations(None).await.unwrap();
                assert_eq!(listed.is_empty(), machine.snapshot() == before, "{means:?} after {effects}");
                if forward {
                    assert_eq!(driver.derive(&plan, soon()).await.unwrap().means, means);
                    driver.discard(&plan, soon()).await.unwrap();
                }
                for listed in listed.iter().chain(slice::from_ref(&plan)) {
                    driver.discard(listed, soon()).await.unwrap();
                }
                assert_eq!(machine.snapshot(), before, "{means:?} after {effects}");
            }
        }
    }
}
