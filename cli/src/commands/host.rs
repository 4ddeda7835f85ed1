//! host: what this machine is and can do.

use crate::{args::Format, connect::Agent, error::Error, output, view::Host};
use proto::v1;

pub(super) async fn show(agent: &Agent, format: Format) -> Result<(), Error> {
    let mut client = agent.host();
    let reply = agent.call(|_| v1::GetHostRequest {}, async |request| client.get_host(request).await).await?;
    Ok(output::answer(&Host::from(reply), format)?)
}
