//! Manage and unmanage: a rename in place, with the origin written onto the storage beside it. The storage is the truth;
//! the journal only says what was under way.

use super::{OperationId, Plan, Rest, export::exported_as};
use crate::{
    agent::Agent,
    callers::may_begin,
    journal::{Change, ExportRecord, Managed, Record},
};
use driver::{
    Adoption, Candidate, Driver, Error, Identity, Locator, Refusal, Release, Result, Scope, Volume, VolumeId,
    VolumeName,
};
use std::{collections::HashMap, sync::Arc};
use tokio::time::Instant;

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct ManageRequest {
    pub(crate) locator: Locator,
    /// `None`: one is made up.
    pub(crate) id: Option<VolumeId>,
    /// `None`: the name it has.
    pub(crate) name: Option<VolumeName>,
    pub(crate) allow_in_use: bool,
    /// Only say what would be done.
    pub(crate) dry_run: bool,
}

/// What a caller of manage gets.
#[derive(Debug)]
pub(crate) struct ManageReply {
    pub(crate) volume: Volume,
    pub(crate) changed: bool,
    pub(crate) operation: Option<OperationId>,
    /// After a dry run: what would be done.
    pub(crate) would: Vec<String>,
}

/// What a caller of unmanage gets.
#[derive(Debug)]
pub(crate) struct UnmanageReply {
    pub(crate) locator: Option<Locator>,
    pub(crate) changed: bool,
    pub(crate) operation: Option<OperationId>,
}

impl Agent {
    /// Takes a volume into management, or finds that it is.
    pub(crate) async fn manage(self: Arc<Self>, mut request: ManageRequest) -> Result<ManageReply> {
        request.locator = self.canonical(request.locator, self.usual_deadline()).await?;
        let from = &request.locator;
        let scope = from.scope()?;
        let driver = self.drivers.ready(from.backend()).await?;
        let mut held = self.locks.take(&format!("manage of {from}"), [from.key()])?;
        if let Some(id) = request.id {
            held.extend(volume_key(id))?;
        }
        let candidate = match driver.inspect(from).await {
            Ok(candidate) => candidate,
            Err(Error::NotFound { what }) => {
                // The same call once more, after the rename.
                let volumes = driver.volumes(Some(&scope)).await?;
                let managed = volumes.into_iter().find(|volume| volume.origin == *from);
                return match managed {
                    Some(volume) if request.id.is_none_or(|id| id == volume.id) => {
                        self.managed_before(volume, &scope, request.dry_run).await
                    }
                    Some(volume) => Err(managed_already(from, volume.id)),
                    None => Err(Error::NotFound { what }),
                };
            }
            Err(error) => return Err(error),
        };
        let templates = self.config.templates().map_err(Error::host("read the name templates"))?;
        let id = match (&candidate.managed, request.id) {
            (Some(volume), Some(id)) if volume.id != id => return Err(managed_already(from, volume.id)),
            (Some(volume), _) => {
                if volume.locator == from.beside(&templates.name(candidate.kind, volume.id))? {
                    return self.managed_before(volume.clone(), &scope, request.dry_run).await;
                }
                if volume.origin != *from {
                    return Err(managed_already(from, volume.id));
                }
                // It has an origin but not its managed name: a manage that the journal does not know of was cut short.
                volume.id
            }
            (None, Some(id)) => {
                self.check_id_is_free(id, &scope).await?;
                id
            }
            (None, None) => VolumeId::make_up(),
        };
        let users = self.with_locator(from).await?;
        refuse(&candidate, &users, request.allow_in_use)?;
        let name = match request.name {
            Some(name) => name,
            None => last_part(from).parse().map_err(|_| {
                Error::invalid("name", format!("{from} has no name that can stand as it is; give one with `name`"))
            })?,
        };
        let adoption = Adoption {
            id,
            name,
            from: from.clone(),
            to: from.beside(&templates.name(candidate.kind, id))?,
            identity: candidate.identity.clone(),
        };
        held.extend(volume_key(id))?;
        held.extend(adoption.to.key())?;
        let plan = Plan::Manage { adoption: adoption.clone() };
        if request.dry_run {
            may_begin(&plan)?;
            return would_manage(driver.as_ref(), adoption, &candidate, &users).await;
        }
        let change = managed(&adoption, users)?;
        let work = self.begin(plan, held, self.usual_deadline()).await?;
        match self.effects(&work, driver.manage(&adoption)).await {
            Ok(volume) => {
                let operation = self.succeeded(work, change).await?;
                Ok(ManageReply { volume, changed: true, operation: Some(operation), would: Vec::new() })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => match driver.unmanage(&undo_of(&adoption)).await {
                Ok(()) | Err(Error::NotFound { .. }) => self.failed(work, error, Change::None).await,
                Err(_) if driver.inspect(from).await.is_ok_and(|now| now.managed.is_none()) => {
                    self.failed(work, error, Change::None).await
                }
                Err(undo) => {
                    self.keep_trying(work, Rest::Recover, undo);
                    Err(error)
                }
            },
        }
    }

    /// What is managed already. A journal that knows nothing of it, since the one that did is lost, is told where it is: whoever
    /// asks for it by its id has to be led there.
    async fn managed_before(&self, volume: Volume, scope: &Scope, dry_run: bool) -> Result<ManageReply> {
        let place = scope.to_string();
        if !dry_run && !self.journal.places().await?.contains(&place) {
            self.journal.change(Change::Place(place)).await?;
        }
        Ok(ManageReply { volume, changed: false, operation: None, would: Vec::new() })
    }

    /// Of what its caller gives no time.
    pub(super) fn usual_deadline(&self) -> Instant {
        Instant::now() + self.config.limits.operation_timeout()
    }

    /// Lets a volume go. What is not managed is let go already.
    pub(crate) async fn unmanage(self: Arc<Self>, id: VolumeId, keep_name: bool) -> Result<UnmanageReply> {
        let mut held = self.locks.take(&format!("unmanage of {id}"), [volume_key(id)])?;
        let Some(volume) = self.volume(id).await? else {
            let changed = self.forget_managed(id).await?;
            return Ok(UnmanageReply { locator: None, changed, operation: None });
        };
        let to = if keep_name { volume.locator.clone() } else { volume.origin.clone() };
        held.extend(volume.locator.key())?;
        held.extend(to.key())?;
        let driver = self.drivers.ready(volume.locator.backend()).await?;
        let users = self.with_locator(&volume.locator).await?;
        let release = Release { id, from: volume.locator, to: to.clone(), identity: volume.identity };
        let work = self.begin(Plan::Unmanage { release: release.clone() }, held, self.usual_deadline()).await?;
        match self.effects(&work, driver.unmanage(&release)).await {
            Ok(()) => {
                let operation = self.succeeded(work, released(&release, users)).await?;
                Ok(UnmanageReply { locator: Some(to), changed: true, operation: Some(operation) })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => {
                // Before its first effect it still has its managed name and its origin.
                let still = driver.inspect(&release.from).await.is_ok_and(|now| now.managed.is_some());
                if still {
                    return self.failed(work, error, Change::None).await;
                }
                let again = Error::Host { doing: "unmanage".into(), source: error.chain().into() };
                self.keep_trying(work, Rest::Recover, again);
                Err(error)
            }
        }
    }

    /// A volume that is gone is not remembered any more. Whether it was.
    async fn forget_managed(&self, id: VolumeId) -> Result<bool> {
        let backends = self.journal.managed_as(id).await?;
        for backend in &backends {
            self.journal.change(Change::Released(id, *backend)).await?;
        }
        Ok(!backends.is_empty())
    }

    /// Refuses what has taken a managed name since it was given. Which volume that was only the journal knows (`managed`); one
    /// that it knows nothing of is what the storage says.
    pub(super) async fn still_managed(
        &self,
        driver: &dyn Driver,
        locator: &Locator,
        now: &Identity,
        managed: Option<(VolumeId, Identity)>,
    ) -> Result<()> {
        let Some((id, before)) = managed else { return Ok(()) };
        let mut found = now.to_string();
        if now.is_still(&before) {
            // The number of a file that was removed is given to the next one; that one has no mark.
            let Identity::File { .. } = now else { return Ok(()) };
            if driver.inspect(locator).await?.managed.is_some_and(|volume| volume.id == id) {
                return Ok(());
            }
            found += " without the mark of a managed volume";
        }
        Err(Error::Mismatch {
            what: format!("{locator}, the name of volume {id} (`mortar unmanage {id}` frees it for what has it now),"),
            expected: before.to_string(),
            found,
        })
    }

    /// What could be managed in one place, and why not.
    pub(crate) async fn manageable(&self, scope: &Scope) -> Result<Vec<Candidate>> {
        let driver = self.drivers.ready(scope.backend()).await?;
        let mut candidates = driver.manageable(scope).await?;
        // Once for all of them: there may be a thousand.
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        if self.journal.lost().is_some() {
            // Who has it open is known all the same.
            return Ok(candidates);
        }
        for record in self.journal.attachments().await? {
            users.entry(record.attached.spec.locator.key()).or_default().push(attached_as(&record));
        }
        for record in self.journal.exports().await? {
            users.entry(record.attached.spec.locator.key()).or_default().push(exported_as(&record));
        }
        for candidate in &mut candidates {
            if candidate.refusal.is_none() {
                candidate.refusal = users.get(&candidate.locator.key()).cloned().map(Refusal::InUse);
            }
        }
        Ok(candidates)
    }
}

/// What a manage comes to that is not begun. That the managed name is free the driver finds out by the rename; here it is
/// looked at.
async fn would_manage(
    driver: &dyn Driver,
    adoption: Adoption,
    candidate: &Candidate,
    users: &Standing,
) -> Result<ManageReply> {
    let Adoption { id, name, from, to, identity } = adoption;
    match driver.inspect(&to).await {
        Err(Error::NotFound { .. }) => {}
        Ok(_) => return Err(Error::AlreadyExists { what: format!("{to} is there already") }),
        Err(error) => return Err(error),
    }
    let mut would = vec![
        format!("write onto the storage that it was {from}, its id {id} and its name {name}"),
        format!("rename it to {to}"),
    ];
    would.extend(users.names().iter().map(|user| format!("note the new name: it is {user}")));
    let (size_bytes, kind) = (candidate.size_bytes, candidate.kind);
    let volume = Volume { id, name, locator: to, origin: from, size_bytes, identity, kind };
    Ok(ManageReply { volume, changed: true, operation: None, would })
}

fn volume_key(id: VolumeId) -> String {
    format!("volume {id}")
}

fn managed_already(locator: &Locator, id: VolumeId) -> Error {
    Error::AlreadyExists { what: format!("{locator} is managed already, as {id}") }
}

/// An attachment, as a user of its volume.
pub(super) fn attached_as(record: &Record) -> String {
    format!("attached as {}", record.id)
}

/// What stands on a volume by its locator, and so has to follow a rename.
pub(super) struct Standing {
    attachments: Vec<Record>,
    exports: Vec<ExportRecord>,
}

impl Standing {
    /// Each in words.
    fn names(&self) -> Vec<String> {
        self.attachments.iter().map(attached_as).chain(self.exports.iter().map(exported_as)).collect()
    }

    /// The new name in all of them. How each reaches its cluster stays as it is.
    fn moved(mut self, to: &Locator) -> Change {
        let name = last_part(to);
        let moved = |from: &Locator| from.beside(&name).unwrap_or_else(|_| to.clone());
        for record in &mut self.attachments {
            record.attached.spec.locator = moved(&record.attached.spec.locator);
        }
        for record in &mut self.exports {
            record.attached.spec.locator = moved(&record.attached.spec.locator);
        }
        Change::All(vec![Change::Put(self.attachments), Change::PutExports(self.exports)])
    }
}

impl Agent {
    /// The attachments and exports of a volume.
    pub(super) async fn with_locator(&self, locator: &Locator) -> Result<Standing> {
        let key = locator.key();
        Ok(Standing {
            attachments: self.journal.attachments_of(&key).await?,
            exports: self.journal.exports_of(&key).await?,
        })
    }
}

fn refuse(candidate: &Candidate, users: &Standing, allow_in_use: bool) -> Result<()> {
    let what = candidate.locator.to_string();
    match &candidate.refusal {
        None if allow_in_use || users.names().is_empty() => Ok(()),
        None => Err(Error::InUse { what, by: users.names() }),
        Some(Refusal::InUse(_)) if allow_in_use => Ok(()),
        Some(Refusal::InUse(by)) => Err(Error::InUse { what, by: by.clone() }),
        // It has an origin but not its managed name, and goes on from there.
        Some(Refusal::Managed(_)) if candidate.managed.is_some() => Ok(()),
        Some(Refusal::Managed(why)) => Err(Error::AlreadyExists { what: format!("{what}: {why}") }),
        Some(Refusal::Kind(why)) => Err(Error::WrongState { what: format!("{what} cannot be managed: {why}") }),
    }
}

/// The name without VG, directory or pool.
fn last_part(locator: &Locator) -> String {
    match locator {
        Locator::Lvm(volume) => volume.lv.to_string(),
        Locator::File(file) => file.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Locator::Rbd(image) => image.snapshot.as_ref().map_or_else(|| image.name.to_string(), ToString::to_string),
        Locator::Iscsi(unit) => unit.ways[0].iqn.to_string(),
    }
}

/// The way back of a manage that was cut short.
pub(super) fn undo_of(adoption: &Adoption) -> Release {
    Release {
        id: adoption.id,
        from: adoption.to.clone(),
        to: adoption.from.clone(),
        identity: adoption.identity.clone(),
    }
}

/// What a manage changes in the records: where volumes are managed, which one has the name, and the new locator of what
/// stands on the volume.
pub(super) fn managed(adoption: &Adoption, users: Standing) -> Result<Change> {
    let Adoption { id, to, identity, .. } = adoption;
    let managed = Managed { id: *id, at: to.clone(), identity: identity.clone() };
    Ok(Change::All(vec![Change::Place(to.scope()?.to_string()), Change::Managed(Box::new(managed)), users.moved(to)]))
}

/// What an unmanage changes in the records: the name is nobody's, and the locator of what stands on the volume is new.
pub(super) fn released(release: &Release, users: Standing) -> Change {
    Change::All(vec![Change::Released(release.id, release.from.backend()), users.moved(&release.to)])
}
