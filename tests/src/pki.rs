//! Certificates for tests: CAs, what they issue, and what they revoke.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

/// A CA of a test's own.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate is to be.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    pub serial: u64,
    pub common_name: &'a str,
    pub uri: Option<&'a str>,
    pub dns: Option<&'a str>,
    pub expired: bool,
    /// For a server, not for a client.
    pub server: bool,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, wanted: &Wanted<'_>) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params(wanted).signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// What it has revoked; out of date, if `stale`.
    pub fn crl(&self, serials: &[u64], stale: bool) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(if stale { 2024 } else { 4000 }, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A certificate that nobody but its holder vouches for.
pub fn self_signed(wanted: &Wanted<'_>) -> Issued {
    let key = KeyPair::generate().unwrap();
    Issued { certificate: params(wanted).self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn params(wanted: &Wanted<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(wanted.serial));
    params.distinguished_name.push(DnType::CommonName, wanted.common_name);
    params.subject_alt_names.extend(wanted.uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
    params.subject_alt_names.extend(wanted.dns.map(|dns| SanType::DnsName(dns.try_into().unwrap())));
    let usage = if wanted.server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    if wanted.expired {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    params
}
