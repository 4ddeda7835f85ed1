//! `iscsid.conf`: what it says of a session that loses its target. Our node records leave this to the operator, so it
//! decides how our sessions behave, too.

use driver::Finding;
use std::path::Path;

/// How long I/O may hang without a target before it is worth a word, in seconds; open-iscsi's own value is 120.
const LONG: i64 = 600;

/// The last value of a setting: `key = value`, a comment begins with `#`.
pub(super) fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let setting = |line: &'a str| {
        let (name, value) = line.trim().split_once('=')?;
        (name.trim() == key).then_some(value.trim())
    };
    text.lines().rev().find_map(setting)
}

pub(super) fn findings(path: &Path, text: Option<&str>) -> Vec<Finding> {
    let file = path.display();
    let Some(text) = text else {
        let found = "it is not there, so nobody notices that a portal is dead but by TCP";
        return vec![Finding::warning(file.to_string(), found, "install open-iscsi's own")];
    };
    let mut findings = Vec::new();
    let mut say = |finding: fn(String, String, String) -> Finding, key: &str, found: String, value: &str| {
        findings.push(finding(format!("{file}: {key}"), found, format!("{key} = {value}")));
    };
    let key = "node.session.timeo.replacement_timeout";
    match value(text, key).and_then(|text| text.parse::<i64>().ok()) {
        Some(0) => {
            let found = "it is 0: a moment without the target fails the I/O of file systems and guests";
            say(Finding::warning, key, found.into(), "120; 5 where multipath has every volume");
        }
        Some(never) if never < 0 => {
            let found = format!("it is {never}: without the target I/O hangs for ever, and so does who waits for it");
            say(Finding::error, key, found, "120");
        }
        Some(long) if long > LONG => {
            let found = format!("it is {long}: without the target I/O hangs for {} minutes", long / 60);
            say(Finding::warning, key, found, "120");
        }
        _ => {}
    }
    for key in ["node.conn[0].timeo.noop_out_interval", "node.conn[0].timeo.noop_out_timeout"] {
        let found = match value(text, key) {
            Some("0") => "it is 0: a portal that is dead is noticed only by TCP, after minutes",
            None => "it is not set, which means 0: a portal that is dead is noticed only by TCP, after minutes",
            Some(_) => continue,
        };
        say(Finding::warning, key, found.into(), "5");
    }
    if value(text, "node.startup") == Some("automatic") {
        let found = "it is automatic: each discovery makes records by which this host logs in at every boot";
        say(Finding::warning, "node.startup", found.into(), "manual");
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::Severity;
    use proptest::prelude::*;

    /// As Debian 12 installs it (2.1.8), without its comments and what is not looked at.
    const DEBIAN: &str = "\
iscsid.startup = /bin/systemctl start iscsid.socket
# node.startup = automatic
node.startup = manual
node.leading_login = No
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.login_timeout = 15
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
";

    fn found(text: &str) -> Vec<(Severity, String)> {
        let findings = findings(Path::new("/etc/iscsi/iscsid.conf"), Some(text));
        findings.into_iter().map(|it| (it.severity, format!("{}: {}", it.subject, it.found))).collect()
    }

    #[track_caller]
    fn one(text: &str, severity: Severity, words: &str) {
        let found = found(text);
        assert!(matches!(&found[..], [(how, text)] if *how == severity && text.contains(words)), "{found:?}");
    }

    #[test]
    fn what_the_distribution_installs_is_fine() {
        assert_eq!(found(DEBIAN), []);
    }

    #[test]
    fn what_hangs_or_loses() {
        let timeout = |value: &str| DEBIAN.replace("_timeout = 120", &format!("_timeout = {value}"));
        one(&timeout("0"), Severity::Warning, "replacement_timeout: it is 0");
        one(&timeout("-1"), Severity::Error, "hangs for ever");
        one(&timeout("86400"), Severity::Warning, "hangs for 1440 minutes");
        assert_eq!(found(&timeout("600")), []);
        one(&DEBIAN.replace("interval = 5", "interval = 0"), Severity::Warning, "noop_out_interval: it is 0");
        one(
            &DEBIAN.replace("node.conn[0].timeo.noop_out_timeout", "#x"),
            Severity::Warning,
            "noop_out_timeout: it is not set",
        );
        one(
            &DEBIAN.replace("\nnode.startup = manual", "\nnode.startup = automatic"),
            Severity::Warning,
            "node.startup: it is auto",
        );
        // The last of two counts.
        assert_eq!(found(&format!("node.startup = automatic\n{DEBIAN}")), []);
        assert_eq!(findings(Path::new("/x"), None).len(), 1);
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "(\\PC|[\n=#]|node\\.(startup|session\\.timeo\\.replacement_timeout)| = |-?[0-9]{1,20}){0,40}") {
            let _ = findings(Path::new("/x"), Some(&text));
        }

        #[test]
        fn what_is_set_last_is_read_back(before in "(\\PC|\n){0,80}", key in "node\\.[a-z._\\[\\]0]{1,20}", set in "[!-~]{1,20}") {
            let text = format!("{before}\n{key}  =\t{set}\n#{key} = other\n");
            prop_assert_eq!(value(&text, &key), Some(set.as_str()));
        }
    }
}
