//! `multipath.conf` and what is beside it (`multipath.conf(5)`): settings that hang, or keep volumes out.
//!
//! ```text
//! defaults {
//!     no_path_retry queue        ◀── a keyword and its value, in quotes or not
//! }
//! devices { device { … } }       ◀── sections in sections
//! ```
//!
//! What multipathd has built in for a vendor's devices is not looked at: an operator did not choose it.

use driver::Finding;
use std::path::PathBuf;

/// A setting and the sections that it is in, the outermost first.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    sections: Vec<String>,
    key: String,
    value: String,
}

pub(super) fn findings(files: &[(PathBuf, String)]) -> Vec<Finding> {
    let settings: Vec<(String, Setting)> = files
        .iter()
        .flat_map(|(path, text)| parse(text).into_iter().map(move |setting| (path.display().to_string(), setting)))
        .collect();
    let has_exceptions = settings.iter().any(|(_, setting)| setting.is_in("blacklist_exceptions"));
    let mut findings: Vec<Finding> =
        settings.iter().filter_map(|(file, setting)| judge(file, setting, has_exceptions)).collect();
    findings.dedup();
    findings
}

fn judge(file: &str, setting: &Setting, has_exceptions: bool) -> Option<Finding> {
    let Setting { key, value, .. } = setting;
    let subject = format!("{file}: {key}");
    let found = |what: &str| format!("it is {value} in {}: {what}", setting.sections.join("/"));
    match (key.as_str(), value.as_str()) {
        ("no_path_retry", "queue") => Some(Finding::warning(
            subject,
            found("without a path I/O hangs for ever, and so does a detach"),
            "no_path_retry 12, or another number of tries",
        )),
        ("features", value) if value.contains("queue_if_no_path") => Some(Finding::warning(
            subject,
            found("unless no_path_retry says otherwise, I/O without a path hangs for ever"),
            "leave queue_if_no_path out, and set no_path_retry 12",
        )),
        ("find_multipaths", "greedy" | "off" | "no") => Some(Finding::warning(
            subject,
            found("every disk becomes a map, also those with one path"),
            "find_multipaths strict, or yes",
        )),
        ("user_friendly_names", "yes" | "on") => Some(Finding::info(
            subject,
            found("maps are called mpatha, mpathb, …, each host in its own order; mortar goes by WWIDs"),
            "",
        )),
        ("devnode" | "wwid", "*" | ".*" | "^.*" | ".*$" | "^.*$") if setting.is_in("blacklist") && !has_exceptions => {
            Some(Finding::error(
                format!("{file}: blacklist"),
                format!("{key} {value} keeps every disk out: no volume can be attached by several portals"),
                "name the disks that are to be kept out, or the exceptions in blacklist_exceptions",
            ))
        }
        _ => None,
    }
}

impl Setting {
    fn is_in(&self, section: &str) -> bool {
        self.sections.first().is_some_and(|outermost| outermost == section)
    }
}

fn parse(text: &str) -> Vec<Setting> {
    let (mut sections, mut settings) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words = words(line);
        let mut words = words.as_slice();
        while let Some((first, rest)) = words.split_first() {
            match (first.as_str(), rest) {
                ("}", rest) => {
                    sections.pop();
                    words = rest;
                }
                (name, [brace, rest @ ..]) if brace == "{" => {
                    sections.push(name.to_owned());
                    words = rest;
                }
                (key, [value, rest @ ..]) => {
                    settings.push(Setting { sections: sections.clone(), key: key.into(), value: value.clone() });
                    words = rest;
                }
                // A section whose brace stands on the next line, or a keyword without a value.
                (_, []) => words = &[],
            }
        }
    }
    settings
}

/// The words of a line up to a comment; what is in quotes is one, and so is a brace.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => word.push(c),
            '#' | '!' if word.is_empty() => break,
            '{' | '}' => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.push(c.to_string());
            }
            c if c.is_whitespace() => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::Severity;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<(Severity, String)> {
        let findings = findings(&[("/etc/multipath.conf".into(), text.to_owned())]);
        findings.into_iter().map(|it| (it.severity, format!("{}: {}", it.subject, it.found))).collect()
    }

    /// As OpenStack's guides have it.
    const GUIDE: &str = r#"
defaults {
        user_friendly_names no
        find_multipaths     yes   # not greedy
        # no_path_retry queue
}
blacklist {
        devnode "^(ram|raw|loop|fd|md|dm-|sr|scd|st)[0-9]*"
}
devices {
        device {
                vendor "LIO-ORG"
                product ".*"
                no_path_retry 12
        }
}
"#;

    #[test]
    fn what_the_guides_say_is_fine() {
        assert_eq!(found(GUIDE), []);
        assert_eq!(found(""), []);
    }

    #[test]
    fn what_hangs() {
        let queue = found(&GUIDE.replace("no_path_retry 12", "no_path_retry \"queue\""));
        assert!(
            matches!(&queue[..], [(Severity::Warning, text)] if text.contains("queue in devices/device: ")),
            "{queue:?}"
        );
        let features = found("defaults { features \"1 queue_if_no_path\" }");
        assert!(
            matches!(&features[..], [(Severity::Warning, text)] if text.contains("features: it is 1 queue")),
            "{features:?}"
        );
    }

    #[test]
    fn what_takes_every_disk_or_none() {
        for every in ["greedy", "off", "\"no\""] {
            let greedy = found(&GUIDE.replace("    yes ", every));
            assert!(
                matches!(&greedy[..], [(Severity::Warning, text)] if text.contains("every disk becomes")),
                "{greedy:?}"
            );
        }
        let all = GUIDE.replace("\"^(ram|raw|loop|fd|md|dm-|sr|scd|st)[0-9]*\"", "\".*\"");
        assert!(
            matches!(&found(&all)[..], [(Severity::Error, text)] if text.contains("devnode .* keeps every disk out"))
        );
        let some = format!("{all}blacklist_exceptions {{ wwid \"36001405.*\" }}");
        assert_eq!(found(&some), []);
        assert_eq!(found("device { product \"*\" }\nmultipaths { multipath { wwid \"*\" } }"), []);
    }

    #[test]
    fn friendly_names_are_no_complaint() {
        let friendly = found(&GUIDE.replace("names no", "names yes"));
        assert!(matches!(&friendly[..], [(Severity::Info, _)]), "{friendly:?}");
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "[ -~\\n\"{}#!]{0,200}") {
            let _ = parse(&text);
        }
    }
}
