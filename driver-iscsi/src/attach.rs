//! Attach: from a locator to a device that has proved what it is.

use crate::{
    Initiator, iscsiadm,
    iscsiadm::Verb,
    machine,
    place::Place,
    proof, record,
    record::Credentials,
    session,
    session::{Session, Unit},
    view,
};
use driver::{Device, Error, Footprint, Identity, Result, Spec, Wwn};
use host::{BlockDevice, Output, wait_for};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long the daemon tries one login, at least and at most. A target that is well answers in a tenth of a second.
const LOGIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(15));

/// How much longer than that the login's process is waited for at least: it waits for the daemon's answer, and the daemon
/// takes logins one by one. A caller who has more time gives it more.
const ANSWER: Duration = Duration::from_secs(5);

/// What has to be left of a caller's time for a login to be worth a try.
const WORTH_A_TRY: Duration = Duration::from_secs(1);

/// How long the undo of an attach that failed may take. The attach's own time may be over by then.
const UNDO: Duration = Duration::from_secs(30);

/// How far an attach came, and so what its undo has to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    Nowhere,
    ToTheSession,
    /// There may be a unit of ours that was not there before.
    ToTheUnit,
}

/// Whether the unit stood here before the attachment, on a session that is not ours.
pub(crate) fn was_here(footprint: &Footprint, place: &Place) -> bool {
    matches!(footprint, Footprint::Iscsi { were_here, .. } if were_here.contains(&place.way()))
}

/// A unit that has proved what it is.
#[derive(Debug, Clone)]
pub(crate) struct Proved {
    pub(crate) session: Session,
    pub(crate) unit: Unit,
    pub(crate) disk: BlockDevice,
    pub(crate) wwn: Wwn,
}

impl Initiator {
    /// A unit by its only way: all of it; or nothing, with the reason.
    pub(crate) async fn bring(
        self: &Arc<Self>,
        place: &Place,
        spec: &Spec,
        footprint: &Footprint,
        credentials: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Device> {
        let mut came = Came::Nowhere;
        let device = self.try_to_bring(place, spec, footprint, credentials, deadline, &mut came).await;
        if device.is_err() {
            self.undo_ways(vec![(place.clone(), came)], footprint).await;
        }
        device
    }

    async fn try_to_bring(
        &self,
        place: &Place,
        spec: &Spec,
        footprint: &Footprint,
        credentials: Option<&Credentials>,
        deadline: Instant,
        came: &mut Came,
    ) -> Result<Device> {
        self.approach(place, footprint, deadline).await?;
        let unit = self.bring_unit(place, footprint, credentials, deadline, came).await?;
        let device = self.device(place, &unit.unit, unit.disk.clone(), Identity::Scsi { wwn: unit.wwn.clone() })?;
        spec.check(&device)?;
        if self.goes_into_a_map(&unit).await?
            && let Some(map) = self.join(place, &unit, deadline).await?
        {
            let places = std::slice::from_ref(place);
            self.protect_map(places, spec, footprint, &map).await?;
            return self.map_now(places, &map, footprint).await;
        }
        self.protect(place, spec, &unit.session, device).await
    }

    /// Sees that a login is worth a process. Has no effect, and may be left at any time.
    pub(crate) async fn approach(&self, place: &Place, footprint: &Footprint, deadline: Instant) -> Result<()> {
        match self.is_at_hand(place, footprint)? {
            true => Ok(()),
            false => self.reach(place, deadline).await,
        }
    }

    /// A unit by one way, proved. `came` says how far, before each step that has something to take back.
    pub(crate) async fn bring_unit(
        &self,
        place: &Place,
        footprint: &Footprint,
        credentials: Option<&Credentials>,
        deadline: Instant,
        came: &mut Came,
    ) -> Result<Proved> {
        let (session, unit) = {
            let _turn = self.turns.take(place, deadline).await?;
            *came = Came::ToTheSession;
            let session = self.session_for(place, footprint, credentials, deadline).await?;
            let unit = session.unit(place.lun);
            if unit.is_present(self.host()).map_err(machine("look for the unit"))? {
                self.refresh(place, &session, &unit, deadline).await?;
            }
            if !unit.is_present(self.host()).map_err(machine("look for the unit"))? {
                if session.ours {
                    *came = Came::ToTheUnit;
                }
                self.scan(place, &session, &unit, deadline).await?;
            }
            (session, unit)
        };
        let disk = self.disk(place, &unit, deadline).await?;
        let answer = proof::ask(self.host(), &disk.node()).await?;
        if let Some(cached) = unit.cached_name(self.host()).map_err(machine("read the unit's name"))?
            && !answer.goes_by(&cached)
        {
            return Err(Error::Mismatch {
                what: format!("{place}, which was mapped anew while it was attached,"),
                expected: cached,
                found: answer.wwn.to_string(),
            });
        }
        Ok(Proved { session, unit, disk, wwn: answer.wwn })
    }

    /// Whether a session stands that can be used, so that the portal need not be tried.
    fn is_at_hand(&self, place: &Place, footprint: &Footprint) -> Result<bool> {
        let sessions = self.sessions(place)?;
        Ok(sessions.iter().any(|session| session.is_up() && (session.ours || was_here(footprint, place))))
    }

    /// Refused is known at once; that nobody answers, at the deadline.
    async fn reach(&self, place: &Place, deadline: Instant) -> Result<()> {
        let address = (place.portal.address, place.portal.port).into();
        self.host().reach(address, deadline).await.map_err(|error| match error {
            host::Error::Unreachable { why } => {
                Error::Unreachable { what: format!("portal {} of target {}", place.portal, place.iqn), why }
            }
            other => machine(format!("connect to portal {}", place.portal))(other),
        })
    }

    /// The session to use. Somebody else's only if the unit stands on it already: a unit that we bring is always on a session
    /// of ours, so that what may be taken away again needs no record.
    async fn session_for(
        &self,
        place: &Place,
        footprint: &Footprint,
        credentials: Option<&Credentials>,
        deadline: Instant,
    ) -> Result<Session> {
        let sessions = self.sessions(place)?;
        if was_here(footprint, place) {
            for session in sessions.iter().filter(|session| !session.ours) {
                if session.unit(place.lun).is_present(self.host()).map_err(machine("look for the unit"))? {
                    return Ok(session.clone());
                }
            }
        }
        match sessions.into_iter().find(|session| session.ours) {
            Some(session) if session.is_up() => Ok(session),
            Some(_) => self.session_comes_up(place, deadline).await,
            None => {
                self.login(place, credentials, deadline).await?;
                self.session_comes_up(place, deadline).await
            }
        }
    }

    async fn session_comes_up(&self, place: &Place, deadline: Instant) -> Result<Session> {
        let up = |session: &Session| session.ours && session.is_up();
        wait_for(self.host(), deadline, || {
            Ok(session::sessions(self.host(), &self.targets, place)?.into_iter().find(up))
        })
        .await
        .map_err(machine("wait for the session"))?
        .ok_or_else(|| Error::Unreachable { what: place.target(), why: "its session did not come up".into() })
    }

    /// It is the daemon that logs in, and it goes on though nobody waits for it any more. So whatever the caller's deadline,
    /// this ends with the login: else an undo would look for a session that is yet to come, and the session would be nobody's.
    async fn login(&self, place: &Place, credentials: Option<&Credentials>, deadline: Instant) -> Result<()> {
        let ran = {
            let _visit = self.database.visit(self.host()).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left < WORTH_A_TRY {
                return Err(Error::TimedOut {
                    waiting_for: format!(
                        "the login to {}: it was not begun, as the time was nearly over",
                        place.target()
                    ),
                });
            }
            self.login_by_record(place, credentials, left).await?
        };
        // Nobody has to wait for it.
        let (database, host) = (Arc::clone(&self.database), Arc::clone(&self.host));
        tokio::spawn(async move { database.tidy(host.as_ref()).await });
        // A scan that nobody waits for would go on as well.
        let in_time = || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(Error::TimedOut { waiting_for: format!("the login to {}", place.target()) }),
        };
        let output = match ran {
            Ok(output) => output,
            Err(host::Error::TimedOut { .. }) if self.has_session(place)? => return in_time(),
            Err(error) => return Err(machine(format!("log in to {}", place.target()))(error)),
        };
        match iscsiadm::classify(Verb::Login, place, &output) {
            // Something in the data base that has nothing to do with us; the login was done all the same.
            Err(_) if output.code == iscsiadm::DATABASE && self.has_session(place)? => {}
            result => result?,
        }
        in_time()
    }

    fn has_session(&self, place: &Place) -> Result<bool> {
        let sessions = self.sessions(place)?;
        Ok(sessions.iter().any(|session| session.ours))
    }

    /// The record is there only while the login runs, whatever its end.
    async fn login_by_record(
        &self,
        place: &Place,
        credentials: Option<&Credentials>,
        left: Duration,
    ) -> Result<host::Result<Output>> {
        let tried = left.clamp(LOGIN.0, LOGIN.1);
        let text = record::render(place, credentials, tried.as_secs());
        let path = self.database.record(place);
        let doing = || format!("write the node record {}", path.display());
        self.host().replace_unsynced(&path, text.as_bytes(), 0o600).await.map_err(machine(doing()))?;
        drop(text);
        let command = iscsiadm::login(place, left.max(tried + ANSWER));
        let ran = view::run(self.host(), &self.config.view, None, command).await;
        if let Err(error) = self.database.clear(self.host(), place).await {
            // Nobody may read it but root; the detach removes it.
            tracing::warn!(%error, path = %path.display(), "cannot remove the node record");
        }
        Ok(ran)
    }

    /// A unit stands where the new one should. If it is what the kernel thinks, its size is learned anew; if the target has
    /// mapped another volume there since, it is taken away. One that does not answer is taken away too if it is ours; what is
    /// somebody else's may just be cut off for a while, and stays.
    async fn refresh(&self, place: &Place, session: &Session, unit: &Unit, deadline: Instant) -> Result<()> {
        let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
        let Some(disk) = disk.filter(|disk| self.host().stat(&disk.node()).ok().flatten().is_some()) else {
            return Ok(());
        };
        let node = disk.node();
        if !session.ours && !session.is_up() {
            let why = format!("it was here before, and its session is {}", session.state());
            return Err(Error::Unreachable { what: format!("{} ({place})", node.display()), why });
        }
        let cached = unit.cached_name(self.host()).map_err(machine("read the unit's name"))?;
        let stale = match proof::ask(self.host(), &node).await {
            Ok(answer) => match cached {
                Some(cached) if answer.disowns(&cached) => format!("it was {cached} and is now {}", answer.wwn),
                // Not the name that the kernel learned, and none of that sort that would be another: in doubt.
                Some(cached) if !answer.goes_by(&cached) && session.ours => {
                    format!("it was {cached} and has no such name now")
                }
                _ if session.ours => return self.rescan(place, unit, deadline).await,
                _ => return Ok(()),
            },
            Err(error @ Error::Exhausted { .. }) => return Err(error),
            Err(error) if session.ours => error.chain(),
            Err(error) => return Err(error),
        };
        let what = format!("{}, which stands at {place} but is stale ({stale}),", node.display());
        let claim = self.claim(&node, &what).await?;
        tracing::warn!(device = %node.display(), %place, stale, "removing a stale device");
        let gone = self.delete(unit, Some(&disk), deadline).await;
        drop(claim);
        gone.map_err(|reason| Error::TimedOut { waiting_for: format!("{what} to go: {reason}") })
    }

    /// Looks for just this unit. The kernel answers when it is done, so what is not there then is not offered (the write does
    /// what REPORT LUNS and INQUIRY would tell).
    async fn scan(&self, place: &Place, session: &Session, unit: &Unit, deadline: Instant) -> Result<()> {
        let (attribute, one) = (session.scan(), session.scan_for(place.lun));
        match timeout_at(deadline, self.host().write(&attribute, &one)).await {
            Ok(Ok(())) => {}
            Ok(Err(host::Error::TimedOut { .. })) | Err(_) => {
                return Err(Error::TimedOut { waiting_for: format!("the scan for {place}") });
            }
            Ok(Err(error)) => return Err(machine(format!("scan for {place}"))(error)),
        }
        if unit.is_present(self.host()).map_err(machine("look for the unit"))? {
            return Ok(());
        }
        match session.again(self.host()).map_err(machine("read the session"))? {
            Some(session) if session.is_up() => Err(Error::NotFound { what: place.to_string() }),
            Some(session) => {
                Err(Error::Unreachable { what: place.target(), why: format!("its session is {}", session.state()) })
            }
            None => Err(Error::Unreachable { what: place.target(), why: "its session went away".into() }),
        }
    }

    /// The unit's block device with its node. The disk driver takes a unit in the background.
    async fn disk(&self, place: &Place, unit: &Unit, deadline: Instant) -> Result<BlockDevice> {
        /// Direct access block device (SPC-4 table 142).
        const DISK: u8 = 0;
        let kind = unit.kind(self.host()).map_err(machine("read the unit's type"))?;
        if let Some(kind) = kind.filter(|kind| *kind != DISK) {
            return Err(Error::WrongState { what: format!("{place} is no disk: its SCSI device type is {kind:#x}") });
        }
        let probe = || {
            let disk = unit.disk(self.host())?;
            Ok(disk.filter(|disk| matches!(self.host().stat(&disk.node()), Ok(Some(_)))))
        };
        wait_for(self.host(), deadline, probe)
            .await
            .map_err(machine("wait for the block device"))?
            .ok_or_else(|| Error::TimedOut { waiting_for: format!("the block device of {place}") })
    }

    /// Makes the device refuse writes if that was asked for.
    pub(crate) async fn protect(
        &self,
        place: &Place,
        spec: &Spec,
        session: &Session,
        mut device: Device,
    ) -> Result<Device> {
        if !spec.read_only || device.read_only {
            return Ok(device);
        }
        if !session.ours {
            return Err(Error::WrongState {
                what: format!(
                    "{} was here before, writable, as {place}; detach it there to have it read-only",
                    device.path.display()
                ),
            });
        }
        let doing = format!("make {} read-only", device.path.display());
        self.host().set_read_only(&device.path, true).await.map_err(machine(doing))?;
        device.read_only = true;
        Ok(device)
    }

    /// Takes away what an attach that failed has brought. What stays is said in the log; the agent detaches once more.
    pub(crate) async fn undo(&self, place: &Place, came: Came) {
        if came == Came::Nowhere {
            return;
        }
        let deadline = Instant::now() + UNDO;
        if came == Came::ToTheUnit
            && let Err(error) = self.undo_unit(place, deadline).await
        {
            tracing::warn!(%place, error = error.chain(), "cannot take back a unit");
        }
        match self.leave(place, deadline).await {
            Ok(residuals) => {
                for residual in residuals {
                    tracing::warn!(%place, name = residual.name, reason = residual.reason, "left by an attach");
                }
            }
            Err(error) => tracing::warn!(%place, error = error.chain(), "cannot take back a session"),
        }
    }

    async fn undo_unit(&self, place: &Place, deadline: Instant) -> Result<()> {
        for session in self.sessions(place)? {
            let unit = session.unit(place.lun);
            if !session.ours || !unit.is_present(self.host()).map_err(machine("look for the unit"))? {
                continue;
            }
            // Nobody was given it, so there is nothing to flush; but somebody may have taken it all the same.
            let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
            let claim = match &disk {
                Some(disk) => Some(self.claim(&disk.node(), &disk.node().display().to_string()).await?),
                None => None,
            };
            let gone = self.delete(&unit, disk.as_ref(), deadline).await;
            drop(claim);
            gone.map_err(|reason| Error::TimedOut { waiting_for: format!("the device of {place} to go: {reason}") })?;
        }
        Ok(())
    }
}
