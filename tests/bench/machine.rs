//! The guest's tools and sysfs, for what is set up around a measurement and for the floors.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::client::Client;

pub(crate) const PORTAL: &str = "127.0.0.1:3260";
const SOCKET: &str = "/run/mortar/agent.sock";

pub(crate) fn client() -> Client {
    Client::on(Path::new(SOCKET))
}

/// The agent's process.
pub(crate) fn agent() -> u32 {
    sh("systemctl show --property MainPID --value mortard").parse().unwrap()
}

/// Runs a shell script, with the guest's library at hand, that has to succeed; what it printed, without the last newline.
pub(crate) fn sh(script: &str) -> String {
    let library = std::env::var("GUEST_LIB").expect("only in the guest");
    run("/bin/bash", &["-c", &format!(". {library}\nset -euo pipefail\n{script}")])
}

/// Runs one tool that has to succeed; what it printed, without the last newline.
pub(crate) fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}\n{out}{err}");
    out.trim_end().to_owned()
}

/// Waits until udev is done with what has come and gone: its workers would share the one CPU with whoever is next.
pub(crate) fn settle() {
    run("/usr/bin/udevadm", &["settle", "--timeout=120"]);
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

pub(crate) fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|found| found.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

/// Looks until it is so, giving way to whoever else has something to do: there is one CPU.
pub(crate) fn spin<T>(mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = look() {
            return found;
        }
        std::thread::yield_now();
    }
}
