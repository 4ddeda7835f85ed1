//! What the drivers, the exporter and the directory of stable paths show, judged by what the journal knows.

use super::{Diagnosis, Judged, Known, PATIENCE, Remains, Whose, records::Examined, unseen};
use crate::agent::Agent;
use driver::{Attached, Backend, Error, Locator, Mark, Object, ObjectKind, Result};
use export::Seen;
use std::sync::Arc;
use tokio::{task::JoinSet, time::timeout};

impl Agent {
    /// Everything of the sorts that we bring. With `ask`, devices of ours are asked what they are, and storage for what is
    /// managed. The drivers are asked side by side, each with a deadline of its own.
    pub(super) async fn look_at_host(self: &Arc<Self>, known: &Known, ask: bool) -> Diagnosis {
        let mut asked = JoinSet::new();
        for backend in self.drivers.wanted().iter().copied() {
            let (agent, attached) = (Arc::clone(self), known.attached.clone());
            asked.spawn(async move { (backend, agent.seen_by(backend, &attached, ask).await) });
        }
        let mut diagnosis = Diagnosis::default();
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(backend, _)| *backend);
        for (backend, answer) in answers {
            match answer {
                Ok(objects) => diagnosis.objects.extend(objects.into_iter().map(|object| judge(object, known))),
                Err(error) => diagnosis.findings.push(unseen(&format!("the {backend} driver"), error.chain())),
            }
        }
        match self.exporter.inventory(&known.exports) {
            Ok(seen) => diagnosis.objects.extend(seen.into_iter().map(|seen| judge_export(seen, known))),
            Err(error) => diagnosis.findings.push(unseen("this host's iSCSI targets", error.chain())),
        }
        if ask {
            let (objects, findings) = self.managed_volumes(known).await;
            diagnosis.objects.extend(objects);
            diagnosis.findings.extend(findings);
        }
        diagnosis
    }

    /// What one driver sees.
    pub(super) async fn seen_by(&self, backend: Backend, known: &[Attached], ask: bool) -> Result<Vec<Object>> {
        let driver = self.drivers.get(backend)?;
        let late = |_| Error::TimedOut { waiting_for: format!("the {backend} driver to list what it sees") };
        timeout(PATIENCE, driver.inventory(known, ask)).await.map_err(late)?
    }

    /// The links to devices.
    pub(super) fn stable_paths(&self, known: &Known, records: &[Examined]) -> Result<Vec<Judged>> {
        let directory = &self.config.agent.device_directory;
        let mut found = Vec::new();
        for name in self.host.list(directory).map_err(Error::host("list the stable paths"))? {
            let path = directory.join(&name);
            let looking = || format!("look at {}", path.display());
            let leads = self.host.resolve(&path).map_err(Error::host(looking()))?;
            let what = leads
                .as_ref()
                .map_or_else(|| "leads nowhere".to_owned(), |leads| format!("leads to {}", leads.display()));
            let object = Object::of_ours(ObjectKind::StablePath, path.display().to_string(), what);
            let is_link = self.host.stat(&path).map_err(Error::host(looking()))?;
            let is_link = is_link.is_some_and(|stat| !stat.is_file && !stat.is_directory);
            let is_unfinished = name.starts_with('.') && name.ends_with(".new");
            let orphan = |id| Judged {
                remains: Some(Remains::Link { path: path.clone(), id }),
                ..Judged::new(object.clone(), Whose::Orphan, "there is no attachment of this name")
            };
            found.push(match name.parse() {
                _ if !is_link => Judged::new(object, Whose::Foreign, "it is no link"),
                Err(_) if is_unfinished => orphan(None),
                Err(_) => Judged::new(object, Whose::Foreign, "its name is none of an attachment"),
                Ok(id) => match known.at_work_on(&name) {
                    Some(operation) => Judged::new(object, Whose::Ours, operation),
                    None if !known.has(&id) => orphan(Some(id)),
                    None if self.looks.end_of(&id).is_some() => {
                        Judged::new(object, Whose::Ours, "the agent has just started, and is about to look at it")
                    }
                    None => {
                        let device = records.iter().find(|record| record.id == name).and_then(|it| it.device.as_ref());
                        let (whose, why) = match (device, leads) {
                            (_, None) => (Whose::Stale, format!("it dangles; attach {name} again, or detach it")),
                            (Some(device), Some(leads)) if *device != leads => {
                                let device = device.display();
                                (Whose::Stale, format!("the device of {name} is {device}; attach {name} again"))
                            }
                            _ => (Whose::Ours, format!("attachment {name}")),
                        };
                        Judged::new(object, whose, why)
                    }
                },
            });
        }
        Ok(found)
    }
}

/// Whose something is, by its mark and by who holds it.
fn judge(object: Object, known: &Known) -> Judged {
    let owners = known.owners(&object.holders);
    match (&object.mark, &object.stale) {
        (Mark::Others(why), _) => {
            let why = if owners.is_empty() { why.clone() } else { format!("{why}; {owners} goes by it") };
            Judged::new(object, Whose::Foreign, why)
        }
        (Mark::UnderWay(how), _) => {
            let how = how.clone();
            Judged::new(object, Whose::Ours, how)
        }
        (Mark::Ours, _) if object.holders.is_empty() => {
            let remains = object.remains.clone().map(|attached| Remains::Attached(Box::new(attached)));
            Judged { remains, ..Judged::new(object, Whose::Orphan, NOBODYS) }
        }
        (Mark::Ours, Some(stale)) => {
            let why = format!("{stale}; it is of {owners}: detach that");
            Judged::new(object, Whose::Stale, why)
        }
        (Mark::Ours, None) => Judged::new(object, Whose::Ours, owners),
    }
}

const NOBODYS: &str = "it has our mark, and no attachment, export or operation has it";

fn judge_export((object, remains): Seen, known: &Known) -> Judged {
    match &object.mark {
        Mark::Others(why) => {
            let why = why.clone();
            Judged::new(object, Whose::Foreign, why)
        }
        _ if object.holders.is_empty() => {
            Judged { remains: remains.map(Remains::Export), ..Judged::new(object, Whose::Orphan, NOBODYS) }
        }
        _ => {
            let owners = known.export_owners(&object.holders);
            Judged::new(object, Whose::Ours, owners)
        }
    }
}

impl Agent {
    /// The volumes that are marked as managed, and what could not be looked at.
    async fn managed_volumes(&self, known: &Known) -> (Vec<Judged>, Vec<driver::Finding>) {
        let listing = match timeout(2 * PATIENCE, self.volumes(None)).await {
            Ok(Ok(listing)) => listing,
            Ok(Err(error)) => return (Vec::new(), vec![unseen("the managed volumes", error.chain())]),
            Err(_) => return (Vec::new(), vec![unseen("the managed volumes", "it takes too long".into())]),
        };
        let templates = self.config.templates().ok();
        let judged = listing.volumes.into_iter().map(|volume| {
            let id = volume.id.to_string();
            let named = templates.as_ref().map(|templates| templates.name(volume.kind, volume.id));
            let managed: Option<Locator> = named.and_then(|name| volume.origin.beside(&name).ok());
            let is_named = managed.as_ref().is_none_or(|managed| *managed == volume.locator);
            let object = Object::of_ours(ObjectKind::Volume, volume.locator.to_string(), format!("volume {id}"));
            match (known.at_work_on(&id), is_named) {
                (Some(operation), _) => Judged::new(object, Whose::Ours, operation),
                (None, true) => Judged::new(object, Whose::Ours, "managed"),
                (None, false) => Judged::new(
                    object,
                    Whose::Stale,
                    format!(
                        "it says that it is volume {id}, but has another name than a managed one: a manage that did not \
                         end, a rename by hand, or a copy; manage it again, or unmanage {id}"
                    ),
                ),
            }
        });
        let unseen = listing.unseen.iter().map(|place| super::unseen("managed volumes", place.to_string()));
        (judged.collect(), unseen.collect())
    }
}
