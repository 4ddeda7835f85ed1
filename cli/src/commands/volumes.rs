//! manageable, manage, unmanage, volumes.

use crate::{
    args::Manage,
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    progress::{self, About},
    view::{Manageable, Managed, Unmanaged, Volume},
};
use proto::v1;

pub(super) async fn manageable(agent: &Agent, scope: String, out: &Output) -> Result<(), Error> {
    let mut client = agent.volumes();
    let message = |_| v1::ListManageableRequest { scope: scope.clone() };
    let reply = agent.call(message, async |request| client.list_manageable(request).await).await?;
    let entries: Vec<Manageable> = reply.entries.into_iter().map(Manageable::from).collect();
    out.answer(&entries)
}

pub(super) async fn manage(agent: &Agent, manage: Manage, out: &Output) -> Result<(), Error> {
    let mut client = agent.volumes();
    let message = |_| v1::ManageRequest {
        locator: manage.locator.clone(),
        id: manage.id.clone().unwrap_or_default(),
        name: manage.name.clone().unwrap_or_default(),
        allow_in_use: manage.allow_in_use,
        dry_run: manage.dry_run,
    };
    let named = [manage.id.as_deref(), Some(&*manage.locator)];
    let about = About { doing: "managing", kind: v1::OperationKind::Manage, named };
    let call = agent.call(message, async |request| client.manage(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    let volume = reply.volume.ok_or_else(|| Failure::internal("mortard answered without a volume"))?;
    out.answer(&Managed::new(volume, reply.changed, reply.operation_id, reply.would))
}

pub(super) async fn unmanage(agent: &Agent, id: String, keep_name: bool, out: &Output) -> Result<(), Error> {
    let mut client = agent.volumes();
    let message = |_| v1::UnmanageRequest { id: id.clone(), keep_name };
    let about = About { doing: "unmanaging", kind: v1::OperationKind::Unmanage, named: [Some(&id), None] };
    let call = agent.call(message, async |request| client.unmanage(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    out.answer(&Unmanaged::from(reply))
}

pub(super) async fn list(agent: &Agent, scope: Option<String>, out: &Output) -> Result<(), Error> {
    let mut client = agent.volumes();
    let message = |_| v1::ListVolumesRequest { scope: scope.clone().unwrap_or_default() };
    let reply = agent.call(message, async |request| client.list(request).await).await?;
    for problem in &reply.problems {
        out.warning(problem);
    }
    let volumes: Vec<Volume> = reply.volumes.into_iter().map(Volume::from).collect();
    out.answer(&volumes)
}
