//! A long time of random work on every driver, with kills in between: what the agent takes of the host does not grow. Bounded by
//! a count and a time, and the same again with the same seed (`make soak`).

use crate::{
    cli::{Reconfigured, figure, main_pid, names, sessions, until},
    machine::{GuestStage, Multipathd, sh},
};
use driver::Backend;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::v1;
use std::{
    fmt::{self, Display},
    time::{Duration, Instant},
};
use tests::{
    client::{Answer, Client, attach, manage},
    reliability::{Row, note},
    stage::Stage,
};

const SIZE: u64 = 8 << 20;
/// Cycles between two looks.
const ROUND: u64 = 100;
/// Operations that have ended and are kept.
const KEPT: usize = 100;
/// One call in so many is killed.
const KILLS: u64 = 12;

/// Numbers that look random, the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Bare,
    Attached,
    Managed,
}

/// A volume, with what it is now.
struct Volume {
    /// Its attachment's, and the last part of its managed id.
    number: usize,
    locator: String,
    can_be_managed: bool,
    state: State,
}

impl Volume {
    fn id(&self) -> String {
        format!("9394b827-4ad0-488e-8df8-{:012x}", self.number)
    }

    /// A call that leads to another state.
    async fn go(&self, mut client: Client, to: State) -> Answer<()> {
        let attachment = format!("soak-{}", self.number);
        match (self.state, to) {
            (State::Bare, State::Attached) => {
                let request = v1::AttachRequest { all_paths: true, ..attach(&attachment, &self.locator) };
                client.attach(request).await.map(drop)
            }
            (State::Bare, _) => {
                client.manage(v1::ManageRequest { id: self.id(), ..manage(&self.locator) }).await.map(drop)
            }
            (State::Attached, _) => {
                let gone = client.detach(&attachment).await?;
                assert!(gone.residuals.is_empty(), "{gone:?}");
                Ok(())
            }
            (State::Managed, _) => client.unmanage(&self.id(), false).await.map(drop),
        }
    }

    fn next(&self, dice: &mut Dice) -> State {
        match self.state {
            State::Bare if self.can_be_managed && dice.below(3) == 0 => State::Managed,
            State::Bare => State::Attached,
            State::Attached | State::Managed => State::Bare,
        }
    }
}

/// What the agent takes of the host while nothing is attached.
#[derive(Debug, Clone, Copy)]
struct Taken {
    resident_kib: u64,
    descriptors: usize,
    operations: usize,
    sessions: usize,
    node_records: usize,
}

impl Taken {
    async fn now(mut client: Client) -> Self {
        let request = v1::ListOperationsRequest { running_only: false, limit: 10_000 };
        let operations = client.operations.list(request).await.unwrap().into_inner().operations.len();
        drop(client);
        let pid = main_pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            resident_kib: line.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: names(&format!("/proc/{pid}/fd")).len(),
            operations,
            sessions: sessions().len(),
            node_records: names("/etc/iscsi/nodes").len(),
        }
    }
}

impl Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident_kib, descriptors, operations, sessions, node_records } = self;
        write!(
            f,
            "RSS {resident_kib} KiB, {descriptors} descriptors, {operations} operations, {sessions} sessions, {node_records} \
             node records"
        )
    }
}

/// A bound from outside.
fn bound(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Two volumes of each sort.
async fn volumes(stage: &mut GuestStage) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for name in ["v", "w"] {
        for backend in [Backend::File, Backend::Lvm, Backend::Rbd, Backend::Iscsi] {
            let locator = stage.volume(backend, name, SIZE).await;
            let can_be_managed = backend != Backend::Iscsi;
            volumes.push(Volume { number: volumes.len(), locator, can_be_managed, state: State::Bare });
        }
    }
    // By two ways.
    let two = volumes.pop().unwrap();
    let locator = two.locator.replace("iscsi://127.0.0.1:3260/", "iscsi://127.0.0.1,127.0.0.2/");
    sh(&format!("lio_portal {} 127.0.0.2:3260", stage.iqn()));
    volumes.push(Volume { locator, ..two });
    volumes
}

/// Calls, and where the agent is killed in the middle of it, calls again until there is an answer.
async fn change(stage: &GuestStage, volume: &mut Volume, to: State, kill_after: Option<Duration>) {
    let client = stage.client();
    if let Some(after) = kill_after {
        let pid = Pid::from_raw(main_pid().parse().unwrap());
        let killer = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            kill(pid, Signal::SIGKILL).unwrap();
        });
        let _cut_off = volume.go(client.clone(), to).await;
        killer.await.unwrap();
        until("the agent to be back", Duration::from_secs(60), || {
            (sh("systemctl show --property ActiveState --value mortard") == "active").then_some(())
        });
    }
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match volume.go(stage.client(), to).await {
            Ok(()) => break,
            // What the recovery has not ended yet, or an agent that is not back, or a watch that an OSD under load has not been
            // told the end of: it forgets it after 30 s.
            Err(refused)
                if Instant::now() < end
                    && (matches!(refused.reason.as_str(), "BUSY" | "") || refused.message.contains("watched from")) =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(refused) => panic!("{}: {:?} to {to:?}: {refused:?}", volume.locator, volume.state),
        }
    }
    volume.state = to;
}

#[tokio::test]
#[ignore = "it takes as long as one likes: make soak"]
async fn soak() {
    let (count, seconds, seed) = (bound("SOAK_COUNT", 1000), bound("SOAK_SECONDS", 600), bound("SOAK_SEED", 1));
    let _kept = Reconfigured::new("keep_operations = 10000", &format!("keep_operations = {KEPT}"));
    let _multipathd = Multipathd::up();
    let (mut stage, mut dice) = (GuestStage::bare(), Dice(seed));
    let mut volumes = volumes(&mut stage).await;
    let (begun, mut kills, mut cycles) = (Instant::now(), 0, 0);
    // What the first of all leaves for good (a line in multipath's wwids) is there afterwards.
    let (mut bare, mut first) = (None, None);
    while cycles < count && begun.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..ROUND {
            let which = usize::try_from(dice.below(volumes.len() as u64)).unwrap();
            let to = volumes[which].next(&mut dice);
            let strikes = dice.below(KILLS) == 0;
            let after = strikes.then(|| Duration::from_millis(dice.below(400)));
            kills += u64::from(strikes);
            change(&stage, &mut volumes[which], to, after).await;
            cycles += 1;
        }
        for volume in volumes.iter_mut().filter(|volume| volume.state != State::Bare) {
            change(&stage, volume, State::Bare, None).await;
        }
        let mut client = stage.client();
        let end = Instant::now() + Duration::from_secs(60);
        while !client.running().await.is_empty() {
            assert!(Instant::now() < end, "an operation does not end: {:?}", client.running().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let snapshot = stage.snapshot().await;
        let taken = Taken::now(client).await;
        figure(&format!("after {cycles} cycles and {kills} kills"), taken);
        let before = bare.get_or_insert_with(|| snapshot.clone());
        assert_eq!(*before, snapshot, "after {cycles} cycles something is left");
        let first: &Taken = first.get_or_insert(taken);
        assert!(taken.resident_kib < first.resident_kib + 8192, "it grows: {first}; {taken}");
        assert!(taken.descriptors < first.descriptors + 8, "it grows: {first}; {taken}");
        assert!(taken.operations <= KEPT + volumes.len(), "{taken}");
        assert_eq!((taken.sessions, taken.node_records), (first.sessions, first.node_records));
    }
    let what =
        format!("soak: {cycles} cycles on every driver with {kills} kills, {:.0?}, seed {seed}", begun.elapsed());
    let found = format!("{}; at cycle {ROUND}: {}", Taken::now(stage.client()).await, first.unwrap());
    note(&Row::Figure { what: what.clone(), wanted: "as after cycle 100".into(), found: found.clone() });
    figure(&what, found);
}
