//! status: the host on one screen, asked side by side, so that what does not answer hides nothing else.

use crate::{
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    view::Status,
};
use jiff::Timestamp;
use proto::v1;

pub(super) async fn show(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut client = agent.host();
    let host = agent.call(|_| v1::GetHostRequest {}, async |request| client.get_host(request).await).await?;
    let mut status = Status::new(host);
    let (mut attachments, mut exports) = (agent.attachments(), agent.exports());
    let (mut operations, mut instances) = (agent.operations(), agent.instances());
    let running = |_| v1::ListOperationsRequest { running_only: true, limit: 0 };
    let all_instances = async {
        match status.has_libvirt() {
            true => Some(agent.call(|_| v1::ListInstancesRequest {}, async |it| instances.list(it).await).await),
            false => None,
        }
    };
    let (attached, running, exported, known) = tokio::join!(
        agent.call(|_| v1::ListAttachmentsRequest {}, async |it| attachments.list(it).await),
        agent.call(running, async |it| operations.list(it).await),
        agent.call(|_| v1::ListExportsRequest {}, async |it| exports.list(it).await),
        all_instances,
    );
    match answered(attached)? {
        Ok(reply) => status.attachments(reply),
        Err(why) => status.not_asked("attachments", &why),
    }
    match answered(running)? {
        Ok(reply) => status.operations(reply, Timestamp::now()),
        Err(why) => status.not_asked("operations", &why),
    }
    match answered(exported)? {
        Ok(reply) => status.exports(reply),
        Err(why) => status.not_asked("exports", &why),
    }
    match known.map(answered).transpose()? {
        Some(Ok(reply)) => status.instances(reply),
        Some(Err(why)) => status.not_asked("instances", &why),
        None => {}
    }
    out.answer(&status)?;
    match status.in_order() {
        true => Ok(()),
        false => Err(Failure::not_in_order("something is amiss; mortar doctor says what to do about it").into()),
    }
}

/// What the agent refused does not end it.
fn answered<T>(reply: Result<T, Error>) -> Result<Result<T, Failure>, Error> {
    match reply {
        Ok(reply) => Ok(Ok(reply)),
        Err(Error::Failed(failure)) => Ok(Err(failure)),
        Err(hangup) => Err(hangup),
    }
}
