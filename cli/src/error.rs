//! What went wrong, in the words and the exit code that a caller can act on.
//!
//! Everything that fails, here or in the agent, has a gRPC code; the exit code follows from it and from nothing else.

use crate::reasons;
use mortar_client::{Endpoint, Kind, code_name};
use proto::reasons::NEXT_STEP;
use serde::{Serialize, Serializer};
use std::{collections::BTreeMap, error::Error as _, io};
use tonic::{Code, Status};

/// Why a command did not come to its end.
#[derive(Debug)]
pub(crate) enum Error {
    Failed(Failure),
    /// Nobody reads our output any more: nothing is left to do, and nobody is left to tell.
    Hangup,
}

/// A failure as it is printed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    #[serde(serialize_with = "name_of_code")]
    code: Code,
    reason: String,
    message: String,
    /// The names involved, as the agent gives them: `by`, `expected`, `found`, `holder`, …; and the next step.
    metadata: BTreeMap<String, String>,
    /// These are the agent's own words.
    #[serde(skip)]
    by_agent: bool,
}

impl Failure {
    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), metadata: BTreeMap::new(), by_agent: false }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "INVALID", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "INTERNAL", message)
    }

    /// An answer that tells of something amiss.
    pub(crate) fn not_in_order(summary: &str) -> Self {
        Self::new(Code::Unknown, "NOT_IN_ORDER", summary)
    }

    /// A command line that does not parse: clap's explanation without its layout.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let sentences: Vec<String> = text
            .split("\n\n")
            .take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
            .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        Self::invalid(format!("{}; see --help", sentences.join("; ")))
    }

    /// It is not the agent that it should be.
    pub(crate) fn not_trusted(endpoint: &Endpoint, error: &mortar_client::Error) -> Self {
        let why = cause(error);
        let what = format!("{endpoint} does not prove to be who it should be, by the CAs of --ca: {why}");
        Self::new(error.code(), error.reason(), what)
    }

    /// It does not take our certificate.
    pub(crate) fn refused_us(endpoint: &Endpoint, error: &mortar_client::Error) -> Self {
        let why = cause(error);
        let what = format!("mortard at {endpoint} refused the certificate of --cert: {why}; its audit log says more");
        Self::new(error.code(), error.reason(), what)
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do, as the agent says it; not where the message itself says that, as mortar's own do.
    pub(crate) fn advice(&self) -> Option<&str> {
        let says_it = ["INVALID", "NOT_IN_ORDER", "RESIDUAL", "WRONG_STATE", "UNSUPPORTED"];
        let next = self.metadata.get(NEXT_STEP).map(String::as_str);
        // One that is older says nothing of it.
        let next = next.or_else(|| reasons::find(&self.reason).map(|reason| reason.next));
        next.filter(|_| self.by_agent && !says_it.contains(&self.reason.as_str()))
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn is(&self, code: Code) -> bool {
        self.code == code
    }

    pub(crate) fn exit_code(&self) -> u8 {
        exit_code(self.code)
    }
}

fn cause(error: &mortar_client::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

/// In the client's words, but where the command line has better ones.
impl From<mortar_client::Error> for Failure {
    fn from(error: mortar_client::Error) -> Self {
        let message = match error.kind() {
            Kind::Late => "mortard did not answer in time; what it began goes on: see mortar operations --running",
            Kind::Lost => {
                "mortard went away during the call; what it began is finished or undone when it is back, then repeat \
                 the command"
            }
            Kind::UnknownCall => "mortard does not know this call; it is older than this mortar",
            _ => error.message(),
        };
        let by_agent = error.kind() == Kind::Refused;
        Self { metadata: error.metadata().clone(), by_agent, ..Self::new(error.code(), error.reason(), message) }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        mortar_client::Error::from(status).into()
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Failed(status.into())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// An answer that could not be written.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Hangup,
            _ => Failure::new(Code::Unknown, "OUTPUT", format!("cannot write the answer: {error}")).into(),
        }
    }
}

/// The one table from what happened to how the process ends.
pub(crate) fn exit_code(code: Code) -> u8 {
    match code {
        Code::Ok => 0,
        Code::InvalidArgument => 2,
        Code::NotFound => 3,
        Code::AlreadyExists | Code::FailedPrecondition => 4,
        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => 5,
        Code::PermissionDenied | Code::Unauthenticated => 6,
        Code::Cancelled | Code::Unknown | Code::OutOfRange | Code::Unimplemented | Code::Internal | Code::DataLoss => 1,
    }
}

fn name_of_code<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code_name(*code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;
    use std::collections::HashMap;
    use tonic_types::{ErrorDetails, StatusExt};

    #[test]
    fn each_code_has_its_exit_code() {
        let table = [
            (0, &[Code::Ok][..]),
            (
                1,
                &[
                    Code::Cancelled,
                    Code::Unknown,
                    Code::OutOfRange,
                    Code::Unimplemented,
                    Code::Internal,
                    Code::DataLoss,
                ],
            ),
            (2, &[Code::InvalidArgument]),
            (3, &[Code::NotFound]),
            (4, &[Code::AlreadyExists, Code::FailedPrecondition]),
            (5, &[Code::Aborted, Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted]),
            (6, &[Code::PermissionDenied, Code::Unauthenticated]),
        ];
        assert_eq!(table.iter().map(|(_, codes)| codes.len()).sum::<usize>(), 17);
        for (exit, codes) in table {
            for code in codes {
                assert_eq!(exit_code(*code), exit, "{code:?}");
                assert_eq!(code_name(*code).replace('_', "").to_lowercase(), format!("{code:?}").to_lowercase());
            }
        }
    }

    #[test]
    fn the_agents_own_words_are_kept() {
        let metadata = HashMap::from([("by".to_owned(), "/mnt".to_owned())]);
        let details = ErrorDetails::with_error_info("IN_USE", proto::ERROR_DOMAIN, metadata);
        let status =
            tonic::Status::with_error_details(Code::FailedPrecondition, "/dev/sdb is mounted on /mnt", details);
        assert_eq!(
            serde_json::to_value(Failure::from(status)).unwrap(),
            serde_json::json!({
                "code": "FAILED_PRECONDITION",
                "reason": "IN_USE",
                "message": "/dev/sdb is mounted on /mnt",
                "metadata": { "by": "/mnt" },
            })
        );
    }

    #[test]
    fn the_next_step_is_the_agents_or_else_known_here() {
        let refused = |reason: &str, said: &[(&str, &str)]| {
            let metadata = said.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            let details =
                ErrorDetails::with_error_info(reason, proto::ERROR_DOMAIN, metadata.collect::<HashMap<_, _>>());
            Failure::from(tonic::Status::with_error_details(Code::FailedPrecondition, "it is used", details))
        };
        let said = [(NEXT_STEP, "Wait for the moon.")];
        assert_eq!(refused("IN_USE", &said).advice(), Some("Wait for the moon."));
        assert_eq!(refused("NEW_ONE", &said).advice(), Some("Wait for the moon."));
        assert!(refused("IN_USE", &[]).advice().is_some_and(|next| next.starts_with("Free it first")));
        assert_eq!(refused("NEW_ONE", &[]).advice(), None);
        // The sentence itself says it, or is our own.
        assert_eq!(refused("WRONG_STATE", &said).advice(), None);
        assert_eq!(Failure::new(Code::FailedPrecondition, "IN_USE", "it is used").advice(), None);
    }

    #[test]
    fn a_line_that_does_not_parse_is_one_sentence() {
        let usage = |line: &[&str]| Failure::usage(&Cli::try_parse_from(line).unwrap_err()).message;
        assert_eq!(
            usage(&["mortar", "attach"]),
            "the following required arguments were not provided: <LOCATOR|--connection-info <FILE>>; see --help"
        );
        assert_eq!(
            usage(&["mortar", "list", "--timeout", "soon"]),
            "invalid value 'soon' for '--timeout <DURATION>': not a duration, write 30s, 1500ms or 2m; see --help"
        );
        assert!(!usage(&["mortar", "atach", "x"]).contains('\n'));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert!(matches!(Error::from(io::Error::from(io::ErrorKind::BrokenPipe)), Error::Hangup));
        assert!(matches!(Error::from(io::Error::from(io::ErrorKind::StorageFull)), Error::Failed(_)));
    }
}
