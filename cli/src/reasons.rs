//! The reasons that errors are printed with: those of the agent, as the contract explains them, and mortar's own.

use proto::reasons::{REASONS, Reason};
use tonic::Code;

const OWN: [Reason; 3] = [
    Reason {
        name: "RESIDUAL",
        code: Code::FailedPrecondition,
        means: "A detach or an unexport could not remove everything; each thing that is left is named, and why.",
        changed: "What is not named is gone. The attachment stays listed, with the state residual.",
        next: "Do away with what stands in the way, then repeat the command; `mortar doctor` tells more.",
    },
    Reason {
        name: "NOT_IN_ORDER",
        code: Code::Unknown,
        means: "`mortar doctor` or `mortar status` found something amiss; stdout says what.",
        changed: "Nothing, except of `mortar doctor --repair` what it says it removed.",
        next: "Do what stands beside each finding.",
    },
    Reason {
        name: "OUTPUT",
        code: Code::Unknown,
        means: "The answer could not be written to stdout.",
        changed: "What was asked for is done.",
        next: "Make room where stdout leads, then repeat the command: it changes nothing the second time.",
    },
];

/// All of them, the agent's first.
pub(crate) fn all() -> impl Iterator<Item = &'static Reason> {
    REASONS.iter().chain(&OWN)
}

/// The reason of this name, case aside.
pub(crate) fn find(name: &str) -> Option<&'static Reason> {
    all().find(|reason| reason.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_our_own_making_is_explained() {
        const SOURCES: [&str; 4] = [
            include_str!("error.rs"),
            include_str!("commands/attachments.rs"),
            include_str!("commands/exports.rs"),
            include_str!("../../client/src/error.rs"),
        ];
        let mut seen = Vec::new();
        for source in SOURCES {
            let (code, _) = source.split_once("mod tests").unwrap_or((source, ""));
            for (at, _) in code.match_indices("Code::") {
                let Some((_, rest)) = code[at..].split_once(',') else { continue };
                let Some(rest) = rest.trim_start().strip_prefix('"') else { continue };
                seen.extend(rest.split_once('"').map(|(reason, _)| reason));
            }
        }
        assert!(seen.contains(&"RESIDUAL") && seen.contains(&"NOT_IN_ORDER"), "{seen:?}");
        for reason in seen {
            assert!(find(reason).is_some(), "{reason}");
        }
    }
}
