//! A config that is read anew while the agent runs: what of it holds at once, and what has to wait for a restart.

use crate::{callers::Callers, config::Config, tls::Identity};
use std::sync::{Arc, Mutex, PoisonError};

/// Lets a running agent have another config.
#[derive(Debug)]
pub struct Reloader {
    callers: Arc<Callers>,
    identity: Option<Arc<Identity>>,
    /// What holds now.
    config: Mutex<Config>,
}

impl Reloader {
    pub(crate) fn new(callers: Arc<Callers>, identity: Option<Arc<Identity>>, config: Config) -> Self {
        Self { callers, identity, config: Mutex::new(config) }
    }

    /// From now on the rules for callers are these, and the files of `[tls]` are what they are. Returns the keys that say something else than before and hold only after
    /// a restart. (`agent.log` is for the daemon's `main` to see to.)
    pub fn reload(&self, new: Config) -> Vec<String> {
        // Also without a change: a group may be there by now.
        self.callers.set(&new.callers);
        if let Some(identity) = &self.identity {
            identity.reload();
        }
        let mut now = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        now.callers = new.callers.clone();
        now.agent.log.clone_from(&new.agent.log);
        differences(&now, &new)
    }
}

/// The keys whose values differ: `limits.operations`.
fn differences(one: &Config, other: &Config) -> Vec<String> {
    let (Ok(one), Ok(other)) = (toml::Table::try_from(one), toml::Table::try_from(other)) else { return Vec::new() };
    let mut keys = Vec::new();
    for (section, values) in &other {
        for (key, value) in values.as_table().into_iter().flatten() {
            if one.get(section).and_then(|before| before.get(key)) != Some(value) {
                keys.push(format!("{section}.{key}"));
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_wait_is_named() {
        let before = Config::default();
        let reloader = Reloader::new(Arc::new(Callers::new(&before.callers)), None, before.clone());
        let mut new = before.clone();
        new.callers.rules.clear();
        new.agent.log = "debug".into();
        assert_eq!(reloader.reload(new.clone()), Vec::<String>::new());
        new.limits.operations = 7;
        new.agent.socket = "/run/other.sock".into();
        new.metrics.listen = "127.0.0.1:9723".into();
        assert_eq!(reloader.reload(new.clone()), ["agent.socket", "limits.operations", "metrics.listen"]);
        // They do not hold, and so are named again.
        assert_eq!(reloader.reload(new).len(), 3);
        assert_eq!(reloader.reload(before), Vec::<String>::new());
    }
}
