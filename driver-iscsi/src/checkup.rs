//! What on this host would make an iSCSI volume hang, lose data or fail to come: open-iscsi's settings and records, whether
//! its daemon is there, multipath's settings, the kernel's modules, how old the tools are. Everything else is read from files.

mod daemon_settings;
mod multipath_settings;

use crate::{
    Initiator, machine, multipath,
    record::INTERFACE,
    view::{SOCKETS, daemon_listens},
};
use driver::{Error, Finding, Result, Severity, version::is_at_least};
use host::{Module, Tool, module};
use std::path::Path;

/// A name in a domain that stands for any in manuals (RFC 2606): it was copied from one.
const EXAMPLE: &str = ".com.example:";

impl Initiator {
    pub(crate) async fn findings(&self) -> Result<Vec<Finding>> {
        if self.host().tool(Tool::Iscsiadm).is_none() {
            return Ok(Vec::new());
        }
        let mut findings = Vec::new();
        findings.extend(self.tools().await.iter().find_map(too_old));
        findings.extend(self.modules()?);
        findings.extend(self.daemon()?);
        let settings = self.text(&self.config.daemon)?;
        findings.extend(daemon_settings::findings(&self.config.daemon, settings.as_deref()));
        findings.extend(self.initiator_name()?);
        findings.extend(self.automatic_records()?);
        findings.extend(self.multipath().await?);
        Ok(findings)
    }

    fn text(&self, path: &Path) -> Result<Option<String>> {
        self.host().read(path).map_err(machine(format!("read {}", path.display())))
    }

    fn modules(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for (name, used_for) in [("iscsi_tcp", "iSCSI"), ("dm_multipath", "volumes with several portals")] {
            if module(self.host(), name).map_err(machine("look for a kernel module"))? == Module::Absent {
                let found = format!("it is neither loaded, built in nor on the disk, and {used_for} needs it");
                let advice =
                    "install the package with the modules of the running kernel, or reboot into the newest one";
                let finding = Finding::error(format!("kernel module {name}"), found, advice);
                let severity = if name == "iscsi_tcp" { Severity::Error } else { Severity::Warning };
                findings.push(Finding { severity, ..finding });
            }
        }
        Ok(findings)
    }

    fn daemon(&self) -> Result<Option<Finding>> {
        let sockets = self.text(Path::new(SOCKETS))?.unwrap_or_default();
        if daemon_listens(&sockets) {
            return Ok(None);
        }
        Ok(Some(Finding::error(
            "iscsid",
            "it does not run, and no socket starts it: sessions that lose their connection do not come back",
            "systemctl enable --now iscsid.socket",
        )))
    }

    fn initiator_name(&self) -> Result<Option<Finding>> {
        let file = &self.config.initiator_name;
        let text = self.text(file)?.unwrap_or_default();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.trim().strip_prefix("InitiatorName=")).map(str::trim).collect();
        let subject = file.display().to_string();
        let advice = format!(
            "give each host a name of its own: `echo InitiatorName=$(iscsi-iname) >{subject}`, then restart iscsid while \
             nothing is attached"
        );
        Ok(match names.as_slice() {
            [name] if is_nobodys(name) => Some(Finding::error(
                subject,
                format!("{name} is no name of this host alone: two hosts of one name throw each other out of a target"),
                advice,
            )),
            [_, .., last] => Some(Finding::warning(
                subject,
                format!("it holds {} names; the last one, {last}, counts", names.len()),
                "leave one InitiatorName= line in it",
            )),
            _ => None,
        })
    }

    /// Records of others by which this host logs in at boot. Ours never do.
    fn automatic_records(&self) -> Result<Option<Finding>> {
        let list = |directory: &Path| self.host().list(directory).map_err(machine("list the node records"));
        let nodes = &self.config.nodes;
        let mut automatic = Vec::new();
        for iqn in list(nodes)? {
            for portal in list(&nodes.join(&iqn))? {
                let path = nodes.join(&iqn).join(&portal);
                let interfaces = list(&path)?;
                // Before 2.0-870 a portal was a file.
                let files = match interfaces.is_empty() {
                    true => vec![path],
                    false => interfaces.iter().map(|interface| path.join(interface)).collect(),
                };
                for file in files.iter().filter(|file| !file.ends_with(INTERFACE)) {
                    let record = self.text(file)?.unwrap_or_default();
                    if daemon_settings::value(&record, "node.startup") == Some("automatic") {
                        automatic.push(format!("{iqn} at {portal}"));
                    }
                }
            }
        }
        automatic.dedup();
        let Some(first) = automatic.first() else { return Ok(None) };
        let more = match automatic.len() {
            1 => String::new(),
            several => format!(" and {} more", several - 1),
        };
        Ok(Some(Finding::warning(
            nodes.display().to_string(),
            format!(
                "this host logs in by itself at boot to {first}{more} (node.startup = automatic), and takes every LUN there, \
                 whoever's it is"
            ),
            "iscsiadm -m node -T IQN -p PORTAL -o update -n node.startup -v manual, unless the host itself boots from it",
        )))
    }

    async fn multipath(&self) -> Result<Vec<Finding>> {
        let mut findings = match multipath::runs(self.host()).await {
            Ok(()) => {
                multipath::version(self.host()).await?.as_deref().and_then(too_old_multipathd).into_iter().collect()
            }
            Err(Error::WrongState { .. }) => vec![Finding::info(
                "multipathd",
                "it does not run, so volumes can be attached by one portal only",
                "systemctl enable --now multipathd, where there are several",
            )],
            Err(error) => vec![Finding::error("multipathd", error.chain(), "systemctl restart multipathd")],
        };
        let directory = Path::new("/etc/multipath/conf.d");
        let names = self.host().list(directory).map_err(machine("list multipath's settings"))?;
        let more = names.iter().filter(|name| name.ends_with(".conf")).map(|name| directory.join(name));
        let mut files = Vec::new();
        for path in std::iter::once("/etc/multipath.conf".into()).chain(more) {
            if let Some(text) = self.text(&path)? {
                files.push((path, text));
            }
        }
        findings.extend(multipath_settings::findings(&files));
        Ok(findings)
    }
}

/// 2.0 keeps sessions and records in forms of its own, and has exit codes that mean something else.
fn too_old(tool: &driver::Tool) -> Option<Finding> {
    let is_known = tool.version.starts_with(|c: char| c.is_ascii_digit());
    let is_old = tool.name == Tool::Iscsiadm.name() && is_known && !is_at_least(&tool.version, &[2, 1]);
    is_old.then(|| {
        let found = format!("it is version {}, and what its exit codes mean is known from 2.1 on", tool.version);
        Finding::warning(tool.name.clone(), found, "install open-iscsi 2.1 or later")
    })
}

/// `find_multipaths strict`, and a configuration that it shows, came with 0.8.
fn too_old_multipathd(version: &str) -> Option<Finding> {
    (!is_at_least(version, &[0, 8])).then(|| {
        let found = format!("it is version {version}, which does not show which of its settings are in force");
        Finding::warning("multipathd", found, "install multipath-tools (device-mapper-multipath) 0.8 or later")
    })
}

/// What is read of both daemons' settings, for the fuzzer.
#[cfg(fuzzing)]
pub(crate) fn settings(text: &str) {
    let _iscsid = daemon_settings::findings(Path::new("/x"), Some(text));
    let _multipathd = multipath_settings::findings(&[("/x".into(), text.to_owned())]);
}

/// An example's name, or one whose own part is only zeros, as an image for clones may have it.
fn is_nobodys(name: &str) -> bool {
    let own = name.rsplit(':').next().unwrap_or_default();
    name.contains(EXAMPLE) || (!own.is_empty() && own.chars().all(|c| c == '0')) || own == "REPLACE"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IscsiConfig, IscsiDriver};
    use driver::Driver;
    use host::sim::Machine;
    use std::sync::Arc;

    async fn found(machine: &Machine) -> Vec<(Severity, String)> {
        let driver = IscsiDriver::new(Arc::new(machine.clone()), IscsiConfig::default());
        let findings = driver.findings().await.unwrap();
        findings.into_iter().map(|it| (it.severity, format!("{}: {}", it.subject, it.found))).collect()
    }

    /// What is found on a machine that was changed, but not on one as it should be.
    async fn new(change: impl FnOnce(&Machine)) -> Vec<(Severity, String)> {
        let machine = Machine::new();
        let before = found(&machine).await;
        change(&machine);
        found(&machine).await.into_iter().filter(|finding| !before.contains(finding)).collect()
    }

    #[track_caller]
    fn one(found: &[(Severity, String)], severity: Severity, words: &str) {
        assert!(matches!(found, [(how, text)] if *how == severity && text.contains(words)), "{found:?}");
    }

    #[tokio::test]
    async fn a_host_as_it_should_be_has_nothing_but_no_multipathd() {
        one(&found(&Machine::new()).await, Severity::Info, "multipathd: it does not run");
        let machine = Machine::new();
        machine.run_multipathd(true);
        assert_eq!(found(&machine).await, []);
    }

    #[tokio::test]
    async fn nothing_is_said_of_a_host_without_open_iscsi() {
        let machine = Machine::new();
        machine.remove_tool(Tool::Iscsiadm);
        machine.remove_tree("/proc/net/unix");
        assert_eq!(found(&machine).await, []);
    }

    #[tokio::test]
    async fn tools_that_are_too_old() {
        let old = new(|machine| {
            machine.run_multipathd(true);
            machine.set_multipathd_version("0.7.9 (01/01, 2018)");
        });
        one(&old.await, Severity::Warning, "multipathd: it is version 0.7.9, which does not show");
        let iscsiadm =
            |version: &str| driver::Tool { name: "iscsiadm".into(), path: "/x".into(), version: version.into() };
        let found = too_old(&iscsiadm("2.0-874")).unwrap();
        assert!(found.found.contains("2.0-874") && found.advice.contains("2.1 or later"), "{found:?}");
        for fine in ["2.1", "2.1.8", "6.2.1.4", "iscsiadm: cannot be run"] {
            assert_eq!(too_old(&iscsiadm(fine)), None, "{fine}");
        }
        assert_eq!(too_old(&driver::Tool { name: "iscsi_tcp".into(), ..iscsiadm("1.0") }), None);
    }

    #[tokio::test]
    async fn modules_and_daemons() {
        let modules = new(|machine| machine.put_file("/lib/modules/6.12.0/modules.builtin", "")).await;
        assert!(
            matches!(&modules[..], [(Severity::Error, tcp), (Severity::Warning, multipath)]
            if tcp.contains("iscsi_tcp") && multipath.contains("dm_multipath")),
            "{modules:?}"
        );
        // Captured: who listens where systemd does not do it for iscsid.
        let others = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000e1b6f3a1: 00000002 00000000 00010000 0001 01 12 /run/systemd/private\n\
            0000000012f2c0d4: 00000003 00000000 00000000 0001 03 15 @ISCSIADM_ABSTRACT_NAMESPACE.x\n";
        one(&new(|machine| machine.put_file(SOCKETS, others)).await, Severity::Error, "iscsid: it does not run");
    }

    #[tokio::test]
    async fn names_that_two_hosts_may_have() {
        let named = |text: &'static str| new(move |machine| machine.put_file("/etc/iscsi/initiatorname.iscsi", text));
        one(&named("InitiatorName=iqn.2001-04.com.example:node1\n").await, Severity::Error, "node1 is no name of this");
        one(&named("InitiatorName=iqn.1993-08.org.debian:01:000000000000\n").await, Severity::Error, "000 is no name");
        let two = "# one\nInitiatorName=iqn.1993-08.org.debian:01:a\nInitiatorName=iqn.1993-08.org.debian:01:b\n";
        one(
            &named(two).await,
            Severity::Warning,
            "it holds 2 names; the last one, iqn.1993-08.org.debian:01:b, counts",
        );
        assert_eq!(
            named("# InitiatorName=iqn.2001-04.com.example:x\nInitiatorName=iqn.1994-05.com.redhat:a1\n").await,
            []
        );
    }

    #[tokio::test]
    async fn records_that_log_in_at_boot() {
        let nodes = "/etc/iscsi/nodes/iqn.2026-11.org.example:t1";
        let record = |path: &str, text: &str| {
            let (path, text) = (format!("{nodes}/{path}"), text.to_owned());
            move |machine: &Machine| machine.put_file(path, text)
        };
        let automatic = "# BEGIN RECORD 2.1.8\nnode.name = iqn.2026-11.org.example:t1\nnode.startup = automatic\n";
        let found = new(record("10.0.0.5,3260,1/default", automatic)).await;
        one(
            &found,
            Severity::Warning,
            "logs in by itself at boot to iqn.2026-11.org.example:t1 at 10.0.0.5,3260,1 (node",
        );
        one(&new(record("10.0.0.5,3260", automatic)).await, Severity::Warning, "at 10.0.0.5,3260 (node");
        let both = new(|machine| {
            record("10.0.0.5,3260,1/default", automatic)(machine);
            record("10.0.0.6,3260,1/default", automatic)(machine);
        });
        one(&both.await, Severity::Warning, "10.0.0.5,3260,1 and 1 more");
        let manual = automatic.replace("automatic", "manual");
        assert_eq!(new(record("10.0.0.5,3260,1/default", &manual)).await, []);
    }
}
