//! A hypervisor in memory, on a simulated machine: it keeps definitions as libvirt does, refuses what libvirt refuses, and
//! lets QEMU have the disks open that an instance runs with.
//!
//! The instances outlive an agent that crashes, as those of libvirtd do: a test keeps [`Domains`], and gives each agent a
//! [`Sim`] of its own. At a reboot of the machine all of them are off.

mod rules;

use crate::{
    Hypervisor, Instance, InstanceName, Power, Stopped,
    definition::{Definition, Source},
};
use async_trait::async_trait;
use driver::{Error, Readiness, Result};
use host::{Host, sim::Machine};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// The instances of a machine; a clone is another view of the same ones.
#[derive(Debug, Clone, Default)]
pub struct Domains(Arc<Mutex<State>>);

/// The hypervisor as one process of the machine sees it.
#[derive(Debug)]
pub struct Sim {
    domains: Domains,
    machine: Machine,
}

#[derive(Debug, Default)]
struct State {
    domains: BTreeMap<Uuid, Domain>,
    /// The daemon does not run.
    away: bool,
    /// What the next start fails with.
    refusals: Vec<String>,
    /// In which boot of the machine the instances run.
    boot_id: String,
    next_pid: u32,
}

#[derive(Debug)]
struct Domain {
    definition: String,
    running: Option<Run>,
    persistent: bool,
    autostart: bool,
    managed_save: bool,
    snapshots: u32,
    paused: bool,
    /// Its guest does not shut down when it is asked to.
    deaf: bool,
    /// What it booted from, each time.
    booted: Vec<String>,
}

/// An instance that runs.
#[derive(Debug, Clone)]
struct Run {
    definition: String,
    pid: u32,
}

/// What a test does to the instances.
impl Domains {
    /// A machine without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// The hypervisor, for a process of a machine.
    pub fn on(&self, machine: Machine) -> Sim {
        Sim { domains: self.clone(), machine }
    }

    /// Defines an instance, as an operator would with `virsh define`, and returns its UUID.
    pub fn put(&self, definition: &str) -> Uuid {
        self.state().define(definition).expect("a test defines what libvirt takes")
    }

    /// Starts an instance, or stops it, as an operator would.
    pub fn power(&self, machine: &Machine, instance: Uuid, on: bool) {
        let mut state = self.on_boot_of(machine);
        if on {
            state.start(machine, instance).expect("a test starts what can be started");
        } else {
            state.stop(machine, instance);
        }
    }

    /// How an instance is defined; `None` if there is none.
    pub fn defined(&self, instance: Uuid) -> Option<String> {
        self.state().domains.get(&instance).map(|domain| domain.definition.clone())
    }

    /// What stood on its serial console when it booted last: the source of the disk that it booted from. `None` if it never
    /// did.
    pub fn booted_from(&self, instance: Uuid) -> Option<String> {
        self.state().domains.get(&instance)?.booted.last().cloned()
    }

    /// The next start fails, and QEMU says this.
    pub fn fail_next_start(&self, said: impl Into<String>) {
        self.state().refusals.push(said.into());
    }

    /// The daemon is killed, or (`false`) runs again. Instances go on without it.
    pub fn away(&self, away: bool) {
        self.state().away = away;
    }

    /// Forgets an instance, as `virsh undefine` does.
    pub fn forget(&self, instance: Uuid) {
        self.state().domains.remove(&instance);
    }

    /// The instance's guest does not shut down when it is asked to.
    pub fn deafen(&self, instance: Uuid) {
        self.change(instance, |domain| domain.deaf = true);
    }

    /// The instance is halted where it is, or goes on.
    pub fn pause(&self, instance: Uuid, paused: bool) {
        self.change(instance, |domain| domain.paused = paused);
    }

    /// The instance is gone once it is stopped.
    pub fn make_transient(&self, instance: Uuid) {
        self.change(instance, |domain| domain.persistent = false);
    }

    /// The instance starts with the host.
    pub fn set_autostart(&self, instance: Uuid) {
        self.change(instance, |domain| domain.autostart = true);
    }

    /// The instance's memory was saved to go on from there.
    pub fn set_managed_save(&self, instance: Uuid, saved: bool) {
        self.change(instance, |domain| domain.managed_save = saved);
    }

    /// The hypervisor knows so many snapshots of it.
    pub fn set_snapshots(&self, instance: Uuid, snapshots: u32) {
        self.change(instance, |domain| domain.snapshots = snapshots);
    }

    /// How an instance runs is changed, and not how it is defined: a disk was plugged in.
    pub fn run_as(&self, instance: Uuid, definition: &str) {
        self.change(instance, |domain| {
            if let Some(run) = &mut domain.running {
                definition.clone_into(&mut run.definition);
            }
        });
    }

    /// All that can be seen of the instances, as text: their definitions, and whether they run.
    pub fn snapshot(&self) -> String {
        let state = self.state();
        let lines = state.domains.iter().map(|(uuid, domain)| {
            let power = if domain.running.is_some() { "runs" } else { "is off" };
            format!("{uuid} {power}\n{}\n", domain.definition)
        });
        lines.collect()
    }

    fn change(&self, instance: Uuid, change: impl FnOnce(&mut Domain)) {
        change(self.state().domains.get_mut(&instance).expect("a test changes an instance that is there"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instances, after what a reboot of the machine did to them.
    fn on_boot_of(&self, machine: &Machine) -> MutexGuard<'_, State> {
        let boot_id = machine.facts().map(|facts| facts.boot_id).unwrap_or_default();
        let mut state = self.state();
        if state.boot_id != boot_id {
            state.boot_id = boot_id;
            state.domains.retain(|_, domain| {
                let ran = domain.running.take().is_some();
                domain.persistent || !ran
            });
            let begin = |(uuid, domain): (&Uuid, &Domain)| domain.autostart.then_some(*uuid);
            let first: Vec<Uuid> = state.domains.iter().filter_map(begin).collect();
            for instance in first {
                // As libvirtd: one whose disks are not there yet stays off, and nobody is told but its log.
                let _logged = state.start(machine, instance);
            }
        }
        state
    }
}

impl State {
    fn domain(&mut self, instance: Uuid) -> Result<&mut Domain> {
        self.domains.get_mut(&instance).ok_or_else(|| Error::NotFound { what: format!("instance {instance}") })
    }

    fn define(&mut self, text: &str) -> Result<Uuid> {
        let kept = rules::kept(text)?;
        let definition = Definition::parse(&kept)?;
        let (uuid, name) = (definition.uuid()?, definition.name());
        let named = |(other, domain): (&Uuid, &Domain)| *other != uuid && domain.name() == name;
        if let Some((other, _)) = self.domains.iter().find(|(other, domain)| named((other, domain))) {
            return Err(rules::refused(format!("domain '{name}' already exists with uuid {other}")));
        }
        match self.domains.get_mut(&uuid) {
            Some(domain) => domain.definition = kept,
            None => {
                let domain = Domain {
                    definition: kept,
                    running: None,
                    persistent: true,
                    autostart: false,
                    managed_save: false,
                    snapshots: 0,
                    paused: false,
                    deaf: false,
                    booted: Vec::new(),
                };
                self.domains.insert(uuid, domain);
            }
        }
        Ok(uuid)
    }

    fn start(&mut self, machine: &Machine, instance: Uuid) -> Result<()> {
        let refusal = (!self.refusals.is_empty()).then(|| self.refusals.remove(0));
        let pid = 20_000 + self.next_pid;
        let domain = self.domain(instance)?;
        if domain.running.is_some() {
            return Ok(());
        }
        if let Some(said) = refusal {
            return Err(rules::refused(format!("internal error: process exited while connecting to monitor: {said}")));
        }
        let definition = Definition::parse(&domain.definition)?;
        let disks = definition.disks();
        for disk in &disks {
            if let Some(path) = disk.source.path()
                && machine.resolve(Path::new(path)).map_err(Error::host("look for a disk"))?.is_none()
            {
                return Err(rules::refused(format!("Cannot access storage file '{path}': No such file or directory")));
            }
        }
        let booted = rules::boots_from(&definition);
        for disk in disks {
            if let Source::Block(path) = &disk.source
                && let Ok(Some(node)) = machine.resolve(Path::new(path))
                && let Some(device) = node.file_name().and_then(|name| name.to_str())
            {
                machine.open(device, pid, "qemu-system-x86");
            }
        }
        domain.running = Some(Run { definition: domain.definition.clone(), pid });
        domain.managed_save = false;
        domain.paused = false;
        domain.booted.push(booted);
        self.next_pid += 1;
        Ok(())
    }

    fn stop(&mut self, machine: &Machine, instance: Uuid) {
        let Some(domain) = self.domains.get_mut(&instance) else { return };
        if let Some(run) = domain.running.take() {
            machine.close(run.pid);
        }
        if !domain.persistent {
            self.domains.remove(&instance);
        }
    }
}

impl Domain {
    fn name(&self) -> String {
        Definition::parse(&self.definition).map(|definition| definition.name()).unwrap_or_default()
    }

    fn instance(&self, uuid: Uuid) -> Instance {
        Instance {
            uuid,
            name: self.name(),
            power: match &self.running {
                None => Power::Off,
                Some(_) if self.paused => Power::Paused,
                Some(_) => Power::Running,
            },
            persistent: self.persistent,
            autostart: self.autostart,
            managed_save: self.managed_save,
            snapshots: self.snapshots,
        }
    }
}

impl Sim {
    /// The instances, if the daemon runs and the process that asks lives.
    async fn state(&self) -> Result<MutexGuard<'_, State>> {
        // Never answered in a dead process.
        self.machine.commits("libvirt").await.map_err(Error::host("ask libvirt"))?;
        let state = self.domains.on_boot_of(&self.machine);
        if state.away {
            let why = "connection refused; start it (systemctl start libvirtd)".into();
            return Err(Error::Unreachable { what: "libvirt".into(), why });
        }
        Ok(state)
    }
}

#[async_trait]
impl Hypervisor for Sim {
    async fn readiness(&self) -> Readiness {
        let problem = self.state().await.err().map(|error| error.to_string());
        Readiness { problem, tools: Vec::new() }
    }

    async fn instances(&self) -> Result<Vec<Instance>> {
        let state = self.state().await?;
        let mut all: Vec<Instance> = state.domains.iter().map(|(uuid, domain)| domain.instance(*uuid)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    async fn instance(&self, name: &InstanceName) -> Result<Instance> {
        let all = self.instances().await?;
        let by_uuid = all.iter().find(|instance| Some(instance.uuid) == name.uuid());
        let found = by_uuid.or_else(|| all.iter().find(|instance| instance.name == name.as_str()));
        found.cloned().ok_or_else(|| Error::NotFound { what: format!("instance {name}") })
    }

    async fn definition(&self, instance: Uuid) -> Result<String> {
        let mut state = self.state().await?;
        let domain = state.domain(instance)?;
        match domain.persistent {
            true => Ok(domain.definition.clone()),
            false => Err(Error::WrongState {
                what: format!("instance {} is transient: nothing of it would outlive its stop", domain.name()),
            }),
        }
    }

    async fn running_definition(&self, instance: Uuid) -> Result<Option<String>> {
        Ok(self.state().await?.domain(instance)?.running.as_ref().map(|run| run.definition.clone()))
    }

    async fn define(&self, definition: &str) -> Result<String> {
        let uuid = Definition::parse(definition)?.uuid()?;
        let mut state = self.state().await?;
        state.domain(uuid)?;
        state.define(definition)?;
        Ok(state.domain(uuid)?.definition.clone())
    }

    async fn start(&self, instance: Uuid, _deadline: Instant) -> Result<()> {
        self.state().await?.start(&self.machine, instance)
    }

    async fn stop(&self, instance: Uuid, grace: Instant, _deadline: Instant) -> Result<Stopped> {
        let deaf = {
            let mut state = self.state().await?;
            let domain = state.domain(instance)?;
            if domain.running.is_none() {
                return Ok(Stopped::WasOff);
            }
            domain.deaf || domain.paused
        };
        if deaf {
            sleep_until(grace).await;
        }
        self.state().await?.stop(&self.machine, instance);
        Ok(if deaf { Stopped::Hard } else { Stopped::Gracefully })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;
    use std::time::Duration;

    fn definition(disks: &str) -> String {
        format!(
            "<domain type='qemu'>\n  <name>box</name>\n  <uuid>5f1e8f0a-0000-4000-8000-000000000001</uuid>\n  \
             <devices>{disks}\n  </devices>\n</domain>\n"
        )
    }

    fn block(path: &str, target: &str, rest: &str) -> String {
        format!(
            "\n    <disk type='block' device='disk'>\n      <source dev='{path}'/>\n      \
             <target dev='{target}' bus='virtio'/>{rest}\n    </disk>"
        )
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(9)
    }

    #[tokio::test(start_paused = true)]
    async fn qemu_has_the_disks_open_until_it_ends() {
        let (mut machine, domains) = (Machine::new(), Domains::new());
        machine.put_raw("/srv/a.raw", 4096);
        let setup = host::LoopSetup { file: "/srv/a.raw".into(), read_only: false, label: String::new() };
        let device = machine.loop_attach(&setup).await.unwrap();
        machine.put_link("/dev/mortar/a", &device);
        let uuid = domains.put(&definition(&block("/dev/mortar/a", "vda", "")));
        let sim = domains.on(machine.clone());
        sim.start(uuid, soon()).await.unwrap();
        let users = machine.users(&device).await.unwrap();
        assert_eq!(users.iter().map(ToString::to_string).collect::<Vec<_>>(), ["open by qemu-system-x86 (pid 20000)"]);
        assert_eq!(domains.booted_from(uuid).as_deref(), Some("/dev/mortar/a"));
        let before = Instant::now();
        assert_eq!(sim.stop(uuid, soon(), soon()).await.unwrap(), Stopped::Gracefully);
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(machine.users(&device).await.unwrap().is_empty());

        domains.deafen(uuid);
        sim.start(uuid, soon()).await.unwrap();
        assert_eq!(sim.stop(uuid, soon(), soon()).await.unwrap(), Stopped::Hard);
        assert_eq!(before.elapsed(), Duration::from_secs(9));

        sim.start(uuid, soon()).await.unwrap();
        machine.reboot();
        let sim = domains.on(machine.clone());
        assert_eq!(sim.instance(&"box".parse().unwrap()).await.unwrap().power, Power::Off);
        let refused = sim.start(uuid, soon()).await.unwrap_err().to_string();
        assert!(refused.contains("Cannot access storage file '/dev/mortar/a'"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_libvirt_refuses_is_refused() {
        let (machine, domains) = (Machine::new(), Domains::new());
        let uuid = domains.put(&definition(&block("/dev/sda", "vda", "")));
        let sim = domains.on(machine.clone());
        let kept = sim.definition(uuid).await.unwrap();
        assert!(kept.contains("<address type='pci'"), "{kept}");
        assert_eq!(sim.define(&kept).await.unwrap(), kept);
        for (disks, said) in [
            (block("/dev/sda", "vda", "") + &block("/dev/sdb", "vda", ""), "target 'vda' duplicated"),
            (
                block("/dev/sda", "vda", "<boot order='1'/>") + &block("/dev/sdb", "vdb", "<boot order='1'/>"),
                "boot order 1 used for more than one device",
            ),
            (
                block("/dev/sda", "vda", "<address type='pci' slot='1'/>")
                    + &block("/dev/sdb", "vdb", "<address type='pci' slot='1'/>"),
                "in use already",
            ),
        ] {
            let error = sim.define(&definition(&disks)).await.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let both = definition(&block("/dev/sda", "vda", "<boot order='1'/>"));
        let both = both.replace("<devices>", "<os><boot dev='hd'/></os><devices>");
        assert!(sim.define(&both).await.is_err());
        let other = kept.replace("000000000001", "000000000002");
        assert!(matches!(sim.define(&other).await, Err(Error::NotFound { .. })));
        assert_eq!(sim.definition(uuid).await.unwrap(), kept);

        domains.away(true);
        assert!(matches!(sim.instances().await, Err(Error::Unreachable { .. })));
        domains.away(false);
        domains.make_transient(uuid);
        assert!(matches!(sim.definition(uuid).await, Err(Error::WrongState { .. })));
    }

    #[tokio::test]
    async fn a_uuid_decides_over_a_name() {
        let (machine, domains) = (Machine::new(), Domains::new());
        let uuid = domains.put(&definition(""));
        let other = definition("").replace("000000000001", "000000000002").replace("box", &uuid.to_string());
        domains.put(&other);
        let sim = domains.on(machine);
        assert_eq!(sim.instance(&uuid.to_string().parse().unwrap()).await.unwrap().name, "box");
        assert_eq!(sim.instances().await.unwrap().len(), 2);
    }
}
