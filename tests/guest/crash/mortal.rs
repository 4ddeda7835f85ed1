//! The agent that dies after so many effects (`mortard-crash.rs`), in the service's place: started without systemd, whose part
//! in it would take longer than the agent's.

use crate::{
    cli::until,
    machine::{sh, try_sh},
};
use driver::Backend;
use std::{
    fmt::Debug,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Stdio,
    time::Duration,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    time::timeout,
};

const PROGRAM: &str = "/usr/sbin/mortard-crash";
const DIRECTORY: &str = "/run/mortar-crash";
const CONFIG: &str = "/run/mortar-crash/mortard.toml";
const LEFT: &str = "/run/mortar-crash/left";
const LOG: &str = "/run/mortar-crash/log";
const NOTIFIED: &str = "/run/mortar-crash/notified";
const SAID: &str = "/run/mortar-crash/said";
const SIGKILL: i32 = 9;

pub(crate) struct Mortal {
    agent: Option<Child>,
    notified: UnixDatagram,
}

impl Mortal {
    /// The service stops until this is dropped. With one driver only, because each asks its tool for its version at every start.
    pub(crate) async fn in_its_place(driver: Backend) -> Self {
        let built = concat!("/mnt/host", env!("CARGO_BIN_EXE_mortard-crash"));
        sh(&format!(
            "systemctl stop mortard.socket mortard; rm -rf {DIRECTORY}; mkdir {DIRECTORY}; [[ -e {PROGRAM} ]] || install {built} {PROGRAM}"
        ));
        fs::write(CONFIG, format!("[agent]\ndrivers = [\"{driver}\"]\n")).unwrap();
        let mut this = Self { agent: None, notified: UnixDatagram::bind(NOTIFIED).unwrap() };
        assert!(this.start().await, "it died without having been told to");
        this
    }

    /// Starts it, and returns when it serves, or else (`false`) is dead by then.
    pub(crate) async fn start(&mut self) -> bool {
        let said = File::options().create(true).append(true).open(SAID).unwrap();
        let mut command = Command::new(PROGRAM);
        command.env("NOTIFY_SOCKET", NOTIFIED).stdin(Stdio::null()).stderr(said).process_group(0);
        let mut agent = command.spawn().unwrap();
        let mut word = [0; 64];
        let serves = tokio::select! {
            heard = self.notified.recv(&mut word) => heard.is_ok(),
            ended = agent.wait() => {
                assert_eq!(ended.unwrap().signal(), Some(SIGKILL), "it ended by itself\n{}", said_last());
                false
            }
            () = tokio::time::sleep(Duration::from_secs(120)) => panic!("it does not get ready\n{}", said_last()),
        };
        self.agent = serves.then_some(agent);
        serves
    }

    /// From now on it has so many effects to live, however often it is started, and they are noted down.
    pub(crate) fn arm(&self, effects: usize) {
        let _none = fs::remove_file(LOG);
        fs::write(LEFT, effects.to_string()).unwrap();
    }

    /// It lives on; the effects since it was armed.
    pub(crate) fn disarm(&self) -> Vec<String> {
        let _gone_already = fs::remove_file(LEFT);
        fs::read_to_string(LOG).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// It was armed, and has not died of it.
    pub(crate) fn is_armed(&self) -> bool {
        Path::new(LEFT).exists()
    }

    /// It has not been seen to die.
    pub(crate) fn lives(&mut self) -> bool {
        let ended = self.agent.as_mut().is_none_or(|agent| agent.try_wait().unwrap().is_some());
        if ended {
            self.agent = None;
        }
        !ended
    }

    /// Returns when it has died as it was told to, while it was to answer.
    pub(crate) async fn death(&mut self, answer: &dyn Debug) {
        let agent = self.agent.as_mut().unwrap();
        let ended = timeout(Duration::from_secs(10), agent.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it lives, and answers {answer:?}\n{}", said_last())).unwrap();
        assert_eq!(ended.signal(), Some(SIGKILL), "it ended by itself\n{}", said_last());
        self.agent = None;
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            try_sh(&format!("tail -n 40 {SAID} >&2"));
        }
        if let Some(mut agent) = self.agent.take() {
            let _ended_already = agent.start_kill();
            until("its end", Duration::from_secs(30), || agent.try_wait().unwrap());
        }
        try_sh(&format!("rm -rf {DIRECTORY}; systemctl start mortard.socket mortard"));
    }
}

fn said_last() -> String {
    let said = fs::read_to_string(SAID).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
