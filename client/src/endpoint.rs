//! The agent of another machine, as text: `https://HOST:PORT`.

use crate::error::Error;
use std::{fmt, str::FromStr};

/// The port of an endpoint that names none.
const PORT: u16 = 7443;

/// Where the agent of another machine listens (`tls.listen` of its config).
///
/// As text it is `https://HOST`, `https://HOST:PORT` or `https://[ADDRESS]:PORT`; without a port it is 7443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without brackets. The agent's certificate has to be for it, unless
    /// [`TlsBuilder::server_name`](crate::TlsBuilder::server_name) says otherwise.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "https://[{host}]:{port}") } else { write!(f, "https://{host}:{port}") }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// [`Kind::Invalid`](crate::Kind::Invalid) for anything but the three forms.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("not an endpoint, write https://HOST:PORT");
        let rest = text.strip_prefix("https://").ok_or_else(invalid)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(invalid)?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| invalid())?,
            None if port.is_empty() => PORT,
            None => return Err(invalid()),
        };
        if host.is_empty() || host.contains(['/', '@', '?', ' ']) {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, host, port) in [
            ("https://h1.example.org", "h1.example.org", 7443),
            ("https://h1:1234/", "h1", 1234),
            ("https://10.0.0.7:1", "10.0.0.7", 1),
            ("https://[fd00::7]:1234", "fd00::7", 1234),
            ("https://[fd00::7]", "fd00::7", 7443),
        ] {
            let parsed: Endpoint = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string().parse::<Endpoint>().unwrap(), parsed);
        }
        for text in [
            "h1:1234",
            "http://h1",
            "https://",
            "https://h1:x",
            "https://h1:99999",
            "https://u@h1",
            "https://[fd00::7",
            "https://h1/x",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
