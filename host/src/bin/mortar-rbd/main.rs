//! `mortar-rbd`: one job for Ceph's own libraries, read as JSON from stdin and answered as JSON on stdout.
//!
//! Exit codes: 0 with the reply; 1 with `{"error": …}`; 2 for a job that makes no sense, with `{"error": …}` too.
//! What a job and a reply look like stands in [`host::rbd_job`].

mod api;
mod budget;
mod change;
mod clone;
mod cluster;
mod facts;
mod features;
mod image;
mod text;

use api::Ceph;
use budget::Budget;
use change::{First, change};
use cluster::{Cluster, Pool};
use host::rbd_job::{self, Failed, Failure, Features, Job, Step, Task};
use image::Image;
use std::{
    env,
    io::{self, Read, Write},
    process::ExitCode,
    time::Instant,
};
use zeroize::Zeroizing;

fn main() -> ExitCode {
    let begun = Instant::now();
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let (reply, code) = match arguments.as_slice() {
        [] => answer(begun),
        [one] if one == "--version" => (format!("mortar-rbd {}", env!("CARGO_PKG_VERSION")), 0),
        _ => ("usage: mortar-rbd <JOB (JSON), or mortar-rbd --version".into(), 2),
    };
    match writeln!(io::stdout(), "{reply}") {
        Ok(()) => code.into(),
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(begun: Instant) -> (String, u8) {
    match hide_memory().and_then(|()| read_job()).and_then(|job| run(&job, begun)) {
        Ok(reply) => (reply, 0),
        Err(failure) => {
            let code = if failure.step == Step::Job { 2 } else { 1 };
            (json(&Failed { error: failure }), code)
        }
    }
}

/// The key will be in our memory: no core of it is to be written, and only root is to look into it.
fn hide_memory() -> Result<(), Failure> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| Failure::new(Step::Job, "keep others from our memory", errno.desc()))
}

fn read_job() -> Result<Job, Failure> {
    let wrong = |error: &dyn std::error::Error| Failure::new(Step::Job, "read the job", error.to_string());
    let mut input = Zeroizing::new(String::with_capacity(64 << 10));
    io::stdin().read_to_string(&mut input).map_err(|error| wrong(&error))?;
    let job: Job = serde_json::from_str(&input).map_err(|error| wrong(&error))?;
    let why = match (&job.task, &job.conf) {
        (_, None) if job.monitors.is_empty() => "neither a conf nor monitors are given",
        (Task::Inspect { image: None, id: None }, _) => "neither an image nor an id is given",
        _ => return Ok(job),
    };
    Err(Failure::new(Step::Job, "read the job", why))
}

fn run(job: &Job, begun: Instant) -> Result<String, Failure> {
    let budget = Budget::new(begun, job.budget_ms);
    let ceph = Ceph::load()?;
    let cluster = Cluster::connect(&ceph, job)?;
    let pool = cluster.pool(&job.pool, &job.namespace)?;
    let reply = |images, trash| -> Result<String, Failure> {
        Ok(json(&rbd_job::Pool { fsid: cluster.fsid()?, pool_id: pool.id(), images, trash }))
    };
    match &job.task {
        Task::List => reply(facts::all(&pool)?, pool.trash()?),
        Task::Inspect { image, id } => {
            let (image, trash) = facts::one(&pool, image.as_deref(), id.as_deref())?;
            reply(image.into_iter().collect(), trash)
        }
        Task::Manage(wanted) => reply(vec![change(&pool, wanted, First::Metadata, budget)?], Vec::new()),
        Task::Unmanage(wanted) => reply(vec![change(&pool, wanted, First::Name, budget)?], Vec::new()),
        Task::Clone(wanted) => reply(vec![clone::make(&pool, wanted, budget)?], Vec::new()),
        Task::Unclone(wanted) => {
            clone::take_away(&pool, wanted, budget)?;
            reply(Vec::new(), Vec::new())
        }
        Task::Features { image } => Ok(json(&features_of(&pool, image)?)),
    }
}

fn features_of(pool: &Pool<'_>, image: &str) -> Result<Features, Failure> {
    Ok(Features { features: features::named(Image::look(pool, image)?.features()?) })
}

fn json<T: serde::Serialize>(reply: &T) -> String {
    serde_json::to_string(reply).expect("strings, numbers and lists are JSON")
}
