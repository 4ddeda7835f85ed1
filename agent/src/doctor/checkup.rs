//! What is wrong with the host itself: what the drivers find, and what concerns the agent.

use super::{PATIENCE, unseen};
use crate::agent::Agent;
use driver::{Error, Finding, Severity};
use host::{Clock, Room};
use std::{path::Path, sync::Arc};
use tokio::{task::JoinSet, time::timeout};

/// 2020-01-01, in seconds since 1970: before it, no clock of a host that runs this is right.
const EPOCH: u64 = 1_577_836_800;

/// What the journal needs at least; below it, operations will soon be refused. In bytes.
const SCARCE: u64 = 64 << 20;
/// Below it they are. In bytes.
const NONE: u64 = 8 << 20;

/// Where our udev rule may be installed.
const RULES: [&str; 4] = ["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
const RULE: &str = "61-mortar.rules";

impl Agent {
    /// Everything that an operator should know of this host. The drivers are asked side by side.
    pub(super) async fn checkup(self: &Arc<Self>) -> Vec<Finding> {
        let mut asked = JoinSet::new();
        for backend in self.drivers.wanted().iter().copied() {
            let agent = Arc::clone(self);
            asked.spawn(async move {
                let mut findings = Vec::new();
                let look = async {
                    if let Some(problem) = agent.drivers.readiness(backend).await.problem {
                        findings.push(Finding::warning(
                            format!("the {backend} driver"),
                            problem,
                            "or leave it out of agent.drivers in the config, if it is not needed",
                        ));
                    }
                    findings.extend(agent.drivers.get(backend)?.findings().await?);
                    Ok::<_, Error>(())
                };
                let failed = match timeout(PATIENCE, look).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.chain()),
                    Err(_) => Some(format!("it has not answered for {} s", PATIENCE.as_secs())),
                };
                findings.extend(failed.map(|why| unseen(&format!("the {backend} driver"), why)));
                findings
            });
        }
        let mut findings: Vec<Finding> = asked.join_all().await.into_iter().flatten().collect();
        let export = self.exporter.findings();
        findings.extend(export.unwrap_or_else(|error| vec![unseen("this host's iSCSI targets", error.chain())]));
        if let Some(problem) = self.hypervisor.readiness().await.problem {
            findings.push(Finding {
                severity: Severity::Info,
                subject: "libvirt".into(),
                found: problem,
                advice: "without it no instance can be rescued; everything else works".into(),
            });
        }
        match self.host.clock() {
            Ok(clock) => findings.extend(of_clock(clock)),
            Err(error) => findings.push(unseen("the clock", error.to_string())),
        }
        let directory = &self.config.agent.state_directory;
        match self.host.room(directory, PATIENCE).await {
            Ok(room) => findings.extend(of_room(directory, room)),
            Err(error) => findings.push(unseen("the journal's disk", error.to_string())),
        }
        let installed = |directory: &&str| matches!(self.host.stat(&Path::new(directory).join(RULE)), Ok(Some(_)));
        if !RULES.iter().any(installed) {
            findings.push(Finding::warning(
                RULE,
                "it is not installed: this host starts VGs, arrays and caches that it finds inside of attached volumes, and \
                 these hold them against a detach",
                "install it into /usr/lib/udev/rules.d, as mortar's package does, and run `udevadm control --reload`",
            ));
        }
        findings.sort_by(|one, other| (one.severity, &one.subject).cmp(&(other.severity, &other.subject)));
        findings
    }
}

fn of_clock(clock: Clock) -> Option<Finding> {
    if clock.unix_seconds < EPOCH {
        return Some(Finding::error(
            "the clock",
            "it says that it is before 2020: times in logs and lists are wrong, and certificates and cephx keys are refused",
            "set it, and let chrony or systemd-timesyncd keep it right",
        ));
    }
    (!clock.synchronised).then(|| {
        Finding::warning(
            "the clock",
            "no time service keeps it right; Ceph refuses hosts whose clocks differ",
            "systemctl enable --now chronyd, or systemd-timesyncd",
        )
    })
}

fn of_room(directory: &Path, room: Room) -> Option<Finding> {
    let found = format!("{} MiB are left for the journal in {}", room.free_bytes >> 20, directory.display());
    let advice = "make room on that file system";
    match room.free_bytes {
        0..NONE => Some(Finding::error(
            "the journal's disk",
            format!("{found}: operations are refused when it is full"),
            advice,
        )),
        NONE..SCARCE => Some(Finding::warning("the journal's disk", found, advice)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_right_or_not() {
        let clock =
            |unix_seconds, synchronised| of_clock(Clock { unix_seconds, synchronised }).map(|finding| finding.severity);
        assert_eq!(clock(EPOCH, true), None);
        assert_eq!(clock(EPOCH, false), Some(Severity::Warning));
        assert_eq!(clock(0, true), Some(Severity::Error));
    }

    #[test]
    fn a_journal_needs_room() {
        let room = |free_bytes| {
            of_room(Path::new("/var/lib/mortar"), Room { total_bytes: 1 << 40, free_bytes }).map(|it| it.severity)
        };
        assert_eq!((room(SCARCE), room(SCARCE - 1)), (None, Some(Severity::Warning)));
        assert_eq!((room(NONE), room(NONE - 1)), (Some(Severity::Warning), Some(Severity::Error)));
    }
}
