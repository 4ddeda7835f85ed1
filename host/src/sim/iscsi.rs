//! The iSCSI side of the simulated machine: targets on the network, open-iscsi's client, its records and sessions, and the
//! kernel's SCSI devices.
//!
//! What is imitated was seen with Linux 6.1, LIO and open-iscsi 2.1.8: exit codes and words, what sysfs remembers and what a
//! device answers, what happens at once and what later.

use super::{Machine, Reach, World, multipath, world::Block};
use crate::{Command, Error, Output, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

const NODES: &str = "/etc/iscsi/nodes";
const INTERFACES: &str = "/etc/iscsi/ifaces";

/// How long the disk driver takes to make a block device of a unit.
const PROBE: Duration = Duration::from_millis(10);

/// A logical unit of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalUnit {
    /// The name in page 0x83.
    naa: Option<[u8; 16]>,
    /// The serial number in page 0x80.
    serial: Option<String>,
    size_bytes: u64,
    block_size: u32,
    read_only: bool,
    /// The peripheral device type.
    kind: u8,
}

impl LogicalUnit {
    /// A disk by the 32 hexadecimal digits of its NAA name.
    pub fn disk(naa: &str, size_bytes: u64) -> Self {
        let number = u128::from_str_radix(naa, 16).ok().filter(|_| naa.len() == 32);
        Self {
            naa: Some(number.unwrap_or_else(|| panic!("{naa} is no NAA name")).to_be_bytes()),
            serial: Some(naa.to_ascii_lowercase()),
            size_bytes,
            block_size: 512,
            read_only: false,
            kind: 0,
        }
    }

    /// One that has no name, but a serial number.
    pub fn without_name(self) -> Self {
        Self { naa: None, ..self }
    }

    /// One that has no serial number.
    pub fn without_serial(self) -> Self {
        Self { serial: None, ..self }
    }

    /// One that refuses writes.
    pub fn write_protected(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// One of another peripheral device type.
    pub fn of_type(self, kind: u8) -> Self {
        Self { kind, ..self }
    }

    /// Its vital product data as LIO gives them.
    fn page(&self, page: u8) -> Option<Vec<u8>> {
        let serial = self.serial.as_deref().unwrap_or_default();
        let body = match page {
            0x80 => self.serial.as_ref().map(|serial| [serial.as_bytes(), &[0]].concat())?,
            0x83 => {
                let mut body = Vec::new();
                if let Some(naa) = &self.naa {
                    body.extend([1, 3, 0, 16]);
                    body.extend(naa);
                    let text = format!("LIO-ORG FILEIO:{serial}\0");
                    body.extend([2, 1, 0, u8::try_from(text.len()).unwrap_or(0)]);
                    body.extend(text.as_bytes());
                }
                // The relative target port: not a name of the unit.
                body.extend([0x51, 0x94, 0, 4, 0, 0, 0, 1]);
                body
            }
            _ => return None,
        };
        let length = u16::try_from(body.len()).ok()?.to_be_bytes();
        Some([&[self.kind, page], length.as_slice(), &body].concat())
    }
}

/// What the machine and its network hold.
#[derive(Debug, Default)]
pub(crate) struct Iscsi {
    targets: BTreeMap<String, Target>,
    silent: BTreeSet<SocketAddr>,
    cut: BTreeSet<SocketAddr>,
    sessions: BTreeMap<u32, Session>,
    last_session: u32,
    /// By address: `2:0:0:1`.
    devices: BTreeMap<String, Device>,
}

#[derive(Debug, Default)]
struct Target {
    portals: BTreeSet<SocketAddr>,
    units: BTreeMap<u16, LogicalUnit>,
    chap: Option<(String, String)>,
    down: bool,
    hides: bool,
}

#[derive(Debug, Clone)]
struct Session {
    iqn: String,
    portal: SocketAddr,
    interface: String,
    host: u32,
}

/// A unit as the kernel remembers it.
#[derive(Debug)]
struct Device {
    session: u32,
    lun: u16,
    unit: LogicalUnit,
    /// Once the disk driver has taken it.
    name: Option<String>,
}

/// What a test does to the network, and what an operator does at the shell.
impl Machine {
    /// A target that listens at some portals: `add_target("iqn.2026-11.org.example:t1", &["10.0.0.5:3260"])`.
    pub fn add_target(&self, iqn: &str, portals: &[&str]) {
        let portals = portals.iter().map(|portal| address(portal)).collect();
        self.with(|world| world.iscsi.targets.insert(iqn.into(), Target { portals, ..Target::default() }));
    }

    /// Lets a target ask for a name and a password.
    pub fn require_chap(&self, iqn: &str, user: &str, password: &str) {
        self.with(|world| world.iscsi.target(iqn).chap = Some((user.into(), password.into())));
    }

    /// Maps a unit, in place of whatever is mapped there. No host is told.
    pub fn map_lun(&self, iqn: &str, lun: u16, unit: LogicalUnit) {
        self.with(|world| world.iscsi.target(iqn).units.insert(lun, unit));
    }

    /// Takes a mapping away. No host is told.
    pub fn unmap_lun(&self, iqn: &str, lun: u16) {
        self.with(|world| world.iscsi.target(iqn).units.remove(&lun));
    }

    /// Lets a unit grow. No host is told.
    pub fn resize_lun(&self, iqn: &str, lun: u16, size_bytes: u64) {
        self.with(|world| {
            let unit = world.iscsi.target(iqn).units.get_mut(&lun);
            unit.expect("a test resizes a LUN that is mapped").size_bytes = size_bytes;
        });
    }

    /// Lets every login to a target succeed, and no session show up.
    pub fn hide_sessions(&self, iqn: &str) {
        self.with(|world| world.iscsi.target(iqn).hides = true);
    }

    /// Cuts a target off, or brings it back: its sessions lose their connection and refuse no new one, they are just lost.
    pub fn cut_target(&self, iqn: &str, down: bool) {
        self.with(|world| {
            world.iscsi.target(iqn).down = down;
            let cut: Vec<u32> = world.iscsi.sessions.iter().filter(|(_, s)| s.iqn == iqn).map(|(id, _)| *id).collect();
            for session in cut {
                set_state(world, session, down);
            }
        });
    }

    /// Cuts a portal off, or heals it: nothing answers there, and the sessions through it lose their connection until it is
    /// healed.
    pub fn cut_portal(&self, portal: &str, down: bool) {
        self.with(|world| {
            let portal = address(portal);
            match down {
                true => world.iscsi.cut.insert(portal),
                false => world.iscsi.cut.remove(&portal),
            };
            let through: Vec<u32> =
                world.iscsi.sessions.iter().filter(|(_, s)| s.portal == portal).map(|(id, _)| *id).collect();
            for session in through {
                set_state(world, session, down);
            }
        });
    }

    /// Lets a portal drop every packet of those who come anew, as a firewall does.
    pub fn silence(&self, portal: &str) {
        self.with(|world| world.iscsi.silent.insert(address(portal)));
    }

    /// The daemon comes to the end of a login so much later, whoever has stopped waiting for it, or was killed.
    pub fn login_ends_later(&self, iqn: &str, portal: &str, interface: &str, after: Duration) {
        let (iqn, portal, interface) = (iqn.to_owned(), address(portal), interface.to_owned());
        self.with(|world| {
            world.later(after, move |world| {
                start_session(world, &iqn, portal, &interface);
            });
        });
    }

    /// The operator logs in at the shell: interface `default`, every LUN scanned. `startup` is `manual`, or `automatic` for a
    /// session that comes back after a reboot.
    pub fn operator_login(&self, iqn: &str, portal: &str, startup: &str) {
        self.with(|world| {
            let portal = address(portal);
            let path = format!("{NODES}/{iqn}/{},{},1/default", portal.ip(), portal.port());
            let record = format!(
                "node.name = {iqn}\nnode.startup = {startup}\niface.iscsi_ifacename = default\n\
                 node.session.scan = auto\nnode.conn[0].address = {}\nnode.conn[0].port = {}\n",
                portal.ip(),
                portal.port()
            );
            world.files.put(&path, record);
            let output = login(world, iqn, portal, "default");
            assert_eq!(output.code, 0, "{}", output.stderr);
        });
    }

    /// Every session to a target ends, whoever's: an operator logs out of all.
    pub fn end_sessions(&self, iqn: &str) {
        self.with(|world| {
            let of = |(id, session): (&u32, &Session)| (session.iqn == iqn).then_some(*id);
            let ids: Vec<u32> = world.iscsi.sessions.iter().filter_map(of).collect();
            ids.into_iter().for_each(|id| end_session(world, id));
        });
    }

    /// The operator logs out again, and removes the record.
    pub fn operator_logout(&self, iqn: &str, portal: &str) {
        self.with(|world| {
            let portal = address(portal);
            let theirs =
                |session: &Session| session.iqn == iqn && session.portal == portal && session.interface == "default";
            let found = world.iscsi.sessions.iter().find(|(_, session)| theirs(session)).map(|(id, _)| *id);
            end_session(world, found.expect("a test logs out of a session that is there"));
            world.files.take_tree(format!("{NODES}/{iqn}/{},{},1", portal.ip(), portal.port()));
            world.files.take(format!("{NODES}/{iqn}"));
        });
    }
}

fn address(portal: &str) -> SocketAddr {
    portal.parse().unwrap_or_else(|_| panic!("{portal} is no address with a port"))
}

impl Iscsi {
    fn target(&mut self, iqn: &str) -> &mut Target {
        self.targets.get_mut(iqn).unwrap_or_else(|| panic!("a test names the target {iqn}, which is not there"))
    }

    /// What a session's target maps there now; `None` as well if it cannot be asked.
    fn mapped(&self, session: u32, lun: u16) -> Option<&LogicalUnit> {
        let target = self.targets.get(&self.sessions.get(&session)?.iqn)?;
        target.units.get(&lun).filter(|_| self.is_up(session))
    }

    fn is_up(&self, session: u32) -> bool {
        let Some(session) = self.sessions.get(&session) else { return false };
        let target = self.targets.get(&session.iqn);
        target.is_some_and(|target| !target.down) && !self.cut.contains(&session.portal)
    }

    /// The device that a kernel's name belongs to.
    fn named(&self, name: &str) -> Option<&Device> {
        self.devices.values().find(|device| device.name.as_deref() == Some(name))
    }
}

/// The machine was turned on: `/sys`, `/dev` and `/run` are empty.
pub(crate) fn boot(world: &mut World) {
    world.iscsi.sessions.clear();
    world.iscsi.devices.clear();
    for class in ["iscsi_session", "iscsi_connection", "iscsi_transport/tcp", "scsi_host", "scsi_device"] {
        world.files.make_directory(format!("/sys/class/{class}"));
    }
    for directory in [NODES, INTERFACES] {
        world.files.make_directory(directory);
    }
    let name = "/etc/iscsi/initiatorname.iscsi";
    if world.files.stat(name).is_none() {
        world.files.put(name, "InitiatorName=iqn.2026-11.org.example:simulated\n");
    }
    // iscsi.service: every record whose startup is automatic.
    for record in records(world) {
        if record.key("node.startup") == Some("automatic") {
            // A target that is not there now is tried again by hand, as in life.
            let _output = login(world, &record.iqn, record.portal, &record.interface);
        }
    }
}

/// Sessions and devices are in `/sys`; nothing else is the machine's.
pub(crate) fn snapshot(_world: &World) -> Vec<String> {
    Vec::new()
}

/// What a connection to an address meets.
pub(crate) fn reach(world: &World, address: SocketAddr) -> Reach {
    if world.iscsi.silent.contains(&address) || world.iscsi.cut.contains(&address) {
        Reach::Silent
    } else if world.iscsi.targets.values().any(|target| target.portals.contains(&address)) {
        Reach::Listens
    } else {
        Reach::Refused
    }
}

// ---- iscsiadm ----

/// A node record: `nodes/IQN/ADDRESS,PORT,GROUP/INTERFACE`.
struct Record {
    iqn: String,
    portal: SocketAddr,
    interface: String,
    keys: BTreeMap<String, String>,
}

impl Record {
    fn key(&self, name: &str) -> Option<&str> {
        self.keys.get(name).map(String::as_str)
    }
}

fn records(world: &World) -> Vec<Record> {
    let mut records = Vec::new();
    for iqn in world.files.list(NODES) {
        for portal in world.files.list(format!("{NODES}/{iqn}")) {
            for interface in world.files.list(format!("{NODES}/{iqn}/{portal}")) {
                let path = format!("{NODES}/{iqn}/{portal}/{interface}");
                records.extend(world.files.text(path).and_then(|text| record(&text)));
            }
        }
    }
    records
}

/// As `idbm_recinfo_config` reads it. One without `node.name` or an address is none.
fn record(text: &str) -> Option<Record> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let keys: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let ip = keys.get("node.conn[0].address")?.parse().ok()?;
    let port = keys.get("node.conn[0].port").map_or(Some(3260), |port| port.parse().ok())?;
    let interface = keys.get("iface.iscsi_ifacename").cloned().unwrap_or_else(|| "default".into());
    Some(Record { iqn: keys.get("node.name")?.clone(), portal: SocketAddr::new(ip, port), interface, keys })
}

fn failed(code: i32, said: impl std::fmt::Display) -> Output {
    Output { code, stderr: format!("iscsiadm: {said}\n"), ..Output::default() }
}

/// The tool: those of its runs that we make. It complains of each session that it lists and cannot read.
pub(crate) fn run(world: &mut World, command: &Command) -> Output {
    let unseen = world.iscsi.sessions.keys().filter(|id| !sees(world, command, **id)).map(|id| {
        format!(
            "iscsiadm: could not read session targetname: 5\niscsiadm: could not find session info for session{id}\n"
        )
    });
    let complaints: String = unseen.collect();
    let output = act(world, command);
    Output { stderr: complaints + &output.stderr, ..output }
}

/// Whether a session stands in the sysfs that the tool is shown.
fn sees(world: &World, command: &Command, id: u32) -> bool {
    let root = command.settings.iter().find(|(name, _)| *name == "SYSFS_PATH").map_or("/sys", |(_, root)| root);
    world.files.resolve(format!("{root}/class/iscsi_session/session{id}")).is_some()
}

fn act(world: &mut World, command: &Command) -> Output {
    let args: Vec<&str> = command.args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["--version"] => Output { stdout: "iscsiadm version 2.1.8\n".into(), ..Output::default() },
        ["-m", "node", "-T", iqn, "-p", portal, "-I", interface, "--login"] => {
            if *interface != "default" && world.files.file(format!("{INTERFACES}/{interface}")).is_none() {
                return failed(3, format!("Could not read iface info for {interface}."));
            }
            match portal.parse() {
                Ok(portal) => login(world, iqn, portal, interface),
                Err(_) => failed(7, format!("{portal} is no portal")),
            }
        }
        ["-m", "session", "-r", id, "--logout"] => {
            let seen = id.parse().ok().filter(|id| sees(world, command, *id));
            let Some((id, session)) = seen.and_then(|id| Some((id, world.iscsi.sessions.get(&id)?.clone()))) else {
                return failed(22, format!("Could not get session info for sid {id}"));
            };
            let interface = &session.interface;
            if interface != "default" && world.files.file(format!("{INTERFACES}/{interface}")).is_none() {
                return failed(3, format!("Could not read iface info for {interface}."));
            }
            end_session(world, id);
            Output {
                stdout: format!("Logout of [sid: {id}, target: {}] successful.\n", session.iqn),
                ..Output::default()
            }
        }
        _ => failed(7, format!("not simulated: {}", command.line())),
    }
}

fn login(world: &mut World, iqn: &str, portal: SocketAddr, interface: &str) -> Output {
    let wanted = |record: &Record| record.iqn == iqn && record.portal == portal && record.interface == interface;
    let Some(record) = records(world).into_iter().find(wanted) else { return failed(21, "No records found") };
    let same = |session: &Session| session.iqn == iqn && session.portal == portal && session.interface == interface;
    if world.iscsi.sessions.values().any(same) {
        return failed(15, format!("{interface}: 1 session requested, but 1 already present."));
    }
    let refused = |code: i32, words: &str| {
        failed(code, format!("initiator reported error ({code} - {words})\niscsiadm: Could not log into all portals"))
    };
    if reach(world, portal) != Reach::Listens {
        return refused(8, "connection timed out");
    }
    let target = world.iscsi.targets.get(iqn).filter(|target| target.portals.contains(&portal) && !target.down);
    let Some(target) = target else {
        return match record.key("node.session.initial_login_retry_max") {
            Some("0") => refused(5, "encountered iSCSI login failure"),
            _ => refused(8, "connection timed out"),
        };
    };
    let given = match record.key("node.session.auth.authmethod") {
        Some("CHAP") => record.key("node.session.auth.username").zip(record.key("node.session.auth.password")),
        _ => None,
    };
    match (&target.chap, given) {
        (None, None) => {}
        (Some((user, password)), Some(given)) if (user.as_str(), password.as_str()) == given => {}
        (None, Some(_)) => return refused(19, "encountered non-retryable iSCSI login failure"),
        (Some(_), _) => return refused(24, "iSCSI login failed due to authorization failure"),
    }
    let done = || Output {
        stdout: format!("Login to [iface: {interface}, target: {iqn}] successful.\n"),
        ..Output::default()
    };
    if target.hides {
        return done();
    }
    let id = start_session(world, iqn, portal, interface);
    if record.key("node.session.scan") != Some("manual") {
        let offered: Vec<u16> =
            world.iscsi.targets.get(iqn).into_iter().flat_map(|t| t.units.keys().copied()).collect();
        for lun in offered {
            add_unit(world, id, lun);
        }
    }
    done()
}

// ---- the kernel's sessions ----

fn start_session(world: &mut World, iqn: &str, portal: SocketAddr, interface: &str) -> u32 {
    let taken: BTreeSet<u32> = world.iscsi.sessions.values().map(|session| session.host).collect();
    let host = (0..).find(|host| !taken.contains(host)).unwrap_or_default();
    world.iscsi.last_session += 1;
    let id = world.iscsi.last_session;
    let session = Session { iqn: iqn.into(), portal, interface: interface.into(), host };
    world.iscsi.sessions.insert(id, session);
    let below = format!("/sys/devices/platform/host{host}");
    let mut class = |class: &str, name: &str, device: &str, attributes: &[(&str, String)]| {
        let directory = format!("{device}/{class}/{name}");
        for (attribute, value) in attributes {
            world.files.put(format!("{directory}/{attribute}"), format!("{value}\n"));
        }
        world.files.link(format!("{directory}/device"), device);
        world.files.link(format!("/sys/class/{class}/{name}"), directory);
    };
    class("scsi_host", &format!("host{host}"), &below, &[("scan", String::new())]);
    class(
        "iscsi_session",
        &format!("session{id}"),
        &format!("{below}/session{id}"),
        &[
            ("targetname", iqn.into()),
            ("state", "LOGGED_IN".into()),
            ("ifacename", interface.into()),
            ("tpgt", "1".into()),
            ("target_id", "0".into()),
            ("recovery_tmo", "120".into()),
        ],
    );
    class(
        "iscsi_connection",
        &format!("connection{id}:0"),
        &format!("{below}/session{id}/connection{id}:0"),
        &[
            ("persistent_address", portal.ip().to_string()),
            ("persistent_port", portal.port().to_string()),
            ("address", portal.ip().to_string()),
            ("port", portal.port().to_string()),
        ],
    );
    world.emit("add", &format!("/devices/platform/host{host}/session{id}/iscsi_session/session{id}"), "iscsi_session");
    id
}

fn end_session(world: &mut World, id: u32) {
    let devices: Vec<String> = world
        .iscsi
        .devices
        .iter()
        .filter(|(_, device)| device.session == id)
        .map(|(address, _)| address.clone())
        .collect();
    for address in devices {
        remove_unit(world, &address);
    }
    let Some(session) = world.iscsi.sessions.remove(&id) else { return };
    for link in [
        format!("/sys/class/scsi_host/host{}", session.host),
        format!("/sys/class/iscsi_session/session{id}"),
        format!("/sys/class/iscsi_connection/connection{id}:0"),
    ] {
        world.files.take(link);
    }
    world.files.take_tree(format!("/sys/devices/platform/host{}", session.host));
    for parent in ["/sys/devices/platform", "/sys/devices"] {
        world.files.take(parent);
    }
    let host = session.host;
    world.emit(
        "remove",
        &format!("/devices/platform/host{host}/session{id}/iscsi_session/session{id}"),
        "iscsi_session",
    );
}

fn set_state(world: &mut World, id: u32, down: bool) {
    let (session, device) = if down { ("FAILED", "blocked") } else { ("LOGGED_IN", "running") };
    world.files.put(format!("/sys/class/iscsi_session/session{id}/state"), format!("{session}\n"));
    let addresses: Vec<String> =
        world.iscsi.devices.iter().filter(|(_, d)| d.session == id).map(|(address, _)| address.clone()).collect();
    for address in addresses {
        world.files.put(format!("/sys/class/scsi_device/{address}/device/state"), format!("{device}\n"));
    }
}

// ---- the kernel's devices ----

/// What a scan of one unit does: nothing if it is there already, or not offered.
fn add_unit(world: &mut World, id: u32, lun: u16) {
    let (Some(session), Some(unit)) = (world.iscsi.sessions.get(&id), world.iscsi.mapped(id, lun).cloned()) else {
        return;
    };
    let address = format!("{}:0:0:{lun}", session.host);
    if world.iscsi.devices.contains_key(&address) {
        return;
    }
    let directory = format!("/sys/devices/platform/host{0}/session{id}/target{0}:0:0/{address}", session.host);
    for (attribute, value) in [
        ("type", unit.kind.to_string()),
        ("state", "running".into()),
        ("vendor", "LIO-ORG ".into()),
        ("delete", String::new()),
        ("rescan", String::new()),
    ] {
        world.files.put(format!("{directory}/{attribute}"), format!("{value}\n"));
    }
    remember_name(world, &directory, &unit);
    world.files.link(format!("{directory}/scsi_device/{address}/device"), &directory);
    world.files.link(format!("/sys/class/scsi_device/{address}"), format!("{directory}/scsi_device/{address}"));
    let disk = unit.kind == 0;
    world.iscsi.devices.insert(address.clone(), Device { session: id, lun, unit, name: None });
    if disk {
        world.later(PROBE, move |world| probe(world, id, &address, &directory));
    }
}

fn remember_name(world: &mut World, directory: &str, unit: &LogicalUnit) {
    match &unit.naa {
        Some(naa) => {
            world.files.put(format!("{directory}/wwid"), format!("naa.{:032x}\n", u128::from_be_bytes(*naa)));
        }
        None => {
            world.files.take(format!("{directory}/wwid"));
        }
    }
}

/// The disk driver takes a unit, if it is still there. Another session's unit may have the same address meanwhile.
fn probe(world: &mut World, session: u32, address: &str, directory: &str) {
    let name = world.free_disk();
    let still = |device: &&mut Device| device.name.is_none() && device.session == session;
    let Some(device) = world.iscsi.devices.get_mut(address).filter(still) else { return };
    device.name = Some(name.clone());
    let unit = device.unit.clone();
    world.add_block(&Block {
        name: &name,
        below: &format!("{directory}/block"),
        size_bytes: unit.size_bytes,
        read_only: unit.read_only,
        logical_block_size: unit.block_size,
        physical_block_size: unit.block_size,
    });
    world.files.link(format!("{directory}/block/{name}/device"), directory);
    multipath::disk_came(world, &name);
}

/// The NAA name of a disk as the kernel learned it, in hexadecimal digits.
pub(crate) fn naa(world: &World, disk: &str) -> Option<String> {
    world.iscsi.named(disk)?.unit.naa.map(|naa| format!("{:032x}", u128::from_be_bytes(naa)))
}

fn remove_unit(world: &mut World, address: &str) {
    let Some(device) = world.iscsi.devices.remove(address) else { return };
    if let Some(name) = device.name {
        multipath::disk_goes(world, &name);
        world.remove_block(&name);
    }
    if let Some(directory) = world.files.resolve(format!("/sys/class/scsi_device/{address}/device")) {
        world.files.take_tree(&directory);
        if let Some(target) = directory.parent() {
            world.files.take(target);
        }
    }
    world.files.take(format!("/sys/class/scsi_device/{address}"));
    world.emit("remove", &format!("/devices/platform/{address}"), "scsi_device");
}

/// Somebody writes an attribute; `None` if it is not ours.
pub(crate) fn written(world: &mut World, path: &Path, value: &str) -> Option<Result<()>> {
    let resolved = world.files.resolve(path)?;
    let (directory, attribute) = (resolved.parent()?, resolved.file_name()?.to_str()?);
    let name = directory.file_name()?.to_str()?.to_owned();
    let invalid = || Some(Err(Error::io("write", path)(io::ErrorKind::InvalidInput.into())));
    if attribute == "scan"
        && let Some(host) = name.strip_prefix("host").and_then(|host| host.parse::<u32>().ok())
    {
        let session = world.iscsi.sessions.iter().find(|(_, session)| session.host == host).map(|(id, _)| *id)?;
        let Some(lun) = value.strip_prefix("0 0 ").and_then(|lun| lun.parse().ok()) else { return invalid() };
        add_unit(world, session, lun);
        return Some(Ok(()));
    }
    let (session, lun, disk) = {
        let device = world.iscsi.devices.get(&name)?;
        (device.session, device.lun, device.name.clone())
    };
    match (attribute, value) {
        ("delete", _) => remove_unit(world, &name),
        ("rescan", _) if !world.iscsi.is_up(session) => {
            let after = Duration::from_secs(30);
            return Some(Err(Error::TimedOut { what: format!("write to {}", path.display()), after }));
        }
        ("rescan", _) => {
            // One that is not mapped any more stays as it is remembered.
            if let Some(unit) = world.iscsi.mapped(session, lun).cloned() {
                remember_name(world, &directory.to_string_lossy(), &unit);
                if let Some(disk) = disk {
                    world.resize_block(&disk, unit.size_bytes);
                }
                if let Some(device) = world.iscsi.devices.get_mut(&name) {
                    device.unit = unit;
                }
            }
        }
        _ => return invalid(),
    }
    Some(Ok(()))
}

/// What a device answers to an INQUIRY of a page; `None` if it is not ours. It is the target that answers, so it is what is
/// mapped there now, whatever the kernel remembers.
pub(crate) fn inquiry(world: &World, device: &str, page: u8) -> Option<Result<Vec<u8>>> {
    let ours = world.iscsi.named(device)?;
    let path = super::world::node(device);
    if !world.iscsi.is_up(ours.session) {
        let what = format!("INQUIRY to {}", path.display());
        return Some(Err(Error::TimedOut { what, after: Duration::from_secs(5) }));
    }
    let answer = match world.iscsi.mapped(ours.session, ours.lun) {
        Some(unit) => unit.page(page),
        None if ours.lun == 0 => target_page(page),
        None => None,
    };
    Some(answer.ok_or_else(|| Error::io("ask", path)(io::Error::other("illegal request"))))
}

/// What LIO answers for LUN 0 when nothing is mapped there: a peripheral qualifier that says so, and its own name.
fn target_page(page: u8) -> Option<Vec<u8>> {
    match page {
        0x80 => Some(vec![0x3f, page, 0, 0]),
        0x83 => Some([&[0x3f, page, 0, 13, 2, 1, 0, 9], b"LIO-ORG \0".as_slice()].concat()),
        _ => None,
    }
}

/// The first bytes of a device: all are zeros.
pub(crate) fn head(_world: &World, _device: &str) -> Option<Vec<u8>> {
    None
}
