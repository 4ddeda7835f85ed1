//! kill -9 of the real agent after every effect of every verb, and again after effects of the recovery: each operation is
//! finished or undone, the caller's retry gives the right answer, and the host is what it was.
//!
//! ```text
//!   from ── call, killed after effect n ── started (killed after effect m of that, started) ──┐
//!    ▲                                                                                        ▼
//!    └──── the way back, killed in the same way ──── to ◀── the call again ──── from or to, and nothing between
//! ```
//!
//! It is `tests/sim/crash.rs` on a real machine, where a tool may outlive the agent, and the kernel has its own mind.

pub(crate) mod mortal;
mod subject;

use crate::cli::figure;
use mortal::Mortal;
use proto::v1;
use std::{collections::BTreeSet, time::Duration};
use subject::{Subject, Tried};
use tests::{
    client::{Answer, Client, attach, manage},
    reliability::{self, Row, note},
    stage::Stage,
};
use tokio::time::Instant;

const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8680";
const NEVER: usize = usize::MAX;

/// What is crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Attach,
    Detach,
    Extend,
    Manage,
    Unmanage,
    Export,
    Unexport,
}

impl Verb {
    /// The call, and whether it changed anything.
    async fn call(self, mut client: Client, locator: &str) -> Answer<bool> {
        Ok(match self {
            // All paths, or else a picture would depend on how far the later ones came.
            Self::Attach => client.attach(v1::AttachRequest { all_paths: true, ..attach("a", locator) }).await?.changed,
            Self::Detach => {
                let gone = client.detach("a").await?;
                assert!(gone.residuals.is_empty(), "{gone:?}");
                gone.changed
            }
            Self::Extend => {
                let request = v1::ExtendRequest { id: "a".into(), timeout_ms: 0 };
                client.attachments.extend(request).await?.into_inner().changed
            }
            Self::Manage => client.manage(v1::ManageRequest { id: ID.into(), ..manage(locator) }).await?.changed,
            Self::Unmanage => client.unmanage(ID, false).await?.changed,
            Self::Export => {
                let request = v1::ExportRequest {
                    id: "a".into(),
                    locator: locator.into(),
                    initiator: "iqn.2026-11.org.example:other".into(),
                    portals: vec!["127.0.0.1:3262".into()],
                    ..v1::ExportRequest::default()
                };
                client.export(request).await?.changed
            }
            Self::Unexport => {
                let gone = client.unexport("a").await?;
                assert!(gone.residuals.is_empty(), "{gone:?}");
                gone.changed
            }
        })
    }
}

/// Where the agent dies: after an effect of the call, and after one of the recovery (0: it recovers).
#[derive(Debug, Clone, Copy)]
struct Point {
    at: usize,
    again: usize,
}

/// The points of one verb, in an order in which what is not known beforehand (how many there are) has been seen.
struct Points {
    next: Option<Point>,
    /// As soon as a call has come to its end.
    effects: usize,
    runs: usize,
}

impl Points {
    fn new() -> Self {
        Self { next: Some(Point { at: 1, again: 0 }), effects: 0, runs: 0 }
    }

    fn ended(&mut self, at: usize) {
        self.effects = at - 1;
        self.next = None;
    }

    /// The recovery had so many effects. Once more with a crash in it: after its first effect, the second or the last, in turn.
    /// Of the long rows of an export only every fourth point is tried so: they are alike.
    fn recovered(&mut self, point: Point, effects: usize) {
        self.runs += 1;
        let again = match point.at % 3 {
            1 => 1,
            2 => 2,
            _ => effects,
        };
        let is_tried = point.at <= 12 || point.at.is_multiple_of(4);
        let (at, again) = match is_tried && point.again == 0 && (1..=effects).contains(&again) {
            true => (point.at, again),
            false => (point.at + 1, 0),
        };
        self.next = Some(Point { at, again });
    }
}

/// One subject, and the agent that is killed.
struct Sweep {
    agent: Mortal,
    tried: Tried,
}

impl Sweep {
    async fn of(subject: Subject) -> Self {
        let tried = Tried::make(subject).await;
        Self { agent: Mortal::in_its_place(subject.backend()).await, tried }
    }

    /// Everything on the host that the agent could change, with what it says of it; without the names that the kernel gives
    /// anew to devices.
    async fn picture(&self) -> String {
        let mut client = self.client();
        let attachments = client.list().await.unwrap().into_iter().map(|there| format!("attachment: {}", there.id));
        let exports = client.exports.list(v1::ListExportsRequest {}).await.unwrap().into_inner().exports;
        let exports = exports.into_iter().map(|export| format!("export: {} {}", export.id, export.ready));
        let snapshot = self.tried.stage.snapshot().await;
        let named = |line: &str| match line.split_once(' ') {
            Some((what @ ("block:" | "mapping:"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap();
                format!(
                    "{what} {} {rest}",
                    name.trim_end_matches(|end: char| end.is_ascii_digit()).get(..2).unwrap_or("")
                )
            }
            _ => line.to_owned(),
        };
        let mut lines: Vec<String> = snapshot.lines().map(named).chain(attachments).chain(exports).collect();
        lines.sort();
        lines.join("\n")
    }

    /// The picture, once it is one of those that are expected, or does not become one in time: what a login leaves empty is
    /// removed behind the reply.
    async fn picture_of(&self, expected: &[&str]) -> String {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let picture = self.picture().await;
            if expected.contains(&picture.as_str()) || Instant::now() > end {
                return picture;
            }
        }
    }

    /// The picture, once it stays as it is.
    async fn picture_at_rest(&self) -> String {
        let mut before = self.picture().await;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.picture().await;
            if now == before {
                return now;
            }
            before = now;
        }
    }

    fn client(&self) -> Client {
        self.tried.stage.client()
    }

    async fn call(&self, verb: Verb) -> Answer<bool> {
        verb.call(self.client(), &self.tried.locator).await
    }

    /// Lets a call die at a point, and makes it again. Where there is no such point, the call has come to its end.
    async fn crash(&mut self, verb: Verb, points: &mut Points, from: &str, to: &str) {
        let Some(point) = points.next else {
            assert_eq!(self.call(verb).await.unwrap(), from != to, "{verb:?}");
            return;
        };
        self.agent.arm(point.at);
        let answer = self.call(verb).await;
        if let Ok(changed) = answer
            && self.agent.is_armed()
        {
            assert_eq!(changed, from != to, "{verb:?}");
            self.agent.disarm();
            points.ended(point.at);
            return;
        }
        self.agent.death(&answer).await;
        let last = self.agent.disarm().pop().unwrap_or_default();
        let mut place = format!("{:?}: {verb:?} killed after its effect {}, {last}", self.tried.subject, point.at);
        if point.again > 0 {
            self.agent.arm(point.again);
            self.agent.start().await;
            // What goes on behind a recovery may be over before it comes to this.
            if !self.agent.lives() {
                let last = self.agent.disarm().pop().unwrap_or_default();
                place = format!("{place}, and after effect {} of the recovery, {last}", point.again);
            }
        }
        if !self.agent.lives() {
            self.agent.arm(NEVER);
            assert!(self.agent.start().await, "{place}: it died without having been told to");
        }
        self.settled(&place).await;
        let effects = self.agent.disarm().len();
        let recovered = self.picture_of(&[from, to]).await;
        // What the kernel has seen of a growth it has seen, path by path, and the next extend takes it from there.
        assert!(
            recovered == to || recovered == from || verb == Verb::Extend,
            "{place}: neither before nor after. Beside before:\n{}\n==== and beside after:\n{}",
            difference(from, &recovered),
            difference(to, &recovered)
        );
        let changed = self.call(verb).await.unwrap_or_else(|refused| panic!("{place}: {refused:?}"));
        assert_eq!(changed, recovered != to, "{place}: what the repetition says");
        let left = difference(to, &self.picture_of(&[to]).await);
        assert!(left.is_empty(), "{place}: the repetition does not end where the call does\n{left}");
        points.recovered(point, effects);
    }

    /// No operation runs any more.
    async fn settled(&self, place: &str) {
        let (mut client, end) = (self.client(), Instant::now() + Duration::from_secs(60));
        loop {
            let running = client.running().await;
            if running.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{place}: {running:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All points of a verb, and of that which takes it back.
    async fn there_and_back(mut self, there: Verb, back: Verb) {
        // Once as it goes undisturbed, so that what stays for good is there.
        for verb in [there, back, there, back] {
            assert!(self.call(verb).await.unwrap(), "{verb:?} changed nothing");
        }
        let before = self.picture_at_rest().await;
        assert!(self.call(there).await.unwrap());
        let after = self.picture_at_rest().await;
        assert!(self.call(back).await.unwrap());
        let (mut going, mut coming) = (Points::new(), Points::new());
        while going.next.is_some() || coming.next.is_some() {
            self.crash(there, &mut going, &before, &after).await;
            self.crash(back, &mut coming, &after, &before).await;
        }
        assert_eq!(difference(&before, &self.picture_of(&[&before]).await), "", "something was left behind");
        self.report(there, &going, 3);
        self.report(back, &coming, 3);
    }

    /// All points of an extend.
    async fn extend(mut self) {
        assert!(self.call(Verb::Attach).await.unwrap());
        self.tried.grow();
        let before = self.picture_at_rest().await;
        let changed = self.call(Verb::Extend).await.unwrap();
        let after = self.picture_at_rest().await;
        // An LV and a mapping learn their size without us.
        assert_eq!(changed, before != after);
        let mut points = Points::new();
        while points.next.is_some() {
            assert!(self.call(Verb::Detach).await.unwrap());
            self.tried.shrink();
            assert!(self.call(Verb::Attach).await.unwrap());
            self.tried.grow();
            self.crash(Verb::Extend, &mut points, &before, &after).await;
        }
        assert!(self.call(Verb::Detach).await.unwrap());
        self.report(Verb::Extend, &points, 2);
    }

    fn report(&self, verb: Verb, points: &Points, least: usize) {
        let what = format!("{:?} {verb:?}", self.tried.subject);
        note(&Row::Guest(reliability::Sweep {
            operation: format!("{verb:?}").to_lowercase(),
            driver: self.tried.subject.named().into(),
            points: points.effects,
            runs: points.runs,
            leftovers: 0,
        }));
        figure(&what, format!("{} crash points, {} runs, nothing left", points.effects, points.runs));
        assert!(points.effects >= least, "{what}: {} effects are too few to be true", points.effects);
    }
}

/// The lines that only one of them has.
fn difference(before: &str, after: &str) -> String {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let gone = before.difference(&after).map(|line| format!("- {line}\n"));
    let new = after.difference(&before).map(|line| format!("+ {line}\n"));
    gone.chain(new).collect()
}

macro_rules! sweeps {
    ($($name:ident: $subject:ident, $there:ident, $back:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                Sweep::of(Subject::$subject).await.there_and_back(Verb::$there, Verb::$back).await;
            }
        )*
    };
}

sweeps! {
    file_attach_and_detach: File, Attach, Detach;
    file_manage_and_unmanage: File, Manage, Unmanage;
    iscsi_attach_and_detach: Iscsi, Attach, Detach;
    multipath_attach_and_detach: Multipath, Attach, Detach;
    lvm_attach_and_detach: Lvm, Attach, Detach;
    lvm_manage_and_unmanage: Lvm, Manage, Unmanage;
    lvm_export_and_unexport: Lvm, Export, Unexport;
    rbd_attach_and_detach: Rbd, Attach, Detach;
    rbd_manage_and_unmanage: Rbd, Manage, Unmanage;
}

macro_rules! extends {
    ($($name:ident: $subject:ident;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                Sweep::of(Subject::$subject).await.extend().await;
            }
        )*
    };
}

extends! {
    file_extend: File;
    iscsi_extend: Iscsi;
    multipath_extend: Multipath;
    lvm_extend: Lvm;
    rbd_extend: Rbd;
}
