//! attach, detach, list, show, extend, watch.

use crate::{
    args::{Attach, Format},
    connect::Agent,
    error::{Error, Failure},
    output, password,
    values::Target,
    view::{Attached, Attachment, Detached, Event},
};
use proto::v1;
use secrecy::{ExposeSecret, SecretString};
use tonic::Code;

pub(super) async fn attach(
    agent: &Agent,
    attach: Attach,
    password: Option<SecretString>,
    format: Format,
) -> Result<(), Error> {
    let chap = attach.chap_user.zip(password);
    let message = |timeout_ms| v1::AttachRequest {
        id: attach.id.clone().unwrap_or_default(),
        volume: Some(v1::attach_request::Volume::Locator(attach.locator.clone())),
        read_only: attach.read_only,
        persistent: attach.persistent,
        expected_wwn: attach.wwn.clone().unwrap_or_default(),
        expected_size_bytes: attach.size.unwrap_or_default(),
        timeout_ms,
        credentials: chap.as_ref().map(|(user, password)| v1::Credentials {
            kind: Some(v1::credentials::Kind::Chap(v1::Chap {
                user: user.clone(),
                password: password.expose_secret().to_owned(),
            })),
        }),
        ..Default::default()
    };
    let mut client = agent.attachments();
    let reply = agent.call(message, async |request| client.attach(request).await).await?;
    let attachment = reply.attachment.ok_or_else(nothing)?;
    Ok(output::answer(&Attached::new(attachment, reply.changed, reply.operation_id), format)?)
}

/// Reads the password that the command line names, if it names one.
pub(super) fn password(attach: &Attach) -> Result<Option<SecretString>, Error> {
    attach.chap_password_file.as_deref().map(password::read).transpose()
}

/// What could not be removed makes it a refusal: one sentence each for people, the answer itself for programs.
pub(super) async fn detach(agent: &Agent, target: Target, format: Format) -> Result<(), Error> {
    let target = match target {
        Target::Id(id) => v1::detach_request::Target::Id(id),
        Target::Locator(locator) => v1::detach_request::Target::Locator(locator),
        Target::Device(device) => v1::detach_request::Target::Device(device),
    };
    let message = |timeout_ms| v1::DetachRequest { target: Some(target.clone()), timeout_ms };
    let mut client = agent.attachments();
    let detached: Detached = agent.call(message, async |request| client.detach(request).await).await?.into();
    let mut failures: Vec<_> =
        detached.residuals().map(|residual| Failure::new(Code::FailedPrecondition, "RESIDUAL", residual)).collect();
    let Some(last) = failures.pop() else { return Ok(output::answer(&detached, format)?) };
    if format == Format::Json {
        output::answer(&detached, format)?;
    }
    for failure in &failures {
        output::failure(failure, format);
    }
    Err(last.into())
}

pub(super) async fn list(agent: &Agent, format: Format) -> Result<(), Error> {
    let mut client = agent.attachments();
    let reply = agent.call(|_| v1::ListAttachmentsRequest {}, async |request| client.list(request).await).await?;
    let attachments: Vec<Attachment> = reply.attachments.into_iter().map(Attachment::from).collect();
    Ok(output::answer(&attachments, format)?)
}

pub(super) async fn show(agent: &Agent, id: String, format: Format) -> Result<(), Error> {
    let mut client = agent.attachments();
    let message = |_| v1::GetAttachmentRequest { id: id.clone() };
    let reply = agent.call(message, async |request| client.get(request).await).await?;
    Ok(output::answer(&Attachment::from(reply), format)?)
}

pub(super) async fn extend(agent: &Agent, id: String, format: Format) -> Result<(), Error> {
    let mut client = agent.attachments();
    let message = |timeout_ms| v1::ExtendRequest { id: id.clone(), timeout_ms };
    let reply = agent.call(message, async |request| client.extend(request).await).await?;
    let attachment = reply.attachment.ok_or_else(nothing)?;
    Ok(output::answer(&Attached::new(attachment, reply.changed, reply.operation_id), format)?)
}

/// Prints events until the agent stops or nobody reads them any more.
pub(super) async fn watch(agent: &Agent, format: Format) -> Result<(), Error> {
    let mut events = agent.attachments().watch(v1::WatchRequest {}).await?.into_inner();
    while let Some(event) = events.message().await? {
        // An event that this build does not know comes without a body.
        let Some(event) = event.event.map(Event::from) else { continue };
        let line = match format {
            Format::Table => event.line(),
            Format::Json => serde_json::to_string(&event).map_err(std::io::Error::from)?,
        };
        output::line(&line)?;
    }
    Err(Failure::new(Code::Unavailable, "SHUTTING_DOWN", "mortard ended the watch; watch again when it is back").into())
}

fn nothing() -> Failure {
    Failure::internal("mortard answered without an attachment")
}
