//! mortard as it is shipped, on the real machine, but for one thing: it dies by SIGKILL after the effect that the crash sweep
//! has chosen (`crash.rs`). It is to the real machine what `crash_after` is to the simulated one.
//!
//! Its name begins as the agent's does, because that is how an agent knows the tools of one that lives
//! (`host/src/linux/process.rs`).

#![allow(clippy::unwrap_used, reason = "a test's own program that cannot go on should say where")]
#![allow(clippy::disallowed_methods, reason = "the sweep tells it by files, and it is killed by itself")]

use agent::config::Config;
use async_trait::async_trait;
use host::{
    Claim, Clock, Command, Facts, FileStat, Host, KernelKey, Linux, LoopDevice, LoopSetup, Output, Result, Room, Tool,
    Uevents, User,
};
use nix::{
    sys::{
        prctl::set_dumpable,
        signal::{Signal, kill},
    },
    unistd::getpid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    future::{Future, poll_fn},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

const CONFIG: &str = "/run/mortar-crash/mortard.toml";
/// How many effects it has still to live; it is looked at after each, so that it holds for whoever comes next, too. Without
/// it nothing is counted.
const LEFT: &str = "/run/mortar-crash/left";
/// The effects that were counted, a line each.
const LOG: &str = "/run/mortar-crash/log";

#[tokio::main]
async fn main() {
    set_dumpable(false).unwrap();
    let config = Config::load(Some(CONFIG.into())).unwrap();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let host =
        Crashing { machine: Linux::new(config.limits.processes), counting: Mutex::default(), asked: Mutex::default() };
    let mut told = signal(SignalKind::terminate()).unwrap();
    let stop = async move {
        told.recv().await;
    };
    let ready = |_: Option<&str>, _| sd_notify::notify(&[sd_notify::NotifyState::Ready]).unwrap();
    let hypervisor = agent::hypervisor(&config);
    agent::run(config, Arc::new(host), hypervisor, ready, stop).await.unwrap();
}

/// The real machine. What is counted is what the simulated machine counts.
struct Crashing {
    machine: Linux,
    counting: Mutex<()>,
    /// Requests to multipathd.
    asked: Mutex<BTreeSet<String>>,
}

impl Crashing {
    /// An effect is done.
    fn did(&self, what: &str) {
        let _one_at_a_time = self.counting.lock().unwrap();
        let Ok(left) = fs::read_to_string(LEFT) else { return };
        let left: u64 = left.parse().unwrap();
        writeln!(OpenOptions::new().append(true).create(true).open(LOG).unwrap(), "{what}").unwrap();
        if left > 1 {
            fs::write(LEFT, (left - 1).to_string()).unwrap();
            return;
        }
        fs::remove_file(LEFT).unwrap();
        kill(getpid(), Signal::SIGKILL).unwrap();
    }

    async fn doing<T>(&self, what: String, effect: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let done = effect.await;
        if done.is_ok() {
            self.did(&what);
        }
        done
    }

    /// As [`Crashing::doing`], of a call that may turn out to have nothing to change.
    async fn doing_if<T>(
        &self,
        counts: bool,
        what: String,
        effect: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        if counts { self.doing(what, effect).await } else { effect.await }
    }

    fn is_there(&self, path: &Path) -> Result<bool> {
        Ok(self.machine.stat(path)?.is_some())
    }
}

#[async_trait]
impl Host for Crashing {
    async fn run(&self, command: Command) -> Result<Output> {
        if !command.writes {
            return self.machine.run(command).await;
        }
        let line = command.line();
        let mut run = self.machine.run(command);
        // The process is there once the run was polled: this is the crash that it outlives.
        let mut ended = poll_fn(|context| Poll::Ready(run.as_mut().poll(context))).await;
        if ended.is_pending() {
            self.did(&format!("start {line}"));
            ended = Poll::Ready(run.await);
        }
        let Poll::Ready(ended) = ended else { unreachable!("it was waited for") };
        self.doing(format!("run {line}"), async { ended }).await
    }

    fn tool(&self, tool: Tool) -> Option<PathBuf> {
        self.machine.tool(tool)
    }

    async fn outlived(&self, deadline: Instant) -> Result<Vec<String>> {
        self.machine.outlived(deadline).await
    }

    fn read(&self, path: &Path) -> Result<Option<String>> {
        self.machine.read(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>> {
        self.machine.list(directory)
    }

    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.machine.resolve(path)
    }

    // Without the value, here and below: it may be a secret.
    async fn write(&self, attribute: &Path, value: &str) -> Result<()> {
        self.doing(format!("write {}", attribute.display()), self.machine.write(attribute, value)).await
    }

    async fn write_with_key(&self, attribute: &Path, value: &str, key: &KernelKey) -> Result<()> {
        self.doing(format!("write {}", attribute.display()), self.machine.write_with_key(attribute, value, key)).await
    }

    /// What the daemon did not do is asked of it again and again, for as long as udev takes: that is one effect.
    async fn multipathd(&self, request: &str, timeout: Duration) -> Result<String> {
        let counts = !request.starts_with("show ") && self.asked.lock().unwrap().insert(request.to_owned());
        self.doing_if(counts, format!("multipathd {request}"), self.machine.multipathd(request, timeout)).await
    }

    fn uevents(&self) -> Uevents {
        self.machine.uevents()
    }

    async fn inquiry(&self, device: &Path, page: u8, timeout: Duration) -> Result<Vec<u8>> {
        self.machine.inquiry(device, page, timeout).await
    }

    async fn claim(&self, device: &Path) -> Result<Claim> {
        self.machine.claim(device).await
    }

    async fn flush(&self, device: &Path, timeout: Duration) -> Result<()> {
        self.doing(format!("flush {}", device.display()), self.machine.flush(device, timeout)).await
    }

    async fn set_read_only(&self, device: &Path, read_only: bool) -> Result<()> {
        let what = format!("set_read_only {} {read_only}", device.display());
        self.doing(what, self.machine.set_read_only(device, read_only)).await
    }

    async fn users(&self, device: &Path) -> Result<Vec<User>> {
        self.machine.users(device).await
    }

    async fn head(&self, path: &Path, length: usize, timeout: Duration) -> Result<Vec<u8>> {
        self.machine.head(path, length, timeout).await
    }

    async fn loop_devices(&self) -> Result<Vec<LoopDevice>> {
        self.machine.loop_devices().await
    }

    async fn loop_device(&self, name: &str) -> Result<Option<LoopDevice>> {
        self.machine.loop_device(name).await
    }

    async fn loop_attach(&self, setup: &LoopSetup) -> Result<PathBuf> {
        self.doing(format!("loop_attach {}", setup.file.display()), self.machine.loop_attach(setup)).await
    }

    async fn loop_detach(&self, device: &Path) -> Result<()> {
        self.doing(format!("loop_detach {}", device.display()), self.machine.loop_detach(device)).await
    }

    async fn loop_resize(&self, device: &Path) -> Result<()> {
        self.doing(format!("loop_resize {}", device.display()), self.machine.loop_resize(device)).await
    }

    fn open_mapped(&self, uuids: &[String]) -> Result<BTreeSet<String>> {
        self.machine.open_mapped(uuids)
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStat>> {
        self.machine.stat(path)
    }

    async fn file(&self, path: &Path) -> Result<Option<FileStat>> {
        self.machine.file(path).await
    }

    async fn real_path(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.machine.real_path(path).await
    }

    async fn files(&self, directory: &Path) -> Result<Vec<(String, FileStat)>> {
        self.machine.files(directory).await
    }

    async fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.doing(format!("replace {}", path.display()), self.machine.replace(path, content, mode)).await
    }

    async fn replace_unsynced(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.doing(format!("replace {}", path.display()), self.machine.replace_unsynced(path, content, mode)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.doing(format!("rename {} {}", from.display(), to.display()), self.machine.rename(from, to)).await
    }

    async fn reflink(&self, from: &Path, to: &Path) -> Result<FileStat> {
        self.doing(format!("reflink {} {}", from.display(), to.display()), self.machine.reflink(from, to)).await
    }

    async fn copy(&self, from: &Path, to: &Path, deadline: Instant) -> Result<FileStat> {
        self.doing(format!("copy {} {}", from.display(), to.display()), self.machine.copy(from, to, deadline)).await
    }

    async fn openers(&self, file: &Path) -> Result<Vec<User>> {
        self.machine.openers(file).await
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        let counts = self.is_there(path)?;
        self.doing_if(counts, format!("remove {}", path.display()), self.machine.remove(path)).await
    }

    async fn link(&self, name: &Path, target: &Path) -> Result<()> {
        self.doing(format!("link {} {}", name.display(), target.display()), self.machine.link(name, target)).await
    }

    async fn make_directory(&self, path: &Path) -> Result<()> {
        let counts = !self.is_there(path)?;
        self.doing_if(counts, format!("make_directory {}", path.display()), self.machine.make_directory(path)).await
    }

    async fn symlink(&self, name: &Path, target: &Path) -> Result<()> {
        let counts = !self.is_there(name)?;
        self.doing_if(counts, format!("symlink {}", name.display()), self.machine.symlink(name, target)).await
    }

    async fn attributes(&self, path: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
        self.machine.attributes(path, prefix).await
    }

    /// One effect for each of them, as the kernel takes them one by one.
    async fn set_attributes(&self, path: &Path, attributes: &[(&str, Option<&str>)]) -> Result<()> {
        for attribute in attributes {
            let what = format!("set_attributes {} {}", path.display(), attribute.0);
            self.doing(what, self.machine.set_attributes(path, std::slice::from_ref(attribute))).await?;
        }
        Ok(())
    }

    async fn reach(&self, address: SocketAddr, deadline: Instant) -> Result<()> {
        self.machine.reach(address, deadline).await
    }

    fn facts(&self) -> Result<Facts> {
        self.machine.facts()
    }

    fn clock(&self) -> Result<Clock> {
        self.machine.clock()
    }

    async fn room(&self, path: &Path, timeout: Duration) -> Result<Room> {
        self.machine.room(path, timeout).await
    }

    async fn effect(&self, what: &str) {
        self.did(what);
    }
}
