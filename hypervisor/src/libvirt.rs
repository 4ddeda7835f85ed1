//! libvirt: the hypervisor's daemon, through its C library.
//!
//! The library's calls block, some for as long as the daemon or QEMU likes. So each has a thread of its own and a deadline,
//! after which nobody waits for it any more; the step that it is goes on until the thread has its answer. When so many
//! threads wait that the daemon must be stuck, more are refused.
//!
//! There is one connection. It is made when it is needed, made again when the daemon went away, and closed when it was not
//! needed for a while: the daemon ends by itself when nobody is connected.
//!
//! ```text
//!              a call                        answered
//!   (none) ─────────────▶ open ──▶ look ───────────────▶ the call, on a thread
//!      ▲                            │ gone: once more           │
//!      └──────── a minute without a call, or the daemon went away
//! ```

use crate::{Hypervisor, Instance, InstanceName, Power, Stopped, definition::Definition};
use async_trait::async_trait;
use driver::{Error, Readiness, Result, Tool};
use host::{
    libvirt::{
        Connection, Domain, LIST_AUTOSTART, LIST_HAS_SNAPSHOT, LIST_MANAGEDSAVE, LIST_PAUSED, LIST_PERSISTENT,
        LIST_RUNNING, LIST_SHUTOFF, Library, STATE_BLOCKED, STATE_PAUSED, STATE_RUNNING, STATE_SHUTOFF, Said,
        XML_INACTIVE, XML_SECURE,
    },
    step,
};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at},
};
use uuid::Uuid;

/// Where the daemon of the system listens.
pub const SYSTEM: &str = "qemu:///system";

/// How long the daemon may take to tell or to keep something.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// How many calls may wait for the daemon, and for how long the next one waits for its turn.
const THREADS: usize = 16;
const TURN_WITHIN: Duration = Duration::from_secs(1);

const IDLE: Duration = Duration::from_secs(60);

/// How often is looked whether an instance is off.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often a guest is asked to shut down: one that boots does not hear it.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The definition that is kept, with its passwords.
const AS_KEPT: u32 = XML_INACTIVE | XML_SECURE;

/// `virErrorNumber`, virterror.h.
const NO_CONNECT: i32 = 5;
const OPERATION_DENIED: i32 = 29;
const NO_DOMAIN: i32 = 42;
const AUTH_FAILED: i32 = 45;
const OPERATION_INVALID: i32 = 55;
const OPERATION_TIMEOUT: i32 = 68;
const AUTH_CANCELLED: i32 = 79;
const ACCESS_DENIED: i32 = 88;
const AUTH_UNAVAILABLE: i32 = 94;

/// `virErrorDomain`: what carries the calls to the daemon.
const OF_RPC: i32 = 7;
const OF_REMOTE: i32 = 13;

/// libvirt on this host.
#[derive(Debug)]
pub struct Libvirt {
    daemon: Arc<Daemon>,
    threads: Arc<Semaphore>,
}

#[derive(Debug)]
struct Daemon {
    uri: String,
    /// For how long a connection is kept that nobody uses.
    idle: Duration,
    library: Mutex<Option<Library>>,
    kept: Mutex<Option<Arc<Connection>>>,
    /// How many calls there were.
    calls: AtomicU64,
    /// Somebody waits to close the connection.
    closing: AtomicBool,
}

impl Libvirt {
    /// The hypervisor at a URI, such as [`SYSTEM`]. Nothing is asked of it yet.
    pub fn new(uri: impl Into<String>) -> Self {
        Self::closed_after(IDLE, uri)
    }

    fn closed_after(idle: Duration, uri: impl Into<String>) -> Self {
        let daemon = Daemon {
            uri: uri.into(),
            idle,
            library: Mutex::new(None),
            kept: Mutex::new(None),
            calls: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        };
        Self { daemon: Arc::new(daemon), threads: Arc::new(Semaphore::new(THREADS)) }
    }

    /// Makes a call, to its end whether somebody waits for it or not.
    async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        deadline: Instant,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Ok(Ok(turn)) = timeout(TURN_WITHIN, Arc::clone(&self.threads).acquire_owned()).await else {
            let why = format!("{THREADS} earlier calls wait for it; see what it does (systemctl status libvirtd)");
            return Err(unreachable(why));
        };
        let (sender, answer) = oneshot::channel();
        let (daemon, step) = (Arc::clone(&self.daemon), step::current());
        let run = move || {
            let done = daemon.connection().and_then(|connection| {
                let done = work(&connection);
                if matches!(done, Err(Error::Unreachable { .. })) {
                    daemon.forget(&connection);
                }
                done
            });
            drop((step, turn));
            let _nobody_waits = sender.send(done);
        };
        thread::Builder::new().name("mortar-libvirt".into()).spawn(run).map_err(Error::host("start a thread"))?;
        let done = match timeout_at(deadline, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(panicked)) => Err(Error::host(doing)(panicked)),
            Err(_) => Err(Error::TimedOut { waiting_for: format!("libvirt to {doing}") }),
        };
        self.close_when_idle();
        done
    }

    /// As [`Libvirt::call`], for what the daemon answers by itself.
    async fn ask<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(doing, Instant::now() + ANSWERS_WITHIN, work).await
    }

    fn close_when_idle(&self) {
        self.daemon.calls.fetch_add(1, Ordering::Relaxed);
        if self.daemon.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        let daemon = Arc::clone(&self.daemon);
        tokio::spawn(async move {
            let mut seen = None;
            while seen != Some(daemon.calls.load(Ordering::Relaxed)) {
                seen = Some(daemon.calls.load(Ordering::Relaxed));
                sleep_until(Instant::now() + daemon.idle).await;
            }
            daemon.closing.store(false, Ordering::Release);
            let unused = daemon.kept().take();
            // It says good-bye, and may wait for an answer.
            let close = move || drop(unused);
            if let Err(error) = thread::Builder::new().name("mortar-libvirt".into()).spawn(close) {
                tracing::warn!("cannot close the connection to libvirt: {error}");
            }
        });
    }

    /// Whether an instance still runs; one that is gone altogether does not.
    async fn runs(&self, instance: Uuid, deadline: Instant) -> Result<bool> {
        let look = move |connect: &Connection| match find(connect, instance) {
            Ok(domain) => domain.is_active().or_else(|error| absent_is(false, error)).map_err(refused("look at it")),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        self.call("look whether it runs", deadline, look).await
    }

    /// Asks the guest to shut down, now and then, until it has or `until` has come. `false` if it is still there.
    async fn shut_down(&self, instance: Uuid, until: Instant) -> Result<bool> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: Option<Instant> = None;
        while timeout_at(until, looks.tick()).await.is_ok() {
            if !self.runs(instance, Instant::now() + ANSWERS_WITHIN).await? {
                return Ok(true);
            }
            if asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
                continue;
            }
            let ask = move |connect: &Connection| {
                let heard = find(connect, instance)?.shut_down();
                heard.map(|()| true).or_else(|error| absent_is(true, error)).map_err(refused("shut it down"))
            };
            match self.call("shut it down", until, ask).await {
                Ok(_) => asked = Some(Instant::now()),
                Err(Error::NotFound { .. }) => return Ok(true),
                // An agent in the guest that does not answer keeps the daemon waiting until then.
                Err(Error::TimedOut { .. }) => break,
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!("{instance} cannot be asked to shut down: {error}");
                    break;
                }
            }
        }
        Ok(!self.runs(instance, Instant::now() + ANSWERS_WITHIN).await?)
    }
}

impl Daemon {
    fn kept(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn library(&self) -> Result<Library> {
        let mut loaded = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*loaded {
            return Ok(library.clone());
        }
        let library = Library::load().map_err(|error| {
            unreachable(format!("its library cannot be loaded ({error}); install it (libvirt0), then try again"))
        })?;
        Ok(loaded.insert(library).clone())
    }

    /// A connection whose daemon answers.
    fn connection(&self) -> Result<Arc<Connection>> {
        let kept = self.kept().clone();
        if let Some(connection) = kept {
            if connection.version().is_ok() {
                return Ok(connection);
            }
            self.forget(&connection);
        }
        let open = self.library()?.connect(&self.uri).map_err(|error| match refused("connect to it")(error) {
            denied @ Error::Denied { .. } => denied,
            other => unreachable(format!("{}; start it (systemctl start libvirtd), then try again", why(&other))),
        })?;
        let connection = Arc::new(open);
        *self.kept() = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// This connection is of no use any more.
    fn forget(&self, connection: &Arc<Connection>) {
        let mut kept = self.kept();
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, connection)) {
            *kept = None;
        }
    }
}

fn unreachable(why: String) -> Error {
    Error::Unreachable { what: "libvirt".into(), why }
}

fn why(error: &Error) -> String {
    match error {
        Error::Unreachable { why, .. } => why.clone(),
        other => other.to_string(),
    }
}

/// What libvirt says, on one line: QEMU's own words have several.
fn words(error: &Said) -> String {
    error.message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// For `map_err`: libvirt did not do what we asked.
fn refused(doing: &str) -> impl FnOnce(Said) -> Error {
    let doing = doing.to_owned();
    move |error| {
        let said = words(&error);
        match (error.domain, error.code) {
            (OF_RPC | OF_REMOTE, _) | (_, NO_CONNECT) => unreachable(said),
            (_, NO_DOMAIN) => Error::NotFound { what: "the instance".into() },
            (_, AUTH_FAILED | AUTH_CANCELLED | AUTH_UNAVAILABLE | ACCESS_DENIED | OPERATION_DENIED) => {
                Error::Denied { who: "libvirt".into(), why: said }
            }
            (_, OPERATION_TIMEOUT) => Error::TimedOut { waiting_for: format!("libvirt to {doing} ({said})") },
            _ => Error::WrongState { what: format!("libvirt could not {doing}: {said}") },
        }
    }
}

/// An answer for an instance that went away or off meanwhile.
fn absent_is<T>(answer: T, error: Said) -> std::result::Result<T, Said> {
    match error.code {
        NO_DOMAIN | OPERATION_INVALID => Ok(answer),
        _ => Err(error),
    }
}

fn find(connect: &Connection, instance: Uuid) -> Result<Domain> {
    connect.by_uuid(instance.as_bytes()).map_err(|error| match refused("look for it")(error) {
        Error::NotFound { .. } => Error::NotFound { what: format!("instance {instance}") },
        other => other,
    })
}

fn is_persistent(domain: &Domain) -> Result<()> {
    match domain.is_persistent().map_err(refused("look at it"))? {
        true => Ok(()),
        false => Err(Error::WrongState {
            what: format!("instance {} is transient: nothing of it would outlive its stop", domain.name()),
        }),
    }
}

fn describe(domain: &Domain) -> std::result::Result<Instance, Said> {
    Ok(Instance {
        uuid: Uuid::from_bytes(domain.uuid()?),
        name: domain.name(),
        power: power(domain.state()?),
        persistent: domain.is_persistent()?,
        autostart: domain.autostart()?,
        managed_save: domain.has_managed_save()?,
        snapshots: domain.snapshots()?,
    })
}

fn power(state: i32) -> Power {
    match state {
        STATE_RUNNING | STATE_BLOCKED => Power::Running,
        STATE_PAUSED => Power::Paused,
        STATE_SHUTOFF => Power::Off,
        _ => Power::Other,
    }
}

/// Every instance, with a few questions however many they are.
fn list(connect: &Connection) -> std::result::Result<Vec<Instance>, Said> {
    let those = |flag| {
        let domains = connect.domains(flag)?;
        let uuids = domains.iter().map(|domain| domain.uuid().map(Uuid::from_bytes));
        uuids.collect::<std::result::Result<HashSet<Uuid>, Said>>()
    };
    let running = those(LIST_RUNNING)?;
    let paused = those(LIST_PAUSED)?;
    let off = those(LIST_SHUTOFF)?;
    let persistent = those(LIST_PERSISTENT)?;
    let autostart = those(LIST_AUTOSTART)?;
    let managed_save = those(LIST_MANAGEDSAVE)?;
    let with_snapshots = those(LIST_HAS_SNAPSHOT)?;
    let mut all = Vec::new();
    for domain in connect.domains(0)? {
        let uuid = Uuid::from_bytes(domain.uuid()?);
        all.push(Instance {
            uuid,
            name: domain.name(),
            power: match uuid {
                uuid if running.contains(&uuid) => Power::Running,
                uuid if paused.contains(&uuid) => Power::Paused,
                uuid if off.contains(&uuid) => Power::Off,
                _ => Power::Other,
            },
            persistent: persistent.contains(&uuid),
            autostart: autostart.contains(&uuid),
            managed_save: managed_save.contains(&uuid),
            snapshots: match with_snapshots.contains(&uuid) {
                true => domain.snapshots().or_else(|error| absent_is(0, error))?,
                false => 0,
            },
        });
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn readiness(&self) -> Readiness {
        let version = |connect: &Connection| connect.version().map_err(refused("tell its version"));
        match self.ask("tell its version", version).await {
            Ok(version) => {
                let version = format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
                let daemon = Tool { name: "libvirt".into(), path: self.daemon.uri.clone().into(), version };
                Readiness { problem: None, tools: vec![daemon] }
            }
            Err(error) => Readiness { problem: Some(error.to_string()), tools: Vec::new() },
        }
    }

    async fn instances(&self) -> Result<Vec<Instance>> {
        self.ask("list the instances", |connect| list(connect).map_err(refused("list the instances"))).await
    }

    async fn instance(&self, wanted: &InstanceName) -> Result<Instance> {
        let wanted = wanted.clone();
        let look = move |connect: &Connection| {
            let by_name = || connect.by_name(wanted.as_str());
            let found = match wanted.uuid() {
                Some(uuid) => connect.by_uuid(uuid.as_bytes()).or_else(|error| match error.code {
                    NO_DOMAIN => by_name(),
                    _ => Err(error),
                }),
                None => by_name(),
            };
            let described = found.and_then(|domain| describe(&domain));
            described.map_err(|error| match refused("look at the instance")(error) {
                Error::NotFound { .. } => Error::NotFound { what: format!("instance {wanted}") },
                other => other,
            })
        };
        self.ask("look at the instance", look).await
    }

    async fn definition(&self, instance: Uuid) -> Result<String> {
        let read = move |connect: &Connection| {
            let domain = find(connect, instance)?;
            is_persistent(&domain)?;
            domain.xml(AS_KEPT).map_err(refused("tell the definition"))
        };
        self.ask("tell the definition", read).await
    }

    async fn running_definition(&self, instance: Uuid) -> Result<Option<String>> {
        let read = move |connect: &Connection| {
            let domain = find(connect, instance)?;
            let live = domain.is_active().and_then(|active| match active {
                true => domain.xml(XML_SECURE).map(Some),
                false => Ok(None),
            });
            live.map_err(refused("tell how it runs"))
        };
        self.ask("tell how it runs", read).await
    }

    async fn define(&self, definition: &str) -> Result<String> {
        let uuid = Definition::parse(definition)?.uuid()?;
        let text = definition.to_owned();
        let define = move |connect: &Connection| {
            let doing = format!("define {}", find(connect, uuid)?.name());
            let defined = connect.define(&text);
            defined.and_then(|domain| domain.xml(AS_KEPT)).map_err(refused(&doing))
        };
        self.ask("define it", define).await
    }

    async fn start(&self, instance: Uuid, deadline: Instant) -> Result<()> {
        let start = move |connect: &Connection| {
            let domain = find(connect, instance)?;
            if domain.is_active().map_err(refused("look at it"))? {
                return Ok(());
            }
            match domain.start() {
                Ok(()) => Ok(()),
                // Somebody else was quicker.
                Err(error) if error.code == OPERATION_INVALID && domain.is_active().unwrap_or(false) => Ok(()),
                Err(error) => Err(refused(&format!("start {}", domain.name()))(error)),
            }
        };
        self.call("start it", deadline, start).await
    }

    async fn stop(&self, instance: Uuid, grace: Instant, deadline: Instant) -> Result<Stopped> {
        let look = move |connect: &Connection| {
            let state = find(connect, instance)?.state().map_err(refused("look at it"))?;
            Ok(power(state))
        };
        let power = self.ask("look whether it runs", look).await?;
        if power == Power::Off {
            return Ok(Stopped::WasOff);
        }
        // A guest whose processors stand still hears nothing.
        if power != Power::Paused && self.shut_down(instance, grace.min(deadline)).await? {
            return Ok(Stopped::Gracefully);
        }
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held_up = None;
        while timeout_at(deadline, looks.tick()).await.is_ok() {
            let destroy = move |connect: &Connection| {
                let ended = find(connect, instance)?.destroy();
                ended.or_else(|error| absent_is((), error)).map_err(refused("end it"))
            };
            match self.call("end it", deadline, destroy).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                // Its process does not die, as when its disk does not answer.
                Err(error @ (Error::WrongState { .. } | Error::TimedOut { .. })) => held_up = Some(error.to_string()),
                Err(error) => return Err(error),
            }
            if !self.runs(instance, Instant::now() + ANSWERS_WITHIN).await? {
                return Ok(Stopped::Hard);
            }
        }
        let why = held_up.map(|why| format!(" ({why})")).unwrap_or_default();
        Err(Error::TimedOut { waiting_for: format!("instance {instance} to end{why}") })
    }
}

#[cfg(test)]
mod tests {
    //! On libvirt's own test driver, which keeps everything in this process.

    use super::*;

    fn definition(name: &str, number: u128, rest: &str) -> String {
        let uuid = Uuid::from_u128(number);
        format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>{name}</name>\
             <uuid>{uuid}</uuid><memory unit='MiB'>32</memory><os><type arch='i686'>hvm</type></os><devices>\
             <disk type='file' device='disk'><source file='/srv/a.raw'/><target dev='vda' bus='virtio'/></disk></devices>\
             {rest}</domain>"
        )
    }

    const OFF: &str = "<test:runstate>5</test:runstate>";
    const PAUSED: &str = "<test:runstate>3</test:runstate>";

    const BOX: Uuid = Uuid::from_u128(1);
    const HALTED: Uuid = Uuid::from_u128(3);
    const TRANSIENT: Uuid = Uuid::from_u128(4);

    /// A host with four instances. Each connection has its own.
    fn host(idle: Duration) -> (Libvirt, tempfile::NamedTempFile) {
        let domains = [
            definition("box", 1, OFF),
            // Another one's UUID for a name.
            definition(&BOX.to_string(), 2, OFF),
            definition("halted", 3, PAUSED),
            definition("transient", 4, "<test:transient/>"),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("<node><cpu><mhz>1000</mhz><model>i986</model></cpu>{}</node>", domains.concat());
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
        (Libvirt::closed_after(idle, format!("test://{}", file.path().display())), file)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn instances_are_found_by_uuid_and_by_name() {
        let (libvirt, _file) = host(IDLE);
        let found = libvirt.instance(&"box".parse().unwrap()).await.unwrap();
        assert_eq!((found.uuid, found.power, found.persistent), (BOX, Power::Off, true));
        // The UUID decides.
        assert_eq!(libvirt.instance(&BOX.to_string().parse().unwrap()).await.unwrap(), found);
        let all = libvirt.instances().await.unwrap();
        let seen: Vec<_> = all.iter().map(|one| (one.name.clone(), one.power, one.persistent)).collect();
        let expected = [
            (BOX.to_string(), Power::Off, true),
            ("box".to_owned(), Power::Off, true),
            ("halted".to_owned(), Power::Paused, true),
            ("transient".to_owned(), Power::Running, false),
        ];
        assert_eq!(seen, expected);
        assert_eq!(all[1], found);

        let error = libvirt.instance(&"nobody".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.to_string(), "instance nobody is not there");
        let error = libvirt.start(Uuid::from_u128(9), soon()).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_definition_is_kept_byte_for_byte() {
        let (libvirt, _file) = host(IDLE);
        let kept = libvirt.definition(BOX).await.unwrap();
        let other = kept.replace("/srv/a.raw", "/srv/it&apos;s &lt;b&gt;.raw");
        assert_eq!(libvirt.define(&other).await.unwrap(), other);
        assert_eq!(libvirt.define(&kept).await.unwrap(), kept);
        assert_eq!(libvirt.running_definition(BOX).await.unwrap(), None);

        let error = libvirt.define(&kept.replace("'vda'", "''")).await.unwrap_err();
        assert!(error.to_string().starts_with("libvirt could not define box: "), "{error}");
        let unknown = definition("unknown", 9, "");
        assert!(matches!(libvirt.define(&unknown).await, Err(Error::NotFound { .. })));
        assert_eq!(libvirt.definition(BOX).await.unwrap(), kept);
    }

    #[tokio::test]
    async fn starting_and_stopping_twice_changes_nothing() {
        let (libvirt, _file) = host(IDLE);
        assert_eq!(libvirt.stop(BOX, soon(), soon()).await.unwrap(), Stopped::WasOff);
        libvirt.start(BOX, soon()).await.unwrap();
        libvirt.start(BOX, soon()).await.unwrap();
        assert!(libvirt.running_definition(BOX).await.unwrap().unwrap().contains("<domain type='test' id="));
        assert_eq!(libvirt.stop(BOX, soon(), soon()).await.unwrap(), Stopped::Gracefully);
        assert_eq!(libvirt.reboot(BOX, soon(), soon()).await.unwrap(), Stopped::WasOff);

        let begun = Instant::now();
        assert_eq!(libvirt.stop(HALTED, soon(), soon()).await.unwrap(), Stopped::Hard);
        assert!(begun.elapsed() < Duration::from_secs(15), "it waited for a guest that stands still");

        let error = libvirt.definition(TRANSIENT).await.unwrap_err();
        assert!(error.to_string().contains("instance transient is transient"), "{error}");
        assert_eq!(libvirt.stop(TRANSIENT, soon(), soon()).await.unwrap(), Stopped::Gracefully);
        assert!(matches!(libvirt.stop(TRANSIENT, soon(), soon()).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn without_a_daemon_it_is_unreachable() {
        let libvirt = Libvirt::new("qemu+unix:///system?socket=/nowhere/libvirt-sock");
        let error = libvirt.instances().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("start it (systemctl start libvirtd)"), "{error}");
        assert_eq!(libvirt.readiness().await.problem, Some(error.to_string()));
        let ready = Libvirt::new("test:///default").readiness().await;
        assert_eq!((ready.problem, ready.tools.len()), (None, 1));
    }

    #[tokio::test]
    async fn calls_that_hang_are_given_up_and_their_number_is_limited() {
        let (libvirt, _file) = host(IDLE);
        let (answer, daemon) = std::sync::mpsc::channel::<()>();
        let daemon = Arc::new(Mutex::new(daemon));
        let at_once = Instant::now();
        for _ in 0..THREADS {
            let daemon = Arc::clone(&daemon);
            let hangs = move |_: &Connection| {
                let _answered = daemon.lock().unwrap().recv();
                Ok(())
            };
            let error = libvirt.call("think", at_once, hangs).await.unwrap_err();
            assert_eq!(error.to_string(), "timed out waiting for libvirt to think");
        }
        let error = libvirt.definition(BOX).await.unwrap_err();
        assert!(error.to_string().contains("16 earlier calls wait for it"), "{error}");
        drop(answer);
        while libvirt.definition(BOX).await.is_err() {
            assert!(at_once.elapsed() < Duration::from_secs(20), "a thread is not given back");
        }
    }

    #[tokio::test]
    async fn a_connection_that_nobody_uses_is_closed() {
        let (libvirt, _file) = host(Duration::from_millis(100));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            libvirt.definition(BOX).await.unwrap();
            assert!(libvirt.daemon.kept().is_some());
        }
        while libvirt.daemon.kept().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is kept");
            sleep_until(Instant::now() + Duration::from_millis(20)).await;
        }
        libvirt.definition(BOX).await.unwrap();
    }
}
