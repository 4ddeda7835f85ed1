//! One taxonomy for everything that can go wrong with a volume. Each variant stands for what the caller should do next;
//! only the agent's `status` module turns them into gRPC codes.

use std::{error::Error as StdError, io, iter, time::Duration};

/// The result of everything in the driver contract.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a driver, or the agent, says no.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request does not parse. Mend it.
    #[error("{field}: {why}")]
    Invalid {
        /// The part of the request.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// What was named is not there.
    #[error("{what} is not there")]
    NotFound {
        /// The thing, by name.
        what: String,
    },
    /// The id or the name is taken by something else.
    #[error("{what}")]
    AlreadyExists {
        /// What is taken, and by what.
        what: String,
    },
    /// Somebody uses it. Free it first.
    #[error("{what} is in use: {}", by.join(", "))]
    InUse {
        /// The thing, by name.
        what: String,
        /// Its users, in words: `mounted at /mnt/a`.
        by: Vec<String>,
    },
    /// It is not in a state that allows this. Look first.
    #[error("{what}")]
    WrongState {
        /// The thing, its state and the way out.
        what: String,
    },
    /// The device is another volume than the one asked for.
    #[error("{what} is {found}, expected {expected}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// As asked for.
        expected: String,
        /// As found.
        found: String,
    },
    /// This backend or build cannot do it. Never retry.
    #[error("{what}")]
    Unsupported {
        /// What cannot be done, and what to do instead.
        what: String,
    },
    /// Another operation holds it. Retry.
    #[error("{what} is held by {holder} since {} ms; try again", age.as_millis())]
    Busy {
        /// What is held.
        what: String,
        /// The operation that holds it.
        holder: String,
        /// For how long.
        age: Duration,
    },
    /// A portal, a target or a service does not answer. Retry.
    #[error("{what} does not answer: {why}")]
    Unreachable {
        /// Who.
        what: String,
        /// What was seen.
        why: String,
    },
    /// It did not come in time. Retry with the same id.
    #[error("timed out waiting for {waiting_for}")]
    TimedOut {
        /// What did not come.
        waiting_for: String,
    },
    /// The credentials were refused.
    #[error("{who} refused the credentials: {why}")]
    Denied {
        /// Who refused.
        who: String,
        /// In its own words.
        why: String,
    },
    /// The caller has not the role for it. Ask for the role.
    #[error("{who} may not do this ({what}): that needs {needs}; {way}")]
    Forbidden {
        /// The caller.
        who: String,
        /// What was asked for.
        what: String,
        /// What the caller would have to have, and has instead.
        needs: String,
        /// How to come by it.
        way: String,
    },
    /// There is no room.
    #[error("{what} is full: {why}")]
    Full {
        /// What is full.
        what: String,
        /// In the tool's own words.
        why: String,
    },
    /// So many of them, or so much, is not allowed at a time. Wait, or raise the limit.
    #[error("{what}: {key} in the config")]
    Limit {
        /// What there is too much of, how much is allowed, and what to do.
        what: String,
        /// The key of the config that says so: `limits.operations`.
        key: &'static str,
    },
    /// The machine is short of something that others use, too. Retry.
    #[error("{doing}: this host has no {lack} left; free some, then try again")]
    Exhausted {
        /// What we were doing.
        doing: String,
        /// What is used up: `file descriptors`.
        lack: &'static str,
        /// What the machine said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Data could not be written to the volume, so it was not detached.
    #[error("cannot flush {what}; nothing was detached")]
    Flush {
        /// The device.
        what: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Somebody asked for it to be given up, and it was; nothing is left of it.
    #[error("{what} was cancelled")]
    Cancelled {
        /// What was given up.
        what: String,
    },
    /// The agent is stopping. Retry when it is back.
    #[error("the agent is stopping; try again when it is back")]
    ShuttingDown,
    /// A tool failed in a way that we do not know.
    #[error("{doing}: {tool} exited with {code}: {said}")]
    Tool {
        /// What we were doing.
        doing: String,
        /// `iscsiadm`
        tool: &'static str,
        /// The exit code, or the signal.
        code: String,
        /// Its own words, on one line.
        said: String,
    },
    /// The machine failed us, or we have a defect.
    #[error("{doing}")]
    Host {
        /// What we were doing.
        doing: String,
        /// What the machine said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// A request's `field` that does not parse.
    pub fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { field, why: why.into() }
    }

    /// For `map_err`: the machine failed while we were `doing` something.
    pub fn host<E: StdError + Send + Sync + 'static>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| match lack(&source) {
            Some(lack) => Self::Exhausted { doing, lack, source: Box::new(source) },
            None => Self::Host { doing, source: Box::new(source) },
        }
    }

    /// The stable word for this error in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "INVALID",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::AlreadyExists { .. } => "ALREADY_EXISTS",
            Self::InUse { .. } => "IN_USE",
            Self::WrongState { .. } => "WRONG_STATE",
            Self::Mismatch { .. } => "IDENTITY_MISMATCH",
            Self::Unsupported { .. } => "UNSUPPORTED",
            Self::Busy { .. } => "BUSY",
            Self::Unreachable { .. } => "UNREACHABLE",
            Self::TimedOut { .. } => "TIMED_OUT",
            Self::Denied { .. } => "DENIED",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::Full { .. } => "NO_SPACE",
            Self::Limit { .. } => "LIMIT",
            Self::Exhausted { .. } => "NO_RESOURCES",
            Self::Flush { .. } => "FLUSH_FAILED",
            Self::Cancelled { .. } => "CANCELLED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::Tool { .. } => "TOOL_FAILED",
            Self::Host { .. } => "INTERNAL",
        }
    }

    /// The error and all its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}

/// What the machine is short of, if the kernel said that.
fn lack(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    /// errno(3); the standard library has no name for them.
    const TOO_MANY_FILES: [i32; 2] = [23, 24];
    let mut causes = iter::successors(Some(error), |cause| (**cause).source());
    let said = causes.find_map(|cause| cause.downcast_ref::<io::Error>())?;
    match (said.kind(), said.raw_os_error()) {
        (_, Some(number)) if TOO_MANY_FILES.contains(&number) => Some("file descriptors"),
        // Of fork(2) and of a thread's start.
        (io::ErrorKind::WouldBlock, _) => Some("processes"),
        (io::ErrorKind::OutOfMemory, _) => Some("memory"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_is_short_of_is_said() {
        let said = |errno| Error::host("start lvm")(io::Error::from_raw_os_error(errno));
        for (errno, lack) in [(11, "processes"), (12, "memory"), (23, "file descriptors"), (24, "file descriptors")] {
            let error = said(errno);
            assert_eq!(error.reason(), "NO_RESOURCES");
            assert!(
                error.chain().starts_with(&format!("start lvm: this host has no {lack} left")),
                "{}",
                error.chain()
            );
        }
        assert_eq!(said(5).reason(), "INTERNAL");
    }

    #[test]
    fn chain_names_every_cause_once() {
        let disk = std::io::Error::other("input/output error");
        let error = Error::host("read /sys/block/sda/size")(disk);
        assert_eq!(error.chain(), "read /sys/block/sda/size: input/output error");
    }

    #[test]
    fn in_use_names_all_users() {
        let error =
            Error::InUse { what: "/dev/sdb".into(), by: vec!["mounted at /mnt".into(), "open by cat (pid 7)".into()] };
        assert_eq!(error.to_string(), "/dev/sdb is in use: mounted at /mnt, open by cat (pid 7)");
    }
}
