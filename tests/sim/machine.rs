//! The stage of the simulated machine: the agent runs in a task, over a Unix socket in a directory of the test's own.

use crate::power::Journals;
use agent::{
    Mortard, Reloader,
    config::{CallerRule, Callers, Config, Role},
};
use async_trait::async_trait;
use driver::Backend;
use host::sim::{Machine, iscsi::LogicalUnit};
use hypervisor::sim::Domains;
use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tests::{client::Client, stage::Stage};
use tokio::{
    net::UnixListener,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Channel;

/// What the simulated machine has volumes of.
pub(crate) const BACKENDS: [Backend; 4] = [Backend::File, Backend::Iscsi, Backend::Lvm, Backend::Rbd];
pub(crate) const IQN: &str = "iqn.2026-11.org.example:t1";
pub(crate) const PORTAL: &str = "127.0.0.1:3260";
pub(crate) const VG: &str = "vg0";
pub(crate) const CLUSTER: &str = "ceph";
pub(crate) const POOL: &str = "pool";
pub(crate) const DIRECTORY: &str = "/srv/volumes";

pub(crate) struct SimStage {
    pub(crate) machine: Machine,
    /// The virtual machines on it.
    pub(crate) domains: Domains,
    /// Of the next agent that is started; its state directory is the stage's.
    pub(crate) config: Config,
    /// The next agent has looked at every attachment before anybody calls it.
    pub(crate) looks_first: bool,
    directory: TempDir,
    /// Where its journal is, if there is room in memory: on a disk it would wait for it at each commit. Not by its own name,
    /// since the simulated machine has a `/dev` of its own.
    journals: Journals,
    /// How many effects there were when the power was last cut: what was left of them then is on the disk.
    before_the_cut: usize,
    generation: u32,
    agent: Option<JoinHandle<()>>,
    stop: Arc<Notify>,
    reloader: Option<Reloader>,
    /// Where the running agent listens for other machines.
    pub(crate) addresses: Vec<SocketAddr>,
    next_lun: u16,
}

/// A rule for whoever runs the tests.
pub(crate) fn rule(role: Role, only: &[&str]) -> CallerRule {
    let user = std::fs::metadata("/proc/self").unwrap().uid().to_string();
    let only = only.iter().map(ToString::to_string).collect();
    CallerRule { user: Some(user), only, ..CallerRule::giving(role) }
}

impl SimStage {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(mut config: Config) -> Self {
        let machine = Machine::new();
        machine.put_directory(DIRECTORY);
        machine.add_target(IQN, &[PORTAL]);
        machine.add_vg(VG, &["vda"]);
        machine.add_cluster(CLUSTER, "127.0.0.1:6789");
        let directory = TempDir::new().unwrap();
        config.agent.state_directory = directory.path().join("state");
        let journals = Journals::new(config.agent.state_directory.clone());
        if config.callers == Callers::default() {
            config.callers.rules.push(rule(Role::Admin, &[]));
        }
        let mut stage = Self {
            machine,
            domains: Domains::new(),
            config,
            looks_first: true,
            directory,
            journals,
            before_the_cut: 0,
            generation: 0,
            agent: None,
            stop: Arc::default(),
            reloader: None,
            addresses: Vec::new(),
            next_lun: 0,
        };
        stage.start().await;
        stage
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(format!("agent-{}.sock", self.generation))
    }

    /// For calls that no client of ours makes.
    pub(crate) fn channel(&self) -> Channel {
        tests::client::channel(&self.socket())
    }

    /// Where the agent keeps its own.
    pub(crate) fn state_directory(&self) -> &Path {
        &self.config.agent.state_directory
    }

    /// Starts an agent on the machine as it is; ends when it has recovered, has looked at every attachment (unless a test wants
    /// to see it serve before that), and serves.
    pub(crate) async fn start(&mut self) {
        assert!(self.start_or_crash().await, "it crashed while it recovered");
    }

    /// As `start`; `false` if it crashed while it recovered.
    pub(crate) async fn start_or_crash(&mut self) -> bool {
        let config = self.config.clone();
        self.generation += 1;
        let listener = UnixListener::bind(self.socket()).unwrap();
        let host = Arc::new(self.machine.clone());
        let hypervisor = Arc::new(self.domains.on(self.machine.clone()));
        let started = tokio::select! {
            started = Mortard::start(config, host, hypervisor) => started,
            () = self.machine.crashed() => return false,
        };
        let mortard = match started {
            Ok(mortard) => mortard,
            // What only reads ends with an error in a process that is dead.
            Err(_) if timeout(Duration::ZERO, self.machine.crashed()).await.is_ok() => return false,
            Err(error) => panic!("it does not start: {error}"),
        };
        if self.looks_first {
            tokio::select! {
                biased;
                () = self.machine.crashed() => return false,
                () = mortard.has_looked() => {}
            }
        }
        self.reloader = Some(mortard.reloader());
        self.addresses = mortard.addresses();
        self.stop = Arc::default();
        let stop = Arc::clone(&self.stop);
        let serve = async move {
            let stop = async move { stop.notified().await };
            mortard.serve(UnixListenerStream::new(listener), stop).await.unwrap();
        };
        self.agent = Some(tokio::spawn(serve));
        true
    }

    /// The journal is gone, and with it all that the agent knew.
    #[expect(clippy::disallowed_methods, reason = "the test's own directory")]
    pub(crate) fn lose_journal(&self) {
        for end in ["", "-wal", "-shm"] {
            // Not all of them are there at all times.
            let _absent = std::fs::remove_file(self.state_directory().join(format!("journal.sqlite{end}")));
        }
    }

    /// The running agent is given its config anew; the keys that wait for a restart.
    pub(crate) fn reload(&self) -> Vec<String> {
        self.reloader.as_ref().unwrap().reload(self.config.clone())
    }

    /// The process is told to stop, and ends.
    pub(crate) async fn stop(&mut self) {
        self.stop.notify_one();
        if let Some(agent) = self.agent.take() {
            agent.await.unwrap();
        }
        self.machine.restart();
    }

    /// The process dies, wherever it is.
    pub(crate) fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
        self.machine.restart();
    }
}

impl SimStage {
    /// The power is cut, and comes back with the agent: all is lost that the journal had not on its disk.
    pub(crate) async fn reboot(&mut self) {
        self.cut_power(self.may_lose());
        self.start().await;
    }

    /// How many commits a power cut may take with it.
    pub(crate) fn may_lose(&self) -> usize {
        let effects = self.machine.effects();
        let commits = effects[self.before_the_cut..].iter().rev().filter(|effect| effect.starts_with("journal: "));
        let not_on_disk = commits.take_while(|effect| effect.ends_with("not yet on the disk")).count();
        not_on_disk.min(self.journals.commits().len())
    }

    /// The power is cut, and so many commits are lost.
    pub(crate) fn cut_power(&mut self, lost: usize) {
        self.journals.cut_power(lost);
        self.before_the_cut = self.machine.effects().len();
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
        self.machine.reboot();
    }
}

/// Looks again and again, for twenty seconds: without what it waits for, a test fails, and does not go on for ever.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < patience, "{what} does not come");
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl Stage for SimStage {
    fn client(&self) -> Client {
        Client::on(&self.socket())
    }

    async fn volume(&mut self, backend: Backend, name: &str, size: u64) -> String {
        match backend {
            Backend::File => {
                let path = format!("{DIRECTORY}/{name}.raw");
                self.machine.put_raw(&path, size);
                format!("file:{path}")
            }
            Backend::Iscsi => {
                let lun = self.next_lun;
                self.next_lun += 1;
                self.machine.map_lun(IQN, lun, LogicalUnit::disk(&format!("6001405{lun:025x}"), size));
                format!("iscsi://{PORTAL}/{IQN}/{lun}")
            }
            Backend::Lvm => {
                self.machine.add_lv(VG, name, size);
                format!("lvm:{VG}/{name}")
            }
            Backend::Rbd => {
                self.machine.add_image(CLUSTER, POOL, "", name, size);
                format!("rbd:{POOL}/{name}")
            }
        }
    }

    fn scope(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{DIRECTORY}"),
            Backend::Iscsi => unreachable!("no scope"),
            Backend::Lvm => format!("lvm:{VG}"),
            Backend::Rbd => format!("rbd:{POOL}"),
        }
    }

    fn nowhere(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{DIRECTORY}/nowhere.raw"),
            Backend::Iscsi => format!("iscsi://{PORTAL}/{IQN}/99"),
            Backend::Lvm => format!("lvm:{VG}/nowhere"),
            Backend::Rbd => format!("rbd:{POOL}/nowhere"),
        }
    }

    async fn occupy(&mut self, device: &str) {
        self.machine.mount(device.trim_start_matches("/dev/"), "/mnt/data");
    }

    async fn vacate(&mut self, device: &str) {
        self.machine.release(device.trim_start_matches("/dev/"));
    }

    async fn snapshot(&self) -> String {
        // The kernel never gives a session's number a second time, and each mapping has a mark of its own.
        ["session", "connection"]
            .into_iter()
            .fold(without_marks(&self.machine.snapshot()), |text, word| without_numbers(&text, word))
            + &self.domains.snapshot()
    }

    async fn kill_and_restart(&mut self) {
        self.kill();
        self.start().await;
    }
}

/// Cuts the marks of mappings off.
fn without_marks(text: &str) -> String {
    let mut parts = text.split("key=mortar-");
    let first = parts.next().unwrap_or_default().to_owned();
    let is_mark = |c: char| c.is_ascii_hexdigit() || c == '-';
    parts.fold(first, |plain, part| format!("{plain}key=mortar{}", part.trim_start_matches(is_mark)))
}

/// Cuts the digits off that follow `word`.
fn without_numbers(text: &str, word: &str) -> String {
    let mut parts = text.split(word);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(word);
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    plain
}
