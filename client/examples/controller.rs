//! A controller in one page: it makes a host have the volumes that a file asks for, and keeps it so.
//!
//! ```text
//! cargo run --example controller -- wanted.txt           # goes on until Ctrl-C
//! cargo run --example controller -- wanted.txt --once    # one round; ends with 1 if something is left to do
//! ```
//!
//! The file has a line for each volume, an id of our own and the locator: `example-web1 lvm:vg0/web1`.
//!
//! It remembers nothing: what is wanted stands in the file, what is there the agent knows, and every call may be repeated. So it
//! may be killed at any time and started again. By the prefix of its ids it knows what it may detach.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for people to try")]

use mortar_client::{Client, Code, Watch, v1, v1::watch_event::Event};
use std::{collections::BTreeMap, env, process::ExitCode, time::Duration};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Of every id that is ours; what others have attached is not our business.
const PREFIX: &str = "example-";
/// How often we look although nothing was heard: a device may go without the agent's doing, and the file may change.
const LOOK: Duration = Duration::from_secs(10);
/// How often at most, whatever is heard.
const PACE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    let Some(file) = env::args().nth(1) else {
        eprintln!("usage: controller FILE [--once]");
        return ExitCode::from(2);
    };
    let socket = env::var("MORTAR_SOCKET").unwrap_or_else(|_| "/run/mortar/agent.sock".into());
    // It connects with the first call, and again when that breaks: an agent that restarts is waited for.
    let client = Client::builder().socket(socket).lazy();
    if env::args().nth(2).is_some_and(|option| option == "--once") {
        return if round(&client, &file).await { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    tokio::select! {
        () = keep(&client, &file) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    // What is attached stays attached: we find it when we come back.
    ExitCode::SUCCESS
}

/// A round, then another when something of ours has changed, or it is time for a look.
async fn keep(client: &Client, file: &str) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = None;
    loop {
        pace.tick().await;
        // Before the look, or what happens between the two would be missed.
        if watch.is_none() {
            watch = client.watch().await.inspect_err(|error| eprintln!("watch: {error}")).ok();
        }
        round(client, file).await;
        if let Some(events) = &mut watch
            && let Ok(Err(ended)) = timeout(LOOK, something_of_ours(events)).await
        {
            eprintln!("watch: {ended}");
            watch = None;
        }
    }
}

/// Returns when an attachment of ours is gone or broken, or else the watch has ended.
async fn something_of_ours(events: &mut Watch) -> Result<(), String> {
    loop {
        match events.next().await.map_err(|error| error.to_string())? {
            Some(Event::AttachmentGone(id)) if id.starts_with(PREFIX) => return Ok(()),
            Some(Event::Attachment(there))
                if there.id.starts_with(PREFIX) && there.state() != v1::AttachmentState::Ready =>
            {
                return Ok(());
            }
            Some(_) => {}
            None => return Err("the agent stops".into()),
        }
    }
}

/// Makes the host be as the file says; what cannot be now is said, and is for the next round. Whether all of it is done.
async fn round(client: &Client, file: &str) -> bool {
    let (wanted, list) = match (read(file), client.ask(v1::ListAttachmentsRequest {}).await) {
        (Ok(wanted), Ok(list)) => (wanted, list),
        // A file that cannot be read does not say that nothing is wanted.
        (Err(why), _) => return said(file, "", Err(why)),
        (_, Err(error)) => return said("list", "", Err(error.to_string())),
    };
    let mut done = true;
    let ours = list.attachments.iter().map(|there| &there.id).filter(|id| id.starts_with(PREFIX));
    for id in ours.filter(|id| !wanted.contains_key(*id)) {
        done &= said(id, "detached", detach(client, id).await);
    }
    // Also what is there: the agent proves that it is that volume still, and brings back what is broken.
    for (id, locator) in &wanted {
        done &= said(id, "attached", attach(client, id, locator).await);
    }
    done
}

async fn attach(client: &Client, id: &str, locator: &str) -> Result<bool, String> {
    let volume = Some(v1::attach_request::Volume::Locator(locator.into()));
    let request = v1::AttachRequest { id: id.into(), volume, ..Default::default() };
    let mut answer = client.ask(request.clone()).await;
    // The id is that of another volume: the line was changed.
    if answer.as_ref().is_err_and(|error| error.code() == Code::AlreadyExists) {
        detach(client, id).await?;
        answer = client.ask(request).await;
    }
    answer.map(|reply| reply.changed).map_err(|error| error.to_string())
}

async fn detach(client: &Client, id: &str) -> Result<bool, String> {
    let target = Some(v1::detach_request::Target::Id(id.into()));
    let reply = client.ask(v1::DetachRequest { target, timeout_ms: 0 }).await.map_err(|error| error.to_string())?;
    match reply.residuals.first() {
        Some(left) => Err(format!("{} could not be removed: {}", left.name, left.reason)),
        None => Ok(reply.changed),
    }
}

/// Tells what changed, or why it did not; whether it is as it should be.
fn said(id: &str, what: &str, answer: Result<bool, String>) -> bool {
    match &answer {
        Ok(true) => println!("{id}: {what}"),
        Ok(false) => {}
        Err(why) => eprintln!("{id}: {why}"),
    }
    answer.is_ok()
}

#[expect(clippy::disallowed_methods, reason = "a file of the caller's own")]
fn read(file: &str) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let pair = |line: &str| match line.split_once(' ') {
        Some((id, locator)) if id.starts_with(PREFIX) => Ok((id.to_owned(), locator.trim().to_owned())),
        _ => Err(format!("{line:?} is no id that begins with {PREFIX} and a locator")),
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(pair).collect()
}
