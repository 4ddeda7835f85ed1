//! Exports on the simulated machine: whole, again, half, crashed anywhere, and in use.

use super::*;
use driver::Identity;
use host::{LoopSetup, sim::Machine};
use secrecy::ExposeSecret;

const KEY: &str = "/var/lib/mortar/export.key";
const INITIATOR: &str = "iqn.2026-11.org.example:other";
const LIO: &str = "/sys/kernel/config/target";

fn exporter(machine: &Machine) -> Exporter {
    let config = ExportConfig { configfs: "/sys/kernel/config".into(), key: KEY.into() };
    Exporter::new(Arc::new(machine.clone()), config)
}

fn export(id: &str) -> Export {
    let id: ExportId = id.parse().unwrap();
    Export {
        target: target_name(Some(&"iqn.2026-11.org.example:host".parse().unwrap()), "host", &id).unwrap(),
        id,
        initiator: INITIATOR.parse().unwrap(),
        portals: vec!["10.0.0.1:3260".parse().unwrap(), "[fd00::1]:3260".parse().unwrap()],
        read_only: false,
        serial: Serial::of(&Identity::File { device: 1, inode: 2 }),
        generation: Uuid::from_u128(7),
    }
}

/// A machine with a device, and the host's key.
async fn machine() -> Machine {
    let machine = Machine::new();
    for (name, loop_device) in [("a", "loop0"), ("b", "loop1")] {
        let file = format!("/srv/{name}.raw");
        machine.put_raw(&file, 1 << 20);
        let setup = LoopSetup { file: file.into(), read_only: false, label: "x".into() };
        machine.loop_attach(&setup).await.unwrap();
        machine.put_file(format!("/sys/block/{loop_device}/queue/discard_max_bytes"), "4294966784\n");
    }
    exporter(&machine).chap(&export("first")).await.unwrap();
    machine.make_directory(Path::new("/sys/kernel/config/target/iscsi")).await.unwrap();
    machine
}

fn device() -> &'static Path {
    Path::new("/dev/loop0")
}

async fn login(machine: &Machine, export: &Export, chap: &Chap) -> std::result::Result<(), &'static str> {
    let given = (chap.user.as_str(), chap.password.expose_secret());
    machine.initiator_login(export.target.as_str(), "10.0.0.1:3260", export.initiator.as_str(), given, "10.0.0.2")
}

#[tokio::test]
async fn it_is_served_to_its_initiator_and_gone_again() {
    let machine = machine().await;
    let (exporter, export) = (exporter(&machine), export("a"));
    let before = machine.snapshot();
    assert_eq!(exporter.state(&export).unwrap(), State::Absent);
    exporter.serve(&export, device()).await.unwrap();
    assert_eq!(exporter.state(&export).unwrap(), State::Served);
    let chap = exporter.chap(&export).await.unwrap();
    assert_eq!((chap.user.as_str(), chap.password.expose_secret().len()), ("mortar-a", 32));
    let read = |path: &str| machine.read(&Path::new(LIO).join(path)).unwrap().unwrap();
    assert_eq!(read("core/iblock_3260/mortar-a/attrib/emulate_tpu"), "1");
    assert!(read("core/iblock_3260/mortar-a/wwn/vpd_unit_serial").ends_with(export.serial.as_str()));
    let group = "iscsi/iqn.2026-11.org.example:host:export-a/tpgt_1";
    assert_eq!(read(&format!("{group}/attrib/demo_mode_discovery")), "0");

    let after = (machine.snapshot(), machine.effects().len());
    exporter.serve(&export, device()).await.unwrap();
    assert_eq!((machine.snapshot(), machine.effects().len()), after, "the second time changed something");

    login(&machine, &export, &chap).await.unwrap();
    for _ in 0..2 {
        let error = exporter.withdraw(&export).await.unwrap_err();
        assert_eq!(error.to_string(), format!("export a is in use: {INITIATOR} at 10.0.0.2"));
    }
    assert_eq!(exporter.state(&export).unwrap(), State::Served);
    machine.initiator_logout(export.target.as_str(), INITIATOR);
    for _ in 0..2 {
        exporter.withdraw(&export).await.unwrap();
        assert_eq!(machine.snapshot(), before);
    }
    assert_eq!(exporter.state(&export).unwrap(), State::Absent);
}

#[tokio::test]
async fn who_comes_in_at_the_last_moment_keeps_it() {
    let machine = machine().await;
    let (exporter, export) = (exporter(&machine), export("a"));
    exporter.serve(&export, device()).await.unwrap();
    let chap = exporter.chap(&export).await.unwrap();
    let before = machine.snapshot();
    let (target, password) = (export.target.clone(), chap.password.expose_secret().to_owned());
    machine.before_next("remove /sys/kernel/config/target/iscsi", move |machine| {
        let given = ("mortar-a", password.as_str());
        machine.initiator_login(target.as_str(), "10.0.0.1:3260", INITIATOR, given, "10.0.0.2").unwrap();
    });
    assert!(matches!(exporter.withdraw(&export).await, Err(Error::InUse { .. })));
    assert_eq!(exporter.state(&export).unwrap(), State::Served);
    machine.initiator_logout(export.target.as_str(), INITIATOR);
    assert_eq!(machine.snapshot(), before);
}

/// Calls one verb until the process dies after effect `at`; `false` if it came to its end first.
async fn crash(machine: &Machine, at: usize, withdraw: bool) -> bool {
    machine.crash_after(at);
    let exporter = exporter(machine);
    let export = export("a");
    let work = async {
        match withdraw {
            true => exporter.withdraw(&export).await.unwrap(),
            false => exporter.serve(&export, device()).await.unwrap(),
        }
    };
    tokio::select! {
        () = machine.crashed() => true,
        () = work => false,
    }
}

#[tokio::test]
async fn a_crash_after_any_effect_is_finished_or_undone() {
    for (withdraw, undo) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut points = 0;
        for at in 1.. {
            let mut machine = machine().await;
            let bare = machine.snapshot();
            exporter(&machine).serve(&export("a"), device()).await.unwrap();
            let served = machine.snapshot();
            if !withdraw {
                exporter(&machine).withdraw(&export("a")).await.unwrap();
            }
            let crashed = crash(&machine, at, withdraw).await;
            machine.restart();
            let exporter = exporter(&machine);
            let served_then = withdraw == undo;
            match served_then {
                true => exporter.serve(&export("a"), device()).await.unwrap(),
                false => exporter.withdraw(&export("a")).await.unwrap(),
            }
            let expected = if served_then { &served } else { &bare };
            assert_eq!(&machine.snapshot(), expected, "withdraw {withdraw}, undo {undo}, crash after effect {at}");
            if !crashed {
                break;
            }
            points += 1;
        }
        assert!(points > 10, "{points} crash points are too few to be true");
    }
}

#[tokio::test]
async fn exports_beside_each_other_share_only_the_hba() {
    let machine = machine().await;
    let exporter = exporter(&machine);
    let before = machine.snapshot();
    let (first, second) = (export("a"), export("b"));
    exporter.serve(&first, device()).await.unwrap();
    let error = exporter.serve(&second, device()).await.unwrap_err();
    assert_eq!(error.to_string(), "/dev/loop0 is in use: exported by LIO as iblock_3260/mortar-a");
    exporter.withdraw(&second).await.unwrap();
    exporter.serve(&second, Path::new("/dev/loop1")).await.unwrap();
    let error = exporter.serve(&first, Path::new("/dev/loop1")).await.unwrap_err();
    assert_eq!(error.to_string(), "the device that export a serves is /dev/loop0, expected /dev/loop1");
    exporter.withdraw(&first).await.unwrap();
    assert_eq!(exporter.state(&second).unwrap(), State::Served);

    // Somebody serves our backstore by a target of their own.
    let theirs = format!("{LIO}/iscsi/iqn.2026-11.org.example:theirs");
    for directory in ["", "/tpgt_1", "/tpgt_1/lun/lun_5"] {
        machine.make_directory(Path::new(&format!("{theirs}{directory}"))).await.unwrap();
    }
    let link = format!("{theirs}/tpgt_1/lun/lun_5/x");
    machine.symlink(Path::new(&link), Path::new(&format!("{LIO}/core/iblock_3260/mortar-b"))).await.unwrap();
    let error = exporter.withdraw(&second).await.unwrap_err();
    assert_eq!(error.to_string(), format!("export b is in use: served as {link}"));
    assert_eq!(exporter.state(&second).unwrap(), State::Served);
    for path in [link, format!("{theirs}/tpgt_1/lun/lun_5"), format!("{theirs}/tpgt_1"), theirs] {
        machine.remove(Path::new(&path)).await.unwrap();
    }
    exporter.withdraw(&second).await.unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[tokio::test]
async fn the_secret_is_the_same_for_the_same_export_and_for_no_other() {
    let machine = machine().await;
    let export = export("a");
    let secret = async |export: &Export| {
        let chap = exporter(&machine).chap(export).await.unwrap();
        chap.password.expose_secret().to_owned()
    };
    let first = secret(&export).await;
    assert_eq!(secret(&export).await, first);
    let other = [
        Export { id: "b".parse().unwrap(), ..export.clone() },
        Export { target: "iqn.2026-11.org.example:x".parse().unwrap(), ..export.clone() },
        Export { initiator: "iqn.2026-11.org.example:x".parse().unwrap(), ..export.clone() },
        Export { generation: Uuid::from_u128(8), ..export.clone() },
    ];
    for other in other {
        assert_ne!(secret(&other).await, first, "{other:?}");
    }
    assert_eq!(secret(&Export { portals: Vec::new(), ..export.clone() }).await, first);
    assert!(machine.snapshot().contains(&format!("{KEY} 600 64 bytes")), "{}", machine.snapshot());
    machine.remove_tree(KEY);
    assert_ne!(secret(&export).await, first);
    machine.put_file(KEY, "short");
    assert!(matches!(exporter(&machine).chap(&export).await, Err(Error::WrongState { .. })));
}

#[tokio::test]
async fn a_host_without_the_module_says_so() {
    let machine = machine().await;
    machine.unload_target();
    let error = exporter(&machine).serve(&export("a"), device()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().ends_with("run modprobe target_core_mod"), "{error}");
    exporter(&machine).withdraw(&export("a")).await.unwrap();
}

#[tokio::test]
async fn connection_info_is_cinders() {
    let machine = machine().await;
    let mut export = export("a");
    let chap = exporter(&machine).chap(&export).await.unwrap();
    let info = connection_info(&export, &chap);
    assert_eq!(info["driver_volume_type"], "iscsi");
    assert_eq!(info["data"]["target_portal"], "10.0.0.1:3260");
    assert_eq!(info["data"]["target_portals"][1], "[fd00::1]:3260");
    assert_eq!(info["data"]["target_iqns"][1], "iqn.2026-11.org.example:host:export-a");
    assert_eq!(info["data"]["auth_password"], chap.password.expose_secret());
    export.portals.truncate(1);
    assert!(connection_info(&export, &chap)["data"].get("target_portals").is_none());
}
