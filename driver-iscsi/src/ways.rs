//! Several ways to one unit, each walked by a task of its own.
//!
//! ```text
//!               approach ──▶ lead, or ──▶ bring_unit ──▶ is it the same volume? ──▶ join the map ──▶ (done)
//!   each way:   connect      wait         login, scan,   WWN and size agree         add path,        the task ends
//!                  │                      INQUIRY            │                      add map
//!                  ▼                           ▼             ▼                         │
//!              (failed) ◀──────────────────────┴─────────────┴─────────────────────────┘
//!                  │ take back what this try brought; pause 1 s … 60 s
//!                  └──▶ once more, until the attachment is detached
//! ```
//!
//! The first that connects is given a head start ([`lead`](crate::lead)), unless all ways were asked for.
//!
//! The attach hears of each try. It ends well with the first way that is done (or the last, if all were asked for), and
//! ends badly when every way has failed once, when two of them disagree, or when one of all that were asked for has failed.
//! Then the walkers are stopped and everything is taken back. After an attach that ended well, those who are not done go on,
//! and what stops each can be read; but nobody goes on with a way that is denied, or leads to another volume.
//!
//! A walker stops between its steps, and is waited for: so after [`Walks::stop`] no login lands any more. Whatever
//! a walker brings is on sessions of ours, so a detach finds it by the locator, even if the agent died in between.

use crate::{
    Initiator,
    attach::{Came, Proved},
    lead::Lead,
    legs::Leg,
    machine,
    multipath::{self, Map, Said},
    place::Place,
    record::Credentials,
};
use driver::{Attached, Attempt, Device, Error, Footprint, Identity, Portal, Result, Spec, Wwn};
use host::Uevents;
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

/// How long a way that failed is left alone: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long a later try of a way may take.
const TRY: Duration = Duration::from_secs(20);

/// How long multipathd is left alone after it did not want a disk (udev has not looked at it yet): at first, and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// How long what an attach brought may take to be taken back.
const UNDO: Duration = Duration::from_secs(30);

type Stop = watch::Receiver<bool>;

/// The walkers of all attachments, by locator.
#[derive(Debug, Default)]
pub(crate) struct Walks(Mutex<HashMap<String, Walk>>);

#[derive(Debug)]
struct Walk {
    stop: watch::Sender<bool>,
    lead: Arc<Lead>,
    walkers: Vec<JoinHandle<(Place, Came)>>,
    problems: Problems,
}

/// Why the last try of each way failed.
type Problems = Arc<Mutex<HashMap<Portal, String>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Walks {
    fn begin(&self, key: String, walk: Walk) {
        let mut walks = locked(&self.0);
        let goes_on = |walk: &Walk| walk.walkers.iter().any(|walker| !walker.is_finished());
        walks.retain(|_, walk| goes_on(walk) || !locked(&walk.problems).is_empty());
        walks.insert(key, walk);
    }

    /// Says of each path that is absent why it is.
    pub(crate) fn explain(&self, spec: &Spec, mut device: Device) -> Device {
        let problems = locked(&self.0).get(&spec.locator.to_string()).map(|walk| Arc::clone(&walk.problems));
        if let Some(problems) = problems {
            let problems = locked(&problems);
            for path in device.paths.iter_mut().filter(|path| path.state == "absent") {
                path.problem = path.portal.and_then(|portal| problems.get(&portal).cloned());
            }
        }
        device
    }

    /// Lets those go who wait for the way that leads. `false`: nobody walks for this attachment.
    pub(crate) fn all_go(&self, spec: &Spec) -> bool {
        let walks = locked(&self.0);
        let walk = walks.get(&spec.locator.to_string());
        walk.inspect(|walk| walk.lead.end()).is_some()
    }

    /// Ends the walkers of an attachment, and waits until their steps are done. How far each came.
    pub(crate) async fn stop(&self, spec: &Spec) -> Vec<(Place, Came)> {
        let walk = locked(&self.0).remove(&spec.locator.to_string());
        let mut came = Vec::new();
        if let Some(walk) = walk {
            walk.stop.send_replace(true);
            for walker in walk.walkers {
                came.extend(walker.await.ok());
            }
        }
        came
    }
}

/// What the walkers of an attachment share.
struct Walkers {
    initiator: Arc<Initiator>,
    spec: Spec,
    footprint: Footprint,
    credentials: Option<Credentials>,
    /// What the first unit that proved itself is; the others have to be the same.
    agreed: Mutex<Option<Agreed>>,
    lead: Arc<Lead>,
    problems: Problems,
}

#[derive(Debug, Clone)]
struct Agreed {
    place: Place,
    wwn: Wwn,
    size_bytes: u64,
}

/// How a try of a way ended.
type Tried = (Place, Result<Map>);

impl Initiator {
    /// Attaches by several ways at once: all of it, or nothing, with the reason.
    pub(crate) async fn bring_ways(
        self: &Arc<Self>,
        walks: &Walks,
        places: &[Place],
        spec: &Spec,
        footprint: &Footprint,
        credentials: Option<Credentials>,
        attempt: &Attempt,
    ) -> Result<Device> {
        multipath::runs(self.host()).await?;
        walks.stop(spec).await;
        let walkers = Arc::new(Walkers {
            initiator: Arc::clone(self),
            spec: spec.clone(),
            footprint: footprint.clone(),
            credentials,
            agreed: Mutex::default(),
            lead: Arc::new(if attempt.all_paths { Lead::none() } else { Lead::free() }),
            problems: Problems::default(),
        });
        let (tell, mut told) = mpsc::unbounded_channel();
        walkers.set_out(walks, places, attempt.deadline, &tell);
        drop((walkers, tell));
        let outcome = match first_or_all(places, attempt.all_paths, &mut told).await {
            Ok(map) => self.map_now(places, &map, footprint).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            let came = walks.stop(spec).await;
            self.undo_ways(came, footprint).await;
        }
        outcome
    }

    /// A map whose ways of this attachment have proved themselves; so the others' have to.
    pub(crate) async fn map_now(&self, places: &[Place], map: &Map, footprint: &Footprint) -> Result<Device> {
        let legs = self.legs(places, footprint)?;
        self.prove_strangers(map, &legs).await?;
        self.map_device(places, map, &legs)?
            .ok_or_else(|| Error::NotFound { what: format!("{}, which was there a moment ago,", map.node().display()) })
    }

    /// Goes on with the ways of an attachment that are not in its map. Without a password: that was in the call only.
    pub(crate) async fn tend_ways(self: &Arc<Self>, walks: &Walks, places: &[Place], at: &Attached) -> Result<()> {
        let Some(Identity::Scsi { wwn }) = &at.identity else { return Ok(()) };
        let map = Map::of(self.host(), &wwn.to_string()).map_err(machine("look for the multipath map"))?;
        // Without a map the attachment is gone, and only another attach may bring it back.
        let Some(map) = map else { return Ok(()) };
        let legs = self.legs(places, &at.footprint)?;
        let slaves = map.slaves(self.host()).map_err(machine("list the map's paths"))?;
        let is_in = |leg: &Leg| leg.disk.as_ref().is_some_and(|disk| slaves.contains(&disk.name));
        let missing: Vec<Place> =
            places.iter().filter(|place| !legs.iter().any(|leg| leg.place == **place && is_in(leg))).cloned().collect();
        for place in &missing {
            // A record of an agent that died while it logged in, with the password in it.
            self.database.clear(self.host(), place).await.map_err(machine("remove a node record"))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        walks.stop(&at.spec).await;
        let walkers = Arc::new(Walkers {
            initiator: Arc::clone(self),
            spec: at.spec.clone(),
            footprint: at.footprint.clone(),
            credentials: None,
            agreed: Mutex::new(Some(Agreed {
                place: legs.first().map_or_else(|| missing[0].clone(), |leg| leg.place.clone()),
                wwn: wwn.clone(),
                size_bytes: 0,
            })),
            lead: Arc::new(Lead::none()),
            problems: Problems::default(),
        });
        let (tell, _nobody) = mpsc::unbounded_channel();
        walkers.set_out(walks, &missing, Instant::now() + TRY, &tell);
        Ok(())
    }

    /// Takes back what walkers brought. What stays is said in the log; the agent detaches once more.
    pub(crate) async fn undo_ways(self: &Arc<Self>, came: Vec<(Place, Came)>, footprint: &Footprint) {
        let deadline = Instant::now() + UNDO;
        let ours: Vec<Place> =
            came.iter().filter(|(_, came)| *came == Came::ToTheUnit).map(|(place, _)| place.clone()).collect();
        let unmapped = self.unmap(&ours, footprint, deadline).await.unwrap_or_else(|error| {
            tracing::warn!(error = error.chain(), "cannot take back a multipath map");
            Vec::new()
        });
        let undone: Vec<_> = came
            .into_iter()
            .map(|(place, came)| {
                let initiator = Arc::clone(self);
                tokio::spawn(async move { initiator.undo(&place, came).await })
            })
            .collect();
        for undone in undone {
            let _ended = undone.await;
        }
        if !unmapped.is_empty() {
            self.forgotten(&unmapped, deadline).await;
        }
    }

    /// Takes units out of their map before they go: the map goes if nothing else is in it. The disks that were in one.
    async fn unmap(&self, places: &[Place], footprint: &Footprint, deadline: Instant) -> Result<Vec<String>> {
        let legs: Vec<Leg> = self.legs(places, footprint)?.into_iter().filter(|leg| leg.session.ours).collect();
        let maps = self.maps(&legs)?;
        for map in &maps {
            if !self.has_strangers(map, &legs)? {
                self.see_that_it_is_free(std::slice::from_ref(map), std::slice::from_ref(map), &legs).await?;
            }
            if let Some(residual) = self.remove_map(map, &legs, None, deadline).await? {
                tracing::warn!(name = residual.name, reason = residual.reason, "left by an attach");
            }
        }
        let disks = legs.into_iter().filter_map(|leg| leg.disk).map(|disk| disk.name);
        Ok(if maps.is_empty() { Vec::new() } else { disks.collect() })
    }

    /// Sees that the map of the volume has this unit as a path. `None` if the operator keeps it out of maps.
    pub(crate) async fn join(&self, place: &Place, unit: &Proved, deadline: Instant) -> Result<Option<Map>> {
        let (disk, wwid) = (&unit.disk.name, unit.wwn.to_string());
        let mut events = self.host().uevents();
        let (mut pause, mut ask_next) = (ASK_AGAIN.0, Instant::now());
        let mut said = Said::Ok;
        loop {
            if let Some(map) = Map::over(self.host(), disk).map_err(machine("look for the multipath map"))? {
                if map.wwid != wwid {
                    return Err(Error::Mismatch {
                        what: format!("the map {} over {place}", map.node().display()),
                        expected: format!("wwn:{wwid}"),
                        found: format!("wwn:{}", map.wwid),
                    });
                }
                if self.host().stat(&map.node()).map_err(machine("look for the map's node"))?.is_some() {
                    return Ok(Some(map));
                }
            }
            let now = Instant::now();
            if now >= deadline {
                let node = unit.disk.node();
                let waiting_for = format!(
                    "multipathd to take {} ({place}) into the map of {wwid}; it said {said:?}: see \
                     `journalctl -u multipathd`",
                    node.display()
                );
                return Err(Error::TimedOut { waiting_for });
            }
            if now >= ask_next {
                said = self.ask_to_join(disk, &wwid).await?;
                if said == Said::Blacklisted {
                    return Ok(None);
                }
                ask_next = Instant::now() + pause;
                pause = (pause * 2).min(ASK_AGAIN.1);
                continue;
            }
            look_again(&mut events, ask_next.min(deadline)).await;
        }
    }

    async fn ask_to_join(&self, disk: &str, wwid: &str) -> Result<Said> {
        let said = multipath::add_path(self.host(), disk).await?;
        let map = Map::of(self.host(), wwid).map_err(machine("look for the multipath map"))?;
        // A map that is there has taken the path by now, or will not.
        if said != Said::Ok || map.is_some() {
            return Ok(said);
        }
        multipath::add_map(self.host(), wwid).await
    }
}

/// Ends with the next event of the kernel, or at the time.
async fn look_again(events: &mut Uevents, at: Instant) {
    let _woken_or_not = timeout_at(at, events.next()).await;
}

/// Hears the walkers until the attach is decided.
async fn first_or_all(places: &[Place], all: bool, told: &mut mpsc::UnboundedReceiver<Tried>) -> Result<Map> {
    let mut failed: Vec<(Place, Error)> = Vec::new();
    let mut done: Vec<Place> = Vec::new();
    while let Some((place, tried)) = told.recv().await {
        match tried {
            Ok(map) => {
                done.push(place);
                if !all || done.len() == places.len() {
                    return Ok(map);
                }
            }
            // Another volume on one of the ways: nobody knows which of them is the right one.
            Err(error @ Error::Mismatch { .. }) => return Err(error),
            Err(error) if all => return Err(error),
            Err(error) => {
                failed.retain(|(before, _)| *before != place);
                failed.push((place, error));
                if failed.len() == places.len() {
                    break;
                }
            }
        }
    }
    Err(all_failed(failed.into_iter().map(|(_, error)| error).collect()))
}

/// The error that tells the caller most, with the others in its words.
fn all_failed(mut errors: Vec<Error>) -> Error {
    let use_of = |error: &Error| match error {
        Error::Mismatch { .. } => 0,
        Error::Denied { .. } => 1,
        Error::InUse { .. } => 2,
        Error::NotFound { .. } => 3,
        Error::WrongState { .. } | Error::Unsupported { .. } | Error::Invalid { .. } => 4,
        Error::Unreachable { .. } => 6,
        Error::TimedOut { .. } => 7,
        _ => 5,
    };
    errors.sort_by_key(use_of);
    let mut errors = errors.into_iter();
    let Some(mut first) = errors.next() else { return Error::ShuttingDown };
    let others: Vec<String> = errors.map(|error| error.chain()).collect();
    if others.is_empty() {
        return first;
    }
    let others = others.join("; ");
    match &mut first {
        Error::NotFound { what } => *what = format!("(by the other ways: {others}) {what}"),
        Error::Denied { why, .. } | Error::Unreachable { why, .. } => *why += &format!("; by the other ways: {others}"),
        Error::WrongState { what } | Error::Unsupported { what } => *what += &format!("; by the other ways: {others}"),
        Error::TimedOut { waiting_for } => *waiting_for += &format!("; by the other ways: {others}"),
        Error::Tool { said, .. } => *said += &format!("; by the other ways: {others}"),
        Error::Host { doing, .. } => *doing = format!("{doing} (by the other ways: {others})"),
        _ => {}
    }
    first
}

impl Walkers {
    fn set_out(self: &Arc<Self>, walks: &Walks, places: &[Place], first: Instant, tell: &mpsc::UnboundedSender<Tried>) {
        let (stop, stopped) = watch::channel(false);
        let walker = |place: &Place| {
            let walk = Arc::clone(self).walk(place.clone(), first, tell.clone(), stopped.clone());
            tokio::spawn(host::carried(walk))
        };
        let walkers = places.iter().map(walker).collect();
        let (lead, problems) = (Arc::clone(&self.lead), Arc::clone(&self.problems));
        walks.begin(self.spec.locator.to_string(), Walk { stop, lead, walkers, problems });
    }

    /// One way, until it is done or the attachment is over.
    async fn walk(
        self: Arc<Self>,
        place: Place,
        first: Instant,
        tell: mpsc::UnboundedSender<Tried>,
        mut stop: Stop,
    ) -> (Place, Came) {
        let mut came = Came::Nowhere;
        let (mut deadline, mut pause) = (first, PAUSE.0);
        loop {
            let error = match self.try_way(&place, deadline, &mut came, &mut stop).await {
                Ok(map) => {
                    tracing::info!(%place, map = map.name, "a path joined");
                    locked(&self.problems).remove(&place.portal);
                    let _heard = tell.send((place.clone(), Ok(map)));
                    return (place, came);
                }
                Err(error) => error,
            };
            if *stop.borrow() {
                return (place, came);
            }
            tracing::warn!(%place, error = error.chain(), "a way to the volume failed");
            locked(&self.problems).insert(place.portal, error.chain());
            let is_final = matches!(&error, Error::Denied { .. } | Error::Invalid { .. } | Error::Mismatch { .. });
            let listens = tell.send((place.clone(), Err(error))).is_ok();
            if is_final && !listens {
                self.take_back(&place, &mut came).await;
                return (place, came);
            }
            if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                return (place, came);
            }
            // Only what nobody waits for: as long as somebody does, it is for him to take back.
            if tell.is_closed() {
                self.take_back(&place, &mut came).await;
            }
            pause = (pause * 2).min(PAUSE.1);
            deadline = Instant::now() + TRY;
        }
    }

    async fn take_back(&self, place: &Place, came: &mut Came) {
        if *came != Came::Nowhere {
            self.initiator.undo_ways(vec![(place.clone(), *came)], &self.footprint).await;
            *came = Came::Nowhere;
        }
    }

    async fn try_way(&self, place: &Place, deadline: Instant, came: &mut Came, stop: &mut Stop) -> Result<Map> {
        unless(stop, self.initiator.approach(place, &self.footprint, deadline)).await?;
        let leads = unless(stop, async { Ok(self.lead.take_or_follow(deadline).await) }).await?;
        if *stop.borrow() {
            return Err(Error::ShuttingDown);
        }
        let tried = self.go(place, deadline, came, stop).await;
        if leads && tried.is_err() {
            self.lead.end();
        }
        tried
    }

    async fn go(&self, place: &Place, deadline: Instant, came: &mut Came, stop: &mut Stop) -> Result<Map> {
        let initiator = &self.initiator;
        let unit = initiator.bring_unit(place, &self.footprint, self.credentials.as_ref(), deadline, came).await?;
        let identity = Identity::Scsi { wwn: unit.wwn.clone() };
        let device = initiator.device(place, &unit.unit, unit.disk.clone(), identity)?;
        self.spec.check(&device)?;
        self.agree(place, &unit)?;
        let map = unless(stop, initiator.join(place, &unit, deadline)).await?.ok_or_else(|| Error::WrongState {
            what: format!(
                "multipathd's blacklist keeps {} ({place}) out of maps, see `multipathd show blacklist`; take it off \
                 there, or give one portal",
                unit.disk.node().display()
            ),
        })?;
        let places = Place::all(&self.spec.locator)?;
        initiator.protect_map(&places, &self.spec, &self.footprint, &map).await?;
        Ok(map)
    }

    /// Holds a unit against the map, or against the first unit that came.
    fn agree(&self, place: &Place, unit: &Proved) -> Result<()> {
        let host = self.initiator.host();
        let map = Map::of(host, &unit.wwn.to_string()).map_err(machine("look for the multipath map"))?;
        let map = map.map(|map| map.block(host)).transpose().map_err(machine("read the map's size"))?.flatten();
        let mut agreed = locked(&self.agreed);
        let found = Agreed { place: place.clone(), wwn: unit.wwn.clone(), size_bytes: unit.disk.size_bytes };
        let mut expected = agreed.get_or_insert_with(|| found.clone()).clone();
        drop(agreed);
        // The map may have grown since.
        if let Some(map) = map {
            expected.size_bytes = map.size_bytes;
        }
        let by_way = |agreed: &Agreed, value: String| format!("{value} ({})", agreed.place);
        if found.wwn != expected.wwn {
            return Err(Error::Mismatch {
                what: "one of the ways leads to another volume, which".into(),
                expected: by_way(&expected, expected.wwn.to_string()),
                found: by_way(&found, found.wwn.to_string()),
            });
        }
        if found.size_bytes != expected.size_bytes {
            return Err(Error::Mismatch {
                what: "the size in bytes by one of the ways".into(),
                expected: by_way(&expected, expected.size_bytes.to_string()),
                found: by_way(&found, found.size_bytes.to_string()),
            });
        }
        Ok(())
    }
}

/// A step that may be left at any time.
async fn unless<T>(stop: &mut Stop, step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Err(Error::ShuttingDown),
        done = step => done,
    }
}
