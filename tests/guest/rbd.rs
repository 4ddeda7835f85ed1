//! RBD on a real cluster: which image a device is, whatever it is called; whose a mapping is; and a cluster that hangs.

use crate::{
    cli::{
        Execs, Reconfigured, attach, detach, figure, mortar, mortar_reading, names, read, start, text, until,
        wrong_device,
    },
    iscsi::{Spy, that_hold},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tests::stage::Stage;

const MIB: u64 = 1 << 20;

/// The kernel's numbers of what is mapped.
fn mapped() -> Vec<String> {
    names("/sys/bus/rbd/devices")
}

/// Writes a word at a device's beginning, past all caches.
fn write(device: &str, word: &str) {
    sh(&format!("printf %-4096s {word} | dd of={device} bs=4096 count=1 oflag=direct conv=fsync status=none"));
}

fn word_at(device: &str) -> String {
    sh(&format!("dd if={device} bs=4096 count=1 iflag=direct status=none | tr -d ' '"))
}

/// How many programs the agent starts while something is done.
fn processes(work: impl FnOnce()) -> usize {
    let trace = "/tmp/processes";
    sh(&format!(
        "rm -f {trace} {trace}.said; strace -f -qq -e trace=execve -o {trace} -p $(systemctl show --value -p MainPID mortard) \\
           </dev/null >/dev/null 2>{trace}.said & echo $! >{trace}.pid
         sleep 1; grep ^TracerPid:.[1-9] /proc/$(systemctl show --value -p MainPID mortard)/status >/dev/null"
    ));
    work();
    sh(&format!("kill $(cat {trace}.pid); while kill -0 $(cat {trace}.pid) 2>/dev/null; do :; done; cat {trace}"))
        .lines()
        .filter(|line| line.contains("execve("))
        .count()
}

/// One name in two pools, in a namespace, in another cluster, and as a snapshot: each is itself, and detaching one leaves the
/// others. No program is started.
#[tokio::test]
async fn one_name_in_many_places() {
    let stage = GuestStage::with_pool();
    let (pool, other) = (stage.pool(), format!("{}b", stage.pool()));
    sh(&format!(
        "ceph_up two 6889 3400; CEPH_CLUSTER=two ceph_pool {pool}; ceph_pool {other}
         rbd_image {pool}/img 8M; rbd_image {other}/img 8M; rbd namespace create {pool}/ns; rbd_image {pool}/ns/img 8M
         CEPH_CLUSTER=two rbd_image {pool}/img 8M"
    ));
    let before = stage.snapshot().await;
    let places = [
        ("one", format!("rbd:{pool}/img")),
        ("other", format!("rbd:{other}/img")),
        ("ns", format!("rbd:{pool}/ns/img")),
        ("two", format!("rbd:{pool}/img?cluster=two")),
    ];
    let mut there = BTreeMap::new();
    let started = processes(|| {
        for (id, locator) in &places {
            there.insert(*id, attach(id, locator));
        }
    });
    assert_eq!(started, 0, "to attach");
    for (id, answer) in &there {
        write(text(answer, "path"), id);
    }
    for (id, answer) in &there {
        assert_eq!(word_at(text(answer, "path")), *id);
    }
    sh(&format!("rbd snap create --no-progress {pool}/img@s1"));
    write(text(&there["one"], "path"), "later");
    let snapshot = attach("snapshot", &format!("rbd:{pool}/img@s1"));
    assert_eq!((&snapshot["read_only"], word_at(text(&snapshot, "path")).as_str()), (&true.into(), "one"));
    there.insert("snapshot", snapshot);

    let started = processes(|| {
        for gone in ["one", "two", "ns", "snapshot", "other"] {
            detach(gone);
            there.remove(gone);
            for (id, answer) in &there {
                assert_eq!(text(&mortar(&["show", id]).ok(), "path"), text(answer, "path"), "{id} without {gone}");
                // The snapshot was taken of the first.
                let word = if *id == "snapshot" { "one" } else { id };
                assert_eq!(word_at(text(answer, "path")), word, "{id} without {gone}");
            }
        }
    });
    assert_eq!(started, 0, "to detach");
    sh(&format!("rbd snap rm --no-progress {pool}/img@s1; ceph_forget_pool {other}"));
    assert_eq!(stage.snapshot().await.replace(&other, ""), before.replace(&other, ""), "something was left behind");
}

/// A name that leads to another image by now: the image of a pool that has taken the other's name, of another cluster, or a
/// new one. Whether or not the old one is still mapped, nobody is given the new one for it, and both are named.
#[tokio::test]
async fn another_image_by_the_same_name() {
    let stage = GuestStage::with_pool();
    let (pool, other) = (stage.pool(), format!("{}b", stage.pool()));
    sh(&format!(
        "ceph_up two 6889 3400; CEPH_CLUSTER=two ceph_pool {pool}; ceph_pool {other}
         rbd_image {pool}/img 8M; rbd_image {other}/img 8M; rbd namespace create {pool}/ns; rbd_image {pool}/ns/img 8M
         CEPH_CLUSTER=two rbd_image {pool}/img 8M"
    ));
    let locator = format!("rbd:{pool}/img");
    let rename = |from: &str, to: &str| {
        format!("ceph_ask '{{\"prefix\": \"osd pool rename\", \"srcpool\": \"{from}\", \"destpool\": \"{to}\"}}'\n")
    };
    let pools = |from: &str, to: &str| rename(from, "aside") + &rename(to, from) + &rename("aside", to);
    let files = |one: &str, two: &str| {
        format!(
            "mv /etc/ceph/{one} /etc/ceph/aside; mv /etc/ceph/{two} /etc/ceph/{one}; mv /etc/ceph/aside /etc/ceph/{two}\n"
        )
    };
    let clusters = files("ceph.conf", "two.conf") + &files("ceph.client.admin.keyring", "two.client.admin.keyring");
    let images =
        format!("rbd mv {pool}/img {pool}/aside; rbd mv {pool}/new {pool}/img; rbd mv {pool}/aside {pool}/new");
    sh(&format!("rbd_image {pool}/new 8M"));
    let before = stage.snapshot().await;
    let swaps = [
        ("the same image name in another pool", pools(&pool, &other)),
        ("the same image name in another cluster", clusters),
        ("another image by the same name", images),
    ];
    for (what, swap) in &swaps {
        let there = attach("a", &locator);
        let device = text(&there, "path").to_owned();
        sh(swap);
        let mapped_still = mortar(&["attach", &locator]).refused(4, "IDENTITY_MISMATCH");
        let mapping = device.trim_start_matches("/dev/rbd");
        sh(&format!("printf {mapping} >/sys/bus/rbd/remove_single_major"));
        let not_mapped = mortar(&["attach", &locator, "--id", "a"]).refused(4, "IDENTITY_MISMATCH");
        for said in [&mapped_still, &not_mapped] {
            let identities: Vec<&str> = said
                .split(|end: char| end.is_whitespace() || end == ',')
                .filter(|word| word.starts_with("rbd:") && word.matches('/').count() >= 2)
                .collect();
            assert!(said.contains(text(&there, "identity")) && identities.len() >= 2, "{said}");
        }
        assert_eq!(mapped(), Vec::<String>::new(), "{what}");
        sh(swap);
        assert_eq!(attach("a", &locator)["identity"], there["identity"], "{what}");
        detach("a");
        assert_eq!(stage.snapshot().await, before, "{what}: something was left behind");
        wrong_device(what, "RBD", &not_mapped);
    }
    // A namespace is a part of the name.
    attach("a", &locator);
    let elsewhere = format!("rbd:{pool}/ns/img");
    let said = mortar(&["attach", &elsewhere, "--id", "a"]).refused(4, "ALREADY_EXISTS");
    assert!(said.contains(&locator), "{said}");
    wrong_device("the same image name in another namespace, by the same id", "RBD", &said);
    detach("a");
    sh(&format!("ceph_forget_pool {other}; CEPH_CLUSTER=two ceph_forget_pool {pool}"));
}

/// Each refusal is known at once, says what to do, and leaves nothing. No key shows anywhere.
#[tokio::test]
async fn refusals() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "a", 8 * MIB).await;
    let pool = stage.pool();
    sh(&format!(
        "rbd_image {pool}/j 8M layering,exclusive-lock,journaling
         ceph_keyring client.wrong $(ceph_key) >/etc/ceph/ceph.client.wrong.keyring
         ceph_user weak 'allow r' 'allow r pool=nothing'"
    ));
    let before = stage.snapshot().await;
    let features = mortar(&["attach", &format!("rbd:{pool}/j")]).refused(1, "UNSUPPORTED");
    assert!(features.contains(&format!("rbd feature disable {pool}/j journaling")), "{features}");
    for (at, code, reason, words) in [
        (format!("rbd:{pool}/none"), 3, "NOT_FOUND", "image"),
        (format!("rbd:{pool}none/a"), 3, "NOT_FOUND", "pool"),
        (format!("{locator}@none"), 3, "NOT_FOUND", "snapshot"),
        (format!("rbd:{pool}/none/a"), 3, "NOT_FOUND", "namespace"),
        (format!("{locator}?user=wrong"), 6, "DENIED", "client.wrong"),
        (format!("{locator}?user=weak"), 6, "DENIED", "client.weak"),
        (format!("{locator}?user=nobody"), 2, "INVALID", "/etc/ceph/ceph.client.nobody.keyring"),
        (format!("{locator}?cluster=none"), 4, "WRONG_STATE", "/etc/ceph/none.conf"),
        (format!("{locator}?mon=127.0.0.1:7777"), 5, "UNREACHABLE", "127.0.0.1:7777: connection refused"),
    ] {
        let ran = mortar(&["attach", &at]);
        let message = ran.refused(code, reason);
        assert!(message.contains(words), "{at}: {message}");
        assert!(ran.took < Duration::from_secs(8), "{at} took {:?}", ran.took);
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let there = attach("a", &format!("{locator}?mon=127.0.0.1:3300,127.0.0.1:7777"));
    let asked = read(format!("/sys/bus/rbd/devices/{}/config_info", mapped()[0]));
    assert!(asked.contains("ms_mode=prefer-crc") && !asked.contains("7777"), "{asked}");
    let key = sh("sed -n 's/.*key = //p' /etc/ceph/ceph.client.admin.keyring");
    assert!(!asked.contains(&key), "the key is for all to see");
    let places = "journalctl -u mortard --no-pager; cat /proc/keys /var/lib/mortar/journal.sqlite* /proc/[0-9]*/cmdline
        cat /proc/$(systemctl show --value -p MainPID mortard)/environ";
    // A process may be gone between the look for it and the look at it.
    assert!(!sh(&format!("(set +e; {places}) | strings")).contains(&key), "the key is to be found");
    assert!(text(&there, "path").starts_with("/dev/rbd"));
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What an operator mapped is used as it is, and stays; a renamed image is still the same.
#[tokio::test]
async fn an_operators_mapping_and_a_renamed_image() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "a", 8 * MIB).await;
    let pool = stage.pool();
    let device = sh(&format!("rbd map {pool}/a; udevadm settle"));
    let before = stage.snapshot().await;
    let there = attach("theirs", &locator);
    assert_eq!(text(&there, "path"), device);
    mortar(&["attach", &locator, "--id", "other", "--read-only"]).refused(4, "WRONG_STATE");
    let gone = mortar(&["detach", "theirs"]).ok();
    assert!(gone["changed"] == true && gone["kept"].to_string().contains(&device), "{gone}");
    assert_eq!(stage.snapshot().await, before, "the operator's mapping is not as it was");
    sh(&format!("rbd unmap {device}"));

    let there = attach("mine", &locator);
    let theirs = sh(&format!("rbd map {pool}/a 2>/dev/null"));
    detach("mine");
    assert_eq!(mapped(), [theirs.trim_start_matches("/dev/rbd")], "ours went, and theirs stayed");
    sh(&format!("rbd unmap {theirs}"));
    assert_ne!(text(&there, "path"), theirs);

    let old = attach("old", &locator);
    sh(&format!("rbd rename {pool}/a {pool}/b; rbd_image {pool}/a 8M"));
    let by_its_new_name = format!("rbd:{pool}/b");
    mortar(&["attach", &by_its_new_name, "--id", "new"]).refused(4, "WRONG_STATE");
    assert_eq!(mapped().len(), 1, "a second mapping of one image was left");
    let impostor = mortar(&["attach", &locator, "--id", "old"]).ok();
    assert_eq!(impostor["path"], old["path"], "an id is for one volume");
    mortar(&["attach", &locator, "--id", "impostor"]).refused(4, "IDENTITY_MISMATCH");
    detach("old");
    assert_eq!(attach("new", &by_its_new_name)["identity"], old["identity"]);
    assert_ne!(attach("impostor", &locator)["identity"], old["identity"]);
    detach("new");
    detach("impostor");
    assert_eq!(mapped(), Vec::<String>::new());
}

/// Without its OSD a cluster hangs, and nothing but what is on it. When it is back, everything finishes.
#[tokio::test]
async fn a_cluster_that_hangs() {
    let mut stage = GuestStage::with_pool();
    let (used, idle, new) = (
        stage.volume(Backend::Rbd, "used", 8 * MIB).await,
        stage.volume(Backend::Rbd, "idle", 8 * MIB).await,
        stage.volume(Backend::Rbd, "new", 8 * MIB).await,
    );
    let file = stage.volume(Backend::File, "file", 8 * MIB).await;
    let pool = stage.pool();
    sh(&format!("ceph_up two 6889 3400; export CEPH_CLUSTER=two; ceph_pool {pool}; rbd_image {pool}/elsewhere 8M"));
    let elsewhere = format!("rbd:{pool}/elsewhere?cluster=two");
    let before = stage.snapshot().await;
    let device = text(&attach("used", &used), "path").to_owned();
    attach("idle", &idle);
    attach("file", &file);
    attach("elsewhere", &elsewhere);
    let (list, gone) = (mortar(&["list"]).took, mortar(&["detach", "elsewhere"]));
    let healthy = [list, gone.took];
    gone.ok();
    attach("elsewhere", &elsewhere);
    let at_once = |what: &str, healthy: Duration, hung: Duration| {
        figure(
            &format!("{what}, ms"),
            format!("{}, with a cluster that hangs {}", healthy.as_millis(), hung.as_millis()),
        );
        assert!(hung <= healthy * 2 + Duration::from_secs(1), "{what}: {healthy:?}, {hung:?}");
    };
    // Who writes hangs, too, as he closes the device.
    sh(&format!("udevadm settle; ceph_osd_stop; setsid bash -c 'printf dirty >{device}' </dev/null &>/dev/null &"));
    until("the write", Duration::from_secs(20), || {
        read(format!("/sys/block/{}/inflight", device.trim_start_matches("/dev/"))).ends_with(" 1").then_some(())
    });
    let hangs = start(&["--timeout", "6", "detach", "used"]);
    let maps = start(&["--timeout", "6", "attach", &new, "--id", "new"]);
    let listed = mortar(&["list"]);
    at_once("list", healthy[0], listed.took);
    assert_eq!(listed.ok().as_array().unwrap().len(), 4);
    let ran = mortar(&["detach", "elsewhere"]);
    at_once("detach of an image elsewhere", healthy[1], ran.took);
    ran.ok();
    let ran = mortar(&["detach", "file"]);
    assert!(ran.took < Duration::from_secs(6), "{:?}", ran.took);
    ran.ok();
    let hung = hangs.end();
    assert!([4, 5].contains(&hung.code), "what is not written yet was detached: {hung:?}");
    maps.end().refused(5, "TIMED_OUT");
    // What still waits is there to be seen, and nothing was lost of what was written.
    let operations = mortar(&["operations", "--running"]).ok();
    assert!(operations.to_string().contains("\"new\""), "{operations}");
    sh("ceph_osd_start");
    until("the end of all operations", Duration::from_secs(60), || {
        (mortar(&["operations", "--running"]).ok() == Value::Array(Vec::new())).then_some(())
    });
    // A detach that was refused leaves it attached; one that was under way has ended now, behind the caller's back.
    if hung.code == 4 {
        until("the write", Duration::from_secs(20), || {
            read(format!("/sys/block/{}/inflight", device.trim_start_matches("/dev/"))).ends_with(" 0").then_some(())
        });
        detach("used");
    }
    assert_eq!(names("/dev/mortar"), ["idle"]);
    assert_eq!(mapped().len(), 1, "what nobody waits for any more was mapped all the same");
    detach("idle");
    // From the cluster, and not from what the kernel had cached of a device that is gone.
    let device = text(&attach("used", &used), "path").to_owned();
    assert_eq!(sh(&format!("dd if={device} bs=4096 count=1 iflag=direct status=none | head -c 5")), "dirty");
    detach("used");
    attach("new", &new);
    detach("new");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("export CEPH_CLUSTER=two; ceph_forget_pool {pool}"));
}

/// The key of a user that no file on this host has comes with the call, and is to be found nowhere afterwards: in no argv,
/// environment, log, journal, file or answer; and that with everything logged that can be.
#[tokio::test]
async fn a_key_that_is_in_no_file() {
    const KEYRING: &str = "/etc/ceph/ceph.client.lone.keyring";
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "a", 8 * MIB).await;
    sh("ceph_user lone 'profile rbd' 'profile rbd'");
    let keyring = std::fs::read_to_string(KEYRING).unwrap();
    std::fs::remove_file(KEYRING).unwrap();
    let key = keyring.lines().find_map(|line| line.trim().strip_prefix("key = ")).unwrap();
    let before = stage.snapshot().await;
    let _tracing = Reconfigured::new("log = \"info\"", "log = \"trace,h2=trace\"");
    sh("journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet || true");
    let (execs, spy) = (Execs::watch(), Spy::start(key));

    mortar(&["attach", &format!("{locator}?user=lone")]).refused(2, "INVALID");
    let info = |keyring: &str| {
        let name = locator.strip_prefix("rbd:").unwrap();
        let data = json!({
            "name": name, "hosts": ["127.0.0.1"], "ports": ["6789"], "cluster_name": "ceph", "auth_enabled": true,
            "auth_username": "lone", "keyring": keyring, "access_mode": "rw",
        });
        json!({ "driver_volume_type": "rbd", "data": data }).to_string()
    };
    let with = |keyring: &str| mortar_reading(&["attach", "--connection-info", "-", "--id", "lone"], &info(keyring));
    let another = sh("ceph_key");
    with(&keyring.replace(key, &another)).refused(6, "DENIED");
    let there = with(&keyring);
    let mut said = there.out.clone() + &there.err + &mortar(&["show", "lone"]).out;
    write(text(&there.ok(), "path"), "lone");
    let asked = read(format!("/sys/bus/rbd/devices/{}/config_info", mapped()[0]));
    assert!(asked.contains("name=lone"), "{asked}");
    let files = that_hold(key, "/etc /run /tmp /var/lib/mortar");
    stage.kill_and_restart().await;
    let shown = mortar(&["show", "lone"]);
    said += &(shown.out.clone() + &asked + &read("/proc/keys") + &mortar(&["operations"]).out);
    assert_eq!(text(&shown.ok(), "state"), "ready");
    detach("lone");

    let (leaks, ran) = (spy.leaks(), execs.seen());
    drop(execs);
    assert_eq!(leaks, BTreeSet::new(), "the key was in");
    assert!(!ran.contains(key) && !said.contains(key), "{ran}{said}");
    let log = sh("journalctl --no-pager --output export");
    assert!(log.contains("attach lone (") && !log.contains("Suppressed"), "the log is not there");
    assert!(!log.contains(key), "the key is in the log");
    assert_eq!(files + &that_hold(key, "/etc /run /tmp /var/lib/mortar"), "", "in files");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh("rm /root/marker");
}

/// Who has an image mounted is named, and nothing of his is touched.
#[tokio::test]
async fn a_mounted_image_stays() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "a", 32 * MIB).await;
    let before = stage.snapshot().await;
    let device = text(&attach("mounted", &locator), "path").to_owned();
    sh(&format!("mkfs.ext4 -q {device}; mkdir -p /mnt/image; mount {device} /mnt/image; echo kept >/mnt/image/file"));
    let attached = stage.snapshot().await;
    let message = mortar(&["detach", "mounted"]).refused(4, "IN_USE");
    assert!(message.contains(&device) && message.contains("/mnt/image"), "{message}");
    assert_eq!((stage.snapshot().await, sh("cat /mnt/image/file")), (attached, "kept".into()));
    sh("umount /mnt/image");
    detach("mounted");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// While its lock is kept for an attachment an image cannot be let go, and stays as it is; and a clone is not its parent.
#[tokio::test]
async fn what_is_held_exclusively_and_what_was_cloned() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "a", 8 * MIB).await;
    let pool = stage.pool();
    sh(&format!("rbd_image {pool}/plain 8M layering"));
    let before = stage.snapshot().await;
    let refused = mortar(&["attach", &format!("rbd:{pool}/plain"), "--exclusive"]).refused(4, "WRONG_STATE");
    assert!(refused.contains(&format!("rbd feature enable {pool}/plain exclusive-lock")), "{refused}");
    let managed = mortar(&["manage", &locator]).ok();
    let (id, locator_now) = (text(&managed, "id"), text(&managed, "locator"));
    mortar(&["attach", locator_now, "--exclusive", "--id", "kept"]).ok();
    let refused = mortar(&["unmanage", id]).refused(4, "IN_USE");
    assert!(refused.contains("held exclusively by 127.0.0.1"), "{refused}");
    assert_eq!(mortar(&["operations", "--running"]).ok(), Value::Array(Vec::new()), "it is over");
    assert_eq!(sh(&format!("rbd ls {pool}")), format!("plain\nvolume-{id}"), "nothing was changed");
    detach("kept");

    sh(&format!(
        "rbd snap create --no-progress {pool}/volume-{id}@s; rbd snap protect {pool}/volume-{id}@s
         rbd clone {pool}/volume-{id}@s {pool}/clone"
    ));
    let clone = mortar(&["manage", &format!("rbd:{pool}/clone")]).ok();
    assert_ne!(text(&clone, "id"), id);
    assert_eq!(text(&mortar(&["unmanage", id]).ok(), "locator"), locator);
    mortar(&["unmanage", text(&clone, "id")]).ok();
    let left = sh(&format!("rbd ls {pool}; rbd image-meta ls {pool}/clone"));
    assert_eq!(left, "a\nclone\nplain\nThere are 0 metadata on this image.");
    sh(&format!(
        "rbd rm --no-progress {pool}/clone; rbd snap unprotect {pool}/a@s; rbd snap rm --no-progress {pool}/a@s"
    ));
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// The list of a pool says of each image whether and why not; and `manage` says the same.
#[tokio::test]
async fn what_is_not_to_be_managed() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "plain", 8 * MIB).await;
    let pool = stage.pool();
    let named = "volume-9394b827-4ad0-488e-8df8-26476b3a8670";
    sh(&format!(
        "for image in {named} watched trash copy; do rbd_image {pool}/$image 8M; done
         rbd snap create --no-progress {pool}/plain@snap; rbd trash mv {pool}/trash; rbd map {pool}/watched >/dev/null
         rbd mirror pool enable {pool} image
         rbd mirror image enable {pool}/copy snapshot; rbd mirror image demote {pool}/copy"
    ));
    let before = stage.snapshot().await;
    let snapshot = mortar(&["manage", &format!("{locator}@snap")]).ok();
    let managed = mortar(&["manage", &locator, "--name", "int32bit"]).ok();
    let mut listed = Value::Null;
    let started = processes(|| listed = mortar(&["manageable", &stage.scope(Backend::Rbd)]).ok());
    assert_eq!(started, 1, "for all images together");
    let entries: BTreeMap<&str, &Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (text(entry, "reference").rsplit_once('/').unwrap().1, entry))
        .collect();
    let client = read(format!("/sys/bus/rbd/devices/{}/client_addr", mapped()[0]));
    for (name, code, reason, words) in [
        (named, 4, "ALREADY_EXISTS", "named as the managed volume"),
        ("watched", 4, "IN_USE", client.as_str()),
        ("trash", 4, "WRONG_STATE", "rbd trash restore"),
        ("copy", 4, "WRONG_STATE", "not the primary"),
    ] {
        let why = text(entries[name], "reason_not_safe");
        assert!(why.contains(words), "{name}: {why}");
        let message = mortar(&["manage", &format!("rbd:{pool}/{name}")]).refused(code, reason);
        assert!(message.contains(words), "{name}: {message}");
    }
    let id = text(&managed, "id");
    let meta = sh(&format!("rbd image-meta ls {pool}/volume-{id}"));
    for written in ["mortar.id", "mortar.origin", "plain", "int32bit", "mortar.snapshot."] {
        assert!(meta.contains(written), "{written}: {meta}");
    }
    for (id, origin) in [(text(&snapshot, "id"), format!("rbd:{pool}/volume-{id}@snap")), (id, locator.clone())] {
        assert_eq!(text(&mortar(&["unmanage", id]).ok(), "locator"), origin);
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("rbd unmap {pool}/watched"));
    try_sh(&format!("rbd trash purge --no-progress {pool}; rbd snap rm --no-progress {pool}/plain@snap"));
}
