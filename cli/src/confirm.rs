//! Asks before what cannot be taken back, and only somebody who sits there: a script is never kept waiting, and means what it
//! says.

use crate::{error::Failure, table};
use std::io::{self, BufRead, IsTerminal, Write};
use tonic::Code;

/// Whether there is somebody to ask, who has not said yes already.
pub(crate) fn wanted(yes: bool) -> bool {
    !yes && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Says what will happen and waits for a yes; everything else, and nothing, is a no.
pub(crate) fn ask(what: &str) -> Result<(), Failure> {
    let mut stderr = io::stderr().lock();
    let asked = write!(stderr, "mortar: {} Go on? [y/N] ", table::visible(what)).and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) if is_yes(&answer) => Ok(()),
        _ => Err(Failure::new(Code::Cancelled, "CANCELLED", "nothing was done; --yes does it without a question")),
    }
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" YES \r\n"));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("no\n") && !is_yes("yesterday\n"));
    }
}
