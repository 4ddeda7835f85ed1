//! host: what this machine is and can do. doctor: what is wrong with it, and what on it is whose.

use crate::{
    args::Doctor,
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    view::{Diagnosis, Host},
};
use proto::v1;

pub(super) async fn show(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut client = agent.host();
    let reply = agent.call(|_| v1::GetHostRequest {}, async |request| client.get_host(request).await).await?;
    out.answer(&Host::from(reply))
}

pub(super) async fn doctor(agent: &Agent, doctor: Doctor, out: &Output) -> Result<(), Error> {
    let mut client = agent.host();
    let message = |timeout_ms| v1::DiagnoseRequest { repair: doctor.repair, timeout_ms };
    let reply = agent.call(message, async |request| client.diagnose(request).await).await?;
    let diagnosis = Diagnosis::new(reply, doctor.all);
    out.answer(&diagnosis)?;
    match diagnosis.in_order() {
        true => Ok(()),
        false => Err(Failure::not_in_order(diagnosis.summary()).into()),
    }
}
