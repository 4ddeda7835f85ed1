//! What each RPC needs: the one table. An RPC that is not in it is served to nobody, and a test holds it against the
//! descriptors of everything that is served.

use crate::{
    config::{Callers, Role},
    operation::Plan,
};

/// What an RPC needs of its caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rpc {
    /// `mortar.agent.v1.Attachments/Attach`
    pub(crate) name: &'static str,
    needs: Needs,
    /// It is asked of each thing that it touches or shows whether that is in the caller's reach. Otherwise it looks at the
    /// host as a whole, and a caller whose reach ends somewhere may not.
    pub(crate) by_reach: bool,
    /// It changes something, and so each call of it is in the audit log.
    pub(crate) changes: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Needs {
    Role(Role),
    /// As the config says.
    Health,
    Reflection,
}

impl Rpc {
    const fn shows(name: &'static str) -> Self {
        Self { name, needs: Needs::Role(Role::Viewer), by_reach: true, changes: false }
    }

    const fn changes(name: &'static str, role: Role) -> Self {
        Self { name, needs: Needs::Role(role), by_reach: true, changes: true }
    }

    const fn host(name: &'static str) -> Self {
        Self { name, needs: Needs::Role(Role::Viewer), by_reach: false, changes: false }
    }

    const fn about_itself(name: &'static str, needs: Needs) -> Self {
        Self { name, needs, by_reach: true, changes: false }
    }

    /// The role that it needs; `None`: none.
    pub(crate) fn role(&self, config: &Callers) -> Option<Role> {
        match self.needs {
            Needs::Role(role) => Some(role),
            Needs::Health => config.health.role(),
            Needs::Reflection => config.reflection.role(),
        }
    }
}

/// Viewers look; operators attach and detach what exists, and turn instances on and off; admins give volumes new names, serve
/// them to others, and change how instances boot. To cancel
/// an operation is an operator's, if it could have been his; to repair (a field of Diagnose) is an admin's.
static TABLE: [Rpc; 31] = [
    Rpc::changes("mortar.agent.v1.Attachments/Attach", Role::Operator),
    Rpc::changes("mortar.agent.v1.Attachments/Detach", Role::Operator),
    Rpc::shows("mortar.agent.v1.Attachments/Get"),
    Rpc::shows("mortar.agent.v1.Attachments/List"),
    Rpc::changes("mortar.agent.v1.Attachments/Extend", Role::Operator),
    Rpc::shows("mortar.agent.v1.Attachments/Watch"),
    Rpc::shows("mortar.agent.v1.Volumes/ListManageable"),
    Rpc::changes("mortar.agent.v1.Volumes/Manage", Role::Admin),
    Rpc::changes("mortar.agent.v1.Volumes/Unmanage", Role::Admin),
    Rpc::shows("mortar.agent.v1.Volumes/List"),
    Rpc::shows("mortar.agent.v1.Volumes/Get"),
    Rpc::changes("mortar.agent.v1.Exports/Export", Role::Admin),
    Rpc::changes("mortar.agent.v1.Exports/Unexport", Role::Admin),
    Rpc::shows("mortar.agent.v1.Exports/Get"),
    Rpc::shows("mortar.agent.v1.Exports/List"),
    Rpc::shows("mortar.agent.v1.Instances/List"),
    Rpc::shows("mortar.agent.v1.Instances/Get"),
    Rpc::changes("mortar.agent.v1.Instances/Rescue", Role::Admin),
    Rpc::changes("mortar.agent.v1.Instances/Unrescue", Role::Admin),
    Rpc::changes("mortar.agent.v1.Instances/Start", Role::Operator),
    Rpc::changes("mortar.agent.v1.Instances/Stop", Role::Operator),
    Rpc::changes("mortar.agent.v1.Instances/Reboot", Role::Operator),
    Rpc::shows("mortar.agent.v1.Operations/Get"),
    Rpc::shows("mortar.agent.v1.Operations/List"),
    Rpc::changes("mortar.agent.v1.Operations/Cancel", Role::Operator),
    Rpc::shows("mortar.agent.v1.Host/GetHost"),
    Rpc::host("mortar.agent.v1.Host/Diagnose"),
    Rpc::about_itself("grpc.health.v1.Health/Check", Needs::Health),
    Rpc::about_itself("grpc.health.v1.Health/Watch", Needs::Health),
    Rpc::about_itself("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs::Reflection),
    Rpc::about_itself("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Needs::Reflection),
];

/// By the path of a request: `/SERVICE/METHOD`.
pub(crate) fn rpc(path: &str) -> Option<&'static Rpc> {
    let name = path.strip_prefix('/')?;
    TABLE.iter().find(|rpc| rpc.name == name)
}

/// The role that an operation needs, whatever call it was that led to it.
pub(crate) fn role_for(plan: &Plan) -> Role {
    match plan {
        Plan::Attach { .. } | Plan::Detach { .. } | Plan::Extend { .. } | Plan::Power { .. } => Role::Operator,
        Plan::Manage { .. }
        | Plan::Unmanage { .. }
        | Plan::Export { .. }
        | Plan::Unexport { .. }
        | Plan::Rescue { .. }
        | Plan::Unrescue { .. } => Role::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Need;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::BTreeSet;

    /// Whoever adds an RPC decides here what it needs.
    #[test]
    fn every_rpc_that_is_served_is_in_it() {
        let mut served = BTreeSet::new();
        for encoded in [
            proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(encoded).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        served.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()));
                    }
                }
            }
        }
        let ruled: BTreeSet<String> = TABLE.iter().map(|rpc| rpc.name.to_owned()).collect();
        assert_eq!(ruled.len(), TABLE.len(), "an RPC is in it twice");
        assert_eq!(served, ruled, "left: what is served, right: what the table knows");
        assert!(rpc("/mortar.agent.v1.Attachments/Attach").is_some());
        assert!(rpc("mortar.agent.v1.Attachments/Attach").is_none());
    }

    #[test]
    fn nobody_changes_anything_without_being_an_operator_at_least() {
        let config = Callers { health: Need::Anyone, reflection: Need::Anyone, ..Callers::default() };
        for rpc in &TABLE {
            let role = rpc.role(&config);
            assert!(!rpc.changes || role >= Some(Role::Operator), "{}", rpc.name);
            assert!(role.is_some() || !rpc.name.starts_with("mortar."), "{}", rpc.name);
        }
    }
}
