//! completions and man: what a package installs beside the binary. Neither asks the agent.

use crate::{
    COMPLETE,
    args::Cli,
    error::{Error, Failure},
    output,
};
use clap::CommandFactory;
use clap_complete::{Shell, env::Shells};
use std::path::Path;

/// zsh finds the script as a function, `_mortar`, and calls that at the first key.
const AUTOLOADED: &[u8] = br#"
if [[ "$funcstack[1]" == _mortar ]]; then
    _clap_dynamic_completer_mortar "$@"
fi
"#;

/// The script asks this program at each key, so that it knows what there is on the host, too.
pub(super) fn completions(shell: Shell) -> Result<(), Error> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let completer =
        shells.completer(&name).ok_or_else(|| Failure::internal(format!("there is no script for {name}")))?;
    let mut script = Vec::new();
    completer.write_registration(COMPLETE, "mortar", "mortar", "mortar", &mut script)?;
    if shell == Shell::Zsh {
        script.extend(AUTOLOADED);
    }
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
