//! The doors: what comes in by the command line, by gRPC, by the config and by signals.

use crate::{
    cli::{Execs, attach, detach, mortar, text, until},
    machine::{GuestStage, SOCKET, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{File, write},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tests::stage::Stage;

/// Names that try to be options or paths, and numbers out of range: one sentence each, and not one process started.
#[tokio::test]
async fn names_that_try_to_be_more() {
    let stage = GuestStage::with_vg();
    let before = stage.snapshot().await;
    let execs = Execs::watch();
    let long = "x".repeat(300);
    let iqn = "iqn.2026-11.org.example:t1";
    let bad = ["--foo", "../x", "a b", "", &long, "a\u{1}b", "a\nb", "-n", ".."];
    for name in bad {
        for args in [
            vec!["attach", "file:/a.raw", &format!("--id={name}")],
            vec!["attach", &format!("lvm:vg/{name}")],
            vec!["attach", &format!("iscsi://127.0.0.1/{name}/0")],
            vec!["detach", "--", name],
            vec!["manage", &format!("lvm:{name}/lv")],
        ] {
            let message = mortar(&args).refused(2, "INVALID");
            assert!(message.len() < 300 && !message.contains('\u{1}'), "{args:?}: {message}");
        }
    }
    for name in ["--foo", "a\nb", "-n"] {
        for args in [
            vec!["show", "--", name],
            vec!["extend", "--", name],
            vec!["manageable", &format!("lvm:{name}")],
            vec!["manage", "lvm:vg/lv", &format!("--id={name}")],
            vec!["manage", "lvm:vg/lv", &format!("--name={name}")],
            vec!["unmanage", "--", name],
            vec!["volumes", &format!("lvm:{name}")],
            vec!["operations", "--", name],
            vec!["attach", "file:/a.raw", &format!("--wwn={name}")],
            vec!["attach", "--", name],
            vec!["attach", name],
        ] {
            mortar(&args).refused(2, "INVALID");
        }
    }
    for locator in [
        format!("iscsi://127.0.0.1:0/{iqn}/0"),
        format!("iscsi://127.0.0.1:65536/{iqn}/0"),
        format!("iscsi://127.0.0.1:-1/{iqn}/0"),
        format!("iscsi://127.0.0.1/{iqn}/x"),
        format!("iscsi://127.0.0.1/{iqn}/99999999999"),
        format!("iscsi://127.0.0.1/{iqn}"),
        format!("iscsi://localhost/{iqn}/0"),
        "iscsi://127.0.0.1/no-iqn/0".into(),
        "iscsi://127.0.0.1/iqn.26-11.org:x/0".into(),
        "iscsi://127.0.0.1/eui.0123/0".into(),
        "file:a.raw".into(),
        "file:/a/../b".into(),
        "lvm:vg".into(),
        "nbd:x".into(),
    ] {
        mortar(&["attach", &locator]).refused(2, "INVALID");
    }
    assert_eq!(execs.seen().matches("execve(").count(), 0, "{}", execs.seen());
    // The watch is awake: this needs lvm.
    mortar(&["manageable", &stage.scope(Backend::Lvm)]).ok();
    until("strace to show it", Duration::from_secs(5), || {
        execs.seen().contains("execve(\"/usr/sbin/lvm\"").then_some(())
    });
    drop(execs);
    assert_eq!(stage.snapshot().await, before, "bad input changed something");
}

/// A client that was written for any gRPC service, in another language, finds and calls everything.
#[tokio::test]
async fn a_reflection_client_calls_everything() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::File, "python", 16 << 20).await;
    let lv = stage.volume(Backend::Lvm, "python", 16 << 20).await;
    let before = stage.snapshot().await;
    let said = sh(&format!("python3 $GUEST_REPO/tests/guest/reflect.py {SOCKET} {locator} {lv}"));
    let said: Value = serde_json::from_str(&said).unwrap();
    let services: Vec<&str> = said["services"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for service in ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "mortar.agent.v1.Attachments"]
    {
        assert!(services.contains(&service), "{services:?}");
    }
    let results: BTreeMap<String, Vec<String>> = serde_json::from_value(said["methods"].clone()).unwrap();
    let ours: Vec<_> = results.iter().filter(|(method, _)| method.starts_with("mortar.")).collect();
    assert_eq!(ours.len(), 6 + 5 + 4 + 3 + 2 + 7, "every method of the contract: {results:?}");
    // Each has done its work once, and each that needs something has said so. Those of instances have no libvirt here.
    for (method, results) in ours {
        let works = method.contains(".Instances") || results.iter().any(|result| result == "OK");
        assert!(works, "{method}: {results:?}");
        assert!(!results.iter().any(|result| result.contains("INTERNAL")), "{method}: {results:?}");
    }
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// What keeps the agent from starting is said in one line, with its exit code, before anything is served.
#[tokio::test]
async fn one_line_when_it_cannot_start() {
    let _stage = GuestStage::bare();
    sh("mkdir -p /run/second/state");
    let socket = "/run/second/agent.sock";
    let fails = |prepare: &str, config: &str, code: i32, words: &[&str]| {
        write("/run/second/config.toml", config).unwrap();
        let daemon = "/usr/sbin/mortard --config /run/second/config.toml";
        let ran = try_sh(&format!("export RUST_BACKTRACE=0; exec unshare --mount bash -c '{prepare}; exec {daemon}'"));
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!((ran.status.code(), said.lines().count()), (Some(code), 1), "{config}: {said}");
        for word in words {
            assert!(said.contains(word), "{config}: {said}");
        }
        assert!(!Path::new(socket).exists(), "{config}: it was bound");
    };
    let elsewhere = format!("[agent]\nsocket = \"{socket}\"\nstate_directory = \"/run/second/state\"\n");
    fails(":", "", 69, &["another mortard runs here"]);
    fails(":", &format!("[agent]\nsocket = \"{socket}\""), 69, &["another mortard runs here", "/var/lib/mortar"]);
    fails(":", &format!("{elsewhere}sokcet = 1"), 64, &["line 4", "unknown field `sokcet`", "/run/second/config.toml"]);
    fails(":", &format!("{elsewhere}[limits]\nprocesses = 0"), 64, &["limits.processes"]);
    fails(":", "not toml", 64, &["line 1"]);
    fails(":", &format!("{elsewhere}log = \"=;=\""), 64, &["agent.log"]);
    let iscsi = format!("{elsewhere}drivers = [\"iscsi\"]");
    let hidden = |tool: &str| format!("mount --bind /dev/null $(readlink -f $(command -v {tool}))");
    fails(&hidden("iscsiadm"), &iscsi, 69, &["iscsi", "iscsiadm is not installed", "open-iscsi"]);
    let lvm = format!("{elsewhere}drivers = [\"file\", \"lvm\"]");
    fails(&hidden("lvm"), &lvm, 69, &["lvm", "not installed"]);
    // The running one has not been disturbed.
    mortar(&["list"]).ok();
    sh("rm -r /run/second");
}

/// A watcher hears of everything that happens, one JSON object a line; and the operations tell it afterwards.
#[tokio::test]
async fn watch_and_operations() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "watched", 16 << 20).await;
    let before = stage.volume(Backend::File, "before", 16 << 20).await;
    attach("before", &before);
    let log = "/run/watched.json";
    let mut watch = Command::new("/usr/bin/mortar")
        .args(["--output", "json", "watch"])
        .stdout(File::create(log).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let events = || {
        let mut text = String::new();
        File::open(log).unwrap().read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let first = until("the attachment that was there", Duration::from_secs(5), || events().first().cloned());
    assert_eq!((&first["event"], &first["attachment"]["id"]), (&"attachment".into(), &"before".into()));
    attach("watched", &locator);
    mortar(&["attach", &stage.nowhere(Backend::File), "--id", "failed"]).refused(3, "NOT_FOUND");
    // Somebody takes the device away, behind the agent's back.
    sh(&format!("losetup -d {}", text(&mortar(&["show", "before"]).ok(), "path")));
    until("the loss", Duration::from_secs(20), || {
        let is_lost = |event: &Value| event["attachment"]["id"] == "before" && event["attachment"]["state"] == "broken";
        events().iter().any(is_lost).then_some(())
    });
    detach("watched");
    until("the end", Duration::from_secs(5), || {
        events().iter().any(|event| event["event"] == "attachment_gone" && event["id"] == "watched").then_some(())
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    let heard: Vec<String> = events()
        .iter()
        .filter(|event| {
            [&event["attachment"]["id"], &event["id"], &event["operation"]["subject"]].contains(&&"watched".into())
        })
        .map(|event| {
            let part = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            [part("/event"), part("/operation/kind"), part("/operation/state"), part("/attachment/state")]
                .join(" ")
                .trim()
                .to_owned()
        })
        .collect();
    let position =
        |what: &str| heard.iter().position(|heard| heard == what).unwrap_or_else(|| panic!("no {what} in {heard:?}"));
    let order = [
        "operation attach running",
        "operation attach succeeded",
        "operation detach running",
        "operation detach succeeded",
    ];
    assert!(order.windows(2).all(|pair| position(pair[0]) < position(pair[1])), "{heard:?}");
    assert!(position("attachment   ready") < position("operation detach running"), "{heard:?}");
    position("attachment_gone");

    let operations = mortar(&["operations", "--limit", "4"]).ok();
    let detached =
        operations.as_array().unwrap().iter().find(|operation| text(operation, "subject") == "watched").unwrap();
    assert_eq!((text(detached, "kind"), text(detached, "state")), ("detach", "succeeded"));
    assert!(detached["ended_at"].is_string() && detached["error"].is_null(), "{detached}");
    let again = mortar(&["operations", text(detached, "id")]).ok();
    assert_eq!(&again, detached);
    mortar(&["operations", "0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10"]).refused(3, "NOT_FOUND");
    assert_eq!(mortar(&["operations", "--running"]).ok(), Value::Array(Vec::new()));
    detach("before");
    sh(&format!("rm {log}"));
}
