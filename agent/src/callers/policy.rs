//! The rules of the config, with the users and groups of this host looked up: once, when they come to hold, so that no call
//! waits for a directory service.

use super::{Peer, Reach, pattern::Pattern};
use crate::config::{Callers, Role};
use nix::unistd::{Group, User};
use std::sync::Arc;

/// All of them.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(super) config: Callers,
    rules: Vec<(Whom, Arc<Grant>)>,
}

/// What one rule gives.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    pub(crate) reach: Reach,
}

/// Whom a rule names.
#[derive(Debug)]
enum Whom {
    User(u32),
    Group(u32),
    Uri(Pattern),
    Dns(Pattern),
    CommonName(Pattern),
}

impl Policy {
    /// A config that was checked. A rule for somebody who is not there gives nothing, and the log says so.
    pub(crate) fn of(config: &Callers) -> Self {
        let mut rules = Vec::new();
        for rule in &config.rules {
            let (Some((key, name)), Ok(reach)) = (rule.whom(), Reach::of(&rule.only)) else { continue };
            match Whom::of(key, name) {
                Some(whom) => rules.push((whom, Arc::new(Grant { role: rule.role, reach }))),
                None => tracing::warn!(
                    "there is no {key} {name}: its rule in [callers] gives nobody the role {}",
                    rule.role.as_str()
                ),
            }
        }
        Self { config: config.clone(), rules }
    }

    /// What he is given, by all rules that name him.
    pub(crate) fn grants(&self, peer: &Peer) -> Vec<Arc<Grant>> {
        self.rules.iter().filter(|(whom, _)| whom.is(peer)).map(|(_, grant)| Arc::clone(grant)).collect()
    }

    /// How somebody comes by a role, for an error text.
    pub(super) fn way_to(&self, role: Role, peer: &Peer) -> String {
        if matches!(peer, Peer::Certified(_)) {
            return "have the certificate named by a rule in [callers] of the agent's config".into();
        }
        let groups = self.config.rules.iter().filter(|rule| rule.role >= role && rule.only.is_empty());
        match groups.filter_map(|rule| rule.group.as_deref()).next_back() {
            Some(group) => format!(
                "join the group {group} (usermod -aG {group} USER), or be named by a rule in [callers] of the config"
            ),
            None => "be named by a rule in [callers] of the config".into(),
        }
    }
}

impl Whom {
    fn of(key: &str, name: &str) -> Option<Self> {
        let number = name.parse().ok();
        match key {
            "user" => number.or_else(|| Some(User::from_name(name).ok()??.uid.as_raw())).map(Self::User),
            "group" => number.or_else(|| Some(Group::from_name(name).ok()??.gid.as_raw())).map(Self::Group),
            "uri" => Some(Self::Uri(Pattern::new(name))),
            "dns" => Some(Self::Dns(Pattern::new(&name.to_ascii_lowercase()))),
            "common_name" => Some(Self::CommonName(Pattern::new(name))),
            _ => None,
        }
    }

    fn is(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::User(user), Peer::Local(peer)) => peer.user == *user,
            (Self::Group(group), Peer::Local(peer)) => peer.groups.contains(group),
            (Self::Uri(pattern), Peer::Certified(caller)) => caller.names.uris.iter().any(|uri| pattern.fits(uri)),
            (Self::Dns(pattern), Peer::Certified(caller)) => caller.names.dns.iter().any(|name| pattern.fits(name)),
            (Self::CommonName(pattern), Peer::Certified(caller)) => {
                caller.names.common_name.as_ref().is_some_and(|name| pattern.fits(name))
            }
            (_, Peer::Local(_) | Peer::Certified(_) | Peer::Unknown) => false,
        }
    }
}
