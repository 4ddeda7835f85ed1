//! The wire contract `mortar.agent.v1` and nothing else: generated messages, clients and servers, and the file
//! descriptor set that reflection serves.
//!
//! The contract is written, with every error of every call, in `mortar/agent/v1/agent.proto`.

#![allow(missing_docs, clippy::all, unreachable_pub, reason = "generated from the proto, which carries the comments")]

/// The messages and services of `mortar.agent.v1`.
pub mod v1 {
    tonic::include_proto!("mortar.agent.v1");

    /// Without the password.
    impl std::fmt::Debug for Chap {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Chap").field("user", &self.user).finish_non_exhaustive()
        }
    }
}

/// The compiled proto, as reflection and other languages need it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mortar.agent.v1.bin"));

/// The domain of every `google.rpc.ErrorInfo` that the agent sends.
pub const ERROR_DOMAIN: &str = "mortar";
