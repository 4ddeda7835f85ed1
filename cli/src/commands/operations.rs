//! operations: the list, and one of them. cancel.

use crate::{
    args::Format,
    connect::Agent,
    error::Error,
    output,
    view::{Cancelled, Operation},
};
use proto::v1;

pub(super) async fn show(agent: &Agent, id: String, format: Format) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::GetOperationRequest { id: id.clone() };
    let reply = agent.call(message, async |request| client.get(request).await).await?;
    Ok(output::answer(&Operation::from(reply), format)?)
}

pub(super) async fn list(agent: &Agent, running_only: bool, limit: u32, format: Format) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::ListOperationsRequest { running_only, limit };
    let reply = agent.call(message, async |request| client.list(request).await).await?;
    let operations: Vec<Operation> = reply.operations.into_iter().map(Operation::from).collect();
    Ok(output::answer(&operations, format)?)
}

pub(super) async fn cancel(agent: &Agent, id: String, format: Format) -> Result<(), Error> {
    let mut client = agent.operations();
    let message = |_| v1::CancelOperationRequest { id: id.clone() };
    let reply = agent.call(message, async |request| client.cancel(request).await).await?;
    Ok(output::answer(&Cancelled::from(reply), format)?)
}
