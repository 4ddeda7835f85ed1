//! operations: the list, and one of them. cancel.

use crate::{
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    view::{Cancelled, Operation},
};
use proto::v1;

pub(super) async fn show(agent: &Agent, id: String, out: &Output) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::GetOperationRequest { id: id.clone() };
    let reply = agent.call(message, async |request| client.get(request).await).await?;
    out.answer(&Operation::from(reply))
}

pub(super) async fn list(agent: &Agent, running_only: bool, limit: u32, out: &Output) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::ListOperationsRequest { running_only, limit };
    let reply = agent.call(message, async |request| client.list(request).await).await?;
    let operations: Vec<Operation> = reply.operations.into_iter().map(Operation::from).collect();
    out.answer(&operations)
}

pub(super) async fn cancel(agent: &Agent, id: String, out: &Output) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::CancelOperationRequest { id: id.clone() };
    let reply = agent.call(message, async |request| client.cancel(request).await).await?;
    let cancelled = Cancelled::new(reply).ok_or_else(|| Failure::internal("mortard answered without an operation"))?;
    out.answer(&cancelled)
}
