//! The config file: TOML, every default written down here, and a key that we do not know is refused.

mod callers;
mod tls;

pub use callers::{CallerRule, Callers, Need, Role};
pub use tls::Tls;

use driver::{Backend, NameTemplate, Templates};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the config is looked for if the command line names no other. It may be missing.
pub const DEFAULT_PATH: &str = "/etc/mortar/mortard.toml";

/// All of it. Without a file, the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The daemon itself.
    pub agent: AgentConfig,
    /// Who may call, and what.
    pub callers: Callers,
    /// gRPC from other machines.
    pub tls: Tls,
    /// What it allows at a time.
    pub limits: Limits,
    /// Its memory.
    pub journal: JournalConfig,
    /// What it counts.
    pub metrics: Metrics,
    /// What it tells of each call.
    pub telemetry: Telemetry,
    /// Volumes of any backend.
    pub volumes: Volumes,
    /// The file driver.
    pub file: File,
    /// The virtual machines of this host.
    pub hypervisor: Hypervisor,
    /// Their rescue.
    pub rescue: Rescue,
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// The Unix socket that gRPC is served on.
    pub socket: PathBuf,
    /// The journal lives here.
    pub state_directory: PathBuf,
    /// The stable paths are made here.
    pub device_directory: PathBuf,
    /// `"auto"`: every driver whose tools this host has. Or a list, whose tools must be there.
    pub drivers: Drivers,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter for tracing-subscriber.
    pub log: String,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            socket: "/run/mortar/agent.sock".into(),
            state_directory: "/var/lib/mortar".into(),
            device_directory: "/dev/mortar".into(),
            drivers: Drivers::Auto(Auto::Auto),
            log: "info".into(),
        }
    }
}

/// Which drivers are switched on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "\"auto\", or a list of \"file\", \"iscsi\", \"lvm\", \"rbd\"")]
pub enum Drivers {
    /// Those that can work here.
    Auto(Auto),
    /// These, or the daemon does not start.
    List(Vec<Backend>),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// `auto`
    Auto,
}

/// What the agent allows at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processes of each tool that run at a time; more wait.
    pub processes: usize,
    /// How long an operation waits for the outside world where the caller does not say, in milliseconds.
    pub operation_timeout_ms: u64,
    /// How long a stop waits for running operations, in milliseconds. What is not done then is recovered at the next
    /// start.
    pub stop_timeout_ms: u64,
    /// How long after its own deadline an operation that still waits for the machine is shown as wedged, in milliseconds.
    pub wedged_after_ms: u64,
    /// Operations that run at a time, waited for or not. One more is refused; so it is with everything below.
    pub operations: usize,
    /// Attachments of this host.
    pub attachments: u32,
    /// Connections to the socket.
    pub connections: usize,
    /// Requests that are under way on one connection.
    pub requests_per_connection: u32,
    /// Those who watch.
    pub watchers: usize,
    /// Bytes of one request.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 8,
            operation_timeout_ms: 60_000,
            stop_timeout_ms: 80_000,
            wedged_after_ms: 10_000,
            operations: 256,
            attachments: 4096,
            connections: 256,
            requests_per_connection: 128,
            watchers: 64,
            request_bytes: 256 << 10,
        }
    }
}

impl Limits {
    /// See `operation_timeout_ms`.
    pub fn operation_timeout(&self) -> Duration {
        Duration::from_millis(self.operation_timeout_ms)
    }

    /// See `wedged_after_ms`.
    pub fn wedged_after(&self) -> Duration {
        Duration::from_millis(self.wedged_after_ms)
    }

    /// See `stop_timeout_ms`.
    pub fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.stop_timeout_ms)
    }
}

/// The agent's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// Operations that have ended are kept up to this number, the newest of them.
    pub keep_operations: u32,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { keep_operations: 10_000 }
    }
}

/// What the agent counts, for Prometheus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where they are served: an address of this host itself, or the path of a socket for root only. Empty: nowhere.
    pub listen: String,
}

/// What the agent tells of each call, to a collector of OpenTelemetry's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where traces are sent: `http://127.0.0.1:4317`. Empty: nowhere.
    pub endpoint: String,
}

impl Telemetry {
    fn check(&self) -> Result<(), ConfigError> {
        let key = "telemetry.endpoint";
        let wrong = |why: &str| Err(ConfigError::Value { key, why: why.into() });
        match self.endpoint.as_str() {
            "" => Ok(()),
            _ if !cfg!(feature = "otlp") => wrong("this build of mortard sends no traces: leave it empty"),
            place if place.starts_with("http://") => Ok(()),
            _ => wrong("write http://, an address and a port, such as http://127.0.0.1:4317"),
        }
    }
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MetricsPlace {
    Port(SocketAddr),
    Socket(PathBuf),
}

impl Metrics {
    pub(crate) fn place(&self) -> Result<Option<MetricsPlace>, ConfigError> {
        let text = self.listen.as_str();
        let port = || text.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
        match text {
            "" => Ok(None),
            path if path.starts_with('/') && path.len() <= LONGEST_SOCKET => {
                Ok(Some(MetricsPlace::Socket(path.into())))
            }
            _ => port().map(MetricsPlace::Port).map(Some).ok_or_else(|| ConfigError::Value {
                key: "metrics.listen",
                why: "write a loopback address, such as 127.0.0.1:9723, or an absolute path of at most 107 bytes"
                    .into(),
            }),
        }
    }
}

/// `sun_path` has 108 bytes, its final NUL included (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// Volumes of any backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volumes {
    /// How managed volumes are named: `%s` stands for the id.
    pub name_template: String,
    /// How managed snapshots are named.
    pub snapshot_template: String,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { name_template: "volume-%s".into(), snapshot_template: "snap-%s".into() }
    }
}

/// The file driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Where managed files are looked for, besides the directories in which they were managed.
    pub directories: Vec<PathBuf>,
}

impl Default for File {
    fn default() -> Self {
        Self { directories: vec!["/var/lib/mortar/volumes".into(), "/srv/volumes".into()] }
    }
}

/// The virtual machines of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hypervisor {
    /// What libvirt is asked by.
    pub uri: String,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self { uri: "qemu:///system".into() }
    }
}

/// The rescue of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rescue {
    /// The seeds are kept here, for as long as a rescue lasts. QEMU has to get in.
    pub directory: PathBuf,
    /// How long a guest may take to shut down before its instance is ended, where the caller does not say, in
    /// milliseconds.
    pub grace_ms: u64,
}

impl Default for Rescue {
    fn default() -> Self {
        Self { directory: "/var/lib/mortar-rescue".into(), grace_ms: 60_000 }
    }
}

impl Rescue {
    /// The longest that may be asked for.
    pub const LONGEST_GRACE: Duration = Duration::from_secs(600);

    /// See `grace_ms`.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}

/// Why a config is refused, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or not ours to read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It does not parse.
    #[error("{}: {why}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, and what is wrong there.
        why: String,
    },
    /// A value makes no sense.
    #[error("{key}: {why}")]
    Value {
        /// `agent.socket`
        key: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl Config {
    /// Reads a file; the defaults if none is named and there is none in the usual place.
    pub fn load(path: Option<PathBuf>) -> Result<Self, ConfigError> {
        let named = path.is_some();
        let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
        #[expect(clippy::disallowed_methods, reason = "the config is read before there is a host")]
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let message: Vec<&str> = error.message().lines().map(str::trim).collect();
            ConfigError::Parse { path: path.to_owned(), why: format!("line {line}: {}", message.join(" ")) }
        })?;
        config.check()?;
        Ok(config)
    }

    /// Values that parse and yet make no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        if !self.agent.socket.is_absolute() || self.agent.socket.as_os_str().len() > LONGEST_SOCKET {
            return value("agent.socket", "write an absolute path of at most 107 bytes");
        }
        if !self.agent.state_directory.is_absolute() {
            return value("agent.state_directory", "write an absolute path");
        }
        // Links in it that belong to no attachment are removed, so it must be nobody else's.
        let ours = self.agent.device_directory.strip_prefix("/dev").ok().and_then(Path::to_str);
        if !ours.is_some_and(|name| name.starts_with("mortar") && !name.contains('/')) {
            return value("agent.device_directory", "write /dev/mortar, or another name in /dev that begins so");
        }
        let limits = &self.limits;
        let none = [
            ("limits.processes", limits.processes == 0),
            ("limits.operation_timeout_ms", limits.operation_timeout_ms == 0),
            ("limits.operations", limits.operations == 0),
            ("limits.attachments", limits.attachments == 0),
            ("limits.connections", limits.connections == 0),
            ("limits.requests_per_connection", limits.requests_per_connection == 0),
            ("limits.watchers", limits.watchers == 0),
            ("limits.request_bytes", limits.request_bytes == 0),
        ];
        if let Some((key, _)) = none.into_iter().find(|(_, none)| *none) {
            return value(key, "write 1 or more");
        }
        if self.file.directories.iter().any(|directory| !directory.is_absolute()) {
            return value("file.directories", "write absolute paths");
        }
        self.callers.check()?;
        self.tls.check()?;
        self.metrics.place()?;
        self.telemetry.check()?;
        if !self.hypervisor.uri.contains(":///") {
            return value("hypervisor.uri", "write that of a hypervisor of this host, such as qemu:///system");
        }
        if !self.rescue.directory.is_absolute() {
            return value("rescue.directory", "write an absolute path");
        }
        if self.rescue.grace() > Rescue::LONGEST_GRACE {
            return value("rescue.grace_ms", "write 600000 (10 minutes) or less");
        }
        self.templates().map(|_| ())
    }

    /// How managed volumes and snapshots are named.
    pub fn templates(&self) -> Result<Templates, ConfigError> {
        let parse = |key, text: &str| {
            text.parse::<NameTemplate>().map_err(|error| ConfigError::Value { key, why: error.to_string() })
        };
        let volume = parse("volumes.name_template", &self.volumes.name_template)?;
        let snapshot = parse("volumes.snapshot_template", &self.volumes.snapshot_template)?;
        if volume == snapshot {
            let why = "write another template than volumes.name_template".into();
            return Err(ConfigError::Value { key: "volumes.snapshot_template", why });
        }
        Ok(Templates { volume, snapshot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_that_we_ship_holds_the_defaults() {
        let shipped = include_str!("../../systemd/mortard.toml");
        assert_eq!(Config::parse(shipped, Path::new("mortard.toml")).unwrap(), Config::default());
        let written: toml::Table = toml::from_str(shipped).unwrap();
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(written, defaults, "every default is written down");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_with_their_place() {
        let error = |text: &str| Config::parse(text, Path::new("mortard.toml")).unwrap_err().to_string();
        assert!(
            error("[agent]\nsokcet = '/x'").contains("line 2: unknown field `sokcet`"),
            "{}",
            error("[agent]\nsokcet = '/x'")
        );
        assert!(error("[limits]\nprocesses = 0").contains("limits.processes"));
        assert!(error("[limits]\nwatchers = 0").contains("limits.watchers: write 1 or more"));
        assert!(error("[agent]\nsocket = 'x'").contains("agent.socket"));
        for place in ["0.0.0.0:9723", "9723", "metrics.sock", "[::]:1"] {
            assert!(
                error(&format!("[metrics]\nlisten = '{place}'")).contains("metrics.listen: write a loopback"),
                "{place}"
            );
        }
        let collector = Config::parse("[telemetry]\nendpoint = 'http://127.0.0.1:4317'", Path::new("mortard.toml"));
        assert_eq!(collector.is_ok(), cfg!(feature = "otlp"), "{collector:?}");
        assert!(error("[telemetry]\nendpoint = '127.0.0.1:4317'").contains("telemetry.endpoint: "));
        for directory in ["/dev", "/dev/mapper", "/dev/mortar/../mapper", "/srv/mortar"] {
            assert!(error(&format!("[agent]\ndevice_directory = '{directory}'")).contains("begins so"), "{directory}");
        }
        assert!(error("[volumes]\nname_template = 'x'").contains("%s"));
        assert!(error("[hypervisor]\nuri = 'qemu+ssh://other/system'").contains("of this host"));
        assert!(error("[rescue]\ndirectory = 'seeds'").contains("rescue.directory"));
        assert!(error("[rescue]\ngrace_ms = 600001").contains("600000"));
        assert!(error("[agent]\ndrivers = ['nvme']").contains("\"file\", \"iscsi\", \"lvm\", \"rbd\""));
        assert!(error("not toml").contains("line 1"));
    }

    #[test]
    fn a_missing_file_is_the_defaults_only_if_nobody_named_it() {
        assert!(Config::load(Some("/nowhere/mortard.toml".into())).is_err());
    }

    proptest! {
        #[test]
        fn no_config_panics(text in "(\\PC|[\n\\[\\]='\"]|agent|socket|limits|volumes|name_template){0,60}") {
            let _config = Config::parse(&text, Path::new("mortard.toml"));
        }

        #[test]
        fn what_is_written_is_read_back(socket in "/[a-z]{1,20}", keep in 1..100_000_u32, template in "[a-z]{1,9}-%s") {
            let mut config = Config::default();
            config.agent.socket = socket.into();
            config.journal.keep_operations = keep;
            config.volumes.name_template = template;
            prop_assume!(config.check().is_ok());
            let text = toml::to_string(&config).unwrap();
            prop_assert_eq!(Config::parse(&text, Path::new("mortard.toml")).unwrap(), config);
        }
    }
}
