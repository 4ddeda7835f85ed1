//! A tool to run: which, with what, how long, and whether it may be killed.

use secrecy::SecretString;
use std::{path::PathBuf, time::Duration};

/// The programs that we start. There are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// open-iscsi's client.
    Iscsiadm,
    /// LVM's one binary, whose first argument is the verb.
    Lvm,
    /// Our own: what librbd knows of a pool, in one process (`host/src/bin/mortar-rbd`).
    Rbd,
    /// QEMU's, for images that are more than their bytes.
    QemuImg,
}

impl Tool {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Iscsiadm, Self::Lvm, Self::Rbd, Self::QemuImg];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iscsiadm => "iscsiadm",
            Self::Lvm => "lvm",
            Self::Rbd => "mortar-rbd",
            Self::QemuImg => "qemu-img",
        }
    }
}

/// A tool's run. Its environment is a fixed `PATH`, `LC_ALL=C` and what is set for it; no argument and no setting ever holds a
/// secret.
#[derive(Debug, Clone)]
pub struct Command {
    /// What is run.
    pub tool: Tool,
    /// With what.
    pub args: Vec<String>,
    /// What is set for it in its environment.
    pub settings: Vec<(&'static str, String)>,
    /// How long it is waited for.
    pub timeout: Duration,
    /// What it reads from its standard input, which may hold a secret.
    pub input: Option<SecretString>,
    /// It changes something: then it is never killed half-way, and counts as an effect.
    pub writes: bool,
}

impl Command {
    /// A run that only reads, and is killed if it takes longer than 60 seconds.
    pub fn read<A: Into<String>>(tool: Tool, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            tool,
            args: args.into_iter().map(Into::into).collect(),
            settings: Vec::new(),
            timeout: Duration::from_secs(60),
            input: None,
            writes: false,
        }
    }

    /// A run that changes something, and is waited for up to 120 seconds.
    pub fn write<A: Into<String>>(tool: Tool, args: impl IntoIterator<Item = A>) -> Self {
        Self { timeout: Duration::from_secs(120), writes: true, ..Self::read(tool, args) }
    }

    /// Waits at most so long.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets this in its environment.
    pub fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    /// Gives it something to read.
    pub fn input(mut self, input: SecretString) -> Self {
        self.input = Some(input);
        self
    }

    /// As a shell would show it, for logs and errors.
    pub fn line(&self) -> String {
        let mut line = self.tool.name().to_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(arg);
        }
        line
    }
}

/// How a tool ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Output {
    /// Its own words on one line: stderr, or else stdout, each line trimmed, at most 500 characters.
    pub fn said(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.join("; ").chars().filter(|c| !c.is_control()).take(500).collect()
    }
}

impl Tool {
    /// Where it is looked for, in this order. Our own may also stand beside the agent that runs, as after a build.
    pub(crate) fn places(self) -> Vec<PathBuf> {
        let directories = match self {
            Self::Rbd => {
                let beside = std::env::current_exe().ok().and_then(|agent| agent.parent().map(PathBuf::from));
                [Some("/usr/libexec/mortar".into()), beside].into_iter().flatten().collect()
            }
            Self::Iscsiadm | Self::Lvm | Self::QemuImg => {
                ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from).to_vec()
            }
        };
        directories.into_iter().map(|directory| directory.join(self.name())).collect()
    }
}
