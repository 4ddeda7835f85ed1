//! The wire contract `mortar.agent.v1` and nothing else: generated messages, clients and servers, the file descriptor set
//! that reflection serves, and what the reasons of its errors mean.
//!
//! The contract is written, with every error of every call, in `mortar/agent/v1/agent.proto`.

#![allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    rustdoc::broken_intra_doc_links,
    reason = "generated from the proto, which carries the comments"
)]

/// The messages and services of `mortar.agent.v1`.
pub mod v1 {
    tonic::include_proto!("mortar.agent.v1");

    /// Without the password.
    impl std::fmt::Debug for Chap {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Chap").field("user", &self.user).finish_non_exhaustive()
        }
    }

    /// Without the key.
    impl std::fmt::Debug for Cephx {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Cephx").finish_non_exhaustive()
        }
    }

    /// Without the `connection_info`, which may hold a password.
    impl std::fmt::Debug for AttachRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let locator = match &self.volume {
                Some(attach_request::Volume::Locator(locator)) => locator,
                Some(attach_request::Volume::ConnectionInfo(_)) => "connection_info",
                None => "",
            };
            f.debug_struct("AttachRequest").field("id", &self.id).field("volume", &locator).finish_non_exhaustive()
        }
    }

    /// Without the `connection_info`, which may hold a password.
    impl std::fmt::Debug for DetachRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let target = match &self.target {
                Some(
                    detach_request::Target::Id(text)
                    | detach_request::Target::Locator(text)
                    | detach_request::Target::Device(text),
                ) => text,
                Some(detach_request::Target::ConnectionInfo(_)) => "connection_info",
                None => "",
            };
            f.debug_struct("DetachRequest").field("target", &target).finish_non_exhaustive()
        }
    }

    /// Without the password and the user data, which may hold another.
    impl std::fmt::Debug for RescueRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let disk = match &self.disk {
                Some(rescue_request::Disk::Image(locator) | rescue_request::Disk::Volume(locator)) => locator,
                None => "",
            };
            f.debug_struct("RescueRequest")
                .field("instance", &self.instance)
                .field("disk", &disk)
                .field("ssh_keys", &self.ssh_keys)
                .finish_non_exhaustive()
        }
    }

    /// Without the password.
    impl std::fmt::Debug for RescueResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("RescueResponse")
                .field("instance", &self.instance)
                .field("changed", &self.changed)
                .field("warnings", &self.warnings)
                .finish_non_exhaustive()
        }
    }

    /// Without the `connection_info`, which holds the password.
    impl std::fmt::Debug for ExportResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("ExportResponse").field("export", &self.export).finish_non_exhaustive()
        }
    }
}

pub mod reasons;

/// The compiled proto, as reflection and other languages need it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mortar.agent.v1.bin"));

/// The domain of every `google.rpc.ErrorInfo` that the agent sends.
pub const ERROR_DOMAIN: &str = "mortar";
