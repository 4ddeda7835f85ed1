//! Where answers and errors leave the process: answers on stdout, errors on stderr, each whole or not at all.

use crate::{args::Format, error::Failure, table, view::View};
use serde::Serialize;
use std::io::{self, Write};

/// Prints an answer.
pub(crate) fn answer(view: &impl View, format: Format) -> io::Result<()> {
    let text = match format {
        Format::Table => view.table(),
        Format::Json => serde_json::to_string_pretty(view)?,
    };
    line(&text)
}

/// Prints one line, at once.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Prints bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Prints what an answer lacks, in one sentence or one JSON object a line.
pub(crate) fn warning(sentence: &str, format: Format) {
    let text = match format {
        Format::Table => format!("mortar: {}", table::visible(sentence)),
        Format::Json => serde_json::json!({ "warning": sentence }).to_string(),
    };
    // The answer itself is still worth printing when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints why a command failed, in one sentence or one JSON object a line.
pub(crate) fn failure(failure: &Failure, format: Format) {
    #[derive(Serialize)]
    struct Report<'a> {
        error: &'a Failure,
    }
    let sentence = || format!("mortar: {}", table::visible(failure.message()));
    let text = match format {
        Format::Table => sentence(),
        Format::Json => serde_json::to_string(&Report { error: failure }).unwrap_or_else(|_| sentence()),
    };
    // The exit code still tells when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
