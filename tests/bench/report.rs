//! The report: `docs/benchmarks.md`, a section for each work. A run replaces the sections of what it has measured.

use crate::{
    figures::Figures,
    machine::{run, sh},
};
use std::{collections::BTreeMap, fmt::Write};

/// One work.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) ours: Figures,
    pub(crate) floor: Figures,
    pub(crate) peer: Figures,
    pub(crate) our_processes: Option<usize>,
    pub(crate) peer_processes: Option<usize>,
    pub(crate) wanted: Vec<Wanted>,
}

/// What was to be reached.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Ours takes at most so many times the floor.
    OfFloor(f64),
    /// Ours starts at most so many processes.
    Processes(usize),
    /// Something else: what, the figure that was reached, and whether that is enough.
    Else(String, bool),
}

impl Row {
    pub(crate) fn new(work: impl Into<String>, wanted: impl Into<Vec<Wanted>>) -> Self {
        Self { work: work.into(), wanted: wanted.into(), ..Self::default() }
    }

    fn of_floor(&self) -> Option<f64> {
        (!self.ours.is_empty() && !self.floor.is_empty()).then(|| self.ours.median() / self.floor.median())
    }

    fn of_peer(&self) -> Option<f64> {
        (!self.ours.is_empty() && !self.peer.is_empty()).then(|| self.peer.median() / self.ours.median())
    }

    /// What was wanted, and whether it was reached.
    fn verdicts(&self) -> String {
        let verdict = |wanted: &Wanted| {
            let (what, met) = match wanted {
                Wanted::OfFloor(most) => {
                    (format!("≤ {most} × floor"), self.of_floor().is_some_and(|ratio| ratio <= *most))
                }
                Wanted::Processes(0) => ("no process".into(), self.our_processes == Some(0)),
                Wanted::Processes(most) => {
                    (format!("≤ {most} processes"), self.our_processes.is_some_and(|count| count <= *most))
                }
                Wanted::Else(what, met) => (what.clone(), *met),
            };
            format!("{what}: {}", if met { "met" } else { "**missed**" })
        };
        self.wanted.iter().map(verdict).collect::<Vec<_>>().join("<br>")
    }
}

/// A work: its table, and how it was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        println!("{}", line(&row));
        self.rows.push(row);
    }

    /// How that was measured.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// The section, which tells of which run it is.
    pub(crate) fn section(&self, work: &str) -> String {
        let mut text = format!("{}\n## {work}\n\n{}\n\n{HEAD}", marker(work), provenance());
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        let wanting = self.rows.iter().filter(|row| !row.wanted.is_empty()).count();
        if wanting > 0 {
            let missed = self.rows.iter().filter(|row| row.verdicts().contains("missed")).count();
            write!(text, "\nOf {wanting} rows of which something was wanted, {missed} missed some of it.\n").unwrap();
        }
        for note in &self.notes {
            write!(text, "\n{note}\n").unwrap();
        }
        text
    }
}

/// Which run it was, and of what.
fn provenance() -> String {
    let commit = std::env::var("BENCH_COMMIT").unwrap_or_default();
    let (day, kernel, tools) = (sh("date --utc +%Y-%m-%d"), run("/bin/uname", &["-r"]), sh(VERSIONS));
    format!("Measured on {day}, commit {commit}, in one run of one guest: User-Mode Linux {kernel}, one CPU; {tools}.")
}

fn marker(work: &str) -> String {
    format!("<!-- work: {work} -->")
}

/// The whole page: the new sections, and what it said before of the other works.
pub(crate) fn page(works: &[&str], sections: &BTreeMap<&str, String>, before: &str) -> String {
    let mut text = String::from(INTRODUCTION);
    for work in works {
        let section = sections.get(work).cloned().or_else(|| {
            let (_, from) = before.split_once(&marker(work))?;
            let section = from.split("<!-- work: ").next().unwrap_or_default();
            Some(format!("{}{section}", marker(work)).trim_end().to_owned() + "\n")
        });
        text.push_str(&section.map(|section| format!("\n{section}")).unwrap_or_default());
    }
    text
}

const VERSIONS: &str = "
dpkg-query --show --showformat '${source:Package} ${Version}, ' open-iscsi lvm2 multipath-tools ceph-common python3-os-brick
python3 --version | tr -d '\\n'; printf ', '; mortar --version | tr -d '\\n'";

const HEAD: &str = "\
| work | ours | floor | peer | ours ÷ floor | peer ÷ ours | processes: ours | peer | rounds | wanted |
|---|---|---|---|---|---|---|---|---|---|
";

const INTRODUCTION: &str = "\
# Benchmarks

Written by `make bench`; nothing in this file is written by hand. Each section is of one run in one guest. \
Starting a process is dear there, and the machine under it does other things, so the times mean nothing by themselves: \
only ratios within a section do. The benchmark, with the floor and the peer in it, runs at the nice level of `mortard`'s unit (-10).

Times are milliseconds: the median, and in brackets the first and the third quartile (with fewer than seven rounds: the least and the most).

- **Ours** is one call of `mortard` (release build, under systemd with its unit), from a client that is connected to its socket, from the request \
to the reply. What the agent promises is inside: the journal's commits, the proof of identity, the stable path.
- **The floor** is the one tool that the work cannot do without and the kernel's own answer, by a process that is \
started already and looks in a busy loop. It looks at nothing else, proves nothing and remembers nothing.
- **The peer** runs as root in one Python process that has its modules loaded, and without the privsep daemon that a deployment has: \
these are its best figures.
- Everybody has his turn in each round, in the same order, after one round that is not counted, and the clock starts when udev has nothing left to do of what was before. A ratio is that of the medians.
- **Processes** are counted in a round of their own, by strace on the one who works and on all its children, threads aside. \
What udev starts is not counted for anybody; it is the same for all.
";

fn line(row: &Row) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
    let count = |count: Option<usize>| count.map_or_else(|| "–".into(), |count| count.to_string());
    let rounds = [&row.ours, &row.floor, &row.peer].map(Figures::count);
    let rounds = if rounds.iter().all(|count| *count == 0 || *count == rounds[0]) {
        rounds[0].to_string()
    } else {
        rounds.map(|count| if count == 0 { "–".into() } else { count.to_string() }).join(" / ")
    };
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {rounds} | {} |",
        row.work,
        cell(&row.ours),
        cell(&row.floor),
        cell(&row.peer),
        ratio(row.of_floor()),
        ratio(row.of_peer()),
        count(row.our_processes),
        count(row.peer_processes),
        row.verdicts()
    )
}

fn cell(figures: &Figures) -> String {
    /// Fewer have no quartiles to speak of.
    const QUARTILES: usize = 7;
    let (low, high) = if figures.count() >= QUARTILES { (1, 3) } else { (0, 4) };
    match figures.count() {
        0 => "–".into(),
        1 => number(figures.median()),
        _ => format!(
            "{} ({}–{})",
            number(figures.median()),
            number(figures.quartile(low)),
            number(figures.quartile(high))
        ),
    }
}

/// Three digits that mean something.
fn number(figure: f64) -> String {
    if figure < 10.0 { format!("{figure:.1}") } else { format!("{figure:.0}") }
}
