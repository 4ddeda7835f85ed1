//! What both sides prove themselves with: TLS 1.3, from PEM files.
//!
//! The files are read anew for each connection, so a certificate that was renewed is used without a restart.

use crate::error::Error;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};

/// Certificates of more than this are the wrong file.
const LONGEST: u64 = 1 << 20;

/// The caller's certificate, its key, and the CAs that the agent may have its certificate from.
///
/// ```no_run
/// # fn main() -> Result<(), mortar_client::Error> {
/// let tls = mortar_client::Tls::builder()
///     .ca("/etc/controller/agents-ca.pem")
///     .certificate("/etc/controller/certificate.pem")
///     .key("/etc/controller/key.pem")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tls {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    server_name: Option<String>,
}

/// Makes a [`Tls`]; all three files are needed.
#[derive(Clone, Debug, Default)]
pub struct TlsBuilder {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
}

impl TlsBuilder {
    /// The certificates of the CAs that agents have theirs from; no others are trusted.
    #[must_use]
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// The caller's own certificate, with what stands between it and its CA behind it.
    #[must_use]
    pub fn certificate(mut self, file: impl Into<PathBuf>) -> Self {
        self.certificate = Some(file.into());
        self
    }

    /// The private key of that certificate.
    #[must_use]
    pub fn key(mut self, file: impl Into<PathBuf>) -> Self {
        self.key = Some(file.into());
        self
    }

    /// The name or address that the agent's certificate has to be for, where it is not the endpoint's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the files once, to see that they can be used.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`](crate::Kind::Invalid): a file was not named, cannot be read, is not PEM, or the key is not that of the
    /// certificate.
    pub fn build(self) -> Result<Tls, Error> {
        let (Some(ca), Some(certificate), Some(key)) = (self.ca, self.certificate, self.key) else {
            return Err(Error::invalid("TLS needs a CA, a certificate and its key"));
        };
        let tls = Tls { ca, certificate, key, server_name: self.server_name };
        tls.config()?;
        Ok(tls)
    }
}

impl Tls {
    /// Begins with no file named.
    #[must_use]
    pub fn builder() -> TlsBuilder {
        TlsBuilder::default()
    }

    /// Whose certificate the agent at `host` has to show.
    pub(crate) fn name(&self, host: &str) -> Result<ServerName<'static>, Error> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned())
            .map_err(|_| Error::invalid(format!("{name} is neither a name nor an address")))
    }

    /// From what is in the files now.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let Self { ca, certificate, key, .. } = self;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|error| wrong(ca, &error.to_string()))?;
        }
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(key, &error.to_string()))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| Error::invalid(error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key);
        let mut config = config.map_err(|error| wrong(certificate, &error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The files of the CAs and of the certificate, for what is said of them.
    pub(crate) fn files(&self) -> (&Path, &Path) {
        (&self.ca, &self.certificate)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(wrong(path, "there is no certificate in it")),
        Err(error) => Err(wrong(path, &error.to_string())),
    }
}

#[expect(clippy::disallowed_methods, reason = "the caller's own files, read with the caller's rights")]
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
    read.map_err(|error| wrong(path, &error.to_string()))?;
    Ok(bytes)
}

fn wrong(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{} cannot be used: {why}; it has to be PEM", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let missing = Tls::builder().ca("/nowhere/ca.pem").certificate("/nowhere/c.pem").build().unwrap_err();
        assert_eq!(missing.message(), "TLS needs a CA, a certificate and its key");
        let unread = Tls::builder()
            .ca("/nowhere/ca.pem")
            .certificate("/nowhere/c.pem")
            .key("/nowhere/k.pem")
            .build()
            .unwrap_err();
        assert!(unread.message().starts_with("/nowhere/ca.pem cannot be used: "), "{unread}");
        assert!(!unread.may_be_tried_again());
    }
}
