//! The sysfs that `iscsiadm` is shown: the real one, but for the sessions, of which there is only the one that it is about.
//!
//! For each login and each logout `iscsiadm` reads some twenty attributes of every session of the host (open-iscsi,
//! `usr/iscsi_sysfs.c`, `iscsi_sysfs_for_each_session`), 160 to 250 system calls for each, only to find the one that is meant.
//! We have found it, and iscsid looks for itself. So `SYSFS_PATH` (`usr/sysfs.c`) leads it here:
//!
//! ```text
//! /run/mortar/sysfs/devices                                       ──▶ /sys/devices
//!                  /class/iscsi_connection, iscsi_host, …         ──▶ /sys/class/…
//!                  /class/iscsi_session/session3 (while it ends)  ──▶ ../../devices/platform/host2/session3/…
//! ```
//!
//! systemd makes it at the start of the host (`systemd/mortar.tmpfiles`). `iscsiadm` lists the names of sessions from the real
//! place, and passes over each that it cannot read here, with a complaint ([`without_complaints`]).

use crate::session::Session;
use host::{Command, Host, Output, Result};
use std::path::{Path, PathBuf};

/// Who listens on this host, and where.
pub(crate) const SOCKETS: &str = "/proc/net/unix";

/// Where iscsid, or systemd for it, listens (open-iscsi's `usr/iscsid.h`).
const ISCSID: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";

/// Whether iscsid takes requests, or systemd for it, by the text of [`SOCKETS`].
pub(crate) fn daemon_listens(sockets: &str) -> bool {
    sockets.lines().any(|line| line.split_whitespace().next_back() == Some(ISCSID))
}

/// Runs `iscsiadm` so that it sees this session only, or none.
///
/// It sees all of them if nobody listens for iscsid, as it may start iscsid then, which takes over its environment; if there is
/// no view, or none can be had of the session; and, in a second run, if it did not find what it needs.
pub(crate) async fn run(host: &dyn Host, root: &Path, session: Option<&Session>, command: Command) -> Result<Output> {
    /// TRANS_NOT_FOUND, NO_OBJS_FOUND, SYSFS_LOOKUP, HOST_NOT_FOUND (open-iscsi, `include/iscsi_err.h`).
    const BLIND: [i32; 4] = [12, 21, 22, 23];
    let listens = daemon_listens(&host.read(Path::new(SOCKETS))?.unwrap_or_default());
    if !listens || host.stat(&sessions(root))?.is_none() {
        return host.run(command).await;
    }
    let link = match session {
        None => None,
        Some(session) => match show(host, root, session).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, "iscsiadm reads every session, as it cannot be shown its own");
                return host.run(command).await;
            }
        },
    };
    let output = host.run(command.clone().set("SYSFS_PATH", root.to_string_lossy())).await;
    if let Some(link) = link
        && let Err(error) = host.remove(&link).await
    {
        tracing::warn!(%error, "cannot take a session out of iscsiadm's view");
    }
    match output {
        Ok(output) if BLIND.contains(&output.code) => host.run(command).await,
        output => output.map(without_complaints),
    }
}

/// Removes what an agent that died in the middle of a logout has left there.
pub(crate) async fn tidy(host: &dyn Host, root: &Path) -> Result<()> {
    for name in host.list(&sessions(root))? {
        let link = sessions(root).join(name);
        if host.resolve(&link)?.is_none() {
            host.remove(&link).await?;
        }
    }
    Ok(())
}

/// Where the view's sessions are.
fn sessions(root: &Path) -> PathBuf {
    root.join("class/iscsi_session")
}

/// Shows one, unless it is gone already; returns what to remove then.
async fn show(host: &dyn Host, root: &Path, session: &Session) -> Result<Option<PathBuf>> {
    let sys = Path::new("/sys");
    let place = host.resolve(&sessions(sys).join(session.name()))?;
    let Some(place) = place.as_ref().and_then(|place| place.strip_prefix(sys).ok()) else { return Ok(None) };
    let link = sessions(root).join(session.name());
    // Relative, as in sysfs: iscsiadm finds the devices above a session by this text.
    host.link(&link, &Path::new("../..").join(place)).await?;
    Ok(Some(link))
}

fn is_of_another(line: &str) -> bool {
    ["could not read session targetname:", "could not find session info for session"]
        .iter()
        .any(|complaint| line.strip_prefix("iscsiadm: ").is_some_and(|line| line.starts_with(complaint)))
}

/// What it printed, without what it says of the sessions that it was not shown.
fn without_complaints(output: Output) -> Output {
    let stderr = output.stderr.split_inclusive('\n').filter(|line| !is_of_another(line)).collect();
    Output { stderr, ..output }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{iscsiadm, place::Place, session};
    use host::sim::Machine;
    use std::time::Duration;

    const IQNS: [&str; 2] = ["iqn.2026-11.org.example:t1", "iqn.2026-11.org.example:t2"];
    const PORTAL: &str = "10.0.0.5:3260";
    const ROOT: &str = "/run/mortar/sysfs";

    /// Two sessions, and the way to end the first.
    fn machine() -> (Machine, Session, Command) {
        let machine = Machine::new();
        for iqn in IQNS {
            machine.add_target(iqn, &[PORTAL]);
            machine.operator_login(iqn, PORTAL, "manual");
        }
        let place = Place::all(&format!("iscsi://{PORTAL}/{}/0", IQNS[0]).parse().unwrap()).unwrap().remove(0);
        let session = session::sessions(&machine, &session::Targets::default(), &place).unwrap().remove(0);
        let logout = iscsiadm::logout(&session, Duration::from_secs(1));
        (machine, session, logout)
    }

    fn shown(machine: &Machine) -> Vec<String> {
        machine.list(&Path::new(ROOT).join("class/iscsi_session")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_session_is_shown_while_it_ends() {
        let (machine, session, logout) = machine();
        let raw = machine.run(logout.clone().set("SYSFS_PATH", ROOT)).await.unwrap();
        assert_eq!(raw.code, 22, "it sees what it should not");
        machine.before_next("--logout", |machine| assert_eq!(shown(machine), ["session1"]));
        let output = run(&machine, Path::new(ROOT), Some(&session), logout).await.unwrap();
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        assert!(shown(&machine).is_empty());
        assert_eq!(machine.list(Path::new("/sys/class/iscsi_session")).unwrap(), ["session2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_shown_to_a_run_that_may_start_the_daemon() {
        let (machine, session, logout) = machine();
        machine.remove_tree(SOCKETS);
        machine.before_next("--logout", |machine| assert!(shown(machine).is_empty()));
        let output = run(&machine, Path::new(ROOT), Some(&session), logout).await.unwrap();
        assert_eq!((output.code, machine.processes()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_shown_if_it_does_not_find_its_own() {
        let (machine, session, logout) = machine();
        machine.before_next("--logout", |machine| machine.remove_tree(ROOT));
        let output = run(&machine, Path::new(ROOT), Some(&session), logout.clone()).await.unwrap();
        assert_eq!((output.code, machine.processes()), (0, 2));

        let (machine, session, _) = self::machine();
        machine.remove_tree(ROOT);
        let output = run(&machine, Path::new(ROOT), Some(&session), logout).await.unwrap();
        assert_eq!((output.code, machine.processes()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_shown_if_its_own_cannot_be() {
        let (machine, session, logout) = machine();
        machine.fail_next("link", host::Error::Exists { path: ROOT.into() });
        let output = run(&machine, Path::new(ROOT), Some(&session), logout).await.unwrap();
        assert_eq!((output.code, machine.processes()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dead_agent_showed_goes() {
        let (machine, session, _) = machine();
        let link = show(&machine, Path::new(ROOT), &session).await.unwrap().unwrap();
        tidy(&machine, Path::new(ROOT)).await.unwrap();
        assert_eq!(shown(&machine), ["session1"], "it stands");
        machine.end_sessions(IQNS[0]);
        tidy(&machine, Path::new(ROOT)).await.unwrap();
        assert!(shown(&machine).is_empty(), "{}", link.display());
    }
}
