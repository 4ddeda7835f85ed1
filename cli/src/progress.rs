//! What a call that takes long waits for, told on the last line of a terminal, and nowhere else.
//!
//! The agent knows it of each operation; it is asked beside the call, on the same connection. What it does not tell, or is
//! not asked in time, is no failure: the line then says only what goes on, and for how long.

use crate::{connect::Agent, output::Output, table};
use jiff::Timestamp;
use proto::v1;
use std::{
    io::{self, Write},
    pin::pin,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Nobody needs to be told of what takes less.
const PATIENCE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(500);

/// A terminal may be as narrow as this; a line that wraps could not be wiped.
const WIDTH: usize = 79;

/// Which operation it is: of this kind, on what the user named.
pub(crate) struct About<'a> {
    pub(crate) doing: &'a str,
    pub(crate) kind: v1::OperationKind,
    /// An id or a locator, as far as he named it.
    pub(crate) named: [Option<&'a str>; 2],
}

/// Waits for the call, and tells meanwhile what the agent waits for.
pub(crate) async fn shown<T>(agent: &Agent, out: &Output, about: About<'_>, call: impl Future<Output = T>) -> T {
    if !out.is_watched() {
        return call.await;
    }
    let mut call = pin!(call);
    let (began, since) = (Instant::now(), Timestamp::now().as_second());
    let mut line = Line::default();
    let mut ticks = interval_at(began + PATIENCE, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let told = async {
            ticks.tick().await;
            about.waits_for(agent, since).await
        };
        let waits_for = tokio::select! {
            biased;
            ended = &mut call => return ended,
            waits_for = told => waits_for,
        };
        line.show(&about.line(began.elapsed(), waits_for.as_deref()));
    }
}

impl About<'_> {
    /// `None`: it waits for nothing now, or nobody can tell.
    async fn waits_for(&self, agent: &Agent, since: i64) -> Option<String> {
        let message = |_| v1::ListOperationsRequest { running_only: true, limit: 0 };
        let mut client = agent.operations();
        let reply = agent.call(message, async |request| client.list(request).await).await.ok()?;
        let waiting = self.choose(&reply.operations, since)?.waiting.as_ref()?;
        Some(waiting.r#for.clone())
    }

    /// The one that has the name; or, if the agent has another name for it, the only one of its kind that began since the call.
    fn choose<'o>(&self, running: &'o [v1::Operation], since: i64) -> Option<&'o v1::Operation> {
        let of_kind = || running.iter().filter(|operation| operation.kind() == self.kind);
        let named = |operation: &&v1::Operation| {
            let names = [operation.subject.as_str(), operation.locator.as_str()];
            self.named.iter().flatten().any(|name| names.contains(name))
        };
        let is_new = |operation: &&v1::Operation| operation.started_at.is_some_and(|began| began.seconds >= since);
        let mut new = of_kind().filter(is_new);
        of_kind().find(named).or_else(|| new.next().filter(|_| new.next().is_none()))
    }

    fn line(&self, since: Duration, waits_for: Option<&str>) -> String {
        let seconds = since.as_secs();
        match waits_for {
            Some(what) => format!("{}, {seconds} s: waits for `{what}`", self.doing),
            None => format!("{}, {seconds} s", self.doing),
        }
    }
}

/// The last line of a terminal, which is wiped at the end.
#[derive(Default)]
struct Line {
    shown: usize,
}

impl Line {
    fn show(&mut self, text: &str) {
        let mut text: String = table::visible(text).chars().take(WIDTH).collect();
        let length = text.chars().count();
        text.extend(std::iter::repeat_n(' ', self.shown.saturating_sub(length)));
        self.shown = length;
        let mut stderr = io::stderr().lock();
        // Nobody misses it when stderr is closed.
        let _ = write!(stderr, "\r{text}").and_then(|()| stderr.flush());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown > 0 {
            self.show("");
            let _ = write!(io::stderr().lock(), "\r");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: v1::OperationKind, subject: &str, seconds: i64) -> v1::Operation {
        let started_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
        let locator = "lvm:vg/lv".into();
        v1::Operation { kind: kind.into(), subject: subject.into(), locator, started_at, ..Default::default() }
    }

    #[test]
    fn the_operation_is_told_by_its_name_or_because_it_is_alone() {
        use v1::OperationKind::{Attach, Detach, Export, Rescue};
        let running = [
            operation(Attach, "a", 10),
            operation(Attach, "b", 10),
            operation(Detach, "a", 1),
            operation(Rescue, "u-u", 10),
            operation(Export, "e", 9),
        ];
        let chosen = |kind, named| {
            let about = About { doing: "", kind, named };
            about.choose(&running, 10).map(|operation| (operation.kind(), operation.subject.clone()))
        };
        assert_eq!(chosen(Attach, [Some("b"), None]), Some((Attach, "b".into())));
        assert_eq!(chosen(Detach, [None, Some("lvm:vg/lv")]), Some((Detach, "a".into())));
        assert_eq!(chosen(Rescue, [Some("web1"), None]), Some((Rescue, "u-u".into())));
        assert_eq!(chosen(Attach, [Some("c"), None]), None, "which of the two is not known");
        assert_eq!(chosen(Export, [Some("c"), None]), None, "it is older than the call, and so somebody else's");
    }
}
