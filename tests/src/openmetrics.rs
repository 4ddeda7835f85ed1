//! Reads what an agent says of itself as strictly as a collector may: the text format of OpenMetrics 1.0, as far as there is
//! use for it here. What is not exactly that panics with the line.

use std::collections::{BTreeMap, BTreeSet};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Asks an agent for its metrics; the text that it answers with.
pub async fn ask(mut agent: impl AsyncRead + AsyncWrite + Unpin) -> String {
    agent.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    agent.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
    text.to_owned()
}

/// A scrape, understood.
#[derive(Debug)]
pub struct Scrape {
    /// By name and labels, as in the text: `mortar_attachments{backend="file",state="ready"}`.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("it does not end in EOF: {text}"));
        assert!(body.is_empty() || body.ends_with('\n'), "the last line is not ended: {text}");
        let (mut scrape, mut family) = (Self { samples: BTreeMap::new() }, Family::default());
        let mut known = BTreeSet::new();
        for line in body.split_terminator('\n') {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (Some(what), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else {
                    panic!("no comment of OpenMetrics: {line}");
                };
                if name != family.name {
                    assert!(is_name(name) && known.insert(name), "a family's name, and a new one: {line}");
                    scrape.complete(&family);
                    family = Family { name, ..Family::default() };
                }
                assert!(family.samples.is_empty(), "it comes after the samples: {line}");
                let before = match what {
                    "TYPE" => family.kind.replace(value),
                    "UNIT" => family.unit.replace(value),
                    "HELP" => family.help.replace(value),
                    _ => panic!("no comment of OpenMetrics: {line}"),
                };
                assert_eq!(before, None, "twice: {line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
                let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
                assert!(family.has(name), "it is none of {family:?}: {line}");
                let value: f64 = value.parse().unwrap_or_else(|why| panic!("{why}: {line}"));
                assert!(labels.is_empty() || are_labels(labels), "these are no labels: {line}");
                assert!(value >= 0.0 || family.kind == Some("gauge"), "less than nothing: {line}");
                assert_eq!(scrape.samples.insert(series.to_owned(), value), None, "twice: {line}");
                family.samples.push((series, value));
            }
        }
        scrape.complete(&family);
        scrape
    }

    /// What can only be seen when all of a family has been read.
    #[track_caller]
    fn complete(&self, family: &Family<'_>) {
        if let Some(unit) = family.unit {
            assert!(family.name.ends_with(&format!("_{unit}")), "its name does not say its unit: {family:?}");
        }
        if family.kind != Some("histogram") {
            return;
        }
        let mut below = 0.0;
        for (series, value) in &family.samples {
            if !series.starts_with(&format!("{}_bucket", family.name)) {
                below = 0.0;
                continue;
            }
            assert!(*value >= below, "{series}: a bucket has less than the one before it: {family:?}");
            below = *value;
            if let Some(others) = series.strip_suffix("le=\"+Inf\"}") {
                let labels = others.split_once('{').unwrap().1.trim_end_matches(',');
                let count = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                assert_eq!(self.samples.get(&format!("{}_count{count}", family.name)), Some(value), "{series}");
            }
        }
    }

    pub fn get(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }

    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or_else(|| panic!("no {series} in {self:#?}"))
    }

    /// The names that can be asked for.
    pub fn names(&self) -> BTreeSet<&str> {
        self.samples.keys().map(|series| series.split('{').next().unwrap_or(series)).collect()
    }
}

/// What is read at the moment.
#[derive(Debug, Default)]
struct Family<'a> {
    name: &'a str,
    kind: Option<&'a str>,
    unit: Option<&'a str>,
    help: Option<&'a str>,
    samples: Vec<(&'a str, f64)>,
}

impl Family<'_> {
    /// Whether a sample may have that name in it.
    fn has(&self, name: &str) -> bool {
        let suffixes: &[&str] = match self.kind {
            Some("gauge") => &[""],
            Some("counter") => &["_total"],
            Some("info") => &["_info"],
            Some("histogram") => &["_bucket", "_sum", "_count"],
            _ => return false,
        };
        self.help.is_some() && name.strip_prefix(self.name).is_some_and(|suffix| suffixes.contains(&suffix))
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `{name="value",…}`; a quote, a backslash and a new line are escaped in a value.
fn are_labels(text: &str) -> bool {
    let Some(mut rest) = text.strip_prefix('{') else { return false };
    let mut names = BTreeSet::new();
    loop {
        let Some((name, value)) = rest.split_once("=\"") else { return false };
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { return false };
        if !is_name(name) || !names.insert(name) {
            return false;
        }
        match &value[end + 1..] {
            "}" => return true,
            more => match more.strip_prefix(',') {
                Some(more) => rest = more,
                None => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    const GOOD: &str = "# HELP a_seconds Time\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\na_seconds_sum{k=\"x\"} 1.5\n\
                        a_seconds_count{k=\"x\"} 2\na_seconds_bucket{k=\"x\",le=\"1.0\"} 1\na_seconds_bucket{k=\"x\",le=\"+Inf\"} 2\n\
                        # HELP b Number\n# TYPE b counter\nb_total{k=\"a \\\"b\\\", c\"} 3\n# HELP c Now\n# TYPE c gauge\nc -1\n# EOF\n";

    #[test]
    fn what_is_right_is_read() {
        let scrape = Scrape::of(GOOD);
        assert_eq!(scrape.value("a_seconds_count{k=\"x\"}"), 2.0);
        assert_eq!(
            (scrape.value("b_total{k=\"a \\\"b\\\", c\"}"), scrape.value("c"), scrape.get("d")),
            (3.0, -1.0, None)
        );
        assert_eq!(scrape.names().len(), 5);
    }

    #[test]
    fn what_is_wrong_is_not() {
        for (right, wrong) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\nc 1\n"),
            ("c -1\n", "c -1\nc -1\n"),
            ("c -1\n", "c\n"),
            ("c -1\n", "c one\n"),
            ("c -1\n", "d 1\n"),
            ("# TYPE c gauge\n", ""),
            ("# HELP c Now\n", ""),
            ("# TYPE c gauge\n", "# TYPE b counter\n"),
            ("b_total{k=\"a \\\"b\\\", c\"} 3", "b{k=\"a\"} 3"),
            ("b_total{k=\"a \\\"b\\\", c\"} 3", "b_total{k=\"a \"b\"\"} 3"),
            ("b_total{k=\"a \\\"b\\\", c\"} 3", "b_total{k=\"a\",k=\"b\"} 3"),
            ("b_total{k=\"a \\\"b\\\", c\"} 3", "b_total{k=\"a\"} -3"),
            ("le=\"1.0\"} 1", "le=\"1.0\"} 3"),
            ("le=\"+Inf\"} 2", "le=\"+Inf\"} 3"),
            ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
        ] {
            assert!(GOOD.contains(right), "{right}");
            let text = GOOD.replace(right, wrong);
            assert!(catch_unwind(|| Scrape::of(&text)).is_err(), "{text}");
        }
    }
}
