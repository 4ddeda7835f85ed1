//! host: what this machine is and can do. doctor: what is wrong with it, and what on it is whose.

use crate::{
    args::Doctor,
    confirm,
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

async fn diagnose(agent: &Agent, repair: bool, dry_run: bool) -> Result<v1::DiagnoseResponse, Error> {
    let mut client = agent.host();
    let message = |timeout_ms| v1::DiagnoseRequest { repair, timeout_ms, dry_run };
    agent.call(message, async |request| client.diagnose(request).await).await
}

pub(super) async fn doctor(agent: &Agent, doctor: Doctor, out: &Output) -> Result<(), Error> {
    let real = doctor.repair && !doctor.dry_run;
    if real && confirm::wanted(doctor.sure.yes) {
        let orphans = Diagnosis::new(diagnose(agent, false, false).await?, false).orphans();
        if !orphans.is_empty() {
            confirm::ask(&format!("What nobody has is taken away: {}.", orphans.join(", ")))?;
        }
    }
    let diagnosis = Diagnosis::new(diagnose(agent, doctor.repair, doctor.dry_run).await?, doctor.all);
    out.answer(&diagnosis)?;
    match diagnosis.in_order() {
        true => Ok(()),
        false => Err(Failure::not_in_order(diagnosis.summary()).into()),
    }
}
