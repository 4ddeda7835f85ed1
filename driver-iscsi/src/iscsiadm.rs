//! The two runs of `iscsiadm` that we make, and what its exit codes mean (open-iscsi, `include/iscsi_err.h`).
//!
//! Everything else that is usually asked of it, sysfs tells without a process.

use crate::{place::Place, record::INTERFACE, session::Session};
use driver::{Error, Result};
use host::{Command, Output, Tool};
use std::time::Duration;

/// What is done when an exit code needs its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Login,
    Logout,
}

/// By our record of the portal.
pub(crate) fn login(place: &Place, timeout: Duration) -> Command {
    let (iqn, portal) = (place.iqn.to_string(), place.portal.to_string());
    let args = ["-m", "node", "-T", &iqn, "-p", &portal, "-I", INTERFACE, "--login"];
    Command::write(Tool::Iscsiadm, args).within(timeout)
}

/// By the session's number, so that no other session to the same portal is meant.
pub(crate) fn logout(session: &Session, timeout: Duration) -> Command {
    let id = session.id.to_string();
    Command::write(Tool::Iscsiadm, ["-m", "session", "-r", &id, "--logout"]).within(timeout)
}

/// `iscsiadm version 2.1.8` → `2.1.8`
pub(crate) fn version(output: &Output) -> Option<&str> {
    output.stdout.trim().strip_prefix("iscsiadm version ").map(str::trim)
}

/// The exit code for trouble with the data base (IDBM).
pub(crate) const DATABASE: i32 = 6;

/// Whether a logout found a daemon that does not know its sessions yet (SESS_NOT_FOUND), or is not connected to them yet
/// (SESSION_NOT_CONNECTED).
pub(crate) fn has_just_started(output: &Output) -> bool {
    matches!(output.code, 2 | 32)
}

/// An exit code as an error that says what to do. That a session is there already at a login, or gone at a logout, is what
/// was wanted.
pub(crate) fn classify(verb: Verb, place: &Place, output: &Output) -> Result<()> {
    let said = output.said();
    let target = || place.target();
    let unreachable = |what: String, why: &str| Err(Error::Unreachable { what, why: format!("{why} ({said})") });
    let wrong_state = |what: String| Err(Error::WrongState { what: format!("{what} ({said})") });
    let unknown = || {
        let doing = match verb {
            Verb::Login => format!("log in to {}", target()),
            Verb::Logout => format!("log out of {}", target()),
        };
        Err(Error::Tool { doing, tool: "iscsiadm", code: output.code.to_string(), said: said.clone() })
    };
    match (output.code, verb) {
        (0, _) => Ok(()),
        // SESS_EXISTS
        (15, Verb::Login) => Ok(()),
        // SESS_NOT_FOUND, NO_OBJS_FOUND, SYSFS_LOOKUP, HOST_NOT_FOUND
        (2 | 21 | 22 | 23, Verb::Logout) => Ok(()),
        // TRANS: the connection broke.
        (4, _) => unreachable(target(), "the connection broke; check the network and the target"),
        // LOGIN: a failure that may pass (RFC 7143 section 11.13.5, status class 3). LIO answers so for a name that it does
        // not serve.
        (5, Verb::Login) => unreachable(
            target(),
            "the portal turns the login away: the target is unknown there, disabled or overloaded; check the IQN",
        ),
        // IDBM: its data base, which has one lock for the whole host, and does not like to be changed while it is read.
        (DATABASE, _) if ["lock", "could not read dir", "could not stat"].iter().any(|word| said.contains(word)) => {
            Err(Error::TimedOut { waiting_for: format!("open-iscsi's data base ({said})") })
        }
        // TRANS_TIMEOUT
        (8, Verb::Login) => unreachable(target(), "the login did not end in time; check the network and the target"),
        // LOGOUT, TRANS_TIMEOUT
        (8 | 10, Verb::Logout) => unreachable(target(), "the logout did not end"),
        // PDU_TIMEOUT
        (11, _) => unreachable(target(), "it stopped answering; check the network and the target"),
        // TRANS_NOT_FOUND
        (12, _) => wrong_state("the kernel's iSCSI initiator is not loaded; run `modprobe iscsi_tcp`".into()),
        // ACCESS
        (13, _) => wrong_state("iscsid takes commands from root only; run the agent as root".into()),
        // TRANS_CAPS, OP_NOT_SUPP
        (14 | 27, _) => Err(Error::Unsupported { what: format!("open-iscsi cannot do this ({said})") }),
        // ISCSID_COMM_ERR, ISCSID_NOTCONN
        (18 | 20, _) => unreachable("iscsid".into(), "start it with `systemctl start iscsid`"),
        // FATAL_LOGIN: the target will not have us, and says so for good (RFC 7143 section 11.13.5, status class 2).
        (19, Verb::Login) if said.to_ascii_lowercase().contains("not found") => {
            Err(Error::NotFound { what: format!("{} ({said})", target()) })
        }
        (19, Verb::Login) => wrong_state(format!(
            "{} refuses the login: it does not know this target or this host's initiator name, or wants other \
             authentication (none, or none by name and password); check the IQN, the target's access list and \
             `journalctl -u iscsid`",
            target()
        )),
        // LOGIN_AUTH_FAILED: by the credentials, or by the want of them, or by the initiator's name.
        (24, _) => Err(Error::Denied { who: target(), why: said }),
        // SESSION_NOT_CONNECTED
        (32, _) => unreachable(target(), "the session has no connection"),
        // BUSY: iscsid.safe_logout, a mount, a boot session.
        (28, _) => Err(Error::InUse { what: format!("the session to {}", target()), by: vec![said] }),
        // AGAIN
        (29, _) => unreachable(target(), "try again"),
        // ERR, NOMEM, IDBM, INVAL, INTERNAL, INVALID_MGMT_REQ, iSNS (17, 25, 26), what is new, and signals
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Place {
        Place::all(&"iscsi://10.0.0.5/iqn.2026-11.org.example:t1/1".parse().unwrap()).unwrap().remove(0)
    }

    fn output(code: i32, stderr: &str) -> Output {
        Output { code, stderr: stderr.into(), ..Output::default() }
    }

    fn reason(verb: Verb, code: i32) -> &'static str {
        classify(verb, &place(), &output(code, "")).map_or_else(|error| error.reason(), |()| "OK")
    }

    #[test]
    fn every_exit_code_has_a_meaning() {
        let login = [
            "OK",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNREACHABLE",
            "UNREACHABLE",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNREACHABLE",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNREACHABLE",
            "WRONG_STATE",
            "WRONG_STATE",
            "UNSUPPORTED",
            "OK",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNREACHABLE",
            "WRONG_STATE",
            "UNREACHABLE",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "DENIED",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNSUPPORTED",
            "IN_USE",
            "UNREACHABLE",
            "TOOL_FAILED",
            "TOOL_FAILED",
            "UNREACHABLE",
            "TOOL_FAILED",
        ];
        for (code, expected) in (0..).zip(login) {
            assert_eq!(reason(Verb::Login, code), expected, "login, code {code}");
        }
        for code in [0, 2, 21, 22, 23] {
            assert_eq!(reason(Verb::Logout, code), "OK", "logout, code {code}");
        }
        for (code, expected) in
            [(8, "UNREACHABLE"), (10, "UNREACHABLE"), (15, "TOOL_FAILED"), (28, "IN_USE"), (137, "TOOL_FAILED")]
        {
            assert_eq!(reason(Verb::Logout, code), expected, "logout, code {code}");
        }
    }

    #[test]
    fn what_iscsiadm_says_is_passed_on() {
        // Captured from open-iscsi 2.1.8.
        let stderr = "iscsiadm: Could not login to [iface: mortar, target: iqn.2026-11.org.example:t1, portal: 127.0.0.1,3260].\n\
                      iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)\n\
                      iscsiadm: Could not log into all portals\n";
        let error = classify(Verb::Login, &place(), &output(24, stderr)).unwrap_err();
        assert!(error.to_string().starts_with("target iqn.2026-11.org.example:t1 at 10.0.0.5:3260 refused"));
        assert!(error.to_string().contains("authorization failure"));
    }

    #[test]
    fn a_data_base_that_is_locked_is_worth_another_try() {
        let locked = output(6, "iscsiadm: Could not lock discovery DB: /run/lock/iscsi/lock.write: File exists");
        assert_eq!(classify(Verb::Login, &place(), &locked).unwrap_err().reason(), "TIMED_OUT");
    }

    #[test]
    fn versions() {
        let output = Output { stdout: "iscsiadm version 2.1.8\n".into(), ..Output::default() };
        assert_eq!(version(&output), Some("2.1.8"));
        assert_eq!(version(&Output::default()), None);
    }

    #[test]
    fn portals_of_both_families() {
        let place = Place::all(&"iscsi://[::1]/iqn.2026-11.org.example:t1/1".parse().unwrap()).unwrap().remove(0);
        let line = login(&place, Duration::from_secs(1)).line();
        assert_eq!(line, "iscsiadm -m node -T iqn.2026-11.org.example:t1 -p [::1]:3260 -I mortar --login");
    }

    proptest! {
        #[test]
        fn no_words_panic(code in any::<i32>(), stdout in "\\PC{0,80}", stderr in "(\\PC|\n){0,80}", prefix in any::<bool>()) {
            let stdout = if prefix { format!("iscsiadm version{stdout}") } else { stdout };
            let output = Output { code, stdout, stderr };
            let _version = version(&output);
            let _just_started = has_just_started(&output);
            for verb in [Verb::Login, Verb::Logout] {
                let ended = classify(verb, &place(), &output);
                prop_assert!(code != 0 || ended.is_ok());
            }
        }
    }
}
