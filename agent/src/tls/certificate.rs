//! The certificate of a caller: whom it names, and whether it is still good.

use super::{Identity, identity::Loaded};
use driver::{Error, Result};
use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use x509_cert::{
    Certificate as Parsed,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// A certificate is looked at again after this time, because it may have expired; and as soon as the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a handshake proved.
#[derive(Debug)]
pub struct Certificate {
    pub(crate) names: Names,
    /// From where it was shown.
    address: IpAddr,
    chain: Vec<CertificateDer<'static>>,
    identity: Arc<Identity>,
    good: Mutex<Good>,
}

/// When it was good, and by what.
#[derive(Debug)]
struct Good {
    by: Arc<Loaded>,
    at: Instant,
}

/// Whom a certificate names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) common_name: Option<String>,
    pub(crate) uris: Vec<String>,
    /// In lower case.
    pub(crate) dns: Vec<String>,
    /// In hexadecimal digits: which one it is of those that a CA has issued.
    serial: String,
}

impl Names {
    /// Of a certificate whose signatures have been checked.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = Parsed::from_der(certificate).ok()?;
        let parsed = parsed.tbs_certificate();
        let common_name = parsed.subject().common_name().ok()?.map(|name| name.value().into_owned());
        let mut names = Self { common_name, serial: parsed.serial_number().to_string(), ..Self::default() };
        if let Some((_, SubjectAltName(also))) = parsed.get_extension::<SubjectAltName>().ok()? {
            for name in also {
                match name {
                    GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
                    GeneralName::DnsName(name) => names.dns.push(name.to_string().to_ascii_lowercase()),
                    _ => {}
                }
            }
        }
        Some(names)
    }
}

/// The name that says most, escaped: others have chosen it.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.uris.first().or(self.dns.first()).or(self.common_name.as_ref());
        match name {
            Some(name) => write!(f, "{name:?} (certificate {})", self.serial),
            None => write!(f, "certificate {}", self.serial),
        }
    }
}

impl Certificate {
    /// `None` if it names nobody that we can read.
    pub(super) fn new(
        chain: &[CertificateDer<'_>],
        address: IpAddr,
        identity: &Arc<Identity>,
        by: Arc<Loaded>,
    ) -> Option<Self> {
        Some(Self {
            names: Names::of(chain.first()?)?,
            address,
            chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
            identity: Arc::clone(identity),
            good: Mutex::new(Good { by, at: Instant::now() }),
        })
    }

    /// [`Error::Denied`] if it has expired since the handshake, or was revoked, or its CA is no longer one of ours.
    pub(crate) fn is_still_good(&self) -> Result<()> {
        let now = self.identity.now();
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&now, &good.by) && good.at.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        let Some((own, between)) = self.chain.split_first() else { return Ok(()) };
        now.clients.verify_client_cert(own, between, UnixTime::now()).map_err(|error| Error::Denied {
            who: "mortard".into(),
            why: format!("{self}: {error}; connect again with another certificate"),
        })?;
        *good = Good { by: now, at: Instant::now() };
        Ok(())
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.names, self.address)
    }
}
