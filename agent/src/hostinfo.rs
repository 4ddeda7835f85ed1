//! What this machine is and can do, as a storage controller asks for it.

use crate::agent::Agent;
use driver::{Backend, Error, Iqn, Result};
use host::Host;
use proto::v1;
use std::path::Path;

const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";

/// Host, drivers and connector properties.
pub(crate) async fn read(agent: &Agent) -> Result<v1::HostInfo> {
    let facts = agent.host.facts().map_err(Error::host("ask what machine this is"))?;
    let mut drivers = Vec::new();
    for backend in Backend::ALL {
        let readiness = agent.drivers.readiness(backend).await;
        let tool = |tool: driver::Tool| v1::Tool {
            name: tool.name,
            path: tool.path.display().to_string(),
            version: tool.version,
        };
        drivers.push(v1::DriverInfo {
            backend: backend.to_string(),
            available: readiness.problem.is_none(),
            problem: readiness.problem.unwrap_or_default(),
            tools: readiness.tools.into_iter().map(tool).collect(),
        });
    }
    let addresses: Vec<String> = facts.addresses.iter().map(ToString::to_string).collect();
    let connector = v1::Connector {
        host: facts.name.clone(),
        ip: addresses.first().cloned().unwrap_or_default(),
        initiator: initiator(&line(agent.host.as_ref(), INITIATOR_NAME)?),
        platform: facts.platform,
        os_type: "linux".into(),
        multipath: false,
        do_local_attach: true,
        addresses,
        nqn: line(agent.host.as_ref(), "/etc/nvme/hostnqn")?.trim().to_owned(),
    };
    Ok(v1::HostInfo {
        name: facts.name,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_version: facts.kernel,
        boot_id: facts.boot_id,
        drivers,
        connector: Some(connector),
    })
}

/// This host's iSCSI name, if it has one.
pub(crate) fn initiator_name(host: &dyn Host) -> Result<Option<Iqn>> {
    Ok(initiator(&line(host, INITIATOR_NAME)?).parse().ok())
}

fn line(host: &dyn Host, path: &str) -> Result<String> {
    let text = host.read(Path::new(path)).map_err(Error::host("read the connector properties"))?;
    Ok(text.unwrap_or_default())
}

/// The value of the last `InitiatorName=` line that is no comment (iscsid(8)).
fn initiator(file: &str) -> String {
    let mut names = file.lines().rev().filter_map(|line| line.trim().strip_prefix("InitiatorName="));
    names.next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_initiator_name() {
        let file = "## a comment\n#InitiatorName=iqn.no\nInitiatorName=iqn.1993-08.org.debian:01:abc\n";
        assert_eq!(initiator(file), "iqn.1993-08.org.debian:01:abc");
        assert_eq!(initiator(""), "");
    }
}
