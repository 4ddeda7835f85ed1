//! One function for each command: ask the agent, print the answer.

mod attachments;
mod exports;
mod host;
mod instances;
mod operations;
mod shell;
mod volumes;

use crate::{
    args::{Cli, Command},
    connect::Agent,
    error::{Error, Failure},
};

/// Runs the command to its end.
pub(crate) fn run(cli: Cli) -> Result<(), Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start the runtime: {error}")))?
        .block_on(ask(cli))
}

async fn ask(cli: Cli) -> Result<(), Error> {
    let agent = || Agent::connect(&cli.to, cli.timeout);
    let format = cli.output;
    match cli.command {
        Command::Attach(attach) => {
            // Before the connection: a user who types it keeps nobody waiting.
            let read = attachments::Read::of(&attach)?;
            attachments::attach(&agent().await?, attach, read, format).await
        }
        Command::Detach(detach) => {
            let target = attachments::target(detach)?;
            attachments::detach(&agent().await?, target, format).await
        }
        Command::List => attachments::list(&agent().await?, format).await,
        Command::Show { id, instance: true } => instances::show(&agent().await?, id, format).await,
        Command::Show { id, instance: false } => attachments::show(&agent().await?, id, format).await,
        Command::Extend { id } => attachments::extend(&agent().await?, id, format).await,
        Command::Manageable { scope } => volumes::manageable(&agent().await?, scope, format).await,
        Command::Manage(manage) => volumes::manage(&agent().await?, manage, format).await,
        Command::Unmanage { id, keep_name } => volumes::unmanage(&agent().await?, id, keep_name, format).await,
        Command::Volumes { scope } => volumes::list(&agent().await?, scope, format).await,
        Command::Export(export) => exports::export(&agent().await?, export, format).await,
        Command::Exports => exports::list(&agent().await?, format).await,
        Command::Unexport { target } => exports::unexport(&agent().await?, target, format).await,
        Command::Instances => instances::list(&agent().await?, format).await,
        Command::Rescue(rescue) => {
            let read = instances::Read::of(&rescue)?;
            instances::rescue(&agent().await?, rescue, read, format).await
        }
        Command::Unrescue(unrescue) => instances::unrescue(&agent().await?, unrescue, format).await,
        Command::Instance { command } => instances::power(&agent().await?, command, format).await,
        Command::Host => host::show(&agent().await?, format).await,
        Command::Doctor(doctor) => host::doctor(&agent().await?, doctor, format).await,
        Command::Operations { id: Some(id), .. } => operations::show(&agent().await?, id, format).await,
        Command::Operations { id: None, running, limit } => {
            operations::list(&agent().await?, running, limit, format).await
        }
        Command::Cancel { id } => operations::cancel(&agent().await?, id, format).await,
        Command::Watch => attachments::watch(&agent().await?, format).await,
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { dir } => shell::man(dir.as_deref()),
    }
}
