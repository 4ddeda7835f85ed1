//! Who may do what, by the users and groups of a real system.

use crate::{
    cli::{Reconfigured, detach, mortar, read, until},
    machine::{GuestStage, SOCKET, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Output,
    time::Duration,
};
use tests::stage::Stage;

/// Users that are there as long as this lives.
struct Users;

impl Users {
    fn new() -> Self {
        sh("for user in looks works rules strays; do useradd --no-create-home --shell /bin/sh $user; done
            usermod -aG mortar looks; usermod -aG mortar-admin rules");
        Self
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        try_sh("for user in looks works rules strays; do userdel $user; done; true");
    }
}

/// Runs `mortar` as a user who has just logged in.
fn as_user(user: &str, args: &str) -> Output {
    try_sh(&format!("su {user} -c 'mortar --output json {args}'"))
}

#[track_caller]
fn may(user: &str, args: &str) {
    let ran = as_user(user, args);
    assert!(ran.status.success(), "{user} {args}: {ran:?}");
}

/// The message of a refusal.
#[track_caller]
fn may_not(user: &str, args: &str) -> String {
    let ran = as_user(user, args);
    assert_eq!(ran.status.code(), Some(6), "{user} {args}: {ran:?}");
    let error: Value = serde_json::from_slice(&ran.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "FORBIDDEN");
    error["error"]["message"].as_str().unwrap().to_owned()
}

/// The lines of the audit log in the systemd journal, each by its fields.
fn audit(cursor: &str) -> Vec<Value> {
    let lines = sh(&format!("journalctl --unit mortard --output json --after-cursor '{cursor}' TARGET=audit"));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn cursor() -> String {
    sh("journalctl --lines 0 --show-cursor --no-pager | sed -n 's/^-- cursor: //p'")
}

/// Anybody may connect; root and the group `mortar-admin` may do everything, the group `mortar` may look.
#[tokio::test]
async fn users_and_groups() {
    let mut stage = GuestStage::bare();
    let _users = Users::new();
    let locator = stage.volume(Backend::File, "v", 16 << 20).await;
    let meta = std::fs::metadata(SOCKET).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid()), (0o666, 0));
    let start = cursor();

    let said = may_not("strays", "list");
    let uid = sh("id -u strays");
    assert!(said.contains(&format!("uid {uid} ")) && said.contains("usermod -aG mortar "), "{said}");
    may("looks", "list");
    may("looks", "doctor");
    let said = may_not("looks", &format!("attach {locator} --id v"));
    assert!(said.contains("needs the role operator, and it has viewer") && said.contains("mortar-admin"), "{said}");
    may_not("looks", "doctor --repair");
    may_not("works", "list");
    may("rules", &format!("attach {locator} --id v"));
    may_not("looks", "detach v");
    may("rules", "detach v");
    mortar(&["attach", &locator, "--id", "v"]).ok();
    detach("v");

    // A group counts if the process has it: who gave it up has given it up, and who was lent it has it.
    let (viewers, stray) = (sh("getent group mortar | cut -d: -f3"), "--reuid strays --regid strays");
    sh(&format!("setpriv {stray} --groups {viewers} mortar list"));
    assert_eq!(try_sh("setpriv --reuid looks --regid looks --clear-groups mortar list").status.code(), Some(6));

    let lines = until("the audit log", Duration::from_secs(5), || Some(audit(&start)).filter(|lines| lines.len() >= 9));
    let told: Vec<String> = lines
        .iter()
        .map(|line| {
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            let rpc = field("F_RPC");
            format!("{} {} {}", field("F_WHO"), rpc.rsplit('/').next().unwrap(), field("F_OUTCOME"))
        })
        .collect();
    let uid = |user: &str| sh(&format!("id -u {user}"));
    let expected = [
        (uid("strays"), "List", "PERMISSION_DENIED"),
        (uid("looks"), "Attach", "PERMISSION_DENIED"),
        (uid("looks"), "Diagnose", "PERMISSION_DENIED"),
        (uid("works"), "List", "PERMISSION_DENIED"),
        (uid("rules"), "Attach", "OK"),
        (uid("looks"), "Detach", "PERMISSION_DENIED"),
        (uid("rules"), "Detach", "OK"),
        ("0".into(), "Attach", "OK"),
        ("0".into(), "Detach", "OK"),
    ];
    let expected: Vec<String> = expected.map(|(uid, rpc, outcome)| format!("uid {uid} {rpc} {outcome}")).into();
    assert_eq!(told[..9], expected, "{told:?}");
    let operation = lines[4]["F_OPERATION"].as_str().unwrap();
    assert!(mortar(&["operations", operation]).ok()["kind"] == "attach", "{lines:?}");
    assert_eq!(lines[4]["F_SUBJECT"], locator);
}

/// A rule that is added holds from the reload on; a config that is wrong changes nothing; and what has to wait is named.
#[tokio::test]
async fn a_reload() {
    let mut stage = GuestStage::bare();
    let _users = Users::new();
    let mine = stage.volume(Backend::File, "v", 16 << 20).await;
    let pid = || sh("systemctl show --property MainPID --value mortard");
    let before = pid();
    let write = |text: &str| {
        let start = cursor();
        std::fs::write("/etc/mortar/mortard.toml", text).unwrap();
        sh("systemctl reload mortard");
        until("the reload", Duration::from_secs(10), || {
            let said = sh(&format!("journalctl --unit mortard --output cat --after-cursor '{start}'"));
            said.contains("the config was read anew").then_some(said)
        })
    };
    let shipped = read("/etc/mortar/mortard.toml");
    let _back = Reconfigured::later();
    may_not("works", "list");
    let rule = format!(
        "\n[[callers.rules]]\nuser = \"works\"\nrole = \"operator\"\nonly = [\"{}\"]\n",
        stage.scope(Backend::File)
    );
    let said = write(&(shipped.clone() + &rule));
    assert!(said.contains("and holds"), "{said}");
    may("works", &format!("attach {mine} --id v"));
    may_not("works", "attach file:/etc/hostname --id w");
    may("works", "detach v");
    let said = write(&(shipped.clone() + "\n[nonsense]\n"));
    assert!(said.contains("is wrong; all stays as it was") && said.contains("nonsense"), "{said}");
    may("works", "list");
    let said = write(&shipped.replace("operations = 256", "operations = 255"));
    assert!(said.contains("restart mortard for these to hold: limits.operations"), "{said}");
    may_not("works", "list");
    assert_eq!(pid(), before, "it was restarted");
}
