//! How many processes somebody starts: strace follows it and all its children, and each that a system call brought is counted,
//! threads aside. What udev starts at a device's coming and going is nobody's: it is not counted for anybody.
//!
//! A traced process is slow, so counting has rounds of its own, in which no time is taken.

use crate::machine::{entries, read, run, spin};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Watches one process.
pub(crate) struct Watch {
    strace: Child,
    logs: PathBuf,
}

impl Watch {
    pub(crate) fn on(pid: u32) -> Self {
        let logs = PathBuf::from(format!("/run/bench-trace.{pid}"));
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir(&logs).unwrap();
        let strace = Command::new("/usr/bin/strace")
            .args(["-ff", "-q", "-e", TRACED, "-e", "signal=none", "-p", &pid.to_string(), "-o"])
            .arg(logs.join("log"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        spin(|| {
            let all = entries(format!("/proc/{pid}/task")).iter().all(|thread| {
                let status = read(thread.join("status"));
                status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
            });
            all.then_some(())
        });
        Self { strace, logs }
    }

    /// How many were started so far.
    pub(crate) fn count(&self) -> usize {
        started(&self.logs)
    }
}

/// How many a command is, with all that it starts, and what it printed.
pub(crate) fn of_command(tool: &str, arguments: &[&str]) -> (usize, String) {
    let logs = Path::new("/run/bench-trace.command");
    let _ = fs::remove_dir_all(logs);
    fs::create_dir(logs).unwrap();
    let log = logs.join("log");
    let traced = ["-ff", "-q", "-e", TRACED, "-e", "signal=none", "-o", log.to_str().unwrap(), tool];
    let said = run("/usr/bin/strace", &[&traced[..], arguments].concat());
    let count = 1 + started(logs);
    let _ = fs::remove_dir_all(logs);
    (count, said)
}

const TRACED: &str = "trace=fork,vfork,clone,clone3";

/// The processes in the logs of all that was traced.
fn started(logs: &Path) -> usize {
    let started = |line: &str| {
        // `vfork() = 123`; a thread shares everything with its process, and a failure is a negative number.
        let id = line.rsplit_once(" = ").and_then(|(_, id)| id.trim().parse::<u32>().ok());
        id.is_some_and(|id| id > 0) && !line.contains("CLONE_THREAD")
    };
    entries(logs).iter().map(|log| read(log).lines().filter(|line| started(line)).count()).sum()
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Killed with SIGKILL, it leaves those it watches stopped; by SIGTERM it lets go.
        let _ = Command::new("/bin/kill").args(["-TERM", &self.strace.id().to_string()]).status();
        let _ = self.strace.wait();
        let _ = fs::remove_dir_all(&self.logs);
    }
}
