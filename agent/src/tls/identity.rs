//! The agent's own certificate, and how it knows those of others: from files, which are read again when they change.

use super::TlsError;
use crate::config::Tls;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

/// The files are looked at no more often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What holds now, and what it was read from.
#[derive(Debug)]
pub(crate) struct Identity {
    config: Tls,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    now: Arc<Loaded>,
    looked: Instant,
    /// The files as they were when they were read last, or tried to.
    stamps: Vec<Stamp>,
}

/// All that a handshake needs.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    pub(super) clients: Arc<dyn ClientCertVerifier>,
}

/// What tells that a file is another one now.
type Stamp = Option<(u64, i64, i64, u64)>;

impl Identity {
    pub(crate) fn load(config: &Tls) -> Result<Self, TlsError> {
        let stamps = stamps(config);
        let now = Arc::new(read(config)?);
        let state = State { now, looked: Instant::now(), stamps };
        Ok(Self { config: config.clone(), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds now; first, unless that was done just now, the files are looked at. Those that cannot be used change
    /// nothing: what was there before goes on to hold, and the log says why, once.
    pub(crate) fn now(&self) -> Arc<Loaded> {
        let mut state = self.state();
        if state.looked.elapsed() >= LOOK_EVERY {
            self.look(&mut state);
        }
        Arc::clone(&state.now)
    }

    /// Looks at the files at once.
    pub(crate) fn reload(&self) {
        self.look(&mut self.state());
    }

    fn look(&self, state: &mut State) {
        state.looked = Instant::now();
        let stamps = stamps(&self.config);
        if stamps == state.stamps {
            return;
        }
        state.stamps = stamps;
        match read(&self.config) {
            Ok(loaded) => {
                state.now = Arc::new(loaded);
                tracing::info!("the files of [tls] have changed, and hold");
            }
            Err(error) => {
                tracing::error!("the files of [tls] have changed, and are wrong; those before go on to hold: {error}")
            }
        }
    }
}

fn files(config: &Tls) -> impl Iterator<Item = &PathBuf> {
    [&config.certificate, &config.key, &config.client_ca].into_iter().chain(&config.crl)
}

fn stamps(config: &Tls) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.size()))
    };
    files(config).map(stamp).collect()
}

fn read(config: &Tls) -> Result<Loaded, TlsError> {
    // Said in so many words: another crate may bring another provider, and there would be no default then.
    let provider = Arc::new(ring::default_provider());
    let clients = clients(config, &provider)?;
    let chain = all::<CertificateDer<'static>>("certificate", &config.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes("key", &config.key)?)
        .map_err(|error| wrong("key", &config.key, format!("no private key: {error}")))?;
    if std::fs::metadata(&config.key).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
        tracing::warn!(path = %config.key.display(), "others may read the private key of [tls]: chmod 600 {}", config.key.display());
    }
    let together = |error: tokio_rustls::rustls::Error| TlsError::Together(error.to_string());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(together)?
        .with_client_cert_verifier(Arc::clone(&clients))
        .with_single_cert(chain, key)
        .map_err(together)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    // A session that is taken up again would not be asked for its certificate.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Loaded { server: Arc::new(server), clients })
}

fn clients(config: &Tls, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in all::<CertificateDer<'static>>("client_ca", &config.client_ca)? {
        roots.add(root).map_err(|error| wrong("client_ca", &config.client_ca, error.to_string()))?;
    }
    let mut clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    for path in &config.crl {
        clients = clients.with_crls(all::<CertificateRevocationListDer<'static>>("crl", path)?);
    }
    if !config.crl.is_empty() {
        // Whoever keeps a new list from coming here must not win by it.
        clients = clients.enforce_revocation_expiration();
    }
    clients.build().map_err(|error| TlsError::Together(error.to_string()))
}

fn wrong(key: &'static str, path: &Path, why: impl Into<String>) -> TlsError {
    TlsError::File { key, path: path.to_owned(), why: why.into() }
}

#[expect(clippy::disallowed_methods, reason = "the agent's own, as its config")]
fn bytes(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| wrong(key, path, error.to_string()))
}

/// Every one of a sort that a file holds; at least one.
fn all<T: PemObject>(key: &'static str, path: &Path) -> Result<Vec<T>, TlsError> {
    let text = bytes(key, path)?;
    let all: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| wrong(key, path, error.to_string()))?;
    if all.is_empty() { Err(wrong(key, path, "there is none in it; it has to be PEM")) } else { Ok(all) }
}
