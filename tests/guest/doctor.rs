//! The doctor on a real kernel: what a lost journal leaves is found, told from somebody else's, and taken away; and a host that is
//! set up badly hears of it.

use crate::{
    cli::{attach, mortar, names, sessions, text, until},
    machine::{GuestStage, PORTAL, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{path::Path, time::Duration};
use tests::stage::Stage;

const SIZE: u64 = 16 << 20;
const STATE: &str = "/var/lib/mortar";
const ISCSID: &str = "/etc/iscsi/iscsid.conf";
const MULTIPATH: &str = "/etc/multipath.conf";

/// What `mortar doctor` prints, whatever its exit code; that is 0 if and only if it says that all is in order.
#[track_caller]
fn doctor(args: &[&str]) -> Value {
    let args: Vec<&str> = ["doctor", "--all"].iter().chain(args).copied().collect();
    let ran = mortar(&args);
    let answer: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(ran.code, if answer["in_order"] == true { 0 } else { 1 }, "{ran:?}");
    answer
}

/// The names of what is in a state.
fn in_state(answer: &Value, state: &str) -> Vec<String> {
    let objects = answer["objects"].as_array().unwrap().iter();
    objects.filter(|object| object["state"] == state).map(|object| text(object, "name").to_owned()).collect()
}

#[track_caller]
fn named<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let found = answer["objects"].as_array().unwrap().iter().find(|object| object["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {answer:#}"))
}

#[track_caller]
fn finding<'a>(answer: &'a Value, subject: &str) -> &'a Value {
    let found = answer["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == subject);
    found.unwrap_or_else(|| panic!("nothing of {subject} in {answer:#}"))
}

/// A session, a disk, a loop device, a target with its backstore and a link that nobody knows any more, each beside one of
/// somebody else's: only the former go, and one that is mounted stays until it is not.
#[tokio::test]
async fn what_a_lost_journal_leaves_is_taken_away_and_nothing_else() {
    let mut stage = GuestStage::with_target();
    let iscsi = stage.volume(Backend::Iscsi, "", SIZE).await;
    let file = stage.volume(Backend::File, "ours", SIZE).await;
    let lv = stage.volume(Backend::Lvm, "exported", SIZE).await;
    let foreign = format!("{}-theirs", stage.iqn());
    let theirs = format!("{}/theirs.img", stage.directory());
    sh(&format!(
        "lio_fileio theirs-{0} 00000000000000000000dead{0} {SIZE}; lio_target {foreign} 0=theirs-{0}; lio_portal {foreign} \
         {PORTAL}; iscsiadm -m discoverydb -t st -p {PORTAL} -I default --discover >/dev/null; iscsiadm -m node -T {foreign} \
         -p {PORTAL} -l >/dev/null; udevadm settle; truncate -s {SIZE} {theirs}; losetup -f {theirs}",
        std::process::id() % 100
    ));
    let before = stage.snapshot().await;
    let their_sessions = sessions();

    let disk = attach("disk", &iscsi);
    let bound = attach("bound", &file);
    let ours = doctor(&[]);
    for name in [text(&disk, "path"), text(&bound, "path"), "attachment disk", "/dev/mortar/bound"] {
        assert_eq!(named(&ours, name)["state"], "ours", "{ours:#}");
    }
    assert_eq!((in_state(&ours, "orphan"), in_state(&ours, "stale")), (vec![], vec![]));
    mortar(&[
        "export",
        &lv,
        "--initiator",
        "iqn.2026-11.org.example:other",
        "--id",
        "lost",
        "--portal",
        "127.0.0.1:3261",
    ])
    .ok();
    sh(&format!("systemctl stop mortard; rm {STATE}/journal.sqlite*; systemctl start mortard"));

    let found = doctor(&[]);
    let orphans = in_state(&found, "orphan");
    for name in [text(&disk, "path"), text(&bound, "path"), "iblock_3260", "iblock_3260/mortar-lost"] {
        assert!(orphans.iter().any(|orphan| orphan == name), "{name}: {found:#}");
    }
    assert!(orphans.iter().any(|orphan| orphan.ends_with(":export-lost")), "{found:#}");
    assert_eq!(orphans.iter().filter(|orphan| orphan.starts_with("session")).count(), 1, "{found:#}");
    let strangers = in_state(&found, "foreign");
    let their_session = their_sessions[0].split(' ').next().unwrap();
    assert!(strangers.iter().any(|name| name == their_session), "{found:#}");

    // One is in use.
    sh(&format!("mkfs.ext4 -q {0}; mkdir -p /mnt/doctor; mount {0} /mnt/doctor", text(&bound, "path")));
    let repaired = doctor(&["--repair"]);
    let used = named(&repaired, text(&bound, "path"));
    assert!(used["repair"] == "left" && text(used, "repair_detail").contains("/mnt/doctor"), "{used:#}");
    sh("umount /mnt/doctor");
    assert_eq!(sessions(), their_sessions, "{repaired:#}");
    let rest = doctor(&["--repair"]);
    assert_eq!(in_state(&rest, "orphan"), [text(&bound, "path")], "{rest:#}");
    assert_eq!(named(&rest, text(&bound, "path"))["repair"], "removed", "{rest:#}");
    let after = doctor(&[]);
    assert_eq!((in_state(&after, "orphan"), in_state(&after, "stale")), (vec![], vec![]), "{after:#}");
    let gone: Vec<_> = strangers.iter().filter(|name| !in_state(&after, "foreign").contains(name)).collect();
    assert_eq!(gone, Vec::<&String>::new(), "{after:#}");

    // An activation bears no mark: it is told as foreign, and stays.
    let vg = stage.vg();
    sh(&format!("lvchange -an {vg}/exported"));
    assert_eq!(stage.snapshot().await, before);
    assert!(!Path::new("/sys/kernel/config/target/core/iblock_3260").exists());
    sh(&format!(
        "losetup -j {theirs} | cut -d: -f1 | xargs losetup -d; iscsiadm -m node -T {foreign} -p {PORTAL} -u >/dev/null; \
         iscsiadm -m node -T {foreign} -o delete; iscsiadm -m node -o delete || true; iscsiadm -m discoverydb -t st -p \
         {PORTAL} -o delete || true; lio_remove_target {foreign}; lio_remove_backstore theirs-{}",
        std::process::id() % 100
    ));
}

/// The settings as they were, when this is dropped.
struct Settings(Vec<(&'static str, Option<String>)>);

impl Settings {
    fn keep(paths: &[&'static str]) -> Self {
        Self(paths.iter().map(|path| (*path, std::fs::read_to_string(path).ok())).collect())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (path, text) in &self.0 {
            let _ = match text {
                Some(text) => std::fs::write(path, text),
                None => std::fs::remove_file(path),
            };
        }
        try_sh("rm -rf /etc/iscsi/nodes/iqn.2026-11.org.example:boot");
    }
}

/// What the distribution has installed is no reason for an error; what an operator did to it is told, with the way out.
#[tokio::test]
async fn settings_that_hang_are_found() {
    let _stage = GuestStage::bare();
    let _as_before = Settings::keep(&[ISCSID, MULTIPATH]);
    // A disk of a busy guest may take its time to answer: then it says so, and to run this again.
    let fine = until("all disks to answer", Duration::from_secs(60), || {
        let told = doctor(&[]);
        let is_silent = |finding: &Value| text(finding, "found").contains("on the disks that answer");
        let is_any = told["findings"].as_array().unwrap().iter().any(is_silent);
        (!is_any).then_some(told)
    });
    let errors: Vec<&Value> =
        fine["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] == "error").collect();
    assert_eq!(errors, Vec::<&Value>::new(), "{fine:#}");
    // Debian's lvm looks at everything.
    assert!(text(finding(&fine, "lvm.conf: devices"), "found").contains("no devices file is used"));

    sh(&format!(
        "echo 'node.session.timeo.replacement_timeout = -1' >>{ISCSID}; printf 'defaults {{\\n  no_path_retry queue\\n}}\\n' \
         >{MULTIPATH}; mkdir -p /etc/iscsi/nodes/iqn.2026-11.org.example:boot/10.0.0.9,3260,1; echo 'node.startup = automatic' \
         >/etc/iscsi/nodes/iqn.2026-11.org.example:boot/10.0.0.9,3260,1/default"
    ));
    let bad = doctor(&[]);
    assert_eq!(finding(&bad, &format!("{ISCSID}: node.session.timeo.replacement_timeout"))["severity"], "error");
    assert_eq!(finding(&bad, &format!("{MULTIPATH}: no_path_retry"))["severity"], "warning");
    assert!(text(finding(&bad, "/etc/iscsi/nodes"), "found").contains("org.example:boot at 10.0.0.9,3260,1"));
    assert_eq!(bad["in_order"], false);
    assert!(!names("/etc/iscsi/nodes").is_empty(), "it was only looked at");
}
