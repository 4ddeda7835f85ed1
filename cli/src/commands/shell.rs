//! completions and man: what a package installs beside the binary. Neither asks the agent.

use crate::{
    args::Cli,
    error::{Error, Failure},
    output,
};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

pub(super) fn completions(shell: Shell) -> Result<(), Error> {
    // Into memory first: clap_complete panics when a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mortar", &mut script);
    Ok(output::raw(&script)?)
}

pub(super) fn man(dir: Option<&Path>) -> Result<(), Error> {
    match dir {
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
            Failure::invalid(format!("cannot write the manual pages to {}: {error}", dir.display())).into()
        }),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            Ok(output::raw(&page)?)
        }
    }
}
