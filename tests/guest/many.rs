//! Many callers at once, of many targets or of one; and a stop in the middle of it.

use crate::{
    cli::{Ran, Running, figure, mortar, names, sessions, start, text, until},
    machine::{GuestStage, PORTAL, sh, try_sh},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{File, create_dir_all, remove_dir, remove_file, write},
    os::unix::fs::symlink,
    time::{Duration, Instant},
};
use tests::stage::Stage;

const LIO: &str = "/sys/kernel/config/target";
/// For calls that stand in a queue.
const PATIENCE: &str = "300s";

/// Targets with one LUN each, every volume of another size. Made here and not by lib.sh: some hundred processes less.
struct Targets(usize);

impl Targets {
    fn new(count: usize) -> Self {
        let this = Self(count);
        for number in 0..count {
            let (store, target) = (Self::store(number), Self::target(number));
            let file = format!("/var/tmp/many-{number}.img");
            File::create(&file).unwrap().set_len(Self::size(number)).unwrap();
            create_dir_all(&store).unwrap();
            let control = format!("fd_dev_name={file},fd_dev_size={},fd_buffered_io=1", Self::size(number));
            write(format!("{store}/control"), control).unwrap();
            write(format!("{store}/enable"), "1").unwrap();
            write(format!("{store}/wwn/vpd_unit_serial"), format!("{:025x}", 0xabc000 + number)).unwrap();
            create_dir_all(&target).unwrap();
            for (attribute, value) in [
                ("authentication", "0"),
                ("generate_node_acls", "1"),
                ("cache_dynamic_acls", "1"),
                ("demo_mode_write_protect", "0"),
            ] {
                write(format!("{target}/attrib/{attribute}"), value).unwrap();
            }
            create_dir_all(format!("{target}/lun/lun_0")).unwrap();
            symlink(&store, format!("{target}/lun/lun_0/volume")).unwrap();
            create_dir_all(format!("{target}/np/{PORTAL}")).unwrap();
            write(format!("{target}/enable"), "1").unwrap();
        }
        this
    }

    fn store(number: usize) -> String {
        format!("{LIO}/core/fileio_0/many-{number}")
    }

    fn target(number: usize) -> String {
        format!("{LIO}/iscsi/{}/tpgt_1", Self::iqn(number))
    }

    fn iqn(number: usize) -> String {
        format!("iqn.2026-11.org.example:many-{number}")
    }

    fn locator(number: usize) -> String {
        format!("iscsi://{PORTAL}/{}/0", Self::iqn(number))
    }

    fn size(number: usize) -> u64 {
        (4 << 20) + 4096 * number as u64
    }

    fn wwn(number: usize) -> String {
        format!("36001405{:025x}", 0xabc000 + number)
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        if std::thread::panicking() {
            try_sh(
                "mortar --output json list | jq -r '.[].id' | while read -r id; do mortar detach \"$id\" || true; done",
            );
        }
        for number in 0..self.0 {
            let (store, target) = (Self::store(number), Self::target(number));
            let _ = write(format!("{target}/enable"), "0");
            let _ = remove_file(format!("{target}/lun/lun_0/volume"));
            for directory in [
                format!("{target}/np/{PORTAL}"),
                format!("{target}/lun/lun_0"),
                target.clone(),
                target.replace("/tpgt_1", ""),
                store,
            ] {
                let _ = remove_dir(directory);
            }
            let _ = remove_file(format!("/var/tmp/many-{number}.img"));
        }
    }
}

fn ends(running: Vec<Running>) -> Vec<Ran> {
    running.into_iter().map(Running::end).collect()
}

/// Fifty volumes of fifty targets come at once and go at once; everybody gets his own.
#[tokio::test]
async fn fifty_targets_at_once() {
    const COUNT: usize = 50;
    let (stage, _targets) = (GuestStage::bare(), Targets::new(COUNT));
    let before = stage.snapshot().await;
    let started = Instant::now();
    let calls = (0..COUNT)
        .map(|number| {
            start(&["--timeout", PATIENCE, "attach", &Targets::locator(number), "--id", &format!("many-{number}")])
        })
        .collect();
    let mut paths = BTreeSet::new();
    for (number, ran) in ends(calls).into_iter().enumerate() {
        let there = ran.ok();
        assert_eq!(text(&there, "id"), format!("many-{number}"));
        assert_eq!(text(&there, "scsi_wwn"), Targets::wwn(number));
        assert_eq!(there["size_bytes"], Targets::size(number));
        // Not only said to be: the kernel's device has this size, and nobody else's does.
        let device = text(&there, "path").to_owned();
        let sectors = std::fs::read_to_string(format!("/sys/block/{}/size", &device["/dev/".len()..])).unwrap();
        assert_eq!(sectors.trim().parse::<u64>().unwrap() * 512, Targets::size(number), "{device}");
        assert!(paths.insert(device), "handed out twice: {there}");
    }
    figure("50 attaches at once", format!("{:.1?}", started.elapsed()));
    assert_eq!(sessions().len(), COUNT);
    let listed = mortar(&["list"]).ok();
    assert_eq!(listed.as_array().unwrap().iter().filter(|there| there["state"] == "ready").count(), COUNT, "{listed}");
    let started = Instant::now();
    let calls = (0..COUNT).map(|number| start(&["--timeout", PATIENCE, "detach", &format!("many-{number}")])).collect();
    for ran in ends(calls) {
        let gone = ran.ok();
        assert!(gone["changed"] == true && gone["residuals"] == Value::Array(Vec::new()), "{gone}");
    }
    figure("50 detaches at once", format!("{:.1?}", started.elapsed()));
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Twenty callers want the same volume: there is one device, one session, one attachment, and one of them made it.
#[tokio::test]
async fn twenty_callers_of_one_lun() {
    const CALLERS: usize = 20;
    let (stage, _targets) = (GuestStage::bare(), Targets::new(1));
    let before = stage.snapshot().await;
    let locator = Targets::locator(0);
    let calls = (0..CALLERS).map(|_| start(&["--timeout", PATIENCE, "attach", &locator])).collect();
    let answers: Vec<Value> = ends(calls).into_iter().map(Ran::ok).collect();
    let of = |key: &str| answers.iter().map(|answer| text(answer, key)).collect::<BTreeSet<_>>();
    for key in ["id", "path", "scsi_wwn", "stable_path"] {
        assert_eq!(of(key).len(), 1, "{key}: {:?}", of(key));
    }
    assert_eq!(answers.iter().filter(|answer| answer["changed"] == true).count(), 1);
    assert_eq!((sessions().len(), mortar(&["list"]).ok().as_array().unwrap().len()), (1, 1));
    let disks = names("/sys/block").into_iter().filter(|name| name.starts_with("sd")).count();
    assert_eq!((disks, names("/dev/mortar").len()), (1, 1));
    let calls = (0..CALLERS).map(|_| start(&["--timeout", PATIENCE, "detach", &locator])).collect();
    let answers: Vec<Value> = ends(calls).into_iter().map(Ran::ok).collect();
    assert_eq!(answers.iter().filter(|answer| answer["changed"] == true).count(), 1);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Told to stop, the service lets its operations finish; their callers get their answers.
#[tokio::test]
async fn a_stop_waits_for_operations() {
    const COUNT: usize = 6;
    let (stage, _targets) = (GuestStage::bare(), Targets::new(COUNT));
    let before = stage.snapshot().await;
    let calls = (0..COUNT)
        .map(|number| {
            start(&["--timeout", PATIENCE, "attach", &Targets::locator(number), "--id", &format!("stop-{number}")])
        })
        .collect();
    let running = until("all operations to begin", Duration::from_secs(20), || {
        let operations = mortar(&["operations", "--limit", "6"]).ok();
        let ours: Vec<&Value> =
            operations.as_array()?.iter().filter(|operation| text(operation, "subject").starts_with("stop-")).collect();
        (ours.len() == COUNT).then(|| ours.iter().filter(|operation| operation["state"] == "running").count())
    });
    figure("operations that ran at SIGTERM", running);
    assert!(running > 0, "all had ended already");
    sh("systemctl stop mortard");
    for ran in ends(calls) {
        ran.ok();
    }
    let journal = sh("journalctl --unit mortard --no-pager --output cat --lines 3");
    assert!(journal.contains("mortard.service: Deactivated successfully"), "{journal}");
    mortar(&["list"]).refused(5, "UNREACHABLE");
    sh("systemctl start mortard");
    let listed = mortar(&["list"]).ok();
    assert_eq!(listed.as_array().unwrap().iter().filter(|there| there["state"] == "ready").count(), COUNT, "{listed}");
    for ran in ends((0..COUNT).map(|number| start(&["detach", &format!("stop-{number}")])).collect()) {
        ran.ok();
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
