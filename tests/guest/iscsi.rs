//! iSCSI against the kernel's own target: neighbours, strangers, impostors and closed doors.

use crate::{
    cli::{
        Execs, Reconfigured, attach, detach, figure, mortar, mortar_reading, names, read, sessions, start, text, until,
        wrong_device,
    },
    machine::{GuestStage, PORTAL, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tests::stage::Stage;

const MIB: u64 = 1 << 20;

/// A stage with so many volumes, at LUN 0, 1, …, and their locators.
async fn stage_with(luns: u64) -> (GuestStage, Vec<String>) {
    let mut stage = GuestStage::with_target();
    let mut locators = Vec::new();
    for lun in 0..luns {
        // Each has a size of its own.
        locators.push(stage.volume(Backend::Iscsi, "", (16 + lun) * MIB).await);
    }
    (stage, locators)
}

/// Makes a volume tell its name: the first block of its file says which LUN it was made for.
fn sign(stage: &GuestStage, lun: u32) {
    let mut file = std::fs::OpenOptions::new().write(true).open(format!("/var/tmp/{}.img", stage.store(lun))).unwrap();
    file.write_all(&[b'a' + u8::try_from(lun).unwrap(); 512]).unwrap();
}

/// The first block of a device, past the page cache.
fn first_block(device: &str) -> Vec<u8> {
    const O_DIRECT: i32 = 0o40000;
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(O_DIRECT).open(device).unwrap();
    // Direct I/O wants memory on a boundary of the block size.
    let mut room = vec![0; 8192];
    let start = room.as_ptr().align_offset(4096);
    file.read_exact(&mut room[start..start + 4096]).unwrap();
    room[start..start + 512].to_vec()
}

/// Writes through a device with direct I/O, and sees it arrive in the file behind the target.
fn prove_io(stage: &GuestStage, lun: u32, device: &str, byte: u8) {
    let octal = format!("\\{byte:03o}");
    sh(&format!(
        "head -c 65536 /dev/zero | tr '\\0' '{octal}' | dd of={device} bs=64k count=1 seek=3 oflag=direct iflag=fullblock status=none"
    ));
    let mut file = std::fs::File::open(format!("/var/tmp/{}.img", stage.store(lun))).unwrap();
    let mut block = vec![0; 65536];
    file.seek(SeekFrom::Start(3 * 65536)).unwrap();
    file.read_exact(&mut block).unwrap();
    assert!(block.iter().all(|found| *found == byte), "{device} is not the volume of LUN {lun}");
}

/// Two LUNs of one target share a session; detaching one leaves the other, and the session, at work.
#[tokio::test]
async fn detaching_one_lun_leaves_the_other() {
    let (stage, luns) = stage_with(2).await;
    let before = stage.snapshot().await;
    let first = attach("first", &luns[0]);
    let second = attach("second", &luns[1]);
    assert_eq!((text(&first, "scsi_wwn"), text(&second, "scsi_wwn")), (&*stage.wwn(0), &*stage.wwn(1)));
    assert_eq!((&first["size_bytes"], &second["size_bytes"]), (&(16 * MIB).into(), &(17 * MIB).into()));
    let session = sessions();
    assert_eq!(session.len(), 1, "{session:?}");
    let device = text(&second, "path");
    prove_io(&stage, 1, device, b'x');

    detach("first");
    assert_eq!(sessions(), session);
    prove_io(&stage, 1, device, b'y');
    let still = mortar(&["show", "second"]).ok();
    assert_eq!((text(&still, "state"), text(&still, "path")), ("ready", device));
    assert_eq!(still["paths"][0]["state"], "running");
    detach("second");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What a login and a logout cost must not grow with the sessions of others, each of which iscsiadm would read: it sees none
/// of them in the sysfs that it is shown, and the one that ends as it is.
#[tokio::test]
async fn iscsiadm_is_shown_no_session_but_its_own() {
    const SHOWN: &str = "/run/mortar/sysfs/class/iscsi_session";
    let (stage, luns) = stage_with(1).await;
    let before = stage.snapshot().await;
    attach("here", &luns[0]);
    let [session] = <[String; 1]>::try_from(names("/sys/class/iscsi_session")).unwrap();
    let logout = || {
        let number = session.trim_start_matches("session");
        sh(&format!("SYSFS_PATH=/run/mortar/sysfs iscsiadm -m session -r {number} --logout 2>&1 || echo exit code $?"))
    };
    let unseen = logout();
    assert!(unseen.contains("exit code 22") && sessions().len() == 1, "{unseen}");
    sh(&format!("cp -a /sys/class/iscsi_session/{session} {SHOWN}/"));
    let seen = logout();
    assert!(seen.contains("successful") && sessions().is_empty(), "{seen}");
    detach("here");
    assert_eq!(sh(&format!("ls {SHOWN}")), "");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// The WWN that the caller expects is held against the device's own; both are named, and nothing is left.
#[tokio::test]
async fn the_wwn_of_another_volume_is_refused() {
    let (stage, luns) = stage_with(2).await;
    let before = stage.snapshot().await;
    let (right, wrong) = (stage.wwn(0), stage.wwn(1));
    let message = mortar(&["attach", &luns[0], "--wwn", &wrong]).refused(4, "IDENTITY_MISMATCH");
    assert!(message.contains(&right) && message.contains(&wrong), "{message}");
    wrong_device("another WWN than the caller expects", "iSCSI", &message);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let there = mortar(&["attach", &luns[0], "--wwn", &format!("naa.{}", &right[1..])]).ok();
    assert_eq!(text(&there, "scsi_wwn"), right);
    // A second caller who expects another volume gets no device either, and takes none away.
    mortar(&["attach", &luns[0], "--wwn", &wrong]).refused(4, "IDENTITY_MISMATCH");
    assert_eq!(mortar(&["list"]).ok().as_array().unwrap().len(), 1);
    detach(&luns[0]);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What the target does not offer is known from the target, not by waiting.
#[tokio::test]
async fn absent_luns_and_targets_are_known_at_once() {
    let (stage, _luns) = stage_with(1).await;
    let before = stage.snapshot().await;
    // Processes start slowly in the guest when its host is busy, so the promise is for the quickest of a few.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let lun = mortar(&["attach", &stage.nowhere(Backend::Iscsi)]);
        figure("LUN 99", format!("{:.2} s", lun.took.as_secs_f64()));
        let message = lun.refused(3, "NOT_FOUND");
        assert!(message.contains("LUN 99"), "{message}");
        assert_eq!(sessions(), Vec::<String>::new());
        quickest = quickest.min(lun.took);
    }
    assert!(quickest < Duration::from_secs(2), "{quickest:?}");

    let nobody = format!("iscsi://{PORTAL}/iqn.2026-11.org.example:nobody/0");
    let target = mortar(&["attach", &nobody]);
    figure("unknown IQN", format!("{:.2} s, exit code {}", target.took.as_secs_f64(), target.code));
    // LIO answers as if it were busy, so it may be worth another try; the message says what to look at.
    let message = target.refused(5, "UNREACHABLE");
    assert!(message.contains("iqn.2026-11.org.example:nobody") && message.contains("check the IQN"), "{message}");
    assert!(target.took < Duration::from_secs(12), "{:?}", target.took);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A portal where nobody listens is known at once; one that never answers, at the caller's deadline.
#[tokio::test]
async fn unreachable_portals() {
    let (stage, _luns) = stage_with(1).await;
    let (iqn, before) = (stage.iqn(), stage.snapshot().await);
    let refused = mortar(&["attach", &format!("iscsi://127.0.0.1:3999/{iqn}/0")]);
    figure("refused portal", format!("{:.2} s", refused.took.as_secs_f64()));
    let message = refused.refused(5, "UNREACHABLE");
    assert!(message.contains("127.0.0.1:3999"), "{message}");
    assert!(refused.took < Duration::from_secs(2), "{:?}", refused.took);

    sh(&format!("lio_portal {iqn} 127.0.0.2:3260; net_cut 127.0.0.2"));
    let silent = mortar(&["--timeout", "3s", "attach", &format!("iscsi://127.0.0.2:3260/{iqn}/0")]);
    sh(&format!("net_heal 127.0.0.2; lio_remove_portal {iqn} 127.0.0.2:3260"));
    figure("portal that drops packets, --timeout 3s", format!("{:.2} s", silent.took.as_secs_f64()));
    let message = silent.refused(5, "UNREACHABLE");
    assert!(message.contains("127.0.0.2:3260"), "{message}");
    assert!((2900..6000).contains(&silent.took.as_millis()), "{:?}", silent.took);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A login that succeeds and brings no session: what tells of it names the target and the portal, and nothing is left.
#[tokio::test]
async fn a_login_that_brings_no_session() {
    let (stage, luns) = stage_with(1).await;
    // The agent asks iscsiadm for its version once.
    attach("well", &luns[0]);
    detach("well");
    let before = stage.snapshot().await;
    sh("printf '#!/bin/sh\\nexit 0\\n' >/root/iscsiadm; chmod 755 /root/iscsiadm");
    sh("mount --bind /root/iscsiadm /usr/sbin/iscsiadm");
    let hidden = mortar(&["--timeout", "5s", "attach", &luns[0], "--id", "hidden"]);
    sh("umount /usr/sbin/iscsiadm; rm /root/iscsiadm");
    assert!((4500..9000).contains(&hidden.took.as_millis()), "{:?}", hidden.took);
    let message = hidden.refused(5, "UNREACHABLE");
    assert!(message.contains(&stage.iqn()) && message.contains(PORTAL), "{message}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    attach("hidden", &luns[0]);
    detach("hidden");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// However an IPv6 portal is written, it is one portal.
#[tokio::test]
async fn an_ipv6_portal_in_any_form() {
    let (stage, _luns) = stage_with(1).await;
    let iqn = stage.iqn();
    sh(&format!("ip address replace fd00::ab/128 dev lo nodad; lio_portal {iqn} '[fd00::ab]:3260'"));
    let before = stage.snapshot().await;
    let there = attach("six", &format!("iscsi://[FD00:0:0::0:AB]/{iqn}/0"));
    assert_eq!(there["paths"][0]["portal"], "[fd00::ab]:3260");
    assert!(text(&there, "locator").starts_with("iscsi://[fd00::ab]:3260/"), "{there}");
    let again = attach("six", &format!("iscsi://[fd00::ab]:3260/{iqn}/0"));
    assert_eq!((&again["changed"], &again["path"]), (&false.into(), &there["path"]));
    assert_eq!(sessions().len(), 1);
    detach(&format!("iscsi://[fd00::00ab]/{iqn}/0"));
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh(&format!("lio_remove_portal {iqn} '[fd00::ab]:3260'; ip address del fd00::ab/128 dev lo"));
}

/// The target maps another volume to the LUN of an attachment: it is said, and the impostor is handed out to nobody.
#[tokio::test]
async fn a_lun_that_becomes_another_volume() {
    let (stage, luns) = stage_with(2).await;
    sign(&stage, 0);
    sign(&stage, 1);
    let (iqn, before) = (stage.iqn(), stage.snapshot().await);
    let there = attach("here", &luns[0]);
    assert_eq!(first_block(text(&there, "path"))[0], b'a');
    sh(&format!("lio_unmap {iqn} 0; lio_unmap {iqn} 1; lio_map {iqn} 0 {}", stage.store(1)));

    let broken = mortar(&["show", "here"]).ok();
    assert_eq!(text(&broken, "state"), "broken");
    let problem = text(&broken, "problem");
    assert!(problem.contains(&stage.wwn(0)) && problem.contains(&stage.wwn(1)), "{problem}");
    for id in ["here", "there"] {
        let message = mortar(&["attach", &luns[0], "--id", id]).refused(4, "IDENTITY_MISMATCH");
        assert!(message.contains(&stage.wwn(0)) && message.contains(&stage.wwn(1)), "{message}");
        wrong_device(
            &format!("another volume is mapped to the LUN of an attachment, attach as {id}"),
            "iSCSI",
            &message,
        );
    }
    mortar(&["attach", &luns[0]]).refused(4, "IDENTITY_MISMATCH");
    mortar(&["attach", &luns[0], "--id", "there", "--wwn", &stage.wwn(1)]).refused(4, "IDENTITY_MISMATCH");

    detach("here");
    let new = attach("here", &luns[0]);
    assert_eq!((text(&new, "scsi_wwn"), &new["size_bytes"]), (&*stage.wwn(1), &(17 * MIB).into()));
    assert_eq!(first_block(text(&new, "path"))[0], b'b');
    detach("here");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// An operator's own session with a stale device where ours should be: the device is not handed out, and the session and its
/// records are as they were.
#[tokio::test]
async fn a_stale_device_of_an_operator() {
    let (stage, luns) = stage_with(2).await;
    sign(&stage, 0);
    sign(&stage, 1);
    let iqn = stage.iqn();
    sh(&format!(
        "lio_unmap {iqn} 1; iscsiadm -m discovery -t sendtargets -p {PORTAL} >/dev/null; \
         iscsiadm -m node -T {iqn} -p {PORTAL} --login >/dev/null"
    ));
    let records = || sh("find /etc/iscsi -type f -exec sha256sum {} + | sort");
    let (operators, kept) = (sessions(), records());
    assert!(operators.len() == 1 && operators[0].ends_with(" default"), "{operators:?}");
    let stale = until("the operator's device", Duration::from_secs(5), || {
        sh("ls /sys/class/iscsi_session/session*/device/target*/*/block/ 2>/dev/null || true")
            .lines()
            .last()
            .map(str::to_owned)
    });
    let stale = format!("/dev/{stale}");
    assert_eq!(first_block(&stale)[0], b'a');
    sh(&format!("udevadm settle; lio_unmap {iqn} 0; lio_map {iqn} 0 {}", stage.store(1)));

    let there = attach("ours", &luns[0]);
    assert_eq!((text(&there, "scsi_wwn"), &there["size_bytes"]), (&*stage.wwn(1), &(17 * MIB).into()));
    assert_eq!(first_block(text(&there, "path"))[0], b'b');
    assert_eq!(text(&mortar(&["show", "ours"]).ok(), "state"), "ready");
    mortar(&["attach", &luns[0], "--id", "other", "--wwn", &stage.wwn(0)]).refused(4, "IDENTITY_MISMATCH");
    detach("ours");
    assert_eq!(sessions(), operators, "the operator's session");
    assert_eq!(records(), kept, "the operator's records");

    // Beside a LUN that the operator has, one that he has not.
    sh(&format!("lio_map {iqn} 1 {}", stage.store(0)));
    let second = attach("second", &luns[1]);
    assert_eq!(text(&second, "scsi_wwn"), stage.wwn(0));
    detach("second");
    assert_eq!((sessions(), records()), (operators, kept), "what is the operator's");
    sh(&format!(
        "iscsiadm -m node -T {iqn} -p {PORTAL} --logout >/dev/null; rm -r /etc/iscsi/nodes/{iqn} /etc/iscsi/send_targets"
    ));
}

pub(crate) const USER: &str = "web1";
pub(crate) const PASSWORD: &str = "mortar-hush-7f3a9c51";
const WRONG: &str = "mortar-hush-wrong-51";
/// Neither password without this.
pub(crate) const MARKER: &str = "mortar-hush";

/// Looks for a word in every process's argv and environment as fast as it can, until it is asked what it saw.
pub(crate) struct Spy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, BTreeSet<String>)>,
}

impl Spy {
    pub(crate) fn start(word: &str) -> Self {
        Self::looking_for(&[word])
    }

    pub(crate) fn looking_for(secrets: &[&str]) -> Self {
        let secrets: Vec<String> = secrets.iter().map(ToString::to_string).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut rounds, mut leaks) = (0, BTreeSet::new());
            while !asked.load(Ordering::Relaxed) {
                rounds += 1;
                for pid in names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
                    for file in ["cmdline", "environ"] {
                        let found = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                        let found = String::from_utf8_lossy(&found);
                        if secrets.iter().any(|secret| found.contains(secret)) {
                            leaks.insert(format!("{file} of {} {pid}", read(format!("/proc/{pid}/comm"))));
                        }
                    }
                }
            }
            (rounds, leaks)
        });
        Self { stop, thread }
    }

    pub(crate) fn leaks(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        let (rounds, leaks) = self.thread.join().unwrap();
        assert!(rounds > 2, "the spy slept");
        leaks
    }
}

/// The files below some directories that hold a word.
pub(crate) fn that_hold(word: &str, directories: &str) -> String {
    // In a file: the spy looks at grep's argv, too.
    std::fs::write("/root/marker", word).unwrap();
    String::from_utf8(try_sh(&format!("grep -rlF --file /root/marker {directories} || true")).stdout).unwrap()
}

/// A CHAP password opens the door, and shows up nowhere on its way: no argv, environment, log, journal, file or error; and
/// that with everything logged that can be.
#[tokio::test]
async fn chap_passwords_stay_secret() {
    let (stage, luns) = stage_with(1).await;
    let iqn = stage.iqn();
    // From files: what stands in a script is in bash's argv.
    std::fs::write("/root/right", format!("{PASSWORD}\n")).unwrap();
    std::fs::write("/root/wrong", WRONG).unwrap();
    sh(&format!("lio_chap {iqn} {USER} \"$(cat /root/right)\""));
    let before = stage.snapshot().await;
    let _tracing = Reconfigured::new("log = \"info\"", "log = \"trace,h2=trace\"");
    sh("journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet || true");
    let (execs, spy) = (Execs::watch(), Spy::start(MARKER));

    let wrong = mortar(&["attach", &luns[0], "--chap-user", USER, "--chap-password-file", "/root/wrong"]);
    let message = wrong.refused(6, "DENIED");
    assert!(message.contains(&iqn), "{message}");
    let missing = mortar(&["attach", &luns[0]]);
    missing.refused(6, "DENIED");
    assert_eq!(sessions(), Vec::<String>::new(), "after refusals");
    let there =
        mortar(&["attach", &luns[0], "--id", "secret", "--chap-user", USER, "--chap-password-file", "/root/right"]);
    assert!(!there.out.contains(MARKER), "{there:?}");
    assert_eq!(text(&there.ok(), "scsi_wwn"), stage.wwn(0));
    let files = that_hold(MARKER, "/etc /var/lib /run");
    let shown = mortar(&["show", "secret"]).out + &mortar(&["operations"]).out;
    detach("secret");
    let from_stdin = ["attach", &luns[0], "--id", "secret", "--chap-user", USER, "--chap-password-file", "-"];
    mortar_reading(&from_stdin, PASSWORD).ok();
    detach("secret");

    let leaks = spy.leaks();
    let ran = execs.seen();
    drop(execs);
    assert_eq!(leaks, BTreeSet::new(), "the password was in");
    assert!(ran.matches("execve(").count() >= 4 && ran.contains("iscsiadm"), "strace saw nothing: {ran}");
    assert!(!ran.contains(MARKER), "{ran}");
    for (what, said) in [("error", &wrong.err), ("error", &missing.err), ("answer", &shown)] {
        assert!(!said.contains(MARKER), "the {what} tells it: {said}");
    }
    let log = sh("journalctl --no-pager --output export");
    assert!(log.contains("attach secret (") && log.contains(" begins"), "the log is not there: {log}");
    assert!(!log.contains("Suppressed"), "journald left something out");
    figure("log lines at trace", log.matches("MESSAGE=").count());
    if let Some(line) = log.lines().find(|line| line.contains(MARKER)) {
        panic!("in the log: {line}");
    }
    assert_eq!(files + &that_hold(MARKER, "/etc /var/lib /run"), "", "in files");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh("rm /root/right /root/wrong /root/marker");
}

/// A caller who hangs up ends his wait only. The portal is mute until then: he would have had his answer before.
#[tokio::test]
async fn a_hang_up_stops_nothing() {
    let (stage, _luns) = stage_with(1).await;
    sh(&format!("lio_portal {} 127.0.0.2:3260", stage.iqn()));
    let before = stage.snapshot().await;
    sh("net_cut 127.0.0.2");
    let caller = start(&["attach", &format!("iscsi://127.0.0.2/{}/0", stage.iqn()), "--id", "orphan"]);
    until("the attach to begin", Duration::from_secs(10), || {
        let running = mortar(&["operations", "--running"]).ok();
        running.as_array().is_some_and(|list| !list.is_empty()).then_some(())
    });
    caller.kill();
    sh("net_heal 127.0.0.2");
    let done = until("the attach to end", Duration::from_secs(20), || {
        let list = mortar(&["list"]).ok();
        list.as_array()?.first().cloned()
    });
    assert_eq!((text(&done, "id"), text(&done, "state")), ("orphan", "ready"));
    let ended = mortar(&["operations", "--limit", "1"]).ok();
    assert_eq!((&ended[0]["state"], &ended[0]["error"]), (&"succeeded".into(), &Value::Null));
    detach("orphan");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
