//! Between the wire and the agent, field by field. What does not parse is refused here, before anything is started.

mod diagnosis;
mod instances;

pub(crate) use diagnosis::diagnosis;
pub(crate) use instances::{
    instance, instance_name, power_request, power_response, rescue_request, rescue_response, unrescue_request,
    unrescue_response,
};

use crate::{
    journal::{ExportRecord, Record},
    operation::{
        AttachRequest, Attachment, DetachReply, ExportReply, ExportRequest, ExportTarget, Exported, ManageRequest,
        Operation, OutcomeState, Plan, PowerVerb, State, Target, UnexportReply,
    },
    running::Waiting,
    status::next_step,
    unrecorded::Unrecorded,
    watch::Event,
};
use driver::{
    Access, AttachmentId, Attempt, Candidate, Chap, Device, DevicePath, Error, Identity, Locator, Portal, RawFile,
    Residual, ResidualKind, Result, Scope, Spec, Volume, VolumeKind, Wwn,
    connection_info::{self, Requested},
    keyring,
};
use export::ExportId;
use prost_types::Timestamp;
use proto::v1;
use secrecy::SecretString;
use std::time::Duration;
use tokio::time::Instant;

/// An optional text: empty is none.
fn given<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// How long a caller waits, and so how long its operation may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For an operation whose caller does not say.
    default: Duration,
    /// When the call's own deadline (`grpc-timeout`) comes.
    call: Option<Instant>,
}

impl Patience {
    /// So that an operation's own error, which says more, is there before the caller's deadline.
    const MARGIN: Duration = Duration::from_millis(250);
    /// For an undo, after the operation's deadline.
    const GRACE: Duration = Duration::from_secs(1);

    pub(crate) fn new(default: Duration, call: Option<Duration>) -> Self {
        Self { default, call: call.map(|call| Instant::now() + call) }
    }

    /// When an operation has to give up: as the request says, or the default; always before the call's deadline.
    pub(crate) fn deadline(self, asked_ms: u64) -> Result<Instant> {
        self.deadline_after(Duration::ZERO, asked_ms)
    }

    /// As [`Self::deadline`], with `grace` before the operation's own time.
    pub(crate) fn deadline_after(self, grace: Duration, asked_ms: u64) -> Result<Instant> {
        /// Longer waits are a mistake in the unit.
        const LONGEST: Duration = Duration::from_secs(24 * 3600);
        let asked = match asked_ms {
            0 => self.default,
            ms => Duration::from_millis(ms),
        };
        if asked > LONGEST {
            return Err(Error::invalid("timeout_ms", format!("{asked_ms} is more than a day; write milliseconds")));
        }
        let (now, asked) = (Instant::now(), asked + grace);
        let call = self.call.map(|call| {
            let left = call.saturating_duration_since(now);
            now + left.saturating_sub(Self::MARGIN).max(left / 2)
        });
        Ok(call.map_or(now + asked, |call| call.min(now + asked)))
    }

    /// When the caller is answered although its operation goes on. `None`: when it ends.
    pub(crate) fn answer_by(self, deadline: Option<Instant>) -> Option<Instant> {
        let call = self.call.map(|call| call.checked_sub(Self::MARGIN / 5).unwrap_or(call));
        let after = deadline.map(|deadline| deadline + Self::GRACE);
        match (call, after) {
            (Some(call), Some(after)) => Some(call.min(after)),
            (one, other) => one.or(other),
        }
    }
}

/// The `grpc-timeout` header: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
pub(crate) fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

pub(crate) fn attach_request(wire: v1::AttachRequest, patience: Patience) -> Result<AttachRequest> {
    let Requested { locator, read_only, expected_wwn, access } = match wire.volume {
        Some(v1::attach_request::Volume::Locator(text)) => {
            Requested { locator: text.parse()?, read_only: false, expected_wwn: None, access: Access::default() }
        }
        Some(v1::attach_request::Volume::ConnectionInfo(text)) => connection_info::read(&text.into())?,
        None => return Err(Error::invalid("volume", "say which: give a locator or a connection_info")),
    };
    let expected_size = (wire.expected_size_bytes != 0).then_some(wire.expected_size_bytes);
    let access = match wire.credentials.and_then(|credentials| credentials.kind) {
        None => access,
        Some(_) if access.chap.is_some() || access.cephx.is_some() => {
            return Err(Error::invalid("credentials", "the connection_info holds credentials already; give them once"));
        }
        Some(v1::credentials::Kind::Chap(chap)) => Access { chap: Some(chap_of(chap, &locator)?), cephx: None },
        Some(v1::credentials::Kind::Cephx(cephx)) => Access { cephx: Some(cephx_of(cephx, &locator)?), chap: None },
    };
    if wire.persistent && (access.chap.is_some() || access.cephx.is_some()) {
        return Err(Error::Unsupported {
            what:
                "a persistent attachment cannot use CHAP or a key of the call: it is kept nowhere, so the attachment \
                   could not come back after a reboot; attach without `persistent`, and again after a reboot"
                    .into(),
        });
    }
    if wire.exclusive && !matches!(locator, Locator::Rbd(_)) {
        return Err(Error::invalid("exclusive", "only an RBD image has an exclusive lock"));
    }
    let expected_wwn = match (given::<Wwn>(&wire.expected_wwn)?, expected_wwn) {
        (Some(asked), Some(told)) if asked != told => {
            return Err(Error::invalid("expected_wwn", format!("it is {asked}, and {told} in the connection_info")));
        }
        (asked, told) => asked.or(told),
    };
    let (read_only, exclusive) = (wire.read_only || read_only, wire.exclusive);
    if exclusive && read_only {
        let what = "the lock is for one who writes, and a read-only mapping takes none; leave out one of the two";
        return Err(Error::invalid("exclusive", what));
    }
    if exclusive && matches!(&locator, Locator::Rbd(image) if image.snapshot.is_some()) {
        return Err(Error::invalid(
            "exclusive",
            "a snapshot has no lock, because nobody writes to it; leave out exclusive",
        ));
    }
    Ok(AttachRequest {
        id: given(&wire.id)?,
        spec: Spec { locator, read_only, exclusive, expected_wwn, expected_size },
        persistent: wire.persistent,
        again: false,
        attempt: Attempt { access, all_paths: wire.all_paths, deadline: patience.deadline(wire.timeout_ms)? },
    })
}

fn cephx_of(wire: v1::Cephx, locator: &Locator) -> Result<SecretString> {
    let Locator::Rbd(image) = locator else {
        return Err(Error::invalid("credentials", "cephx is for RBD images only"));
    };
    if wire.key.is_empty() {
        return Err(Error::invalid("credentials", "cephx needs a key"));
    }
    keyring::key(&wire.key.into(), &image.pool.user)
}

fn chap_of(wire: v1::Chap, locator: &Locator) -> Result<Chap> {
    if !matches!(locator, Locator::Iscsi(_)) {
        return Err(Error::invalid("credentials", "CHAP is for iSCSI volumes only"));
    }
    if wire.user.is_empty() || wire.password.is_empty() {
        return Err(Error::invalid("credentials", "CHAP needs a user and a password"));
    }
    Ok(Chap { user: wire.user, password: wire.password.into() })
}

pub(crate) fn detach_target(wire: Option<v1::detach_request::Target>) -> Result<Target> {
    use v1::detach_request::Target as Wire;
    match wire {
        Some(Wire::Id(id)) => Ok(Target::Id(id.parse()?)),
        Some(Wire::Locator(locator)) => Ok(Target::Locator(locator.parse()?)),
        Some(Wire::ConnectionInfo(text)) => Ok(Target::Locator(connection_info::locator(&text.into())?)),
        Some(Wire::Device(path)) => {
            let path =
                RawFile::new(&path).map_err(|_| Error::invalid("device", "write an absolute path like /dev/sdb"))?;
            Ok(Target::Device(path.path().to_owned()))
        }
        None => Err(Error::invalid("target", "say which: give an id, a locator, a device or a connection_info")),
    }
}

pub(crate) fn attachment_id(text: &str) -> Result<AttachmentId> {
    text.parse()
}

pub(crate) fn manage_request(wire: &v1::ManageRequest) -> Result<ManageRequest> {
    Ok(ManageRequest {
        locator: wire.locator.parse()?,
        id: given(&wire.id)?,
        name: given(&wire.name)?,
        allow_in_use: wire.allow_in_use,
        dry_run: wire.dry_run,
    })
}

pub(crate) fn export_request(wire: v1::ExportRequest, patience: Patience) -> Result<ExportRequest> {
    let portals: Result<Vec<Portal>> = wire.portals.iter().map(|portal| portal.parse()).collect();
    let mut portals = portals?;
    let mut seen = std::collections::BTreeSet::new();
    portals.retain(|portal| seen.insert(*portal));
    Ok(ExportRequest {
        id: given(&wire.id)?,
        locator: wire.locator.parse()?,
        // The kernel's target lower-cases the name that it is sent (RFC 7143 section 4.2.7.1), but not the one it knows.
        initiator: wire.initiator.to_ascii_lowercase().parse()?,
        portals,
        read_only: wire.read_only,
        again: false,
        deadline: patience.deadline(wire.timeout_ms)?,
    })
}

pub(crate) fn export_id(text: &str) -> Result<ExportId> {
    text.parse()
}

pub(crate) fn export_target(wire: Option<v1::unexport_request::Target>) -> Result<ExportTarget> {
    use v1::unexport_request::Target as Wire;
    match wire {
        Some(Wire::Id(id)) => Ok(ExportTarget::Id(id.parse()?)),
        Some(Wire::Locator(locator)) => Ok(ExportTarget::Locator(locator.parse()?)),
        None => Err(Error::invalid("target", "say which: give an id or a locator")),
    }
}

pub(crate) fn export(from: Exported) -> v1::Export {
    let Exported { record, problem, sessions } = from;
    let ExportRecord { export, attached, size_bytes, created_ms, .. } = record;
    v1::Export {
        id: export.id.to_string(),
        locator: attached.spec.locator.to_string(),
        initiator: export.initiator.to_string(),
        target: export.target.to_string(),
        portals: export.portals.iter().map(ToString::to_string).collect(),
        read_only: export.read_only,
        scsi_wwn: export.serial.wwn().map(|wwn| wwn.to_string()).unwrap_or_default(),
        size_bytes,
        ready: problem.is_none(),
        problem: problem.unwrap_or_default(),
        sessions,
        created_at: timestamp(created_ms),
    }
}

pub(crate) fn export_response(from: ExportReply) -> v1::ExportResponse {
    let connection_info = export::connection_info(&from.export.record.export, &from.chap).to_string();
    v1::ExportResponse {
        export: Some(export(from.export)),
        connection_info,
        changed: from.changed,
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(crate) fn unexport_response(from: UnexportReply) -> v1::UnexportResponse {
    v1::UnexportResponse {
        id: from.id.map(|id| id.to_string()).unwrap_or_default(),
        changed: from.changed,
        residuals: from.residuals.into_iter().map(residual).collect(),
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(crate) fn scope(text: &str) -> Result<Option<Scope>> {
    given(text)
}

pub(crate) fn timestamp(milliseconds: i64) -> Option<Timestamp> {
    let nanos = i32::try_from(milliseconds.rem_euclid(1000)).ok()? * 1_000_000;
    Some(Timestamp { seconds: milliseconds.div_euclid(1000), nanos })
}

pub(crate) fn attachment(from: Attachment) -> v1::Attachment {
    let Attachment { record, stable_path, device, state, problem, held_by } = from;
    let Record { id, attached, persistent, created_ms, .. } = record;
    let spec = attached.spec;
    let identity = device.as_ref().map(|device| device.identity.clone()).or(attached.identity);
    let scsi_wwn = match &identity {
        Some(Identity::Scsi { wwn }) => wwn.to_string(),
        _ => String::new(),
    };
    // A disk is its own only path; a map is over its paths, and may be over a single one.
    let is_map = match (&device, &spec.locator) {
        (Some(device), Locator::Iscsi(_)) => device.paths.iter().all(|path| path.device != device.path),
        (None, Locator::Iscsi(unit)) => unit.is_multipath(),
        _ => false,
    };
    let mut wire = v1::Attachment {
        id: id.to_string(),
        multipath_id: if is_map { scsi_wwn.clone() } else { String::new() },
        stable_path: stable_path.display().to_string(),
        scsi_wwn,
        r#type: "block".into(),
        read_only: spec.read_only,
        persistent,
        state: match state {
            State::Ready => v1::AttachmentState::Ready,
            State::Broken => v1::AttachmentState::Broken,
            State::Residual => v1::AttachmentState::Residual,
        }
        .into(),
        problem: problem.unwrap_or_default(),
        held_by: held_by.unwrap_or_default(),
        created_at: timestamp(created_ms),
        identity: identity.map(|identity| identity.to_string()).unwrap_or_default(),
        locator: spec.locator.to_string(),
        ..v1::Attachment::default()
    };
    if let Some(device) = device {
        let Device { path, size_bytes, logical_block_size, physical_block_size, read_only, paths, .. } = device;
        wire.path = path.display().to_string();
        wire.size_bytes = size_bytes;
        wire.logical_block_size = logical_block_size;
        wire.physical_block_size = physical_block_size;
        wire.read_only = read_only;
        wire.paths = paths.into_iter().map(path_of).collect();
    }
    wire
}

/// What is left of an attachment without its record.
pub(crate) fn unrecorded(from: Unrecorded, why: &str) -> v1::Attachment {
    let Unrecorded { id, stable_path, device } = from;
    let mut wire = v1::Attachment {
        id: id.to_string(),
        stable_path: stable_path.display().to_string(),
        r#type: "block".into(),
        state: v1::AttachmentState::Broken.into(),
        problem: format!("its record cannot be read: {why}"),
        ..v1::Attachment::default()
    };
    if let Some(device) = device {
        wire.path = device.node().display().to_string();
        wire.size_bytes = device.size_bytes;
        wire.logical_block_size = device.logical_block_size;
        wire.physical_block_size = device.physical_block_size;
        wire.read_only = device.read_only;
    }
    wire
}

fn path_of(from: DevicePath) -> v1::Path {
    v1::Path {
        device: from.device.display().to_string(),
        portal: from.portal.map(|portal| portal.to_string()).unwrap_or_default(),
        state: from.state,
        problem: from.problem.unwrap_or_default(),
    }
}

pub(crate) fn detach_response(from: DetachReply) -> v1::DetachResponse {
    v1::DetachResponse {
        id: from.id.map(|id| id.to_string()).unwrap_or_default(),
        changed: from.changed,
        residuals: from.residuals.into_iter().map(residual).collect(),
        kept: from.kept,
        operation_id: from.operation.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn residual(from: Residual) -> v1::Residual {
    let kind = match from.kind {
        ResidualKind::Device => v1::ResidualKind::Device,
        ResidualKind::Session => v1::ResidualKind::Session,
        ResidualKind::NodeRecord => v1::ResidualKind::NodeRecord,
        ResidualKind::Activation => v1::ResidualKind::Activation,
        ResidualKind::Loop => v1::ResidualKind::Loop,
        ResidualKind::Link => v1::ResidualKind::Link,
        ResidualKind::MultipathMap => v1::ResidualKind::MultipathMap,
        ResidualKind::Mapping => v1::ResidualKind::Mapping,
        ResidualKind::Export => v1::ResidualKind::Export,
    };
    v1::Residual { kind: kind.into(), name: from.name, reason: from.reason }
}

pub(crate) fn manageable(from: Candidate) -> v1::Manageable {
    v1::Manageable {
        reference: from.locator.to_string(),
        size_bytes: from.size_bytes,
        safe_to_manage: from.refusal.is_none(),
        reason_not_safe: from.refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
        volume_id: from.managed.map(|volume| volume.id.to_string()).unwrap_or_default(),
        snapshot: from.kind == VolumeKind::Snapshot,
    }
}

pub(crate) fn volume(from: Volume) -> v1::Volume {
    v1::Volume {
        id: from.id.to_string(),
        name: from.name.to_string(),
        locator: from.locator.to_string(),
        origin: from.origin.to_string(),
        size_bytes: from.size_bytes,
        snapshot: from.kind == VolumeKind::Snapshot,
    }
}

pub(crate) fn operation(from: Operation, waiting: Option<Waiting>) -> v1::Operation {
    let kind = match from.plan {
        Plan::Attach { .. } => v1::OperationKind::Attach,
        Plan::Detach { .. } => v1::OperationKind::Detach,
        Plan::Extend { .. } => v1::OperationKind::Extend,
        Plan::Manage { .. } => v1::OperationKind::Manage,
        Plan::Unmanage { .. } => v1::OperationKind::Unmanage,
        Plan::Export { .. } => v1::OperationKind::Export,
        Plan::Unexport { .. } => v1::OperationKind::Unexport,
        Plan::Rescue { .. } => v1::OperationKind::Rescue,
        Plan::Unrescue { .. } => v1::OperationKind::Unrescue,
        Plan::Power { power: PowerVerb::Start, .. } => v1::OperationKind::Start,
        Plan::Power { power: PowerVerb::Stop, .. } => v1::OperationKind::Stop,
        Plan::Power { power: PowerVerb::Reboot, .. } => v1::OperationKind::Reboot,
    };
    let state = match from.outcome.as_ref().map(|outcome| outcome.state) {
        None => v1::OperationState::Running,
        Some(OutcomeState::Succeeded) => v1::OperationState::Succeeded,
        Some(OutcomeState::Failed) => v1::OperationState::Failed,
        Some(OutcomeState::Undone) => v1::OperationState::Undone,
        Some(OutcomeState::Stuck) => v1::OperationState::Stuck,
    };
    let ended_at = from.outcome.as_ref().filter(|_| from.ended).and_then(|outcome| timestamp(outcome.ended_ms));
    v1::Operation {
        id: from.id.to_string(),
        kind: kind.into(),
        state: state.into(),
        subject: from.plan.subject(),
        locator: from.plan.locator_text(),
        started_at: timestamp(from.started_ms),
        ended_at,
        error: from.outcome.and_then(|outcome| outcome.error).map(|failure| v1::OperationError {
            next_step: next_step(&failure.reason).into(),
            code: failure.code,
            reason: failure.reason,
            message: failure.message,
        }),
        waiting: waiting.map(|waiting| v1::Waiting {
            r#for: waiting.what,
            since_ms: u64::try_from(waiting.since.as_millis()).unwrap_or(u64::MAX),
            process_id: waiting.process.unwrap_or_default(),
            wedged: waiting.wedged,
        }),
    }
}

pub(crate) fn event(from: Event) -> v1::WatchEvent {
    use v1::watch_event::Event as Wire;
    let event = match from {
        Event::Attachment(there) => Wire::Attachment(attachment(there)),
        Event::Gone(id) => Wire::AttachmentGone(id.to_string()),
        Event::Operation(changed) => Wire::Operation(operation(changed, None)),
    };
    v1::WatchEvent { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        assert_eq!(grpc_timeout("30S"), Some(Duration::from_secs(30)));
        assert_eq!(grpc_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(grpc_timeout(""), None);
        assert_eq!(grpc_timeout("x"), None);
        assert_eq!(grpc_timeout("5\u{e9}"), None);
    }

    #[test]
    fn a_timeout_of_more_than_a_day_is_a_wrong_unit() {
        let patience = Patience::new(Duration::from_secs(60), None);
        assert!(patience.deadline(30_000).is_ok());
        assert!(patience.deadline(u64::MAX).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_calls_own_deadline_comes_last() {
        let patience = Patience::new(Duration::from_secs(60), Some(Duration::from_secs(10)));
        let (now, deadline) = (Instant::now(), patience.deadline(30_000).unwrap());
        assert_eq!(deadline - now, Duration::from_millis(9_750));
        assert_eq!(patience.answer_by(Some(deadline)).unwrap() - now, Duration::from_millis(9_950));
        assert_eq!(patience.answer_by(None).unwrap() - now, Duration::from_millis(9_950));
        let patient = Patience::new(Duration::from_secs(60), None);
        assert_eq!(patient.answer_by(Some(now)).unwrap() - now, Duration::from_secs(1));
        assert_eq!(patient.answer_by(None), None);
    }

    const INFO: &str = r#"{"driver_volume_type": "iscsi", "data": {"target_portal": "10.0.0.5:3260", "target_lun": "1",
        "target_iqn": "iqn.2010-10.org.openstack:v", "access_mode": "ro", "wwn": "36001405000000000000000000000000a",
        "auth_method": "CHAP", "auth_username": "u", "auth_password": "hush"}}"#;

    fn asked(fill: impl FnOnce(&mut v1::AttachRequest)) -> Result<AttachRequest> {
        let volume = Some(v1::attach_request::Volume::ConnectionInfo(INFO.into()));
        let mut wire = v1::AttachRequest { volume, ..v1::AttachRequest::default() };
        fill(&mut wire);
        attach_request(wire, Patience::new(Duration::from_secs(60), None))
    }

    #[tokio::test]
    async fn a_connection_info_fills_the_request() {
        let request = asked(|_| {}).unwrap();
        assert_eq!(request.spec.locator.to_string(), "iscsi://10.0.0.5:3260/iqn.2010-10.org.openstack:v/1");
        assert!(request.spec.read_only);
        assert_eq!(request.spec.expected_wwn, Some("36001405000000000000000000000000a".parse().unwrap()));
        assert_eq!(request.attempt.access.chap.map(|chap| chap.user), Some("u".into()));
        let target = v1::detach_request::Target::ConnectionInfo(INFO.into());
        assert!(matches!(detach_target(Some(target)).unwrap(), Target::Locator(to) if to == request.spec.locator));
    }

    #[tokio::test]
    async fn the_request_may_not_contradict_its_connection_info() {
        let said = |fill: fn(&mut v1::AttachRequest)| asked(fill).unwrap_err().to_string();
        assert!(asked(|wire| wire.expected_wwn = "naa.6001405000000000000000000000000a".into()).is_ok());
        let wwn = said(|wire| wire.expected_wwn = "naa.6001405000000000000000000000000b".into());
        assert!(wwn.starts_with("expected_wwn: it is 36001405000000000000000000000000b, and 3600"), "{wwn}");
        let twice = said(|wire| {
            let chap = v1::Chap { user: "u".into(), password: "hush".into() };
            wire.credentials = Some(v1::Credentials { kind: Some(v1::credentials::Kind::Chap(chap)) });
        });
        assert!(twice.starts_with("credentials: ") && !twice.contains("hush"), "{twice}");
        assert!(said(|wire| wire.persistent = true).contains("CHAP"));
        assert!(said(|wire| wire.exclusive = true).starts_with("exclusive: "));
    }

    #[tokio::test]
    async fn the_exclusive_lock_is_for_those_who_write() {
        let rbd = |locator: &str, read_only| {
            asked(|wire| {
                wire.volume = Some(v1::attach_request::Volume::Locator(locator.into()));
                (wire.exclusive, wire.read_only) = (true, read_only);
            })
        };
        assert!(rbd("rbd:p/a", false).unwrap().spec.exclusive);
        let said = rbd("rbd:p/a", true).unwrap_err().to_string();
        assert!(said.starts_with("exclusive: ") && said.contains("leave out"), "{said}");
        let said = rbd("rbd:p/a@s", false).unwrap_err().to_string();
        assert!(said.starts_with("exclusive: ") && said.contains("leave out"), "{said}");
    }

    #[test]
    fn no_debug_shows_a_connection_info() {
        let attach = v1::AttachRequest {
            volume: Some(v1::attach_request::Volume::ConnectionInfo(INFO.into())),
            ..v1::AttachRequest::default()
        };
        let target = Some(v1::detach_request::Target::ConnectionInfo(INFO.into()));
        let shown = format!("{attach:?} {:?}", v1::DetachRequest { target, timeout_ms: 0 });
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn times_before_and_after_1970() {
        assert_eq!(timestamp(1_500), Some(Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(timestamp(-1), Some(Timestamp { seconds: -1, nanos: 999_000_000 }));
    }
}
