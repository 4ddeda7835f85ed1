//! instances, rescue, unrescue, instance; and show, of an instance.

use crate::{
    args::{InstanceCommand, Power, Rescue, Unrescue},
    confirm,
    connect::Agent,
    error::{Error, Failure},
    output::Output,
    password,
    progress::{self, About},
    view::{Instance, InstanceRow, Powered, Rescued, Unrescued},
};
use proto::v1;
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;

/// The longest grace that an agent's config may have for those who do not say.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// What stands in the files that the command line names.
pub(super) struct Read {
    password: Option<SecretString>,
    keys: Vec<String>,
    user_data: Option<SecretString>,
}

impl Read {
    pub(super) fn of(rescue: &Rescue) -> Result<Self, Error> {
        let files = rescue.password_file.iter().chain(&rescue.ssh_key).chain(&rescue.user_data);
        if files.filter(|file| file.as_os_str() == "-").count() > 1 {
            return Err(Failure::invalid("stdin can be read once only: put the others into files").into());
        }
        let mut keys = Vec::new();
        for file in &rescue.ssh_key {
            keys.extend(password::ssh_keys(file)?);
        }
        Ok(Self {
            password: rescue.password_file.as_deref().map(password::read).transpose()?,
            keys,
            user_data: rescue.user_data.as_deref().map(password::user_data).transpose()?,
        })
    }
}

pub(super) async fn list(agent: &Agent, out: &Output) -> Result<(), Error> {
    let mut client = agent.instances();
    let reply = agent.call(|_| v1::ListInstancesRequest {}, async |request| client.list(request).await).await?;
    let instances: Vec<InstanceRow> = reply.instances.into_iter().map(InstanceRow::from).collect();
    out.answer(&instances)
}

pub(super) async fn show(agent: &Agent, instance: String, out: &Output) -> Result<(), Error> {
    out.answer(&Instance::from(get(agent, &instance).await?))
}

async fn get(agent: &Agent, instance: &str) -> Result<v1::Instance, Error> {
    let mut client = agent.instances();
    let message = |_| v1::GetInstanceRequest { instance: instance.to_owned() };
    agent.call(message, async |request| client.get(request).await).await
}

/// How a guest comes to its end, for the question before.
fn stopped(grace: Option<Duration>) -> &'static str {
    match grace {
        Some(Duration::ZERO) => " without asking its guest",
        _ => ", by force if its guest does not shut down",
    }
}

pub(super) async fn rescue(agent: &Agent, rescue: Rescue, read: Read, out: &Output) -> Result<(), Error> {
    use v1::rescue_request::Disk;
    let secret = |secret: &Option<SecretString>| {
        secret.as_ref().map(|secret| secret.expose_secret().to_owned()).unwrap_or_default()
    };
    let message = |timeout_ms| v1::RescueRequest {
        instance: rescue.instance.clone(),
        disk: match (&rescue.image, &rescue.volume) {
            (Some(image), _) => Some(Disk::Image(image.clone())),
            (None, volume) => volume.clone().map(Disk::Volume),
        },
        layout: v1::RescueLayout::from(rescue.layout).into(),
        bus: rescue.bus.map_or(v1::DiskBus::Unspecified, v1::DiskBus::from).into(),
        without_data_disks: rescue.without_data_disks,
        password: secret(&read.password),
        ssh_keys: read.keys.clone(),
        user_data: secret(&read.user_data),
        no_seed: rescue.no_seed,
        grace_ms: rescue.grace.grace.map(millis),
        timeout_ms,
        dry_run: rescue.dry_run,
    };
    if !rescue.dry_run && confirm::wanted(rescue.sure.yes) {
        let now = get(agent, &rescue.instance).await?;
        if now.power() == v1::InstancePower::Running && now.rescue.is_none() {
            let how = stopped(rescue.grace.grace);
            confirm::ask(&format!("{} runs: it is stopped{how}, and boots from the rescue disk.", now.name))?;
        }
    }
    let mut client = agent.instances();
    let grace = rescue.grace.grace.unwrap_or(LONGEST_GRACE);
    let named = [Some(&*rescue.instance), None];
    let about = About { doing: "rescuing", kind: v1::OperationKind::Rescue, named };
    let call = agent.call_with_grace(grace, message, async |request| client.rescue(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    for warning in &reply.warnings {
        out.warning(warning);
    }
    let rescued = Rescued::new(reply).ok_or_else(nothing)?;
    out.answer(&rescued)
}

pub(super) async fn unrescue(agent: &Agent, unrescue: Unrescue, out: &Output) -> Result<(), Error> {
    let message = |timeout_ms| v1::UnrescueRequest {
        instance: unrescue.instance.clone(),
        discard_changes: unrescue.discard_changes,
        grace_ms: unrescue.grace.grace.map(millis),
        timeout_ms,
    };
    if confirm::wanted(unrescue.sure.yes) {
        let now = get(agent, &unrescue.instance).await?;
        if let Some(rescue) = now.rescue {
            let how = stopped(unrescue.grace.grace);
            let goes = if rescue.image {
                format!(" The rescue disk {} and all on it go.", rescue.disk)
            } else {
                String::new()
            };
            let lost = if unrescue.discard_changes { " What somebody changed in its definition is lost." } else { "" };
            confirm::ask(&format!("{} is stopped{how}, and put back as it was.{goes}{lost}", now.name))?;
        }
    }
    let mut client = agent.instances();
    let grace = unrescue.grace.grace.unwrap_or(LONGEST_GRACE);
    let named = [Some(&*unrescue.instance), None];
    let about = About { doing: "unrescuing", kind: v1::OperationKind::Unrescue, named };
    let call = agent.call_with_grace(grace, message, async |request| client.unrescue(request).await);
    let reply = progress::shown(agent, out, about, call).await?;
    for rebound in &reply.rebound {
        out.warning(rebound);
    }
    out.answer(&Unrescued::from(reply))
}

pub(super) async fn power(agent: &Agent, command: InstanceCommand, out: &Output) -> Result<(), Error> {
    if let InstanceCommand::Stop(power) | InstanceCommand::Reboot(power) = &command
        && power.grace.grace == Some(Duration::ZERO)
        && confirm::wanted(power.sure.yes)
    {
        confirm::ask(&format!("{} is ended without asking its guest.", power.instance))?;
    }
    let mut client = agent.instances();
    let grace = |power: &Power| power.grace.grace.unwrap_or(LONGEST_GRACE);
    let reply = match command {
        InstanceCommand::Start { instance } => {
            let message = |timeout_ms| v1::StartInstanceRequest { instance: instance.clone(), timeout_ms };
            let about = About { doing: "starting", kind: v1::OperationKind::Start, named: [Some(&instance), None] };
            let call = agent.call(message, async |request| client.start(request).await);
            progress::shown(agent, out, about, call).await?
        }
        InstanceCommand::Stop(power) => {
            let message = |timeout_ms| v1::StopInstanceRequest {
                instance: power.instance.clone(),
                grace_ms: power.grace.grace.map(millis),
                timeout_ms,
            };
            let named = [Some(&*power.instance), None];
            let about = About { doing: "stopping", kind: v1::OperationKind::Stop, named };
            let call = agent.call_with_grace(grace(&power), message, async |request| client.stop(request).await);
            progress::shown(agent, out, about, call).await?
        }
        InstanceCommand::Reboot(power) => {
            let message = |timeout_ms| v1::RebootInstanceRequest {
                instance: power.instance.clone(),
                grace_ms: power.grace.grace.map(millis),
                timeout_ms,
            };
            let named = [Some(&*power.instance), None];
            let about = About { doing: "rebooting", kind: v1::OperationKind::Reboot, named };
            let call = agent.call_with_grace(grace(&power), message, async |request| client.reboot(request).await);
            progress::shown(agent, out, about, call).await?
        }
    };
    out.answer(&Powered::from(reply))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn nothing() -> Failure {
    Failure::internal("mortard answered without an instance")
}
