//! Random sequences of calls, crashes, faults, restarts and reboots, held against a model of three maps: which volume each id
//! has, which volume is managed as what, which is exported.
//!
//! ```text
//!   call ──▶ answered ──────────────▶ as the model says, and it is what is seen
//!        └─▶ crash, or an error of the machine ──▶ restart (which may crash, too) ──▶ as before, or as after; then the retry
//! ```
//!
//! At the end everything is taken back, and the machine is what it was.

use crate::{
    crash::difference,
    export::request as export,
    machine::{CLUSTER, DIRECTORY, IQN, POOL, SimStage, VG},
};
use driver::Backend;
use host::sim::iscsi::LogicalUnit;
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use proto::v1::{self, AttachmentState};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tests::{
    client::{Client, Refused, attach, manage},
    reliability::{Row, note},
    stage::Stage,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

const SIZE: u64 = 16 << 20;
const VOLUMES: usize = 2;
const ATTACHMENTS: [&str; 3] = ["a", "b", "c"];
const EXPORTS: [&str; 2] = ["e", "f"];
const MANAGED: [&str; 2] = ["9394b827-4ad0-488e-8df8-26476b3a8662", "9394b827-4ad0-488e-8df8-26476b3a8663"];
const TWO_WAYS: &str = "iqn.2026-11.org.example:two";

/// What a schedule plays with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Volumes(Backend),
    /// Units with two ways each.
    Multipath,
}

impl Subject {
    fn backend(self) -> Backend {
        match self {
            Self::Volumes(backend) => backend,
            Self::Multipath => Backend::Iscsi,
        }
    }
}

/// A call of the agent.
#[derive(Debug, Clone, Copy)]
enum Call {
    Attach { id: usize, volume: usize, persistent: bool },
    Detach { id: usize },
    Extend { id: usize },
    Manage { volume: usize, id: usize, in_use: bool },
    Unmanage { id: usize },
    Export { id: usize, volume: usize },
    Unexport { id: usize },
}

/// What happens to it.
#[derive(Debug, Clone)]
enum Trouble {
    None,
    /// A call on the machine fails: one whose name holds this.
    Fails(&'static str),
    /// The same, after it has done its work.
    Loses(&'static str),
    /// The agent dies after so many effects, and then so often while it recovers.
    Crash(usize, Vec<usize>),
}

#[derive(Debug, Clone)]
enum Step {
    Call(Call, Trouble),
    /// The volume grows on its backend.
    Grow(usize),
    Occupy(usize),
    Vacate,
    Restart,
    Reboot,
    Repair,
}

/// What should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    /// By id: the volume, and whether it comes back.
    attached: BTreeMap<usize, (usize, bool)>,
    /// By id: the volume.
    managed: BTreeMap<usize, usize>,
    exported: BTreeMap<usize, usize>,
}

impl Model {
    fn managed_as(&self, volume: usize) -> Option<usize> {
        self.managed.iter().find(|(_, of)| **of == volume).map(|(id, _)| *id)
    }

    fn is_attached(&self, volume: usize) -> bool {
        self.attached.values().any(|(of, _)| *of == volume)
    }

    fn exported_as(&self, volume: usize) -> Option<usize> {
        self.exported.iter().find(|(_, of)| **of == volume).map(|(id, _)| *id)
    }

    /// What comes of a call that nothing disturbs, and whether it changes anything; `Err`: it is refused.
    fn after(&self, call: Call, occupied: Option<usize>) -> Result<(Self, bool), &'static str> {
        let mut next = self.clone();
        match call {
            Call::Attach { id, volume, persistent } => match self.attached.get(&id) {
                Some(now) if *now == (volume, persistent) => return Ok((next, false)),
                _ if self.exported_as(volume).is_some() => return Err("IN_USE"),
                Some(_) => return Err("ALREADY_EXISTS"),
                None => drop(next.attached.insert(id, (volume, persistent))),
            },
            Call::Detach { id } => match self.attached.get(&id) {
                None => return Ok((next, false)),
                Some((volume, _)) => {
                    let alone = self.attached.values().filter(|(of, _)| of == volume).count() == 1;
                    if alone && occupied == Some(*volume) {
                        return Err("IN_USE");
                    }
                    next.attached.remove(&id);
                }
            },
            Call::Extend { id } if self.attached.contains_key(&id) => {}
            Call::Extend { .. } => return Err("NOT_FOUND"),
            Call::Manage { volume, id, in_use } => match (self.managed_as(volume), self.managed.get(&id)) {
                (Some(now), _) if now == id => return Ok((next, false)),
                // Which of the two is looked at first is the driver's.
                (Some(_), _) | (None, Some(_)) => return Err("ALREADY_EXISTS or IN_USE"),
                (None, None) if !in_use && (self.is_attached(volume) || self.exported_as(volume).is_some()) => {
                    return Err("IN_USE");
                }
                (None, None) => drop(next.managed.insert(id, volume)),
            },
            Call::Unmanage { id } => {
                let changed = next.managed.remove(&id).is_some();
                return Ok((next, changed));
            }
            Call::Export { id, volume } => match (self.exported.get(&id), self.exported_as(volume)) {
                (Some(now), _) if *now == volume => return Ok((next, false)),
                (Some(_), _) => return Err("ALREADY_EXISTS"),
                (None, Some(_)) => return Err("IN_USE"),
                (None, None) if self.is_attached(volume) => return Err("IN_USE"),
                (None, None) => drop(next.exported.insert(id, volume)),
            },
            Call::Unexport { id } => {
                let changed = next.exported.remove(&id).is_some();
                return Ok((next, changed));
            }
        }
        Ok((next, true))
    }
}

/// A machine, and what should be on it.
struct Play {
    subject: Subject,
    stage: SimStage,
    client: Client,
    /// The locators before they were managed.
    origins: Vec<String>,
    bare: String,
    model: Model,
    sizes: [u64; VOLUMES],
    occupied: Option<(usize, String)>,
    crashes: u64,
    /// What was done, for whoever reads a failure.
    told: Arc<Mutex<Vec<String>>>,
}

impl Play {
    async fn new(subject: Subject) -> Self {
        let mut config = agent::config::Config::default();
        // What never comes is waited for by the clock on the wall.
        config.limits.operation_timeout_ms = 20_000;
        let mut stage = SimStage::with(config).await;
        let mut origins = Vec::new();
        if subject == Subject::Multipath {
            stage.machine.add_target(TWO_WAYS, &["127.0.0.1:3260", "127.0.0.2:3260"]);
            stage.machine.run_multipathd(true);
        }
        for number in 0..VOLUMES {
            origins.push(match subject {
                Subject::Volumes(backend) => stage.volume(backend, &format!("v{number}"), SIZE).await,
                Subject::Multipath => {
                    let lun = u16::try_from(number).unwrap();
                    let unit = LogicalUnit::disk(&format!("6001405{lun:025x}"), SIZE);
                    stage.machine.map_lun(TWO_WAYS, lun, unit);
                    format!("iscsi://127.0.0.1,127.0.0.2/{TWO_WAYS}/{lun}")
                }
            });
        }
        // It comes with the first export and stays.
        if subject.backend() == Backend::Lvm {
            stage.machine.put_file(stage.state_directory().join("export.key"), "01".repeat(32));
            let fabric = std::path::Path::new("/sys/kernel/config/target/iscsi");
            host::Host::make_directory(&stage.machine, fabric).await.unwrap();
        }
        let (client, bare) = (stage.client(), stage.snapshot().await);
        Self {
            subject,
            stage,
            client,
            origins,
            bare,
            model: Model::default(),
            sizes: [SIZE; VOLUMES],
            occupied: None,
            crashes: 0,
            told: Arc::default(),
        }
    }

    /// A volume's locator of now.
    fn locator(&self, volume: usize) -> String {
        match self.model.managed_as(volume) {
            Some(id) => format!("{}volume-{}", self.prefix(), MANAGED[id]),
            None => self.origins[volume].clone(),
        }
    }

    fn prefix(&self) -> String {
        match self.subject.backend() {
            Backend::File => format!("file:{DIRECTORY}/"),
            Backend::Lvm => format!("lvm:{VG}/"),
            Backend::Rbd => format!("rbd:{POOL}/"),
            Backend::Iscsi => unreachable!("no volume of a target is managed"),
        }
    }

    async fn call(&self, call: Call) -> Result<bool, Refused> {
        let mut client = self.client.clone();
        match call {
            Call::Attach { id, volume, persistent } => {
                let request =
                    v1::AttachRequest { persistent, all_paths: true, ..attach(ATTACHMENTS[id], &self.locator(volume)) };
                client.attach(request).await.map(|reply| reply.changed)
            }
            Call::Detach { id } => {
                let reply = client.detach(ATTACHMENTS[id]).await?;
                gone(reply.changed, &reply.residuals)
            }
            Call::Extend { id } => {
                let request = v1::ExtendRequest { id: ATTACHMENTS[id].into(), ..v1::ExtendRequest::default() };
                Ok(client.attachments.extend(request).await.map(|_| true)?)
            }
            Call::Manage { volume, id, in_use } => {
                // By the name that it had: the same call once more, also after the rename.
                let request =
                    v1::ManageRequest { id: MANAGED[id].into(), allow_in_use: in_use, ..manage(&self.origins[volume]) };
                client.manage(request).await.map(|reply| reply.changed)
            }
            Call::Unmanage { id } => client.unmanage(MANAGED[id], false).await.map(|reply| reply.changed),
            Call::Export { id, volume } => {
                client.export(export(EXPORTS[id], &self.locator(volume))).await.map(|reply| reply.changed)
            }
            Call::Unexport { id } => {
                let reply = client.unexport(EXPORTS[id]).await?;
                gone(reply.changed, &reply.residuals)
            }
        }
    }

    async fn step(&mut self, step: Step) {
        self.told.lock().unwrap().push(format!("{step:?}"));
        match step {
            Step::Call(call, trouble) => self.troubled(call, trouble).await,
            Step::Grow(volume) => {
                self.sizes[volume] += 4 << 20;
                self.resize(volume, self.sizes[volume]);
            }
            Step::Occupy(volume) => {
                let id = self.model.attached.iter().find(|(_, (of, _))| *of == volume).map(|(id, _)| *id);
                if let (Some(id), None) = (id, &self.occupied) {
                    let path = self.client.clone().get(ATTACHMENTS[id]).await.unwrap().path;
                    self.stage.occupy(&path).await;
                    self.occupied = Some((volume, path));
                }
            }
            Step::Vacate => {
                if let Some((_, path)) = self.occupied.take() {
                    self.stage.vacate(&path).await;
                }
            }
            Step::Restart => self.restart(&[]).await,
            Step::Reboot => self.reboot().await,
            Step::Repair => {
                let request = v1::DiagnoseRequest { repair: true, ..Default::default() };
                let found = self.client.clone().host.diagnose(request).await.unwrap().into_inner();
                let orphan = |object: &&v1::HostObject| object.state() == v1::HostObjectState::Orphan;
                assert_eq!(found.objects.iter().find(orphan), None, "{}", self.story());
            }
        }
        let seen = self.seen().await;
        assert_eq!(seen, self.model, "{}", self.story());
    }

    async fn troubled(&mut self, call: Call, trouble: Trouble) {
        let occupied = self.occupied.as_ref().map(|(volume, _)| *volume);
        let fault = || host::Error::Io { doing: "test", path: "/".into(), source: std::io::Error::other("a fault") };
        let again: &[usize] = match &trouble {
            Trouble::None => return self.undisturbed(call).await,
            Trouble::Fails(name) => {
                self.stage.machine.fail_next(*name, fault());
                &[]
            }
            Trouble::Loses(name) => {
                self.stage.machine.lose_next(*name, fault());
                &[]
            }
            Trouble::Crash(after, again) => {
                self.stage.machine.crash_after(*after);
                again
            }
        };
        let expected = self.model.after(call, occupied);
        let ended = tokio::select! {
            () = self.stage.machine.crashed() => None,
            ended = self.call(call) => Some(ended),
        };
        self.stage.machine.forget_faults();
        match (ended, &expected) {
            (Some(Ok(changed)), Ok((after, _))) => {
                let _either_way = changed;
                self.model = after.clone();
                // What was said to be done may still be under way behind the caller's back.
                if !self.client.clone().running().await.is_empty() {
                    self.restart(&[]).await;
                }
            }
            (Some(Ok(_)), Err(why)) => panic!("{call:?} was to be refused ({why})\n{}", self.story()),
            (ended, _) => {
                if ended.is_none() || !self.client.clone().running().await.is_empty() {
                    self.restart(again).await;
                }
                let (seen, broken) = self.look().await;
                // What is left of it is told, and goes with the next one.
                let told = ended.is_some() && matches!(call, Call::Detach { .. } | Call::Unexport { .. });
                assert!(broken.is_empty() || told, "not all of it is ready: {broken:?}\n{}", self.story());
                if broken.is_empty() {
                    let after = expected.as_ref().map_or(&self.model, |(after, _)| after);
                    assert!(
                        seen == self.model || seen == *after,
                        "neither as before nor as after\n{seen:?}\n{after:?}\n{}",
                        self.story()
                    );
                    self.model = seen;
                }
                self.undisturbed(call).await;
            }
        }
    }

    /// As a caller makes it: an extend waits for ways that are still joining.
    async fn call_patiently(&self, call: Call) -> Result<bool, Refused> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.call(call).await {
                Err(refused)
                    if matches!(call, Call::Extend { .. })
                        && self.subject == Subject::Multipath
                        && refused.reason == "UNREACHABLE"
                        && Instant::now() < deadline =>
                {
                    tokio::task::yield_now().await
                }
                ended => return ended,
            }
        }
    }

    /// A call that has to do what the model says.
    async fn undisturbed(&mut self, call: Call) {
        let occupied = self.occupied.as_ref().map(|(volume, _)| *volume);
        match (self.call_patiently(call).await, self.model.after(call, occupied)) {
            (Ok(changed), Ok((after, changes))) => {
                if !matches!(call, Call::Extend { .. }) {
                    assert_eq!(changed, changes, "{call:?}\n{}", self.story());
                }
                self.model = after;
                if let Call::Extend { id } = call {
                    let (volume, now) = (self.model.attached[&id].0, self.client.clone().get(ATTACHMENTS[id]).await);
                    assert_eq!(now.unwrap().size_bytes, self.sizes[volume], "{call:?}\n{}", self.story());
                }
            }
            (Err(refused), Err(why)) => {
                assert!(why.contains(&refused.reason), "{call:?}: {refused:?} is not {why}\n{}", self.story());
            }
            (Ok(_), Err(why)) => panic!("{call:?} was to be refused ({why})\n{}", self.story()),
            (Err(refused), Ok(_)) => panic!("{call:?} was refused: {refused:?}\n{}", self.story()),
        }
    }

    /// The agent dies, if it lives, and is started until it has recovered.
    async fn restart(&mut self, crashes: &[usize]) {
        self.stage.kill();
        for after in crashes {
            self.crashes += 1;
            self.stage.machine.crash_after(*after);
            let started = self.stage.start_or_crash().await;
            self.stage.machine.forget_faults();
            self.stage.kill();
            if started {
                break;
            }
        }
        self.crashes += 1;
        self.stage.start().await;
        self.client = self.stage.client();
    }

    async fn reboot(&mut self) {
        self.stage.reboot().await;
        self.client = self.stage.client();
        self.occupied = None;
        self.model.attached.retain(|_, (_, persistent)| *persistent);
        self.until(|play, seen| seen == &play.model).await;
    }

    /// Waits for what goes on in the background.
    #[expect(clippy::disallowed_methods, reason = "from outside, there is nothing to wait on")]
    async fn until(&mut self, done: impl Fn(&Self, &Model) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if self.client.clone().running().await.is_empty() && done(self, &self.look().await.0) {
                return;
            }
            if Instant::now() >= deadline {
                let (seen, running) = (self.look().await.0, self.client.clone().running().await);
                panic!("it does not come: {seen:?} instead of {:?}; {running:?}\n{}", self.model, self.story());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What there is, all of it in order.
    async fn seen(&self) -> Model {
        let open = self.client.clone().running().await;
        assert!(open.is_empty(), "{open:?}\n{}", self.story());
        let (seen, broken) = self.look().await;
        assert!(broken.is_empty(), "not all of it is ready: {broken:?}\n{}", self.story());
        seen
    }

    async fn exports(&self) -> Vec<v1::Export> {
        if self.subject.backend() != Backend::Lvm {
            return Vec::new();
        }
        let request = v1::ListExportsRequest::default();
        self.client.clone().exports.list(request).await.unwrap().into_inner().exports
    }

    /// What is there and ready, and what is not.
    async fn look(&self) -> (Model, Vec<String>) {
        let (mut seen, mut broken) = (Model::default(), Vec::new());
        let number = |names: &[&str], name: &str| names.iter().position(|known| *known == name).unwrap();
        if self.subject.backend() != Backend::Iscsi {
            for volume in self.client.clone().volumes(&self.stage.scope(self.subject.backend())).await.unwrap() {
                let of = self.origins.iter().position(|origin| *origin == volume.origin).unwrap();
                let id = number(&MANAGED, &volume.id);
                assert_eq!(volume.locator, format!("{}volume-{}", self.prefix(), volume.id), "{}", self.story());
                seen.managed.insert(id, of);
            }
        }
        let of = |locator: &str| {
            let named = |volume: &usize| match seen.managed.iter().find(|(_, of)| *of == volume) {
                Some((id, _)) => locator == format!("{}volume-{}", self.prefix(), MANAGED[*id]),
                None => bare_locator(locator) == bare_locator(&self.origins[*volume]),
            };
            (0..VOLUMES).find(named)
        };
        let mut attached = BTreeMap::new();
        for attachment in self.client.clone().list().await.unwrap() {
            match of(&attachment.locator).filter(|_| attachment.state() == AttachmentState::Ready) {
                Some(volume) => {
                    attached.insert(number(&ATTACHMENTS, &attachment.id), (volume, attachment.persistent));
                }
                None => broken.push(format!("{attachment:?}")),
            }
        }
        let mut exported = BTreeMap::new();
        for export in self.exports().await {
            match of(&export.locator).filter(|_| export.ready) {
                Some(volume) => drop(exported.insert(number(&EXPORTS, &export.id), volume)),
                None => broken.push(format!("{export:?}")),
            }
        }
        (seen.attached, seen.exported) = (attached, exported);
        (seen, broken)
    }

    fn resize(&self, volume: usize, size: u64) {
        let (machine, lun) = (&self.stage.machine, u16::try_from(volume).unwrap());
        let locator = self.locator(volume);
        let name = locator.rsplit_once('/').unwrap().1;
        match self.subject {
            Subject::Volumes(Backend::File) => machine.truncate(format!("{DIRECTORY}/{name}"), size),
            Subject::Volumes(Backend::Iscsi) => machine.resize_lun(IQN, lun, size),
            Subject::Volumes(Backend::Lvm) => machine.extend_lv(VG, name, size),
            Subject::Volumes(Backend::Rbd) => machine.grow_image(CLUSTER, POOL, name, size),
            Subject::Multipath => machine.resize_lun(TWO_WAYS, lun, size),
        }
    }

    /// Takes everything back, and holds the machine against what it was.
    async fn end(&mut self) {
        self.step(Step::Vacate).await;
        for id in self.model.exported.clone().into_keys() {
            self.undisturbed(Call::Unexport { id }).await;
        }
        for id in self.model.attached.clone().into_keys() {
            self.undisturbed(Call::Detach { id }).await;
        }
        for id in self.model.managed.clone().into_keys() {
            self.undisturbed(Call::Unmanage { id }).await;
        }
        for volume in 0..VOLUMES {
            if self.sizes[volume] != SIZE {
                self.resize(volume, SIZE);
                self.sizes[volume] = SIZE;
            }
        }
        let now = self.stage.snapshot().await;
        let left: Vec<String> = difference(&self.bare, &now)
            .lines()
            .filter(|line| !STAYS.iter().any(|known| line.contains(known)))
            .map(str::to_owned)
            .collect();
        assert!(left.is_empty(), "something was left behind\n{}\n{}", left.join("\n"), self.story());
    }

    fn story(&self) -> String {
        format!("{:?}\n{}", self.subject, self.told.lock().unwrap().join("\n"))
    }
}

/// What a reboot, a first export or a first map leaves for good.
const STAYS: [&str; 4] = ["boot_id", "/etc/multipath/wwids", "iscsi/discovery_auth", "iscsi/lio_version"];

/// What could not be removed is no success.
fn gone(changed: bool, left: &[v1::Residual]) -> Result<bool, Refused> {
    match left.first() {
        None => Ok(changed),
        Some(left) => Err(Refused { code: tonic::Code::Ok, reason: "RESIDUAL".into(), message: format!("{left:?}") }),
    }
}

/// Without what its canonical form adds: the port that goes without saying.
fn bare_locator(locator: &str) -> String {
    locator.replace(":3260", "")
}

/// Parts of the names of calls on the machine, of which some come in each verb of some driver.
const CALLS: [&str; 20] = [
    "journal: begin",
    "journal: finish",
    "/dev/mortar",
    "claim",
    "flush",
    "users",
    "loop_attach",
    "loop_detach",
    "loop_devices",
    "run lvm",
    "lvchange",
    "lvrename",
    "fullreport",
    "iscsiadm",
    "write",
    "inquiry",
    "set_attributes",
    "rename",
    "mortar-rbd",
    "config/target",
];

fn calls(subject: Subject) -> BoxedStrategy<Call> {
    let (volume, id) = (0..VOLUMES, 0..ATTACHMENTS.len());
    let attach = (id.clone(), volume.clone(), any::<bool>());
    let attach = attach.prop_map(|(id, volume, persistent)| Call::Attach { id, volume, persistent });
    let detach = id.clone().prop_map(|id| Call::Detach { id });
    let extend = id.prop_map(|id| Call::Extend { id });
    let manage = (volume.clone(), 0..MANAGED.len(), any::<bool>());
    let manage = manage.prop_map(|(volume, id, in_use)| Call::Manage { volume, id, in_use });
    let unmanage = (0..MANAGED.len()).prop_map(|id| Call::Unmanage { id });
    let export = (0..EXPORTS.len(), volume).prop_map(|(id, volume)| Call::Export { id, volume });
    let unexport = (0..EXPORTS.len()).prop_map(|id| Call::Unexport { id });
    match subject.backend() {
        Backend::Iscsi => prop_oneof![3 => attach, 2 => detach, 1 => extend].boxed(),
        Backend::Lvm => prop_oneof![
            3 => attach, 2 => detach, 1 => extend, 2 => manage, 1 => unmanage, 2 => export, 1 => unexport
        ]
        .boxed(),
        _ => prop_oneof![3 => attach, 2 => detach, 1 => extend, 2 => manage, 1 => unmanage].boxed(),
    }
}

fn troubles() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        3 => Just(Trouble::None),
        1 => proptest::sample::select(&CALLS[..]).prop_map(Trouble::Fails),
        1 => proptest::sample::select(&CALLS[..]).prop_map(Trouble::Loses),
        3 => (1_usize..12, proptest::collection::vec(1_usize..6, 0..3))
            .prop_map(|(after, again)| Trouble::Crash(after, again)),
    ]
}

fn schedules(subject: Subject) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (calls(subject), troubles()).prop_map(|(call, trouble)| Step::Call(call, trouble)),
        1 => (0..VOLUMES).prop_map(Step::Grow),
        1 => (0..VOLUMES).prop_map(Step::Occupy),
        1 => Just(Step::Vacate),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
        1 => Just(Step::Repair),
    ];
    proptest::collection::vec(step, 1..5)
}

/// How long a schedule may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the dead agents of a machine hold goes with it.
const SCHEDULES_OF_A_MACHINE: u64 = 20;

/// What is random comes of this number, which the environment may give: a build fails for what was changed in it, and who looks
/// for more gives others.
const SEED: &str = "MORTAR_SEED";

fn seed() -> u64 {
    std::env::var(SEED).map_or(1, |text| text.parse().expect("MORTAR_SEED is a number"))
}

/// Plays so many schedules. A machine that was found as it had been is used for the next one.
fn play(subject: Subject, cases: u32) {
    let (steps, crashes, played) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stages: RefCell<Option<(Runtime, Play)>> = RefCell::default();
    let config = Config {
        cases,
        max_shrink_iters: 200,
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let seed = seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let done = TestRunner::new_with_rng(config, rng).run(&schedules(subject), |schedule| {
        steps.fetch_add(schedule.len() as u64, Ordering::Relaxed);
        let (runtime, mut play) = stages.take().unwrap_or_else(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let play = runtime.block_on(Play::new(subject));
            (runtime, play)
        });
        let story = Arc::clone(&play.told);
        let all = async {
            for step in schedule {
                play.step(step).await;
            }
            play.end().await;
        };
        let ended = runtime.block_on(async { timeout(PATIENCE, all).await });
        assert!(ended.is_ok(), "it does not come to an end\n{}", story.lock().unwrap().join("\n"));
        crashes.fetch_add(std::mem::take(&mut play.crashes), Ordering::Relaxed);
        play.told.lock().unwrap().clear();
        if !played.fetch_add(1, Ordering::Relaxed).is_multiple_of(SCHEDULES_OF_A_MACHINE) {
            stages.replace(Some((runtime, play)));
        }
        Ok(())
    });
    done.unwrap_or_else(|failed| panic!("with {SEED}={seed}: {failed}"));
    let played = played.into_inner();
    assert_eq!(played, u64::from(cases), "schedules");
    note(&Row::Model {
        driver: match subject {
            Subject::Volumes(Backend::Lvm) => "lvm, with exports".into(),
            Subject::Volumes(backend) => backend.to_string(),
            Subject::Multipath => "iscsi, two ways".into(),
        },
        schedules: played,
        steps: steps.into_inner(),
        crashes: crashes.into_inner(),
    });
}

/// How many schedules there are of each.
const CASES: u32 = 2000;

macro_rules! models {
    ($($name:ident: $subject:expr;)*) => {
        $(
            #[test]
            fn $name() {
                play($subject, CASES);
            }
        )*

        /// `make test` promises so many.
        #[test]
        fn there_are_ten_thousand_schedules() {
            let subjects: BTreeSet<&str> = [$(stringify!($name)),*].into();
            assert!(subjects.len() as u64 * u64::from(CASES) >= 10_000);
        }
    };
}

models! {
    file: Subject::Volumes(Backend::File);
    iscsi: Subject::Volumes(Backend::Iscsi);
    lvm_and_exports: Subject::Volumes(Backend::Lvm);
    multipath: Subject::Multipath;
    rbd: Subject::Volumes(Backend::Rbd);
}
