//! Secrets of a call, each with a mark on it: wherever something is written down or shown, the mark is not there.

use crate::{
    callers::{audit, now},
    cli::{Execs, Reconfigured, detach, main_pid, mortar, mortar_reading, read, text, until},
    iscsi::{MARKER, PASSWORD, Spy, USER},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use std::{collections::BTreeSet, path::Path, time::Duration};
use tests::stage::Stage;

/// The files that hold one of the secrets, of those that Mortar or a log may have written. (The secrets are in a file for
/// grep: the spy looks at its argv, too.)
fn files_with(secrets: &[&str]) -> String {
    std::fs::write("/root/secrets", secrets.join("\n")).unwrap();
    let places =
        "/var/lib/mortar /run/mortar /run/log /var/log /etc/iscsi /var/lib/iscsi /tmp /var/tmp /dev/shm /dev/mortar";
    let found = try_sh(&format!("grep -rlaF --file /root/secrets {places} 2>/dev/null || true"));
    String::from_utf8(found.stdout).unwrap()
}

/// A CHAP password and a cephx key, right ones and wrong ones, with all logged that can be: they are in no argv, no
/// environment, no log, no audit log, no journal, no reply, no file.
#[tokio::test]
async fn marked_secrets_show_up_nowhere() {
    let mut stage = GuestStage::with_target();
    let unit = stage.volume(Backend::Iscsi, "", 16 << 20).await;
    let image = stage.volume(Backend::Rbd, "v", 16 << 20).await;
    std::fs::write("/root/right", PASSWORD).unwrap();
    sh(&format!("lio_chap {} {USER} \"$(cat /root/right)\"", stage.iqn()));
    let key = sh("sed -n 's/.*key = //p' /etc/ceph/ceph.client.admin.keyring");
    let secrets = [MARKER, &key];
    let before = stage.snapshot().await;
    let _tracing = Reconfigured::new("log = \"info\"", "log = \"trace,h2=trace\"");
    sh("journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet || true");
    let (start, execs, spy) = (now(), Execs::watch(), Spy::looking_for(&secrets));

    let chap =
        |id| vec!["--timeout", "2m", "attach", &unit, "--id", id, "--chap-user", USER, "--chap-password-file", "-"];
    let cephx = |id| vec!["--timeout", "2m", "attach", &image, "--id", id, "--cephx-key-file", "-"];
    let mut said = Vec::new();
    for (args, secret, right) in [
        (chap("chap-wrong"), "mortar-hush-not-this", false),
        (chap("chap"), PASSWORD, true),
        (cephx("cephx"), &key, true),
    ] {
        let ran = mortar_reading(&args, secret);
        assert_eq!(ran.code == 0, right, "{}", ran.err);
        said.extend([ran.out, ran.err]);
    }
    for args in [vec!["list"], vec!["show", "chap"], vec!["show", "cephx"], vec!["operations"], vec!["doctor", "--all"]]
    {
        let ran = mortar(&args);
        said.extend([ran.out, ran.err]);
    }
    let in_between = files_with(&secrets);
    detach("chap");
    detach("cephx");

    assert_eq!(spy.leaks(), BTreeSet::new(), "a secret was in");
    let ran = execs.seen();
    drop(execs);
    assert!(ran.contains("iscsiadm"), "strace saw nothing: {ran}");
    let log = sh("journalctl --no-pager --output export");
    assert!(log.contains("attach cephx (") && !log.contains("Suppressed"), "the log is not whole");
    let audited = audit(&start);
    let about = |id: &str| audited.iter().any(|line| text(line, "F_SUBJECT") == id);
    assert!(about(&unit) && about(&image) && audited.len() >= 5, "{audited:?}");
    for (what, text) in [("argv", &ran), ("log", &log), ("reply", &said.concat()), ("audit", &format!("{audited:?}"))] {
        for secret in secrets {
            assert!(!text.contains(secret), "a secret is in the {what}");
        }
    }
    assert_eq!(in_between + &files_with(&secrets), "", "in files");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh("rm /root/right /root/secrets");
}

/// The agent leaves no image of its memory: not in a file, and not to a program that the kernel hands such images to.
#[tokio::test]
async fn no_core_dump() {
    let _stage = GuestStage::bare();
    let limits = read(format!("/proc/{}/limits", main_pid()));
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let before = sh("cat /proc/sys/kernel/core_pattern");
    sh("printf '|/bin/dd of=/run/core.%%e' >/proc/sys/kernel/core_pattern");
    // Somebody else's would come.
    try_sh("cp /bin/sleep /run/other; (ulimit -c unlimited; exec /run/other 60) & sleep 0.2; kill -ABRT $!; wait");
    until("the core of another", Duration::from_secs(10), || Path::new("/run/core.other").exists().then_some(()));
    let pid = main_pid();
    sh(&format!("kill -ABRT {pid}"));
    until("the agent to be back", Duration::from_secs(30), || {
        let back = sh("systemctl show --property MainPID --value mortard");
        (back != "0" && back != pid && mortar(&["list"]).code == 0).then_some(())
    });
    assert!(!Path::new("/run/core.mortard").exists(), "there is one");
    sh(&format!("printf '%s' '{before}' >/proc/sys/kernel/core_pattern; rm -f /run/core.* /run/other"));
}
