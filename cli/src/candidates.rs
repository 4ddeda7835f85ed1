//! What the agent knows, for a shell that completes: ids, names and places. An agent that is not there, refuses, or does not
//! answer at once offers nothing, and nobody hears of it.

use crate::{
    args::Cli,
    connect::Agent,
    error::{Error, Failure},
};
use clap::Parser;
use clap_complete::engine::CompletionCandidate;
use proto::v1;
use std::{collections::BTreeMap, ffi::OsStr, time::Duration};
use tokio::time::timeout;

/// Somebody has pressed a key, and looks at it.
const PATIENCE: Duration = Duration::from_millis(300);

/// Each with what it is.
type Offers = BTreeMap<String, String>;

/// The attachments, by id.
pub(crate) fn attachments(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| of_attachments(agent).await)
}

/// What `show` shows.
pub(crate) fn shown(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| {
        let mut all = of_attachments(agent).await?;
        // A host need not have libvirt.
        all.extend(of_instances(agent).await.unwrap_or_default());
        Ok(all)
    })
}

/// The instances, by name.
pub(crate) fn instances(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| of_instances(agent).await)
}

/// The managed volumes, by id.
pub(crate) fn volumes(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| {
        let volumes = of_volumes(agent).await?;
        Ok(volumes.into_iter().map(|volume| (volume.id, volume.name)).collect())
    })
}

/// The places in which volumes are managed.
pub(crate) fn places(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| {
        let volumes = of_volumes(agent).await?;
        let place = |volume: v1::Volume| Some((volume.locator.rsplit_once('/')?.0.to_owned(), String::new()));
        Ok(volumes.into_iter().filter_map(place).collect())
    })
}

/// The exports, by id.
pub(crate) fn exports(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| {
        let mut client = agent.exports();
        let reply = agent.call(|_| v1::ListExportsRequest {}, async |request| client.list(request).await).await?;
        Ok(reply.exports.into_iter().map(|export| (export.id, export.locator)).collect())
    })
}

/// The operations that run, by id.
pub(crate) fn running(typed: &OsStr) -> Vec<CompletionCandidate> {
    offer(typed, async |agent| {
        let mut client = agent.operations();
        let message = |_| v1::ListOperationsRequest { running_only: true, limit: 0 };
        let reply = agent.call(message, async |request| client.list(request).await).await?;
        Ok(reply.operations.into_iter().map(|operation| (operation.id, operation.subject)).collect())
    })
}

async fn of_attachments(agent: &Agent) -> Result<Offers, Error> {
    let mut client = agent.attachments();
    let reply = agent.call(|_| v1::ListAttachmentsRequest {}, async |request| client.list(request).await).await?;
    Ok(reply.attachments.into_iter().map(|attachment| (attachment.id, attachment.locator)).collect())
}

async fn of_instances(agent: &Agent) -> Result<Offers, Error> {
    let mut client = agent.instances();
    let reply = agent.call(|_| v1::ListInstancesRequest {}, async |request| client.list(request).await).await?;
    Ok(reply.instances.into_iter().map(|instance| (instance.name, instance.uuid)).collect())
}

async fn of_volumes(agent: &Agent) -> Result<Vec<v1::Volume>, Error> {
    let mut client = agent.volumes();
    let message = |_| v1::ListVolumesRequest::default();
    Ok(agent.call(message, async |request| client.list(request).await).await?.volumes)
}

fn offer(typed: &OsStr, known: impl AsyncFnOnce(&Agent) -> Result<Offers, Error>) -> Vec<CompletionCandidate> {
    let asked = async {
        // Which agent, the environment says: the line is not finished.
        let cli = Cli::try_parse_from(["mortar", "status"]).map_err(|error| Failure::usage(&error))?;
        let agent = Agent::connect(&cli.to, PATIENCE).await?;
        known(&agent).await
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let Ok(Ok(offers)) = runtime.block_on(async { timeout(PATIENCE, asked).await }) else { return Vec::new() };
    let typed = typed.to_string_lossy();
    // A name from elsewhere is not for a shell's line.
    let fits = |name: &String| name.starts_with(&*typed) && !name.chars().any(char::is_control);
    let candidate = |(name, about): (String, String)| {
        let help = (!about.is_empty()).then(|| crate::table::visible(&about).into());
        CompletionCandidate::new(name).help(help)
    };
    offers.into_iter().filter(|(name, _)| fits(name)).map(candidate).collect()
}
