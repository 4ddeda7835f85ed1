//! Who may call, and what: the section `[callers]`.

use super::ConfigError;
use crate::callers::Reach;
use serde::{Deserialize, Serialize};

/// Who may call, and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Callers {
    /// Who may ask for the agent's health.
    pub health: Need,
    /// Who may ask for the proto (gRPC reflection).
    pub reflection: Need,
    /// Each gives a role; what several of them give to one caller adds up. Whom none names may do nothing.
    pub rules: Vec<CallerRule>,
}

impl Default for Callers {
    fn default() -> Self {
        let group = |group: &str, role| CallerRule { group: Some(group.into()), ..CallerRule::giving(role) };
        Self {
            health: Need::Viewer,
            reflection: Need::Viewer,
            rules: vec![
                CallerRule { user: Some("root".into()), ..CallerRule::giving(Role::Admin) },
                group("mortar-admin", Role::Admin),
                group("mortar", Role::Viewer),
            ],
        }
    }
}

/// Gives a role to those whom it names, by one of its first five keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerRule {
    /// On the socket: a user of this host, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// On the socket: a group of this host, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// By TLS: a URI in the certificate's subjectAltName; `*` stands for any characters. So in the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// By TLS: a DNS name in the certificate's subjectAltName.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// By TLS: the common name in the certificate's subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// What they may do.
    pub role: Role,
    /// To what: `lvm:VG`, `rbd:POOL[/NAMESPACE][?cluster=NAME]`, `iscsi:IQN`, `file:/DIRECTORY` and what is below it, `instance:NAME`; `*`
    /// stands for any characters. Empty: to everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
}

impl CallerRule {
    /// Names nobody yet.
    pub fn giving(role: Role) -> Self {
        Self { user: None, group: None, uri: None, dns: None, common_name: None, role, only: Vec::new() }
    }

    /// The key and value by which it names its callers.
    pub(crate) fn whom(&self) -> Option<(&'static str, &str)> {
        let keys = [
            ("user", &self.user),
            ("group", &self.group),
            ("uri", &self.uri),
            ("dns", &self.dns),
            ("common_name", &self.common_name),
        ];
        let mut given = keys.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        given.next().filter(|_| given.next().is_none())
    }
}

/// What a caller may do, from little to much; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Attaches and detaches.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// As in the config.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// What somebody has to be for something that the config opens or closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Anybody who can connect.
    Anyone,
    /// At least [`Role::Viewer`].
    Viewer,
    /// At least [`Role::Operator`].
    Operator,
    /// [`Role::Admin`]
    Admin,
}

impl Need {
    /// `None`: no role at all.
    pub(crate) fn role(self) -> Option<Role> {
        match self {
            Self::Anyone => None,
            Self::Viewer => Some(Role::Viewer),
            Self::Operator => Some(Role::Operator),
            Self::Admin => Some(Role::Admin),
        }
    }
}

impl Callers {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for rule in &self.rules {
            let value = |key, why: String| Err(ConfigError::Value { key, why });
            match rule.whom() {
                None => {
                    let why = "write exactly one of user, group, uri, dns and common_name in each".into();
                    return value("callers.rules", why);
                }
                Some((key, "")) => return value("callers.rules", format!("{key} is empty")),
                // It would be a rule for all who have a certificate of the CA, and hardly meant as one.
                Some((key @ ("uri" | "dns" | "common_name"), names)) if names.bytes().all(|byte| byte == b'*') => {
                    return value("callers.rules", format!("{key} names everybody; write a part of the name"));
                }
                Some(_) => {}
            }
            if let Err(error) = Reach::of(&rule.only) {
                return value("callers.rules", error.to_string());
            }
        }
        Ok(())
    }
}
