//! The records of the journal, held against the devices that they stand for. Each device is asked, side by side, each with
//! a deadline of its own: one that is dead holds up no other.

use super::{Judged, Known, PATIENCE, Whose};
use crate::{
    agent::Agent,
    journal::{ExportRecord, Record},
};
use driver::{Error, Finding, Object, ObjectKind, Result};
use std::{path::PathBuf, sync::Arc};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

/// How many devices are asked at once.
const AT_ONCE: usize = 64;

/// A record after its device was asked.
pub(super) struct Examined {
    pub(super) id: String,
    pub(super) judged: Judged,
    /// Where the device is, if it proved itself.
    pub(super) device: Option<PathBuf>,
}

impl Agent {
    /// All records, judged; and the devices that do not answer.
    pub(super) async fn look_at_records(self: &Arc<Self>, known: &Known) -> (Vec<Examined>, Vec<Finding>) {
        let (mut asked, turns) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
        for record in &known.records {
            let (agent, record, turns) = (Arc::clone(self), record.clone(), Arc::clone(&turns));
            let at_work = known.at_work_on(record.id.as_str());
            asked.spawn(async move {
                let _turn = turns.acquire().await;
                agent.examine_attachment(record, at_work).await
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        let (mut examined, findings): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        for record in &known.export_records {
            examined.push(self.examine_export(record.clone(), known));
        }
        (examined, findings.into_iter().flatten().collect())
    }

    async fn examine_attachment(&self, record: Record, at_work: Option<String>) -> (Examined, Option<Finding>) {
        let id = record.id.to_string();
        let object =
            Object::of_ours(ObjectKind::Record, format!("attachment {id}"), record.attached.spec.locator.to_string());
        let (mut device, mut finding) = (None, None);
        let (whose, why) = if let Some(operation) = at_work {
            (Whose::Ours, operation)
        } else if let Some(left) = record.residuals.first() {
            (Whose::Stale, format!("a detach left {} ({}); detach {id} again", left.name, left.reason))
        } else if record.boot_id != self.boot_id {
            (Whose::Stale, "it is not back yet after the reboot, and goes on to be tried until it is detached".into())
        } else {
            match timeout(PATIENCE, self.prove(&record)).await {
                Ok(Ok(Some(path))) => {
                    device = Some(path);
                    (Whose::Ours, "its device is there, and proves to be the volume".into())
                }
                Ok(Ok(None)) => (Whose::Stale, format!("its device is not there; attach it again, or detach {id}")),
                Ok(Err(error @ Error::Mismatch { .. })) => (Whose::Stale, format!("{}; detach {id}", error.chain())),
                silent => {
                    let why = match silent {
                        Ok(Err(error)) => error.chain(),
                        _ => format!("its device has not answered for {} s", PATIENCE.as_secs()),
                    };
                    finding = Some(Finding::warning(
                        format!("attachment {id}"),
                        why.clone(),
                        "look at its target or cluster; it may come back by itself",
                    ));
                    (Whose::Ours, why)
                }
            }
        };
        (Examined { id, judged: Judged::new(object, whose, why), device }, finding)
    }

    async fn prove(&self, record: &Record) -> Result<Option<PathBuf>> {
        let driver = self.drivers.get(record.attached.spec.locator.backend())?;
        Ok(driver.prove(&record.attached).await?.map(|device| device.path))
    }

    fn examine_export(&self, record: ExportRecord, known: &Known) -> Examined {
        let id = record.export.id.to_string();
        let locator = record.attached.spec.locator.to_string();
        let object = Object::of_ours(ObjectKind::Record, format!("export {id}"), locator);
        let (whose, why) = match known.at_work_on(&id) {
            Some(operation) => (Whose::Ours, operation),
            None => match self.look_at_export(record).problem {
                None => (Whose::Ours, "it is served".into()),
                Some(problem) => (Whose::Stale, format!("{problem}; or unexport {id}")),
            },
        };
        // An export has no device: an attachment may have the same id.
        Examined { id: format!("export {id}"), judged: Judged::new(object, whose, why), device: None }
    }
}
