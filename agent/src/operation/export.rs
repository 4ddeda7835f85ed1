//! Export and unexport: an LV of this host, activated and served to one initiator; and what an export looks like from
//! outside.
//!
//! ```text
//!   export:    lock ── look ── plan ── activate (driver) ── serve (exporter) ── record ── reply, with the password
//!   unexport:  lock ── look who is logged in ── plan ── withdraw ── deactivate ── record gone
//! ```
//!
//! After a crash an export whose record is there is served again, any other is undone: nobody was told its password. After a
//! reboot every export comes back in the background, from its record and the host's key.

use super::{
    Operation, OperationId, OutcomeState, Plan, Rest,
    attach::{UNDO_TIMEOUT, left_over},
    identity_key, look_until,
    manage::attached_as,
    not_ended,
    recover::FIRST_PAUSE,
};
use crate::{
    agent::Agent,
    connector,
    journal::{Change, ExportRecord},
};
use driver::{
    Attached, Attempt, Backend, Chap, Device, Driver, Error, Footprint, Identity, Iqn, Locator, Portal, Residual,
    ResidualKind, Result, Spec,
};
use export::{Export, ExportId, Serial, target_name};
use std::{net::IpAddr, sync::Arc};
use tokio::time::Instant;
use uuid::Uuid;

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct ExportRequest {
    /// `None`: the export that the volume has, or a new id.
    pub(crate) id: Option<ExportId>,
    pub(crate) locator: Locator,
    pub(crate) initiator: Iqn,
    /// Empty: those of the export that is there, or every address of this host.
    pub(crate) portals: Vec<Portal>,
    pub(crate) read_only: bool,
    /// Only what has a record: what was unexported meanwhile is not served again.
    pub(crate) again: bool,
    pub(crate) deadline: Instant,
}

/// What a caller of export gets.
pub(crate) struct ExportReply {
    pub(crate) export: Exported,
    pub(crate) chap: Chap,
    pub(crate) changed: bool,
    pub(crate) operation: Option<OperationId>,
}

/// An export as it is now.
#[derive(Debug)]
pub(crate) struct Exported {
    pub(crate) record: ExportRecord,
    /// Why it is not served; `None` if it is.
    pub(crate) problem: Option<String>,
    /// Who is logged in.
    pub(crate) sessions: Vec<String>,
}

/// Which export is to be taken away.
#[derive(Debug)]
pub(crate) enum ExportTarget {
    Id(ExportId),
    Locator(Locator),
}

/// What an unexport did.
#[derive(Debug, Default)]
pub(crate) struct UnexportReply {
    pub(crate) id: Option<ExportId>,
    pub(crate) changed: bool,
    pub(crate) residuals: Vec<Residual>,
    pub(crate) operation: Option<OperationId>,
}

pub(crate) fn export_key(id: &ExportId) -> String {
    format!("export {id}")
}

impl Agent {
    /// Serves a volume to one initiator, or finds that it is served.
    pub(crate) async fn export(self: Arc<Self>, request: ExportRequest) -> Result<ExportReply> {
        let locator = &request.locator;
        if !matches!(locator, Locator::Lvm(_)) {
            return Err(Error::Unsupported {
                what: format!(
                    "{locator} cannot be exported, only logical volumes can: others can be attached elsewhere"
                ),
            });
        }
        let driver = self.drivers.ready(Backend::Lvm).await?;
        if let Some(problem) = self.exporter.readiness().problem {
            return Err(Error::Unsupported { what: format!("nothing can be exported from this host: {problem}") });
        }
        let mut held = self.locks.take(&format!("export of {locator}"), locator.keys())?;
        let siblings = self.journal.exports_of(&locator.key()).await?;
        let id = match &request.id {
            Some(id) => id.clone(),
            None => siblings.first().map_or_else(ExportId::make_up, |record| record.export.id.clone()),
        };
        held.extend(export_key(&id))?;
        let before = self.journal.export(&id).await?;
        let this_boot = self.boot_id.clone();
        // In the boot in which it was noted, a footprint tells what was here before us, and an LV of ours is none of that.
        let (export, noted) = match before {
            Some(record) => {
                is_what_is_asked(&record, &request)?;
                if let Some(left) = record.residuals.first() {
                    return Err(Error::WrongState {
                        what: format!(
                            "an unexport of {id} left {} ({}); unexport it again first",
                            left.name, left.reason
                        ),
                    });
                }
                if record.boot_id == this_boot && self.exporter.state(&record.export)? == export::State::Served {
                    let chap = self.exporter.chap(&record.export).await?;
                    let export = self.look_at_export(record);
                    return Ok(ExportReply { export, chap, changed: false, operation: None });
                }
                (Some(record.export), Some((record.attached, record.boot_id)))
            }
            None if request.again => return Err(Error::NotFound { what: export_key(&id) }),
            None => (None, None),
        };
        if let Some(other) = siblings.iter().find(|record| record.export.id != id) {
            return Err(Error::InUse { what: locator.to_string(), by: vec![exported_as(other)] });
        }
        let attachments = self.journal.attachments_of(&locator.key()).await?;
        if !attachments.is_empty() {
            let by = attachments.iter().map(|record| format!("attached as {}", record.id)).collect();
            return Err(Error::InUse { what: locator.to_string(), by });
        }
        let spec = Spec {
            locator: locator.clone(),
            read_only: request.read_only,
            exclusive: false,
            expected_wwn: None,
            expected_size: None,
        };
        let attached = match noted {
            Some((attached, boot_id)) if boot_id == this_boot => attached,
            other => {
                let footprint = look_until(request.deadline, locator, driver.prepare(&spec)).await?;
                Attached { footprint, spec, identity: other.and_then(|(noted, _)| noted.identity) }
            }
        };
        if let Footprint::Lvm { identity, .. } = &attached.footprint {
            held.extend(identity_key(identity))?;
            let managed = self.journal.managed_at(&attached.spec.locator).await?;
            self.still_managed(driver.as_ref(), &attached.spec.locator, identity, managed).await?;
            self.refuse_renamed(&attached.spec.locator, identity, &id).await?;
        }
        self.refuse_users(driver.as_ref(), &attached, &id).await?;
        let export = match export {
            Some(export) => export,
            None => self.new_export(id, &request, &attached.footprint)?,
        };
        let plan = Plan::Export { export: export.clone(), attached: attached.clone() };
        let work = self.begin(plan, held, request.deadline).await?;
        let brought = async {
            let record = self.bring(driver.as_ref(), &export, attached, request.deadline).await?;
            Ok((record, self.exporter.chap(&export).await?))
        };
        match self.effects(&work, brought).await {
            Ok((record, chap)) => {
                let operation = self.succeeded(work, Change::PutExports(vec![record.clone()])).await?;
                let export = self.look_at_export(record);
                Ok(ExportReply { export, chap, changed: true, operation: Some(operation) })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => match self.undo_export(&work.operation).await {
                Ok(()) => self.failed(work, error, Change::None).await,
                Err(undo) => {
                    self.keep_trying(work, Rest::Recover, undo);
                    Err(error)
                }
            },
        }
    }

    /// Two hosts must not write to one volume. Our own target counts as nobody.
    async fn refuse_users(&self, driver: &dyn Driver, attached: &Attached, id: &ExportId) -> Result<()> {
        let Some(device) = driver.find(attached).await? else { return Ok(()) };
        let doing = format!("look who uses {}", device.path.display());
        let users = self.host.users(&device.path).await.map_err(Error::host(doing))?;
        let ours = format!("/mortar-{id}");
        let others = users.iter().filter(|user| match user {
            host::User::Export { by: "LIO", name } => !name.ends_with(&ours),
            _ => true,
        });
        let by: Vec<String> = others.map(ToString::to_string).collect();
        match by.is_empty() {
            true => Ok(()),
            false => Err(Error::InUse { what: attached.spec.locator.to_string(), by }),
        }
    }

    fn new_export(&self, id: ExportId, request: &ExportRequest, footprint: &Footprint) -> Result<Export> {
        let Footprint::Lvm { identity, .. } = footprint else {
            return Err(Error::invalid("locator", "it is no logical volume"));
        };
        let facts = self.host.facts().map_err(Error::host("ask this host's addresses"))?;
        let own = |address: &IpAddr| address.is_loopback() || facts.addresses.contains(address);
        if let Some(foreign) = request.portals.iter().find(|portal| !own(&portal.address)) {
            let addresses: Vec<String> = facts.addresses.iter().map(ToString::to_string).collect();
            return Err(Error::invalid(
                "portals",
                format!("{} is no address of this host; it has {}", foreign.address, addresses.join(", ")),
            ));
        }
        let portals = match request.portals.as_slice() {
            [] => {
                facts.addresses.iter().map(|address| Portal { address: *address, port: Portal::DEFAULT_PORT }).collect()
            }
            chosen => chosen.to_vec(),
        };
        if portals.is_empty() {
            return Err(Error::WrongState {
                what: "this host has no address that others could reach; name one with a portal".into(),
            });
        }
        Ok(Export {
            target: target_name(connector::initiator_name(self.host.as_ref())?.as_ref(), &facts.name, &id)?,
            id,
            initiator: request.initiator.clone(),
            portals,
            read_only: request.read_only,
            serial: Serial::of(identity),
            generation: Uuid::now_v7(),
        })
    }

    /// Activates and serves. What it returns is not yet in the journal.
    async fn bring(
        &self,
        driver: &dyn Driver,
        export: &Export,
        mut attached: Attached,
        deadline: Instant,
    ) -> Result<ExportRecord> {
        let device = driver.attach(&attached.spec, &attached.footprint, &Attempt::until(deadline)).await?;
        if let Some(before) = attached.identity.as_ref().filter(|before| !device.identity.is_still(before)) {
            // The id stands for the volume that it was first exported for, not for what took its place.
            return Err(Error::Mismatch {
                what: format!("the volume at {}", attached.spec.locator),
                expected: before.to_string(),
                found: device.identity.to_string(),
            });
        }
        attached.identity = Some(device.identity.clone());
        self.exporter.serve(export, &device.path).await?;
        let before = self.journal.export(&export.id).await?;
        let created_ms = before.map_or_else(|| self.now_ms(), |record| record.created_ms);
        Ok(ExportRecord {
            export: export.clone(),
            attached,
            size_bytes: device.size_bytes,
            boot_id: self.boot_id.clone(),
            created_ms,
            residuals: Vec::new(),
        })
    }

    /// Takes away what an export brought, however far it came. One that was there in this boot already is left as it is.
    pub(super) async fn undo_export(&self, operation: &Operation) -> Result<()> {
        let Plan::Export { export, attached } = &operation.plan else { return Ok(()) };
        let boot_id = self.boot_id.clone();
        if self.journal.export(&export.id).await?.is_some_and(|record| record.boot_id == boot_id) {
            return Ok(());
        }
        self.exporter.withdraw(export).await?;
        match self.deactivate(attached, &operation.boot_id, Instant::now() + UNDO_TIMEOUT).await?.first() {
            None => Ok(()),
            Some(left) => Err(left_over(left)),
        }
    }

    /// Recovers an export after a crash. One that has a record goes forward, because its initiator may be back already, or
    /// is left to the start if there was a reboot; any other is undone. The records that change, if it went forward.
    pub(super) async fn recover_export(&self, operation: &Operation) -> Result<Option<Change>> {
        let Plan::Export { export, attached } = &operation.plan else { return Ok(None) };
        if operation.boot_id == self.boot_id && self.journal.export(&export.id).await?.is_some() {
            let driver = self.drivers.get(Backend::Lvm)?;
            match self.bring(driver.as_ref(), export, attached.clone(), Instant::now() + UNDO_TIMEOUT).await {
                Ok(record) => return Ok(Some(Change::PutExports(vec![record]))),
                Err(error) => tracing::warn!(export = %export.id, "cannot serve it again: {}", error.chain()),
            }
        }
        self.undo_export(operation).await?;
        Ok(None)
    }

    /// Leaves the LV as it was before the export. What could not be is told.
    async fn deactivate(&self, attached: &Attached, boot_id: &str, deadline: Instant) -> Result<Vec<Residual>> {
        let Some(attached) = self.in_this_boot(attached, boot_id).await? else { return Ok(Vec::new()) };
        let driver = self.drivers.get(attached.spec.locator.backend())?;
        match driver.detach(&attached, deadline).await {
            Ok(detached) => Ok(detached.residuals),
            Err(error @ (Error::InUse { .. } | Error::Flush { .. })) => Ok(vec![Residual {
                kind: ResidualKind::Activation,
                name: attached.spec.locator.to_string(),
                reason: error.chain(),
            }]),
            Err(error) => Err(error),
        }
    }

    /// Takes an export away. What is not exported is gone already.
    pub(crate) async fn unexport(self: Arc<Self>, target: ExportTarget, deadline: Instant) -> Result<UnexportReply> {
        let id = match target {
            ExportTarget::Id(id) => id,
            ExportTarget::Locator(locator) => {
                // An export of it may be under way: then nobody can say yet that it is gone.
                drop(self.locks.take(&format!("unexport of {locator}"), locator.keys())?);
                match self.journal.exports_of(&locator.key()).await?.pop() {
                    Some(record) => record.export.id,
                    None => return Ok(UnexportReply::default()),
                }
            }
        };
        let mut held = self.locks.take(&format!("unexport of {id}"), [export_key(&id)])?;
        let Some(record) = self.journal.export(&id).await? else {
            return Ok(UnexportReply { id: Some(id), ..UnexportReply::default() });
        };
        for key in record.attached.spec.locator.keys() {
            held.extend(key)?;
        }
        // Read once more under all locks: a manage may have given it another locator meanwhile.
        let Some(record) = self.journal.export(&id).await?.filter(|now| now.attached == record.attached) else {
            let holder = "an operation that just ended".into();
            return Err(Error::Busy { what: export_key(&id), holder, age: std::time::Duration::ZERO });
        };
        let by: Vec<String> = self.exporter.sessions(&record.export)?.iter().map(ToString::to_string).collect();
        if !by.is_empty() {
            return Err(Error::InUse { what: format!("export {id}"), by });
        }
        let plan = Plan::Unexport { id: id.clone(), locator: record.attached.spec.locator.clone() };
        let work = self.begin(plan, held, deadline).await?;
        match self.effects(&work, self.withdraw(&record, deadline)).await {
            Ok(residuals) => {
                let operation = work.operation.id;
                self.unexported(&work.operation, record, &residuals).await.map_err(|error| {
                    let told = not_ended(&error);
                    self.keep_trying(work, Rest::Recover, error);
                    told
                })?;
                Ok(UnexportReply { id: Some(id), changed: true, residuals, operation: Some(operation) })
            }
            // Somebody came in at the last moment: it is served as before.
            Err(error @ (Error::InUse { .. } | Error::Cancelled { .. })) => {
                self.failed(work, error, Change::None).await
            }
            Err(error) => {
                let again = Error::Host { doing: "unexport".into(), source: error.chain().into() };
                self.keep_trying(work, Rest::Recover, again);
                Err(error)
            }
        }
    }

    /// The target first, then the LV's activation; returns what is left of that.
    async fn withdraw(&self, record: &ExportRecord, deadline: Instant) -> Result<Vec<Residual>> {
        self.exporter.withdraw(&record.export).await?;
        self.deactivate(&record.attached, &record.boot_id, deadline).await
    }

    /// Ends an unexport: the record goes, or stays with what could not be removed.
    async fn unexported(&self, operation: &Operation, mut record: ExportRecord, left: &[Residual]) -> Result<()> {
        let Some(first) = left.first() else {
            let outcome = self.outcome(OutcomeState::Succeeded, None);
            return self.conclude(operation, outcome, Change::RemoveExport(record.export.id)).await;
        };
        record.residuals = left.to_vec();
        let outcome = self.outcome(OutcomeState::Failed, Some(&left_over(first)));
        self.conclude(operation, outcome, Change::PutExports(vec![record])).await
    }

    /// Recovers an unexport after a crash: forward, unless the initiator is logged in by now; it keeps what it has.
    pub(super) async fn recover_unexport(&self, operation: &Operation, id: &ExportId) -> Result<()> {
        let Some(record) = self.journal.export(id).await? else {
            return self.conclude(operation, self.outcome(OutcomeState::Succeeded, None), Change::None).await;
        };
        match self.withdraw(&record, Instant::now() + UNDO_TIMEOUT).await {
            Ok(left) => self.unexported(operation, record, &left).await,
            Err(in_use @ Error::InUse { .. }) => {
                if let Some(device) = self.exported_device(&record).await? {
                    self.exporter.serve(&record.export, &device.path).await?;
                }
                let outcome = self.outcome(OutcomeState::Undone, Some(&in_use));
                self.conclude(operation, outcome, Change::None).await
            }
            Err(error) => Err(error),
        }
    }

    async fn exported_device(&self, record: &ExportRecord) -> Result<Option<Device>> {
        self.drivers.get(record.attached.spec.locator.backend())?.find(&record.attached).await
    }

    /// An export as the kernel shows it.
    pub(crate) fn look_at_export(&self, record: ExportRecord) -> Exported {
        let state = self.exporter.state(&record.export);
        let problem = match state {
            _ if !record.residuals.is_empty() => {
                let left: Vec<String> =
                    record.residuals.iter().map(|left| format!("{}: {}", left.name, left.reason)).collect();
                Some(format!("an unexport left {}", left.join("; ")))
            }
            _ if self.boot_id != record.boot_id => Some("not served again since the reboot".to_owned()),
            Ok(export::State::Served) => None,
            Ok(export::State::Absent) => Some("its target is not there".to_owned()),
            Ok(export::State::Broken) => Some("a part of its target is not there; export it again".to_owned()),
            Err(error) => Some(error.chain()),
        };
        let sessions = self.exporter.sessions(&record.export).unwrap_or_default();
        Exported { record, problem, sessions: sessions.iter().map(ToString::to_string).collect() }
    }

    /// As [`refuse_exported`], of what is another name's by now, or served by somebody at the shell: an LV is told by its
    /// UUIDs.
    pub(super) async fn refuse_served(&self, driver: &dyn Driver, attached: &Attached) -> Result<()> {
        let Footprint::Lvm { identity, was_active, .. } = &attached.footprint else { return Ok(()) };
        let exports = self.journal.exports().await?;
        let mut by: Vec<String> =
            exports.iter().filter(|record| is_of(&record.attached, identity)).map(exported_as).collect();
        if let (true, true, Some(device)) = (by.is_empty(), *was_active, driver.find(attached).await?) {
            let doing = format!("look who uses {}", device.path.display());
            let users = self.host.users(&device.path).await.map_err(Error::host(doing))?;
            let exports = users.iter().filter(|user| matches!(user, host::User::Export { .. }));
            by.extend(exports.map(ToString::to_string));
        }
        match by.is_empty() {
            true => Ok(()),
            false => Err(Error::InUse { what: attached.spec.locator.to_string(), by }),
        }
    }

    /// Refuses an LV that is attached or exported under a name that it had before.
    async fn refuse_renamed(&self, locator: &Locator, identity: &Identity, id: &ExportId) -> Result<()> {
        let (exports, attachments) = (self.journal.exports().await?, self.journal.attachments().await?);
        let exports = exports.iter().filter(|record| record.export.id != *id && is_of(&record.attached, identity));
        let attachments = attachments.iter().filter(|record| is_of(&record.attached, identity));
        let by: Vec<String> = exports.map(exported_as).chain(attachments.map(attached_as)).collect();
        match by.is_empty() {
            true => Ok(()),
            false => Err(Error::InUse { what: locator.to_string(), by }),
        }
    }

    /// Serves again what a reboot, or somebody at the shell, took away: in the background, until it is there or unexported.
    pub(super) async fn settle_exports(self: &Arc<Self>, boot_id: &str) -> Result<()> {
        for record in self.journal.exports().await? {
            let here = record.boot_id == boot_id;
            if !record.residuals.is_empty() {
                if !here {
                    // What was left was the LV's activation.
                    self.journal.change(Change::RemoveExport(record.export.id)).await?;
                }
                continue;
            }
            if here && matches!(self.exporter.state(&record.export), Ok(export::State::Served)) {
                continue;
            }
            let (agent, id) = (Arc::clone(self), record.export.id.clone());
            tokio::spawn(async move {
                let mut pause = FIRST_PAUSE;
                while !agent.serve_again(&id).await && !agent.stops_within(&mut pause).await {}
            });
        }
        Ok(())
    }

    /// One attempt; `true` if there is nothing left to do.
    async fn serve_again(self: &Arc<Self>, id: &ExportId) -> bool {
        let record = match self.journal.export(id).await {
            Ok(Some(record)) => record,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let request = ExportRequest {
            id: Some(id.clone()),
            locator: record.attached.spec.locator.clone(),
            initiator: record.export.initiator.clone(),
            portals: Vec::new(),
            read_only: record.export.read_only,
            again: true,
            deadline: Instant::now() + self.config.limits.operation_timeout(),
        };
        match self.in_own_task(Arc::clone(self).export(request)).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(export = %id, "not served again yet: {}", error.chain());
                false
            }
        }
    }
}

/// The same call once more, or another under the same id.
fn is_what_is_asked(record: &ExportRecord, request: &ExportRequest) -> Result<()> {
    let (export, locator) = (&record.export, &record.attached.spec.locator);
    if request.id.is_none() && export.initiator != request.initiator {
        return Err(Error::InUse { what: locator.to_string(), by: vec![exported_as(record)] });
    }
    let same = *locator == request.locator
        && export.initiator == request.initiator
        && export.read_only == request.read_only
        && (request.portals.is_empty() || export.portals == request.portals);
    if same {
        return Ok(());
    }
    let portals: Vec<String> = export.portals.iter().map(ToString::to_string).collect();
    let mode = if export.read_only { ", read-only" } else { "" };
    Err(Error::AlreadyExists {
        what: format!(
            "export {} is {locator} for {} at {}{mode}; unexport it first, or choose another id",
            export.id,
            export.initiator,
            portals.join(", ")
        ),
    })
}

/// Refuses what another host may be writing to.
pub(super) fn refuse_exported(locator: &Locator, exports: &[ExportRecord]) -> Result<()> {
    match exports.is_empty() {
        true => Ok(()),
        false => Err(Error::InUse { what: locator.to_string(), by: exports.iter().map(exported_as).collect() }),
    }
}

/// Whether this is an LV's, whatever its name.
fn is_of(attached: &Attached, lv: &Identity) -> bool {
    matches!(&attached.footprint, Footprint::Lvm { identity, .. } if identity == lv)
}

pub(super) fn exported_as(record: &ExportRecord) -> String {
    format!("exported as {} to {}", record.export.id, record.export.initiator)
}
