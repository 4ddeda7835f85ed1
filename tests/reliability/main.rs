//! Writes `docs/reliability.md` from what the tests have noted: a section for each sort of finding. A run replaces the
//! sections of which it has found something, and leaves the others as they were.
//!
//! Usage: `reliability PAGE NOTES…`, where NOTES are the files that `$MORTAR_RELIABILITY` named.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "it runs after the tests, beside the agent")]

use ::tests::reliability::{Row, Sweep, Where};
use std::collections::BTreeSet;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [page, notes @ ..] = arguments.as_slice() else { panic!("usage: reliability PAGE NOTES…") };
    let mut rows = BTreeSet::new();
    for file in notes {
        // A run that noted nothing made no file.
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let parsed = text.lines().map(serde_json::from_str::<Row>);
        rows.extend(parsed.map(|row| row.unwrap_or_else(|error| panic!("{file}: {error}"))));
    }
    let before = std::fs::read_to_string(page).unwrap_or_default();
    std::fs::write(page, render(&rows, &before)).unwrap();
}

/// A section: its marker, its title, its text, the head of its table, and the line of a row that is one of its.
struct Section {
    name: &'static str,
    title: &'static str,
    about: &'static str,
    head: &'static [&'static str],
    line: fn(&Row) -> Option<Vec<String>>,
}

const SWEEP: &[&str] = &["operation", "driver", "crash points", "runs", "leftovers"];

const SECTIONS: [Section; 7] = [
    Section {
        name: "simulated",
        title: "A crash after every effect, on the simulated machine",
        about: "The agent dies after each effect of the operation, and again after each effect of the recovery; then the \
                caller's retry, and the way back. A run is a pair of crashes. A leftover is any difference of the whole \
                machine from what it was.",
        head: SWEEP,
        line: |row| match row {
            Row::Simulated(sweep) => Some(swept(sweep)),
            _ => None,
        },
    },
    Section {
        name: "guest",
        title: "A crash after every effect, on a real kernel",
        about: "`mortard` is killed with SIGKILL after each effect, restarted, and the host compared with what it was.",
        head: SWEEP,
        line: |row| match row {
            Row::Guest(sweep) => Some(swept(sweep)),
            _ => None,
        },
    },
    Section {
        name: "model",
        title: "Random schedules against a model",
        about: "A schedule is a random sequence of calls, some of which crash or fail in the middle, of restarts, reboots and \
                repairs. After each step the lists are what a model of three maps says, and at the end the machine is what it \
                was.",
        head: &["driver", "schedules", "steps", "starts after a crash"],
        line: |row| match row {
            Row::Model { driver, schedules, steps, crashes } => {
                Some(vec![driver.clone(), schedules.to_string(), steps.to_string(), crashes.to_string()])
            }
            _ => None,
        },
    },
    Section {
        name: "faults",
        title: "Faults",
        about: "What went wrong around the agent, and what its caller saw of it.",
        head: &["what", "the caller saw", "afterwards"],
        line: |row| match row {
            Row::Fault { what, caller_saw, afterwards } => {
                Some(vec![what.clone(), caller_saw.clone(), afterwards.clone()])
            }
            _ => None,
        },
    },
    Section {
        name: "wrong device",
        title: "The wrong device",
        about: "Another volume where the right one should be: each attempt ends in a refusal that names both, and leaves \
                nothing.",
        head: &["attempt", "driver", "shown", "refusal"],
        line: |row| match row {
            Row::WrongDevice { attempt, driver, shown, refusal } => {
                let shown = match shown {
                    Where::Simulated => "simulated",
                    Where::Guest => "guest",
                };
                Some(vec![attempt.clone(), driver.clone(), shown.into(), refusal.clone()])
            }
            _ => None,
        },
    },
    Section {
        name: "figures",
        title: "Figures",
        about: "",
        head: &["what", "wanted", "found"],
        line: |row| match row {
            Row::Figure { what, wanted, found } => Some(vec![what.clone(), wanted.clone(), found.clone()]),
            _ => None,
        },
    },
    Section {
        name: "breakages",
        title: "Breakages",
        about: "Parts of the recovery that `make breakages` leaves out, one at a time, and the tests that fail then; with five, a run has seen enough.",
        head: &["left out", "tests that fail", "such as"],
        line: |row| match row {
            Row::Breakage { what, caught_by } => {
                let first = caught_by.first().map_or("**nothing noticed**".into(), |test| format!("`{test}`"));
                Some(vec![what.clone(), caught_by.len().to_string(), first])
            }
            _ => None,
        },
    },
];

const INTRODUCTION: &str = "\
# Reliability

Written by `make test` and `make breakages`; nothing in this file is written by hand.
A run replaces the sections of which it has found something.
";

fn swept(Sweep { operation, driver, points, runs, leftovers }: &Sweep) -> Vec<String> {
    vec![operation.clone(), driver.clone(), points.to_string(), runs.to_string(), leftovers.to_string()]
}

fn render(rows: &BTreeSet<Row>, before: &str) -> String {
    let mut text = String::from(INTRODUCTION);
    for section in &SECTIONS {
        let marker = format!("<!-- section: {} -->\n", section.name);
        let lines: Vec<Vec<String>> = rows.iter().filter_map(section.line).collect();
        let body = match (lines.is_empty(), before.split_once(&marker)) {
            (false, _) => section.text(&lines),
            (true, Some((_, from))) => from.split("<!-- section: ").next().unwrap_or_default().trim_end().to_owned(),
            (true, None) => continue,
        };
        text.push_str(&format!("\n{marker}{body}\n"));
    }
    text
}

impl Section {
    fn text(&self, lines: &[Vec<String>]) -> String {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n", self.title);
        if !self.about.is_empty() {
            text.push_str(&format!("{}\n\n", self.about));
        }
        text.push_str(&row(self.head.iter().map(|&head| head.to_owned()).collect()));
        text.push_str(&row(vec!["---".into(); self.head.len()]));
        for cells in lines {
            text.push_str(&row(cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect()));
        }
        text.push_str(&self.total(lines));
        text.trim_end().to_owned()
    }

    /// The sum of the columns that are numbers.
    fn total(&self, lines: &[Vec<String>]) -> String {
        let sum = |column: usize| lines.iter().map(|cells| cells[column].parse::<u64>().ok()).sum::<Option<u64>>();
        let sums: Vec<String> =
            (0..self.head.len()).filter_map(|column| Some(format!("{} {}", sum(column)?, self.head[column]))).collect();
        if sums.is_empty() || lines.len() < 2 { String::new() } else { format!("\nTogether: {}.\n", sums.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_replaces_what_it_has_found_and_keeps_the_rest() {
        let figure =
            |found: &str| Row::Figure { what: "RSS".into(), wanted: "< 20 MiB".into(), found: found.to_owned() };
        let fault = Row::Fault { what: "a | b".into(), caller_saw: "NO_SPACE".into(), afterwards: "nothing".into() };
        let first = render(&[figure("11 MiB"), fault].into(), "");
        assert!(first.contains("| a \\| b | NO_SPACE | nothing |"), "{first}");
        let second = render(&[figure("12 MiB")].into(), &first);
        assert_eq!(second, first.replace("11 MiB", "12 MiB"));
    }

    #[test]
    fn numbers_are_summed() {
        let sweep = |operation: &str| {
            let (operation, driver) = (operation.into(), "file".into());
            Row::Simulated(Sweep { operation, driver, points: 3, runs: 20, leftovers: 0 })
        };
        let page = render(&[sweep("attach"), sweep("detach")].into(), "");
        assert!(page.contains("Together: 6 crash points, 40 runs, 0 leftovers."), "{page}");
    }
}
