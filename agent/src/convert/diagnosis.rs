//! What the doctor says, for the wire.

use crate::doctor::{Diagnosis, Judged, Repair, Whose};
use driver::{Finding, ObjectKind, Severity};
use proto::v1;

pub(crate) fn diagnosis(from: Diagnosis) -> v1::DiagnoseResponse {
    v1::DiagnoseResponse {
        findings: from.findings.into_iter().map(finding).collect(),
        objects: from.objects.into_iter().map(object).collect(),
    }
}

fn finding(from: Finding) -> v1::Finding {
    let severity = match from.severity {
        Severity::Error => v1::Severity::Error,
        Severity::Warning => v1::Severity::Warning,
        Severity::Info => v1::Severity::Info,
    };
    v1::Finding { severity: severity.into(), subject: from.subject, found: from.found, advice: from.advice }
}

fn object(from: Judged) -> v1::HostObject {
    let kind = match from.kind {
        ObjectKind::Record => v1::HostObjectKind::Record,
        ObjectKind::Volume => v1::HostObjectKind::Volume,
        ObjectKind::StablePath => v1::HostObjectKind::StablePath,
        ObjectKind::Session => v1::HostObjectKind::Session,
        ObjectKind::NodeRecord => v1::HostObjectKind::NodeRecord,
        ObjectKind::Device => v1::HostObjectKind::Device,
        ObjectKind::MultipathMap => v1::HostObjectKind::MultipathMap,
        ObjectKind::Mapping => v1::HostObjectKind::Mapping,
        ObjectKind::Activation => v1::HostObjectKind::Activation,
        ObjectKind::Loop => v1::HostObjectKind::Loop,
        ObjectKind::Target => v1::HostObjectKind::Target,
        ObjectKind::Backstore => v1::HostObjectKind::Backstore,
        ObjectKind::Hba => v1::HostObjectKind::Hba,
        ObjectKind::RescueDisk => v1::HostObjectKind::RescueDisk,
        ObjectKind::Seed => v1::HostObjectKind::Seed,
    };
    let state = match from.whose {
        Whose::Ours => v1::HostObjectState::Ours,
        Whose::Foreign => v1::HostObjectState::Foreign,
        Whose::Orphan => v1::HostObjectState::Orphan,
        Whose::Stale => v1::HostObjectState::Stale,
    };
    let (repair, repair_detail) = match from.repair {
        None => (v1::RepairOutcome::Unspecified, String::new()),
        Some(Repair::Removed(detail)) => (v1::RepairOutcome::Removed, detail),
        Some(Repair::Left(detail)) => (v1::RepairOutcome::Left, detail),
        Some(Repair::WouldBeRemoved) => (v1::RepairOutcome::WouldBeRemoved, String::new()),
    };
    v1::HostObject {
        kind: kind.into(),
        name: from.name,
        description: from.what,
        state: state.into(),
        why: from.why,
        repair: repair.into(),
        repair_detail,
    }
}
