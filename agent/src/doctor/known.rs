//! What the journal knows: every attachment, export and rescue, and everything that an operation is at work on.

use crate::{
    agent::Agent,
    journal::{ExportRecord, Record},
    operation::{Operation, Plan, RescueRecord},
};
use driver::{Attached, AttachmentId, Derivation, Result};
use export::ExportId;
use uuid::Uuid;

/// What may stand on the host with a reason.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What the drivers are asked about, each with whose it is: `attachment a`.
    pub(super) attached: Vec<Attached>,
    owners: Vec<String>,
    /// Likewise for the exporter.
    pub(super) exports: Vec<ExportId>,
    export_owners: Vec<String>,
    pub(super) records: Vec<Record>,
    pub(super) export_records: Vec<ExportRecord>,
    pub(super) rescues: Vec<RescueRecord>,
    open: Vec<Operation>,
}

impl Known {
    /// Operations first: one that ends in between has its record in place by then, or what it did undone.
    pub(super) async fn read(agent: &Agent) -> Result<Self> {
        let mut known = Self { open: agent.journal.unfinished().await?, ..Self::default() };
        known.records = agent.journal.attachments().await?;
        known.export_records = agent.journal.exports().await?;
        known.rescues = agent.journal.rescues().await?;
        for record in known.records.clone() {
            known.hold(record.attached, format!("attachment {}", record.id));
        }
        for record in known.export_records.clone() {
            let owner = format!("export {}", record.export.id);
            known.hold(record.attached, owner.clone());
            known.hold_export(record.export.id, owner);
        }
        for operation in known.open.clone() {
            let owner = format!("the {} of {}, which is under way", operation.plan.verb(), operation.plan.subject());
            match operation.plan {
                Plan::Attach { attached, .. } | Plan::Detach { attached, .. } => known.hold(attached, owner),
                Plan::Export { export, attached } => {
                    known.hold(attached, owner.clone());
                    known.hold_export(export.id, owner);
                }
                Plan::Unexport { id, .. } => known.hold_export(id, owner),
                Plan::Extend { .. } | Plan::Manage { .. } | Plan::Unmanage { .. } => {}
                // Its record stands from its beginning to its end.
                Plan::Rescue { .. } | Plan::Unrescue { .. } | Plan::Power { .. } => {}
            }
        }
        Ok(known)
    }

    fn hold(&mut self, attached: Attached, owner: String) {
        self.attached.push(attached);
        self.owners.push(owner);
    }

    fn hold_export(&mut self, id: ExportId, owner: String) {
        self.exports.push(id);
        self.export_owners.push(owner);
    }

    /// Whose those of [`Known::attached`] are, in words.
    pub(super) fn owners(&self, holders: &[usize]) -> String {
        named(&self.owners, holders)
    }

    /// Whose those of [`Known::exports`] are, in words.
    pub(super) fn export_owners(&self, holders: &[usize]) -> String {
        named(&self.export_owners, holders)
    }

    /// The operation at work on an attachment, export or volume of this id, in words.
    pub(super) fn at_work_on(&self, subject: &str) -> Option<String> {
        let open = self.open.iter().find(|operation| operation.plan.subject() == subject)?;
        Some(format!("the {} of {subject} is under way", open.plan.verb()))
    }

    /// The rescue of an instance.
    pub(super) fn rescue_of(&self, instance: Uuid) -> Option<&RescueRecord> {
        self.rescues.iter().find(|record| record.instance == instance)
    }

    /// The rescue that a derived volume is of.
    pub(super) fn rescue_with(&self, disk: &Derivation) -> Option<&RescueRecord> {
        let is_of = |record: &&RescueRecord| record.derivation.as_ref().is_some_and(|made| made.to == disk.to);
        self.rescues.iter().find(is_of)
    }

    pub(super) fn has(&self, id: &AttachmentId) -> bool {
        self.records.iter().any(|record| record.id == *id)
    }
}

fn named(owners: &[String], holders: &[usize]) -> String {
    let mut named: Vec<&str> = holders.iter().filter_map(|holder| owners.get(*holder)).map(String::as_str).collect();
    named.sort_unstable();
    named.dedup();
    /// A target's session may have hundreds.
    const MOST: usize = 5;
    match named.len() {
        0..=MOST => named.join(", "),
        more => format!("{} and {} more", named[..MOST].join(", "), more - MOST),
    }
}
