//! A crash after every effect of every verb, another after every effect of the recovery, and then the caller's retry:
//! each operation is finished or undone, and nothing is left that nobody owns.

use crate::machine::{CLUSTER, DIRECTORY, IQN, POOL, SimStage, VG, until};
use driver::Backend;
use host::sim::iscsi::LogicalUnit;
use proto::v1;
use std::{collections::BTreeSet, time::Duration};
use tests::{
    client::{Client, attach, manage},
    reliability::{Row, Sweep, note},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";

/// What a verb is tried on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Volume(Backend),
    /// A unit with two ways, each on a portal of its own.
    Multipath,
    /// A unit with one way, of a volume that multipathd remembers.
    Remembered,
    /// Of an origin that is active, and so it is itself.
    ThickSnapshot,
    ThinSnapshot,
    /// The origin of a thick snapshot, both active.
    Origin,
    /// A volume that is attached already, as `b`: the device is shared, and stays.
    Shared(Backend),
}

pub(crate) const FILE: Subject = Subject::Volume(Backend::File);
pub(crate) const ISCSI: Subject = Subject::Volume(Backend::Iscsi);
pub(crate) const LVM: Subject = Subject::Volume(Backend::Lvm);
pub(crate) const RBD: Subject = Subject::Volume(Backend::Rbd);

impl Subject {
    /// Makes it, and returns its locator.
    pub(crate) async fn make(self, stage: &mut SimStage) -> String {
        let machine = &stage.machine;
        match self {
            Self::Volume(backend) => return stage.volume(backend, "v", SIZE).await,
            Self::Shared(backend) => {
                let locator = stage.volume(backend, "v", SIZE).await;
                assert!(stage.client().attach(attach("b", &locator)).await.unwrap().changed);
                return locator;
            }
            Self::Multipath => {
                let iqn = "iqn.2026-11.org.example:two";
                machine.add_target(iqn, &["127.0.0.1:3260", "127.0.0.2:3260"]);
                machine.map_lun(iqn, 0, LogicalUnit::disk("600140500000000000000000000000a1", SIZE));
                machine.run_multipathd(true);
                return format!("iscsi://127.0.0.1,127.0.0.2/{iqn}/0");
            }
            Self::Remembered => {
                let iqn = "iqn.2026-11.org.example:remembered";
                machine.add_target(iqn, &["127.0.0.1:3260"]);
                machine.map_lun(iqn, 0, LogicalUnit::disk("600140500000000000000000000000a1", SIZE));
                machine.put_file("/etc/multipath/wwids", "/3600140500000000000000000000000a1/\n");
                machine.run_multipathd(true);
                return format!("iscsi://127.0.0.1/{iqn}/0");
            }
            Self::ThickSnapshot | Self::Origin => {
                machine.add_lv(VG, "origin", SIZE);
                machine.add_lv_snapshot(VG, "origin", "snap");
                machine.activate_lv(VG, "origin", false);
            }
            Self::ThinSnapshot => {
                machine.add_thin_pool(VG, "pool", SIZE);
                machine.add_thin_lv(VG, "pool", "thin", SIZE);
                machine.add_lv_snapshot(VG, "thin", "snap");
            }
        }
        format!("lvm:{VG}/{}", if matches!(self, Self::Origin) { "origin" } else { "snap" })
    }

    /// Somebody gives it the name back that it had before it was managed.
    fn rename_back(self, stage: &SimStage) {
        let (machine, managed) = (&stage.machine, format!("volume-{ID}"));
        match self {
            FILE => machine.move_tree(format!("{DIRECTORY}/{managed}"), format!("{DIRECTORY}/v.raw")),
            LVM => machine.rename_lv(VG, &managed, "v"),
            RBD => machine.rename_image(CLUSTER, POOL, &managed, "v"),
            other => unreachable!("{other:?} is not unmanaged under its name"),
        }
    }

    /// It has another size on its backend.
    fn resize(self, stage: &SimStage, size: u64) {
        let machine = &stage.machine;
        match self {
            FILE => machine.truncate(format!("{DIRECTORY}/v.raw"), size),
            ISCSI => machine.resize_lun(IQN, 0, size),
            LVM => machine.extend_lv(VG, "v", size),
            RBD => machine.grow_image(CLUSTER, POOL, "v", size),
            Self::Multipath => machine.resize_lun("iqn.2026-11.org.example:two", 0, size),
            other => unreachable!("{other:?} does not grow"),
        }
    }
}

/// What is crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Attach,
    /// So that it comes back after a reboot.
    AttachPersistently,
    AttachReadOnly,
    /// RBD: with the image's lock.
    AttachExclusively,
    Detach,
    DetachReadOnly,
    Manage,
    Unmanage,
    /// The volume keeps its managed name, and somebody renames it at the shell.
    UnmanageUnderItsName,
}

impl Verb {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::AttachPersistently => "attach, persistent",
            Self::AttachReadOnly => "attach, read-only",
            Self::AttachExclusively => "attach, exclusive",
            Self::Detach => "detach",
            Self::DetachReadOnly => "detach, read-only",
            Self::Manage => "manage",
            Self::Unmanage => "unmanage",
            Self::UnmanageUnderItsName => "unmanage, under its name",
        }
    }

    /// The call, and whether it changed anything.
    pub(crate) async fn call(self, mut client: Client, locator: &str) -> bool {
        match self {
            // All paths, or else a snapshot would depend on how far the later ones came.
            Self::Attach | Self::AttachPersistently | Self::AttachReadOnly | Self::AttachExclusively => {
                let request = v1::AttachRequest {
                    all_paths: true,
                    persistent: self == Self::AttachPersistently,
                    read_only: self == Self::AttachReadOnly,
                    exclusive: self == Self::AttachExclusively,
                    ..attach("a", locator)
                };
                client.attach(request).await.unwrap().changed
            }
            Self::Detach | Self::DetachReadOnly => client.detach("a").await.unwrap().changed,
            Self::Manage => {
                let request = v1::ManageRequest { id: ID.into(), ..manage(locator) };
                client.manage(request).await.unwrap().changed
            }
            Self::Unmanage => client.unmanage(ID, false).await.unwrap().changed,
            Self::UnmanageUnderItsName => client.unmanage(ID, true).await.unwrap().changed,
        }
    }

    /// What has to be done before it can be called.
    pub(crate) fn before(self) -> Option<Self> {
        match self {
            Self::Attach | Self::AttachPersistently | Self::AttachReadOnly | Self::AttachExclusively | Self::Manage => {
                None
            }
            Self::Detach => Some(Self::Attach),
            Self::DetachReadOnly => Some(Self::AttachReadOnly),
            Self::Unmanage | Self::UnmanageUnderItsName => Some(Self::Manage),
        }
    }

    /// It changes the name of a volume, and attaches nothing.
    pub(crate) fn is_of_names(self) -> bool {
        matches!(self, Self::Manage | Self::Unmanage | Self::UnmanageUnderItsName)
    }

    /// What takes it back.
    pub(crate) fn back(self) -> Self {
        match self {
            Self::Attach | Self::AttachPersistently | Self::AttachReadOnly | Self::AttachExclusively => Self::Detach,
            Self::Detach => Self::Attach,
            Self::DetachReadOnly => Self::AttachReadOnly,
            Self::Manage => Self::Unmanage,
            Self::Unmanage | Self::UnmanageUnderItsName => Self::Manage,
        }
    }
}

/// Calls `verb` until the process dies after effect `at`. `false`: it came to its end first.
pub(crate) async fn crash(stage: &SimStage, verb: Verb, locator: &str, at: usize) -> bool {
    stage.machine.crash_after(at);
    let (client, locator) = (stage.client(), locator.to_owned());
    let call = tokio::spawn(async move { verb.call(client, &locator).await });
    tokio::select! {
        () = stage.machine.crashed() => true,
        done = call => {
            assert!(done.unwrap());
            false
        }
    }
}

/// A stage on which a verb can be called, the locator for it, and how the machine was before anything was called.
pub(crate) async fn ready(subject: Subject, verb: Verb) -> (SimStage, String, String) {
    let mut stage = SimStage::new().await;
    let locator = subject.make(&mut stage).await;
    let bare = stage.snapshot().await;
    if let Some(before) = verb.before() {
        assert!(before.call(stage.client(), &locator).await);
    }
    (stage, locator, bare)
}

/// All crash points of one verb; returns how many there are, and how many schedules were run.
async fn sweep(subject: Subject, verb: Verb) -> (usize, usize) {
    let mut schedules = 0;
    for at in 1.. {
        // The recovery runs to its end (0), or crashes after its first effect, its second, …
        for again in 0.. {
            match schedule(subject, verb, at, again).await {
                Ran::Whole => schedules += 1,
                Ran::NoSuchRecoveryEffect => break,
                Ran::NoSuchEffect => {
                    assert!(at > 2, "{subject:?} {verb:?}: {} effects are too few to be true", at - 1);
                    return (at - 1, schedules);
                }
            }
        }
    }
    unreachable!("a verb has an end")
}

enum Ran {
    Whole,
    NoSuchEffect,
    NoSuchRecoveryEffect,
}

async fn schedule(subject: Subject, verb: Verb, at: usize, again: usize) -> Ran {
    let place = format!("{subject:?} {verb:?}, crash after effect {at}, then after effect {again} of the recovery");
    let (mut stage, locator, bare) = ready(subject, verb).await;
    let start = stage.snapshot().await;
    if !crash(&stage, verb, &locator, at).await {
        return Ran::NoSuchEffect;
    }
    if !start_twice(&mut stage, again).await {
        return Ran::NoSuchRecoveryEffect;
    }

    // What is not attached any more, or not yet, is whole as it was before anybody calls again.
    if !verb.is_of_names() && stage.client().list().await.unwrap().is_empty() {
        let left = difference(&bare, &stage.snapshot().await);
        assert!(left.is_empty(), "{place}: something was left behind before the retry\n{left}");
    }

    // The retry answers, the next one has nothing to do, and the way back leads to where it all began.
    verb.call(stage.client(), &locator).await;
    assert_ne!(stage.snapshot().await, start, "{place}: the repeated call did nothing");
    if verb.before().is_some() {
        if verb == Verb::UnmanageUnderItsName {
            assert!(!verb.call(stage.client(), &locator).await, "{place}: a third call changed something");
            subject.rename_back(&stage);
        }
        let left = difference(&bare, &stage.snapshot().await);
        assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    }
    assert!(!verb.call(stage.client(), &locator).await, "{place}: a third call changed something");
    assert!(verb.back().call(stage.client(), &locator).await, "{place}");
    let left = difference(&start, &stage.snapshot().await);
    assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    let unfinished = v1::ListOperationsRequest { running_only: true, limit: 0 };
    let open = stage.client().operations.list(unfinished).await.unwrap().into_inner().operations;
    assert!(open.is_empty(), "{place}: {open:?}");
    Ran::Whole
}

/// A volume that cannot be looked at when the agent starts again may hold what the dead one has left: so its operation is
/// not over.
#[tokio::test]
async fn a_manage_whose_disk_is_silent_at_the_restart() {
    for at in 2..=3 {
        let mut stage = SimStage::new().await;
        let locator = LVM.make(&mut stage).await;
        let bare = stage.snapshot().await;
        assert!(crash(&stage, Verb::Manage, &locator, at).await, "a manage has fewer than {at} effects");
        stage.kill();
        let never = host::Error::TimedOut { what: "/dev/vda".into(), after: Duration::ZERO };
        stage.machine.fail_next("head /dev/vda", never);
        stage.start().await;
        let running = v1::ListOperationsRequest { running_only: true, limit: 0 };
        let open = stage.client().operations.list(running).await.unwrap().into_inner().operations;
        assert_eq!(open.len(), 1, "crash after effect {at}: {open:?}");
        stage.kill();
        stage.start().await;
        Verb::Manage.call(stage.client(), &locator).await;
        assert!(Verb::Unmanage.call(stage.client(), &locator).await);
        let left = difference(&bare, &stage.snapshot().await);
        assert!(left.is_empty(), "crash after effect {at}: something was left behind\n{left}");
    }
}

/// The storage alone has to lead back from wherever a crash left a volume: it is under its own name still, or it tells the name
/// that it had.
#[tokio::test]
async fn the_origin_is_told_without_the_journal() {
    for subject in [FILE, LVM, RBD, Subject::ThickSnapshot, Subject::ThinSnapshot] {
        for verb in [Verb::Manage, Verb::Unmanage] {
            let points = sweep_without_the_journal(subject, verb).await;
            assert!(points > 2, "{subject:?} {verb:?}: {points} effects are too few to be true");
        }
    }
}

/// How many crash points there are.
async fn sweep_without_the_journal(subject: Subject, verb: Verb) -> usize {
    for at in 1.. {
        let place = format!("{subject:?} {verb:?}, crash after effect {at}, journal lost");
        let (mut stage, locator, bare) = ready(subject, verb).await;
        if !crash(&stage, verb, &locator, at).await {
            return at - 1;
        }
        stage.kill();
        stage.lose_journal();
        stage.start().await;

        // Where nobody remembers to look, the volume's own name leads to it.
        match stage.client().volumes.get(v1::GetVolumeRequest { id: ID.into() }).await {
            Ok(found) => assert_eq!(found.into_inner().origin, locator, "{place}"),
            Err(_) => drop(Verb::Manage.call(stage.client(), &locator).await),
        }
        assert!(Verb::Unmanage.call(stage.client(), &locator).await, "{place}");
        let left = difference(&bare, &stage.snapshot().await);
        assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    }
    unreachable!("a verb has an end")
}

/// The lines that only one of them has.
pub(crate) fn difference(before: &str, after: &str) -> String {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let gone = before.difference(&after).map(|line| format!("- {line}\n"));
    let new = after.difference(&before).map(|line| format!("+ {line}\n"));
    gone.chain(new).collect()
}

/// Of another boot than `bare`, it is as that was.
pub(crate) async fn nothing_is_left_after_a_boot(stage: &SimStage, bare: &str, place: &str) {
    let left = difference(bare, &stage.snapshot().await);
    let left: Vec<&str> = left.lines().filter(|line| !line.contains("boot_id")).collect();
    assert!(left.is_empty(), "{place}: something was left behind\n{left:?}");
}

macro_rules! sweeps {
    ($($name:ident: $subject:expr, $verb:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let (points, schedules) = sweep($subject, Verb::$verb).await;
                println!("{:?} {:?}: {schedules} schedules", $subject, Verb::$verb);
                swept(Verb::$verb.words(), $subject, points, schedules);
                assert!(schedules >= 6, "{schedules} schedules are too few to be true");
            }
        )*
    };
}

sweeps! {
    file_attach: FILE, Attach;
    file_detach: FILE, Detach;
    file_manage: FILE, Manage;
    file_unmanage: FILE, Unmanage;
    iscsi_attach: ISCSI, Attach;
    iscsi_detach: ISCSI, Detach;
    lvm_attach: LVM, Attach;
    lvm_detach: LVM, Detach;
    lvm_manage: LVM, Manage;
    lvm_unmanage: LVM, Unmanage;
    thick_snapshot_manage: Subject::ThickSnapshot, Manage;
    thick_snapshot_unmanage: Subject::ThickSnapshot, Unmanage;
    thin_snapshot_manage: Subject::ThinSnapshot, Manage;
    thin_snapshot_unmanage: Subject::ThinSnapshot, Unmanage;
    origin_manage: Subject::Origin, Manage;
    origin_unmanage: Subject::Origin, Unmanage;
    multipath_attach: Subject::Multipath, Attach;
    multipath_detach: Subject::Multipath, Detach;
    remembered_attach: Subject::Remembered, Attach;
    remembered_detach: Subject::Remembered, Detach;
    rbd_attach: RBD, Attach;
    rbd_detach: RBD, Detach;
    rbd_manage: RBD, Manage;
    rbd_unmanage: RBD, Unmanage;
    file_attach_persistently: FILE, AttachPersistently;
    file_attach_read_only: FILE, AttachReadOnly;
    file_detach_read_only: FILE, DetachReadOnly;
    file_unmanage_under_its_name: FILE, UnmanageUnderItsName;
    iscsi_attach_persistently: ISCSI, AttachPersistently;
    iscsi_attach_read_only: ISCSI, AttachReadOnly;
    iscsi_detach_read_only: ISCSI, DetachReadOnly;
    lvm_attach_persistently: LVM, AttachPersistently;
    lvm_attach_read_only: LVM, AttachReadOnly;
    lvm_detach_read_only: LVM, DetachReadOnly;
    lvm_unmanage_under_its_name: LVM, UnmanageUnderItsName;
    rbd_attach_persistently: RBD, AttachPersistently;
    rbd_attach_read_only: RBD, AttachReadOnly;
    rbd_attach_exclusively: RBD, AttachExclusively;
    rbd_detach_read_only: RBD, DetachReadOnly;
    rbd_unmanage_under_its_name: RBD, UnmanageUnderItsName;
    shared_file_attach: Subject::Shared(Backend::File), Attach;
    shared_file_detach: Subject::Shared(Backend::File), Detach;
    shared_iscsi_attach: Subject::Shared(Backend::Iscsi), Attach;
    shared_iscsi_detach: Subject::Shared(Backend::Iscsi), Detach;
    shared_lvm_attach: Subject::Shared(Backend::Lvm), Attach;
    shared_lvm_detach: Subject::Shared(Backend::Lvm), Detach;
    shared_rbd_attach: Subject::Shared(Backend::Rbd), Attach;
    shared_rbd_detach: Subject::Shared(Backend::Rbd), Detach;
}

/// A crash after every effect of an extend, and another after every effect of the recovery: the device has the old size or
/// the new one, and the retry gives the new.
async fn sweep_extend(subject: Subject) {
    let mut runs = 0;
    for at in 1.. {
        for again in 0.. {
            match extend_schedule(subject, at, again).await {
                Ran::Whole => runs += 1,
                Ran::NoSuchRecoveryEffect => break,
                Ran::NoSuchEffect => {
                    // LVM itself has told the kernel, and only the journal is written.
                    assert!(at > if subject == LVM { 2 } else { 3 }, "{at} effects are too few to be true");
                    return swept("extend", subject, at - 1, runs);
                }
            }
        }
    }
}

async fn extend_schedule(subject: Subject, at: usize, again: usize) -> Ran {
    let place = format!("extend of {subject:?}, crash after effect {at}, then after effect {again} of the recovery");
    let mut stage = SimStage::new().await;
    let locator = subject.make(&mut stage).await;
    let bare = stage.snapshot().await;
    assert!(Verb::Attach.call(stage.client(), &locator).await);
    subject.resize(&stage, 2 * SIZE);
    stage.machine.crash_after(at);
    let mut client = stage.client();
    let request = v1::ExtendRequest { id: "a".into(), ..v1::ExtendRequest::default() };
    let extending = request.clone();
    let call = tokio::spawn(async move { client.attachments.extend(extending).await });
    tokio::select! {
        () = stage.machine.crashed() => {}
        done = call => {
            done.unwrap().unwrap();
            return Ran::NoSuchEffect;
        }
    }
    if !start_twice(&mut stage, again).await {
        return Ran::NoSuchRecoveryEffect;
    }
    let size = stage.client().get("a").await.unwrap().size_bytes;
    assert!(size == SIZE || size == 2 * SIZE, "{place}: {size}");
    let grown = stage.client().attachments.extend(request).await.unwrap().into_inner();
    assert_eq!(grown.attachment.unwrap().size_bytes, 2 * SIZE, "{place}");
    assert!(Verb::Detach.call(stage.client(), &locator).await);
    subject.resize(&stage, SIZE);
    let left = difference(&bare, &stage.snapshot().await);
    assert!(left.is_empty(), "{place}: something was left behind\n{left}");
    Ran::Whole
}

/// Starts the agent anew, after it has died once more after an effect of its recovery (0: it has not); `false` if the recovery
/// has no such effect.
async fn start_twice(stage: &mut SimStage, again: usize) -> bool {
    stage.kill();
    if again > 0 {
        stage.machine.crash_after(again);
        if stage.start_or_crash().await {
            return false;
        }
        stage.kill();
    }
    stage.start().await;
    true
}

/// For the page that tells of it.
pub(crate) fn swept(operation: &str, subject: Subject, points: usize, runs: usize) {
    let driver = match subject {
        Subject::Volume(backend) => backend.to_string(),
        Subject::Shared(backend) => format!("{backend}, shared"),
        Subject::Multipath => "iscsi, two ways".into(),
        Subject::Remembered => "iscsi, one way of a remembered map".into(),
        Subject::ThickSnapshot => "lvm, thick snapshot".into(),
        Subject::ThinSnapshot => "lvm, thin snapshot".into(),
        Subject::Origin => "lvm, origin of a snapshot".into(),
    };
    note(&Row::Simulated(Sweep { operation: operation.into(), driver, points, runs, leftovers: 0 }));
}

#[tokio::test]
async fn extend() {
    for subject in [FILE, ISCSI, LVM, RBD, Subject::Multipath] {
        sweep_extend(subject).await;
    }
}

/// A reboot, and then a crash after each effect of what brings a persistent attachment back.
#[tokio::test]
async fn what_is_brought_back_after_a_reboot() {
    for subject in [FILE, ISCSI, LVM, RBD, Subject::Multipath] {
        for at in 1.. {
            let place = format!("{subject:?} is brought back, crash after effect {at}");
            let mut stage = SimStage::new().await;
            let locator = subject.make(&mut stage).await;
            let bare = stage.snapshot().await;
            assert!(Verb::AttachPersistently.call(stage.client(), &locator).await);
            stage.kill();
            stage.machine.reboot();
            stage.machine.crash_after(at);
            let crashed = !stage.start_or_crash().await
                || tokio::select! {
                    () = stage.machine.crashed() => true,
                    () = settled(&stage) => false,
                };
            if !crashed {
                assert!(at > 3, "{place}: {at} effects are too few to be true");
                swept("bring back after a reboot", subject, at - 1, at - 1);
                break;
            }
            stage.kill();
            stage.start().await;
            settled(&stage).await;
            assert!(Verb::Detach.call(stage.client(), &locator).await, "{place}");
            nothing_is_left_after_a_boot(&stage, &bare, &place).await;
        }
    }
}

/// Looks until every attachment is there and nothing goes on.
pub(crate) async fn settled(stage: &SimStage) {
    until("what is attached", async || {
        let now = stage.client().list().await.unwrap();
        now.iter().all(|each| each.state() == v1::AttachmentState::Ready) && stage.client().running().await.is_empty()
    })
    .await;
}

/// An attachment whose agent lost its journal is an orphan; a crash after each effect of the repair that takes it away.
#[tokio::test]
async fn the_repair_of_an_orphan() {
    for subject in [FILE, ISCSI, RBD, Subject::Multipath] {
        for at in 1.. {
            let place = format!("repair of {subject:?}, crash after effect {at}");
            let mut stage = SimStage::new().await;
            let locator = subject.make(&mut stage).await;
            let bare = stage.snapshot().await;
            assert!(Verb::Attach.call(stage.client(), &locator).await);
            stage.kill();
            stage.lose_journal();
            stage.start().await;
            stage.machine.crash_after(at);
            let mut client = stage.client();
            let call = tokio::spawn(async move { client.host.diagnose(repair()).await });
            let crashed = tokio::select! {
                () = stage.machine.crashed() => true,
                done = call => {
                    done.unwrap().unwrap();
                    false
                }
            };
            if !crashed {
                assert!(at > 1, "{place}: {at} effects are too few to be true");
                swept("doctor --repair", subject, at - 1, at - 1);
                break;
            }
            stage.kill();
            stage.start().await;
            stage.client().host.diagnose(repair()).await.unwrap();
            let left = difference(&bare, &stage.snapshot().await);
            assert!(left.is_empty(), "{place}: something was left behind\n{left}");
            assert!(Verb::Attach.call(stage.client(), &locator).await, "{place}");
        }
    }
}

fn repair() -> v1::DiagnoseRequest {
    v1::DiagnoseRequest { repair: true, ..Default::default() }
}
