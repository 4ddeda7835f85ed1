//! The ways back: the undo of a rescue that did not come to its end, and unrescue, which goes forward until it is done.
//!
//! A definition is replaced only if it is the one that we made; what somebody else made of it stays.

use super::{
    Place, Plan, RescueRecord, RescueState, Rest, UnrescueReply, UnrescueRequest, instance_key,
    sources::{rebind, with_names_of_today},
    until, uuid_name,
};
use crate::{
    agent::Agent,
    journal::Change,
    operation::{
        Operation, OutcomeState,
        attach::{UNDO_TIMEOUT, left_over},
    },
};
use driver::{Error, Result};
use hypervisor::{InstanceName, Power};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// How long an instance may take to start or to end, where nobody says; on a busy host QEMU takes its time.
const POWER: Duration = Duration::from_secs(120);

/// How an undo came out.
#[derive(Debug)]
pub(crate) struct Back {
    /// What the caller should know, in words.
    notes: Vec<String>,
    change: Change,
}

/// How an unrescue came out.
enum End {
    /// The original is there. What the caller should know, if it is not all well.
    Done(Option<String>),
    /// Somebody changed the definition at the last moment: his stays, and so does the rescue.
    Kept,
}

impl Back {
    /// The error that led to the undo, with what became of that; and what changes in the records.
    pub(super) fn tell(self, error: Error) -> (Error, Change) {
        let notes = self.notes.join("; ");
        let error = match error {
            _ if notes.is_empty() => error,
            Error::WrongState { what } => Error::WrongState { what: format!("{what}; {notes}") },
            Error::Unreachable { what, why } => Error::Unreachable { what, why: format!("{why}; {notes}") },
            other => {
                tracing::warn!("after a rescue that failed: {notes}");
                other
            }
        };
        (error, self.change)
    }

    /// As the outcome of an undo after a crash.
    pub(crate) fn outcome(self) -> (Option<Error>, Change) {
        let error = (!self.notes.is_empty()).then(|| Error::WrongState { what: self.notes.join("; ") });
        (error, self.change)
    }
}

impl Agent {
    /// Puts back what a rescue changed, however far it came, and takes away what it brought.
    pub(crate) async fn undo_rescue(self: &Arc<Self>, instance: Uuid) -> Result<Back> {
        let Some(mut record) = self.journal.rescue(instance).await? else {
            return Ok(Back { notes: Vec::new(), change: Change::None });
        };
        let (name, mut notes) = (record.name.clone(), Vec::new());
        let soon = || Instant::now() + POWER;
        let defined = self.defined(instance).await?;
        let is_ours = defined.as_deref().is_some_and(|defined| record.made(defined));
        if is_ours && record.defined.is_some() && record.defined != defined {
            record.state = RescueState::Rescued;
            notes.push(format!(
                "somebody changed the definition of {name} meanwhile, so it stays rescued, as it is now; `mortar unrescue \
                 --discard-changes {instance}` puts the original back"
            ));
            return Ok(Back { notes, change: Change::PutRescue(Box::new(record)) });
        }
        if self.running(instance).await?.is_some_and(|running| record.made(&running)) {
            self.hypervisor.stop(instance, Instant::now(), soon()).await?;
        }
        match &defined {
            None => notes.push(format!("{name} is not defined any more; somebody undefined it")),
            Some(_) if is_ours => {
                self.hypervisor.define(record.original()?).await?;
                notes.push(format!("the original of {name} is back"));
            }
            Some(defined) if *defined == record.original => {}
            Some(_) => {
                notes.push(format!("{name} is left with the definition that somebody else gave it meanwhile"));
            }
        }
        if defined.is_some() {
            notes.extend(self.start_again(&record, soon()).await?);
        }
        self.clear_away(&record).await?;
        Ok(Back { notes, change: Change::RemoveRescue(instance) })
    }

    /// Puts the original back, or finds that it is there.
    pub(crate) async fn unrescue(self: Arc<Self>, request: UnrescueRequest) -> Result<UnrescueReply> {
        let (uuid, name) = self.rescued_by_name(&request.instance).await?;
        let held = self.locks.take(&format!("unrescue of {name}"), [instance_key(uuid)])?;
        let Some(mut record) = self.journal.rescue(uuid).await? else {
            let instance = Some(self.instance_now(&uuid_name(uuid)?).await?);
            return Ok(UnrescueReply { instance, changed: false, rebound: Vec::new(), operation: None });
        };
        let over = self.defined(uuid).await?;
        let is_as_made = over.is_some() && (over == record.defined || over.as_deref() == Some(&record.original));
        if !is_as_made && !request.discard_changes {
            let what = match over {
                Some(_) => format!(
                    "somebody changed the definition of {name} since it was rescued; take what you need of it (`virsh \
                     dumpxml --inactive {name}`), then unrescue it with --discard-changes"
                ),
                None => format!(
                    "{name} was undefined while it was rescued; unrescue it with --discard-changes to take away what its \
                     rescue brought"
                ),
            };
            return Err(Error::WrongState { what });
        }
        if over.is_some() && self.hypervisor.instance(&uuid_name(uuid)?).await?.managed_save {
            return Err(Error::WrongState {
                what: format!(
                    "the memory of {name} was saved while it was rescued, and would be gone; start it, or drop what was \
                     saved (`virsh managedsave-remove`), first"
                ),
            });
        }
        let rebound = match over {
            Some(_) => rebind(self.host.as_ref(), &self.config.agent.device_directory, &record.sources)?,
            None => Vec::new(),
        };
        let to = with_names_of_today(record.original()?, &rebound)?;
        record.state = RescueState::Unrescuing { to, over };
        let plan = Plan::Unrescue { instance: uuid, name: name.clone(), locator: record.disk.locator().clone() };
        let change = Change::PutRescue(Box::new(record.clone()));
        let work = self.begin_with(plan, change, held, request.deadline).await?;
        let end = match self.effects(&work, Box::pin(self.restore(&record, request.grace, request.deadline))).await {
            Ok(end) => end,
            Err(error @ Error::Cancelled { .. }) => {
                return self.failed(work, error, rescued_still(record)).await;
            }
            Err(error) if work.goes_on(&error) => return self.left_waiting(work, error),
            Err(error) => {
                let again = Error::Host { doing: "unrescue".into(), source: error.chain().into() };
                self.keep_trying(work, Rest::Recover, again);
                return Err(error);
            }
        };
        let (error, change) = end.outcome(record);
        match error {
            Some(error) => self.failed(work, error, change).await,
            None => {
                let operation = self.succeeded(work, change).await?;
                let instance = self.instance_left(&uuid_name(uuid)?).await?;
                let rebound = rebound.iter().map(|disk| disk.sentence()).collect();
                Ok(UnrescueReply { instance, changed: true, rebound, operation: Some(operation) })
            }
        }
    }

    /// Finishes an unrescue after a crash.
    pub(crate) async fn recover_unrescue(self: &Arc<Self>, operation: &Operation, instance: Uuid) -> Result<()> {
        let Some(record) = self.journal.rescue(instance).await? else {
            return self.conclude(operation, self.outcome(OutcomeState::Succeeded, None), Change::None).await;
        };
        let grace = self.config.rescue.grace();
        let end = Box::pin(self.restore(&record, grace, Instant::now() + grace + POWER)).await?;
        let (error, change) = end.outcome(record);
        let state = if error.is_some() { OutcomeState::Failed } else { OutcomeState::Succeeded };
        self.conclude(operation, self.outcome(state, error.as_ref()), change).await
    }

    /// All effects of an unrescue but the commit of its end, from whichever is still to be done.
    async fn restore(self: &Arc<Self>, record: &RescueRecord, grace: Duration, deadline: Instant) -> Result<End> {
        let RescueState::Unrescuing { to, over } = &record.state else { return Ok(End::Kept) };
        let instance = record.instance;
        let defined = self.defined(instance).await?;
        let is_expected = |defined: &Option<String>| defined == over || defined.as_ref() == Some(to);
        if !is_expected(&defined) {
            return Ok(End::Kept);
        }
        let mut note = None;
        if defined.is_some() {
            let is_restored = defined.as_ref() == Some(to);
            if self.running(instance).await?.is_some_and(|running| !is_restored || record.made(&running)) {
                self.hypervisor.stop(instance, until(grace, deadline), deadline).await?;
            }
            let defined = self.defined(instance).await?;
            if !is_expected(&defined) {
                return Ok(End::Kept);
            }
            if defined.as_ref() != Some(to) {
                self.hypervisor.define(to).await?;
            }
            note = self.start_again(record, deadline.max(Instant::now() + POWER / 4)).await?;
        }
        self.clear_away(record).await?;
        Ok(End::Done(note))
    }

    /// Lets it run if it did before. What QEMU has against it, in words.
    async fn start_again(&self, record: &RescueRecord, deadline: Instant) -> Result<Option<String>> {
        if record.power != Power::Running || self.running(record.instance).await?.is_some() {
            return Ok(None);
        }
        match self.hypervisor.start(record.instance, deadline).await {
            Ok(()) => Ok(None),
            Err(Error::WrongState { what }) => Ok(Some(format!("{} does not start again: {what}", record.name))),
            Err(error) => Err(error),
        }
    }

    /// Seed, attachment, copy of the image: in the reverse order in which they came.
    async fn clear_away(self: &Arc<Self>, record: &RescueRecord) -> Result<()> {
        if let Some(path) = &record.seed {
            self.host.remove(path).await.map_err(Error::host(format!("remove the seed {}", path.display())))?;
        }
        if let Place::Attached(id) = &record.place {
            let detached = Box::pin(self.detach_by_id(id.clone(), Instant::now() + UNDO_TIMEOUT)).await?;
            if let Some(left) = detached.residuals.first() {
                return Err(left_over(left));
            }
        }
        if let Some(derivation) = &record.derivation {
            let driver = self.drivers.get(derivation.to.backend())?;
            driver.discard(derivation, Instant::now() + UNDO_TIMEOUT).await?;
        }
        Ok(())
    }

    /// An instance, or a rescue whose instance is gone.
    pub(crate) async fn rescued_by_name(&self, name: &InstanceName) -> Result<(Uuid, String)> {
        let absent = match self.hypervisor.instance(name).await {
            Ok(instance) => return Ok((instance.uuid, instance.name)),
            Err(absent @ Error::NotFound { .. }) => absent,
            Err(error) => return Err(error),
        };
        let mut rescues = self.journal.rescues().await?.into_iter();
        let found = rescues.find(|record| Some(record.instance) == name.uuid() || record.name == name.as_str());
        found.map(|record| (record.instance, record.name)).ok_or(absent)
    }

    /// How an instance is defined; `None` if there is none.
    async fn defined(&self, instance: Uuid) -> Result<Option<String>> {
        there(self.hypervisor.definition(instance).await)
    }

    /// How it runs; `None` if it does not.
    async fn running(&self, instance: Uuid) -> Result<Option<String>> {
        Ok(there(self.hypervisor.running_definition(instance).await)?.flatten())
    }
}

impl End {
    fn outcome(self, record: RescueRecord) -> (Option<Error>, Change) {
        let name = &record.name;
        match self {
            Self::Done(note) => {
                let error =
                    note.map(|note| Error::WrongState { what: format!("the original of {name} is back, but {note}") });
                (error, Change::RemoveRescue(record.instance))
            }
            Self::Kept => {
                let what =
                    format!("somebody changed the definition of {name} at this moment, and it is left as it is now");
                (Some(Error::WrongState { what }), rescued_still(record))
            }
        }
    }
}

fn rescued_still(mut record: RescueRecord) -> Change {
    record.state = RescueState::Rescued;
    Change::PutRescue(Box::new(record))
}

fn there<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
