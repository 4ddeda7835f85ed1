//! attach, detach, list, show, extend, watch.

use crate::{
    args::{Attach, Detach},
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    password,
    progress::{self, About},
    values::Target,
    view::{Attached, Attachment, Detached, Event},
};
use proto::v1;
use secrecy::{ExposeSecret, SecretString};
use tonic::Code;

/// What stands in the files that the command line names.
pub(super) struct Read {
    password: Option<SecretString>,
    key: Option<SecretString>,
    connection_info: Option<SecretString>,
}

impl Read {
    pub(super) fn of(attach: &Attach) -> Result<Self, Error> {
        let files = [&attach.chap_password_file, &attach.cephx_key_file, &attach.connection_info];
        if files.into_iter().flatten().filter(|file| file.as_os_str() == "-").count() > 1 {
            return Err(Failure::invalid("stdin can be read once only: put one of the two into a file").into());
        }
        Ok(Self {
            password: attach.chap_password_file.as_deref().map(password::read).transpose()?,
            key: attach.cephx_key_file.as_deref().map(password::key).transpose()?,
            connection_info: attach.connection_info.as_deref().map(password::connection_info).transpose()?,
        })
    }

    fn credentials(&self, attach: &Attach) -> Option<v1::Credentials> {
        let kind = match (&attach.chap_user, &self.password, &self.key) {
            (Some(user), Some(password), _) => v1::credentials::Kind::Chap(v1::Chap {
                user: user.clone(),
                password: password.expose_secret().to_owned(),
            }),
            (_, _, Some(key)) => v1::credentials::Kind::Cephx(v1::Cephx { key: key.expose_secret().to_owned() }),
            _ => return None,
        };
        Some(v1::Credentials { kind: Some(kind) })
    }
}

pub(super) async fn attach(agent: &Agent, attach: Attach, read: Read, out: &Output) -> Result<(), Error> {
    use v1::attach_request::Volume;
    let message = |timeout_ms| v1::AttachRequest {
        id: attach.id.clone().unwrap_or_default(),
        volume: match (&attach.locator, &read.connection_info) {
            (Some(locator), _) => Some(Volume::Locator(locator.clone())),
            (None, info) => info.as_ref().map(|info| Volume::ConnectionInfo(info.expose_secret().to_owned())),
        },
        read_only: attach.read_only,
        persistent: attach.persistent,
        exclusive: attach.exclusive,
        all_paths: attach.all_paths,
        expected_wwn: attach.wwn.clone().unwrap_or_default(),
        expected_size_bytes: attach.size.unwrap_or_default(),
        timeout_ms,
        credentials: read.credentials(&attach),
    };
    let mut client = agent.attachments();
    let named = [attach.id.as_deref(), attach.locator.as_deref()];
    let about = About { doing: "attaching", kind: v1::OperationKind::Attach, named };
    let call = agent.call(message, async |request| client.attach(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    let attachment = reply.attachment.ok_or_else(nothing)?;
    out.answer(&Attached::new(attachment, reply.changed, reply.operation_id))
}

/// What the command line names, in the contract's terms.
pub(super) fn target(detach: Detach) -> Result<Option<v1::detach_request::Target>, Error> {
    Ok(match (detach.target, detach.connection_info) {
        (Some(Target::Id(id)), _) => Some(v1::detach_request::Target::Id(id)),
        (Some(Target::Locator(locator)), _) => Some(v1::detach_request::Target::Locator(locator)),
        (Some(Target::Device(device)), _) => Some(v1::detach_request::Target::Device(device)),
        (None, Some(file)) => {
            let info = password::connection_info(&file)?;
            Some(v1::detach_request::Target::ConnectionInfo(info.expose_secret().to_owned()))
        }
        (None, None) => None,
    })
}

/// What could not be removed makes it a refusal: one sentence each for people, the answer itself for programs.
pub(super) async fn detach(
    agent: &Agent,
    target: Option<v1::detach_request::Target>,
    out: &Output,
) -> Result<(), Error> {
    let message = |timeout_ms| v1::DetachRequest { target: target.clone(), timeout_ms };
    let mut client = agent.attachments();
    let named = match &target {
        Some(v1::detach_request::Target::Id(name) | v1::detach_request::Target::Locator(name)) => {
            [Some(name.as_str()), None]
        }
        _ => [None, None],
    };
    let about = About { doing: "detaching", kind: v1::OperationKind::Detach, named };
    let call = agent.call(message, async |request| client.detach(request).await);
    let detached: Detached = progress::shown(agent, out, about, call).await?.into();
    let mut failures: Vec<_> =
        detached.residuals().map(|residual| Failure::new(Code::FailedPrecondition, "RESIDUAL", residual)).collect();
    let Some(last) = failures.pop() else { return out.answer(&detached) };
    if out.is_document() {
        out.answer(&detached)?;
    }
    for failure in &failures {
        out.failure(failure);
    }
    Err(last.into())
}

pub(super) async fn list(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut client = agent.attachments();
    let reply = agent.call(|_| v1::ListAttachmentsRequest {}, async |request| client.list(request).await).await?;
    let attachments: Vec<Attachment> = reply.attachments.into_iter().map(Attachment::from).collect();
    out.answer(&attachments)
}

/// An attachment, or else an instance of that name; where there is neither, that there is no such attachment.
pub(super) async fn show(agent: &Agent, id: String, out: &Output) -> Result<(), Error> {
    let mut client = agent.attachments();
    let message = |_| v1::GetAttachmentRequest { id: id.clone() };
    let no_attachment = match agent.call(message, async |request| client.get(request).await).await {
        Ok(reply) => return out.answer(&Attachment::from(reply)),
        // An instance may have a name that no attachment can have.
        Err(Error::Failed(failure)) if failure.is(Code::NotFound) || failure.is(Code::InvalidArgument) => failure,
        Err(error) => return Err(error),
    };
    match super::instances::show(agent, id, out).await {
        Err(Error::Failed(_)) => Err(no_attachment.into()),
        shown => shown,
    }
}

pub(super) async fn extend(agent: &Agent, id: String, out: &Output) -> Result<(), Error> {
    let mut client = agent.attachments();
    let message = |timeout_ms| v1::ExtendRequest { id: id.clone(), timeout_ms };
    let about = About { doing: "extending", kind: v1::OperationKind::Extend, named: [Some(&id), None] };
    let call = agent.call(message, async |request| client.extend(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    let attachment = reply.attachment.ok_or_else(nothing)?;
    out.answer(&Attached::new(attachment, reply.changed, reply.operation_id))
}

/// Prints events until the agent stops or nobody reads them any more.
pub(super) async fn watch(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut events = agent.attachments().watch(v1::WatchRequest {}).await?.into_inner();
    while let Some(event) = events.message().await? {
        // An event that this build does not know comes without a body.
        let Some(event) = event.event.map(Event::from) else { continue };
        out.next(&event, &event.line())?;
    }
    Err(Failure::new(Code::Unavailable, "SHUTTING_DOWN", "mortard ended the watch; watch again when it is back").into())
}

fn nothing() -> Failure {
    Failure::internal("mortard answered without an attachment")
}
