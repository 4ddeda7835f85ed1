//! gRPC from other machines: the section `[tls]`.

use super::ConfigError;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// gRPC from other machines, by TLS 1.3 with certificates on both sides, and in no other way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The addresses that it is served on. Empty: none.
    pub listen: Vec<SocketAddr>,
    /// The agent's certificate, and those between it and its CA; PEM, as all of these.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the CAs that callers have theirs from.
    pub client_ca: PathBuf,
    /// What these CAs have revoked. If there are any, each CA needs one that is not out of date.
    pub crl: Vec<PathBuf>,
    /// How long a caller may take to prove who he is.
    pub handshake_timeout_ms: u64,
    /// How many may be at it at a time. For one more, the oldest of the address that has most of them is hung up.
    pub handshakes: usize,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            certificate: "/etc/mortar/tls/certificate.pem".into(),
            key: "/etc/mortar/tls/key.pem".into(),
            client_ca: "/etc/mortar/tls/client-ca.pem".into(),
            crl: Vec::new(),
            handshake_timeout_ms: 5_000,
            handshakes: 256,
        }
    }
}

impl Tls {
    /// See `handshake_timeout_ms`.
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let value = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        for (key, path) in
            [("tls.certificate", &self.certificate), ("tls.key", &self.key), ("tls.client_ca", &self.client_ca)]
        {
            if !path.is_absolute() {
                return value(key, "write an absolute path");
            }
        }
        if self.crl.iter().any(|path| !path.is_absolute()) {
            return value("tls.crl", "write absolute paths");
        }
        if self.handshake_timeout_ms == 0 {
            return value("tls.handshake_timeout_ms", "write 1 or more");
        }
        if self.handshakes == 0 {
            return value("tls.handshakes", "write 1 or more");
        }
        Ok(())
    }
}
