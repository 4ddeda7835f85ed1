//! One function for each command: ask the agent, print the answer.

mod attachments;
mod explain;
mod exports;
mod host;
mod instances;
mod operations;
mod shell;
mod status;
mod volumes;

use crate::{
    args::{Cli, Command},
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    view,
};

/// Runs the command to its end.
pub(crate) fn run(cli: Cli, out: &Output) -> Result<(), Error> {
    expect_columns(&cli.command, out)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start the runtime: {error}")))?
        .block_on(ask(cli, out))
}

async fn ask(cli: Cli, out: &Output) -> Result<(), Error> {
    let agent = || Agent::connect(&cli.to, cli.timeout);
    match cli.command {
        Command::Attach(attach) => {
            // Before the connection: a user who types it keeps nobody waiting.
            let read = attachments::Read::of(&attach)?;
            attachments::attach(&agent().await?, attach, read, out).await
        }
        Command::Detach(detach) => {
            let target = attachments::target(detach)?;
            attachments::detach(&agent().await?, target, out).await
        }
        Command::List => attachments::list(&agent().await?, out).await,
        Command::Show { id, instance: true } => instances::show(&agent().await?, id, out).await,
        Command::Show { id, instance: false } => attachments::show(&agent().await?, id, out).await,
        Command::Extend { id } => attachments::extend(&agent().await?, id, out).await,
        Command::Manageable { scope } => volumes::manageable(&agent().await?, scope, out).await,
        Command::Manage(manage) => volumes::manage(&agent().await?, manage, out).await,
        Command::Unmanage { id, keep_name } => volumes::unmanage(&agent().await?, id, keep_name, out).await,
        Command::Volumes { scope } => volumes::list(&agent().await?, scope, out).await,
        Command::Export(export) => exports::export(&agent().await?, export, out).await,
        Command::Exports => exports::list(&agent().await?, out).await,
        Command::Unexport { target } => exports::unexport(&agent().await?, target, out).await,
        Command::Instances => instances::list(&agent().await?, out).await,
        Command::Rescue(rescue) => {
            let read = instances::Read::of(&rescue)?;
            instances::rescue(&agent().await?, rescue, read, out).await
        }
        Command::Unrescue(unrescue) => instances::unrescue(&agent().await?, unrescue, out).await,
        Command::Instance { command } => instances::power(&agent().await?, command, out).await,
        Command::Host => host::show(&agent().await?, out).await,
        Command::Status => status::show(&agent().await?, out).await,
        Command::Doctor(doctor) => host::doctor(&agent().await?, doctor, out).await,
        Command::Operations { id: Some(id), .. } => operations::show(&agent().await?, id, out).await,
        Command::Operations { id: None, running, limit } => {
            operations::list(&agent().await?, running, limit, out).await
        }
        Command::Cancel { id } => operations::cancel(&agent().await?, id, out).await,
        Command::Watch => attachments::watch(&agent().await?, out).await,
        Command::Explain { reason: Some(reason) } => explain::one(&reason, out),
        Command::Explain { reason: None } => explain::list(out),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { dir } => shell::man(dir.as_deref()),
    }
}

/// Nothing may be done whose answer then cannot be printed: the columns are looked for before the agent is asked.
fn expect_columns(command: &Command, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Attach(_) | Command::Extend { .. } => out.expect::<view::Attached>(),
        Command::Detach(_) => out.expect::<view::Detached>(),
        Command::List => out.expect::<Vec<view::Attachment>>(),
        Command::Show { instance: true, .. } => out.expect::<view::Instance>(),
        Command::Show { instance: false, .. } => {
            out.expect::<view::Attachment>().or_else(|none| out.expect::<view::Instance>().map_err(|_| none))
        }
        Command::Manageable { .. } => out.expect::<Vec<view::Manageable>>(),
        Command::Manage(_) => out.expect::<view::Managed>(),
        Command::Unmanage { .. } => out.expect::<view::Unmanaged>(),
        Command::Volumes { .. } => out.expect::<Vec<view::Volume>>(),
        Command::Export(_) => out.expect::<view::Exported>(),
        Command::Exports => out.expect::<Vec<view::Export>>(),
        Command::Unexport { .. } => out.expect::<view::Unexported>(),
        Command::Instances => out.expect::<Vec<view::InstanceRow>>(),
        Command::Rescue(_) => out.expect::<view::Rescued>(),
        Command::Unrescue(_) => out.expect::<view::Unrescued>(),
        Command::Instance { .. } => out.expect::<view::Powered>(),
        Command::Host => out.expect::<view::Host>(),
        Command::Status => out.expect::<view::Status>(),
        Command::Doctor(_) => out.expect::<view::Diagnosis>(),
        Command::Operations { id: Some(_), .. } => out.expect::<view::Operation>(),
        Command::Operations { id: None, .. } => out.expect::<Vec<view::Operation>>(),
        Command::Cancel { .. } => out.expect::<view::Cancelled>(),
        Command::Explain { reason: Some(_) } => out.expect::<view::Reason>(),
        Command::Explain { reason: None } => out.expect::<Vec<view::Reason>>(),
        Command::Watch | Command::Completions { .. } | Command::Man { .. } => out.expect_none(),
    }
}
