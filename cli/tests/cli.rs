//! `mortar` as a user runs it, against an agent with canned answers: what reaches the agent, what comes out, and how
//! the process ends.

mod fake;

use assert_cmd::assert::Assert;
use fake::{Agent, mortar};
use proto::v1;
use serde_json::{Value, json};
use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).expect("UTF-8 on stdout")
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).expect("UTF-8 on stderr")
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// It failed with this exit code, one sentence on stderr that has these words, and nothing on stdout.
#[track_caller]
fn refused(assert: Assert, exit: i32, words: &str) {
    let assert = assert.code(exit);
    let stderr = stderr(&assert);
    assert!(stderr.starts_with("mortar: ") && stderr.contains(words) && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(stdout(&assert), "");
}

#[test]
fn attach_prints_the_device_as_in_the_post() {
    let agent = Agent::start();
    let attached = agent.run(&["attach", "lvm:vg/lv", "--id", "a"]).success();
    assert_eq!(
        stdout(&attached),
        "\
+-------------+-----------------------------------+
| Property    | Value                             |
+-------------+-----------------------------------+
| path        | /dev/sdb                          |
| scsi_wwn    | 360000000000000000e00000000010001 |
| type        | block                             |
| id          | a                                 |
| stable_path | /dev/mortar/a                     |
| size        | 1073741824 (1 GiB)                |
+-------------+-----------------------------------+
"
    );
    assert_eq!(stderr(&attached), "");
}

#[test]
fn attach_asks_for_what_was_typed() {
    let agent = Agent::start();
    let line = "attach lvm:vg/lv --id a --read-only --wwn 3600 --size 1GiB --timeout 1500ms --persistent -o json";
    let json = parsed(&stdout(&agent.run(&line.split(' ').collect::<Vec<_>>()).success()));
    assert_eq!((&json["id"], &json["changed"], &json["paths"][0]["portal"]), (&json!("a"), &json!(true), &json!(null)));
    let expected = v1::AttachRequest {
        id: "a".into(),
        volume: Some(v1::attach_request::Volume::Locator("lvm:vg/lv".into())),
        read_only: true,
        persistent: true,
        expected_wwn: "3600".into(),
        expected_size_bytes: 1 << 30,
        timeout_ms: 1500,
        ..Default::default()
    };
    assert_eq!(agent.asked().attach, [expected]);
}

#[test]
fn a_password_from_stdin_or_a_file_arrives_without_its_newline() {
    let agent = Agent::start();
    let line = ["attach", "iscsi://10.0.0.5/iqn.2026-11.org.example:t/0", "--chap-user", "u", "--chap-password-file"];
    let with = |file: &str| {
        let mut command = agent.mortar(&line);
        command.arg(file);
        command
    };
    with("-").write_stdin("open sesame\n").assert().success();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("password");
    write(&file, "from a file");
    with(file.to_str().unwrap()).assert().success();
    let passwords: Vec<_> = agent.asked().attach.iter().map(|request| request.credentials.clone().unwrap()).collect();
    let chap = |password: &str| v1::Credentials {
        kind: Some(v1::credentials::Kind::Chap(v1::Chap { user: "u".into(), password: password.into() })),
    };
    assert_eq!(passwords, [chap("open sesame"), chap("from a file")]);

    refused(with("-").write_stdin("\n").assert(), 2, "stdin holds no password: it is empty");
    refused(with("/no/such/file").assert(), 2, "cannot read the password from /no/such/file");
    assert_eq!(agent.asked().attach.len(), 2);
}

#[test]
fn a_connection_info_arrives_as_it_stands() {
    const INFO: &str = r#"{"driver_volume_type": "iscsi", "data": {"auth_password": "hush"}}"#;
    let agent = Agent::start();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("connection.json");
    let file = file.to_str().unwrap();
    write(Path::new(file), INFO);
    for verb in ["attach", "detach"] {
        agent.run(&[verb, "--connection-info", file]).success();
        agent.mortar(&[verb, "--connection-info", "-"]).write_stdin(format!("{INFO}\n")).assert().success();
    }
    let attached: Vec<_> = agent.asked().attach.iter().map(|request| request.volume.clone().unwrap()).collect();
    // What may hold a secret cannot be shown.
    assert!(attached == vec![v1::attach_request::Volume::ConnectionInfo(INFO.into()); 2]);
    let detached: Vec<_> = agent.asked().detach.iter().map(|request| request.target.clone().unwrap()).collect();
    assert!(detached == vec![v1::detach_request::Target::ConnectionInfo(INFO.into()); 2]);

    for (text, words) in [("hush", "holds no JSON: expected value at line 1 column 1"), ("", "it is empty")] {
        write(Path::new(file), text);
        for verb in ["attach", "detach"] {
            refused(agent.run(&[verb, "--connection-info", file]), 2, words);
        }
    }
    write(Path::new(file), &format!("\"{}\"", "x".repeat(70_000)));
    refused(agent.run(&["attach", "--connection-info", file]), 2, "holds more than 65536 bytes");
    refused(
        agent.run(&["attach", "--connection-info", "/no/such"]),
        2,
        "cannot read the connection_info from /no/such",
    );
    refused(agent.run(&["attach", "lvm:vg/lv", "--connection-info", file]), 2, "cannot be used with");
    let twice = ["attach", "--connection-info", "-", "--cephx-key-file", "-"];
    refused(agent.run(&twice), 2, "stdin can be read once only");
    let asked = agent.asked();
    assert_eq!((asked.attach.len(), asked.detach.len()), (2, 2));
}

#[test]
fn a_cephx_key_and_how_to_attach_arrive() {
    let agent = Agent::start();
    let line = "attach rbd:p/i --exclusive --all-paths --cephx-key-file -";
    let mut command = agent.mortar(&line.split(' ').collect::<Vec<_>>());
    command.write_stdin("[client.admin]\nkey = AQ==\n").assert().success();
    let asked = agent.asked().attach[0].clone();
    assert!(asked.exclusive && asked.all_paths);
    let cephx = v1::Cephx { key: "[client.admin]\nkey = AQ==".into() };
    assert_eq!(asked.credentials.unwrap().kind, Some(v1::credentials::Kind::Cephx(cephx)));
    refused(agent.run(&["attach", "rbd:p/i", "--cephx-key-file", "/no/such"]), 2, "cannot read the key from /no/such");
}

#[test]
fn a_rescue_asks_for_what_was_typed_and_tells_the_password_once() {
    let agent = Agent::start();
    let dir = TempDir::new().unwrap();
    let (keys, data) = (dir.path().join("keys"), dir.path().join("data"));
    write(&keys, "# mine\n\nssh-ed25519 AAAA me\nssh-rsa AAAB you\n");
    write(&data, "#!/bin/sh\n\n");
    let (keys, data) = (keys.to_str().unwrap(), data.to_str().unwrap());
    let line =
        "rescue web1 --image lvm:vg/i --layout stable --bus sata --grace 0 --timeout 5s --password-file - -o json";
    let mut command = agent.mortar(&line.split(' ').collect::<Vec<_>>());
    let told = command.args(["--ssh-key", keys, "--user-data", data]).write_stdin("hush\n").assert().success();
    assert_eq!(parsed(&stdout(&told))["password"], "hT9wQm4xRkc7Ven3");
    assert_eq!(parsed(&stderr(&told)), json!({ "warning": "they have the same UUID" }));
    let expected = v1::RescueRequest {
        instance: "web1".into(),
        disk: Some(v1::rescue_request::Disk::Image("lvm:vg/i".into())),
        layout: v1::RescueLayout::Stable.into(),
        bus: v1::DiskBus::Sata.into(),
        password: "hush".into(),
        ssh_keys: vec!["ssh-ed25519 AAAA me".into(), "ssh-rsa AAAB you".into()],
        user_data: "#!/bin/sh\n\n".into(),
        grace_ms: Some(0),
        timeout_ms: 5000,
        ..Default::default()
    };
    assert!(agent.asked().rescue == vec![expected], "another request");

    let volume = agent.run(&["rescue", "web1", "--volume", "iscsi://10.0.0.5/iqn.x/0", "--no-seed"]).success();
    assert!(stdout(&volume).contains("| password | hT9wQm4xRkc7Ven3 "), "{}", stdout(&volume));
    let asked = agent.asked().rescue[1].clone();
    assert!(asked.no_seed && asked.grace_ms.is_none());
    assert!(asked.disk == Some(v1::rescue_request::Disk::Volume("iscsi://10.0.0.5/iqn.x/0".into())));
    refused(agent.run(&["rescue", "web1"]), 2, "--image");
    refused(agent.run(&["rescue", "web1", "--image", "x", "--volume", "y"]), 2, "cannot be used with");
    refused(agent.run(&["rescue", "web1", "--image", "x", "--grace", "11m"]), 2, "longer than 10m");
    let twice = ["rescue", "web1", "--image", "x", "--password-file", "-", "--user-data", "-"];
    refused(agent.run(&twice), 2, "stdin can be read once only");
}

#[test]
fn what_cannot_be_taken_back_is_asked_for_at_a_terminal_only() {
    let agent = Agent::start();
    let rescue = "rescue web1 --image lvm:vg/i";
    let questions = [
        (rescue, "web1 runs: it is stopped, by force if its guest does not shut down, and boots from the rescue disk."),
        ("unrescue saved", "The rescue disk lvm:vg/rescue-7b1c and all on it go."),
        ("instance stop web1 --grace 0", "web1 is ended without asking its guest."),
        ("doctor --repair", "What nobody has is taken away: the loop /dev/loop0."),
    ];
    let done = || {
        let asked = agent.asked();
        let repaired = asked.diagnose.iter().filter(|request| request.repair).count();
        [asked.rescue.len(), asked.unrescue.len(), asked.stop.len(), repaired]
    };
    for (line, words) in questions {
        for typed in ["n\n", "\n"] {
            let refused = stdout(&agent.on_terminal(line, typed, &[]).code(1));
            assert!(refused.contains(words) && refused.contains("Go on? [y/N]"), "{refused}");
            assert!(refused.contains("mortar: nothing was done"), "{refused}");
        }
    }
    assert_eq!(done(), [0; 4]);
    for (line, _) in questions {
        assert!(stdout(&agent.on_terminal(line, "y\n", &[]).success()).contains("Go on?"));
    }
    assert_eq!(done(), [1; 4]);
    for (line, _) in questions {
        let sure = stdout(&agent.on_terminal(&format!("{line} --yes"), "", &[]).success());
        assert!(!sure.contains("Go on?"), "{sure}");
        // A script says what it means.
        agent.run(&line.split(' ').collect::<Vec<_>>()).success();
    }
    assert_eq!(done(), [3; 4]);
    for line in ["instance stop web1", "unrescue web1", "rescue saved --image lvm:vg/i", "doctor"] {
        let told = stdout(&agent.on_terminal(line, "", &[]));
        assert!(!told.contains("Go on?"), "{told}");
    }
}

#[test]
fn a_dry_run_is_one_and_asks_nothing() {
    let agent = Agent::start();
    let managed = stdout(&agent.run(&["manage", "lvm:vg/lv", "--dry-run"]).success());
    assert!(managed.contains("| would    | rename it "), "{managed}");
    let json = parsed(&stdout(&agent.run(&["manage", "lvm:vg/lv", "--dry-run", "-ojson"]).success()));
    assert_eq!((&json["would"], &json["operation_id"]), (&json!(["rename it"]), &json!(null)));
    let json = parsed(&stdout(&agent.run(&["manage", "lvm:vg/lv", "-ojson"]).success()));
    assert_eq!(json.get("would"), None);

    let rescued = stdout(&agent.on_terminal("rescue web1 --image lvm:vg/i --dry-run", "", &[]).success());
    assert!(rescued.contains("| would    | stop web1 ") && rescued.contains("| would    | start web1 "), "{rescued}");
    let repaired = stdout(&agent.on_terminal("doctor --repair --dry-run", "", &[]).code(1));
    assert!(repaired.contains("| would be removed |"), "{repaired}");
    assert!(repaired.contains("mortar: 1 orphan, 1 warning; mortar doctor --repair takes orphans away"), "{repaired}");
    assert!(!rescued.contains("Go on?") && !repaired.contains("Go on?"));
    let asked = agent.asked();
    assert_eq!(asked.manage.iter().map(|it| it.dry_run).collect::<Vec<_>>(), [true, true, false]);
    assert!(asked.rescue.len() == 1 && asked.rescue[0].dry_run);
    assert_eq!(asked.diagnose, [v1::DiagnoseRequest { repair: true, dry_run: true, timeout_ms: 30_000 }]);
    drop(asked);
    refused(agent.run(&["doctor", "--dry-run"]), 2, "--repair");
}

#[test]
fn what_takes_long_says_at_a_terminal_what_it_waits_for() {
    let agent = Agent::start();
    let told = stdout(&agent.on_terminal("attach lvm:late/lv --id a", "", &[]).success());
    assert!(told.contains("\rattaching, 1 s: waits for `run lvm lvchange`"), "{told}");
    let (_, after) = told.rsplit_once(" \r").expect("the line is wiped");
    assert!(after.starts_with("+--"), "{told}");
    assert!(agent.asked().operations.iter().all(|request| request.running_only));
    let asked = agent.asked().operations.len();

    let documented = stdout(&agent.on_terminal("attach lvm:late/lv --id a -oyaml", "", &[]).success());
    assert!(documented.starts_with("id: a"), "{documented}");
    assert_eq!(stderr(&agent.run(&["attach", "lvm:late/lv", "--id", "a"]).success()), "");
    assert!(!stdout(&agent.on_terminal("attach lvm:vg/lv --id a", "", &[]).success()).contains("attaching"));
    assert_eq!(agent.asked().operations.len(), asked, "nobody is asked in vain");
}

#[test]
fn instances_are_shown_powered_and_put_back() {
    let agent = Agent::start();
    assert!(stdout(&agent.run(&["instances"]).success()).contains("| web1 | 7b1c6c5e-"));
    for line in [&["show", "web1"][..], &["show", "a name"], &["show", "web1", "--instance"]] {
        let shown = stdout(&agent.run(line).success());
        assert!(shown.contains("| vdb    | /dev/vg/web1            | root   |"), "{shown}");
    }
    refused(agent.run(&["show", "absent"]), 3, "no attachment absent");
    assert_eq!(parsed(&stdout(&agent.run(&["show", "a", "-ojson"]).success()))["id"], "a");
    agent.run(&["unrescue", "web1", "--discard-changes"]).success();
    assert!(agent.asked().unrescue[0].discard_changes);
    let stopped = agent.run(&["instance", "stop", "web1", "--grace", "90s", "-ojson"]).success();
    assert_eq!(parsed(&stdout(&stopped))["stopped"], "hard");
    assert_eq!(agent.asked().stop[0].grace_ms, Some(90_000));
    agent.run(&["instance", "start", "web1"]).success();
    agent.run(&["instance", "reboot", "web1"]).success();
}

#[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file in a directory of the test's own");
}

#[test]
fn the_exit_code_says_what_to_do_next() {
    let agent = Agent::start();
    for (vg, exit, words) in [
        ("lost", 1, "the flush failed"),
        ("invalid", 2, "no locator"),
        ("absent", 3, "no VG absent"),
        ("mounted", 4, "/dev/sdb\\nis mounted"),
        ("taken", 4, "the id is taken"),
        ("slow", 5, "no device appeared"),
        ("stopping", 5, "the agent is stopping"),
        ("full", 5, "the VG is full"),
        ("denied", 6, "CHAP was refused"),
    ] {
        refused(agent.run(&["attach", &format!("lvm:{vg}/lv")]), exit, words);
    }
    assert_eq!(agent.asked().attach.len(), 9, "none of these is tried again");
}

#[test]
fn errors_are_json_when_asked() {
    let agent = Agent::start();
    let failed = agent.run(&["attach", "lvm:absent/lv", "--output", "json"]).code(3);
    assert_eq!(stdout(&failed), "");
    assert_eq!(
        parsed(&stderr(&failed)),
        json!({ "error": {
            "code": "NOT_FOUND", "reason": "NOT_FOUND", "message": "no VG absent", "metadata": { "by": "somebody" },
        } })
    );
    let usage = agent.run(&["attach", "-ojson"]).code(2);
    assert_eq!(parsed(&stderr(&usage))["error"]["reason"], "INVALID");
}

#[test]
fn values_are_one_row_a_line() {
    let agent = Agent::start();
    let value = |line: &str| stdout(&agent.run(&line.split(' ').collect::<Vec<_>>()).success());
    assert_eq!(value("list -o value -c id"), "a\nb\n");
    assert_eq!(value("list -o value"), value("list -o value -c id,path,size,state,locator"));
    assert_eq!(value("list -o value -c ID -c size -c scsi-wwn,Problem").lines().next().unwrap(), {
        "a\t1073741824\t360000000000000000e00000000010001\t"
    });
    assert_eq!(value("attach lvm:vg/lv --id a --output value --column stable_path,changed"), "/dev/mortar/a\ttrue\n");
    assert_eq!(value("show a -o value -c path"), "/dev/sdb\n");
    assert_eq!(value("show web1 -o value -c source"), "/dev/mortar/rescue-7b1c\n/dev/vg/web1\n");
    assert_eq!(value("host -o value -c name"), "hv1\n");
    assert_eq!(
        value("list -c path"),
        "+----------+\n| path     |\n+----------+\n| /dev/sdb |\n| /dev/sdb |\n+----------+\n"
    );
    let findings = agent.run(&["doctor", "-ovalue", "-c", "severity"]).code(1);
    assert_eq!(stdout(&findings), "warning\n");
    let watched = stdout(&agent.run(&["watch", "-ovalue"]).code(5));
    assert!(watched.starts_with("attachment a ready /dev/sdb"), "{watched}");
}

#[test]
fn a_column_that_there_is_not_is_said_before_anything_is_done() {
    let agent = Agent::start();
    let columns = "there is no column colour here, but id, path, size, state, locator, created_at";
    refused(agent.run(&["list", "-o", "value", "-c", "id,colour"]), 2, columns);
    for line in [
        "attach x",
        "detach x",
        "extend x",
        "manage x",
        "unmanage x",
        "export x --initiator y",
        "unexport x",
        "rescue x --image y",
        "unrescue x",
        "instance stop x",
        "cancel x",
        "show x",
        "doctor --repair",
        "operations",
    ] {
        let line: Vec<_> = line.split(' ').chain(["-c", "colour"]).collect();
        refused(agent.run(&line), 2, "no column colour");
    }
    refused(agent.run(&["export", "x", "--initiator", "y", "-c", "data"]), 2, "no column data");
    refused(agent.run(&["watch", "-c", "id"]), 2, "prints no table");
    let json = agent.run(&["list", "-ojson", "-c", "id"]).code(2);
    assert!(stderr(&json).contains("JSON and YAML hold everything"), "{}", stderr(&json));
    let asked = agent.asked();
    let counts = [asked.attach.len(), asked.detach.len(), asked.rescue.len(), asked.manage.len(), asked.export.len()];
    assert_eq!(counts, [0; 5]);
    assert!(asked.diagnose.is_empty() && asked.stop.is_empty() && asked.unrescue.is_empty());
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    const GREEN: &str = "\u{1b}[38;5;2mready";
    let agent = Agent::start();
    let said = |line: &str, environment: &[(&str, &str)]| {
        let mut command = agent.mortar(&line.split(' ').collect::<Vec<_>>());
        let assert = command.envs(environment.iter().copied()).assert();
        stdout(&assert) + &stderr(&assert)
    };
    let force = [("CLICOLOR_FORCE", "1")];
    assert!(!said("list", &[]).contains('\u{1b}'), "a pipe is no terminal");
    assert!(said("list", &force).contains(GREEN), "{}", said("list", &force));
    assert!(said("show absent", &force).contains("\u{1b}[1m\u{1b}[31mmortar:\u{1b}[0m no attachment"));
    assert!(!said("list", &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\u{1b}'));
    for format in ["json", "yaml", "value"] {
        assert!(!said(&format!("list -o {format}"), &force).contains('\u{1b}'), "{format}");
    }

    let on_terminal = |environment: &[(&str, &str)]| stdout(&agent.on_terminal("list", "", environment).success());
    assert!(on_terminal(&[("TERM", "xterm")]).contains(GREEN), "{}", on_terminal(&[("TERM", "xterm")]));
    for environment in [&[("TERM", "dumb")][..], &[("TERM", "xterm"), ("NO_COLOR", "1")]] {
        let plain = on_terminal(environment);
        assert!(plain.contains("| ready |") && !plain.contains('\u{1b}'), "{plain}");
    }
}

#[test]
fn yaml_is_for_programs_too() {
    let agent = Agent::start();
    let list = stdout(&agent.run(&["list", "-o", "yaml"]).success());
    assert!(list.starts_with("- id: a\n  locator: lvm:vg/lv\n  path: /dev/sdb\n"), "{list}");
    assert!(list.contains("\n  scsi_wwn: \"360000000000000000e00000000010001\"\n  multipath_id: null\n"), "{list}");
    assert!(list.contains("  paths:\n  - device: /dev/sdb\n    portal: null\n    state: running\n"), "{list}");
    let failed = agent.run(&["attach", "lvm:mounted/lv", "-oyaml"]).code(4);
    assert_eq!(stdout(&failed), "");
    assert_eq!(
        stderr(&failed),
        "\
---
error:
  code: FAILED_PRECONDITION
  reason: IN_USE
  message: |-
    /dev/sdb
    is mounted
  metadata:
    by: somebody
"
    );
    let stuck = agent.run(&["detach", "stuck", "--output=yaml"]).code(4);
    assert!(stdout(&stuck).starts_with("id: stuck\nchanged: true\nresiduals:\n- kind: device\n"), "{}", stdout(&stuck));
    assert_eq!(stderr(&stuck).matches("---\nerror:\n").count(), 2);
    assert!(stderr(&agent.run(&["attach", "-oyaml"]).code(2)).starts_with("---\nerror:\n  code: INVALID_ARGUMENT\n"));
    let watched = stdout(&agent.run(&["watch", "-oyaml"]).code(5));
    assert_eq!(watched.matches("---\nevent: ").count(), 3, "{watched}");
    let warned = stderr(&agent.run(&["volumes", "-oyaml"]).success());
    assert_eq!(warned, "---\nwarning: \"rbd:gone cannot be looked at: no answer\"\n");
}

#[test]
fn an_error_is_explained() {
    let agent = Agent::start();
    let explained = stdout(&agent.run(&["explain", "in_use"]).success());
    for words in ["| reason    | IN_USE ", "| FAILED_PRECONDITION ", "| exit_code | 4 ", "| next      | Free it first"]
    {
        assert!(explained.contains(words), "{words} is missing in:\n{explained}");
    }
    assert!(explained.lines().all(|line| line.len() <= 100), "{explained}");
    let json = parsed(&stdout(&agent.run(&["explain", "RESIDUAL", "-ojson"]).success()));
    assert_eq!((&json["code"], &json["exit_code"]), (&json!("FAILED_PRECONDITION"), &json!(4)));
    let all = stdout(&agent.run(&["explain", "-ovalue", "-creason"]).success());
    assert!(all.starts_with("INVALID\nNOT_FOUND\n") && all.lines().count() == 23, "{all}");
    refused(agent.run(&["explain", "MOOD"]), 2, "invalid value 'MOOD'");

    // What to do is for somebody who sits there.
    let told = agent.on_terminal("attach lvm:mounted/lv", "", &[]).code(4);
    let advice = "mortar: /dev/sdb\\nis mounted\r\nFree it first: ";
    assert!(
        stdout(&told).starts_with(advice) && stdout(&told).contains("`mortar explain IN_USE` says more."),
        "{told}"
    );
    for (line, lines) in [("attach lvm:mounted/lv -ojson", 1), ("attach", 1), ("attach lvm:invalid/lv", 1)] {
        let told = stdout(&agent.on_terminal(line, "", &[]));
        assert_eq!(told.lines().count(), lines, "{told}");
    }
}

#[test]
fn busy_is_tried_again_until_it_is_free() {
    let agent = Agent::start();
    agent.run(&["attach", "lvm:busy/thrice", "--timeout", "10s"]).success();
    let left: Vec<_> = agent.asked().attach.iter().map(|request| request.timeout_ms).collect();
    assert!(left.len() == 4 && left.is_sorted_by(|a, b| a > b) && left[0] == 10_000, "{left:?}");
}

#[test]
fn busy_is_the_answer_when_the_time_is_over() {
    let agent = Agent::start();
    let start = Instant::now();
    refused(agent.run(&["attach", "lvm:busy/always", "--timeout", "700ms"]), 5, "held by an attach for 2s");
    assert!((Duration::from_millis(700)..Duration::from_secs(5)).contains(&start.elapsed()));
    assert!(agent.asked().attach.len() > 2);
}

#[test]
fn an_agent_that_says_nothing_is_not_waited_for_forever() {
    let agent = Agent::start();
    let start = Instant::now();
    refused(agent.run(&["attach", "lvm:silent/lv", "--timeout", "200ms"]), 5, "did not answer in time");
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&start.elapsed()), "the grace is 2s");
}

#[test]
fn a_socket_that_nobody_serves_is_not_waited_for_forever() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("agent.sock");
    let _frozen = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(mortar(&socket).args(["list", "--timeout", "200ms"]).assert(), 5, "did not answer in time");
}

#[test]
fn an_agent_that_dies_in_the_middle_is_said() {
    let agent = Agent::start();
    let mut command = agent.mortar(&["attach", "lvm:deadly/lv"]);
    agent.die_when_asked();
    refused(command.assert(), 5, "went away during the call");
}

#[test]
fn an_agent_that_does_not_run_is_said_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("agent.sock");
    refused(mortar(&socket).arg("list").assert(), 5, "mortard is not running: systemctl start mortard");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused(mortar(&socket).arg("list").assert(), 5, "mortard is not running");
    let long = dir.path().join("x".repeat(200));
    refused(mortar(&long).arg("list").assert(), 2, "no socket path");
    refused(mortar(&socket).args(["list", "--socket", "/nowhere"]).assert(), 5, "/nowhere");
}

#[test]
fn a_socket_of_others_says_which_group_to_join() {
    let agent = Agent::start();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(&agent.socket(), 0);
    let mut command = if nix::unistd::Uid::effective().is_root() {
        // Root may use every socket: be somebody else, with a copy of the binary that he may run.
        let dir = agent.socket().parent().unwrap().to_owned();
        mode(&dir, 0o755);
        // By a process: a file that this one wrote is busy for as long as a child of another thread has not yet become its program.
        let copy = [assert_cmd::cargo::cargo_bin!("mortar"), &dir.join("mortar")];
        assert_cmd::Command::new("cp").args(copy).assert().success();
        let mut command = assert_cmd::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(dir.join("mortar"));
        command.env("MORTAR_SOCKET", agent.socket()).arg("list");
        command
    } else {
        agent.mortar(&["list"])
    };
    refused(command.assert(), 6, "join the group mortar");
}

#[test]
fn detach_names_an_id_a_locator_or_a_device() {
    let agent = Agent::start();
    for target in [&["a"][..], &["lvm:vg/lv"], &["/dev/sdb"], &["--timeout", "5", "--", "--foo"]] {
        agent.mortar(&["detach"]).args(target).assert().success();
    }
    let targets: Vec<_> = agent.asked().detach.iter().map(|request| request.target.clone().unwrap()).collect();
    assert!(
        targets
            == [
                v1::detach_request::Target::Id("a".into()),
                v1::detach_request::Target::Locator("lvm:vg/lv".into()),
                v1::detach_request::Target::Device("/dev/sdb".into()),
                v1::detach_request::Target::Id("--foo".into()),
            ]
    );
}

#[test]
fn detach_of_what_is_not_there_is_done() {
    let agent = Agent::start();
    let json = parsed(&stdout(&agent.run(&["detach", "absent", "-ojson"]).success()));
    assert_eq!(json, json!({ "id": "absent", "changed": false, "residuals": [], "kept": [], "operation_id": null }));
    assert!(stdout(&agent.run(&["detach", "absent"]).success()).contains("| changed  | false  |"));
}

#[test]
fn what_a_detach_could_not_remove_is_no_success() {
    let agent = Agent::start();
    let stuck = agent.run(&["detach", "stuck"]).code(4);
    assert_eq!(
        stderr(&stuck),
        "mortar: the device /dev/sdb is still there: it does not answer\n\
         mortar: the device /dev/sdc is still there: it does not answer\n"
    );
    assert_eq!(stdout(&stuck), "");
    let stuck = agent.run(&["detach", "stuck", "--output=json"]).code(4);
    assert_eq!(parsed(&stdout(&stuck))["residuals"][1]["name"], "/dev/sdc");
    for line in stderr(&stuck).lines() {
        assert_eq!(parsed(line)["error"]["reason"], "RESIDUAL");
    }
}

#[test]
fn attachments_are_listed_shown_and_extended() {
    let agent = Agent::start();
    assert!(
        stdout(&agent.run(&["list"]).success()).contains("| a  | /dev/sdb | 1073741824 (1 GiB) | ready | lvm:vg/lv |")
    );
    let list = parsed(&stdout(&agent.run(&["list", "-ojson"]).success()));
    assert_eq!((&list[0]["id"], &list[1]["id"]), (&json!("a"), &json!("b")));
    assert!(stdout(&agent.run(&["show", "a"]).success()).contains("| locator "));
    refused(agent.run(&["show", "absent"]), 3, "no attachment absent");
    let extended = parsed(&stdout(&agent.run(&["extend", "a", "-ojson"]).success()));
    assert_eq!((&extended["changed"], &extended["operation_id"]), (&json!(false), &json!(null)));
}

#[test]
fn volumes_are_managed_and_let_go() {
    let agent = Agent::start();
    let entries = parsed(&stdout(&agent.run(&["manageable", "lvm:vg", "-ojson"]).success()));
    assert_eq!(entries[0]["reason_not_safe"], json!(null));
    let managed = agent.run(&["manage", "lvm:vg/lv", "--id", "u", "--name", "web", "--allow-in-use"]).success();
    assert!(stdout(&managed).contains("| origin   | lvm:vg/lv "));
    agent.run(&["unmanage", "u", "--keep-name"]).success();
    let all = agent.run(&["volumes"]).success();
    assert!(stdout(&all).contains("| web  |"));
    assert_eq!(stderr(&all), "mortar: rbd:gone cannot be looked at: no answer\n");
    let all = agent.run(&["volumes", "-ojson"]).success();
    assert_eq!(parsed(&stderr(&all))["warning"], "rbd:gone cannot be looked at: no answer");
    assert_eq!(stderr(&agent.run(&["volumes", "file:/srv"]).success()), "");

    let asked = agent.asked();
    let manage = v1::ManageRequest {
        locator: "lvm:vg/lv".into(),
        id: "u".into(),
        name: "web".into(),
        allow_in_use: true,
        dry_run: false,
    };
    assert_eq!(asked.manage, [manage]);
    assert_eq!(asked.unmanage, [v1::UnmanageRequest { id: "u".into(), keep_name: true }]);
    assert_eq!(asked.scopes, ["lvm:vg", "", "", "file:/srv"]);
}

#[test]
fn what_is_amiss_is_shown_and_told_by_the_exit_code() {
    let agent = Agent::start();
    let amiss = agent.run(&["doctor"]).code(1);
    let shown = stdout(&amiss);
    assert!(shown.contains("| orphan | loop | /dev/loop0 | /srv/a.raw  | nobody has it |"), "{shown}");
    assert!(shown.contains("| warning  | the clock |") && !shown.contains("/dev/loop1"), "{shown}");
    assert_eq!(stderr(&amiss), "mortar: 1 orphan, 1 warning; mortar doctor --repair takes orphans away\n");
    assert!(stdout(&agent.run(&["doctor", "--all"]).code(1)).contains("| foreign | loop | /dev/loop1 |"));

    let json = agent.run(&["doctor", "-ojson"]).code(1);
    assert_eq!(parsed(&stderr(&json))["error"]["reason"], "NOT_IN_ORDER");
    let json = parsed(&stdout(&json));
    assert_eq!((&json["in_order"], &json["objects"][0]["repair"]), (&json!(false), &json!(null)));
    assert_eq!(json["findings"][0]["severity"], "warning");

    let repaired = agent.run(&["doctor", "--repair", "--timeout", "5m"]).success();
    assert!(stdout(&repaired).contains("| removed |"), "{}", stdout(&repaired));
    assert!(stdout(&repaired).ends_with("1 orphan removed; 1 warning\n"), "{}", stdout(&repaired));
    assert_eq!(stderr(&repaired), "");
    assert_eq!(
        agent.asked().diagnose.last().unwrap(),
        &v1::DiagnoseRequest { repair: true, timeout_ms: 300_000, dry_run: false }
    );
}

#[test]
fn the_host_is_shown_on_one_screen() {
    let agent = Agent::start();
    let well = stdout(&agent.run(&["status"]).success());
    for line in [
        "| host        | hv1 ",
        "| attachments | 2: 2 ready ",
        "| running     | attach a, waits for: run lvm lvchange |",
        "| instances   | 1: 1 running ",
    ] {
        assert!(well.contains(line), "{line} is missing in:\n{well}");
    }
    assert!(!well.contains("not asked"), "{well}");
    let json = parsed(&stdout(&agent.run(&["status", "-ojson"]).success()));
    assert_eq!((&json["in_order"], &json["attachments"]["states"]["ready"]), (&json!(true), &json!(2)));
    assert_eq!((&json["operations"][0]["kind"], &json["exports"]["count"]), (&json!("attach"), &json!(1)));
    assert!(agent.asked().operations[0].running_only);

    agent.lose_the_journal();
    let amiss = agent.run(&["status"]).code(1);
    assert!(stdout(&amiss).contains("| not asked   | operations: the journal is lost "), "{}", stdout(&amiss));
    assert!(stdout(&amiss).contains("| attachments | 2: 2 ready "), "what answers is shown");
    assert_eq!(stderr(&amiss), "mortar: something is amiss; mortar doctor says what to do about it\n");
    let json = agent.run(&["status", "-ojson"]).code(1);
    assert_eq!(parsed(&stdout(&json))["operations"], json!(null));
    assert_eq!(parsed(&stderr(&json))["error"]["reason"], "NOT_IN_ORDER");
}

#[test]
fn operations_host_and_events_are_shown() {
    let agent = Agent::start();
    let list = parsed(&stdout(&agent.run(&["operations", "--running", "--limit", "5", "-ojson"]).success()));
    assert_eq!((&list[0]["kind"], &list[0]["state"]), (&json!("attach"), &json!("running")));
    assert_eq!(agent.asked().operations, [v1::ListOperationsRequest { running_only: true, limit: 5 }]);
    assert!(stdout(&agent.run(&["operations", "0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10"]).success()).contains("attach"));
    assert_eq!(parsed(&stdout(&agent.run(&["host", "-ojson"]).success()))["name"], "hv1");
    let cancelled = parsed(&stdout(&agent.run(&["cancel", "o", "-ojson"]).success()));
    assert_eq!((&cancelled["changed"], &cancelled["operation"]["kind"]), (&json!(true), &json!("attach")));
    assert!(stdout(&agent.run(&["cancel", "o"]).success()).contains("| changed"));
    refused(agent.run(&["cancel", "late"]), 4, "changed something already");

    let watched = agent.run(&["watch", "-ojson"]).code(5);
    let events: Vec<_> = stdout(&watched).lines().map(|line| parsed(line)["event"].clone()).collect();
    assert_eq!(events, ["attachment", "operation", "attachment_gone"]);
    assert!(stderr(&watched).contains("ended the watch"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let agent = Agent::start();
    for arguments in [&["list"][..], &["watch"], &["completions", "bash"], &["man"], &["--help"]] {
        #[expect(clippy::disallowed_methods, reason = "assert_cmd cannot close a pipe")]
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("mortar"))
            .args(arguments)
            .env("MORTAR_SOCKET", agent.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{arguments:?}");
    }
}

#[test]
fn help_says_everything() {
    let help = |arguments: &[&str]| stdout(&mortar(Path::new("/nowhere")).args(arguments).assert().success());
    let main = help(&["--help"]);
    for words in ["Exit codes:", "6  not permitted", "MORTAR_SOCKET", "a bare number is seconds", "attach", "watch"] {
        assert!(main.contains(words), "{words} is missing in:\n{main}");
    }
    assert!(!main.contains("manual pages"));
    for command in ["attach", "detach", "manage"] {
        assert!(help(&[command, "--help"]).contains("Examples:"));
    }
    assert!(help(&["attach", "--help"]).contains("in bytes"));
    assert!(help(&["--version"]).starts_with("mortar 0."));
}

#[test]
fn an_endpoint_needs_a_certificate() {
    let mortar = || {
        let mut command = assert_cmd::Command::cargo_bin("mortar").unwrap();
        command.args(["--endpoint", "https://127.0.0.1:1", "list"]);
        command
    };
    refused(mortar().assert(), 2, "--endpoint needs --cert, --key and --ca");
    let nowhere = |command: &mut assert_cmd::Command| {
        command.args(["--cert", "/nowhere", "--key", "/nowhere", "--ca", "/nowhere"]).assert()
    };
    refused(nowhere(&mut mortar()), 2, "/nowhere cannot be used");
}

#[test]
fn a_shell_completes_what_the_agent_knows() {
    let agent = Agent::start();
    // As fish asks: the words, the last of which is being typed.
    let ask = |mut command: assert_cmd::Command, line: &str| {
        let words = line.split(' ').collect::<Vec<_>>();
        let asked = command.env("MORTAR_COMPLETE", "fish").arg("--").args(words).assert().success();
        assert_eq!(stderr(&asked), "", "{line}");
        let told = stdout(&asked);
        let offers = told.lines().map(|line| line.split('\t').next().unwrap_or_default());
        // A flag may come next, too.
        offers.filter(|offer| !offer.starts_with("--")).map(str::to_owned).collect::<Vec<_>>()
    };
    let offered = |line: &str| ask(agent.mortar(&[]), line);
    assert_eq!(offered("mortar att"), ["attach"]);
    assert_eq!(offered("mortar detach a"), ["a"]);
    assert_eq!(offered("mortar extend "), ["a", "b"]);
    assert_eq!(offered("mortar show w"), ["web1"]);
    assert_eq!(offered("mortar unmanage 9394"), ["9394b827-4ad0-488e-8df8-26476b3a8662"]);
    assert_eq!(offered("mortar volumes lvm"), ["lvm:vg"]);
    assert_eq!(offered("mortar unexport "), ["a"]);
    assert_eq!(offered("mortar instance stop w"), ["web1"]);
    assert_eq!(offered("mortar cancel 0"), ["0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10"]);
    assert_eq!(offered("mortar rescue web1 --layout s"), ["stable"]);
    assert_eq!(offered("mortar explain FL"), ["FLUSH_FAILED"]);

    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("agent.sock");
    assert_eq!(ask(mortar(&socket), "mortar extend "), [""; 0], "nobody is there");
    let _frozen = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let start = Instant::now();
    assert_eq!(ask(mortar(&socket), "mortar extend "), [""; 0], "nobody answers");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// A shell of this host runs a script, with `mortar` at hand and a home of its own; what it printed.
fn shell(name: &str, script: &str, agent: &Agent) -> String {
    let home = TempDir::new().expect("a home");
    let bin = assert_cmd::cargo::cargo_bin!("mortar").parent().expect("its directory").display().to_string();
    let mut shell = assert_cmd::Command::new(name);
    shell.args(["-c", script]).env_clear().env("PATH", format!("{bin}:/usr/bin:/bin")).env("TERM", "dumb");
    shell.env("HOME", home.path()).env("MORTAR_SOCKET", agent.socket()).timeout(Duration::from_secs(60));
    stdout(&shell.assert().success())
}

#[test]
fn bash_completes_by_the_script() {
    let script = "eval \"$(mortar completions bash)\"; COMP_WORDS=(mortar extend ''); COMP_CWORD=2; COMP_TYPE=9; \
                  _clap_complete_mortar mortar '' extend; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let offered = shell("bash", script, &Agent::start());
    assert!(offered.starts_with("a\nb\n--"), "{offered}");
}

/// The script as the package installs it, by the keys of somebody who types.
#[test]
fn zsh_completes_by_the_script() {
    // The inner shell says when it reads keys, and ^X tells what stands on its line by then.
    let script = r#"
        mkdir $HOME/functions; mortar completions zsh >$HOME/functions/_mortar
        cat >$HOME/setup <<'END'
            fpath=($HOME/functions $fpath); PROMPT=
            autoload -Uz compinit; compinit -u -d $HOME/dump
            zle-line-init() { print READY; }; zle -N zle-line-init
            tell() { print -r -- $BUFFER >>$HOME/lines; BUFFER=; print TOLD; }; zle -N tell; bindkey '^X' tell
END
        zmodload zsh/zpty
        zpty inner zsh -f -i
        zpty -w inner 'source $HOME/setup'
        zpty -r inner said '*READY*'
        for typed in 'mortar att' 'mortar show w' 'mortar volumes lv' 'mortar detach '; do
            zpty -w -n inner $typed$'\t\x18'
            zpty -r inner said '*TOLD*'
        done
        cat $HOME/lines"#;
    let lines = shell("zsh", script, &Agent::start());
    assert_eq!(lines, "mortar attach \nmortar show web1 \nmortar volumes lvm:vg \nmortar detach \n");
}

#[test]
fn fish_completes_by_the_script() {
    let script = "mortar completions fish | source
                  for typed in 'mortar att' 'mortar show w' 'mortar volumes lv' 'mortar extend '
                      complete --do-complete $typed
                  end";
    let offered = shell("fish", script, &Agent::start());
    let offered: Vec<_> = offered.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
    assert_eq!(offered[..5], ["attach", "web1", "lvm:vg", "a", "b"]);
}

#[test]
fn completions_and_manual_pages_need_no_agent() {
    let dir = TempDir::new().unwrap();
    let nowhere = Path::new("/nowhere");
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&mortar(nowhere).args(["completions", shell]).assert().success()).contains("mortar"));
    }
    mortar(nowhere).arg("man").arg(dir.path()).assert().success();
    for page in ["mortar.1", "mortar-attach.1", "mortar-unmanage.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    assert!(!dir.path().join("mortar-man.1").exists());
    refused(mortar(nowhere).args(["man", "/no/such/dir"]).assert(), 2, "/no/such/dir");
}

#[test]
fn a_line_that_does_not_parse_is_one_sentence() {
    let agent = Agent::start();
    refused(agent.run(&["attach"]), 2, "<LOCATOR|--connection-info <FILE>>");
    refused(agent.run(&["detach"]), 2, "<TARGET|--connection-info <FILE>>");
    refused(agent.run(&["detach", "--foo"]), 2, "unexpected argument '--foo'");
    refused(agent.run(&["attach", "lvm:vg/lv", "--id", ""]), 2, "--id");
    refused(agent.run(&["attach", "lvm:vg/lv", "--size", "0"]), 2, "more than 0");
    refused(agent.run(&["operations", "--limit", "10001"]), 2, "10001");
    agent.run(&[]).code(2);
    assert!(agent.asked().attach.is_empty());
}

#[test]
fn an_export_is_handed_on_as_json_and_shown_without_its_password() {
    let agent = Agent::start();
    let line =
        ["export", "lvm:vg/lv", "--initiator", "iqn.2026-11.org.example:other", "--portal", "10.0.0.5", "--id", "a"];
    let shown = stdout(&agent.run(&line).success());
    assert!(shown.contains("iqn.2026-11.org.example:host:export-a") && !shown.contains("secret"), "{shown}");
    let handed = agent.run(&[&line[..], &["--output", "json"]].concat()).success();
    let info = json!({ "driver_volume_type": "iscsi", "data": { "auth_password": "secret" } });
    assert_eq!(parsed(&stdout(&handed)), info);
    {
        let asked = agent.asked();
        let request = &asked.export[0];
        assert_eq!((request.id.as_str(), request.portals.as_slice()), ("a", ["10.0.0.5".to_owned()].as_slice()));
        assert_eq!((request.initiator.as_str(), request.read_only), ("iqn.2026-11.org.example:other", false));
    }
    assert_eq!(parsed(&stdout(&agent.run(&["exports", "-ojson"]).success()))[0]["ready"], true);
    agent.run(&["unexport", "lvm:vg/lv"]).success();
    assert_eq!(agent.asked().unexport[0].target, Some(v1::unexport_request::Target::Locator("lvm:vg/lv".into())));
    refused(agent.run(&["unexport", "stuck"]), 4, "the activation lvm:vg/lv is still there");
    refused(agent.run(&["export", "lvm:vg/lv"]), 2, "--initiator");
}
