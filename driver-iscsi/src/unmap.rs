//! The way back of a map: nobody uses it, its data is safe, it goes, and its paths are free.
//!
//! ```text
//!   somebody uses it (its partitions are looked through) ─────────────▶ refused, nothing touched
//!   a path is another volume by now ──▶ out of the map, nothing is flushed to it
//!                                       it does not leave it ─────────────▶ refused, nothing flushed
//!   no path answers ──▶ wait for one until the deadline ──────────────▶ refused, nothing lost
//!   flush ──▶ del map ──▶ gone from sysfs
//! ```
//!
//! While no path answers, a map keeps what is written to it (`queue_if_no_path`), and a flush hangs with it; so none is begun
//! then, and the queueing is ended only where nothing can have been written: where the map was never handed out.
//!
//! A map with a path that is not ours is somebody else's: it stays, and our paths leave it.

use crate::{
    Initiator,
    legs::{Leg, strangers},
    machine,
    multipath::{self, Map, Said},
    proof,
};
use driver::{Error, Identity, Residual, ResidualKind, Result};
use host::{BlockDevice, wait_for};
use std::{path::Path, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long the daemon is left alone after it did not remove a map, and a map without a path that answers.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long multipathd may take to see that paths are gone.
const FORGETS: Duration = Duration::from_secs(10);

/// How long a map that nobody uses may go on to refuse its removal; udev may be looking at it.
const REFUSED: Duration = Duration::from_secs(5);

impl Initiator {
    /// Takes a map that nobody uses away from over our legs. Without an identity it was never handed out, so nobody has written to it.
    pub(crate) async fn remove_map(
        &self,
        map: &Map,
        legs: &[Leg],
        identity: Option<&Identity>,
        deadline: Instant,
    ) -> Result<Option<Residual>> {
        if self.has_strangers(map, legs)? {
            return self.leave_map(map, legs, deadline).await;
        }
        match identity {
            Some(identity) => self.settle_map(map, legs, identity, deadline).await?,
            None => {
                multipath::stop_queueing(self.host(), map).await?;
            }
        }
        self.del_map(map, legs, deadline).await
    }

    /// Whether it has a path that is none of these.
    pub(crate) fn has_strangers(&self, map: &Map, legs: &[Leg]) -> Result<bool> {
        let slaves = map.slaves(self.host()).map_err(machine("list the map's paths"))?;
        Ok(!strangers(slaves, legs).is_empty())
    }

    /// Takes our paths out of somebody else's map.
    async fn leave_map(&self, map: &Map, legs: &[Leg], deadline: Instant) -> Result<Option<Residual>> {
        for disk in legs.iter().filter_map(|leg| leg.disk.as_ref()) {
            let over = Map::over(self.host(), &disk.name).map_err(machine("look for the multipath map"))?;
            if over.as_ref() != Some(map) {
                continue;
            }
            if let Some(said) = self.take_out(map, disk, deadline).await? {
                return Ok(Some(Residual {
                    kind: ResidualKind::Device,
                    name: disk.node().display().to_string(),
                    reason: format!("it is still a path of {}; multipathd said {said:?}", map.node().display()),
                }));
            }
        }
        Ok(None)
    }

    async fn settle_map(&self, map: &Map, legs: &[Leg], identity: &Identity, deadline: Instant) -> Result<()> {
        let node = map.node();
        let mut events = self.host().uevents();
        loop {
            let (mut right, mut wrong, mut silent) = (0, 0, Vec::new());
            for (leg, disk) in legs.iter().filter_map(|leg| Some((leg, leg.disk.as_ref()?))) {
                match self.ask_leg(leg, disk).await? {
                    Ok(found) if found == *identity => right += 1,
                    Ok(found) => {
                        tracing::warn!(device = %disk.node().display(), now = %found, "is another volume now: nothing is flushed to it");
                        self.leave_out(map, disk, &found, deadline).await?;
                        wrong += 1;
                    }
                    Err(why) => silent.push(format!("{} {why}", disk.node().display())),
                }
            }
            if right > 0 {
                break;
            }
            if wrong > 0 && silent.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let waiting_for = format!(
                    "a path of {} that answers, to flush it: {}; nothing was detached, and nothing is lost",
                    node.display(),
                    silent.join(", ")
                );
                return Err(Error::TimedOut { waiting_for });
            }
            let _woken_or_not = timeout_at(deadline.min(Instant::now() + LOOK_AGAIN), events.next()).await;
        }
        self.flush(&node, deadline).await
    }

    /// Takes a path out of a map, and sees that it has left it; if it has not, what the daemon said.
    async fn take_out(&self, map: &Map, disk: &BlockDevice, deadline: Instant) -> Result<Option<Said>> {
        let said = multipath::del_path(self.host(), &disk.name).await?;
        let left = || Ok((!map.slaves(self.host())?.contains(&disk.name)).then_some(()));
        let left = wait_for(self.host(), deadline, left).await.map_err(machine("wait for the path to leave"))?;
        Ok(left.is_none().then_some(said))
    }

    /// Sees that a path which is another volume by now gets nothing of what is flushed.
    async fn leave_out(&self, map: &Map, disk: &BlockDevice, found: &Identity, deadline: Instant) -> Result<()> {
        match self.take_out(map, disk, deadline).await? {
            None => Ok(()),
            Some(said) => Err(Error::TimedOut {
                waiting_for: format!(
                    "{}, which is {found} by now, to leave {}; multipathd said {said:?} to `del path {}`. Nothing was \
                     flushed, and nothing detached",
                    disk.node().display(),
                    map.node().display(),
                    disk.name
                ),
            }),
        }
    }

    /// What a leg is now, or why it does not tell.
    async fn ask_leg(&self, leg: &Leg, disk: &BlockDevice) -> Result<std::result::Result<Identity, String>> {
        let session = leg.session.again(self.host()).map_err(machine("read the session"))?;
        let Some(session) = session else { return Ok(Err("has lost its session".into())) };
        let leg = Leg { session, ..leg.clone() };
        if !leg.is_up(self)? {
            return Ok(Err(format!("is {}", self.trouble(&leg)?)));
        }
        match proof::ask(self.host(), &disk.node()).await {
            Ok(answer) => Ok(Ok(Identity::Scsi { wwn: answer.wwn })),
            Err(error) => Ok(Err(error.chain())),
        }
    }

    /// Waits until the daemon has seen that disks are gone. It hears of it through udev, some time later. The kernel gives
    /// a disk's name to the next one at once; if that were a path of the same volume, the late news would take it out of its
    /// new map, and a map whose only path goes, goes.
    pub(crate) async fn forgotten(&self, disks: &[String], deadline: Instant) {
        let deadline = deadline.min(Instant::now() + FORGETS);
        let mut events = self.host().uevents();
        loop {
            let known = match multipath::paths(self.host()).await {
                Ok(known) => known,
                Err(error) => {
                    return tracing::debug!(error = error.chain(), "nobody knows whether it forgot the paths");
                }
            };
            // One that is there is another disk by now.
            let is_there =
                |disk: &str| self.host().stat(&Path::new("/dev").join(disk)).is_ok_and(|node| node.is_some());
            let stale: Vec<&String> = disks.iter().filter(|disk| known.contains(disk) && !is_there(disk)).collect();
            if stale.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                return tracing::warn!(?stale, "multipathd still knows paths that are gone");
            }
            let _woken_or_not = timeout_at(deadline.min(Instant::now() + LOOK_AGAIN), events.next()).await;
        }
    }

    async fn del_map(&self, map: &Map, legs: &[Leg], deadline: Instant) -> Result<Option<Residual>> {
        let patience = deadline.min(Instant::now() + REFUSED);
        loop {
            let said = multipath::del_map(self.host(), map).await?;
            let gone = || Ok((!map.is_present(self.host())?).then_some(()));
            let until = if said == Said::Ok { deadline } else { Instant::now() + LOOK_AGAIN };
            if wait_for(self.host(), until, gone).await.map_err(machine("wait for the map to go"))?.is_some() {
                return Ok(None);
            }
            let users = self.users_of(std::slice::from_ref(map), std::slice::from_ref(map), legs).await?;
            if !users.is_empty() {
                return Err(Error::InUse { what: map.node().display().to_string(), by: users });
            }
            if said == Said::Ok || Instant::now() >= patience {
                let name = map.node().display().to_string();
                let reason = format!("it is still there; multipathd said {said:?} to `del map`");
                return Ok(Some(Residual { kind: ResidualKind::MultipathMap, name, reason }));
            }
        }
    }
}
