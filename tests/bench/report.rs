//! The report: `docs/benchmarks.md`, whole.

use crate::{
    figures::Figures,
    machine::{run, sh},
};
use std::fmt::Write;

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

/// All works of this run, and the notes under the table.
#[derive(Debug)]
pub(crate) struct Report {
    began: String,
    rows: Vec<Row>,
    notes: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    pub(crate) fn begin() -> Self {
        Self { began: sh("date --utc +%Y-%m-%d"), rows: Vec::new(), notes: Vec::new(), failed: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: Row) {
        println!("{}", line(&row));
        self.rows.push(row);
    }

    /// How the works that were just added were measured.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// Adds what another one has.
    pub(crate) fn take(&mut self, part: Self) {
        self.rows.extend(part.rows);
        self.notes.extend(part.notes);
    }

    /// A work that could not be measured to its end.
    pub(crate) fn failed(&mut self, work: &str) {
        self.failed.push(work.to_owned());
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.failed.is_empty()
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::from("# Benchmarks\n\n");
        let commit = std::env::var("BENCH_COMMIT").unwrap_or_default();
        let tools = sh(VERSIONS);
        write!(
            text,
            "Written by `make bench` on {}, commit {commit}. Nothing in this file is written by hand.\n\n\
             All of it is from one run in one guest: User-Mode Linux {}, one CPU. \
             Starting a process is dear there, and the machine under it does other things, so the times mean nothing by themselves: \
             only ratios within this run do.\n\n\
             {tools}.\n\n",
            self.began,
            run("/bin/uname", &["-r"]),
        )
        .unwrap();
        text.push_str(LEGEND);
        text.push_str(HEAD);
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        let missed = self.rows.iter().filter(|row| row.verdicts().contains("missed")).count();
        let wanting = self.rows.iter().filter(|row| !row.wanted.is_empty()).count();
        write!(text, "\nOf {wanting} works of which something was wanted, {missed} missed some of it.\n").unwrap();
        if !self.is_whole() {
            write!(text, "\n**Not measured, because it failed: {}.**\n", self.failed.join(", ")).unwrap();
        }
        text.push_str("\n## How it is measured\n\n");
        text.push_str(METHOD);
        for note in &self.notes {
            writeln!(text, "- {note}").unwrap();
        }
        text
    }
}

const VERSIONS: &str = "
dpkg-query --show --showformat '${source:Package} ${Version}, ' open-iscsi lvm2 multipath-tools ceph-common python3-os-brick
python3 --version | tr -d '\\n'; printf ', '; mortar --version | tr -d '\\n'";

const LEGEND: &str = "\
Times are milliseconds: the median, and in brackets the first and the third quartile (with fewer than seven rounds: the least and the most).

";

const HEAD: &str = "\
| work | ours | floor | peer | ours ÷ floor | peer ÷ ours | processes: ours | peer | rounds | wanted |
|---|---|---|---|---|---|---|---|---|---|
";

const METHOD: &str = "\
- **Ours** is one call of `mortard` (release build, under systemd with its unit), from a client that is connected to its socket, from the request \
to the reply. What the agent promises is inside: the journal's commits with fsync, the proof of identity, the stable path.
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
