//! Starting tools: an empty environment, a bounded number at a time, and never a write killed half-way.

use crate::{Command, Error, Output, Result, Tool, step};
use secrecy::ExposeSecret;
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::Semaphore,
    time::{Instant, timeout},
};

/// How long a tool waits for others of its kind to end, when the most that may run at a time do.
const QUEUE: Duration = Duration::from_secs(300);

/// Tells our tools from everybody else's, so that a later agent finds those that outlived us.
const MARK: (&str, &str) = ("STARTED_BY", "mortard");

/// How many runs of a tool go on at a time: so many of each, so that a tool that hangs keeps no other from running.
#[derive(Debug)]
pub(super) struct Slots {
    iscsiadm: Arc<Semaphore>,
    lvm: Arc<Semaphore>,
    rbd: Arc<Semaphore>,
    qemu_img: Arc<Semaphore>,
}

impl Slots {
    pub(super) fn new(each: usize) -> Self {
        let slots = || Arc::new(Semaphore::new(each));
        Self { iscsiadm: slots(), lvm: slots(), rbd: slots(), qemu_img: slots() }
    }

    fn of(&self, tool: Tool) -> Arc<Semaphore> {
        Arc::clone(match tool {
            Tool::Iscsiadm => &self.iscsiadm,
            Tool::Lvm => &self.lvm,
            Tool::Rbd => &self.rbd,
            Tool::QemuImg => &self.qemu_img,
        })
    }
}

/// Runs a tool in a task of its own, so that it goes on when the caller stops waiting; a reader is killed then.
pub(super) async fn run(slots: &Slots, command: Command) -> Result<Output> {
    let tool = command.tool.name();
    // A queue is no fault of the tool's: its own time begins when it does.
    let Ok(Ok(slot)) = timeout(QUEUE, slots.of(command.tool).acquire_owned()).await else {
        return Err(Error::TimedOut { what: format!("the wait to run {}", command.line()), after: QUEUE });
    };
    let started = Instant::now();
    let program = command.tool.places().into_iter().find(|path| path.is_file());
    let Some(program) = program else {
        return Err(Error::Start { tool, source: std::io::ErrorKind::NotFound.into() });
    };
    let mut child = tokio::process::Command::new(program)
        .args(&command.args)
        .env_clear()
        .envs(command.settings.iter().map(|(name, value)| (name, value)))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env(MARK.0, MARK.1)
        .current_dir("/")
        .stdin(if command.input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // In a group of its own, a signal for the agent's group (a Ctrl-C, say) does not reach it.
        .process_group(0)
        .kill_on_drop(!command.writes)
        .spawn()
        .map_err(|source| Error::Start { tool, source })?;
    step::is_process(child.id());
    let step = step::current();
    let stdin = child.stdin.take().zip(command.input.clone());
    let ended = async move {
        if let Some((mut stdin, input)) = stdin {
            // One that does not read it says why by its exit code.
            let _unread = stdin.write_all(input.expose_secret().as_bytes()).await;
        }
        let output = child.wait_with_output().await;
        drop((slot, step));
        output
    };
    let output = if command.writes {
        match timeout(command.timeout, tokio::spawn(ended)).await {
            Ok(Ok(output)) => output,
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => return Err(timed_out(&command)),
        }
    } else {
        timeout(command.timeout, ended).await.map_err(|_| timed_out(&command))?
    };
    let output = output.map_err(|source| Error::Start { tool, source })?;
    let output = Output {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    let (line, took) = (command.line(), started.elapsed().as_millis());
    tracing::debug!(command = line, code = output.code, "ran {line}: exit {} after {took} ms", output.code);
    Ok(output)
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn timed_out(command: &Command) -> Error {
    Error::TimedOut { what: command.line(), after: command.timeout }
}

/// What the kernel tells of a process in one line.
pub(super) struct Stat {
    pub(super) parent: u32,
    /// `PF_…` of the kernel (`include/linux/sched.h`).
    pub(super) flags: u64,
}

/// What stands in a process's `stat` (proc_pid_stat(5)): `PID (COMMAND) STATE PPID PGRP SESSION TTY TPGID FLAGS …`. The command
/// may hold anything, so what counts comes after its last bracket. `None` if the process has gone.
pub(super) fn stat(process: &Path) -> Option<Stat> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
    Some(Stat { parent: fields.next()?.parse().ok()?, flags: fields.nth(4)?.parse().ok()? })
}

/// The command lines of tools that carry our mark and whose agent is gone: they have another parent now. A daemon that a
/// tool started (dmeventd, iscsid) has inherited the mark, and is none of them.
pub(super) fn orphans() -> Vec<String> {
    let mark = format!("{}={}", MARK.0, MARK.1);
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let orphan = |directory: PathBuf| {
        let program = fs::read_link(directory.join("exe")).ok()?;
        let program = program.file_name()?.to_str()?;
        // A package's update may have put another one in its place.
        let program = program.strip_suffix(" (deleted)").unwrap_or(program);
        Tool::ALL.into_iter().find(|tool| tool.name() == program)?;
        let environment = fs::read(directory.join("environ")).ok()?;
        environment.split(|byte| *byte == 0).find(|setting| *setting == mark.as_bytes())?;
        let parent = stat(&directory)?.parent;
        let parent_is_an_agent = fs::read_to_string(format!("/proc/{parent}/comm"))
            .is_ok_and(|command| command.trim().starts_with("mortard"));
        let line = fs::read(directory.join("cmdline")).ok()?;
        (!parent_is_an_agent).then(|| String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned())
    };
    processes.filter_map(|entry| orphan(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process, time::Duration};

    #[tokio::test]
    async fn a_tool_that_hangs_keeps_no_other_from_running() {
        let slots = Slots::new(1);
        let _hung = slots.of(Tool::Lvm).acquire_owned().await.unwrap();
        let version = |tool| Command::read(tool, ["--version"]);
        let second = timeout(Duration::from_millis(100), run(&slots, version(Tool::Lvm))).await;
        assert!(second.is_err(), "it waits: {second:?}");
        let other = run(&slots, version(Tool::Iscsiadm)).await;
        assert!(matches!(other, Ok(_) | Err(Error::Start { .. })), "{other:?}");
    }

    /// A shell by another name, which waits until it is dropped.
    struct Shell(process::Child);

    impl Shell {
        fn start(directory: &Path, name: &str) -> Self {
            let program = directory.join(name);
            // A process of its own copies it: our descriptor could be inherited by another test's process, and an
            // executable that is open for writing does not start.
            let copied = process::Command::new("cp").args([Path::new("/bin/sh"), &program]).status().unwrap();
            assert!(copied.success());
            let mut command = process::Command::new(&program);
            command.args(["-c", "read line"]).env(MARK.0, MARK.1).stdin(Stdio::piped());
            Self(command.spawn().unwrap())
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn the_daemons_that_tools_start_did_not_outlive_them() {
        let directory = tempfile::tempdir().unwrap();
        let _running = ["lvm", "iscsiadm", "dmeventd", "iscsid"].map(|name| Shell::start(directory.path(), name));
        fs::remove_file(directory.path().join("iscsiadm")).unwrap();
        let here = format!("{}/", directory.path().display());
        let mut ours: Vec<String> =
            orphans().iter().filter_map(|line| line.strip_prefix(&here)).map(str::to_owned).collect();
        ours.sort();
        assert_eq!(ours, ["iscsiadm -c read line", "lvm -c read line"]);
    }
}
