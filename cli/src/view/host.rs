//! The host: what it is, what it can do, and what a storage controller must know to let it in.

use super::{View, some};
use crate::table::{self, Cell, Property, Row, Table, each, property};
use proto::v1;
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Host {
    name: String,
    agent_version: String,
    kernel_version: String,
    boot_id: String,
    drivers: Vec<Driver>,
    hypervisor: Option<Hypervisor>,
    connector: Option<Connector>,
}

#[derive(Debug, Default, Serialize)]
struct Driver {
    backend: String,
    available: bool,
    problem: Option<String>,
    tools: Vec<Tool>,
}

#[derive(Debug, Serialize)]
struct Hypervisor {
    uri: String,
    available: bool,
    problem: Option<String>,
    tools: Vec<Tool>,
}

#[derive(Debug, Serialize)]
struct Tool {
    name: String,
    path: String,
    version: Option<String>,
}

/// The keys are os-brick's, so that the object can be handed to Cinder as it is: what this host has not is left out, because
/// Cinder's drivers only look whether a key is there. `addresses` is ours.
#[derive(Debug, Default, Serialize)]
struct Connector {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initiator: Option<String>,
    platform: String,
    os_type: String,
    multipath: bool,
    enforce_multipath: bool,
    do_local_attach: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wwpns: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wwnns: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nqn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvme_hostid: Option<String>,
    nvme_native_multipath: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(rename = "system uuid", skip_serializing_if = "Option::is_none")]
    system_uuid: Option<String>,
    addresses: Vec<String>,
}

impl From<v1::HostInfo> for Host {
    fn from(host: v1::HostInfo) -> Self {
        Self {
            name: host.name,
            agent_version: host.agent_version,
            kernel_version: host.kernel_version,
            boot_id: host.boot_id,
            drivers: host.drivers.into_iter().map(Driver::from).collect(),
            hypervisor: host.hypervisor.map(Hypervisor::from),
            connector: host.connector.map(Connector::from),
        }
    }
}

impl From<v1::DriverInfo> for Driver {
    fn from(driver: v1::DriverInfo) -> Self {
        Self {
            backend: driver.backend,
            available: driver.available,
            problem: some(driver.problem),
            tools: driver.tools.into_iter().map(Tool::from).collect(),
        }
    }
}

impl From<v1::HypervisorInfo> for Hypervisor {
    fn from(hypervisor: v1::HypervisorInfo) -> Self {
        Self {
            uri: hypervisor.uri,
            available: hypervisor.available,
            problem: some(hypervisor.problem),
            tools: hypervisor.tools.into_iter().map(Tool::from).collect(),
        }
    }
}

impl From<v1::Tool> for Tool {
    fn from(tool: v1::Tool) -> Self {
        Self { name: tool.name, path: tool.path, version: some(tool.version) }
    }
}

impl From<v1::Connector> for Connector {
    fn from(connector: v1::Connector) -> Self {
        Self {
            host: connector.host,
            ip: some(connector.ip),
            initiator: some(connector.initiator),
            platform: connector.platform,
            os_type: connector.os_type,
            multipath: connector.multipath,
            enforce_multipath: connector.enforce_multipath,
            do_local_attach: connector.do_local_attach,
            wwpns: connector.wwpns,
            wwnns: connector.wwnns,
            nqn: some(connector.nqn),
            nvme_hostid: some(connector.nvme_hostid),
            nvme_native_multipath: connector.nvme_native_multipath,
            uuid: some(connector.uuid),
            system_uuid: some(connector.system_uuid),
            addresses: connector.addresses,
        }
    }
}

impl Tool {
    fn line(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version} ({})", self.name, self.path),
            None => format!("{} ({})", self.name, self.path),
        }
    }
}

impl Connector {
    /// The rows that an agent without one does not have.
    fn none() -> Vec<Property> {
        Self::default().rows().into_iter().map(|(name, _)| (name, None)).collect()
    }

    fn rows(&self) -> Vec<Property> {
        let mut rows = vec![
            property("host", &self.host),
            property("ip", &self.ip),
            property("initiator", &self.initiator),
            property("platform", &self.platform),
            property("os_type", &self.os_type),
            property("multipath", self.multipath),
            property("enforce_multipath", self.enforce_multipath),
            property("do_local_attach", self.do_local_attach),
            property("addresses", self.addresses.join(", ")),
            property("nqn", &self.nqn),
            property("nvme_hostid", &self.nvme_hostid),
            property("nvme_native_multipath", self.nvme_native_multipath),
            property("uuid", &self.uuid),
            property("system uuid", &self.system_uuid),
        ];
        rows.extend(each("wwpns", &self.wwpns));
        rows.extend(each("wwnns", &self.wwnns));
        rows
    }
}

/// A driver in the table of them, or libvirt.
#[derive(Default, Serialize)]
struct Able {
    driver: String,
    available: bool,
    tools: String,
    problem: Option<String>,
}

impl Able {
    fn new(driver: &str, available: bool, tools: &[Tool], problem: &Option<String>) -> Self {
        let tools = tools.iter().map(Tool::line).collect::<Vec<_>>().join(", ");
        Self { driver: driver.to_owned(), available, tools, problem: problem.clone() }
    }
}

impl Row for Able {
    const COLUMNS: &'static [&'static str] = &["driver", "available", "tools", "problem"];

    fn cells(&self) -> Vec<Cell> {
        let problem = self.problem.as_deref().map(table::problem);
        vec![(&self.driver).into(), self.available.into(), (&self.tools).into(), problem.unwrap_or_default()]
    }
}

impl View for Host {
    /// Two tables: the host with its connector properties, and its drivers.
    fn tables(&self) -> Vec<Table> {
        let mut rows = vec![
            property("name", &self.name),
            property("agent_version", &self.agent_version),
            property("kernel_version", &self.kernel_version),
            property("boot_id", &self.boot_id),
        ];
        rows.extend(self.connector.as_ref().map_or_else(Connector::none, Connector::rows));
        let drivers = self.drivers.iter().map(|it| Able::new(&it.backend, it.available, &it.tools, &it.problem));
        let libvirt = self.hypervisor.iter().map(|it| Able::new("libvirt", it.available, &it.tools, &it.problem));
        let drivers: Vec<_> = drivers.chain(libvirt).collect();
        vec![Table::properties(self, rows), Table::list(&drivers)]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::drawn, *};
    use serde_json::{json, to_value};

    #[test]
    fn json_and_table() {
        let host = Host::from(v1::HostInfo {
            name: "hv1".into(),
            agent_version: "0.1.0".into(),
            kernel_version: "6.1.0".into(),
            boot_id: "b".into(),
            drivers: vec![v1::DriverInfo {
                backend: "lvm".into(),
                available: true,
                problem: String::new(),
                tools: vec![v1::Tool { name: "lvm".into(), path: "/sbin/lvm".into(), version: "2.03.16".into() }],
            }],
            connector: Some(v1::Connector {
                host: "hv1".into(),
                initiator: "iqn.2026-11.org.example:hv1".into(),
                os_type: "linux".into(),
                platform: "x86_64".into(),
                addresses: vec!["10.0.0.9".into()],
                system_uuid: "4c4c4544-0000-2010-8020-80c04f202020".into(),
                wwpns: vec!["50014380186b6dd4".into()],
                ..Default::default()
            }),
            hypervisor: Some(v1::HypervisorInfo {
                uri: "qemu:///system".into(),
                available: false,
                problem: "it does not run".into(),
                tools: Vec::new(),
            }),
        });
        assert_eq!(
            to_value(&host).unwrap(),
            json!({
                "name": "hv1",
                "agent_version": "0.1.0",
                "kernel_version": "6.1.0",
                "boot_id": "b",
                "drivers": [{
                    "backend": "lvm",
                    "available": true,
                    "problem": null,
                    "tools": [{ "name": "lvm", "path": "/sbin/lvm", "version": "2.03.16" }],
                }],
                "hypervisor": {
                    "uri": "qemu:///system",
                    "available": false,
                    "problem": "it does not run",
                    "tools": [],
                },
                "connector": {
                    "host": "hv1",
                    "initiator": "iqn.2026-11.org.example:hv1",
                    "platform": "x86_64",
                    "os_type": "linux",
                    "multipath": false,
                    "enforce_multipath": false,
                    "do_local_attach": false,
                    "wwpns": ["50014380186b6dd4"],
                    "nvme_native_multipath": false,
                    "system uuid": "4c4c4544-0000-2010-8020-80c04f202020",
                    "addresses": ["10.0.0.9"],
                },
            })
        );
        for line in ["| lvm     | true      | lvm 2.03.16 (/sbin/lvm) |", "| libvirt | false     |"] {
            assert!(drawn(&host).contains(line), "{}", drawn(&host));
        }
    }
}
