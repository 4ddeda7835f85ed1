//! Several portals to one volume: multipathd, four paths, dead ones, impostors among them, growth, and the way back.

use crate::{
    cli::{Execs, attach, detach, figure, mortar, names, read, sessions, start, text, until, wrong_device},
    machine::{GuestStage, Multipathd, sh},
};
use driver::Backend;
use proto::v1;
use serde_json::Value;
use std::time::{Duration, Instant};
use tests::{client, stage::Stage};

const MIB: u64 = 1 << 20;
const PORTALS: [&str; 4] = ["127.0.0.1:3260", "127.0.0.2:3260", "127.0.0.3:3260", "127.0.0.4:3260"];

/// A target with four portals, a volume of 64 MiB at LUN 0, and its locator.
async fn four_portals() -> (GuestStage, String) {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 64 * MIB).await;
    let iqn = stage.iqn();
    sh(&format!("lio_portal {iqn} {}", PORTALS[1..].join(" ")));
    let locator = format!("iscsi://{}/{iqn}/0", PORTALS.join(","));
    (stage, locator)
}

/// Attaches by every way.
async fn attach_all(stage: &GuestStage, id: &str, locator: &str) -> v1::Attachment {
    try_attach_all(stage, id, locator).await.unwrap().attachment.unwrap()
}

async fn try_attach_all(stage: &GuestStage, id: &str, locator: &str) -> client::Answer<v1::AttachResponse> {
    let request = v1::AttachRequest { all_paths: true, ..client::attach(id, locator) };
    stage.client().attach(request).await
}

fn states(shown: &Value) -> Vec<&str> {
    shown["paths"].as_array().unwrap().iter().map(|path| text(path, "state")).collect()
}

/// How many ways of an attachment are up.
fn running(id: &str) -> usize {
    states(&mortar(&["show", id]).ok()).into_iter().filter(|state| *state == "running").count()
}

fn write_and_read_back(device: &str) {
    sh(&format!(
        "head -c 65536 /dev/urandom >/root/written; dd if=/root/written of={device} bs=64k oflag=direct status=none; \
         dd if={device} bs=64k count=1 iflag=direct status=none | cmp - /root/written; rm /root/written"
    ));
}

/// A process for each login and each logout, and nothing else; no trace afterwards, in multipathd neither.
#[tokio::test]
async fn four_paths_and_back() {
    let _multipathd = Multipathd::up();
    let (stage, locator) = four_portals().await;
    let before = stage.snapshot().await;
    let execs = Execs::watch();
    let there = attach_all(&stage, "four", &locator).await;
    assert_eq!(there.paths.len(), 4, "{there:?}");
    assert!(there.path.starts_with("/dev/dm-"), "{there:?}");
    assert_eq!(there.size_bytes, 64 * MIB);
    let uuid = read(format!("/sys/block/{}/dm/uuid", &there.path[5..]));
    assert_eq!(uuid, format!("mpath-{}", stage.wwn(0)));
    let shown = mortar(&["show", "four"]).ok();
    assert_eq!((text(&shown, "state"), states(&shown)), ("ready", vec!["running"; 4]));
    write_and_read_back(&there.path);
    let ran = execs.seen();
    // Whoever flushes is started once in the service's life.
    let apart = |ran: &str| ran.matches("\"--version\"").count() + ran.matches("[\"mortar-flush\"]").count();
    let started = |ran: &str| ran.matches("execve(").count() - apart(ran);
    assert_eq!(started(&ran), 4, "{ran}");
    assert_eq!(ran.matches("\"--login\"").count(), 4, "{ran}");
    detach("four");
    let ran = execs.seen();
    assert_eq!((started(&ran), ran.matches("\"--logout\"").count()), (8, 4), "{ran}");
    drop(execs);
    assert_eq!(Multipathd::paths(), "");
    assert_eq!(stage.snapshot().await, before, "something was left behind");

    let one = mortar(&["attach", &format!("iscsi://{}/{}/0", PORTALS[0], stage.iqn()), "--id", "one"]);
    figure("attach of one path, ms", one.took.as_millis());
    one.ok();
    detach("one");
    for _ in 0..2 {
        let first = mortar(&["attach", &locator, "--id", "four"]);
        figure("attach of the first of four paths, ms", first.took.as_millis());
        first.ok();
        until("all four", Duration::from_secs(60), || (running("four") == 4).then_some(()));
        let gone = Instant::now();
        detach("four");
        figure("detach of four paths, ms", gone.elapsed().as_millis());
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A portal that drops every packet delays nobody, and joins when it is back.
#[tokio::test]
async fn a_dead_portal_delays_nothing() {
    let _multipathd = Multipathd::up();
    let (stage, locator) = four_portals().await;
    let before = stage.snapshot().await;
    let healthy = mortar(&["attach", &locator, "--id", "a"]);
    let with_all = healthy.took;
    healthy.ok();
    detach("a");
    sh("net_cut 127.0.0.2");
    let hurt = mortar(&["attach", &locator, "--id", "a"]);
    let with_one_dead = hurt.took;
    figure("attach, all portals well, ms", with_all.as_millis());
    figure("attach, one portal dead, ms", with_one_dead.as_millis());
    let device = text(&hurt.ok(), "path").to_owned();
    assert!(with_one_dead < with_all * 2 + Duration::from_secs(1), "{with_all:?} {with_one_dead:?}");
    until("three paths", Duration::from_secs(60), || (running("a") == 3).then_some(()));
    assert_eq!(states(&mortar(&["show", "a"]).ok())[1], "absent");
    write_and_read_back(&device);
    sh("net_heal 127.0.0.2");
    until("the fourth path", Duration::from_secs(90), || (running("a") == 4).then_some(()));
    detach("a");
    assert_eq!(stage.snapshot().await, before, "something was left behind");

    // With all that was asked for, or with only dead ones, the deadline ends it; the dead one is named.
    sh("net_cut 127.0.0.2; net_cut 127.0.0.3");
    let dead = format!("iscsi://127.0.0.2,127.0.0.3/{}/0", stage.iqn());
    let late = mortar(&["attach", &dead, "--timeout", "4s"]);
    figure("attach with dead portals only, 4 s, ms", late.took.as_millis());
    assert!(late.took < Duration::from_secs(8), "{:?}", late.took);
    let message = late.refused(5, "UNREACHABLE");
    assert!(message.contains("127.0.0.2") && message.contains("127.0.0.3"), "{message}");
    let request = v1::AttachRequest { all_paths: true, timeout_ms: 5000, ..client::attach("all", &locator) };
    let refused = stage.client().attach(request).await.unwrap_err();
    // The paths that were there are taken back; that may take longer than the caller waits.
    assert!(["UNREACHABLE", "TIMED_OUT"].contains(&refused.reason.as_str()), "{refused:?}");
    until("the attach to end", Duration::from_secs(60), || {
        let running = mortar(&["operations", "--running"]).ok();
        running.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let ended = mortar(&["operations", "--limit", "1"]).ok().to_string();
    assert!(ended.contains("127.0.0.2") || ended.contains("127.0.0.3"), "{ended}");
    sh("net_heal 127.0.0.2; net_heal 127.0.0.3");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Nor does one that is the first of them. One that answers, and is mute from then on, may go ahead of the others, and costs
/// the second that is given to whoever does.
#[tokio::test]
async fn a_dead_or_mute_portal_in_the_first_place() {
    let _multipathd = Multipathd::up();
    let (stage, locator) = four_portals().await;
    let before = stage.snapshot().await;
    let ready = |what: &str, locator: &str| {
        let came = mortar(&["attach", locator, "--id", "first"]);
        let took = came.took;
        figure(&format!("attach, {what}, ms"), took.as_millis());
        assert!(text(&came.ok(), "path").starts_with("/dev/dm-"));
        write_and_read_back("/dev/mortar/first");
        let gone = mortar(&["detach", "first"]);
        figure(&format!("detach, {what}, ms"), gone.took.as_millis());
        gone.ok();
        took
    };
    let well = ready("all portals well", &locator);
    sh("net_cut 127.0.0.2");
    let others = format!("{},{},{}/{}/0", PORTALS[0], PORTALS[2], PORTALS[3], stage.iqn());
    let dead = ready("the first dead", &format!("iscsi://{},{others}", PORTALS[1]));
    sh("net_heal 127.0.0.2");
    assert!(dead < well * 2 + Duration::from_secs(1), "{well:?} {dead:?}");
    let _never_accepts = std::net::TcpListener::bind("127.0.0.9:3260").unwrap();
    let mute = ready("the first mute", &format!("iscsi://127.0.0.9,{others}"));
    assert!(mute < well * 2 + Duration::from_secs(2), "{well:?} {mute:?}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// multipathd remembers what once was a map, and takes its disk though the next attach is by one portal: so the map is what
/// is handed out, and it goes with the attachment.
#[tokio::test]
async fn one_portal_to_what_was_a_map() {
    let _multipathd = Multipathd::up();
    let (mut stage, _) = four_portals().await;
    let iqn = stage.iqn();
    let before = stage.snapshot().await;
    attach_all(&stage, "two", &format!("iscsi://{}/{iqn}/0", PORTALS[..2].join(","))).await;
    detach("two");
    assert_eq!(read("/etc/multipath/wwids").matches(&stage.wwn(0)).count(), 1);
    let one = format!("iscsi://{}/{iqn}/0", PORTALS[0]);
    let came = mortar(&["attach", &one, "--id", "one"]);
    figure("attach of one path that multipathd takes, ms", came.took.as_millis());
    let there = came.ok();
    let device = text(&there, "path").to_owned();
    assert!(device.starts_with("/dev/dm-") && text(&there, "multipath_id") == stage.wwn(0), "{there}");
    sh(&format!("mkfs.ext4 -q {device}; mkdir -p /mnt/one; mount {device} /mnt/one; echo kept >/mnt/one/file"));
    let message = mortar(&["detach", "one"]).refused(4, "IN_USE");
    assert!(message.contains("/mnt/one"), "{message}");
    stage.kill_and_restart().await;
    let shown = mortar(&["show", "one"]).ok();
    assert_eq!((text(&shown, "state"), text(&shown, "path"), states(&shown)), ("ready", &*device, vec!["running"]));
    assert_eq!(attach("one", &one)["path"], device);
    sh("grep -q kept /mnt/one/file; umount /mnt/one");
    detach("one");
    assert_eq!(Multipathd::paths(), "");
    assert_eq!(stage.snapshot().await, before, "something was left behind");

    // A disk that multipathd is told to leave alone stays one.
    sh(&format!(
        "printf 'blacklist {{\\n wwid {}\\n}}\\n' >/etc/multipath/conf.d/leave.conf; multipathd reconfigure >/dev/null",
        stage.wwn(0)
    ));
    let there = attach("one", &one);
    assert!(text(&there, "path").starts_with("/dev/sd"), "{there}");
    write_and_read_back(text(&there, "path"));
    detach("one");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// With `find_multipaths greedy` multipathd takes every disk.
#[tokio::test]
async fn one_portal_where_every_disk_is_taken() {
    let _multipathd = Multipathd::up();
    sh("multipathd_up greedy");
    let mut stage = GuestStage::with_target();
    let locator = stage.volume(Backend::Iscsi, "", 64 * MIB).await;
    let before = stage.snapshot().await;
    let there = attach("greedy", &locator);
    let device = text(&there, "path");
    assert!(device.starts_with("/dev/dm-"), "{there}");
    sh(&format!("mkfs.ext4 -q {device}; mkdir -p /mnt/greedy; mount {device} /mnt/greedy; umount /mnt/greedy"));
    detach("greedy");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// The ways may be of two targets, by two LUNs and two families of addresses.
#[tokio::test]
async fn ways_that_have_nothing_but_the_volume_in_common() {
    let _multipathd = Multipathd::up();
    let (stage, _) = four_portals().await;
    let (iqn, other) = (stage.iqn(), stage.iqn().replace(":t", ":v"));
    sh(&format!("lio_target {other} 7={}; lio_portal {other} '[::1]:3260'", stage.store(0)));
    let before = stage.snapshot().await;
    let there = attach_all(&stage, "mixed", &format!("iscsi://{}/{iqn}/0,[::1]/{other}/7", PORTALS[0])).await;
    let portals: Vec<&str> = there.paths.iter().map(|path| path.portal.as_str()).collect();
    assert_eq!((portals, running("mixed")), (vec![PORTALS[0], "[::1]:3260"], 2), "{there:?}");
    write_and_read_back(&there.path);
    let slaves = names(&format!("/sys/block/{}/slaves", &there.path[5..]));
    assert_eq!(slaves.len(), 2, "{slaves:?}");
    detach("mixed");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("lio_remove_target {other}"));
}

/// What a request with several portals needs is said before anything is begun.
#[tokio::test]
async fn without_multipathd_it_is_refused() {
    let (stage, locator) = four_portals().await;
    let before = stage.snapshot().await;
    let message = mortar(&["attach", &locator]).refused(4, "WRONG_STATE");
    assert!(message.contains("systemctl start multipathd") && message.contains("one portal"), "{message}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What no portal offers is known at once; ways to another volume, or to another size, are refused with both named.
#[tokio::test]
async fn ways_that_do_not_agree() {
    let _multipathd = Multipathd::up();
    let (mut stage, _) = four_portals().await;
    stage.volume(Backend::Iscsi, "", 64 * MIB).await;
    let (iqn, number) = (stage.iqn(), stage.store(0).trim_start_matches('t').trim_end_matches("-0").to_owned());
    // The name of LUN 0, and another size.
    sh(&format!(
        "lio_fileio t{number}-2 {:016x}{:09x} 32M; lio_map {iqn} 2 t{number}-2",
        number.parse::<u64>().unwrap(),
        0
    ));
    let before = stage.snapshot().await;
    let nowhere = mortar(&["attach", &format!("iscsi://{}/{iqn}/99", PORTALS.join(","))]);
    figure("LUN 99 on four portals, ms", nowhere.took.as_millis());
    let message = nowhere.refused(3, "NOT_FOUND");
    assert!(PORTALS.iter().all(|portal| message.contains(portal)), "{message}");

    for (lun, named) in [(1, stage.wwn(1)), (2, (32 * MIB).to_string())] {
        let ways = format!("iscsi://{}/{iqn}/0,{}/{iqn}/{lun}", PORTALS[0], PORTALS[1]);
        let refused = try_attach_all(&stage, "no", &ways).await.unwrap_err();
        assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{refused:?}");
        assert!(refused.message.contains(&named), "{refused:?}");
        let attempt = ["its ways lead to volumes of other names", "its ways lead to volumes of other sizes"][lun - 1];
        wrong_device(attempt, "iSCSI, two paths", &refused.message);
        assert_eq!(stage.snapshot().await, before, "something was left behind");
    }
}

/// When the target maps another volume on one of the ways, `show` tells, and nothing is written to it.
#[tokio::test]
async fn a_lun_is_used_anew_on_one_way() {
    let _multipathd = Multipathd::up();
    let (mut stage, _) = four_portals().await;
    stage.volume(Backend::Iscsi, "", 64 * MIB).await;
    let (iqn, other) = (stage.iqn(), stage.iqn().replace(":t", ":u"));
    sh(&format!("lio_target {other} 7={}; lio_portal {other} 127.0.0.5:3260", stage.store(0)));
    let before = stage.snapshot().await;
    let ways = format!("iscsi://{}/{iqn}/0,127.0.0.5/{other}/7", PORTALS[0]);
    attach_all(&stage, "reused", &ways).await;
    sh(&format!("lio_unmap {other} 7; lio_map {other} 7 {}", stage.store(1)));
    let shown = mortar(&["show", "reused"]).ok();
    assert_ne!(text(&shown, "state"), "ready", "{shown}");
    assert!(shown.to_string().contains(&stage.wwn(1)), "{shown}");
    let refused = try_attach_all(&stage, "reused", &ways).await.unwrap_err();
    assert_eq!(refused.reason, "IDENTITY_MISMATCH", "{refused:?}");
    assert!(refused.message.contains(&stage.wwn(0)) && refused.message.contains(&stage.wwn(1)), "{refused:?}");
    wrong_device("another volume is mapped on one way of a map", "iSCSI, two paths", &refused.message);
    let untouched = sh(&format!("sha256sum /var/tmp/{}.img", stage.store(1)));
    detach("reused");
    assert_eq!(sh(&format!("sha256sum /var/tmp/{}.img", stage.store(1))), untouched);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("lio_remove_target {other}"));
}

/// All four learn the new size, and then the map; with one cut off, nothing is resized.
#[tokio::test]
async fn a_volume_grows_on_four_paths() {
    let _multipathd = Multipathd::up();
    let (stage, _) = four_portals().await;
    let iqn = stage.iqn();
    let store = stage.store(5);
    // LIO fixes the size of a file, but follows that of a device.
    sh(&format!(
        "loop=$(loop_file /var/tmp/grows 64M); lio_fileio {store} 00000000000000000000009{:02x} 64M $loop; lio_map {iqn} 5 {store}",
        std::process::id() % 256
    ));
    let before = stage.snapshot().await;
    let there = attach_all(&stage, "grows", &format!("iscsi://{}/{iqn}/5", PORTALS.join(","))).await;
    assert_eq!(there.size_bytes, 64 * MIB);
    sh(
        "truncate -s 96M /var/tmp/grows; losetup -c $(losetup --noheadings --output NAME --associated /var/tmp/grows); net_cut 127.0.0.3",
    );
    until("the third session to fail", Duration::from_secs(60), || {
        (states(&mortar(&["show", "grows"]).ok())[2] != "running").then_some(())
    });
    let message = mortar(&["extend", "grows"]).refused(5, "UNREACHABLE");
    assert!(message.contains("127.0.0.3") && message.contains("nothing was resized"), "{message}");
    assert_eq!(sh(&format!("blockdev --getsize64 {}", there.path)), (64 * MIB).to_string());
    sh("net_heal 127.0.0.3");
    until("the third session", Duration::from_secs(90), || (running("grows") == 4).then_some(()));
    let grown = mortar(&["extend", "grows"]);
    figure("extend over four paths, ms", grown.took.as_millis());
    assert_eq!(grown.ok()["size_bytes"], 96 * MIB);
    assert_eq!(sh(&format!("blockdev --getsize64 {}", there.path)), (96 * MIB).to_string());
    detach("grows");
    // The loop device behind the target has grown.
    assert_eq!(stage.snapshot().await.replace("196608", "131072"), before, "something was left behind");
    sh(&format!(
        "lio_unmap {iqn} 5; lio_remove_backstore {store}; \
         losetup --detach $(losetup --noheadings --output NAME --associated /var/tmp/grows); rm /var/tmp/grows"
    ));
}

/// Who uses the map, or a partition of it, is named; and while no path answers, a detach ends in time and loses nothing.
#[tokio::test]
async fn a_map_in_use_stays() {
    let _multipathd = Multipathd::up();
    let (stage, _) = four_portals().await;
    let locator = format!("iscsi://{}/{}/0", PORTALS[..2].join(","), stage.iqn());
    let before = stage.snapshot().await;
    let there = attach_all(&stage, "used", &locator).await;
    sh(&format!("mkfs.ext4 -q {0}; mkdir -p /mnt/used; mount {0} /mnt/used; echo kept >/mnt/used/file", there.path));
    let message = mortar(&["detach", "used"]).refused(4, "IN_USE");
    assert!(message.contains("/mnt/used"), "{message}");
    assert_eq!((running("used"), sh("cat /mnt/used/file")), (2, "kept".into()));
    sh("umount /mnt/used; net_cut 127.0.0.1; net_cut 127.0.0.2");
    until("both paths to fail", Duration::from_secs(60), || (running("used") == 0).then_some(()));
    let late = mortar(&["detach", "used", "--timeout", "3s"]);
    figure("detach with every path dead, 3 s, ms", late.took.as_millis());
    assert!(late.took < Duration::from_secs(6), "{:?}", late.took);
    late.refused(5, "TIMED_OUT");
    assert!(!sh("mortar --output json list").is_empty());
    sh("net_heal 127.0.0.1; net_heal 127.0.0.2");
    until("the paths", Duration::from_secs(90), || (running("used") == 2).then_some(()));
    sh(&format!("mount {0} /mnt/used; grep -q kept /mnt/used/file; umount /mnt/used", there.path));
    detach("used");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// An operator's session and map stay; ours come and go beside them.
#[tokio::test]
async fn an_operators_map_stays() {
    let _multipathd = Multipathd::up();
    let (stage, locator) = four_portals().await;
    let (iqn, wwn) = (stage.iqn(), stage.wwn(0));
    sh(&format!(
        "iscsiadm -m discovery -t sendtargets -p {0} >/dev/null; iscsiadm -m node -T {iqn} -p {0} --login >/dev/null; \
         udevadm settle; multipathd add map {wwn} | grep -q ok; udevadm settle",
        PORTALS[0]
    ));
    let operators = (sessions(), names("/sys/block"));
    assert!(operators.1.iter().any(|name| name.starts_with("dm-")), "{operators:?}");
    let there = attach_all(&stage, "beside", &locator).await;
    assert_eq!(there.paths.len(), 4);
    let gone = mortar(&["detach", "beside"]).ok();
    assert!(gone["residuals"] == Value::Array(Vec::new()) && gone.to_string().contains(&there.path), "{gone}");
    until("the operator's alone", Duration::from_secs(10), || {
        ((sessions(), names("/sys/block")) == operators).then_some(())
    });
    write_and_read_back(&there.path);
    sh(&format!(
        "udevadm settle; multipathd del map {wwn} | grep -q ok; iscsiadm -m node -T {iqn} --logout >/dev/null; \
         rm -r /etc/iscsi/nodes/{iqn} /etc/iscsi/send_targets"
    ));
}

/// Killed in the middle, the agent undoes; killed after it, it goes on with the ways that are missing.
#[tokio::test]
async fn killed_and_restarted() {
    let _multipathd = Multipathd::up();
    let (mut stage, locator) = four_portals().await;
    let before = stage.snapshot().await;
    for after in [100, 400, 900, 1800] {
        let attaching = start(&["attach", &locator, "--id", "killed"]);
        std::thread::sleep(Duration::from_millis(after));
        stage.kill_and_restart().await;
        let _cut_off = attaching.end();
        // Undone, or (when it came before the kill) there.
        attach("killed", &locator);
        detach("killed");
        assert_eq!(stage.snapshot().await, before, "something was left behind, killed after {after} ms");
    }
    sh("net_cut 127.0.0.4");
    attach("killed", &locator);
    until("three paths", Duration::from_secs(60), || (running("killed") == 3).then_some(()));
    stage.kill_and_restart().await;
    assert_eq!(running("killed"), 3);
    sh("net_heal 127.0.0.4");
    until("the fourth path", Duration::from_secs(90), || (running("killed") == 4).then_some(()));
    detach("killed");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
