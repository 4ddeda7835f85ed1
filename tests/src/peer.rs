//! The peer that Mortar is held against: `tests/bench/peer`, a Python process with os-brick in it, behind a pipe.

#![allow(clippy::disallowed_methods, reason = "from outside the agent")]

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

/// A peer that has started and loaded its modules.
#[derive(Debug)]
pub struct Peer {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it from the repository at `GUEST_REPO`. What it logs goes to `log`.
    pub fn start(log: &str) -> Self {
        let repository = std::env::var("GUEST_REPO").expect("only in the guest");
        std::fs::create_dir_all("/run/peer-locks").unwrap();
        let mut process = Command::new("/usr/bin/python3")
            .arg(format!("{repository}/tests/bench/peer/peer"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    /// Its process, for those who count what it starts.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Does one job; its answer, or the error it had.
    pub fn try_ask(&mut self, job: &Value) -> Result<Value, String> {
        writeln!(self.process.stdin.as_mut().unwrap(), "{job}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?} to {job}"));
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// Ends it, whatever it is at.
    pub fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Does one job that has to succeed.
    #[track_caller]
    pub fn ask(&mut self, job: &Value) -> Value {
        self.try_ask(job).unwrap_or_else(|error| panic!("the peer: {error} (asked {job})"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}
