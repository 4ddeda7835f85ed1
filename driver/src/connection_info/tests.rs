use super::*;
use proptest::prelude::*;
use serde_json::json;

const IQN: &str = "iqn.2010-10.org.openstack:volume-af767c74";
const KEY: &str = "AQBvaBVgAAAAABAAnm5LmZdPAyXSEJBPVcXfRg==";

fn secret(info: &Value) -> SecretString {
    info.to_string().into()
}

fn asked(info: &Value) -> Requested {
    read(&secret(info)).unwrap_or_else(|error| panic!("{info}: {error}"))
}

/// What the agent says to it.
fn said(info: &Value) -> String {
    read(&secret(info)).unwrap_err().to_string()
}

/// With these keys instead of, or beside, those of a plain iSCSI volume.
fn iscsi(keys: Value) -> Value {
    let mut data = json!({"target_portal": "10.0.0.5:3260", "target_iqn": IQN, "target_lun": 1});
    let (Value::Object(known), Value::Object(keys)) = (&mut data, keys) else { unreachable!() };
    known.extend(keys);
    json!({"driver_volume_type": "iscsi", "data": data})
}

fn rbd(keys: Value) -> Value {
    let mut data = json!({"name": "volumes/volume-1"});
    let (Value::Object(known), Value::Object(keys)) = (&mut data, keys) else { unreachable!() };
    known.extend(keys);
    json!({"driver_volume_type": "rbd", "data": data})
}

/// All that Cinder's LVM driver with LIO gives (`cinder/volume/targets/iscsi.py`), with what its manager and Nova add.
#[test]
fn a_whole_one_of_cinder() {
    let data = json!({
        "target_discovered": false, "target_portal": "10.0.0.5:3260", "target_iqn": IQN, "target_lun": 0,
        "volume_id": "af767c74-0000-4000-8000-000000000000", "auth_method": "CHAP", "auth_username": "u",
        "auth_password": "p", "discovery_auth_method": "CHAP", "discovery_auth_username": "d",
        "discovery_auth_password": "d", "encrypted": false, "qos_specs": {"total_iops_sec": "100"}, "access_mode": "ro",
        "cacheable": false, "discard": true, "physical_block_size": "4096", "logical_block_size": "512",
        "enforce_multipath": true, "device_path": "/dev/sdq", "multipath_id": "360", "wwn": null,
    });
    let mut flat = data.clone();
    flat["driver_volume_type"] = "iscsi".into();
    let envelope = json!({
        "driver_volume_type": "iscsi", "data": data, "serial": "af767c74", "multiattach": false, "status": "reserved",
    });
    for info in [
        envelope.clone(),
        flat.clone(),
        json!({"connection_info": envelope}),
        json!({"attachment": {"id": "1", "connection_info": flat}}),
    ] {
        let Requested { locator, read_only, expected_wwn, access } = asked(&info);
        assert_eq!(locator.to_string(), format!("iscsi://10.0.0.5:3260/{IQN}/0"));
        assert!(read_only && expected_wwn.is_none() && access.cephx.is_none());
        let chap = access.chap.unwrap();
        assert_eq!((chap.user.as_str(), chap.password.expose_secret()), ("u", "p"));
        assert_eq!(super::locator(&secret(&info)).unwrap(), locator);
    }
}

#[test]
fn iscsi_units() {
    let other = "iqn.2010-10.org.openstack:other";
    for (keys, locator) in [
        (json!({"target_lun": "1"}), format!("10.0.0.5:3260/{IQN}/1")),
        (json!({"target_portal": "[FE80:0::A]:3260"}), format!("[fe80::a]:3260/{IQN}/1")),
        (json!({"target_portal": "[0:0:0:0:0:0:0:1]"}), format!("[::1]:3260/{IQN}/1")),
        (
            json!({"target_portals": ["10.0.0.5:3260", "10.0.1.5:3260"], "target_iqns": [IQN, IQN], "target_luns": [1, "1"]}),
            format!("10.0.0.5:3260,10.0.1.5:3260/{IQN}/1"),
        ),
        (
            json!({"target_portals": ["10.0.0.5", "10.0.1.5"], "target_iqns": [IQN, other], "target_luns": [1, 7]}),
            format!("10.0.0.5:3260/{IQN}/1,10.0.1.5:3260/{other}/7"),
        ),
        // Cinder leaves the units out where they are all the same.
        (
            json!({"target_portals": ["10.0.0.5", "10.0.1.5"], "target_iqns": [IQN, other], "target_luns": []}),
            format!("10.0.0.5:3260/{IQN}/1,10.0.1.5:3260/{other}/1"),
        ),
        (json!({"target_portals": ["10.0.0.5"], "target_iqns": [IQN]}), format!("10.0.0.5:3260/{IQN}/1")),
        (json!({"target_portals": [], "target_iqns": null}), format!("10.0.0.5:3260/{IQN}/1")),
    ] {
        assert_eq!(asked(&iscsi(keys)).locator.to_string(), format!("iscsi://{locator}"));
    }
}

/// As os-brick's `lun_for_addressing`.
#[test]
fn addressing_modes() {
    for (mode, lun, kernel) in [
        (json!(null), 256, 256),
        (json!("SAM"), 256, 256),
        (json!("transparent"), 16640, 16640),
        (json!("SAM2"), 255, 255),
        (json!("SAM2"), 256, 16640),
        (json!("SAM3-flat"), 1, 16385),
        (json!("SAM3-flat"), 256, 16640),
    ] {
        let info = iscsi(json!({"addressing_mode": mode, "target_lun": lun}));
        assert_eq!(asked(&info).locator.to_string(), format!("iscsi://10.0.0.5:3260/{IQN}/{kernel}"));
    }
    assert!(said(&iscsi(json!({"addressing_mode": "SAM9"}))).starts_with("addressing_mode: \"SAM9\": expected SAM"));
    let beyond = said(&iscsi(json!({"addressing_mode": "SAM3-flat", "target_lun": 16384})));
    assert_eq!(beyond, "target_lun: 16384: expected 0 to 16383");
}

#[test]
fn the_wwn_is_expected() {
    let wwn = |keys| asked(&iscsi(keys)).expected_wwn.map(|wwn| wwn.to_string());
    let digits = "6001405abcdef0123456789abcdef012";
    assert_eq!(wwn(json!({"wwn": digits})), Some(format!("3{digits}")));
    assert_eq!(
        wwn(json!({"scsi_wwn": format!("3{digits}"), "wwn": format!("naa.{digits}")})),
        Some(format!("3{digits}"))
    );
    assert_eq!(wwn(json!({"scsi_wwn": ""})), None);
    assert!(
        said(&iscsi(json!({"wwn": digits, "scsi_wwn": "36001405000000000000000000000000a"}))).starts_with("scsi_wwn")
    );
}

#[test]
fn rbd_images() {
    for (keys, locator) in [
        (json!({}), "rbd:volumes/volume-1"),
        (json!({"name": "volumes/ns/volume-1"}), "rbd:volumes/ns/volume-1"),
        (json!({"name": "volumes/volume-1@s"}), "rbd:volumes/volume-1@s"),
        (
            json!({
                "hosts": ["10.0.0.7", "10.0.0.6"], "ports": ["6789", 3300], "cluster_name": "ceph", "auth_enabled": true,
                "auth_username": "cinder", "secret_type": "ceph", "secret_uuid": "u", "discard": true,
                "do_local_attach": true, "volume_id": "1",
            }),
            "rbd:volumes/volume-1?user=cinder&mon=10.0.0.6:3300,10.0.0.7:6789",
        ),
        (
            json!({"hosts": ["FE80::A", "[fe80:0::b]"], "ports": [6789, 6789], "cluster_name": "two"}),
            "rbd:volumes/volume-1?cluster=two&mon=[fe80::a]:6789,[fe80::b]:6789",
        ),
        (json!({"hosts": [], "ports": [], "auth_username": null}), "rbd:volumes/volume-1"),
    ] {
        assert_eq!(asked(&rbd(keys)).locator.to_string(), locator);
    }
    let keyring = format!("[client.cinder]\n\tkey = {KEY}\n");
    let access = asked(&rbd(json!({"keyring": keyring, "auth_username": "cinder"}))).access;
    assert_eq!(access.cephx.unwrap().expose_secret(), KEY);
    let access = asked(&rbd(json!({"keyring": KEY, "auth_username": "client.cinder"}))).access;
    assert_eq!(access.cephx.unwrap().expose_secret(), KEY);
}

#[test]
fn local_paths() {
    let local = |path: &str| json!({"driver_volume_type": "local", "data": {"device_path": path}});
    for (path, locator) in [
        ("/dev/vg0/lv", "lvm:vg0/lv"),
        ("/dev/mapper/my--vg-volume--1", "lvm:my-vg/volume-1"),
        ("/dev/mapper/a---b", "lvm:a-/b"),
        ("/srv/volumes/a.raw", "file:/srv/volumes/a.raw"),
    ] {
        assert_eq!(asked(&local(path)).locator.to_string(), locator);
    }
    for path in [
        "/dev/sdb",
        "/dev/",
        "/dev/disk/by-id/x",
        "/dev/disk/x",
        "/dev/rbd/pool/image",
        "/dev/mapper/mpatha",
        "/dev/mapper/vg-lv-real",
        "/dev/mapper/-lv",
        "/dev/vg/../x",
        "/dev/vg/a/b",
        "relative",
        "/srv/../x",
        "/",
    ] {
        assert!(said(&local(path)).starts_with(&format!("device_path: {path:?}: expected /dev/VG/LV")), "{path}");
    }
}

#[test]
fn refused() {
    for (info, sentence) in [
        (json!([]), "connection_info: expected a JSON object"),
        (json!({}), "driver_volume_type: expected iscsi, rbd or local"),
        (json!({"driver_volume_type": 1}), "driver_volume_type: expected a string"),
        (
            json!({"driver_volume_type": "nvmeof", "data": {}}),
            "driver_volume_type \"nvmeof\" is not known to this build; iscsi, rbd and local are",
        ),
        (json!({"driver_volume_type": "iscsi", "data": []}), "data: expected an object"),
        (json!({"driver_volume_type": "iscsi", "data": {}}), "target_portal: it is missing, and so is target_portals"),
        (iscsi(json!({"target_lun": null})), "target_lun: it is missing, and so is target_luns"),
        (iscsi(json!({"target_lun": -1})), "target_lun: expected a number, or one as a string"),
        (iscsi(json!({"target_lun": "1 "})), "target_lun: expected a number, or one as a string"),
        (iscsi(json!({"target_lun": ""})), "target_lun: expected a number, or one as a string"),
        (iscsi(json!({"target_lun": 1.5})), "target_lun: expected a number, or one as a string"),
        (iscsi(json!({"target_lun": true})), "target_lun: expected a number, or one as a string"),
        (iscsi(json!({"target_iqn": 5})), "target_iqn: expected strings"),
        (iscsi(json!({"target_portals": "10.0.0.5"})), "target_portals: expected a list"),
        (
            iscsi(json!({"target_portals": ["10.0.0.5", "10.0.0.6"], "target_iqns": [IQN]})),
            "target_iqns: it has 1, expected one for each portal, which are 2",
        ),
        (iscsi(json!({"target_luns": [1, 2]})), "target_luns: it has 2, expected one for each portal, which are 1"),
        (
            iscsi(json!({"target_portal": "host:3260"})),
            "target_portal: \"host:3260\": it is no IP address; write ADDRESS[:PORT] or [IPV6][:PORT]",
        ),
        (iscsi(json!({"access_mode": "rx"})), "access_mode: \"rx\": expected rw or ro"),
        (iscsi(json!({"encrypted": "yes"})), "encrypted: expected true or false"),
        (iscsi(json!({"auth_method": "CHAP"})), "auth_username: expected a string"),
        (iscsi(json!({"auth_method": "CHAP", "auth_username": "u"})), "auth_password: expected a string"),
        (iscsi(json!({"auth_method": "KRB5"})), "auth_method \"KRB5\" is not known to this build; CHAP is"),
        (rbd(json!({"name": "image"})), "name: \"image\": expected POOL/IMAGE or POOL/NAMESPACE/IMAGE"),
        (rbd(json!({"hosts": ["10.0.0.5"]})), "ports: it has 0, expected one for each of hosts, which are 1"),
        (rbd(json!({"hosts": ["10.0.0.5"], "ports": [0]})), "ports: expected numbers from 1 to 65535"),
        (rbd(json!({"keyring": "hush"})), "keyring: it is neither a key (base64) nor a keyring with `key = …` in it"),
        (json!({"driver_volume_type": "local"}), "device_path: expected a string"),
    ] {
        assert_eq!(said(&info), sentence);
    }
    let luks = read(&secret(&iscsi(json!({"encrypted": true})))).unwrap_err();
    assert!(matches!(&luks, Error::Unsupported { what } if what.contains("LUKS is not there yet")), "{luks}");
    assert!(said(&rbd(json!({"name": "a/b/c/d"}))).starts_with("name: "));
    // What would be options of a locator is none here.
    assert!(said(&rbd(json!({"name": "a/b?mon=10.0.0.5"}))).starts_with("name: "));
}

/// A detach does not need what only an attach does, and Cinder may not tell it twice.
#[test]
fn a_detach_needs_no_password() {
    let info = iscsi(json!({"auth_method": "CHAP", "auth_username": "u", "auth_password": null}));
    assert!(read(&secret(&info)).is_err());
    assert_eq!(locator(&secret(&info)).unwrap().to_string(), format!("iscsi://10.0.0.5:3260/{IQN}/1"));
}

#[test]
fn what_is_no_json_or_too_much_of_it() {
    let deep = "[".repeat(30_000);
    let long = format!("\"{}\"", "x".repeat(LONGEST));
    for (text, says) in [
        ("", "connection_info: not JSON: "),
        ("{'a': None}", "connection_info: not JSON: "),
        (&deep, "connection_info: not JSON: recursion limit exceeded"),
        (&long, "connection_info: it has 65538 bytes, at most 65536 are read"),
    ] {
        let error = read(&text.into()).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
    }
}

/// Any JSON value, with the words that we look for in it.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        proptest::sample::select(vec!["iscsi", "rbd", "local", IQN, "10.0.0.5", "[::1]:1", "a/b", "/dev/a/b", "CHAP"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| prop_oneof![proptest::collection::vec(inner, 0..4).prop_map(Value::from)])
}

const KEYS: [&str; 27] = [
    "driver_volume_type",
    "data",
    "connection_info",
    "attachment",
    "target_portal",
    "target_portals",
    "target_iqn",
    "target_iqns",
    "target_lun",
    "target_luns",
    "auth_method",
    "auth_username",
    "addressing_mode",
    "access_mode",
    "encrypted",
    "wwn",
    "scsi_wwn",
    "name",
    "hosts",
    "ports",
    "cluster_name",
    "auth_enabled",
    "device_path",
    "qos_specs",
    "keyring",
    "auth_password",
    "volume_id",
];

proptest! {
    #[test]
    fn no_json_panics(
        kind in proptest::sample::select(vec!["iscsi", "rbd", "local"]),
        keys in proptest::collection::btree_map(proptest::sample::select(KEYS.to_vec()), any_json(), 0..12),
        flat in any::<bool>(),
    ) {
        let mut data: Map<String, Value> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let info = if flat {
            data.insert(TYPE.into(), kind.into());
            Value::Object(data)
        } else {
            json!({TYPE: kind, "data": data})
        };
        let (_, _) = (read(&secret(&info)), locator(&secret(&info)));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = read(&text.into());
    }

    /// Whatever else is wrong, what is secret is not told.
    #[test]
    fn no_error_tells_a_secret(
        keys in proptest::collection::btree_map(proptest::sample::select(KEYS[..24].to_vec()), any_json(), 0..6),
        kind in proptest::sample::select(vec!["iscsi", "rbd"]),
        wrapped in any::<bool>(),
    ) {
        let mut data: Map<String, Value> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        for key in ["auth_password", "discovery_auth_password", "keyring"] {
            let hush = if wrapped { json!(["hush-7f3a"]) } else { json!("hush-7f3a") };
            data.insert(key.into(), hush);
        }
        data.insert(TYPE.into(), kind.into());
        match read(&secret(&Value::Object(data))) {
            Ok(requested) => {
                let shown = format!("{requested:?}");
                prop_assert!(!shown.contains("hush"), "{}", shown);
            }
            Err(error) => prop_assert!(!error.chain().contains("hush"), "{}", error.chain()),
        }
    }
}
