//! The LVM side of the simulated machine: VGs on its disks, the `lvm` binary, activation.
//!
//! It answers as lvm2 2.03.16 does, in its words and with its exit codes, and knows what our driver runs of it and no
//! more. Metadata is on the disks and survives a reboot; activation is in the kernel and does not.

use super::{
    Machine, World,
    world::{Block, VIRTUAL},
};
use crate::{Command, Output, Result, User};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};

/// What the machine holds of it.
#[derive(Debug, Default)]
pub(crate) struct Lvm {
    vgs: Vec<Vg>,
    /// Disks of this machine, with their sizes.
    disks: BTreeMap<String, u64>,
    /// Devices that carry a PV label, whosever.
    labels: BTreeSet<String>,
    system_id: String,
    uuids: u64,
    /// Devices of the device mapper whose table is loaded for reading only. BLKROSET is another switch: a device refuses
    /// writes if either says so, and a table that is loaded anew leaves the other as it is.
    read_only_tables: BTreeSet<String>,
    /// How full thin pools are, in percent, by VG and pool.
    filled: BTreeMap<(String, String), f64>,
}

const EXTENT: u64 = 4 << 20;

#[derive(Debug)]
struct Vg {
    name: String,
    uuid: String,
    system_id: String,
    exported: bool,
    pvs: Vec<String>,
    /// PVs that LVM takes for lost, because the metadata was changed while they were not seen.
    lost: BTreeSet<String>,
    lvs: Vec<Lv>,
}

#[derive(Debug)]
struct Lv {
    name: String,
    uuid: String,
    size_bytes: u64,
    kind: Kind,
    tags: BTreeSet<String>,
    writable: bool,
    /// What it takes from the VG.
    extents: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Thick,
    /// A thick snapshot.
    Snapshot {
        origin: String,
    },
    ThinPool,
    Thin {
        pool: String,
        origin: Option<String>,
    },
    /// A part of another LV.
    Hidden,
}

/// A device of the device mapper.
struct Layer {
    name: String,
    uuid: String,
    size_bytes: u64,
    read_only: bool,
    /// The UUID or the name of what is below it.
    below: Vec<String>,
}

impl Kind {
    /// `lv_role`, `lv_layout` and the first bit of `lv_attr` (lvs(8)).
    fn words(&self) -> (&'static str, &'static str, char) {
        match self {
            Self::Thick => ("public", "linear", '-'),
            Self::Snapshot { .. } => ("public,snapshot,thicksnapshot", "linear", 's'),
            Self::ThinPool => ("private", "thin,pool", 't'),
            Self::Thin { origin: None, .. } => ("public", "thin,sparse", 'V'),
            Self::Thin { .. } => ("public,snapshot,thinsnapshot", "thin,sparse", 'V'),
            Self::Hidden => ("private,thin,pool,metadata", "linear", 'e'),
        }
    }
}

impl Vg {
    fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The PVs that a run does not see.
    fn missing(&self, seen: &[String]) -> usize {
        self.pvs.iter().filter(|pv| !seen.contains(pv) || self.lost.contains(*pv)).count()
    }

    fn free_extents(&self, disks: &BTreeMap<String, u64>) -> u64 {
        let all: u64 = self.pvs.iter().filter_map(|pv| disks.get(pv)).map(|size| size / EXTENT).sum();
        all.saturating_sub(self.lvs.iter().map(|lv| lv.extents).sum())
    }

    fn dm_name(&self, lv: &str) -> String {
        format!("{}-{}", self.name.replace('-', "--"), lv.replace('-', "--"))
    }

    fn dm_uuid(&self, lv: &Lv) -> String {
        format!("LVM-{}{}", self.uuid, lv.uuid)
    }

    /// The devices that an LV needs to be active, the lowest first, its own among them.
    fn layers(&self, lv: &Lv, read_only: bool) -> Vec<Layer> {
        let layer = |of: &Lv, suffix: &str, below: &[String]| Layer {
            name: self.dm_name(&of.name) + suffix,
            uuid: self.dm_uuid(of) + suffix,
            size_bytes: of.size_bytes,
            read_only: (read_only || !of.writable) && !matches!(suffix, "-cow" | "-tpool"),
            below: if below.is_empty() { self.pvs.clone() } else { below.to_vec() },
        };
        let origin = match &lv.kind {
            Kind::Snapshot { origin } => origin,
            _ => &lv.name,
        };
        let is_snapshot = |of: &&Lv| of.kind == Kind::Snapshot { origin: origin.clone() };
        match (&lv.kind, self.lv(origin)) {
            (Kind::Thin { pool, .. }, _) => {
                let pool = self.lv(pool).expect("a thin LV has its pool");
                vec![layer(pool, "-tpool", &[]), layer(lv, "", &[self.dm_uuid(pool) + "-tpool"])]
            }
            (Kind::ThinPool, _) => vec![layer(lv, "-tpool", &[])],
            (_, Some(origin)) if self.lvs.iter().any(|of| is_snapshot(&of)) => {
                let real = self.dm_uuid(origin) + "-real";
                let mut layers = vec![layer(origin, "-real", &[]), layer(origin, "", std::slice::from_ref(&real))];
                for snapshot in self.lvs.iter().filter(is_snapshot) {
                    let cow = self.dm_uuid(snapshot) + "-cow";
                    layers.push(layer(snapshot, "-cow", &[]));
                    layers.push(layer(snapshot, "", &[real.clone(), cow]));
                }
                layers
            }
            _ => vec![layer(lv, "", &[])],
        }
    }
}

// ---- what the world asks ----

/// The tool.
pub(crate) fn run(world: &mut World, command: &Command) -> Output {
    let args = Args::parse(&command.args);
    match args.verb {
        "version" => said("  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n"),
        "lvmconfig" => said(&world.files.text("/etc/lvm/lvm.conf").unwrap_or_default()),
        "systemid" => said(&format!("  system ID: {}\n", world.lvm.system_id)),
        "fullreport" => report(world, &args),
        "lvchange" => change(world, &args).map_or_else(|failed| failed, |()| Output::default()),
        "lvrename" => rename(world, &args).unwrap_or_else(|failed| failed),
        "lvcreate" => create(world, &args).unwrap_or_else(|failed| failed),
        "lvremove" => remove(world, &args).unwrap_or_else(|failed| failed),
        "lvs" => filled(world, &args),
        _ => Output { code: 2, stderr: format!("  Command does not exist: {}.", args.verb), ..Output::default() },
    }
}

/// Somebody writes an attribute; `None` if it is not ours.
pub(crate) fn written(_world: &mut World, _path: &Path, _value: &str) -> Option<Result<()>> {
    None
}

/// What a device answers to an INQUIRY of a page; `None` if it is not ours.
pub(crate) fn inquiry(_world: &World, _device: &str, _page: u8) -> Option<Result<Vec<u8>>> {
    None
}

/// The first bytes of a device (the rest of it is zeros); `None` if it is not ours. What its area for metadata begins with
/// is another as soon as anything about the VG is, down to the tag of an LV.
pub(crate) fn head(world: &World, device: &str) -> Option<Vec<u8>> {
    const LABEL: usize = 512;
    const AREA: usize = 4096;
    world.lvm.labels.contains(device).then(|| {
        let mut head = vec![0; AREA + 512];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(LABEL, b"LABELONE\x01");
        put(LABEL + 20, &[32]);
        put(LABEL + 24, b"LVM2 001");
        // The PV's UUID, where its data begins, and where the area does.
        put(LABEL + 32, format!("{device:_<32}").as_bytes());
        put(LABEL + 72, &(1_u64 << 20).to_le_bytes());
        put(LABEL + 104, &(AREA as u64).to_le_bytes());
        put(AREA + 4, b" LVM2 x[5A%r0N*>");
        if let Some(vg) = world.lvm.vgs.iter().find(|vg| vg.pvs.iter().any(|pv| pv == device)) {
            let mut text = DefaultHasher::new();
            format!("{vg:?}").hash(&mut text);
            put(AREA + 40, &512_u64.to_le_bytes());
            put(AREA + 48, &text.finish().to_le_bytes());
        }
        head
    })
}

/// Which of some devices of the device mapper are open.
pub(crate) fn open_mapped(world: &World, uuids: &[String]) -> BTreeSet<String> {
    let is_open = |uuid: &&String| device_of(world, uuid).is_some_and(|device| !world.users_of(&device).is_empty());
    uuids.iter().filter(is_open).cloned().collect()
}

/// The machine was turned on: `/sys`, `/dev` and `/run` are empty.
pub(crate) fn boot(world: &mut World) {
    world.files.put("/sys/class/misc/device-mapper/dev", "10:236\n");
    world.lvm.read_only_tables.clear();
    for (name, size_bytes) in world.lvm.disks.clone() {
        add_disk(world, &name, size_bytes);
    }
}

/// What is held that no file tells, one line each.
pub(crate) fn snapshot(world: &World) -> Vec<String> {
    let line = |vg: &Vg, lv: &Lv| {
        let tags: Vec<&str> = lv.tags.iter().map(String::as_str).collect();
        format!("LV {}/{} is {}, {} bytes, tags [{}]", vg.name, lv.name, lv.uuid, lv.size_bytes, tags.join(" "))
    };
    world.lvm.vgs.iter().flat_map(|vg| vg.lvs.iter().map(move |lv| line(vg, lv))).collect()
}

// ---- the binary ----

/// An argument list, as far as we use it.
#[derive(Default)]
struct Args<'a> {
    verb: &'a str,
    flags: Vec<&'a str>,
    values: Vec<(&'a str, &'a str)>,
    positional: Vec<&'a str>,
}

impl<'a> Args<'a> {
    fn parse(args: &'a [String]) -> Self {
        const VALUED: [&str; 13] = [
            "--devices",
            "--reportformat",
            "--units",
            "--configreport",
            "-o",
            "-S",
            "--addtag",
            "--deltag",
            "--name",
            "--extents",
            "--chunksize",
            "--permission",
            "--setactivationskip",
        ];
        let mut parsed = Self::default();
        let mut rest = args.iter().map(String::as_str);
        parsed.verb = rest.next().unwrap_or_default();
        while let Some(arg) = rest.next() {
            if VALUED.contains(&arg) {
                parsed.values.push((arg, rest.next().unwrap_or_default()));
            } else if arg.starts_with('-') {
                parsed.flags.push(arg);
            } else {
                parsed.positional.push(arg);
            }
        }
        parsed
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    fn all(&self, option: &str) -> impl Iterator<Item = &'a str> {
        self.values.iter().filter(move |(name, _)| *name == option).map(|(_, value)| *value)
    }

    /// The kernel's names of the PVs that this run sees: all of the machine's if it was not told.
    fn seen(&self, world: &World) -> Vec<String> {
        let told: Vec<&str> = self.all("--devices").collect();
        let there = |name: &&String| world.files.stat(format!("/sys/block/{name}")).is_some();
        let visible = |name: &&String| told.is_empty() || told.contains(&format!("/dev/{name}").as_str());
        world.lvm.labels.iter().filter(there).filter(visible).cloned().collect()
    }
}

fn said(stdout: &str) -> Output {
    Output { stdout: stdout.into(), ..Output::default() }
}

fn failed(stderr: impl Into<String>) -> Output {
    Output { code: 5, stderr: stderr.into(), ..Output::default() }
}

fn report(world: &World, args: &Args<'_>) -> Output {
    let (seen, foreign) = (args.seen(world), args.has("--foreign"));
    let ours = |vg: &&Vg| foreign || vg.system_id.is_empty() || vg.system_id == world.lvm.system_id;
    let groups: Vec<_> = world
        .lvm
        .vgs
        .iter()
        .filter(ours)
        .filter(|vg| vg.pvs.iter().any(|pv| seen.contains(pv)))
        .map(|vg| {
            let missing = vg.missing(&seen);
            let pvs = vg.pvs.iter().map(|pv| match seen.contains(pv) {
                true => json!({"pv_name": format!("/dev/{pv}")}),
                false => json!({"pv_name": "[unknown]"}),
            });
            let lvs = vg.lvs.iter().filter(|lv| args.has("--all") || lv.kind != Kind::Hidden);
            json!({
                "vg": [{
                    "vg_name": vg.name,
                    "vg_uuid": dashed(&vg.uuid),
                    "vg_systemid": vg.system_id,
                    "vg_exported": if vg.exported { "exported" } else { "" },
                    "vg_missing_pv_count": missing.to_string(),
                    "vg_lock_type": "",
                    "vg_extent_size": EXTENT.to_string(),
                    "vg_free": (vg.free_extents(&world.lvm.disks) * EXTENT).to_string(),
                }],
                "pv": pvs.collect::<Vec<_>>(),
                "lv": lvs.map(|lv| row(world, vg, lv, missing > 0)).collect::<Vec<_>>(),
                "pvseg": [],
                "seg": [],
            })
        })
        .collect();
    said(&format!("{:#}\n", json!({ "report": groups })))
}

fn row(world: &World, vg: &Vg, lv: &Lv, partial: bool) -> serde_json::Value {
    let (role, layout, first) = lv.kind.words();
    let has_snapshot = vg.lvs.iter().any(|other| other.kind == Kind::Snapshot { origin: lv.name.clone() });
    let role = if has_snapshot { "public,origin,thickorigin" } else { role };
    let device = device_of(world, &vg.dm_uuid(lv));
    let read_only =
        device.and_then(|name| world.files.text(format!("/sys/block/{name}/ro"))).is_some_and(|ro| ro == "1");
    let mode = match (lv.writable, read_only) {
        (false, _) => 'r',
        (true, true) => 'R',
        (true, false) => 'w',
    };
    let origin = match &lv.kind {
        Kind::Snapshot { origin } | Kind::Thin { origin: Some(origin), .. } => origin,
        _ => "",
    };
    let pool = if let Kind::Thin { pool, .. } = &lv.kind { pool } else { "" };
    let tags: Vec<&str> = lv.tags.iter().map(String::as_str).collect();
    json!({
        "lv_name": if lv.kind == Kind::Hidden { format!("[{}]", lv.name) } else { lv.name.clone() },
        "lv_uuid": dashed(&lv.uuid),
        "lv_size": lv.size_bytes.to_string(),
        "lv_role": role,
        "lv_layout": layout,
        "lv_tags": tags.join(","),
        "origin": origin,
        "pool_lv": pool,
        "lv_attr": format!("{first}{mode}i-------"),
        "lv_health_status": if partial { "partial" } else { "" },
    })
}

/// The place of the VG that a run works on.
fn group(world: &World, seen: &[String], name: &str) -> std::result::Result<usize, Output> {
    let visible = |vg: &Vg| vg.name == name && vg.pvs.iter().any(|pv| seen.contains(pv));
    let Some(at) = world.lvm.vgs.iter().position(visible) else {
        return Err(failed(format!("  Volume group \"{name}\" not found\n  Cannot process volume group {name}\n")));
    };
    let vg = &world.lvm.vgs[at];
    if vg.exported {
        return Err(failed(format!("  Volume group {name} is exported\n")));
    }
    if !vg.system_id.is_empty() && vg.system_id != world.lvm.system_id {
        return Err(failed(format!(
            "  Cannot access VG {name} with system ID {} with unknown local system ID.\n",
            vg.system_id
        )));
    }
    Ok(at)
}

fn change(world: &mut World, args: &Args<'_>) -> std::result::Result<(), Output> {
    let (vg_name, lv_name) = args.positional.first().and_then(|at| at.split_once('/')).unwrap_or_default();
    let seen = args.seen(world);
    let at = group(world, &seen, vg_name)?;
    let vg = &world.lvm.vgs[at];
    let Some(place) = vg.lvs.iter().position(|lv| lv.name == lv_name) else {
        return Err(failed(format!("  Failed to find logical volume \"{vg_name}/{lv_name}\"\n")));
    };
    let (lv, missing) = (&vg.lvs[place], vg.missing(&seen));
    if !selected(args, lv, missing) {
        return Ok(());
    }
    if args.has("-an") {
        return deactivate(world, at, place);
    }
    if args.has("-ay") {
        if missing > 0 {
            return Err(failed(format!(
                "  Refusing activation of partial LV {vg_name}/{lv_name}.  Use '--activationmode partial' to override.\n"
            )));
        }
        if matches!(lv.kind, Kind::Snapshot { .. }) && !args.has("-y") {
            return Err(failed(format!("  Logical volume {vg_name}/{lv_name} not changed.\n")));
        }
        let skipped = matches!(lv.kind, Kind::Thin { origin: Some(_), .. }) && !args.has("-K");
        if !skipped {
            activate(world, at, place, false);
        }
        return Ok(());
    }
    let vg = &mut world.lvm.vgs[at];
    let unseen: Vec<String> = vg.pvs.iter().filter(|pv| !seen.contains(pv)).cloned().collect();
    vg.lost.extend(unseen);
    let lv = &mut vg.lvs[place];
    lv.tags.extend(args.all("--addtag").map(str::to_owned));
    for tag in args.all("--deltag") {
        lv.tags.remove(tag);
    }
    Ok(())
}

fn selected(args: &Args<'_>, lv: &Lv, missing: usize) -> bool {
    args.all("-S").flat_map(|select| select.split(" && ")).all(|condition| {
        condition.split_once('=').is_some_and(|(field, value)| match field {
            "lv_uuid" => value == dashed(&lv.uuid),
            "vg_missing_pv_count" => value == missing.to_string(),
            "lv_tags" => lv.tags.contains(value.trim_matches('"')),
            _ => false,
        })
    })
}

/// A snapshot, which is all that we make.
fn create(world: &mut World, args: &Args<'_>) -> std::result::Result<Output, Output> {
    let (vg_name, origin) = args.positional.first().and_then(|at| at.split_once('/')).unwrap_or_default();
    let at = group(world, &args.seen(world), vg_name)?;
    let vg = &world.lvm.vgs[at];
    let name = args.all("--name").next().unwrap_or_default();
    if vg.missing(&args.seen(world)) > 0 {
        return Err(failed(format!("  Cannot change VG {vg_name} while PVs are missing.\n")));
    }
    if vg.lv(name).is_some() {
        return Err(failed(format!("  Logical Volume \"{name}\" already exists in volume group \"{vg_name}\"\n")));
    }
    let Some(of) = vg.lv(origin) else {
        return Err(failed(format!("  Failed to find logical volume \"{vg_name}/{origin}\"\n")));
    };
    let wanted: u64 = args.all("--extents").next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let (kind, extents) = match &of.kind {
        Kind::Thin { pool, .. } => (Kind::Thin { pool: pool.clone(), origin: Some(origin.into()) }, 0),
        Kind::Snapshot { .. } => return Err(failed("  Snapshots of snapshots are not supported.\n")),
        _ => (Kind::Snapshot { origin: origin.into() }, wanted),
    };
    let free = vg.free_extents(&world.lvm.disks);
    if extents > free {
        return Err(failed(format!(
            "  Volume group \"{vg_name}\" has insufficient free space ({free} extents): {extents} required.\n"
        )));
    }
    let (size_bytes, uuid) = (of.size_bytes, world.lvm.new_uuid());
    let tags = args.all("--addtag").map(str::to_owned).collect();
    let lv = Lv { name: name.into(), uuid, size_bytes, kind, tags, writable: true, extents };
    world.lvm.vgs[at].lvs.push(lv);
    // A thick one comes and goes with its origin.
    let vg = &world.lvm.vgs[at];
    let comes = matches!(vg.lvs.last(), Some(Lv { kind: Kind::Snapshot { .. }, .. }));
    if let Some(place) = vg.lvs.iter().position(|lv| lv.name == origin).filter(|_| comes) {
        reload(world, at, place);
    }
    Ok(said(&format!("  Logical volume \"{name}\" created.\n")))
}

fn remove(world: &mut World, args: &Args<'_>) -> std::result::Result<Output, Output> {
    let (vg_name, name) = args.positional.first().and_then(|at| at.split_once('/')).unwrap_or_default();
    let at = group(world, &args.seen(world), vg_name)?;
    let vg = &world.lvm.vgs[at];
    let Some(place) = vg.lvs.iter().position(|lv| lv.name == name) else {
        return Err(failed(format!("  Failed to find logical volume \"{vg_name}/{name}\"\n")));
    };
    if !selected(args, &vg.lvs[place], vg.missing(&args.seen(world))) {
        return Ok(Output::default());
    }
    remove_at(world, at, place)?;
    Ok(said(&format!("  Logical volume \"{name}\" successfully removed.\n")))
}

/// A thick snapshot goes alone, whatever becomes of its origin.
fn remove_at(world: &mut World, at: usize, place: usize) -> std::result::Result<(), Output> {
    let vg = &world.lvm.vgs[at];
    let lv = &vg.lvs[place];
    let Kind::Snapshot { origin } = &lv.kind else {
        deactivate(world, at, place)?;
        world.lvm.vgs[at].lvs.remove(place);
        return Ok(());
    };
    let mut own = vec![vg.dm_uuid(lv), vg.dm_uuid(lv) + "-cow"];
    // With its last snapshot, an origin is a plain LV again.
    let is_last = vg.lvs.iter().filter(|other| other.kind == lv.kind).count() == 1;
    own.extend(vg.lv(origin).filter(|_| is_last).map(|origin| vg.dm_uuid(origin) + "-real"));
    let devices: Vec<String> = own.iter().filter_map(|uuid| device_of(world, uuid)).collect();
    if devices.first().is_some_and(|device| !world.users_of(device).is_empty()) {
        return Err(failed(format!("  Logical volume {}/{} in use.\n", vg.name, lv.name)));
    }
    for device in devices {
        remove_device(world, &device);
    }
    world.lvm.vgs[at].lvs.remove(place);
    Ok(())
}

/// How full a thin pool is.
fn filled(world: &World, args: &Args<'_>) -> Output {
    let (vg, pool) = args.positional.first().and_then(|at| at.split_once('/')).unwrap_or_default();
    let data = world.lvm.filled.get(&(vg.into(), pool.into())).map(|percent| format!("{percent:.2}"));
    let metadata = data.as_ref().map(|_| "11.33");
    said(&json!({"report": [{"lv": [{"data_percent": data.unwrap_or_default(), "metadata_percent": metadata.unwrap_or_default()}]}]}).to_string())
}

fn rename(world: &mut World, args: &Args<'_>) -> std::result::Result<Output, Output> {
    let &[vg_name, from, to] = args.positional.as_slice() else { return Err(failed("  Run `lvrename --help'\n")) };
    let seen = args.seen(world);
    let at = group(world, &seen, vg_name)?;
    let vg = &world.lvm.vgs[at];
    if from == to {
        return Err(Output { code: 3, ..failed("  Old and new logical volume names must differ\n") });
    }
    if to.starts_with("snapshot") {
        let text = "  Names starting \"snapshot\" are reserved. Please choose a different LV name.\n";
        return Err(Output { code: 3, ..failed(text) });
    }
    if vg.missing(&seen) > 0 {
        return Err(failed(format!("  Cannot change VG {vg_name} while PVs are missing.\n")));
    }
    if vg.lv(to).is_some() {
        return Err(failed(format!("  Logical Volume \"{to}\" already exists in volume group \"{vg_name}\"\n")));
    }
    if vg.lv(from).is_none() {
        return Err(failed(format!("  Existing logical volume \"{from}\" not found in volume group \"{vg_name}\"\n")));
    }
    rename_lv(world, at, from, to);
    Ok(said(&format!("  Renamed \"{from}\" to \"{to}\" in volume group \"{vg_name}\"\n")))
}

fn rename_lv(world: &mut World, at: usize, from: &str, to: &str) {
    let vg = &mut world.lvm.vgs[at];
    for other in &mut vg.lvs {
        // LVM knows them by their UUIDs.
        let (pool, origin) = match &mut other.kind {
            Kind::Thin { pool, origin } => (Some(pool), origin.as_mut()),
            Kind::Snapshot { origin } => (None, Some(origin)),
            _ => (None, None),
        };
        for name in [pool, origin].into_iter().flatten().filter(|name| *name == from) {
            *name = to.into();
        }
    }
    let lv = vg.lvs.iter_mut().find(|lv| lv.name == from).expect("an LV to rename");
    lv.name = to.into();
    let (uuid, names) = (format!("LVM-{}{}", vg.uuid, lv.uuid), (vg.dm_name(from), vg.dm_name(to)));
    for device in devices(world).filter(|(_, other)| other.starts_with(&uuid)).map(|(name, _)| name).collect::<Vec<_>>()
    {
        let path = format!("/sys/block/{device}/dm/name");
        let name = world.files.text(&path).unwrap_or_default();
        let suffix = name.strip_prefix(&names.0).unwrap_or_default().to_owned();
        world.files.put(&path, format!("{}{suffix}\n", names.1));
        world.emit_block("change", &device);
    }
    if let Some(lv) = world.lvm.vgs[at].lvs.iter().position(|lv| lv.name == to) {
        reload(world, at, lv);
    }
}

// ---- the device mapper ----

/// Every device of the device mapper, with its UUID.
fn devices(world: &World) -> impl Iterator<Item = (String, String)> {
    let names = world.files.list("/sys/block").into_iter();
    names.filter_map(|name| Some((name.clone(), world.files.text(format!("/sys/block/{name}/dm/uuid"))?)))
}

fn device_of(world: &World, uuid: &str) -> Option<String> {
    devices(world).find(|(_, known)| known == uuid).map(|(name, _)| name)
}

/// Makes the devices of an LV, or loads their tables anew.
fn activate(world: &mut World, vg: usize, lv: usize, read_only: bool) {
    let vg = &world.lvm.vgs[vg];
    for layer in vg.layers(&vg.lvs[lv], read_only) {
        if let Some(name) = device_of(world, &layer.uuid) {
            let attribute = format!("/sys/block/{name}/ro");
            let by_table = load(world, &name, layer.read_only);
            let by_ioctl = !by_table && world.files.text(&attribute).is_some_and(|ro| ro == "1");
            world.files.put(attribute, format!("{}\n", u8::from(layer.read_only || by_ioctl)));
            world.emit_block("change", &name);
            continue;
        }
        let name = world.free_number("dm-");
        load(world, &name, layer.read_only);
        world.add_block(&Block {
            name: &name,
            below: VIRTUAL,
            size_bytes: layer.size_bytes,
            read_only: layer.read_only,
            logical_block_size: 512,
            physical_block_size: 512,
        });
        for (attribute, value) in [("uuid", layer.uuid.as_str()), ("name", &layer.name), ("suspended", "0")] {
            world.files.put(format!("/sys/block/{name}/dm/{attribute}"), format!("{value}\n"));
        }
        for below in layer.below {
            let below = device_of(world, &below).unwrap_or(below);
            world.files.link(format!("/sys/block/{name}/slaves/{below}"), format!("{VIRTUAL}/{below}"));
            world.files.link(format!("/sys/block/{below}/holders/{name}"), format!("{VIRTUAL}/{name}"));
        }
        world.emit_block("change", &name);
    }
}

/// Loads a table, and tells whether the one before was for reading only.
fn load(world: &mut World, device: &str, read_only: bool) -> bool {
    match read_only {
        true => !world.lvm.read_only_tables.insert(device.into()),
        false => world.lvm.read_only_tables.remove(device),
    }
}

/// Loads the tables of an LV anew, as LVM does at many of its commands.
fn reload(world: &mut World, vg: usize, lv: usize) {
    if device_of(world, &world.lvm.vgs[vg].dm_uuid(&world.lvm.vgs[vg].lvs[lv])).is_some() {
        activate(world, vg, lv, false);
    }
}

fn deactivate(world: &mut World, vg: usize, lv: usize) -> std::result::Result<(), Output> {
    let vg = &world.lvm.vgs[vg];
    let layers = vg.layers(&vg.lvs[lv], false);
    let inner = |user: &User| matches!(user, User::Holder { name, .. } if layers.iter().any(|layer| device_of(world, &layer.uuid).as_ref() == Some(name)));
    for layer in &layers {
        let (Some(device), false) = (device_of(world, &layer.uuid), layer.uuid.ends_with("-tpool")) else { continue };
        if !world.users_of(&device).iter().all(inner) {
            return Err(failed(format!("  Logical volume {}/{} in use.\n", vg.name, vg.lvs[lv].name)));
        }
    }
    for layer in layers.iter().rev() {
        // A pool stays as long as another volume of it is active.
        if let Some(device) = device_of(world, &layer.uuid)
            && world.files.list(format!("/sys/block/{device}/holders")).is_empty()
        {
            remove_device(world, &device);
        }
    }
    Ok(())
}

fn remove_device(world: &mut World, device: &str) {
    for below in world.files.list(format!("/sys/block/{device}/slaves")) {
        world.files.take(format!("/sys/block/{below}/holders/{device}"));
    }
    world.users.remove(device);
    world.lvm.read_only_tables.remove(device);
    world.remove_block(device);
}

fn add_disk(world: &mut World, name: &str, size_bytes: u64) {
    let (logical_block_size, physical_block_size) = (512, 4096);
    let read_only = false;
    world.add_block(&Block { name, below: VIRTUAL, size_bytes, read_only, logical_block_size, physical_block_size });
}

fn add_pv(world: &mut World, vg: usize, disk: &str) {
    const SIZE: u64 = 100 << 30;
    if world.files.stat(format!("/sys/block/{disk}")).is_none() {
        world.lvm.disks.insert(disk.into(), SIZE);
        add_disk(world, disk, SIZE);
    }
    world.lvm.labels.insert(disk.into());
    world.lvm.vgs[vg].pvs.push(disk.into());
}

// ---- names ----

impl Lvm {
    /// 32 characters of LVM's alphabet, another one each time.
    fn new_uuid(&mut self) -> String {
        self.uuids += 1;
        format!("{:0>32}", format!("uUiD{}", self.uuids)).replace('0', "o")
    }

    fn group(&self, name: &str) -> usize {
        self.vgs.iter().position(|vg| vg.name == name).expect("a test that names a VG of the machine")
    }

    /// The places of an LV: of its VG, and in it.
    fn place(&self, vg: &str, lv: &str) -> (usize, usize) {
        let at = self.group(vg);
        let place = self.vgs[at].lvs.iter().position(|known| known.name == lv);
        (at, place.expect("a test that names an LV of the machine"))
    }

    fn lv(&mut self, vg: &str, lv: &str) -> &mut Lv {
        let (at, place) = self.place(vg, lv);
        &mut self.vgs[at].lvs[place]
    }

    fn add(&mut self, vg: &str, lv: &str, size_bytes: u64, kind: Kind) {
        let (at, uuid) = (self.group(vg), self.new_uuid());
        let extents = if matches!(kind, Kind::Thin { .. }) { 0 } else { size_bytes.div_ceil(EXTENT) };
        let lv = Lv { name: lv.into(), uuid, size_bytes, kind, tags: BTreeSet::new(), writable: true, extents };
        self.vgs[at].lvs.push(lv);
    }
}

fn dashed(uuid: &str) -> String {
    let mut text = String::new();
    for (at, c) in uuid.chars().enumerate() {
        if [6, 10, 14, 18, 22, 26].contains(&at) {
            text.push('-');
        }
        text.push(c);
    }
    text
}

/// LVM as a test sets it up. LVs begin inactive.
impl Machine {
    /// A VG on disks of the machine, which are added if they are not there: `add_vg("vg0", &["vda", "vdb"])`.
    pub fn add_vg(&self, vg: &str, disks: &[&str]) {
        self.with(|world| {
            let uuid = world.lvm.new_uuid();
            let (system_id, pvs, lvs) = (String::new(), Vec::new(), Vec::new());
            let name = vg.to_owned();
            world.lvm.vgs.push(Vg { name, uuid, system_id, exported: false, pvs, lost: BTreeSet::new(), lvs });
        });
        self.with(|world| {
            let at = world.lvm.vgs.len() - 1;
            for disk in disks {
                add_pv(world, at, disk);
            }
        });
    }

    /// One more PV for a VG (`vgextend`).
    pub fn extend_vg(&self, vg: &str, disk: &str) {
        self.with(|world| {
            let at = world.lvm.group(vg);
            add_pv(world, at, disk);
        });
    }

    /// A disk of a VG dies.
    pub fn lose_disk(&self, disk: &str) {
        self.with(|world| {
            world.lvm.disks.remove(disk);
            world.remove_block(disk);
        });
    }

    /// Gives a VG to a host by its system ID.
    pub fn set_vg_system_id(&self, vg: &str, system_id: &str) {
        self.with(|world| {
            let at = world.lvm.group(vg);
            world.lvm.vgs[at].system_id = system_id.into();
        });
    }

    /// The system ID of this machine; it has none to begin with.
    pub fn set_system_id(&self, system_id: &str) {
        self.with(|world| world.lvm.system_id = system_id.into());
    }

    /// Exports a VG (`vgexport`).
    pub fn export_vg(&self, vg: &str) {
        self.with(|world| {
            let at = world.lvm.group(vg);
            world.lvm.vgs[at].exported = true;
        });
    }

    /// Whether LVM takes a PV of this VG for lost, because somebody changed the VG without seeing it.
    pub fn vg_is_damaged(&self, vg: &str) -> bool {
        self.with(|world| !world.lvm.vgs[world.lvm.group(vg)].lost.is_empty())
    }

    /// A linear LV.
    pub fn add_lv(&self, vg: &str, lv: &str, size_bytes: u64) {
        self.with(|world| world.lvm.add(vg, lv, size_bytes, Kind::Thick));
    }

    /// A thin pool, with its hidden parts.
    pub fn add_thin_pool(&self, vg: &str, pool: &str, size_bytes: u64) {
        self.with(|world| {
            world.lvm.add(vg, pool, size_bytes, Kind::ThinPool);
            world.lvm.add(vg, &format!("{pool}_tmeta"), 4 << 20, Kind::Hidden);
        });
    }

    /// A thin LV.
    pub fn add_thin_lv(&self, vg: &str, pool: &str, lv: &str, size_bytes: u64) {
        self.with(|world| world.lvm.add(vg, lv, size_bytes, Kind::Thin { pool: pool.into(), origin: None }));
    }

    /// A snapshot: of the sort that its origin is.
    pub fn add_lv_snapshot(&self, vg: &str, origin: &str, lv: &str) {
        self.with(|world| {
            let of = world.lvm.lv(vg, origin);
            let kind = match &of.kind {
                Kind::Thin { pool, .. } => Kind::Thin { pool: pool.clone(), origin: Some(origin.into()) },
                _ => Kind::Snapshot { origin: origin.into() },
            };
            let size_bytes = of.size_bytes;
            world.lvm.add(vg, lv, size_bytes, kind);
        });
    }

    /// Lets a thin pool be so full, in percent. (Of one that is not active it is not known, and so of one that was not filled.)
    pub fn fill_thin_pool(&self, vg: &str, pool: &str, percent: f64) {
        self.with(|world| world.lvm.filled.insert((vg.into(), pool.into()), percent));
    }

    /// Makes an LV of what was a thick snapshot, as a power failure in the middle of `lvcreate` does.
    pub fn halve_lv_snapshot(&self, vg: &str, lv: &str) {
        self.with(|world| world.lvm.lv(vg, lv).kind = Kind::Thick);
    }

    /// Removes an LV, active or not.
    pub fn remove_lv(&self, vg: &str, lv: &str) {
        self.with(|world| {
            let (at, place) = world.lvm.place(vg, lv);
            if let Err(output) = remove_at(world, at, place) {
                panic!("a test removes {vg}/{lv}: {}", output.said());
            }
        });
    }

    /// Removes an LV and makes another one of the same name, kind and size.
    pub fn recreate_lv(&self, vg: &str, lv: &str) {
        let (kind, size_bytes) = self.with(|world| {
            let old = world.lvm.lv(vg, lv);
            (old.kind.clone(), old.size_bytes)
        });
        self.remove_lv(vg, lv);
        self.with(|world| world.lvm.add(vg, lv, size_bytes, kind));
    }

    /// Renames an LV (`lvrename`), active or not.
    pub fn rename_lv(&self, vg: &str, from: &str, to: &str) {
        self.with(|world| {
            let at = world.lvm.group(vg);
            rename_lv(world, at, from, to);
        });
    }

    /// Lets an LV grow (`lvextend`), and its device with it.
    pub fn extend_lv(&self, vg: &str, lv: &str, size_bytes: u64) {
        self.with(|world| {
            world.lvm.lv(vg, lv).size_bytes = size_bytes;
            let (at, place) = world.lvm.place(vg, lv);
            let uuid = world.lvm.vgs[at].dm_uuid(&world.lvm.vgs[at].lvs[place]);
            if let Some(device) = device_of(world, &uuid) {
                world.resize_block(&device, size_bytes);
                reload(world, at, place);
            }
        });
    }

    /// Loads the table of an active LV anew (`lvchange --refresh`): for reading and writing, if the LV is writable.
    pub fn refresh_lv(&self, vg: &str, lv: &str) {
        self.with(|world| {
            let (at, place) = world.lvm.place(vg, lv);
            reload(world, at, place);
        });
    }

    /// Makes an LV read-only for everybody, or writable again (`lvchange -p`). It must not be active.
    pub fn set_lv_writable(&self, vg: &str, lv: &str, writable: bool) {
        self.with(|world| world.lvm.lv(vg, lv).writable = writable);
    }

    /// Tags an LV (`lvchange --addtag`).
    pub fn tag_lv(&self, vg: &str, lv: &str, tag: &str) {
        self.with(|world| world.lvm.lv(vg, lv).tags.insert(tag.into()));
    }

    /// Activates an LV as somebody else than the agent would.
    pub fn activate_lv(&self, vg: &str, lv: &str, read_only: bool) {
        self.with(|world| {
            let (at, place) = world.lvm.place(vg, lv);
            activate(world, at, place, read_only);
        });
    }

    /// Deactivates an LV as somebody else than the agent would.
    pub fn deactivate_lv(&self, vg: &str, lv: &str) {
        self.with(|world| {
            let (at, place) = world.lvm.place(vg, lv);
            if let Err(output) = deactivate(world, at, place) {
                panic!("{}", output.stderr);
            }
        });
    }

    /// The kernel's name of an active LV's device: `dm-0`.
    pub fn lv_device(&self, vg: &str, lv: &str) -> Option<String> {
        self.with(|world| {
            let (at, place) = world.lvm.place(vg, lv);
            let vg = &world.lvm.vgs[at];
            device_of(world, &vg.dm_uuid(&vg.lvs[place]))
        })
    }

    /// The names of a VG's LVs, with the tags of each.
    pub fn lvs(&self, vg: &str) -> BTreeMap<String, BTreeSet<String>> {
        self.with(|world| {
            let lvs = &world.lvm.vgs[world.lvm.group(vg)].lvs;
            lvs.iter().map(|lv| (lv.name.clone(), lv.tags.clone())).collect()
        })
    }

    /// Writes a PV label onto a device of any sort, as a guest does that has it for a disk.
    pub fn label_pv(&self, device: &str) {
        self.with(|world| world.lvm.labels.insert(device.into()));
    }
}
