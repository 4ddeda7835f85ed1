//! Why a call did not succeed, in the terms that a caller decides by.

use crate::endpoint::Endpoint;
use proto::reasons::NEXT_STEP;
use std::{collections::BTreeMap, error, io, iter, path::Path, sync::Arc};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// Why a call did not succeed: one sentence that says what to do, and what a program decides by.
///
/// The code and the reason are those of the contract (`agent.proto`), whether the agent said them or the client found out by
/// itself. The sentence ([`Error::message`], also its `Display`) is for people and may change.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    #[source]
    source: Option<Arc<io::Error>>,
}

/// Who found out, and how far the call had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The agent, or what stands before it, answered that it cannot be; code and reason are its own.
    Refused,
    /// What the caller gave cannot be used: an endpoint, a socket's path, a PEM file. Nothing was sent.
    Invalid,
    /// No connection came about. Nothing was sent.
    Unreachable,
    /// The other side does not prove to be the agent that it should be. Nothing was sent.
    NotTrusted,
    /// The agent does not take the caller's certificate, or its socket not his user. Nothing was sent.
    NotLetIn,
    /// The connection broke during the call. What the agent began is finished or undone when it is back, so the same call may
    /// be made again.
    Lost,
    /// No answer came before the deadline. What the agent began goes on; the same call again finds it.
    Late,
    /// The agent is older than this client, and does not have the call.
    UnknownCall,
}

impl Error {
    /// Who found out, and how far the call had come.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the caller should do next; the table is at the top of `agent.proto`.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The reason of the agent's `google.rpc.ErrorInfo`, e.g. `IN_USE`; it never changes its meaning.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// One sentence for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The names involved, as the agent gives them: `by`, `expected`, `found`, `holder`, `age_ms`, `limit`, …
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What to do about it, in sentences for people; the agent's, where it was the agent that said no. Nothing where the client
    /// found out by itself: then the sentence says it.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.metadata.get(NEXT_STEP).map(String::as_str)
    }

    /// Whether the same call may succeed later without anybody mending anything first.
    ///
    /// It is for a caller who comes back by and by, as a controller does in its next round. [`Client::ask`](crate::Client::ask)
    /// has made all the tries that are worth it within its timeout already.
    #[must_use]
    pub fn may_be_tried_again(&self) -> bool {
        match self.code {
            Code::Aborted | Code::Unavailable | Code::DeadlineExceeded => true,
            // No room is made by waiting.
            Code::ResourceExhausted => self.reason != "NO_SPACE",
            _ => false,
        }
    }

    fn new(kind: Kind, code: Code, reason: &str, message: impl Into<String>) -> Self {
        let (reason, message) = (reason.to_owned(), message.into());
        Self { kind, code, reason, message, metadata: BTreeMap::new(), source: None }
    }

    fn because(self, error: io::Error) -> Self {
        Self { source: Some(Arc::new(error)), ..self }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, Code::InvalidArgument, "INVALID", message)
    }

    /// The agent's socket could not be reached.
    pub(crate) fn no_agent(path: &Path, error: io::Error) -> Self {
        let socket = path.display();
        let failure = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let what = format!("mortard is not running: systemctl start mortard (nobody listens on {socket})");
                Self::new(Kind::Unreachable, Code::Unavailable, "UNREACHABLE", what)
            }
            io::ErrorKind::PermissionDenied => {
                let what = format!(
                    "no permission to use {socket}: join the group mortar (usermod -aG mortar USER) or be root"
                );
                Self::new(Kind::NotLetIn, Code::PermissionDenied, "DENIED", what)
            }
            io::ErrorKind::InvalidInput => Self::invalid(format!("{socket} is no socket path: {error}")),
            _ => {
                let what = format!("cannot reach mortard on {socket}: {error}");
                Self::new(Kind::Unreachable, Code::Unavailable, "UNREACHABLE", what)
            }
        };
        failure.because(error)
    }

    /// The agent of another machine could not be reached.
    pub(crate) fn unreachable(endpoint: &Endpoint, error: io::Error) -> Self {
        let what = format!("cannot reach mortard at {endpoint}: {error}; it has to be in tls.listen of its config");
        Self::new(Kind::Unreachable, Code::Unavailable, "UNREACHABLE", what).because(error)
    }

    /// It is not the agent that it should be.
    pub(crate) fn not_trusted(endpoint: &Endpoint, ca: &Path, error: io::Error) -> Self {
        let ca = ca.display();
        let what = format!("{endpoint} does not prove to be who it should be, by the CAs of {ca}: {error}");
        Self::new(Kind::NotTrusted, Code::Unauthenticated, "DENIED", what).because(error)
    }

    /// It does not take our certificate.
    pub(crate) fn not_let_in(endpoint: &Endpoint, certificate: &Path, error: io::Error) -> Self {
        let certificate = certificate.display();
        let what =
            format!("mortard at {endpoint} refused the certificate {certificate}: {error}; its audit log says more");
        Self::new(Kind::NotLetIn, Code::Unauthenticated, "DENIED", what).because(error)
    }

    pub(crate) fn lost() -> Self {
        let what = "mortard went away during the call; what it began is finished or undone when it is back, then repeat the \
                    call";
        Self::new(Kind::Lost, Code::Unavailable, "UNREACHABLE", what)
    }

    pub(crate) fn late() -> Self {
        let what = "mortard did not answer in time; what it began goes on: the same call finds it, and Operations.List";
        Self::new(Kind::Late, Code::DeadlineExceeded, "TIMED_OUT", what)
    }

    /// What no agent explained: it came from the connection, from tonic, or from an agent without this call.
    fn unexplained(status: &Status) -> Self {
        let source = error::Error::source(status);
        let expired = causes(source).any(|cause| cause.is::<TimeoutExpired>());
        match status.code() {
            Code::Cancelled | Code::DeadlineExceeded if expired || source.is_none() => Self::late(),
            Code::Unimplemented => {
                let what = "mortard does not know this call; it is older than this client";
                Self::new(Kind::UnknownCall, Code::Unimplemented, "UNSUPPORTED", what)
            }
            _ if source.is_some() => Self::lost(),
            code => Self::new(Kind::Refused, code, code_name(code), status.message()),
        }
    }

    /// The error that our own connector ended with, wherever tonic has wrapped it.
    pub(crate) fn of_connector(outermost: Option<&(dyn error::Error + 'static)>) -> Option<Self> {
        causes(outermost).find_map(|cause| cause.downcast_ref::<Self>()).cloned()
    }
}

/// What a service client of tonic's ended with.
impl From<Status> for Error {
    fn from(status: Status) -> Self {
        if let Some(failed) = Self::of_connector(error::Error::source(&status)) {
            return failed;
        }
        match status.get_details_error_info() {
            Some(info) => Self {
                metadata: info.metadata.into_iter().collect(),
                ..Self::new(Kind::Refused, status.code(), &info.reason, status.message())
            },
            None => Self::unexplained(&status),
        }
    }
}

fn causes<'a>(
    outermost: Option<&'a (dyn error::Error + 'static)>,
) -> impl Iterator<Item = &'a (dyn error::Error + 'static)> {
    iter::successors(outermost, |cause| cause.source())
}

/// The name of a code, as the contract writes it: `NOT_FOUND`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn refused(code: Code, reason: &str) -> Error {
        let metadata = HashMap::from([("by".to_owned(), "/mnt".to_owned())]);
        let details = ErrorDetails::with_error_info(reason, proto::ERROR_DOMAIN, metadata);
        Status::with_error_details(code, "/dev/sdb is mounted on /mnt", details).into()
    }

    #[test]
    fn the_agents_own_words_are_kept() {
        let error = refused(Code::FailedPrecondition, "IN_USE");
        assert_eq!((error.kind(), error.code(), error.reason()), (Kind::Refused, Code::FailedPrecondition, "IN_USE"));
        assert_eq!((error.message(), error.metadata()["by"].as_str()), ("/dev/sdb is mounted on /mnt", "/mnt"));
    }

    #[test]
    fn what_may_be_tried_again_is_what_the_contract_says() {
        for (code, reason, again) in [
            (Code::InvalidArgument, "INVALID", false),
            (Code::NotFound, "NOT_FOUND", false),
            (Code::AlreadyExists, "ALREADY_EXISTS", false),
            (Code::FailedPrecondition, "IN_USE", false),
            (Code::FailedPrecondition, "IDENTITY_MISMATCH", false),
            (Code::Unimplemented, "UNSUPPORTED", false),
            (Code::Aborted, "BUSY", true),
            (Code::Unavailable, "UNREACHABLE", true),
            (Code::Unavailable, "SHUTTING_DOWN", true),
            (Code::Cancelled, "CANCELLED", false),
            (Code::DeadlineExceeded, "TIMED_OUT", true),
            (Code::PermissionDenied, "FORBIDDEN", false),
            (Code::ResourceExhausted, "NO_SPACE", false),
            (Code::ResourceExhausted, "LIMIT", true),
            (Code::ResourceExhausted, "NO_RESOURCES", true),
            (Code::DataLoss, "FLUSH_FAILED", false),
            (Code::Internal, "TOOL_FAILED", false),
        ] {
            assert_eq!(refused(code, reason).may_be_tried_again(), again, "{code:?} {reason}");
        }
    }

    #[test]
    fn an_unreachable_agent_says_what_to_do() {
        let socket = Path::new("/run/mortar/agent.sock");
        for (kind, code, advice) in [
            (io::ErrorKind::NotFound, Code::Unavailable, "systemctl start mortard"),
            (io::ErrorKind::ConnectionRefused, Code::Unavailable, "systemctl start mortard"),
            (io::ErrorKind::PermissionDenied, Code::PermissionDenied, "group mortar"),
            (io::ErrorKind::InvalidInput, Code::InvalidArgument, "no socket path"),
            (io::ErrorKind::WouldBlock, Code::Unavailable, "cannot reach"),
        ] {
            let error = Error::no_agent(socket, kind.into());
            assert_eq!(error.code(), code);
            assert!(error.message().contains(advice), "{error}");
        }
    }

    #[test]
    fn each_code_has_its_name() {
        for number in 0..17 {
            let code = Code::from(number);
            assert_eq!(code_name(code).replace('_', "").to_lowercase(), format!("{code:?}").to_lowercase());
        }
    }
}
