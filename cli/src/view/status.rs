//! What status prints: the host on one screen.

use super::{View, some, timestamp, word};
use crate::{
    error::Failure,
    table::{self, Cell, Property, Table, each, perhaps, property},
};
use jiff::Timestamp;
use proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// `None` of a part: it could not be asked, and `not_asked` says why.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Status {
    in_order: bool,
    host: String,
    agent_version: String,
    kernel_version: String,
    attachments: Option<Attachments>,
    operations: Option<Vec<Operation>>,
    exports: Option<Exports>,
    instances: Option<Instances>,
    lacking: Vec<Lacking>,
    not_asked: Vec<NotAsked>,
}

#[derive(Debug, Default, Serialize)]
struct Attachments {
    count: usize,
    states: BTreeMap<String, usize>,
    not_ready: Vec<NotReady>,
}

/// An attachment or an export that is not as it should be.
#[derive(Debug, Serialize)]
struct NotReady {
    id: String,
    state: String,
    problem: Option<String>,
}

/// An operation that has not ended.
#[derive(Debug, Serialize)]
struct Operation {
    id: String,
    kind: String,
    state: String,
    subject: String,
    age_s: Option<u64>,
    waiting_for: Option<String>,
    wedged: bool,
}

#[derive(Debug, Default, Serialize)]
struct Exports {
    count: usize,
    not_ready: Vec<NotReady>,
}

#[derive(Debug, Default, Serialize)]
struct Instances {
    count: usize,
    power: BTreeMap<String, usize>,
    rescued: Vec<String>,
}

/// A driver, or libvirt, that cannot work, and what to do.
#[derive(Debug, Serialize)]
struct Lacking {
    name: String,
    problem: String,
}

#[derive(Debug, Serialize)]
struct NotAsked {
    what: &'static str,
    why: String,
}

impl Status {
    pub(crate) fn new(host: v1::HostInfo) -> Self {
        let drivers = host.drivers.into_iter().filter(|driver| !driver.available);
        let mut lacking: Vec<_> =
            drivers.map(|driver| Lacking { name: driver.backend, problem: driver.problem }).collect();
        let libvirt = host.hypervisor.filter(|hypervisor| !hypervisor.available);
        lacking.extend(libvirt.map(|it| Lacking { name: "libvirt".to_owned(), problem: it.problem }));
        Self {
            in_order: true,
            host: host.name,
            agent_version: host.agent_version,
            kernel_version: host.kernel_version,
            lacking,
            ..Self::default()
        }
    }

    /// Whether there is somebody to ask about instances.
    pub(crate) fn has_libvirt(&self) -> bool {
        self.lacking.iter().all(|it| it.name != "libvirt")
    }

    pub(crate) fn attachments(&mut self, reply: v1::ListAttachmentsResponse) {
        let mut all = Attachments { count: reply.attachments.len(), ..Attachments::default() };
        for attachment in reply.attachments {
            let state = word(attachment.state().as_str_name(), "ATTACHMENT_STATE_");
            *all.states.entry(state.clone()).or_default() += 1;
            if attachment.state() != v1::AttachmentState::Ready {
                all.not_ready.push(NotReady { id: attachment.id, state, problem: some(attachment.problem) });
            }
        }
        self.in_order &= all.not_ready.is_empty();
        self.attachments = Some(all);
    }

    /// Those that run, as they are at `now`.
    pub(crate) fn operations(&mut self, reply: v1::ListOperationsResponse, now: Timestamp) {
        let age = |started: Timestamp| u64::try_from(now.duration_since(started).as_secs()).unwrap_or(0);
        let all: Vec<_> = reply
            .operations
            .into_iter()
            .map(|operation| Operation {
                kind: word(operation.kind().as_str_name(), "OPERATION_KIND_"),
                state: word(operation.state().as_str_name(), "OPERATION_STATE_"),
                age_s: timestamp(operation.started_at).map(age),
                wedged: operation.waiting.as_ref().is_some_and(|waiting| waiting.wedged),
                waiting_for: operation.waiting.map(|waiting| waiting.r#for),
                id: operation.id,
                subject: operation.subject,
            })
            .collect();
        self.in_order &= all.iter().all(|operation| !operation.is_amiss());
        self.operations = Some(all);
    }

    pub(crate) fn exports(&mut self, reply: v1::ListExportsResponse) {
        let count = reply.exports.len();
        let amiss = reply.exports.into_iter().filter(|export| !export.ready);
        let not_ready: Vec<_> = amiss
            .map(|export| NotReady { id: export.id, state: "not served".to_owned(), problem: some(export.problem) })
            .collect();
        self.in_order &= not_ready.is_empty();
        self.exports = Some(Exports { count, not_ready });
    }

    pub(crate) fn instances(&mut self, reply: v1::ListInstancesResponse) {
        let mut all = Instances { count: reply.instances.len(), ..Instances::default() };
        for instance in reply.instances {
            *all.power.entry(word(instance.power().as_str_name(), "INSTANCE_POWER_")).or_default() += 1;
            if instance.rescue.is_some() {
                all.rescued.push(instance.name);
            }
        }
        self.instances = Some(all);
    }

    /// A part of the host that the agent says nothing of.
    pub(crate) fn not_asked(&mut self, what: &'static str, why: &Failure) {
        self.in_order = false;
        self.not_asked.push(NotAsked { what, why: why.message().to_owned() });
    }

    /// Nothing has to be done.
    pub(crate) fn in_order(&self) -> bool {
        self.in_order
    }
}

impl NotReady {
    fn line(&self) -> Cell {
        let problem = self.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        table::problem(&format!("{} is {}{problem}", self.id, self.state))
    }
}

impl Operation {
    fn is_amiss(&self) -> bool {
        self.wedged || self.state == "stuck"
    }

    fn line(&self) -> Cell {
        let mut line = format!("{} {}", self.kind, self.subject);
        line.extend(self.age_s.map(|age| format!(", {}", since(age))));
        line.extend(self.waiting_for.as_ref().map(|what| format!(", waits for: {what}")));
        match (self.wedged, self.state.as_str()) {
            (true, _) => table::problem(&format!("{line}; it is wedged")),
            (false, "stuck") => table::problem(&format!("{line}; it is stuck")),
            _ => line.into(),
        }
    }
}

/// How long something lasts, to the unit that matters.
fn since(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `3: 2 ready, 1 broken`
fn counted(count: usize, by: &BTreeMap<String, usize>) -> String {
    let by: Vec<_> = by.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if by.is_empty() { count.to_string() } else { format!("{count}: {}", by.join(", ")) }
}

impl Status {
    fn rows(&self) -> Vec<Property> {
        let state = if self.in_order { table::state("ready") } else { table::state("amiss") };
        let mut rows = vec![
            property("host", &self.host),
            property("state", state),
            property("mortard", &self.agent_version),
            property("mortar", env!("CARGO_PKG_VERSION")),
            property("kernel", &self.kernel_version),
            perhaps("attachments", self.attachments.as_ref().map(|all| counted(all.count, &all.states))),
        ];
        let amiss = self.attachments.iter().flat_map(|all| &all.not_ready);
        rows.extend(each("not ready", amiss.map(NotReady::line)));
        rows.push(perhaps("operations", self.operations.as_ref().map(|all| all.len().to_string())));
        rows.extend(each("running", self.operations.iter().flatten().map(Operation::line)));
        rows.push(perhaps("exports", self.exports.as_ref().map(|all| all.count.to_string())));
        let amiss = self.exports.iter().flat_map(|all| &all.not_ready);
        rows.extend(each("not served", amiss.map(NotReady::line)));
        rows.push(perhaps("instances", self.instances.as_ref().map(|all| counted(all.count, &all.power))));
        let rescued = self.instances.as_ref().map(|all| all.rescued.join(", ")).filter(|names| !names.is_empty());
        rows.push(perhaps("rescued", rescued));
        let lacking = self.lacking.iter().map(|it| format!("{}: {}", it.name, it.problem));
        rows.extend(each("lacking", lacking));
        let not_asked = self.not_asked.iter().map(|it| table::problem(&format!("{}: {}", it.what, it.why)));
        rows.extend(each("not asked", not_asked));
        rows
    }
}

impl View for Status {
    fn tables(&self) -> Vec<Table> {
        vec![Table::properties(self, self.rows()).wrapped()]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};

    fn host() -> v1::HostInfo {
        let driver = |backend: &str, problem: &str| v1::DriverInfo {
            backend: backend.into(),
            available: problem.is_empty(),
            problem: problem.into(),
            ..v1::DriverInfo::default()
        };
        v1::HostInfo {
            name: "hv1".into(),
            agent_version: "0.1.0".into(),
            drivers: vec![driver("lvm", ""), driver("rbd", "modprobe rbd")],
            ..v1::HostInfo::default()
        }
    }

    #[test]
    fn what_is_well_is_counted_and_what_is_amiss_named() {
        let mut status = Status::new(host());
        let attachment = |id: &str, state: v1::AttachmentState, problem: &str| v1::Attachment {
            id: id.into(),
            state: state.into(),
            problem: problem.into(),
            ..v1::Attachment::default()
        };
        status.attachments(v1::ListAttachmentsResponse {
            attachments: vec![attachment("a", v1::AttachmentState::Ready, "")],
        });
        status.exports(v1::ListExportsResponse::default());
        assert!(status.in_order(), "a driver that lacks something is not amiss: it may not be wanted");
        let broken = attachment("b", v1::AttachmentState::Broken, "its device is gone");
        let ready = attachment("a", v1::AttachmentState::Ready, "");
        status.attachments(v1::ListAttachmentsResponse { attachments: vec![ready, broken] });
        assert!(!status.in_order());
        let shown = drawn(&status);
        for line in ["2: 1 broken, 1 ready", "| not ready   | b is broken: its device is gone", "| rbd: modprobe rbd"] {
            assert!(shown.contains(line), "{line} is missing in:\n{shown}");
        }
        assert!(!shown.contains("operations"), "{shown}");
    }

    #[test]
    fn an_operation_that_waits_too_long_is_amiss() {
        let second = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let running = |wedged| v1::ListOperationsResponse {
            operations: vec![v1::Operation {
                kind: v1::OperationKind::Detach.into(),
                state: v1::OperationState::Running.into(),
                subject: "a".into(),
                started_at: second(1000),
                waiting: Some(v1::Waiting { r#for: "flush /dev/sdb".into(), wedged, ..v1::Waiting::default() }),
                ..v1::Operation::default()
            }],
        };
        for (wedged, ends) in [(false, "waits for: flush /dev/sdb"), (true, "waits for: flush /dev/sdb; it is wedged")]
        {
            let mut status = Status::new(host());
            status.operations(running(wedged), Timestamp::from_second(1600).unwrap());
            assert_eq!(status.in_order(), !wedged);
            let line = format!("| detach a, 10 min, {ends} ");
            assert!(drawn(&status).contains(&line), "{}", drawn(&status));
        }
    }

    #[test]
    fn ages_are_told_in_the_unit_that_matters() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2 days")] {
            assert_eq!(since(seconds), text);
        }
    }
}
