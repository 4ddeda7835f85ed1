//! What is wrong with a host, before it goes wrong: how bad, what was found, and what to do about it.

use std::fmt;

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something does not work, or data is at risk.
    Error,
    /// It works now, and will hurt.
    Warning,
    /// Good to know.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// Something about this host that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: a file, a setting, a module.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing need be done.
    pub advice: String,
}

impl Finding {
    /// What does not work, or puts data at risk.
    pub fn error(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Error, subject: subject.into(), found: found.into(), advice: advice.into() }
    }

    /// What will hurt.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(subject, found, advice) }
    }

    /// What is good to know.
    pub fn info(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Info, ..Self::error(subject, found, advice) }
    }
}
