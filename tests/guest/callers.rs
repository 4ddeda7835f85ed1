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
use tests::{
    pki::{Ca, Issued, Wanted},
    stage::Stage,
};

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
pub(crate) fn audit(since: &str) -> Vec<Value> {
    let lines = sh(&format!("journalctl --unit mortard --output json --since '{since}' TARGET=audit"));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The time, as journalctl reads it. (After a cursor it leaves out one line too many, where it shows only some of them.)
pub(crate) fn now() -> String {
    sh("date '+%F %T.%6N'")
}

/// Anybody may connect; root and the group `mortar-admin` may do everything, the group `mortar` may look.
#[tokio::test]
async fn users_and_groups() {
    let mut stage = GuestStage::bare();
    let _users = Users::new();
    let locator = stage.volume(Backend::File, "v", 16 << 20).await;
    let meta = std::fs::metadata(SOCKET).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid()), (0o666, 0));
    let start = now();

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
        let start = now();
        std::fs::write("/etc/mortar/mortard.toml", text).unwrap();
        sh("systemctl reload mortard");
        until("the reload", Duration::from_secs(10), || {
            let said = sh(&format!("journalctl --unit mortard --output cat --since '{start}'"));
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

/// `mortar` on another machine, with a certificate: its role, its place, and the end of it, without a restart.
#[tokio::test]
async fn from_another_machine() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "v", 16 << 20).await;
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let put = |name: &str, text: &str| std::fs::write(format!("/etc/mortar/tls/{name}"), text).unwrap();
    let issued = |name: &str, one: &Issued| {
        put(&format!("{name}.pem"), &one.certificate);
        put(&format!("{name}.key"), &one.key);
    };
    sh("mkdir -p -m 700 /etc/mortar/tls");
    put("client-ca.pem", &clients.pem());
    put("server-ca.pem", &servers.pem());
    put("crl.pem", &clients.crl(&[], false));
    issued("server", &servers.issue(&Wanted { serial: 1, dns: Some("localhost"), server: true, ..Wanted::default() }));
    let wanted = Wanted { uri: Some("spiffe://example.org/controller/1"), ..Wanted::default() };
    issued("controller", &clients.issue(&Wanted { serial: 10, ..wanted.clone() }));
    issued("expired", &clients.issue(&Wanted { serial: 11, expired: true, ..wanted.clone() }));
    issued("theirs", &Ca::new("clients").issue(&wanted));
    let rule = format!(
        "\n[[callers.rules]]\nuri = \"spiffe://example.org/controller/*\"\nrole = \"operator\"\nonly = [\"{}\"]\n\n[tls]\n",
        stage.scope(Backend::File)
    );
    let _rule = Reconfigured::new("\n[tls]\n", &rule);
    let config = read("/etc/mortar/mortard.toml")
        .replace("listen = []", "listen = [\"127.0.0.1:7443\"]")
        .replace("tls/certificate.pem", "tls/server.pem")
        .replace("tls/key.pem", "tls/server.key")
        .replace("crl = []", "crl = [\"/etc/mortar/tls/crl.pem\"]");
    std::fs::write("/etc/mortar/mortard.toml", config).unwrap();
    sh("systemctl restart mortard");

    let far = |who: &str, args: &[&str]| {
        let (cert, key) = (format!("/etc/mortar/tls/{who}.pem"), format!("/etc/mortar/tls/{who}.key"));
        let to = [
            "--endpoint",
            "https://localhost",
            "--ca",
            "/etc/mortar/tls/server-ca.pem",
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        mortar(&[&to[..], args].concat())
    };
    far("controller", &["attach", &locator, "--id", "far"]).ok();
    assert_eq!(far("controller", &["list"]).ok()[0]["id"], "far");
    let said = far("controller", &["manage", &locator]).refused(6, "FORBIDDEN");
    assert!(said.contains("\"spiffe://example.org/controller/1\"") && said.contains("needs the role admin"), "{said}");
    far("controller", &["attach", "file:/etc/hostname", "--id", "no"]).refused(6, "FORBIDDEN");
    far("controller", &["detach", "far"]).ok();
    for who in ["expired", "theirs"] {
        let said = far(who, &["list"]).refused(6, "DENIED");
        assert!(said.contains("refused the certificate of --cert"), "{said}");
    }
    // It has to be localhost whom the certificate names.
    let args = ["--endpoint", "https://127.0.0.1", "--ca", "/etc/mortar/tls/server-ca.pem", "--cert"];
    let cert = ["/etc/mortar/tls/controller.pem", "--key", "/etc/mortar/tls/controller.key", "list"];
    mortar(&[&args[..], &cert].concat()).refused(6, "DENIED");
    put("crl.pem", &clients.crl(&[10], false));
    until("the revocation", Duration::from_secs(10), || (far("controller", &["list"]).code == 6).then_some(()));
    mortar(&["list"]).ok();
    sh("rm -r /etc/mortar/tls");
}
