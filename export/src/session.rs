//! Who is logged in to an export, as LIO tells of it in the `info` of each access list. There is no other place; it is a text
//! for people:
//!
//! ```text
//!   InitiatorName: iqn.2026-11.org.example:other
//!   LIO Session ID: 1   ISID: 0x00 02 3d 00 00 03  TSIH: 3  SessionType: Normal
//!   CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN
//!      Address 10.0.0.2 TCP  StatSN: 0xa3671502
//! ```
//!
//! or `No active iSCSI Session for Initiator Endpoint: …`. A session whose connection is lost counts until the kernel drops it.

use crate::{Export, Exporter, failed};
use driver::Result;
use std::fmt;

/// An initiator that is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub initiator: String,
    /// Where it comes from; `None` while it has no connection.
    pub address: Option<String>,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{} at {address}", self.initiator),
            None => write!(f, "{}, whose connection is lost", self.initiator),
        }
    }
}

pub(crate) fn list(exporter: &Exporter, export: &Export) -> Result<Vec<Session>> {
    let acls = exporter.tree.acls(export);
    let mut sessions = Vec::new();
    for initiator in exporter.host.list(&acls).map_err(failed("list the access lists of a target"))? {
        let info = acls.join(initiator).join("info");
        let text = exporter.host.read(&info).map_err(failed("read who is logged in"))?;
        sessions.extend(text.as_deref().and_then(parse));
    }
    Ok(sessions)
}

fn parse(info: &str) -> Option<Session> {
    let value = |key: &str| info.lines().find_map(|line| line.trim().strip_prefix(key));
    let initiator = value("InitiatorName:")?.trim().to_owned();
    let address = value("Address ").and_then(|rest| rest.split_whitespace().next()).map(str::to_owned);
    Some(Session { initiator, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let session = include_str!("../testdata/session.info");
        let expected = Session { initiator: "iqn.2026-11.org.example:guest".into(), address: Some("127.0.0.1".into()) };
        assert_eq!(parse(session), Some(expected));
        let lost: Vec<&str> = session.lines().filter(|line| !line.contains("Address")).collect();
        let lost = parse(&lost.join("\n")).unwrap();
        assert_eq!(lost.to_string(), "iqn.2026-11.org.example:guest, whose connection is lost");
        assert_eq!(parse("No active iSCSI Session for Initiator Endpoint: iqn.2026-11.org.example:guest"), None);
        assert_eq!(parse(""), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(info in "(\\PC|\n|InitiatorName:|Address ){0,60}") {
            let _session = parse(&info);
        }
    }
}
