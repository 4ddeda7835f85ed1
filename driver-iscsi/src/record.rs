//! The node record: open-iscsi's file about one portal of one target, which `iscsiadm` reads to log in.
//!
//! We write it ourselves instead of with `iscsiadm --op new` and `--op update`: those are one process for each change, and
//! take the CHAP password as an argument that everybody on the host can read in `/proc`. And it is there only while a
//! login runs. The daemon keeps what it needs to log in again, the kernel keeps it for a restarted daemon, and a logout goes
//! by the session's number; so no password stays on a disk, and nothing is left over after a reboot.
//!
//! What the record does not say is taken from `/etc/iscsi/iscsid.conf`: there the operator tunes time-outs, queue depths
//! and digests for all of the host.

use crate::place::Place;
use driver::{Chap, Error, Portal, Result};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use std::path::{Path, PathBuf};

/// The name of our interface, and so of our records and sessions.
pub(crate) const INTERFACE: &str = "mortar";

/// The portal group in the record's path. It has to be some number from 0 up; the true one is the target's secret until
/// the login, and open-iscsi does not hold it against the record's.
const PORTAL_GROUP: u16 = 0;

/// The longest name or password that open-iscsi keeps, without its final NUL (`AUTH_STR_MAX_LEN`).
const MAX_CREDENTIAL: usize = 255;

/// A name and a password that can stand in a record without becoming something else.
pub(crate) struct Credentials {
    user: String,
    password: SecretString,
}

impl Credentials {
    /// A record is lines of `key = value`: a line's end in a password would be a setting of the caller's choice. Spaces
    /// around a value are lost when it is read.
    pub(crate) fn new(chap: &Chap) -> Result<Self> {
        let fits = |text: &str| {
            (1..=MAX_CREDENTIAL).contains(&text.len()) && text.trim() == text && !text.chars().any(char::is_control)
        };
        let rule = "1 to 255 bytes, no control characters, no space at either end";
        if !fits(&chap.user) {
            return Err(Error::invalid("chap.user", format!("a CHAP name has {rule}")));
        }
        if !fits(chap.password.expose_secret()) {
            return Err(Error::invalid("chap.password", format!("a CHAP password has {rule}")));
        }
        Ok(Self { user: chap.user.clone(), password: chap.password.clone() })
    }
}

/// The file of our record for a portal.
pub(crate) fn path(nodes: &Path, place: &Place) -> PathBuf {
    directory(nodes, place.iqn.as_str(), &place.portal).join(INTERFACE)
}

/// Where the records of a portal are, each interface's in a file of its own.
pub(crate) fn directory(nodes: &Path, iqn: &str, portal: &Portal) -> PathBuf {
    nodes.join(iqn).join(format!("{},{},{PORTAL_GROUP}", portal.address, portal.port))
}

/// The record's text.
pub(crate) fn render(place: &Place, credentials: Option<&Credentials>, login_timeout_s: u64) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2048));
    let mut line = |key: &str, value: &str| {
        for part in [key, " = ", value, "\n"] {
            text.push_str(part);
        }
    };
    line("node.name", place.iqn.as_str());
    // Unknown: open-iscsi takes the one that the target names.
    line("node.tpgt", "-1");
    line("node.startup", "manual");
    line("node.discovery_type", "static");
    line("iface.iscsi_ifacename", INTERFACE);
    line("iface.transport_name", "tcp");
    // Only the LUN that was asked for, and none that appears later by itself.
    line("node.session.scan", "manual");
    line("node.session.nr_sessions", "1");
    // Tried once. With 1, a target that does not exist is asked for until the time is up; the caller decides.
    line("node.session.initial_login_retry_max", "0");
    if let Some(credentials) = credentials {
        line("node.session.auth.authmethod", "CHAP");
        line("node.session.auth.username", &credentials.user);
        line("node.session.auth.password", credentials.password.expose_secret());
    }
    line("node.conn[0].address", &place.portal.address.to_string());
    line("node.conn[0].port", &place.portal.port.to_string());
    line("node.conn[0].startup", "manual");
    line("node.conn[0].timeo.login_timeout", &login_timeout_s.to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::Locator;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn place(locator: &str) -> Place {
        Place::all(&locator.parse::<Locator>().unwrap()).unwrap().remove(0)
    }

    /// As open-iscsi's `idbm_recinfo_config` reads a record: lines, stripped; a key, `=`, a value.
    fn parse(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.trim().split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect()
    }

    fn chap(user: &str, password: &str) -> Chap {
        Chap { user: user.into(), password: password.into() }
    }

    #[test]
    fn paths_as_open_iscsi_makes_them() {
        let nodes = Path::new("/etc/iscsi/nodes");
        assert_eq!(
            path(nodes, &place("iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0")),
            Path::new("/etc/iscsi/nodes/iqn.2026-11.org.example:t1/10.0.0.5,3260,0/mortar")
        );
        assert_eq!(
            path(nodes, &place("iscsi://[FE80::A]:860/iqn.2026-11.org.example:t1/0")),
            Path::new("/etc/iscsi/nodes/iqn.2026-11.org.example:t1/fe80::a,860,0/mortar")
        );
    }

    #[test]
    fn nothing_comes_by_itself() {
        let text = render(&place("iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0"), None, 10);
        let record = parse(&text);
        assert_eq!(record["node.session.scan"], "manual");
        assert_eq!(record["node.startup"], "manual");
        assert_eq!(record["node.conn[0].startup"], "manual");
        assert!(!record.contains_key("node.session.auth.authmethod"));
    }

    proptest! {
        #[test]
        fn credentials_come_back_as_they_were_or_not_at_all(user in "\\PC{0,20}|[a-z\\r\\n\\t= ]{0,20}", password in "(?s).{0,30}") {
            let place = place("iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0");
            let bare = render(&place, None, 10);
            match Credentials::new(&chap(&user, &password)) {
                Ok(credentials) => {
                    let text = render(&place, Some(&credentials), 10);
                    let mut record = parse(&text);
                    prop_assert_eq!(record.remove("node.session.auth.authmethod"), Some("CHAP"));
                    prop_assert_eq!(record.remove("node.session.auth.username"), Some(user.as_str()));
                    prop_assert_eq!(record.remove("node.session.auth.password"), Some(password.as_str()));
                    prop_assert_eq!(record, parse(&bare));
                }
                Err(error) => prop_assert_eq!(error.reason(), "INVALID"),
            }
        }
    }

    #[test]
    fn what_would_change_in_the_file_is_refused_without_being_told() {
        for password in ["", " x", "x ", "x\nnode.startup = automatic", "x\r", "x\0", &"x".repeat(256)] {
            let refused = Credentials::new(&chap("user", password)).err().unwrap();
            assert!(matches!(refused, Error::Invalid { field: "chap.password", .. }));
            assert!(!refused.chain().contains("automatic"));
        }
        assert!(Credentials::new(&chap("a\nb", "secret")).is_err());
        assert!(Credentials::new(&chap("user", "with spaces = and # signs")).is_ok());
    }
}
