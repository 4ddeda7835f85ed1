//! Detach: everything that is ours goes, and nothing else.
//!
//! What is ours is written on the session (see [`crate::database`]), so this works from any state that a crash or a reboot
//! leaves: nothing at all, a record alone, a session without a device, a device without anybody who knows it.

use crate::{
    Initiator,
    attach::was_here,
    iscsiadm,
    iscsiadm::Verb,
    legs::Leg,
    machine,
    place::Place,
    proof,
    session::{Session, Unit},
    view,
};
use driver::{Attached, Detached, Error, Identity, Residual, ResidualKind, Result};
use host::{BlockDevice, Claim, wait_for};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long a logout is waited for at least, whatever the caller's deadline: it goes on though nobody waits for it, and must
/// not end a session that the next one has found. To a target that is cut off it takes ten seconds.
const LOGOUT: Duration = Duration::from_secs(20);

/// How long we wait before a logout is tried again, and how often it is tried.
const DAEMON_STARTS: (Duration, u32) = (Duration::from_secs(1), 5);

impl Initiator {
    pub(crate) async fn take_away(self: &Arc<Self>, at: &Attached, deadline: Instant) -> Result<Detached> {
        let places = Place::all(&at.spec.locator)?;
        let mut done = Detached::default();
        let mut ours = Vec::new();
        for place in &places {
            for leg in self.standing(place)? {
                if leg.session.ours {
                    ours.push(leg);
                } else if was_here(&at.footprint, place) {
                    let name = leg.disk.map_or_else(|| place.to_string(), |disk| disk.node().display().to_string());
                    done.kept.push(format!("{name} was here before"));
                }
            }
        }
        let maps = self.maps(&ours)?;
        let mut goes = Vec::new();
        for map in &maps {
            match self.has_strangers(map, &ours)? {
                true => done.kept.push(format!("{} has paths that were not brought by mortar", map.node().display())),
                false => goes.push(map.clone()),
            }
        }
        let several = ours.len() > 1 || !maps.is_empty();
        // Somebody else's map may be in use, as it only loses our paths; but nobody may use one of those past it.
        if several {
            self.see_that_it_is_free(&goes, &maps, &ours).await?;
        }
        for map in &maps {
            done.residuals.extend(self.remove_map(map, &ours, at.identity.as_ref(), deadline).await?);
        }
        // Legs of a map that stays are held by it, and the map says so.
        if done.residuals.is_empty() {
            // What was written through a map of ours was flushed through it.
            let identity = at.identity.as_ref().filter(|_| goes.len() < maps.len() || maps.is_empty());
            for leg in &ours {
                done.residuals.extend(self.remove(leg, several, identity, deadline).await?);
            }
        }
        let paths: Vec<String> = ours.into_iter().filter_map(|leg| leg.disk).map(|disk| disk.name).collect();
        let forgotten = async {
            if !maps.is_empty() {
                self.forgotten(&paths, deadline).await;
            }
        };
        let (left, ()) = tokio::join!(self.leave_all(places, deadline), forgotten);
        done.residuals.extend(left?);
        Ok(done)
    }

    /// Every unit at a place, whoever's.
    fn standing(&self, place: &Place) -> Result<Vec<Leg>> {
        let mut found = Vec::new();
        for session in self.sessions(place)? {
            let unit = session.unit(place.lun);
            if unit.is_present(self.host()).map_err(machine("look for the unit"))? {
                let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
                found.push(Leg { place: place.clone(), session, unit, disk });
            }
        }
        Ok(found)
    }

    /// [`Initiator::leave`] at every place, side by side.
    async fn leave_all(self: &Arc<Self>, places: Vec<Place>, deadline: Instant) -> Result<Vec<Residual>> {
        let mut residuals = Vec::new();
        let leave = |place: Place| {
            let initiator = Arc::clone(self);
            tokio::spawn(async move { initiator.leave(&place, deadline).await })
        };
        let leaving: Vec<_> = places.into_iter().map(leave).collect();
        let mut failed = None;
        for left in leaving {
            match left.await {
                Ok(Ok(left)) => residuals.extend(left),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(error) => failed = failed.or(Some(Error::host("leave a target")(error))),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(residuals),
        }
    }

    /// Takes a unit away once nobody uses it (unless that is known already) and its data is safe.
    async fn remove(
        &self,
        leg: &Leg,
        is_free: bool,
        identity: Option<&Identity>,
        deadline: Instant,
    ) -> Result<Option<Residual>> {
        let Leg { place, unit, disk, .. } = leg;
        // Without a node nobody can have used it.
        let node = disk.as_ref().map(BlockDevice::node);
        let node = node.filter(|node| matches!(self.host().stat(node), Ok(Some(_))));
        let mut claim = None;
        if let Some(node) = &node {
            let what = node.display().to_string();
            claim = if is_free { self.keep_out(node, &what).await? } else { self.claim(node, &what).await? };
        }
        // The kernel gives the number of a host that is gone to the next one, and so the unit's address: before it was held
        // open, it may have become somebody else's. A session's number comes only once.
        let now = leg.session.again(self.host()).map_err(machine("look for the session again"))?;
        if now.is_none_or(|now| now.unit(place.lun) != *unit) {
            return Ok(None);
        }
        if let Some(node) = &node {
            // Without an identity it was never handed out, so nobody has written to it.
            if let Some(identity) = identity {
                self.settle(unit, node, identity, deadline).await?;
            }
        }
        let gone = self.delete(unit, disk.as_ref(), deadline).await;
        drop(claim);
        Ok(gone.err().map(|reason| Residual {
            kind: ResidualKind::Device,
            name: node.map_or_else(|| place.to_string(), |node| node.display().to_string()),
            reason,
        }))
    }

    /// Looks for users, then keeps new ones out as long as the claim lives. A device that cannot be opened has no claim, and
    /// nobody else can open it either.
    pub(crate) async fn claim(&self, node: &Path, what: &str) -> Result<Option<Claim>> {
        let doing = || format!("look who uses {}", node.display());
        let by: Vec<String> =
            self.host().users(node).await.map_err(machine(doing()))?.iter().map(ToString::to_string).collect();
        if !by.is_empty() {
            return Err(Error::InUse { what: what.to_owned(), by });
        }
        self.keep_out(node, what).await
    }

    async fn keep_out(&self, node: &Path, what: &str) -> Result<Option<Claim>> {
        match self.host().claim(node).await {
            Ok(claim) => Ok(Some(claim)),
            Err(host::Error::Busy { .. }) => {
                Err(Error::InUse { what: what.to_owned(), by: vec!["somebody who has just taken it".into()] })
            }
            Err(error) => {
                tracing::debug!(%error, device = %node.display(), "cannot be claimed");
                Ok(None)
            }
        }
    }

    /// Writes what the kernel has cached; unless the device has become another volume, which it must never reach. (The
    /// last one who closed it wrote what he could, so this only makes sure of it.)
    async fn settle(&self, unit: &Unit, node: &Path, identity: &Identity, deadline: Instant) -> Result<()> {
        let cached = unit.cached_name(self.host()).map_err(machine("read the unit's name"))?;
        if let Ok(answer) = proof::ask(self.host(), node).await {
            let as_before = match identity {
                Identity::Scsi { wwn } => *wwn == answer.wwn,
                _ => true,
            };
            if !as_before || cached.is_some_and(|cached| !answer.goes_by(&cached)) {
                tracing::warn!(device = %node.display(), now = %answer.wwn, "is another volume now: nothing is flushed to it");
                return Ok(());
            }
        }
        self.flush(node, deadline).await
    }

    pub(crate) async fn flush(&self, node: &Path, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let what = node.display().to_string();
        if left.is_zero() {
            return Err(Error::TimedOut { waiting_for: format!("the flush of {what}: it was not begun in time") });
        }
        self.host().flush(node, left).await.map_err(|error| match error {
            source @ host::Error::Io { .. } => Error::Flush { what, source: Box::new(source) },
            // Too slow is not lost: what is cached still is.
            other => machine(format!("flush {what}"))(other),
        })
    }

    /// Takes a unit from the kernel and sees that it is gone, with its node. Otherwise says why it is still there.
    pub(crate) async fn delete(
        &self,
        unit: &Unit,
        disk: Option<&BlockDevice>,
        deadline: Instant,
    ) -> std::result::Result<(), String> {
        let attribute = unit.attribute("delete");
        let refused = match timeout_at(deadline, self.host().write(&attribute, "1")).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the kernel is still removing it".to_owned()),
        };
        let node = disk.map(BlockDevice::node);
        let absent = || {
            let node_is_there = match &node {
                Some(node) => self.host().stat(node)?.is_some(),
                None => false,
            };
            Ok((!unit.is_present(self.host())? && !node_is_there).then_some(()))
        };
        match wait_for(self.host(), deadline, absent).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(refused.unwrap_or_else(|| "it is still there".into())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Ends the sessions of ours that have no unit left, and removes our record.
    pub(crate) async fn leave(&self, place: &Place, deadline: Instant) -> Result<Vec<Residual>> {
        let mut residuals = Vec::new();
        {
            let _turn = self.turns.take(place, deadline).await?;
            for session in self.sessions(place)? {
                if session.ours && !session.has_units(self.host()).map_err(machine("list the units"))? {
                    residuals.extend(self.logout(place, &session, deadline).await.err().map(|error| Residual {
                        kind: ResidualKind::Session,
                        name: format!("{} (session {})", place.target(), session.id),
                        reason: error.chain(),
                    }));
                }
            }
            residuals.extend(self.database.clear(self.host(), place).await.err().map(|error| Residual {
                kind: ResidualKind::NodeRecord,
                name: self.database.record(place).display().to_string(),
                reason: machine("remove it")(error).chain(),
            }));
        }
        self.database.tidy(self.host()).await;
        Ok(residuals)
    }

    /// A daemon that has just started (our own run may have been what started it) does not know the kernel's sessions yet, and
    /// then is not connected to them yet: so it is asked some times more, as long as it says so.
    async fn logout(&self, place: &Place, session: &Session, deadline: Instant) -> Result<()> {
        let _visit = self.database.visit(self.host()).await?;
        let waiting_for = || format!("the logout of {}", place.target());
        let (pause, tries) = DAEMON_STARTS;
        for tries_left in (0..tries).rev() {
            let left = deadline.saturating_duration_since(Instant::now());
            let command = iscsiadm::logout(session, left.max(LOGOUT));
            let refused = match view::run(self.host(), &self.config.view, Some(session), command).await {
                Ok(output) if iscsiadm::has_just_started(&output) => {
                    Some(iscsiadm::classify(Verb::Logout, place, &output))
                }
                Ok(output) => {
                    iscsiadm::classify(Verb::Logout, place, &output)?;
                    None
                }
                // What it did is unknown: whether the session goes, tells.
                Err(host::Error::TimedOut { .. }) => None,
                Err(error) => return Err(machine(waiting_for())(error)),
            };
            let patience = if refused.is_some() { deadline.min(Instant::now() + pause) } else { deadline };
            let gone = || Ok(session.again(self.host())?.is_none().then_some(()));
            let gone = wait_for(self.host(), patience, gone).await.map_err(machine("wait for the session to go"))?;
            match (gone, refused) {
                (Some(()), _) => return Ok(()),
                (None, Some(refused)) if tries_left == 0 || Instant::now() >= deadline => return refused,
                (None, Some(_)) => {}
                (None, None) => break,
            }
        }
        Err(Error::TimedOut { waiting_for: waiting_for() })
    }
}
