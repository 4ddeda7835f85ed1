//! export, exports, unexport.

use crate::{
    args::Export,
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    progress::{self, About},
    values::Target,
    view::{self, Exported, Unexported},
};
use proto::v1;
use tonic::Code;

pub(super) async fn export(agent: &Agent, export: Export, out: &Output) -> Result<(), Error> {
    let message = |timeout_ms| v1::ExportRequest {
        id: export.id.clone().unwrap_or_default(),
        locator: export.locator.clone(),
        initiator: export.initiator.clone(),
        portals: export.portal.clone(),
        read_only: export.read_only,
        timeout_ms,
    };
    let mut client = agent.exports();
    let named = [export.id.as_deref(), Some(&*export.locator)];
    let about = About { doing: "exporting", kind: v1::OperationKind::Export, named };
    let call = agent.call(message, async |request| client.export(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    let exported = Exported::new(reply).ok_or_else(|| Failure::internal("mortard answered without an export"))?;
    out.answer(&exported)
}

pub(super) async fn list(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut client = agent.exports();
    let reply = agent.call(|_| v1::ListExportsRequest {}, async |request| client.list(request).await).await?;
    let exports: Vec<view::Export> = reply.exports.into_iter().map(view::Export::from).collect();
    out.answer(&exports)
}

/// What could not be removed makes it a refusal: one sentence each for people, the answer itself for programs.
pub(super) async fn unexport(agent: &Agent, target: Target, out: &Output) -> Result<(), Error> {
    let target = match target {
        Target::Locator(locator) => v1::unexport_request::Target::Locator(locator),
        // The agent says what is wrong with it.
        Target::Id(id) | Target::Device(id) => v1::unexport_request::Target::Id(id),
    };
    let message = |timeout_ms| v1::UnexportRequest { target: Some(target.clone()), timeout_ms };
    let mut client = agent.exports();
    let (v1::unexport_request::Target::Id(name) | v1::unexport_request::Target::Locator(name)) = &target;
    let about = About { doing: "unexporting", kind: v1::OperationKind::Unexport, named: [Some(name), None] };
    let call = agent.call(message, async |request| client.unexport(request).await);
    let unexported: Unexported = progress::shown(agent, out, about, call).await?.into();
    let mut failures: Vec<_> =
        unexported.residuals().map(|residual| Failure::new(Code::FailedPrecondition, "RESIDUAL", residual)).collect();
    let Some(last) = failures.pop() else { return out.answer(&unexported) };
    if out.is_document() {
        out.answer(&unexported)?;
    }
    for failure in &failures {
        out.failure(failure);
    }
    Err(last.into())
}
