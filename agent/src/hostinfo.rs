//! What this machine is and can do, as a storage controller asks for it.

use crate::{agent::Agent, connector};
use driver::{Backend, Error, Result};
use proto::v1;

/// Host, drivers and connector properties.
pub(crate) async fn read(agent: &Agent) -> Result<v1::HostInfo> {
    let facts = agent.host.facts().map_err(Error::host("ask what machine this is"))?;
    let mut drivers = Vec::new();
    let tool =
        |tool: driver::Tool| v1::Tool { name: tool.name, path: tool.path.display().to_string(), version: tool.version };
    for backend in Backend::ALL {
        let readiness = agent.drivers.readiness(backend).await;
        drivers.push(v1::DriverInfo {
            backend: backend.to_string(),
            available: readiness.problem.is_none(),
            problem: readiness.problem.unwrap_or_default(),
            tools: readiness.tools.into_iter().map(tool).collect(),
        });
    }
    let hypervisor = agent.hypervisor.readiness().await;
    let connector = connector::read(agent.host.as_ref(), &facts).await?;
    Ok(v1::HostInfo {
        name: facts.name,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_version: facts.kernel,
        boot_id: facts.boot_id,
        drivers,
        connector: Some(connector),
        hypervisor: Some(v1::HypervisorInfo {
            uri: agent.config.hypervisor.uri.clone(),
            available: hypervisor.problem.is_none(),
            problem: hypervisor.problem.unwrap_or_default(),
            tools: hypervisor.tools.into_iter().map(tool).collect(),
        }),
    })
}
