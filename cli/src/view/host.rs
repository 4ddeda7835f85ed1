//! The host: what it is, what it can do, and what a storage controller must know to let it in.

use super::{View, some};
use crate::table;
use proto::v1;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Host {
    name: String,
    agent_version: String,
    kernel_version: String,
    boot_id: String,
    drivers: Vec<Driver>,
    hypervisor: Option<Hypervisor>,
    connector: Option<Connector>,
}

#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
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
    fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![
            ("host", self.host.clone()),
            ("ip", self.ip.clone().unwrap_or_default()),
            ("initiator", self.initiator.clone().unwrap_or_default()),
            ("platform", self.platform.clone()),
            ("os_type", self.os_type.clone()),
            ("multipath", self.multipath.to_string()),
            ("enforce_multipath", self.enforce_multipath.to_string()),
            ("do_local_attach", self.do_local_attach.to_string()),
            ("addresses", self.addresses.join(", ")),
            ("nqn", self.nqn.clone().unwrap_or_default()),
            ("nvme_hostid", self.nvme_hostid.clone().unwrap_or_default()),
            ("nvme_native_multipath", self.nvme_native_multipath.to_string()),
            ("uuid", self.uuid.clone().unwrap_or_default()),
            ("system uuid", self.system_uuid.clone().unwrap_or_default()),
        ];
        rows.extend(self.wwpns.iter().map(|name| ("wwpns", name.clone())));
        rows.extend(self.wwnns.iter().map(|name| ("wwnns", name.clone())));
        rows
    }
}

impl View for Host {
    /// Two tables: the host with its connector properties, and its drivers.
    fn table(&self) -> String {
        let mut rows = vec![
            ("name", self.name.clone()),
            ("agent_version", self.agent_version.clone()),
            ("kernel_version", self.kernel_version.clone()),
            ("boot_id", self.boot_id.clone()),
        ];
        rows.extend(self.connector.iter().flat_map(Connector::rows));
        let line = |name: &str, available: bool, tools: &[Tool], problem: &Option<String>| {
            vec![
                name.to_owned(),
                available.to_string(),
                tools.iter().map(Tool::line).collect::<Vec<_>>().join(", "),
                problem.clone().unwrap_or_default(),
            ]
        };
        let drivers = self.drivers.iter().map(|it| line(&it.backend, it.available, &it.tools, &it.problem));
        let libvirt = self.hypervisor.iter().map(|it| line("libvirt", it.available, &it.tools, &it.problem));
        let drivers = drivers.chain(libvirt);
        let drivers = table::columns(&["driver", "available", "tools", "problem"], drivers);
        format!("{}\n{drivers}", table::properties(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            assert!(host.table().contains(line), "{}", host.table());
        }
    }
}
