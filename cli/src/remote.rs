//! To the agent of another machine: TLS 1.3, with the user's certificate.

use crate::{
    args::To,
    error::{Error, Failure},
    values::Endpoint,
};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        version::TLS13,
    },
};

/// Certificates of more than this are the wrong file.
const LONGEST: u64 = 1 << 20;

/// A connection on which both sides have proved who they are.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    to: &To,
    patience: Duration,
) -> Result<BufReader<TlsStream<TcpStream>>, Error> {
    let config = config(to)?;
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|_| Failure::invalid(format!("{} is neither a name nor an address", endpoint.host)))?;
    let whole = async {
        let reached = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
        let stream = reached.map_err(|error| Failure::unreachable(&endpoint.to_string(), &error))?;
        let told_apart = stream.set_nodelay(true);
        told_apart.map_err(|error| Failure::unreachable(&endpoint.to_string(), &error))?;
        let proved = TlsConnector::from(config).connect(name, stream).await;
        let stream = proved.map_err(|error| Failure::not_trusted(&endpoint.to_string(), &error))?;
        let mut stream = BufReader::new(stream);
        // In TLS 1.3 the agent looks at our certificate after our side is done. What it thinks of it is known with its first
        // byte: it speaks first.
        match stream.fill_buf().await {
            Ok([]) => Err(Failure::refused_us(&endpoint.to_string(), "it hung up")),
            Ok(_) => Ok(stream),
            Err(error) => Err(Failure::refused_us(&endpoint.to_string(), &error.to_string())),
        }
    };
    let late = || Failure::unreachable(&endpoint.to_string(), &io::Error::from(io::ErrorKind::TimedOut));
    Ok(timeout(patience, whole).await.map_err(|_| late())??)
}

fn config(to: &To) -> Result<Arc<ClientConfig>, Error> {
    let (Some(cert), Some(key), Some(ca)) = (&to.cert, &to.key, &to.ca) else {
        return Err(Failure::invalid("--endpoint needs --cert, --key and --ca as well; see --help").into());
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|error| wrong(ca, &error.to_string()))?;
    }
    let chain = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| wrong(key, &error.to_string()))?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Failure::internal(error.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key);
    let mut config = config.map_err(|error| wrong(cert, &error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(wrong(path, "there is no certificate in it").into()),
        Err(error) => Err(wrong(path, &error.to_string()).into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the caller's own files, read with the caller's rights")]
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
    read.map_err(|error| wrong(path, &error.to_string()))?;
    Ok(bytes)
}

fn wrong(path: &Path, why: &str) -> Failure {
    Failure::invalid(format!("{} cannot be used: {why}; it has to be PEM", path.display()))
}
