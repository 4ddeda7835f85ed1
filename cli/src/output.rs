//! Where answers and errors leave the process: answers on stdout, errors on stderr, each whole or not at all.

use crate::{
    args::{Cli, Format},
    error::{Error, Failure},
    table::{self, Table},
    view::View,
};
use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

const NAME: Style = AnsiColor::Red.on_default().bold();

/// How the user wants to be told.
pub(crate) struct Output {
    format: Format,
    columns: Vec<String>,
}

impl Output {
    pub(crate) fn of(cli: &Cli) -> Result<Self, Failure> {
        let (format, columns) = (cli.output, cli.column.clone());
        match format {
            Format::Json | Format::Yaml if !columns.is_empty() => Err(Failure::invalid(
                "--column chooses among the columns of --output table and value; JSON and YAML hold everything",
            )),
            _ => Ok(Self { format, columns }),
        }
    }

    /// For an error of a line that does not parse.
    pub(crate) fn plain(format: Format) -> Self {
        Self { format, columns: Vec::new() }
    }

    /// It is read by a program as a whole: JSON or YAML.
    pub(crate) fn is_document(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Somebody looks on, and reads text.
    pub(crate) fn is_watched(&self) -> bool {
        io::stderr().is_terminal() && !self.is_document()
    }

    /// That the columns asked for are there, before anything is asked of the agent.
    pub(crate) fn expect<V: View + Default>(&self) -> Result<(), Failure> {
        self.selected(&V::default()).map(|_| ())
    }

    /// For what has no columns.
    pub(crate) fn expect_none(&self) -> Result<(), Failure> {
        match self.columns.first() {
            None => Ok(()),
            Some(_) => Err(Failure::invalid("--column is of no use here: this prints no table")),
        }
    }

    /// Prints an answer.
    pub(crate) fn answer(&self, view: &impl View) -> Result<(), Error> {
        match self.format {
            Format::Json => self.line(&serde_json::to_string_pretty(view).map_err(io::Error::from)?)?,
            Format::Yaml => self.line(&yaml(view)?)?,
            Format::Table => {
                let colour = coloured(&io::stdout());
                let mut tables = self.selected(view)?;
                // Of several, only those in which something stands.
                if tables.len() > 1 {
                    tables.retain(|table| !table.is_empty());
                }
                let mut parts: Vec<String> = tables.iter().map(|table| table.draw(colour)).collect();
                if self.columns.is_empty() {
                    parts.extend(view.closing());
                }
                self.line(&parts.join("\n"))?;
            }
            Format::Value => {
                for line in self.selected(view)?.iter().flat_map(Table::values) {
                    self.line(&line)?;
                }
            }
        }
        Ok(())
    }

    /// Prints one of many answers, each as it comes: `line` is what people read.
    pub(crate) fn next(&self, event: &impl Serialize, line: &str) -> Result<(), Error> {
        match self.format {
            Format::Table | Format::Value => self.line(line)?,
            Format::Json => self.line(&serde_json::to_string(event).map_err(io::Error::from)?)?,
            Format::Yaml => self.line(&format!("---\n{}", yaml(event)?))?,
        }
        Ok(())
    }

    /// The tables with the columns that were asked for: all, or of several the one that has them.
    fn selected(&self, view: &impl View) -> Result<Vec<Table>, Failure> {
        let tables = view.tables();
        if self.columns.is_empty() {
            return Ok(tables);
        }
        let mut missing = None;
        for table in &tables {
            match table.select(&self.columns) {
                Ok(selected) => return Ok(vec![selected]),
                Err(name) => drop(missing.get_or_insert(name)),
            }
        }
        let there = tables.iter().map(|table| table.columns().join(", ")).collect::<Vec<_>>();
        let (name, there) = (missing.unwrap_or_default(), there.join("; or "));
        Err(Failure::invalid(format!("there is no column {name} here, but {there}")))
    }

    /// Prints one line, at once.
    fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }

    /// Prints what an answer lacks, in one sentence or one JSON object a line.
    pub(crate) fn warning(&self, sentence: &str) {
        #[derive(Serialize)]
        struct Report<'a> {
            warning: &'a str,
        }
        self.report(&Report { warning: sentence }, sentence);
    }

    /// Prints why a command failed, in one sentence or one JSON object a line; at a terminal also what to do about it.
    pub(crate) fn failure(&self, failure: &Failure) {
        #[derive(Serialize)]
        struct Report<'a> {
            error: &'a Failure,
        }
        self.report(&Report { error: failure }, failure.message());
        let advice = failure.advice().filter(|_| self.is_watched());
        if let Some(next) = advice {
            let (next, name) = (table::visible(next), table::visible(failure.reason()));
            let _ = writeln!(io::stderr().lock(), "{next} `mortar explain {name}` says more.");
        }
    }

    fn report(&self, report: &impl Serialize, sentence: &str) {
        let name = if coloured(&io::stderr()) { format!("{NAME}mortar:{NAME:#}") } else { "mortar:".to_owned() };
        let said = || format!("{name} {}", table::visible(sentence));
        let text = match self.format {
            Format::Table | Format::Value => said(),
            Format::Json => serde_json::to_string(report).unwrap_or_else(|_| said()),
            // There may be several: each is a document.
            Format::Yaml => yaml(report).map_or_else(|_| said(), |text| format!("---\n{text}")),
        };
        // The answer and the exit code still tell when stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// A terminal that can, unless NO_COLOR forbids it; CLICOLOR_FORCE makes anything one.
fn coloured<S: RawStream>(stream: &S) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

fn yaml(value: &impl Serialize) -> io::Result<String> {
    let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Prints bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
