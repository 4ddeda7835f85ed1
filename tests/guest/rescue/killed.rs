//! SIGKILL of the real agent after each effect of a rescue and of an unrescue: after the restart the instance is in one of its
//! two states, the repeated call ends as asked, and nothing is left.

use super::{Bench, RESCUE, ROOT, WEB1};
use crate::{
    cli::figure,
    crash::mortal::Mortal,
    instance::{booted, dumpxml},
    machine::sh,
};
use driver::Backend;
use proto::v1::{self, rescue_request::Disk};
use std::time::Duration;
use tests::{
    client::Answer,
    reliability::{self, Row, note},
    stage::Stage,
};
use tokio::time::Instant;

/// A start takes seconds, and a multiple of it where others work too.
const PATIENCE_MS: u64 = 180_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Rescue,
    Unrescue,
}

struct Sweep {
    agent: Mortal,
    bench: Bench,
    was_running: bool,
}

impl Sweep {
    async fn call(&self, verb: Verb) -> Answer<bool> {
        let mut client = self.bench.stage.client();
        let instance = self.bench.uuid.to_string();
        Ok(match verb {
            Verb::Rescue => {
                let request = v1::RescueRequest {
                    instance,
                    disk: Some(Disk::Image(self.bench.with[1].clone())),
                    grace_ms: Some(0),
                    timeout_ms: PATIENCE_MS,
                    ..v1::RescueRequest::default()
                };
                client.rescue(request).await?.changed
            }
            Verb::Unrescue => {
                let request = v1::UnrescueRequest {
                    instance,
                    grace_ms: Some(0),
                    timeout_ms: PATIENCE_MS,
                    ..v1::UnrescueRequest::default()
                };
                client.instances.unrescue(request).await?.into_inner().changed
            }
        })
    }

    /// What of it can be seen, without what is new in each rescue.
    fn picture(&self) -> String {
        let directory = self.bench.stage.directory();
        let seen = sh(&format!(
            "virsh domstate {}; ls {directory} /dev/mortar {}; lvs --noheadings -o lv_name,lv_active,lv_tags; losetup -n -O BACK-FILE",
            self.bench.uuid,
            super::SEEDS
        ));
        let definition = dumpxml(self.bench.uuid);
        let lines = definition.lines().filter(|line| !line.contains("generation="));
        seen + &lines.collect::<Vec<_>>().join("\n")
    }

    async fn settled(&self, place: &str) {
        let (mut client, end) = (self.bench.stage.client(), Instant::now() + Duration::from_secs(300));
        loop {
            let running = client.running().await;
            if running.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{place}: {running:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// It has died of what it was armed with, be it in what goes on behind its start, or no operation runs any more.
    async fn dead_or_settled(&mut self) {
        let mut client = self.bench.stage.client();
        while self.agent.lives() {
            let request = v1::ListOperationsRequest { running_only: true, limit: 0 };
            if client.operations.list(request).await.is_ok_and(|reply| reply.into_inner().operations.is_empty()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lets a call die after effect `at`, and makes it again. `false`: it has fewer.
    async fn crash(&mut self, verb: Verb, at: usize, from: &str, to: &str) -> bool {
        self.agent.arm(at);
        let answer = self.call(verb).await;
        if answer.is_ok() && self.agent.is_armed() {
            self.agent.disarm();
            return false;
        }
        self.agent.death(&answer).await;
        let last = self.agent.disarm().pop().unwrap_or_default();
        let place = format!("{} {verb:?} killed after its effect {at}, {last}", self.bench.backend);
        // Every third recovery dies as well.
        if at.is_multiple_of(3) {
            self.agent.arm(1 + at % 2);
            if self.agent.start().await {
                self.dead_or_settled().await;
            }
        }
        if !self.agent.lives() {
            self.agent.disarm();
            assert!(self.agent.start().await, "{place}: it died without having been told to");
        }
        self.settled(&place).await;
        self.agent.disarm();
        let recovered = self.picture();
        assert!(
            recovered == from || recovered == to,
            "{place}: it is in neither state\n{recovered}\n==== but\n{from}\n==== or\n{to}"
        );
        let changed = self.call(verb).await.unwrap_or_else(|refused| panic!("{place}: {refused:?}"));
        assert_eq!(changed, recovered != to, "{place}: what the repetition says");
        assert_eq!(self.picture(), to, "{place}: the repetition does not end where the call does");
        match verb {
            Verb::Rescue => assert_eq!(booted(WEB1), RESCUE, "{place}"),
            Verb::Unrescue if self.was_running => assert_eq!(booted(WEB1), ROOT, "{place}"),
            Verb::Unrescue => assert!(!self.bench.runs(), "{place}"),
        }
        true
    }

    async fn run(mut self) {
        let before = self.bench.picture().await;
        let normal = self.picture();
        assert!(self.call(Verb::Rescue).await.unwrap());
        let rescued = self.picture();
        assert!(self.call(Verb::Unrescue).await.unwrap());
        let (mut there, mut back) = (Some(1), Some(1));
        let mut effects = [0, 0];
        while there.is_some() || back.is_some() {
            for (verb, next, from, to) in
                [(Verb::Rescue, &mut there, &normal, &rescued), (Verb::Unrescue, &mut back, &rescued, &normal)]
            {
                let dies = match *next {
                    Some(at) => self.crash(verb, at, from, to).await,
                    None => {
                        assert!(self.call(verb).await.unwrap(), "{verb:?} changed nothing");
                        continue;
                    }
                };
                effects[verb as usize] += usize::from(dies);
                *next = next.filter(|_| dies).map(|at| at + 1);
            }
        }
        assert_eq!(self.bench.picture().await, before, "something was left behind");
        for (verb, points) in [("rescue", effects[0]), ("unrescue", effects[1])] {
            let driver = self.bench.backend.to_string();
            let row = reliability::Sweep { operation: verb.into(), driver, points, runs: points, leftovers: 0 };
            note(&Row::Guest(row));
            figure(&format!("{} {verb}", self.bench.backend), format!("{points} crash points, nothing left"));
            assert!(points >= 6, "{verb}: {points} effects are too few to be true");
        }
        if self.was_running {
            sh(&format!("virsh --quiet destroy {}", self.bench.uuid));
        }
    }
}

async fn sweep(backend: Backend, was_running: bool) {
    let bench = Bench::new(backend).await;
    if was_running {
        bench.start();
    }
    Sweep { agent: Mortal::in_its_place(backend).await, bench, was_running }.run().await;
}

#[tokio::test]
async fn file_while_it_runs() {
    sweep(Backend::File, true).await;
}

#[tokio::test]
#[ignore = "seven minutes: tests/guest/test --ignored rescue::killed"]
async fn lvm_while_it_is_off() {
    sweep(Backend::Lvm, false).await;
}
