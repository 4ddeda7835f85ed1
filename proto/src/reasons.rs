//! What each reason of an error means, for those who read it: the texts behind `mortar explain`, held by tests against the
//! contract's own table and against the agent.

use tonic::Code;

/// A reason in `google.rpc.ErrorInfo`, explained.
pub struct Reason {
    /// As it is on the wire.
    pub name: &'static str,
    /// The code that comes with it.
    pub code: Code,
    /// What is the matter.
    pub means: &'static str,
    /// What has become of the volume and of the host.
    pub changed: &'static str,
    /// What to do.
    pub next: &'static str,
}

/// The key of `google.rpc.ErrorInfo` under which a failure tells what to do: its reason's `next`.
pub const NEXT_STEP: &str = "next_step";

/// The reason of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Reason> {
    REASONS.iter().find(|reason| reason.name == name)
}

/// What everything that fails with nothing else to say of it has in common.
const UNDONE: &str = "Nothing: what was begun is undone. If the undo fails, too, the operation is stuck and tried again: see `mortar \
                      operations --running`.";

/// Every reason that an agent can give, in the order of the contract.
pub const REASONS: [Reason; 20] = [
    Reason {
        name: "INVALID",
        code: Code::InvalidArgument,
        means: "A part of the request does not parse, or does not go with another; the message names it.",
        changed: "Nothing.",
        next: "Mend the request; `mortar COMMAND --help` says how each part is written.",
    },
    Reason {
        name: "NOT_FOUND",
        code: Code::NotFound,
        means: "What was named is not there: the attachment, volume, export, instance or operation; or on its storage the target, \
                LUN, VG, LV, image or file.",
        changed: "Nothing: an attach that does not find its volume leaves nothing behind.",
        next: "Look what there is (`mortar list`, `volumes`, `exports`, `instances`, `operations`, or on the storage), and name that.",
    },
    Reason {
        name: "ALREADY_EXISTS",
        code: Code::AlreadyExists,
        means: "The id or the name is taken by something else, or by the same with other parameters.",
        changed: "Nothing.",
        next: "Choose another id or name, or use what has it: the message says what that is.",
    },
    Reason {
        name: "IN_USE",
        code: Code::FailedPrecondition,
        means: "Somebody uses it: it is mounted, held by another device, open in a process, attached, exported, or the initiator \
                is logged in. The message says by whom.",
        changed: "Nothing: users are looked for before anything is touched.",
        next: "Free it first: unmount it, end the process, detach or unexport it. Then repeat the command.",
    },
    Reason {
        name: "WRONG_STATE",
        code: Code::FailedPrecondition,
        means: "It is not in a state that allows this; the message says in which it is, and the way out.",
        changed: "Nothing, or it was undone. Only an unrescue that has begun goes on, and then the message says so.",
        next: "Do what the message says; `mortar show` and `mortar doctor` tell more.",
    },
    Reason {
        name: "IDENTITY_MISMATCH",
        code: Code::FailedPrecondition,
        means: "The device is another volume than the one that was asked for or attached before, or has another size; the message \
                names both.",
        changed: "Nothing, and nobody was given the device.",
        next: "Find out on the storage why another volume is there. If it is the right one after all, detach what is left of the \
               old one, or mend --wwn and --size.",
    },
    Reason {
        name: "UNSUPPORTED",
        code: Code::Unimplemented,
        means: "This backend or this build of mortard cannot do it, or the config switches it off.",
        changed: "Nothing.",
        next: "Do not repeat it; the message says what does work, and `mortar host` what each driver lacks.",
    },
    Reason {
        name: "BUSY",
        code: Code::Aborted,
        means: "Another operation holds the attachment, volume or instance; the message says which, and since when.",
        changed: "Nothing was begun.",
        next: "Wait, then repeat it (mortar does so by itself until --timeout); `mortar operations --running` shows what holds it.",
    },
    Reason {
        name: "UNREACHABLE",
        code: Code::Unavailable,
        means: "A portal, a target, a cluster, libvirt or mortard itself does not answer.",
        changed: "Nothing: what was begun is undone. If it was mortard that went away, what it had begun is finished or undone \
                  when it is back.",
        next: "See that it runs and that the network leads there, then repeat the command with the same id.",
    },
    Reason {
        name: "CANCELLED",
        code: Code::Cancelled,
        means: "Somebody cancelled the operation.",
        changed: "Nothing is left of it.",
        next: "Repeat the command if it is still wanted.",
    },
    Reason {
        name: "TIMED_OUT",
        code: Code::DeadlineExceeded,
        means: "Something did not come in time; the message says what.",
        changed: "Nothing is left, or it is being undone. Only if the message says that it goes on does it go on.",
        next: "Look whether it still runs (`mortar operations --running`), then repeat the command with the same id, if need be \
               with a longer --timeout.",
    },
    Reason {
        name: "DENIED",
        code: Code::PermissionDenied,
        means: "The credentials were refused: CHAP by the target, the key by the cluster, or a certificate.",
        changed: "Nothing: what was begun is undone.",
        next: "Mend the user, the password, the key or the certificate, then repeat the command.",
    },
    Reason {
        name: "FORBIDDEN",
        code: Code::PermissionDenied,
        means: "The caller has not the role for this, or not for this volume.",
        changed: "Nothing.",
        next: "Ask who keeps this host for the role that the message names: the rules are in /etc/mortar/mortard.toml.",
    },
    Reason {
        name: "NO_SPACE",
        code: Code::ResourceExhausted,
        means: "There is no room: in the VG, the pool, the file system, or the journal of the agent.",
        changed: UNDONE,
        next: "Make room where the message says, then repeat the command.",
    },
    Reason {
        name: "LIMIT",
        code: Code::ResourceExhausted,
        means: "There are as many of them as the config of mortard allows at a time; the message names its key.",
        changed: "Nothing was begun.",
        next: "Wait until there are fewer, or raise the limit and reload mortard.",
    },
    Reason {
        name: "NO_RESOURCES",
        code: Code::ResourceExhausted,
        means: "The host is short of processes, file descriptors or memory.",
        changed: UNDONE,
        next: "Find out who has them all and free some, then repeat the command.",
    },
    Reason {
        name: "FLUSH_FAILED",
        code: Code::DataLoss,
        means: "Data that was written to the device could not be brought to the volume.",
        changed: "Nothing was detached: the device is still there.",
        next: "Mend the way to the storage (`mortar show ID`, `dmesg`), then detach again. Look after the data: what could not be \
               written may be lost.",
    },
    Reason {
        name: "SHUTTING_DOWN",
        code: Code::Unavailable,
        means: "mortard is stopping.",
        changed: "Nothing was begun; what others had begun is finished or undone.",
        next: "Repeat the command when mortard is back.",
    },
    Reason {
        name: "TOOL_FAILED",
        code: Code::Internal,
        means: "A tool of this host (iscsiadm, lvm, mortar-rbd, qemu-img, …) failed in a way that mortard does not know; the message \
                has the tool's own words.",
        changed: UNDONE,
        next: "Go by the tool's words; `mortar doctor` and `journalctl --unit mortard` tell more.",
    },
    Reason {
        name: "INTERNAL",
        code: Code::Internal,
        means: "The machine failed mortard in a way that it does not know, or mortard has a defect.",
        changed: UNDONE,
        next: "Look at `mortar doctor` and `journalctl --unit mortard`; report it if the machine is well.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = include_str!("../mortar/agent/v1/agent.proto");

    /// The table at the head of the contract: a code in capitals, a reason in capitals, and what to do.
    fn contract() -> Vec<(String, String)> {
        let capitals = |word: &str| word.len() > 3 && word.chars().all(|it| it.is_ascii_uppercase() || it == '_');
        let row = |line: &str| {
            let mut words = line.strip_prefix("//     ")?.split_whitespace();
            let (code, reason) = (words.next()?, words.next()?);
            (capitals(code) && capitals(reason)).then(|| (reason.to_owned(), code.to_owned()))
        };
        CONTRACT.lines().take_while(|line| line.starts_with("//")).filter_map(row).collect()
    }

    #[test]
    fn they_are_those_of_the_contract() {
        let code = |code: Code| format!("{code:?}").to_lowercase();
        let ours: Vec<_> = REASONS.iter().map(|reason| (reason.name.to_owned(), code(reason.code))).collect();
        let contract: Vec<_> =
            contract().into_iter().map(|(reason, code)| (reason, code.replace('_', "").to_lowercase())).collect();
        assert_eq!(ours, contract);
    }

    #[test]
    fn each_is_explained_in_sentences() {
        for Reason { name, means, changed, next, .. } in &REASONS {
            for text in [means, changed, next] {
                assert!(text.ends_with('.') && !text.contains("  "), "{name}: {text}");
            }
        }
    }
}
