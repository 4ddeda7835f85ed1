//! `mortar`, the command line of the storage agent: parses, asks mortard, prints, and leaves with an exit code that
//! says what to do next.
//!
//! It speaks the wire contract (`proto`) only, decides nothing that the agent decides, and keeps nothing. Every module
//! here is one step of a call: [`args`] and [`values`] read what was typed, [`connect`] reaches the agent (by the client
//! library, `mortar-client`), [`commands`] ask it, [`view`] and [`table`] give the answer its shape, [`output`] writes it,
//! [`error`] and [`reasons`] explain what went wrong. Somebody at a terminal is asked by [`confirm`] and told by [`progress`]; a
//! shell that completes is told by [`candidates`].

mod args;
mod candidates;
mod commands;
mod confirm;
mod connect;
mod error;
mod output;
mod password;
mod progress;
mod reasons;
mod table;
mod values;
mod view;

use crate::{
    args::{Cli, Format},
    error::{Error, Failure},
    output::Output,
};
use clap::{CommandFactory, Parser, error::ErrorKind};
use clap_complete::CompleteEnv;
use std::{env, ffi::OsString, process::ExitCode};

/// Set by the completion scripts, which ask this program itself what may come next.
pub(crate) const COMPLETE: &str = "MORTAR_COMPLETE";

fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).var(COMPLETE).complete();
    let arguments: Vec<OsString> = env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &arguments),
    };
    let out = match Output::of(&cli) {
        Ok(out) => out,
        Err(failure) => return leave(&failure, &Output::plain(cli.output)),
    };
    match commands::run(cli, &out) {
        Ok(()) | Err(Error::Hangup) => ExitCode::SUCCESS,
        Err(Error::Failed(failure)) => leave(&failure, &out),
    }
}

fn leave(failure: &Failure, out: &Output) -> ExitCode {
    out.failure(failure);
    ExitCode::from(failure.exit_code())
}

/// `--help` and `--version` are answers; everything else is invalid input.
fn not_parsed(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nobody is left to tell when even this cannot be written.
            let _ = error.print();
            u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        _ => leave(&Failure::usage(error), &Output::plain(Format::guess(arguments))),
    }
}
