//! The example controllers of the client library, in Rust and in Python, as a newcomer runs them.

use crate::{
    cli::{detach, figure, mortar, text, until},
    machine::{GuestStage, SOCKET, sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    fs::write,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tests::stage::Stage;

const WANTED: &str = "/run/wanted.txt";
/// They look every ten seconds, and the guest is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Clone, Copy)]
struct Controller(&'static str);

const BOTH: [Controller; 2] = [
    Controller("$GUEST_BINARIES/examples/controller"),
    Controller("python3 $GUEST_REPO/client/examples/controller.py"),
];

impl Controller {
    fn command(self, options: &str) -> Command {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &format!("exec {} {WANTED} {options}", self.0)]).env("MORTAR_SOCKET", SOCKET);
        command
    }

    /// One round; what it said, line by line.
    #[track_caller]
    fn once(self) -> Vec<String> {
        let ran = self.command("--once").output().unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}: {ran:?}", self.0);
        lines(&ran)
    }

    fn start(self) -> Child {
        self.command("").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn lines(ran: &Output) -> Vec<String> {
    String::from_utf8_lossy(&ran.stdout).lines().map(str::to_owned).collect()
}

fn want(volumes: &[(&str, &str)]) {
    let lines: Vec<String> = volumes.iter().map(|(id, locator)| format!("{id} {locator}\n")).collect();
    write(WANTED, lines.concat()).unwrap();
}

/// What is attached, as `ID LOCATOR STATE`.
fn attached() -> Vec<String> {
    let list = mortar(&["list"]).ok();
    let line = |one: &Value| format!("{} {} {}", text(one, "id"), text(one, "locator"), text(one, "state"));
    list.as_array().unwrap().iter().map(line).collect()
}

fn operations() -> Value {
    mortar(&["operations"]).ok()
}

#[tokio::test]
async fn the_host_becomes_what_the_file_says() {
    let mut stage = GuestStage::with_vg();
    let file = stage.volume(Backend::File, "wanted", 16 << 20).await;
    let lv = stage.volume(Backend::Lvm, "wanted", 16 << 20).await;
    let others = stage.volume(Backend::File, "others", 16 << 20).await;
    let before = stage.snapshot().await;
    mortar(&["attach", &others, "--id", "others"]).ok();
    let others = format!("others {others} ready");
    let (ready_file, ready_lv) = (format!("example-file {file} ready"), format!("example-lv {lv} ready"));
    for controller in BOTH {
        want(&[("example-file", &file), ("example-lv", &lv)]);
        assert_eq!(controller.once(), ["example-file: attached", "example-lv: attached"]);
        let all = [ready_file.clone(), ready_lv.clone(), others.clone()];
        assert_eq!(attached(), all);
        // Again is the same, also by the other one: not an operation more.
        let done = operations();
        for again in BOTH {
            assert_eq!(again.once(), Vec::<String>::new());
        }
        assert_eq!((operations(), attached()), (done, all.to_vec()));
        // A line that is gone detaches, and what others have attached stays.
        want(&[("example-file", &file)]);
        assert_eq!(controller.once(), ["example-lv: detached"]);
        assert_eq!(attached(), [ready_file.clone(), others.clone()]);
        // A line that names another volume.
        want(&[("example-file", &lv)]);
        assert_eq!(controller.once(), ["example-file: attached"]);
        assert_eq!(attached(), [format!("example-file {lv} ready"), others.clone()]);
        // What cannot be is said, and the rest is done; a file that says nothing sensible detaches nothing.
        want(&[("example-a", &stage.nowhere(Backend::File)), ("example-file", &file)]);
        let partly = controller.command("--once").output().unwrap();
        assert_eq!((partly.status.code(), lines(&partly)), (Some(1), vec!["example-file: attached".to_owned()]));
        let said = String::from_utf8_lossy(&partly.stderr).into_owned();
        assert!(said.starts_with("example-a: ") && said.lines().count() == 1, "{said}");
        for nonsense in ["others", "others file:/a.raw\n"] {
            write(WANTED, nonsense).unwrap();
            assert_eq!(controller.command("--once").output().unwrap().status.code(), Some(1), "{nonsense}");
        }
        std::fs::remove_file(WANTED).unwrap();
        assert_eq!(controller.command("--once").output().unwrap().status.code(), Some(1));
        assert_eq!(attached(), [ready_file.clone(), others.clone()]);
        want(&[]);
        assert_eq!(controller.once(), ["example-file: detached"]);
    }
    std::fs::remove_file(WANTED).unwrap();
    detach("others");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

#[tokio::test]
async fn what_breaks_or_goes_is_repaired() {
    let mut stage = GuestStage::bare();
    let file = stage.volume(Backend::File, "kept", 16 << 20).await;
    let ready = [format!("example-kept {file} ready")];
    let is_ready = || (attached() == ready).then_some(());
    want(&[("example-kept", &file)]);
    for controller in BOTH {
        let mut running = controller.start();
        until("the first round", PATIENCE, is_ready);
        // Somebody takes the device away behind the agent's back. It is heard, so they may be quicker than a look of ours.
        let device = mortar(&["show", "example-kept"]).ok();
        sh(&format!("losetup -d {}", text(&device, "path")));
        let gone = Instant::now();
        until("the device to come back", PATIENCE, is_ready);
        figure("a device is back after", format!("{:.1?}", gone.elapsed()));
        // Somebody detaches it. He is heard.
        detach("example-kept");
        until("the attachment to come back", PATIENCE, is_ready);
        // The agent is killed; the controller neither ends nor loses what it hears.
        sh("systemctl kill --signal KILL --kill-whom main mortard; systemctl restart mortard");
        detach("example-kept");
        until("the attachment to come back after the agent", PATIENCE, is_ready);
        // It is stopped, and what is attached stays.
        sh(&format!("kill -INT {}", running.id()));
        let ended = until("its end", PATIENCE, || running.try_wait().unwrap());
        assert!(ended.success(), "{}: {ended}", controller.0);
        let output = running.wait_with_output().unwrap();
        let times = lines(&output).iter().filter(|line| *line == "example-kept: attached").count();
        assert_eq!((times, is_ready()), (4, Some(())), "{}: {output:?}", controller.0);
        detach("example-kept");
    }
    std::fs::remove_file(WANTED).unwrap();
}
