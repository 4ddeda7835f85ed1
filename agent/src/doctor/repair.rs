//! The repair: orphans go the way that attachments go, with the same locks and the same care. Nothing else is touched.

use super::{Judged, Known, Remains, Repair, Whose};
use crate::{
    agent::Agent,
    operation::{attachment_key, export_key, identity_key, instance_key},
};
use driver::{Attached, Error, Result};
use export::Export;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long one orphan may take to go.
const ONE: Duration = Duration::from_secs(30);

const UNTOLD: &str = "it cannot be told how it came; take it away by hand";
const NONE_ANY_MORE: &str = "it is none any more: it went by itself, or somebody has it by now";

impl Agent {
    /// Takes every orphan away, one after the other, and notes with each what came of it.
    pub(super) async fn repair(self: &Arc<Self>, objects: &mut [Judged], deadline: Instant) {
        let mut done: Vec<(Remains, Repair)> = Vec::new();
        for judged in objects.iter_mut().filter(|judged| judged.whose == Whose::Orphan) {
            let Some(remains) = judged.remains.clone() else {
                judged.repair = Some(Repair::Left(UNTOLD.into()));
                continue;
            };
            // A session goes with its last unit, and a map with its legs.
            let same = done.iter().find(|(other, _)| *other == remains).map(|(_, repair)| repair.clone());
            let repair = match same {
                Some(repair) => repair,
                None => {
                    let until = deadline.min(Instant::now() + ONE);
                    let repair = self
                        .take_away_orphan(&remains, until)
                        .await
                        .unwrap_or_else(|error| Repair::Left(error.chain()));
                    match &repair {
                        Repair::Removed(_) => {
                            tracing::info!("the {} {} was an orphan, and is gone", judged.kind, judged.name)
                        }
                        Repair::WouldBeRemoved => {}
                        Repair::Left(why) => tracing::warn!("the {} {} is left: {why}", judged.kind, judged.name),
                    }
                    done.push((remains, repair.clone()));
                    repair
                }
            };
            judged.repair = Some(repair);
        }
    }

    /// A dry run: says of every orphan whether it would go.
    pub(super) async fn rehearse(self: &Arc<Self>, objects: &mut [Judged], deadline: Instant) {
        for judged in objects.iter_mut().filter(|judged| judged.whose == Whose::Orphan) {
            let would = match &judged.remains {
                None => Ok(Repair::Left(UNTOLD.into())),
                Some(remains) => {
                    let until = deadline.min(Instant::now() + ONE);
                    let late = |_| Error::TimedOut { waiting_for: "its users to be told".into() };
                    timeout_at(until, self.would_take_away(remains)).await.map_err(late).flatten()
                }
            };
            judged.repair = Some(would.unwrap_or_else(|error| Repair::Left(error.chain())));
        }
    }

    /// Everything that [`Self::take_away_orphan`] looks at before its first effect.
    async fn would_take_away(&self, remains: &Remains) -> Result<Repair> {
        let _held = self.locks.take("the dry run of a repair", keys(remains))?;
        if !self.is_orphan(remains).await? {
            return Ok(Repair::Left(NONE_ANY_MORE.into()));
        }
        let (what, by) = match remains {
            Remains::Attached(attached) => {
                let driver = self.drivers.get(attached.spec.locator.backend())?;
                (attached.spec.locator.to_string(), driver.users(attached).await?)
            }
            Remains::Export(export) => {
                let sessions = self.exporter.sessions(export)?;
                let by = sessions.iter().map(|session| format!("{session} is logged in")).collect();
                (export.id.to_string(), by)
            }
            Remains::RescueDisk(_) | Remains::Link { .. } | Remains::Seed { .. } => return Ok(Repair::WouldBeRemoved),
        };
        if by.is_empty() { Ok(Repair::WouldBeRemoved) } else { Err(Error::InUse { what, by }) }
    }

    /// Under the locks that an attach of the same would take, if it is still an orphan then.
    async fn take_away_orphan(&self, remains: &Remains, deadline: Instant) -> Result<Repair> {
        if Instant::now() >= deadline {
            return Err(Error::TimedOut { waiting_for: "those before it; run the repair again".into() });
        }
        let _held = self.locks.take("a repair", keys(remains))?;
        if !self.is_orphan(remains).await? {
            return Ok(Repair::Left(NONE_ANY_MORE.into()));
        }
        let mut did = String::from("removed");
        match remains {
            Remains::Attached(attached) => {
                let driver = self.drivers.get(attached.spec.locator.backend())?;
                let detached = driver.detach(attached, deadline).await?;
                if let Some(left) = detached.residuals.first() {
                    return Ok(Repair::Left(format!("{}: {}", left.name, left.reason)));
                }
                if !detached.kept.is_empty() {
                    did = format!("removed; {}", detached.kept.join(", "));
                }
            }
            Remains::Export(export) => {
                self.exporter.withdraw(export).await?;
                did = "removed; the volume that it served stays active".into();
            }
            Remains::RescueDisk(disk) => self.drivers.get(disk.to.backend())?.discard(disk, deadline).await?,
            Remains::Link { path, .. } | Remains::Seed { path, .. } => {
                self.host.remove(path).await.map_err(Error::host(format!("remove {}", path.display())))?;
            }
        }
        match self.is_orphan(remains).await? {
            true => Ok(Repair::Left("something of it is still there: it has units that mortar does not know".into())),
            false => Ok(Repair::Removed(did)),
        }
    }

    /// Whether anything goes by these remains, by a look at the journal and then at the host.
    async fn is_orphan(&self, remains: &Remains) -> Result<bool> {
        let known = Known::read(self).await?;
        match remains {
            Remains::Attached(attached) => self.stands(&known, attached).await,
            Remains::Export(export) => self.is_served(&known, export),
            Remains::RescueDisk(disk) => self.is_orphaned_disk(&known, disk).await,
            Remains::Seed { path, owner } => {
                let stat = self.host.stat(path).map_err(Error::host(format!("look at {}", path.display())))?;
                Ok(known.rescue_of(*owner).is_none() && stat.is_some())
            }
            Remains::Link { path, id } => {
                let is_known = id.as_ref().is_some_and(|id| known.has(id) || known.at_work_on(id.as_str()).is_some());
                let stat = self.host.stat(path).map_err(Error::host(format!("look at {}", path.display())))?;
                Ok(!is_known && stat.is_some())
            }
        }
    }

    async fn stands(&self, known: &Known, attached: &Attached) -> Result<bool> {
        let seen = self.seen_by(attached.spec.locator.backend(), &known.attached, false).await?;
        Ok(seen.iter().any(|object| object.remains.as_ref() == Some(attached)))
    }

    fn is_served(&self, known: &Known, export: &Export) -> Result<bool> {
        let seen = self.exporter.inventory(&known.exports)?;
        Ok(seen.iter().any(|(object, remains)| object.holders.is_empty() && remains.as_ref() == Some(export)))
    }
}

fn keys(remains: &Remains) -> Vec<String> {
    match remains {
        Remains::Attached(attached) => {
            attached.spec.locator.keys().into_iter().chain(attached.identity.as_ref().map(identity_key)).collect()
        }
        Remains::Export(export) => vec![export_key(&export.id)],
        Remains::Link { id, .. } => id.iter().map(attachment_key).collect(),
        // Of no instance, if the mark was written by somebody else.
        Remains::RescueDisk(disk) => disk.owner.parse().map(instance_key).into_iter().collect(),
        Remains::Seed { owner, .. } => vec![instance_key(*owner)],
    }
}
