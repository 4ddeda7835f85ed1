//! Derived volumes: clones for rescues.

use super::*;
use driver::{Derivation, Derived, DiskFormat, Means};
use std::slice;

const OWNER: &str = "1b671a64-40d5-491e-99b0-da01ff1f3341";
const OTHER: &str = "2b671a64-40d5-491e-99b0-da01ff1f3341";
const NAME: &str = "rescue-1b671a64-40d5-491e-99b0-da01ff1f3341";

async fn plan(driver: &RbdDriver, image: &str, owner: &str) -> Result<Derivation> {
    driver.plan_derivation(&locator(image), owner).await
}

fn scope(text: &str) -> Scope {
    format!("rbd:{text}").parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn there_and_back_of_an_image_and_of_a_snapshot() {
    for (image, pool) in [("p/a", "p"), ("p/a@s", "p"), ("p/n/b", "p/n"), ("p/a?cluster=two", "p?cluster=two")] {
        let machine = machine();
        let id = machine.image_id("ceph", "p", "a");
        machine.add_image_snapshot("ceph", &id, "s");
        machine.change_image("ceph", &id, |image| image.features.push("journaling".into()));
        machine.add_image("ceph", "p", "n", "b", GIB);
        machine.add_image("two", "p", "", "a", GIB);
        let driver = driver(&machine);
        let before = machine.snapshot();
        let plan = plan(&driver, image, OWNER).await.unwrap();
        let (place, options) =
            pool.split_once('?').map_or((pool, String::new()), |(place, o)| (place, format!("?{o}")));
        assert_eq!(plan.to, locator(&format!("{place}/{NAME}{options}")));
        assert_eq!(machine.snapshot(), before, "planning changed something");

        let expected = Derived { means: Means::Clone, format: DiskFormat::Raw, size_bytes: GIB };
        let processes = machine.processes();
        assert_eq!(driver.derive(&plan, soon()).await.unwrap(), expected);
        assert_eq!(machine.processes() - processes, 1);
        assert_eq!(driver.derive(&plan, soon()).await.unwrap(), expected);
        assert_eq!(driver.derivations(Some(&scope(pool))).await.unwrap(), slice::from_ref(&plan));
        assert_eq!(driver.derivations(None).await.unwrap(), []);
        let refusal = driver.inspect(&plan.to).await.unwrap().refusal.unwrap().to_string();
        assert!(refusal.starts_with(&format!("it is the rescue disk of the instance {OWNER}")), "{refusal}");

        // What the kernel cannot do is left out, so it is mapped as any other image.
        let (at, _) = try_attach(&driver, &Spec::of(plan.to.clone())).await.unwrap();
        let error = driver.discard(&plan, soon()).await.unwrap_err();
        assert!(matches!(&error, Error::InUse { by, .. } if by == &["mapped as /dev/rbd0"]), "{error}");
        driver.detach(&at, soon()).await.unwrap();

        let processes = machine.processes();
        driver.discard(&plan, soon()).await.unwrap();
        assert_eq!(machine.processes() - processes, 1);
        driver.discard(&plan, soon()).await.unwrap();
        assert_eq!(machine.snapshot(), before, "{image}");
        assert_eq!(driver.derivations(Some(&scope(pool))).await.unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn two_of_one_image_know_nothing_of_each_other() {
    let machine = machine();
    let driver = driver(&machine);
    let before = machine.snapshot();
    let (one, two) = (plan(&driver, "p/a", OWNER).await.unwrap(), plan(&driver, "p/a", OTHER).await.unwrap());
    driver.derive(&one, soon()).await.unwrap();
    driver.derive(&two, soon()).await.unwrap();
    let mut listed = driver.derivations(Some(&scope("p"))).await.unwrap();
    listed.sort_by(|a, b| a.owner.cmp(&b.owner));
    assert_eq!(listed, [one.clone(), two.clone()]);
    driver.discard(&one, soon()).await.unwrap();
    assert_eq!(driver.derivations(Some(&scope("p"))).await.unwrap(), slice::from_ref(&two));
    driver.discard(&two, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_an_image_is_refused_with_the_reason() {
    let machine = machine();
    let mirrored = machine.add_image("ceph", "p", "", "mirrored", GIB);
    machine.change_image("ceph", &mirrored, |image| image.mirroring = Some(Mirroring { primary: false }));
    let flat = machine.add_image("ceph", "p", "", "flat", GIB);
    machine.change_image("ceph", &flat, |image| image.features.clear());
    let trashed = machine.add_image("ceph", "p", "", "trashed", GIB);
    machine.trash_image("ceph", &trashed);
    machine.add_image("ceph", "p", "", &format!("rescue-{OTHER}"), GIB);
    let driver = driver(&machine);
    driver.derive(&plan(&driver, "p/a", OWNER).await.unwrap(), soon()).await.unwrap();
    let before = machine.snapshot();
    for (image, owner, reason, part) in [
        ("p/none", OTHER, "NOT_FOUND", "p/none"),
        ("q/none", OTHER, "NOT_FOUND", "q"),
        ("p/a@none", OTHER, "NOT_FOUND", "p/a@none"),
        ("p/mirrored", OTHER, "WRONG_STATE", "not the primary"),
        ("p/flat", OTHER, "WRONG_STATE", "layering"),
        ("p/trashed", OTHER, "WRONG_STATE", "in the trash"),
        ("p/a", OWNER, "WRONG_STATE", "is there already: it is the rescue disk of the instance"),
        ("p/a", OTHER, "WRONG_STATE", "does not bear the mark"),
        (&format!("p/{NAME}"), OTHER, "WRONG_STATE", "cannot be an image: it is the rescue disk"),
        ("p/a", "-x", "INVALID", "no UUID"),
    ] {
        let error = plan(&driver, image, owner).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{image}: {error}");
        assert!(error.to_string().contains(part), "{image}: {error}");
    }
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_ours_is_discarded_and_only_when_nobody_has_it() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "p/a", OWNER).await.unwrap();
    let theirs = machine.add_image("ceph", "p", "", NAME, GIB);
    let before = machine.snapshot();
    for result in [driver.discard(&plan, soon()).await, driver.derive(&plan, soon()).await.map(drop)] {
        assert_eq!(result.unwrap_err().reason(), "WRONG_STATE");
    }
    assert_eq!(machine.snapshot(), before);
    machine.rename_image("ceph", "p", NAME, "theirs");
    // A snapshot by that name that nobody was told of is somebody else's, too.
    let image = machine.image_id("ceph", "p", "a");
    machine.add_image_snapshot("ceph", &image, NAME);
    let before = machine.snapshot();
    assert_eq!(driver.derive(&plan, soon()).await.unwrap_err().reason(), "WRONG_STATE");
    driver.discard(&plan, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
    machine.change_image("ceph", &image, |image| image.snapshots.clear());

    driver.derive(&plan, soon()).await.unwrap();
    let clone = machine.image_id("ceph", "p", NAME);
    let watcher = Watcher { address: "10.0.0.8:0/1".into(), client: "client.7".into() };
    machine.change_image("ceph", &clone, |image| image.watchers.push(watcher));
    let before = machine.snapshot();
    assert_eq!(driver.discard(&plan, soon()).await.unwrap_err().reason(), "IN_USE");
    assert_eq!(machine.snapshot(), before);
    machine.change_image("ceph", &clone, |image| image.watchers.clear());
    driver.discard(&plan, soon()).await.unwrap();
    // A clone of what was a rescue disk, and of its image, is told by neither's metadata.
    machine.change_image("ceph", &theirs, |image| {
        image.metadata.insert("mortar.rescue".into(), OWNER.into());
        image.metadata.insert("mortar.rescue.image".into(), "1".into());
        image.metadata.insert(format!("mortar.rescue.of.{OWNER}"), format!("1@{NAME}"));
    });
    assert_eq!(driver.derivations(Some(&scope("p"))).await.unwrap(), []);
    assert_eq!(driver.inspect(&locator("p/theirs")).await.unwrap().refusal, None);
}

#[tokio::test(start_paused = true)]
async fn the_image_is_held_against_the_plan() {
    let machine = machine();
    let driver = driver(&machine);
    let plan = plan(&driver, "p/a", OWNER).await.unwrap();
    machine.rename_image("ceph", "p", "a", "renamed");
    machine.add_image("ceph", "p", "", "a", 2 * GIB);
    assert_eq!(driver.derive(&plan, soon()).await.unwrap().size_bytes, GIB, "by its id");
    driver.discard(&plan, soon()).await.unwrap();
    let image = machine.image_id("ceph", "p", "renamed");
    machine.trash_image("ceph", &image);
    let before = machine.snapshot();
    assert_eq!(driver.derive(&plan, soon()).await.unwrap_err().reason(), "NOT_FOUND");
    driver.discard(&plan, soon()).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test(start_paused = true)]
async fn a_crash_anywhere_is_gone_on_from_or_discarded() {
    for image in ["p/a", "p/a@s"] {
        for forward in [true, false] {
            for effects in 1..=9 {
                let mut machine = machine();
                let id = machine.image_id("ceph", "p", "a");
                machine.add_image_snapshot("ceph", &id, "s");
                let plan = plan(&driver(&machine), image, OWNER).await.unwrap();
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
                // Whatever is there is known to be ours.
                let listed = driver.derivations(Some(&scope("p"))).await.unwrap();
                assert_eq!(listed.is_empty(), machine.snapshot() == before, "{image} after {effects}: {listed:?}");
                assert!(listed.iter().all(|listed| listed.owner == OWNER && listed.to == plan.to));
                if forward {
                    driver.derive(&plan, soon()).await.unwrap();
                    assert_eq!(driver.derivations(Some(&scope("p"))).await.unwrap(), slice::from_ref(&plan));
                    driver.discard(&plan, soon()).await.unwrap();
                }
                // The doctor has no plan but what it lists.
                for listed in listed.iter().chain([&plan]) {
                    driver.discard(listed, soon()).await.unwrap();
                }
                assert_eq!(machine.snapshot(), before, "{image} after {effects}");
            }
        }
    }
}
