//! Flushes, in a process of their own.
//!
//! A flush of a device that stands still stays in the kernel, and cannot be woken even by SIGKILL. A process with such a thread
//! does not end: its locks stay taken and systemd waits for it, so that no other agent could start on this host until the
//! device goes on. So another process does the flushing, for all devices, and has nothing that anybody needs: it is our own
//! program by another name, started with the first flush, and it ends with us or when its last device lets go of it.
//!
//! ```text
//!   agent ── "7 /dev/dm-3\n" ──▶ mortar-flush: a thread for each
//!         ◀── "7 0 done\n" ─────
//! ```

use super::{ioctls, open_device};
use crate::{Error, Result};
use nix::{fcntl::OFlag, unistd::fsync};
use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{ChildStdin, ExitCode, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

/// What the process is called; our program looks whether that is its name.
const NAME: &str = "mortar-flush";

/// Our own program, whatever has its file's name by now.
const OURSELVES: &str = "/proc/self/exe";

/// Writes all data of a device and forgets what was cached of it. Lasts as long as the device takes.
fn flush_now(device: &Path) -> Result<()> {
    let fd = open_device(device, OFlag::O_RDONLY)?;
    fsync(&fd).map_err(|errno| Error::io("sync", device)(errno.into()))?;
    // SAFETY: BLKFLSBUF takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { ioctls::blkflsbuf(fd.as_raw_fd()) }
        .map_err(|errno| Error::io("drop the cache of", device)(errno.into()))?;
    Ok(())
}

/// Whoever flushes: the other process, or, until [`Flusher::in_a_process`] is asked for, the thread that calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Flusher {
    apart: bool,
    process: Arc<Mutex<Option<Arc<Process>>>>,
}

/// The other process, from this side.
#[derive(Debug)]
struct Process {
    requests: Mutex<(u64, ChildStdin)>,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

/// The error's number, 0 for none, and what failed.
type Answer = (i32, String);

impl Flusher {
    pub(super) fn in_a_process() -> Self {
        Self { apart: true, ..Self::default() }
    }

    /// See [`crate::Host::flush`]. Blocks, but can be killed meanwhile.
    pub(super) fn flush(&self, device: &Path) -> Result<()> {
        if !self.apart {
            return flush_now(device);
        }
        let answer = match self.process() {
            Ok(process) => process.ask(device),
            Err(error) => {
                tracing::warn!(%error, "cannot start {NAME}: a device that stands still would keep mortard from ending");
                return flush_now(device);
            }
        };
        match answer {
            Some((0, _)) => Ok(()),
            Some((errno, doing)) => {
                let doing = ["open", "sync", "drop the cache of"].into_iter().find(|known| doing == *known);
                Err(Error::io(doing.unwrap_or("flush"), device)(io::Error::from_raw_os_error(errno)))
            }
            None => {
                *lock(&self.process) = None;
                Err(Error::io("flush", device)(io::Error::other(format!("the process {NAME} died; try again"))))
            }
        }
    }

    fn process(&self) -> io::Result<Arc<Process>> {
        let mut running = lock(&self.process);
        if let Some(process) = running.as_ref() {
            return Ok(Arc::clone(process));
        }
        Ok(Arc::clone(running.insert(Process::start()?)))
    }
}

impl Process {
    #[expect(clippy::disallowed_methods, reason = "it is no tool, but ourselves")]
    fn start() -> io::Result<Arc<Self>> {
        let mut child = std::process::Command::new(OURSELVES)
            .arg0(NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let ends = child.stdin.take().zip(child.stdout.take());
        let (requests, answers) = ends.ok_or_else(|| io::Error::other("it has no pipes"))?;
        let process = Arc::new(Self { requests: Mutex::new((0, requests)), waiting: Mutex::default() });
        let listener = Arc::clone(&process);
        thread::Builder::new().name(NAME.into()).spawn(move || {
            for line in BufReader::new(answers).lines().map_while(io::Result::ok) {
                listener.answered(&line);
            }
            // Whoever waits hears that nothing comes any more.
            lock(&listener.waiting).clear();
            let _reaped = child.wait();
        })?;
        Ok(process)
    }

    fn answered(&self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (number, errno) = (words.next().map(str::parse), words.next().map(str::parse));
        if let (Some(Ok(number)), Some(Ok(errno)), Some(doing)) = (number, errno, words.next())
            && let Some(waits) = lock(&self.waiting).remove(&number)
        {
            // Nobody waits any more: the device is flushed all the same.
            let _nobody = waits.send((errno, doing.to_owned()));
        }
    }

    /// The answer; `None` if the process has died.
    fn ask(&self, device: &Path) -> Option<Answer> {
        let (answer, waits) = mpsc::channel();
        {
            let (last, pipe) = &mut *lock(&self.requests);
            *last += 1;
            lock(&self.waiting).insert(*last, answer);
            // A pipe has no buffer of ours: it is one write, and wakes its reader once.
            if pipe.write_all(format!("{last} {}\n", device.display()).as_bytes()).is_err() {
                lock(&self.waiting).remove(last);
            }
        }
        waits.recv().ok()
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What our program does by its other name, to its end; `None` by its own.
pub(crate) fn serve() -> Option<ExitCode> {
    if std::env::args_os().next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    // What it inherited of our memory's protection ends with exec.
    let _without_the_kernels_help = nix::sys::prctl::set_dumpable(false);
    let _unnamed = nix::sys::prctl::set_name(c"mortar-flush");
    for line in io::stdin().lines().map_while(io::Result::ok) {
        let Some((number, device)) = line.split_once(' ') else { continue };
        let (name, device) = (number.to_owned(), PathBuf::from(device));
        let begun = thread::Builder::new().stack_size(STACK).spawn(move || answer(&name, flush_now(&device)));
        if let Err(source) = begun {
            answer(number, Err(Error::Start { tool: "a thread", source }));
        }
    }
    Some(ExitCode::SUCCESS)
}

/// A flush needs little.
const STACK: usize = 64 << 10;

fn answer(number: &str, done: Result<()>) {
    let (errno, doing) = match done {
        Ok(()) => (0, "done"),
        Err(Error::Io { doing, source, .. }) => (source.raw_os_error().unwrap_or(nix::libc::EIO), doing),
        Err(Error::Busy { .. }) => (nix::libc::EBUSY, "open"),
        Err(_) => (nix::libc::EAGAIN, "flush"),
    };
    let _nobody_listens = writeln!(io::stdout().lock(), "{number} {errno} {doing}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_died_leaves_nobody_waiting() {
        let process = Process { requests: Mutex::new((0, closed_pipe())), waiting: Mutex::default() };
        assert_eq!(process.ask(Path::new("/dev/null")), None);
    }

    #[test]
    fn each_answer_finds_who_asked() {
        let process = Process { requests: Mutex::new((0, closed_pipe())), waiting: Mutex::default() };
        let (answer, waits) = mpsc::channel();
        lock(&process.waiting).insert(7, answer);
        for line in ["", "7", "7 x sync", "8 0 done", "nonsense of somebody"] {
            process.answered(line);
        }
        process.answered("7 5 drop the cache of");
        process.answered("7 0 done");
        assert_eq!(waits.try_iter().collect::<Vec<_>>(), [(5, "drop the cache of".to_owned())]);
    }

    /// The stdin of a process that has ended.
    #[expect(clippy::disallowed_methods, reason = "a process of the test's own")]
    fn closed_pipe() -> ChildStdin {
        let mut child = std::process::Command::new("/bin/true").stdin(Stdio::piped()).spawn().unwrap();
        let pipe = child.stdin.take().unwrap();
        child.wait().unwrap();
        pipe
    }
}
