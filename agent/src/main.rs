//! mortard: arguments, config, logs, signals; then [`agent::run`] until it is told to stop.

use agent::{
    Reloader, StartError, TlsError,
    config::{Config, ConfigError, DEFAULT_PATH},
    telemetry::{self, Exporter},
};
use clap::Parser;
use host::{Linux, TRACES};
use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// The storage agent of one host: attaches volumes as block devices, and manages volumes that exist. It serves gRPC on a
/// Unix socket; `mortar` is its command line.
#[derive(Debug, Parser)]
#[command(name = "mortard", version, after_help = AFTER_HELP)]
struct Args {
    /// The config file. Without it, /etc/mortar/mortard.toml if there is one, or else the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on this socket instead of the config's.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Keep the journal here instead of where the config says.
    #[arg(long, value_name = "DIRECTORY")]
    state_directory: Option<PathBuf>,
    /// Read the config, say what is wrong with it, and end.
    #[arg(long)]
    check_config: bool,
}

/// How long a thread of the runtime is kept that waits for its next call that may take a while: volumes come and go several at a
/// time, and a new thread costs more than most such calls. Each keeps free memory of its own, which only its end gives back, so
/// it ends before the agent rests (`rest.rs`).
const IDLE: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "Exit codes: 0 stopped as asked; 64 the config is wrong; 69 a tool is missing or another \
                          mortard runs; 70 anything else.";

/// `EX_USAGE`, `EX_UNAVAILABLE` and `EX_SOFTWARE` of sysexits(3).
mod exit {
    pub(super) const USAGE: u8 = 64;
    pub(super) const UNAVAILABLE: u8 = 69;
    pub(super) const SOFTWARE: u8 = 70;
}

fn main() -> ExitCode {
    if let Some(code) = Linux::other_self() {
        return code;
    }
    // Neither a core dump nor another process of ours shows the secrets of a call.
    let _without_the_kernels_help = nix::sys::prctl::set_dumpable(false);
    let args = Args::parse();
    let config = match configure(&args) {
        Ok(config) => config,
        Err(error) => return end(&error, exit::USAGE),
    };
    if args.check_config {
        let place = args.config.unwrap_or_else(|| DEFAULT_PATH.into());
        let _closed = writeln!(std::io::stdout(), "{}: ok", place.display());
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE).build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&error, exit::SOFTWARE),
    };
    // What sends traces needs the runtime.
    let inside = runtime.enter();
    let (filter, traces) = match log(&config) {
        Ok(log) => log,
        Err(why) => return end(&why, exit::USAGE),
    };
    drop(inside);
    let result = runtime.block_on(run(config, Reload { args, filter }));
    traces.stop();
    // A thread that waits for a device that never answers must not keep us from stopping.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match &error {
                StartError::Config(_) | StartError::Tls(TlsError::File { .. } | TlsError::Together(_)) => exit::USAGE,
                StartError::Driver(_)
                | StartError::Socket(_)
                | StartError::Metrics(_)
                | StartError::Tls(TlsError::Listen { .. }) => exit::UNAVAILABLE,
                StartError::Recover(_) | StartError::Serve(_) => exit::SOFTWARE,
            };
            end(&error, code)
        }
    }
}

fn configure(args: &Args) -> Result<Config, ConfigError> {
    let mut config = Config::load(args.config.clone())?;
    if let Some(socket) = &args.socket {
        config.agent.socket.clone_from(socket);
    }
    if let Some(directory) = &args.state_directory {
        config.agent.state_directory.clone_from(directory);
    }
    config.check()?;
    Ok(config)
}

/// What is logged, and may be something else later.
type Filter = reload::Handle<EnvFilter, Registry>;

fn filter(config: &Config) -> Result<EnvFilter, String> {
    let text = &config.agent.log;
    // A plain level is meant for us, not for every frame of gRPC.
    let quiet = if text.contains(['=', ',']) { "" } else { ",h2=warn,hyper_util=warn,tonic=warn,tower=warn" };
    // Who did what is told however quiet the rest is, unless somebody says otherwise.
    let audit = if text.contains("audit") { "" } else { ",audit=info" };
    let traces = if config.telemetry.endpoint.is_empty() { "off" } else { "trace" };
    let all = format!("{text}{quiet}{audit},{TRACES}={traces}");
    EnvFilter::try_new(all).map_err(|error| format!("agent.log: {error}"))
}

/// To the journal of systemd where it collects our output, else to stderr; and traces to where the config says.
fn log(config: &Config) -> Result<(Filter, Exporter), String> {
    let (filter, handle) = reload::Layer::new(filter(config)?);
    let journald = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let stderr = journald.is_none().then(|| {
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal())
    });
    let (traces, exporter) = telemetry::layer(&config.telemetry)?;
    let logged = || filter_fn(|of| of.target() != TRACES);
    let registry = tracing_subscriber::registry().with(filter).with(traces);
    registry.with(journald.with_filter(logged())).with(stderr.with_filter(logged())).init();
    Ok((handle, exporter))
}

async fn run(config: Config, reload: Reload) -> Result<(), StartError> {
    let host = Arc::new(Linux::new(config.limits.processes).flushing_apart());
    let hangups = signal(SignalKind::hangup());
    let ready = |read_only: Option<&str>, reloader| {
        if let Ok(hangups) = hangups {
            tokio::spawn(reload.at(hangups, reloader));
        }
        let status = sd_notify::NotifyState::Status(read_only.unwrap_or("serving"));
        // Without systemd there is nobody to notify.
        let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Ready, status]);
    };
    let hypervisor = agent::hypervisor(&config);
    agent::run(config, host, hypervisor, ready, stopped()).await
}

/// How the config is read anew.
struct Reload {
    args: Args,
    filter: Filter,
}

impl Reload {
    /// At each SIGHUP.
    async fn at(self, mut hangups: Signal, reloader: Reloader) {
        while hangups.recv().await.is_some() {
            let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
            match self.once(&reloader) {
                Ok(keys) if keys.is_empty() => tracing::info!("the config was read anew, and holds"),
                Ok(keys) => {
                    let keys = keys.join(", ");
                    tracing::warn!(keys, "the config was read anew; restart mortard for these to hold: {keys}");
                }
                Err(error) => tracing::error!("the config was read anew, and is wrong; all stays as it was: {error}"),
            }
            let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
    }

    fn once(&self, reloader: &Reloader) -> Result<Vec<String>, String> {
        let config = configure(&self.args).map_err(|error| error.to_string())?;
        let filter = filter(&config)?;
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        Ok(reloader.reload(config))
    }
}

/// Ends with SIGTERM or SIGINT.
async fn stopped() {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: running operations finish first");
    let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
}

/// One line on stderr.
fn end(why: &dyn std::fmt::Display, code: u8) -> ExitCode {
    let _closed = writeln!(std::io::stderr(), "mortard: {why}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// The crate's name is not the program's.
    #[test]
    fn it_tells_its_version_by_its_name() {
        assert_eq!(Args::command().render_version(), concat!("mortard ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}
