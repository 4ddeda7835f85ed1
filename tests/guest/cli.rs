//! The tests' hands: `mortar` as an operator calls it, and what they watch the machine with meanwhile.

use serde_json::Value;
use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tests::reliability::{Row, Where, note};

/// How one call of `mortar --output json` ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// The answer of a call that has to succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        assert_eq!(self.err, "", "a success says nothing on stderr");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The message of a call that has to be refused with this exit code and reason.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, reason: &str) -> String {
        assert_eq!(self.code, code, "out: {} err: {}", self.out, self.err);
        assert_eq!(self.out, "", "a failure says nothing on stdout");
        let error: Value = serde_json::from_str(&self.err).unwrap_or_else(|why| panic!("{why}: {}", self.err));
        let message = error["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(error["error"]["reason"], reason, "{message}");
        assert!(!message.is_empty() && !message.contains('\n'), "not one sentence: {message:?}");
        message
    }
}

/// A call that runs.
pub(crate) struct Running {
    child: Child,
    started: Instant,
}

impl Running {
    /// The caller goes, by SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn end(self) -> Ran {
        let output = self.child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            took: self.started.elapsed(),
        }
    }
}

/// Starts `mortar --output json` with these arguments.
pub(crate) fn start(args: &[&str]) -> Running {
    start_with(args, Stdio::null())
}

fn start_with(args: &[&str], stdin: Stdio) -> Running {
    let started = Instant::now();
    let mut command = Command::new("/usr/bin/mortar");
    command.args(["--output", "json"]).args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running { child: command.spawn().unwrap(), started }
}

/// Runs `mortar --output json` with these arguments.
pub(crate) fn mortar(args: &[&str]) -> Ran {
    start(args).end()
}

/// As [`mortar`], with something on its stdin.
pub(crate) fn mortar_reading(args: &[&str], input: &str) -> Ran {
    let mut running = start_with(args, Stdio::piped());
    running.child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    running.end()
}

/// Attaches under an id.
#[track_caller]
pub(crate) fn attach(id: &str, locator: &str) -> Value {
    mortar(&["attach", locator, "--id", id]).ok()
}

/// Detaches what is there.
#[track_caller]
pub(crate) fn detach(target: &str) {
    let gone = mortar(&["detach", target]).ok();
    assert!(gone["changed"] == true && gone["residuals"] == Value::Array(Vec::new()), "{gone}");
}

/// Looks until there is something to see; what it waits for has a deadline and no other pause.
#[track_caller]
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A string in an answer.
#[track_caller]
pub(crate) fn text<'a>(answer: &'a Value, key: &str) -> &'a str {
    answer[key].as_str().unwrap_or_else(|| panic!("no {key} in {answer}"))
}

/// The names in a directory, sorted; none if it is not there.
pub(crate) fn names(directory: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A small file's text without its last newline; empty if it is not there.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

/// Every iSCSI session, as `session3 IQN INTERFACE`.
pub(crate) fn sessions() -> Vec<String> {
    let class = "/sys/class/iscsi_session";
    let line = |name: &String| {
        let attribute = |attribute: &str| read(format!("{class}/{name}/{attribute}"));
        format!("{name} {} {}", attribute("targetname"), attribute("ifacename"))
    };
    names(class).iter().map(line).collect()
}

/// The pid of the service's main process.
pub(crate) fn main_pid() -> String {
    let pid = crate::machine::sh("systemctl show --property MainPID --value mortard");
    assert!(pid != "0" && !pid.is_empty(), "mortard does not run");
    pid
}

/// Says a measured figure past the harness, which keeps what a test prints to itself.
pub(crate) fn figure(what: &str, value: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "-- {what}: {value}");
}

/// Notes how an attempt to be given the wrong device ended.
pub(crate) fn wrong_device(attempt: &str, driver: &str, refusal: &str) {
    figure(attempt, refusal);
    let (attempt, driver, refusal) = (attempt.to_owned(), driver.to_owned(), refusal.to_owned());
    note(&Row::WrongDevice { attempt, driver, shown: Where::Guest, refusal });
}

/// Changes the service's config and restarts it; dropped, the old config comes back.
pub(crate) struct Reconfigured {
    before: String,
}

const CONFIG: &str = "/etc/mortar/mortard.toml";

impl Reconfigured {
    pub(crate) fn new(from: &str, to: &str) -> Self {
        let before = std::fs::read_to_string(CONFIG).unwrap();
        let after = before.replace(from, to);
        assert_ne!(before, after, "{from} is not in the config");
        std::fs::write(CONFIG, after).unwrap();
        let this = Self { before };
        crate::machine::sh("systemctl restart mortard");
        this
    }

    /// For a test that writes the config itself.
    pub(crate) fn later() -> Self {
        Self { before: std::fs::read_to_string(CONFIG).unwrap() }
    }
}

impl Drop for Reconfigured {
    fn drop(&mut self) {
        let _ = std::fs::write(CONFIG, &self.before);
        crate::machine::try_sh("systemctl restart mortard");
    }
}

/// `strace` on the running service: every program it starts, with its whole argv and environment.
pub(crate) struct Execs {
    strace: Child,
    log: String,
}

impl Execs {
    pub(crate) fn watch() -> Self {
        let pid = main_pid();
        let log = format!("/run/execs.{pid}.{}", std::process::id());
        let args = ["-f", "-v", "-s", "65536", "-e", "trace=execve", "-e", "signal=none", "-o", &log, "-p", &pid];
        let strace = Command::new("/usr/bin/strace").args(args).stderr(Stdio::null()).spawn().unwrap();
        until("strace", Duration::from_secs(10), || {
            let traced = names(&format!("/proc/{pid}/task")).iter().all(|thread| {
                let status = read(format!("/proc/{pid}/task/{thread}/status"));
                let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
                tracer.is_some_and(|tracer| tracer.trim() != "0")
            });
            traced.then_some(())
        });
        Self { strace, log }
    }

    /// What was seen until now. The lines of programs that run still may be missing.
    pub(crate) fn seen(&self) -> String {
        read(&self.log)
    }
}

impl Drop for Execs {
    fn drop(&mut self) {
        // Killed with SIGKILL, it leaves the service stopped; by SIGTERM it lets go.
        crate::machine::try_sh(&format!("kill -TERM {}", self.strace.id()));
        let _ = self.strace.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}
