//! The machine, with every call that changes something or may wait told as a step of the work that makes it.

use super::{Kind, step};
use crate::{
    Claim, Clock, Command, Facts, FileStat, Host, KernelKey, LoopDevice, LoopSetup, Output, Result, Room, Tool,
    Uevents, User,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// A machine whose calls are steps.
pub struct Attended(Arc<dyn Host>, Started);

impl Attended {
    /// The same machine, attended.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self(host, Started::default())
    }

    /// The runs of tools from now on.
    pub fn started(&self) -> Started {
        self.1.clone()
    }
}

/// How many runs of each tool were begun. Clones count the same.
#[derive(Debug, Clone, Default)]
pub struct Started(Arc<Mutex<BTreeMap<Tool, u64>>>);

impl Started {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Tool, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each tool's name, and how often it was run.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.all().iter().map(|(tool, times)| (tool.name(), *times)).collect()
    }
}

#[async_trait]
impl Host for Attended {
    async fn run(&self, command: Command) -> Result<Output> {
        let kind = if command.writes { Kind::Changes } else { Kind::Reads };
        let line = command.line();
        *self.1.all().entry(command.tool).or_default() += 1;
        step(kind, || format!("run {line}"), self.0.run(command)).await
    }

    async fn write(&self, attribute: &Path, value: &str) -> Result<()> {
        step(Kind::Changes, || format!("write {}", attribute.display()), self.0.write(attribute, value)).await
    }

    async fn write_with_key(&self, attribute: &Path, value: &str, key: &KernelKey) -> Result<()> {
        step(Kind::Changes, || format!("write {}", attribute.display()), self.0.write_with_key(attribute, value, key))
            .await
    }

    async fn multipathd(&self, request: &str, timeout: Duration) -> Result<String> {
        // What it is told to do it does by itself; it is asked again and again until that is seen.
        let kind = if request.starts_with("show ") { Kind::Reads } else { Kind::Changes };
        step(kind, || format!("multipathd: {request}"), self.0.multipathd(request, timeout)).await
    }

    async fn inquiry(&self, device: &Path, page: u8, timeout: Duration) -> Result<Vec<u8>> {
        step(Kind::Reads, || format!("INQUIRY to {}", device.display()), self.0.inquiry(device, page, timeout)).await
    }

    async fn claim(&self, device: &Path) -> Result<Claim> {
        step(Kind::Reads, || format!("open {}", device.display()), self.0.claim(device)).await
    }

    async fn flush(&self, device: &Path, timeout: Duration) -> Result<()> {
        step(Kind::Flushes, || format!("flush {}", device.display()), self.0.flush(device, timeout)).await
    }

    async fn set_read_only(&self, device: &Path, read_only: bool) -> Result<()> {
        step(Kind::Changes, || format!("BLKROSET on {}", device.display()), self.0.set_read_only(device, read_only))
            .await
    }

    async fn users(&self, device: &Path) -> Result<Vec<User>> {
        step(Kind::Reads, || format!("look who uses {}", device.display()), self.0.users(device)).await
    }

    async fn head(&self, path: &Path, length: usize, timeout: Duration) -> Result<Vec<u8>> {
        step(Kind::Reads, || format!("read {}", path.display()), self.0.head(path, length, timeout)).await
    }

    async fn loop_device(&self, name: &str) -> Result<Option<LoopDevice>> {
        step(Kind::Reads, || format!("ask {name} for its file"), self.0.loop_device(name)).await
    }

    async fn loop_devices(&self) -> Result<Vec<LoopDevice>> {
        step(Kind::Reads, || "ask the loop devices for their files".to_owned(), self.0.loop_devices()).await
    }

    async fn loop_attach(&self, setup: &LoopSetup) -> Result<PathBuf> {
        step(Kind::Changes, || format!("bind a loop device to {}", setup.file.display()), self.0.loop_attach(setup))
            .await
    }

    async fn loop_detach(&self, device: &Path) -> Result<()> {
        step(Kind::Changes, || format!("unbind {}", device.display()), self.0.loop_detach(device)).await
    }

    async fn loop_resize(&self, device: &Path) -> Result<()> {
        step(Kind::Changes, || format!("resize {}", device.display()), self.0.loop_resize(device)).await
    }

    async fn file(&self, path: &Path) -> Result<Option<FileStat>> {
        step(Kind::Reads, || format!("look at {}", path.display()), self.0.file(path)).await
    }

    async fn real_path(&self, path: &Path) -> Result<Option<PathBuf>> {
        step(Kind::Reads, || format!("resolve {}", path.display()), self.0.real_path(path)).await
    }

    async fn files(&self, directory: &Path) -> Result<Vec<(String, FileStat)>> {
        step(Kind::Reads, || format!("list {}", directory.display()), self.0.files(directory)).await
    }

    async fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        step(Kind::Changes, || format!("write {}", path.display()), self.0.replace(path, content, mode)).await
    }

    async fn replace_unsynced(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        step(Kind::Changes, || format!("write {}", path.display()), self.0.replace_unsynced(path, content, mode)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        step(Kind::Changes, || format!("rename {} to {}", from.display(), to.display()), self.0.rename(from, to)).await
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        step(Kind::Changes, || format!("remove {}", path.display()), self.0.remove(path)).await
    }

    async fn reflink(&self, from: &Path, to: &Path) -> Result<FileStat> {
        let what = || format!("make {} of the blocks of {}", to.display(), from.display());
        step(Kind::Changes, what, self.0.reflink(from, to)).await
    }

    async fn copy(&self, from: &Path, to: &Path, deadline: Instant) -> Result<FileStat> {
        let what = || format!("copy {} to {}", from.display(), to.display());
        step(Kind::Changes, what, self.0.copy(from, to, deadline)).await
    }

    async fn openers(&self, file: &Path) -> Result<Vec<User>> {
        step(Kind::Reads, || format!("look who has {} open", file.display()), self.0.openers(file)).await
    }

    async fn link(&self, name: &Path, target: &Path) -> Result<()> {
        step(Kind::Changes, || format!("link {}", name.display()), self.0.link(name, target)).await
    }

    async fn make_directory(&self, path: &Path) -> Result<()> {
        step(Kind::Changes, || format!("make {}", path.display()), self.0.make_directory(path)).await
    }

    async fn symlink(&self, name: &Path, target: &Path) -> Result<()> {
        step(Kind::Changes, || format!("link {}", name.display()), self.0.symlink(name, target)).await
    }

    async fn attributes(&self, path: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
        step(Kind::Reads, || format!("read the attributes of {}", path.display()), self.0.attributes(path, prefix))
            .await
    }

    async fn set_attributes(&self, path: &Path, attributes: &[(&str, Option<&str>)]) -> Result<()> {
        step(
            Kind::Changes,
            || format!("write the attributes of {}", path.display()),
            self.0.set_attributes(path, attributes),
        )
        .await
    }

    async fn reach(&self, address: SocketAddr, deadline: Instant) -> Result<()> {
        step(Kind::Reads, || format!("connect to {address}"), self.0.reach(address, deadline)).await
    }

    fn tool(&self, tool: Tool) -> Option<PathBuf> {
        self.0.tool(tool)
    }

    async fn outlived(&self, deadline: Instant) -> Result<Vec<String>> {
        self.0.outlived(deadline).await
    }

    fn read(&self, path: &Path) -> Result<Option<String>> {
        self.0.read(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>> {
        self.0.list(directory)
    }

    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.0.resolve(path)
    }

    fn uevents(&self) -> Uevents {
        self.0.uevents()
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStat>> {
        self.0.stat(path)
    }

    fn open_mapped(&self, uuids: &[String]) -> Result<BTreeSet<String>> {
        self.0.open_mapped(uuids)
    }

    fn facts(&self) -> Result<Facts> {
        self.0.facts()
    }

    fn clock(&self) -> Result<Clock> {
        self.0.clock()
    }

    async fn room(&self, path: &Path, timeout: Duration) -> Result<Room> {
        step(Kind::Reads, || format!("look at the room of {}", path.display()), self.0.room(path, timeout)).await
    }

    fn now(&self) -> SystemTime {
        self.0.now()
    }

    async fn rest(&self) {
        self.0.rest().await;
    }

    async fn commits(&self, what: &str) -> Result<()> {
        self.0.commits(what).await
    }

    async fn effect(&self, what: &str) {
        self.0.effect(what).await
    }
}
