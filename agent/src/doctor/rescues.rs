//! What rescues bring that is no attachment: rescue disks and seeds, by what is written on them and by their names; and the
//! rescues themselves, held against the definitions of their instances.

use super::{Judged, Known, PATIENCE, Remains, Whose, unseen};
use crate::{
    agent::Agent,
    operation::{RescueRecord, RescueState, seed_of},
};
use driver::{Backend, Derivation, Error, Finding, Object, ObjectKind, Result, Scope};
use std::{path::PathBuf, sync::Arc};
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

impl Agent {
    /// All of it, judged, and what could not be looked at.
    pub(super) async fn look_at_rescues(self: &Arc<Self>, known: &Known) -> (Vec<Judged>, Vec<Finding>) {
        let (mut objects, mut findings) = (Vec::new(), Vec::new());
        match self.rescue_disks().await {
            Ok((disks, unseen)) => {
                objects.extend(disks.into_iter().map(|disk| judge_disk(disk, known)));
                findings.extend(unseen);
            }
            Err(error) => findings.push(unseen("the rescue disks", error.chain())),
        }
        match self.seeds() {
            Ok(seeds) => objects.extend(seeds.into_iter().map(|(path, owner)| judge_seed(path, owner, known))),
            Err(error) => findings.push(unseen("the seeds", error.chain())),
        }
        for record in &known.rescues {
            let (judged, finding) = self.examine_rescue(record, known).await;
            objects.push(judged);
            findings.extend(finding);
        }
        (objects, findings)
    }

    /// The derived volumes in all places that are known. The drivers are asked side by side.
    async fn rescue_disks(self: &Arc<Self>) -> Result<(Vec<Derivation>, Vec<Finding>)> {
        let places: Vec<Scope> = self.journal.places().await?.iter().filter_map(|place| place.parse().ok()).collect();
        let mut asked = JoinSet::new();
        for backend in self.drivers.wanted().iter().copied() {
            let scopes = places.iter().filter(|scope| scope.backend() == backend).cloned().map(Some);
            for scope in std::iter::once(None).chain(scopes) {
                let agent = Arc::clone(self);
                asked.spawn(async move { (backend, agent.derivations(backend, scope.as_ref()).await) });
            }
        }
        let (mut found, mut findings) = (Vec::<Derivation>::new(), Vec::new());
        for (backend, answer) in asked.join_all().await {
            match answer {
                Ok(derivations) => {
                    for derivation in derivations {
                        if !found.iter().any(|other| other.to == derivation.to) {
                            found.push(derivation);
                        }
                    }
                }
                // Of an old place, which is gone.
                Err(Error::NotFound { .. }) => {}
                Err(error) => findings.push(unseen(&format!("rescue disks of the {backend} driver"), error.chain())),
            }
        }
        found.sort_by_key(|derivation| derivation.to.to_string());
        Ok((found, findings))
    }

    async fn derivations(&self, backend: Backend, scope: Option<&Scope>) -> Result<Vec<Derivation>> {
        let driver = self.drivers.get(backend)?;
        if driver.readiness().await.problem.is_some() {
            return Ok(Vec::new());
        }
        let late = |_| Error::TimedOut { waiting_for: format!("the {backend} driver to list rescue disks") };
        timeout(PATIENCE, driver.derivations(scope)).await.map_err(late)?
    }

    /// The seeds, each with its instance.
    fn seeds(&self) -> Result<Vec<(PathBuf, Uuid)>> {
        let directory = &self.config.rescue.directory;
        let names = self.host.list(directory).map_err(Error::host("list the seeds"))?;
        Ok(names.iter().filter_map(|name| Some((directory.join(name), seed_of(name)?))).collect())
    }

    async fn examine_rescue(&self, record: &RescueRecord, known: &Known) -> (Judged, Option<Finding>) {
        let id = record.instance.to_string();
        let object = Object::of_ours(ObjectKind::Record, format!("rescue {id}"), record.title());
        let stale = |why: String| (Judged::new(object.clone(), Whose::Stale, why), None);
        if let Some(operation) = known.at_work_on(&id) {
            return (Judged::new(object, Whose::Ours, operation), None);
        }
        let unrescue = format!("`mortar unrescue --discard-changes {id}` puts the original back");
        match self.hypervisor.definition(record.instance).await {
            Ok(definition) if record.state == RescueState::Rescued && record.defined.as_ref() != Some(&definition) => {
                stale(format!("somebody changed the definition of {} since; {unrescue}", record.name))
            }
            Ok(_) => (Judged::new(object, Whose::Ours, "its instance is rescued by it"), None),
            Err(Error::NotFound { .. }) => stale(format!(
                "{} was undefined; `mortar unrescue --discard-changes {id}` takes away what the rescue brought",
                record.name
            )),
            Err(error) => {
                let why = error.chain();
                let finding = Finding::warning(
                    record.title(),
                    why.clone(),
                    "see that libvirt answers; the rescue stays as it is",
                );
                (Judged::new(object, Whose::Ours, why), Some(finding))
            }
        }
    }

    /// Whether a rescue disk still stands, and is of no rescue.
    pub(super) async fn is_orphaned_disk(&self, known: &Known, disk: &Derivation) -> Result<bool> {
        let is_there = |found: Vec<Derivation>| found.iter().any(|other| other.to == disk.to);
        let scope = disk.to.scope()?;
        Ok(known.rescue_with(disk).is_none() && is_there(self.derivations(scope.backend(), Some(&scope)).await?))
    }
}

fn judge_disk(disk: Derivation, known: &Known) -> Judged {
    let object = Object::of_ours(
        ObjectKind::RescueDisk,
        disk.to.to_string(),
        format!("a copy of {} for the instance {}", disk.image, disk.owner),
    );
    match (known.at_work_on(&disk.owner), known.rescue_with(&disk)) {
        (_, Some(record)) => Judged::new(object, Whose::Ours, record.title()),
        (Some(operation), None) => Judged::new(object, Whose::Ours, operation),
        (None, None) => Judged {
            remains: Some(Remains::RescueDisk(Box::new(disk))),
            ..Judged::new(object, Whose::Orphan, "it bears the mark of a rescue, and there is none")
        },
    }
}

fn judge_seed(path: PathBuf, owner: Uuid, known: &Known) -> Judged {
    let object =
        Object::of_ours(ObjectKind::Seed, path.display().to_string(), format!("what a rescue of {owner} is told"));
    match (known.at_work_on(&owner.to_string()), known.rescue_of(owner)) {
        (_, Some(record)) => Judged::new(object, Whose::Ours, record.title()),
        (Some(operation), None) => Judged::new(object, Whose::Ours, operation),
        (None, None) => Judged {
            remains: Some(Remains::Seed { path, owner }),
            ..Judged::new(object, Whose::Orphan, "there is no rescue of that instance")
        },
    }
}
