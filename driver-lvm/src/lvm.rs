//! The `lvm` binary: what we run of it, on which devices, and what its answers mean.
//!
//! Two rules hold for every run. It sees the PVs of its own VG and nothing else (`--devices`), and an LV is named by its
//! UUID beside its name (`--select lv_uuid=…`): one that was replaced by another of the same name is left alone.

use crate::{
    active, failed,
    known::{Known, PvLabels},
    report::{self, Vg},
    scan::{self, Labelled, Labels},
    uuids,
};
use driver::{Error, Identity, LogicalVolume, Result, VgName};
use host::{Command, Host, Output, Tool};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::OwnedMutexGuard, time::Instant};

/// 128 and SIGSEGV: reports of lvm have died of it for no reason that came back (launchpad.net/bugs/1901783).
const CRASHED: i32 = 139;

/// How long a change may take where the caller has no deadline.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a thick snapshot copies at a time, in bytes: LVM's default.
pub(crate) const CHUNK: u64 = 4096;

/// What is done to an LV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    Activate,
    Deactivate,
    Tag {
        add: &'a [String],
        remove: &'a [String],
    },
    /// Removes it, if it has this tag.
    Remove {
        tag: &'a str,
    },
}

/// What a look at all disks has found.
struct Look {
    vgs: Vec<Vg>,
    /// What lvm was not content with.
    complaint: Option<Error>,
    /// Disks that did not answer.
    silent: Vec<PathBuf>,
}

/// LVM on this host.
pub(crate) struct Lvm {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) links: PathBuf,
    pub(crate) labels: Labels,
    pub(crate) seen: active::Seen,
    known: Known,
    /// The LVs, by the UUIDs of the VG and their own, that were attached and not detached since we run.
    attached: Mutex<BTreeSet<(String, String)>>,
    /// One for each VG: LVM would let only one run at a time write to it anyway.
    locks: Mutex<BTreeMap<VgName, Arc<tokio::sync::Mutex<()>>>>,
}

impl Lvm {
    pub(crate) fn new(host: Arc<dyn Host>, links: PathBuf) -> Self {
        let labels = Labels::new(Arc::clone(&host));
        Self {
            host,
            links,
            labels,
            seen: active::Seen::default(),
            known: Known::default(),
            attached: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    /// Waits for whoever works on the VG.
    pub(crate) async fn lock(&self, vg: &VgName, deadline: Option<Instant>) -> Result<OwnedMutexGuard<()>> {
        let lock = Arc::clone(open(&self.locks).entry(vg.clone()).or_default());
        let locked = tokio::time::timeout(left(vg, deadline)?, lock.lock_owned()).await;
        locked.map_err(|_| Error::TimedOut { waiting_for: format!("another operation on the volume group {vg}") })
    }

    /// Notes whether an LV is attached, for as long as no stable path says so: it comes last and goes first.
    pub(crate) fn note(&self, identity: &Identity, attached: bool) -> Result<()> {
        let (vg_uuid, lv_uuid) = uuids(identity)?;
        let (mut known, uuids) = (open(&self.attached), (vg_uuid.to_owned(), lv_uuid.to_owned()));
        match attached {
            true => known.insert(uuids),
            false => known.remove(&uuids),
        };
        Ok(())
    }

    /// Whether an LV was attached, and not detached, since we run.
    pub(crate) fn has_attached(&self, vg_uuid: &str, lv_uuid: &str) -> bool {
        open(&self.attached).contains(&(vg_uuid.to_owned(), lv_uuid.to_owned()))
    }

    /// A VG as its metadata has it now. No process if that has not changed since the last report.
    pub(crate) async fn group(&self, name: &VgName) -> Result<Vg> {
        let now = self.labels_of(name).await?;
        match now.as_ref().and_then(|(_, now)| self.known.unchanged(name, now)) {
            Some(vg) => self.owned(vg).await,
            None => self.report_of(name, now).await,
        }
    }

    /// A VG as lvm reports it now: after a change. One process if its PVs are known still, else one after a look at every disk.
    pub(crate) async fn reported(&self, name: &VgName) -> Result<Vg> {
        let before = self.labels_of(name).await?;
        self.report_of(name, before).await
    }

    /// The PVs that a VG is known on, and what those that answer begin with now.
    async fn labels_of(&self, name: &VgName) -> Result<Option<(Vec<PathBuf>, PvLabels)>> {
        let Some(pvs) = self.known(name).await? else { return Ok(None) };
        let labels = self.labels.among(pvs.clone()).await.pvs;
        Ok(Some((pvs, labels)))
    }

    /// A report of a VG: of the PVs that it is known on, which began like this before, or else of all.
    async fn report_of(&self, name: &VgName, known: Option<(Vec<PathBuf>, PvLabels)>) -> Result<Vg> {
        if let Some((pvs, before)) = known {
            let (mut vgs, complaint) = self.report(&pvs).await?;
            vgs.retain(|vg| vg.name == name.as_str() && vg.missing_pvs == 0);
            if let Some(vg) = vgs.pop() {
                let before = if complaint.is_none() { before } else { PvLabels::new() };
                self.known.keep(name, &vg, &before);
                return self.owned(vg).await;
            }
            self.known.forget(name);
        }
        let Look { vgs, complaint, silent } = self.look(self.labelled().await?).await?;
        let mut named: Vec<Vg> = vgs.into_iter().filter(|vg| vg.name == name.as_str()).collect();
        match (named.pop(), named.is_empty(), complaint) {
            (Some(vg), true, _) => self.owned(vg).await,
            (Some(one), false, _) => Err(Error::WrongState {
                what: format!(
                    "there are {} VGs named {name} on this host, one with the UUID {}; give each a name of its own \
                     with vgrename",
                    named.len() + 1,
                    one.uuid
                ),
            }),
            (None, _, Some(complaint)) => Err(complaint),
            // It may be there, with what an operation that crashed has left.
            (None, _, None) if !silent.is_empty() => {
                let silent: Vec<String> = silent.iter().map(|device| device.display().to_string()).collect();
                Err(Error::Unreachable {
                    what: format!("the volume group {name}"),
                    why: format!("it is not on the disks that answer, and {} does not", silent.join(", ")),
                })
            }
            (None, _, None) => Err(Error::NotFound { what: format!("the volume group {name}") }),
        }
    }

    /// Every VG of this host, as its metadata has it now. No process if that has not changed since the last reports.
    pub(crate) async fn groups(&self) -> Result<Vec<Vg>> {
        let labelled = self.labelled().await?;
        let vgs = match self.known.all_unchanged(&labelled.pvs) {
            Some(vgs) => vgs,
            None => match self.look(labelled).await? {
                Look { vgs, complaint: Some(complaint), .. } if vgs.is_empty() => return Err(complaint),
                Look { vgs, .. } => vgs,
            },
        };
        let mut owned = Vec::new();
        for vg in vgs {
            owned.push(self.owned(vg).await?);
        }
        Ok(owned)
    }

    /// Changes an LV. What is not there under this name *and* identity is not touched, which is no error here: the
    /// caller looks at what came of it.
    pub(crate) async fn change(
        &self,
        at: &LogicalVolume,
        identity: &Identity,
        change: Change<'_>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let ((_, lv_uuid), within) = (uuids(identity)?, left(&at.vg, deadline)?);
        let Some(pvs) = self.known(&at.vg).await? else {
            let pvs = self.reported(&at.vg).await?.pvs;
            return self.run_change(at, lv_uuid, change, &pvs, within).await;
        };
        let Err(error) = self.run_change(at, lv_uuid, change, &pvs, within).await else { return Ok(()) };
        if matches!(error, Error::InUse { .. } | Error::Busy { .. } | Error::TimedOut { .. }) {
            return Err(error);
        }
        // The VG may have moved to other PVs. Only then is there a reason to try again.
        self.known.forget(&at.vg);
        match self.reported(&at.vg).await {
            Ok(vg) if vg.pvs != pvs => self.run_change(at, lv_uuid, change, &vg.pvs, left(&at.vg, deadline)?).await,
            _ => Err(error),
        }
    }

    /// Renames an LV of a VG that was read just before. LVM refuses if it does not see all of the VG.
    pub(crate) async fn rename(&self, vg: &Vg, from: &str, to: &str) -> Result<()> {
        let args = ["lvrename", &vg.name, from, to].map(str::to_owned).into_iter().chain(devices(&vg.pvs));
        let output = self.run(Command::write(Tool::Lvm, args)).await?;
        classify(|| format!("rename {}/{from} to {to}", vg.name), &output)
    }

    /// Makes a snapshot of an LV of a VG that was read just before, inactive. A thick one is given its size in extents: as
    /// a part of its origin's, LVM would take it for a wish.
    pub(crate) async fn snapshot(
        &self,
        vg: &Vg,
        image: &str,
        to: &LogicalVolume,
        tag: &str,
        extents: Option<u64>,
        deadline: Instant,
    ) -> Result<()> {
        let mut args = ["lvcreate", "-an", "-y", "--permission", "rw", "--snapshot"].map(str::to_owned).to_vec();
        args.extend(match extents {
            Some(extents) => {
                vec!["--chunksize".into(), format!("{CHUNK}b"), "--extents".into(), extents.to_string()]
            }
            None => ["--setactivationskip", "n"].map(str::to_owned).to_vec(),
        });
        args.extend([
            "--name".into(),
            to.lv.to_string(),
            "--addtag".into(),
            tag.into(),
            format!("{}/{image}", vg.name),
        ]);
        let command = Command::write(Tool::Lvm, args.into_iter().chain(devices(&vg.pvs)));
        let output = self.run(command.within(left(&to.vg, Some(deadline))?)).await?;
        classify(|| format!("make {}/{} of {image}", vg.name, to.lv), &output)
    }

    /// How full a thin pool is, in percent: its data and its metadata. Unknown of one that is not active.
    pub(crate) async fn filled(&self, vg: &Vg, pool: &str) -> Result<Option<(f64, f64)>> {
        let args = ["lvs", "--reportformat", "json", "-o", "data_percent,metadata_percent"].map(str::to_owned).to_vec();
        let args = args.into_iter().chain([format!("{}/{pool}", vg.name)]).chain(devices(&vg.pvs));
        let output = self.run(Command::read(Tool::Lvm, args)).await?;
        classify(|| format!("look how full {}/{pool} is", vg.name), &output)?;
        report::filled(&output.stdout)
    }

    /// What lvm says of itself.
    pub(crate) async fn version(&self) -> Result<String> {
        let output = self.run(Command::read(Tool::Lvm, ["version"])).await?;
        let version = output.stdout.lines().find_map(|line| line.trim().strip_prefix("LVM version:"));
        match version.and_then(|version| version.split_whitespace().next()) {
            Some(version) => Ok(version.to_owned()),
            None => Err(unknown("ask lvm for its version", &output)),
        }
    }

    /// The PVs that a VG was last seen on, if they all may still be looked at: the kernel gives the name of a disk that
    /// went to one that comes, which may be a guest's by now.
    async fn known(&self, vg: &VgName) -> Result<Option<Vec<PathBuf>>> {
        let Some(pvs) = self.known.pvs(vg) else { return Ok(None) };
        let suspects = scan::suspects(self.host.as_ref(), &self.links).await?;
        if pvs.iter().all(|pv| suspects.contains(pv)) {
            return Ok(Some(pvs));
        }
        self.known.forget(vg);
        Ok(None)
    }

    /// The PVs among all disks.
    async fn labelled(&self) -> Result<Labelled> {
        Ok(self.labels.among(scan::suspects(self.host.as_ref(), &self.links).await?).await)
    }

    /// Looks at all VGs, and learns which is on which PVs.
    async fn look(&self, Labelled { pvs: before, silent }: Labelled) -> Result<Look> {
        let pvs: Vec<PathBuf> = before.keys().cloned().collect();
        let (vgs, complaint) = self.report(&pvs).await?;
        match &complaint {
            None => self.known.keep_all(&vgs, before),
            Some(_) => self.known.keep_all(&vgs, PvLabels::new()),
        }
        Ok(Look { vgs, complaint, silent })
    }

    /// The VGs on some PVs, and what lvm complained about if it was not content.
    async fn report(&self, pvs: &[PathBuf]) -> Result<(Vec<Vg>, Option<Error>)> {
        if pvs.is_empty() {
            // Without `--devices` lvm would look everywhere.
            return Ok((Vec::new(), None));
        }
        let args: Vec<String> = report::ARGUMENTS.iter().copied().map(str::to_owned).chain(devices(pvs)).collect();
        let mut output = self.run(Command::read(Tool::Lvm, args.clone())).await?;
        if output.code == CRASHED {
            output = self.run(Command::read(Tool::Lvm, args)).await?;
        }
        let complaint = classify(|| "read the volume groups".into(), &output).err();
        match (report::parse(&output.stdout), complaint) {
            (Err(_), Some(complaint)) => Err(complaint),
            (vgs, complaint) => Ok((vgs?, complaint)),
        }
    }

    /// Clears the owner of a VG that is ours. Only a VG that has one costs a process.
    async fn owned(&self, mut vg: Vg) -> Result<Vg> {
        if vg.owner.is_some() {
            let output = self.run(Command::read(Tool::Lvm, ["systemid"])).await?;
            let ours = output.stdout.trim().strip_prefix("system ID:").map(str::trim);
            vg.owner = vg.owner.filter(|owner| ours != Some(owner.as_str()));
        }
        Ok(vg)
    }

    async fn run_change(
        &self,
        at: &LogicalVolume,
        lv_uuid: &str,
        change: Change<'_>,
        pvs: &[PathBuf],
        within: Duration,
    ) -> Result<()> {
        let args = change.args(at, lv_uuid).into_iter().chain(devices(pvs));
        let output = self.run(Command::write(Tool::Lvm, args).within(within)).await?;
        classify(|| format!("{} {}/{}", change.verb(), at.vg, at.lv), &output)
    }

    async fn run(&self, command: Command) -> Result<Output> {
        let line = command.line();
        self.host.run(command).await.map_err(|error| match error {
            host::Error::TimedOut { .. } => Error::TimedOut { waiting_for: format!("`{line}`") },
            other => failed("run lvm")(other),
        })
    }
}

impl Change<'_> {
    fn verb(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Deactivate => "deactivate",
            Self::Tag { .. } => "tag",
            Self::Remove { .. } => "remove",
        }
    }

    fn args(self, at: &LogicalVolume, lv_uuid: &str) -> Vec<String> {
        let mut args = vec![if matches!(self, Self::Remove { .. }) { "lvremove" } else { "lvchange" }.to_owned()];
        let mut select = format!("lv_uuid={}", dashed(lv_uuid));
        match self {
            // -K: LVs that are skipped otherwise (thin snapshots) were asked for by name. -y, here and below: a snapshot
            // comes and goes together with its origin, which lvm asks about.
            Self::Activate => args.extend(["-ay".into(), "-K".into(), "-y".into()]),
            Self::Deactivate => args.extend(["-an".into(), "-y".into()]),
            Self::Tag { add, remove } => {
                args.extend(add.iter().flat_map(|tag| ["--addtag".into(), tag.clone()]));
                args.extend(remove.iter().flat_map(|tag| ["--deltag".into(), tag.clone()]));
                // lvchange tags an LV of a VG that it sees in part only, and from then on LVM takes the PVs that it did
                // not see for lost. A PV that has joined since we looked must not suffer that.
                select.push_str(" && vg_missing_pv_count=0");
            }
            Self::Remove { tag } => {
                args.extend(["-f".into(), "-y".into()]);
                select.push_str(&format!(" && lv_tags=\"{tag}\""));
            }
        }
        args.extend(["-S".into(), select, format!("{}/{}", at.vg, at.lv)]);
        args
    }
}

/// The only place where lvm's words get a meaning. It has one exit code for almost everything (5, `ECMD_FAILED`).
fn classify(doing: impl FnOnce() -> String, output: &Output) -> Result<()> {
    if output.code == 0 {
        return Ok(());
    }
    let said = said(output);
    let quoted = |what: &str| {
        said.split_once('"').and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| format!("{what} {name}"))
    };
    let has = |pattern: &str| said.contains(pattern);
    Err(if has("Volume group \"") && has("\" not found") && !has("logical volume \"") {
        Error::NotFound { what: quoted("the volume group").unwrap_or(said) }
    } else if has("Failed to find logical volume \"") || has("Existing logical volume \"") && has("\" not found") {
        Error::NotFound { what: quoted("the logical volume").unwrap_or(said) }
    } else if has("already exists in volume group") {
        Error::AlreadyExists { what: said }
    } else if has(" in use.") || has("contains a filesystem in use") || has("is used by another device") {
        Error::InUse { what: doing(), by: vec![said] }
    } else if has("Can't get lock") {
        Error::Busy {
            what: format!("LVM's lock, needed to {},", doing()),
            holder: "another run of lvm".into(),
            age: Duration::ZERO,
        }
    } else if has("nsufficient free space") || has("nsufficient suitable") || has("reached threshold") {
        Error::Full { what: doing(), why: said }
    } else if has("while PVs are missing") || has("of partial LV") || has("is exported") || has("Cannot access VG") {
        Error::WrongState { what: format!("cannot {}: {said}", doing()) }
    } else if has("are reserved") || has("may not exceed") {
        Error::invalid("name", said)
    } else {
        unknown(&doing(), output)
    })
}

fn unknown(doing: &str, output: &Output) -> Error {
    Error::Tool { doing: doing.into(), tool: "lvm", code: output.code.to_string(), said: said(output) }
}

/// What lvm said, without the warnings that come with every run on such a VG.
fn said(output: &Output) -> String {
    let telling =
        |line: &&str| !line.trim_start().starts_with("WARNING:") && !line.contains("leaked on lvm invocation");
    let stderr: Vec<&str> = output.stderr.lines().filter(telling).collect();
    let telling = Output { stderr: stderr.join("\n"), ..Output::default() };
    match telling.said() {
        said if said.is_empty() => output.said(),
        said => said,
    }
}

fn devices(pvs: &[PathBuf]) -> impl Iterator<Item = String> {
    pvs.iter().flat_map(|pv| ["--devices".to_owned(), pv.as_path().to_string_lossy().into_owned()])
}

/// The time until a deadline. Once it is over, what took it was a look at the VG.
fn left(vg: &VgName, deadline: Option<Instant>) -> Result<Duration> {
    let left = deadline.map_or(PATIENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
    match left.is_zero() {
        true => {
            Err(Error::TimedOut { waiting_for: format!("the volume group {vg}, which another lvm command may hold") })
        }
        false => Ok(left),
    }
}

/// Whether an lvm of this version (`2.03.16(2)`) can be told what to look at: `--devices` came with 2.03.12.
pub(crate) fn can_restrict(version: &str) -> bool {
    driver::version::is_at_least(version, &[2, 3, 12])
}

/// A UUID as lvm writes it: groups of 6, 4, 4, 4, 4, 4 and 6 (lvm2 `lib/uuid/uuid.c`).
fn dashed(uuid: &str) -> String {
    let mut text = String::with_capacity(38);
    for (at, c) in uuid.chars().enumerate() {
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(c);
    }
    text
}

fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As lvm2 2.03.16 says it.
    #[test]
    fn what_lvm_says_has_a_meaning() {
        for (code, stderr, reason, named) in [
            (
                5,
                "  Volume group \"nope\" not found\n  Cannot process volume group nope\n",
                "NOT_FOUND",
                "volume group nope",
            ),
            (5, "  Failed to find logical volume \"vga/nope\"\n", "NOT_FOUND", "logical volume vga/nope"),
            (5, "  Existing logical volume \"a\" not found in volume group \"vga\"\n", "NOT_FOUND", "logical volume a"),
            (5, "  Logical Volume \"a-b\" already exists in volume group \"vga\"\n", "ALREADY_EXISTS", "a-b"),
            (5, "  Logical volume vga/a-b in use.\n", "IN_USE", "a-b"),
            (5, "  Logical volume vga/a contains a filesystem in use.\n", "IN_USE", "filesystem"),
            (
                5,
                "  /run/lock/lvm/V_vga: flock failed: Resource temporarily unavailable\n  Can't get lock for vga.\n",
                "BUSY",
                "another",
            ),
            (
                5,
                "  WARNING: VG vga is missing PV x.\n  Cannot change VG vga while PVs are missing.\n",
                "WRONG_STATE",
                "PVs are missing",
            ),
            (
                5,
                "  Refusing activation of partial LV vga/two.  Use '--activationmode partial' to override.\n",
                "WRONG_STATE",
                "partial",
            ),
            (5, "  Volume group vgb is exported\n", "WRONG_STATE", "exported"),
            (5, "  Cannot access VG vgc with system ID other with unknown local system ID.\n", "WRONG_STATE", "other"),
            (
                3,
                "  Names starting \"snapshot\" are reserved. Please choose a different LV name.\n",
                "INVALID",
                "reserved",
            ),
            (
                5,
                "  Volume group \"vga\" has insufficient free space (3 extents): 9 required.\n",
                "NO_SPACE",
                "9 required",
            ),
            (5, "  device-mapper: reload ioctl on  (254:2) failed: Invalid argument\n", "TOOL_FAILED", "reload ioctl"),
            (139, "", "TOOL_FAILED", "139"),
        ] {
            let output = Output { code, stderr: stderr.into(), ..Output::default() };
            let error = classify(|| "rename vga/a to b".into(), &output).unwrap_err();
            assert_eq!(error.reason(), reason, "{stderr}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.to_string().contains("WARNING"), "{error}");
        }
        let warned = Output { stderr: "  WARNING: VG vga is missing PV x.\n".into(), ..Output::default() };
        assert!(classify(String::new, &warned).is_ok());
    }

    #[test]
    fn uuids_as_lvm_writes_them() {
        assert_eq!(dashed("dBaiJjgO6hhHUqTFWotvcOqtofpUniGs"), "dBaiJj-gO6h-hHUq-TFWo-tvcO-qtof-pUniGs");
    }

    #[test]
    fn versions() {
        for (version, fine) in [
            ("2.03.16(2)", true),
            ("2.03.12(2)", true),
            ("2.03.11(2)", false),
            ("2.02.187(2)", false),
            ("3.0", true),
            ("x", false),
        ] {
            assert_eq!(can_restrict(version), fine, "{version}");
        }
    }

    proptest! {
        #[test]
        fn no_words_panic(
            code in any::<i32>(),
            stderr in "(\\PC|\"|\n|Volume group \"|\" not found|Failed to find logical volume \"){0,12}",
        ) {
            let output = Output { code, stderr, ..Output::default() };
            prop_assert_eq!(classify(|| "do it".into(), &output).is_ok(), code == 0);
        }
    }
}
