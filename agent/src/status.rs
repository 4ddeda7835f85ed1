//! From [`driver::Error`] to gRPC: the only place that knows codes. A code is chosen by what the caller should do next;
//! the reason is stable; the message is the whole chain on one line, and what to do about it goes with it.

use driver::Error;
use proto::reasons::{self, NEXT_STEP};
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The code of each error.
pub(crate) fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::InUse { .. } | Error::WrongState { .. } | Error::Mismatch { .. } => Code::FailedPrecondition,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::Busy { .. } => Code::Aborted,
        Error::Unreachable { .. } | Error::ShuttingDown => Code::Unavailable,
        Error::TimedOut { .. } => Code::DeadlineExceeded,
        Error::Cancelled { .. } => Code::Cancelled,
        Error::Denied { .. } | Error::Forbidden { .. } => Code::PermissionDenied,
        Error::Full { .. } | Error::Limit { .. } | Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::Flush { .. } => Code::DataLoss,
        Error::Tool { .. } | Error::Host { .. } => Code::Internal,
    }
}

/// The code's name as the gRPC documents write it.
pub(crate) fn code_name(error: &Error) -> &'static str {
    name(code(error))
}

/// As the gRPC documents write it.
pub(crate) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Unknown => "UNKNOWN",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Aborted => "ABORTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Cancelled => "CANCELLED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DataLoss => "DATA_LOSS",
        Code::Internal => "INTERNAL",
    }
}

/// What goes over the wire.
pub(crate) fn status(error: &Error) -> Status {
    let mut metadata = HashMap::new();
    let mut put = |key: &str, value: String| metadata.insert(key.to_owned(), value);
    match error {
        Error::Invalid { field, .. } => drop(put("field", (*field).to_owned())),
        Error::NotFound { what } | Error::TimedOut { waiting_for: what } | Error::Full { what, .. } => {
            put("what", what.clone());
        }
        Error::InUse { what, by } => {
            put("what", what.clone());
            put("by", by.join(", "));
        }
        Error::Mismatch { what, expected, found } => {
            put("what", what.clone());
            put("expected", expected.clone());
            put("found", found.clone());
        }
        Error::Busy { what, holder, age } => {
            put("what", what.clone());
            put("holder", holder.clone());
            put("age_ms", age.as_millis().to_string());
        }
        Error::Unreachable { what, .. } => drop(put("what", what.clone())),
        Error::Limit { key, .. } => drop(put("limit", (*key).to_owned())),
        Error::Exhausted { lack, .. } => drop(put("what", (*lack).to_owned())),
        Error::Denied { who, .. } | Error::Forbidden { who, .. } => drop(put("who", who.clone())),
        Error::AlreadyExists { .. }
        | Error::WrongState { .. }
        | Error::Unsupported { .. }
        | Error::Flush { .. }
        | Error::Cancelled { .. }
        | Error::ShuttingDown
        | Error::Tool { .. }
        | Error::Host { .. } => {}
    }
    put(NEXT_STEP, next_step(error.reason()).to_owned());
    let details = ErrorDetails::with_error_info(error.reason(), proto::ERROR_DOMAIN, metadata);
    Status::with_error_details(code(error), error.chain(), details)
}

/// What to do about a failure with this reason; nothing is known of one that an older journal may have.
pub(crate) fn next_step(reason: &str) -> &'static str {
    reasons::find(reason).map_or("", |reason| reason.next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// One of each, in the order of the taxonomy.
    fn all() -> Vec<Error> {
        let text = || "it".to_owned();
        let source = || Box::new(std::io::Error::other("it"));
        vec![
            Error::invalid("id", "it"),
            Error::NotFound { what: text() },
            Error::AlreadyExists { what: text() },
            Error::InUse { what: text(), by: vec![text()] },
            Error::WrongState { what: text() },
            Error::Mismatch { what: text(), expected: text(), found: text() },
            Error::Unsupported { what: text() },
            Error::Busy { what: text(), holder: text(), age: Duration::ZERO },
            Error::Unreachable { what: text(), why: text() },
            Error::TimedOut { waiting_for: text() },
            Error::Denied { who: text(), why: text() },
            Error::Forbidden { who: text(), what: text(), needs: text(), way: text() },
            Error::Full { what: text(), why: text() },
            Error::Limit { what: text(), key: "it" },
            Error::Exhausted { doing: text(), lack: "it", source: source() },
            Error::Flush { what: text(), source: source() },
            Error::Cancelled { what: text() },
            Error::ShuttingDown,
            Error::Tool { doing: text(), tool: "it", code: text(), said: text() },
            Error::Host { doing: text(), source: source() },
        ]
    }

    /// A reason that is new in the taxonomy has no explanation yet, and fails here.
    #[test]
    fn every_reason_is_explained() {
        const TAXONOMY: &str = include_str!("../../driver/src/error.rs");
        let (_, mapping) = TAXONOMY.split_once("pub fn reason").unwrap();
        let (mapping, _) = mapping.split_once("/// The error and all its causes").unwrap();
        let named = mapping.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once('"').map(|it| it.0));
        let ours: Vec<_> = all().iter().map(Error::reason).collect();
        assert_eq!(named.collect::<Vec<_>>(), ours, "the list above is not the taxonomy");
        for error in all() {
            let explained = reasons::find(error.reason());
            assert_eq!(explained.map(|it| it.code), Some(code(&error)), "{}", error.reason());
        }
        assert_eq!(ours.len(), reasons::REASONS.len(), "one is explained that there is not");
    }

    /// Whoever has only the status knows what to do.
    #[test]
    fn every_failure_says_the_next_step() {
        for error in all() {
            let said = status(&error).get_error_details().error_info().unwrap().metadata[NEXT_STEP].clone();
            assert!(said.ends_with('.') && said.len() > 10, "{}: {said:?}", error.reason());
            assert_eq!(said, next_step(error.reason()));
        }
    }

    #[test]
    fn carries_reason_and_names() {
        let error =
            Error::Busy { what: "lvm:vg/lv".into(), holder: "attach a".into(), age: Duration::from_millis(1500) };
        let status = status(&error);
        assert_eq!(status.code(), Code::Aborted);
        let info = status.get_error_details().error_info().cloned().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("BUSY", "mortar"));
        assert_eq!(info.metadata["holder"], "attach a");
        assert_eq!(info.metadata["age_ms"], "1500");
    }
}
