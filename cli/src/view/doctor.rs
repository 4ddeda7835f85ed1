//! The doctor: what is wrong with the host, what on it is whose, and what a repair came to.

use super::{View, some, word};
use crate::table::{self, Cell, Row, Table};
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Diagnosis {
    in_order: bool,
    findings: Vec<Finding>,
    objects: Vec<Object>,
    /// The closing sentence.
    summary: String,
}

#[derive(Debug, Default, Serialize)]
struct Finding {
    severity: String,
    subject: String,
    found: String,
    advice: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Object {
    state: String,
    kind: String,
    name: String,
    description: String,
    why: String,
    /// `removed`, `left`, `would_be_removed`; null: it was not tried.
    repair: Option<String>,
    repair_detail: Option<String>,
}

impl Diagnosis {
    /// With `all`, also what is in order.
    pub(crate) fn new(response: v1::DiagnoseResponse, all: bool) -> Self {
        let errors = response.findings.iter().filter(|it| it.severity() == v1::Severity::Error).count();
        let warnings = response.findings.iter().filter(|it| it.severity() == v1::Severity::Warning).count();
        let is_gone = |object: &&v1::HostObject| object.repair() == v1::RepairOutcome::Removed;
        let of = |state| response.objects.iter().filter(move |object| object.state() == state);
        let removed = of(v1::HostObjectState::Orphan).filter(is_gone).count();
        let orphans = of(v1::HostObjectState::Orphan).count() - removed;
        let stale = of(v1::HostObjectState::Stale).count();
        let was_tried =
            |object: &v1::HostObject| matches!(object.repair(), v1::RepairOutcome::Removed | v1::RepairOutcome::Left);
        let tried = of(v1::HostObjectState::Orphan).any(was_tried);
        let counts: Vec<String> = [
            counted(errors, "error", "errors"),
            counted(orphans, "orphan", "orphans"),
            counted(stale, "stale", "stale"),
            counted(warnings, "warning", "warnings"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut sentences = Vec::from_iter(counted(removed, "orphan removed", "orphans removed"));
        sentences.push(if counts.is_empty() { "everything is in order".to_owned() } else { counts.join(", ") });
        if orphans > 0 && !tried {
            sentences.push("mortar doctor --repair takes orphans away".to_owned());
        }
        let shown = |object: &v1::HostObject| {
            all || matches!(object.state(), v1::HostObjectState::Orphan | v1::HostObjectState::Stale)
        };
        Self {
            in_order: errors + orphans + stale == 0,
            summary: sentences.join("; "),
            findings: response.findings.into_iter().map(Finding::from).collect(),
            objects: response.objects.into_iter().filter(shown).map(Object::from).collect(),
        }
    }

    /// Nothing has to be done: no errors, nothing orphaned or stale.
    pub(crate) fn in_order(&self) -> bool {
        self.in_order
    }

    /// What a repair would take away.
    pub(crate) fn orphans(&self) -> Vec<String> {
        let orphans = self.objects.iter().filter(|object| object.state == "orphan");
        orphans.map(|object| format!("the {} {}", object.kind.replace('_', " "), object.name)).collect()
    }

    pub(crate) fn summary(&self) -> &str {
        &self.summary
    }
}

fn counted(count: usize, one: &str, several: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {several}")),
    }
}

impl From<v1::Finding> for Finding {
    fn from(finding: v1::Finding) -> Self {
        Self {
            severity: word(finding.severity().as_str_name(), "SEVERITY_"),
            subject: finding.subject,
            found: finding.found,
            advice: some(finding.advice),
        }
    }
}

impl From<v1::HostObject> for Object {
    fn from(object: v1::HostObject) -> Self {
        let repair = match object.repair() {
            v1::RepairOutcome::Unspecified => None,
            outcome => Some(word(outcome.as_str_name(), "REPAIR_OUTCOME_")),
        };
        Self {
            state: word(object.state().as_str_name(), "HOST_OBJECT_STATE_"),
            kind: word(object.kind().as_str_name(), "HOST_OBJECT_KIND_"),
            repair,
            name: object.name,
            description: object.description,
            why: object.why,
            repair_detail: some(object.repair_detail),
        }
    }
}

impl Row for Finding {
    const COLUMNS: &'static [&'static str] = &["severity", "subject", "found", "advice"];

    fn cells(&self) -> Vec<Cell> {
        vec![table::state(&self.severity), (&self.subject).into(), (&self.found).into(), (&self.advice).into()]
    }
}

impl Row for Object {
    const COLUMNS: &'static [&'static str] = &["state", "kind", "name", "description", "why"];

    fn cells(&self) -> Vec<Cell> {
        let why = match (&self.repair, &self.repair_detail) {
            (Some(repair), Some(detail)) if repair != detail => format!("{repair}: {detail}"),
            (Some(repair), _) => repair.replace('_', " "),
            (None, _) => self.why.clone(),
        };
        vec![
            table::state(&self.state),
            (&self.kind).into(),
            (&self.name).into(),
            (&self.description).into(),
            why.into(),
        ]
    }
}

impl View for Diagnosis {
    fn tables(&self) -> Vec<Table> {
        vec![Table::list(&self.findings), Table::list(&self.objects)]
    }

    /// What is amiss is said on stderr.
    fn closing(&self) -> Option<String> {
        self.in_order.then(|| self.summary.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(state: v1::HostObjectState, repair: v1::RepairOutcome) -> v1::HostObject {
        v1::HostObject {
            kind: v1::HostObjectKind::Loop.into(),
            name: "/dev/loop0".into(),
            state: state.into(),
            repair: repair.into(),
            ..v1::HostObject::default()
        }
    }

    fn said(findings: &[v1::Severity], objects: &[(v1::HostObjectState, v1::RepairOutcome)]) -> (bool, String) {
        let finding = |severity: &v1::Severity| v1::Finding { severity: (*severity).into(), ..v1::Finding::default() };
        let response = v1::DiagnoseResponse {
            findings: findings.iter().map(finding).collect(),
            objects: objects.iter().map(|(state, repair)| object(*state, *repair)).collect(),
        };
        let diagnosis = Diagnosis::new(response, false);
        (diagnosis.in_order, diagnosis.summary)
    }

    #[test]
    fn one_sentence_closes_it() {
        use v1::{HostObjectState as State, RepairOutcome as Repair, Severity};
        assert_eq!(said(&[], &[]), (true, "everything is in order".into()));
        assert_eq!(said(&[Severity::Info], &[(State::Foreign, Repair::Unspecified)]).1, "everything is in order");
        assert_eq!(said(&[Severity::Warning; 2], &[]), (true, "2 warnings".into()));
        assert_eq!(said(&[Severity::Error], &[]), (false, "1 error".into()));
        let orphan = (State::Orphan, Repair::Unspecified);
        assert_eq!(
            said(&[], &[orphan, (State::Stale, Repair::Unspecified)]),
            (false, "1 orphan, 1 stale; mortar doctor --repair takes orphans away".into())
        );
        let removed = (State::Orphan, Repair::Removed);
        assert_eq!(said(&[], &[removed, removed]), (true, "2 orphans removed; everything is in order".into()));
        assert_eq!(said(&[], &[removed, (State::Orphan, Repair::Left)]), (false, "1 orphan removed; 1 orphan".into()));
    }
}
