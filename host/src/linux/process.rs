//! Starting tools: an empty environment, a bounded number at a time, and never a write killed half-way.

use crate::{Command, Error, Output, Result, command::tool_directories};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// Tells our tools from everybody else's, so that a later agent finds those that outlived us.
const MARK: (&str, &str) = ("STARTED_BY", "mortard");

/// Runs a tool in a task of its own, so that it goes on when the caller stops waiting; a reader is killed then.
pub(super) async fn run(limit: &Arc<Semaphore>, command: Command) -> Result<Output> {
    let tool = command.tool.name();
    let started = Instant::now();
    let slot = Arc::clone(limit).acquire_owned();
    let Ok(Ok(slot)) = timeout(command.timeout, slot).await else {
        return Err(timed_out(&command));
    };
    let program = tool_directories().map(|directory| directory.join(tool)).find(|path| path.is_file());
    let Some(program) = program else {
        return Err(Error::Start { tool, source: std::io::ErrorKind::NotFound.into() });
    };
    let child = tokio::process::Command::new(program)
        .args(&command.args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env(MARK.0, MARK.1)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // In a group of its own, a signal for the agent's group (a Ctrl-C, say) does not reach it.
        .process_group(0)
        .kill_on_drop(!command.writes)
        .spawn()
        .map_err(|source| Error::Start { tool, source })?;
    let ended = async move {
        let output = child.wait_with_output().await;
        drop(slot);
        output
    };
    let left = command.timeout.saturating_sub(started.elapsed());
    let output = if command.writes {
        match timeout(left, tokio::spawn(ended)).await {
            Ok(Ok(output)) => output,
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => return Err(timed_out(&command)),
        }
    } else {
        timeout(left, ended).await.map_err(|_| timed_out(&command))?
    };
    let output = output.map_err(|source| Error::Start { tool, source })?;
    let output = Output {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    tracing::debug!(
        command = command.line(),
        code = output.code,
        milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "ran"
    );
    Ok(output)
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn timed_out(command: &Command) -> Error {
    Error::TimedOut { what: command.line(), after: command.timeout }
}

/// The command lines of tools that carry our mark and whose agent is gone: they have another parent now.
pub(super) fn orphans() -> Vec<String> {
    let mark = format!("{}={}", MARK.0, MARK.1);
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let orphan = |directory: PathBuf| {
        let environment = fs::read(directory.join("environ")).ok()?;
        environment.split(|byte| *byte == 0).find(|setting| *setting == mark.as_bytes())?;
        // `PID (COMMAND) STATE PPID …`; the command may hold anything, so what counts comes after its last bracket.
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
        let parent_is_an_agent = fs::read_to_string(format!("/proc/{parent}/comm"))
            .is_ok_and(|command| command.trim().starts_with("mortard"));
        let line = fs::read(directory.join("cmdline")).ok()?;
        (!parent_is_an_agent).then(|| String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned())
    };
    processes.filter_map(|entry| orphan(entry.ok()?.path())).collect()
}
