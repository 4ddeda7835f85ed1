//! The audit log, as a test hears it.

use std::{cell::RefCell, collections::BTreeMap, fmt, sync::Once};
use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{Layer, filter::filter_fn, layer::Context, layer::SubscriberExt, registry::LookupSpan};

pub(crate) type Line = BTreeMap<String, String>;

thread_local! {
    /// The audit log of one test: it and its agent have a thread of their own.
    static AUDIT: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

struct Audit;

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Audit {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        AUDIT.with_borrow_mut(|lines| lines.push(fields));
    }
}

/// From now on it is kept.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let audit = Audit.with_filter(filter_fn(|of| of.target() == "audit"));
        let registry = tracing_subscriber::registry().with(audit);
        tracing::subscriber::set_global_default(registry).unwrap();
    });
}

/// What there is since the last time.
pub(crate) fn heard() -> Vec<Line> {
    AUDIT.take()
}

/// `rpc subject role outcome` of each line.
pub(crate) fn lines() -> Vec<String> {
    let line = |line: Line| {
        let field = |name: &str| line.get(name).cloned().unwrap_or_default();
        let rpc = field("rpc");
        assert!(field("who").starts_with("uid "), "{line:?}");
        format!("{} {} {} {}", rpc.rsplit('/').next().unwrap(), field("subject"), field("role"), field("outcome"))
    };
    heard().into_iter().map(line).collect()
}
