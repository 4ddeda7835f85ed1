//! `mortar`, the command line of the storage agent: parses, asks mortard, prints, and leaves with an exit code that
//! says what to do next.
//!
//! It speaks the wire contract (`proto`) only, decides nothing that the agent decides, and keeps nothing. Every module
//! here is one step of a call: [`args`] and [`values`] read what was typed, [`connect`] reaches the agent (by the client
//! library, `mortar-client`), [`commands`] ask it, [`view`] and [`table`] give the answer its shape, [`output`] writes it,
//! [`error`] explains what went wrong.

mod args;
mod commands;
mod connect;
mod error;
mod output;
mod password;
mod table;
mod values;
mod view;

use crate::{
    args::{Cli, Format},
    error::{Error, Failure},
};
use clap::{Parser, error::ErrorKind};
use std::{env, ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &arguments),
    };
    let format = cli.output;
    match commands::run(cli) {
        Ok(()) | Err(Error::Hangup) => ExitCode::SUCCESS,
        Err(Error::Failed(failure)) => leave(&failure, format),
    }
}

fn leave(failure: &Failure, format: Format) -> ExitCode {
    output::failure(failure, format);
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
        _ => leave(&Failure::usage(error), Format::guess(arguments)),
    }
}
