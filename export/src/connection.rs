//! What the other host needs to attach an export, in the form that Cinder and os-brick hand around.

use crate::Export;
use driver::Chap;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// The `connection_info` of an iSCSI volume. It holds the password.
pub fn connection_info(export: &Export, chap: &Chap) -> Value {
    let portals: Vec<String> = export.portals.iter().map(ToString::to_string).collect();
    let target = export.target.as_str();
    let mut data = json!({
        "target_discovered": false,
        "target_portal": portals.first(),
        "target_iqn": target,
        "target_lun": 0,
        "auth_method": "CHAP",
        "auth_username": chap.user,
        "auth_password": chap.password.expose_secret(),
        "access_mode": if export.read_only { "ro" } else { "rw" },
        "encrypted": false,
        "discard": true,
    });
    if portals.len() > 1 {
        data["target_iqns"] = json!(vec![target; portals.len()]);
        data["target_luns"] = json!(vec![0; portals.len()]);
        data["target_portals"] = json!(portals);
    }
    json!({ "driver_volume_type": "iscsi", "data": data })
}
