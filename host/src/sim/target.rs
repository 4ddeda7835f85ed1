//! The target side of the simulated machine: LIO as configfs shows it, `/sys/kernel/config/target`.
//!
//! A directory that is made there comes with its attributes and its default groups, which cannot be removed by themselves;
//! one that something is linked to stays. What is imitated was seen with Linux 6.1. Where that kernel crashes, so does the
//! test.

use super::{Machine, World};
use crate::{Error, Result, User};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/kernel/config/target";

/// What configfs does not show of itself.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    /// The directories that somebody made, which are those that can be removed.
    made: BTreeSet<PathBuf>,
}

/// Others on the network, who use what this machine exports.
impl Machine {
    /// An initiator at an address comes to a target. What it is told if it may not. The kernel lower-cases the name that it is
    /// sent, and takes the access lists' names as they are.
    pub fn initiator_login(
        &self,
        target: &str,
        portal: &str,
        initiator: &str,
        chap: (&str, &str),
        address: &str,
    ) -> std::result::Result<(), &'static str> {
        let initiator = &initiator.to_ascii_lowercase();
        self.with(|world| {
            let group = format!("{ROOT}/iscsi/{target}/tpgt_1");
            let acl = format!("{group}/acls/{initiator}");
            let text = |path: String| world.files.text(path).unwrap_or_default();
            if world.files.stat(format!("{group}/np/{portal}")).is_none() || text(format!("{group}/enable")) != "1" {
                return Err("nobody listens");
            }
            let given = (text(format!("{acl}/auth/userid")), text(format!("{acl}/auth/password")));
            if world.files.stat(&acl).is_none() || given != (chap.0.to_owned(), chap.1.to_owned()) {
                return Err("authorization failure");
            }
            if world.files.resolve(format!("{acl}/lun_0/lun_0")).is_none() {
                return Err("no LUN");
            }
            world.files.put(format!("{acl}/info"), session(initiator, address));
            Ok(())
        })
    }

    /// An initiator logs out, or is gone.
    pub fn initiator_logout(&self, target: &str, initiator: &str) {
        let initiator = &initiator.to_ascii_lowercase();
        self.with(|world| {
            world.files.put(format!("{ROOT}/iscsi/{target}/tpgt_1/acls/{initiator}/info"), no_session(initiator));
        });
    }

    /// The kernel has no target: its module is not loaded.
    pub fn unload_target(&self) {
        self.with(|world| world.files.take_tree(ROOT));
    }
}

fn no_session(initiator: &str) -> String {
    format!("No active iSCSI Session for Initiator Endpoint: {initiator}\n")
}

fn session(initiator: &str, address: &str) -> String {
    format!(
        "InitiatorName: {initiator}\nInitiatorAlias: other\n\
         LIO Session ID: 1   ISID: 0x00 02 3d 00 00 03  TSIH: 3  SessionType: Normal\n\
         Session State: TARG_SESS_STATE_LOGGED_IN\n\
         ---------------------[iSCSI Session Values]-----------------------\n\
         ----------------------[iSCSI Connections]-------------------------\n\
         CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN\n   Address {address} TCP  StatSN: 0xa3671502\n"
    )
}

/// The machine was turned on: `/sys` is empty. The module is loaded, nothing is served.
pub(crate) fn boot(world: &mut World) {
    world.target = Targets::default();
    world.files.make_directory(format!("{ROOT}/core/alua"));
    world.files.put(format!("{ROOT}/version"), "Target Engine Core ConfigFS Infrastructure v5.0\n");
}

/// Whether a path is in configfs.
pub(crate) fn is_ours(path: &Path) -> bool {
    path.starts_with(ROOT)
}

fn refused(doing: &'static str, path: &Path, errno: i32) -> Error {
    Error::io(doing, path)(io::Error::from_raw_os_error(errno))
}

/// What a directory is, by its place: `iscsi/IQN/tpgt_1` and so on.
fn parts(path: &Path) -> Vec<&str> {
    let below = path.strip_prefix(ROOT).unwrap_or(path);
    below.components().filter_map(|part| part.as_os_str().to_str()).collect()
}

fn number(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok())
}

/// Somebody makes a directory: what it comes with, files with their text.
pub(crate) fn make(world: &mut World, path: &Path) -> Result<()> {
    let auth = ["auth/userid", "auth/password", "auth/userid_mutual", "auth/password_mutual"].map(|name| (name, "\n"));
    let mut with: Vec<(&str, String)> = Vec::new();
    let mut put =
        |files: &[(&'static str, &str)]| with.extend(files.iter().map(|(name, text)| (*name, (*text).into())));
    match parts(path).as_slice() {
        ["iscsi"] => put(&[("lio_version", "Datera Inc. iSCSI Target v4.1.0\n"), ("discovery_auth/userid", "\n")]),
        ["core", hba] if number(hba, "iblock_") => put(&[("hba_info", "HBA Index: 1 plugin: iblock\n")]),
        ["core", _, _] => put(&[
            ("control", ""),
            ("enable", "0\n"),
            ("udev_path", "\n"),
            ("info", "Status: DEACTIVATED\n"),
            ("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: \n"),
            ("attrib/emulate_tpu", "0\n"),
            ("attrib/emulate_tpws", "0\n"),
            ("attrib/emulate_write_cache", "0\n"),
        ]),
        ["iscsi", _] => put(&[("param/AuthMethod", "CHAP\n")]),
        ["iscsi", _, group] if number(group, "tpgt_") => {
            put(&auth);
            put(&[
                ("enable", "0\n"),
                ("dynamic_sessions", ""),
                ("attrib/authentication", "1\n"),
                ("attrib/generate_node_acls", "0\n"),
                ("attrib/demo_mode_discovery", "1\n"),
                ("attrib/demo_mode_write_protect", "1\n"),
            ]);
        }
        ["iscsi", _, _, "lun", lun] if number(lun, "lun_") => put(&[("alua_tg_pt_gp", "")]),
        ["iscsi", _, _, "acls", initiator] => {
            put(&auth);
            with.push(("info", no_session(initiator)));
        }
        ["iscsi", _, _, "acls", _, lun] if number(lun, "lun_") => put(&[("write_protect", "0\n")]),
        ["iscsi", _, _, "np", portal] if portal.parse::<std::net::SocketAddr>().is_ok() => put(&[("iser", "0\n")]),
        _ => return Err(refused("make", path, libc::EPERM)),
    }
    world.files.make_directory(path);
    for (name, text) in with {
        world.files.put(path.join(name), text);
    }
    if let ["iscsi", _, _] = parts(path).as_slice() {
        for group in ["acls", "lun", "np"] {
            world.files.make_directory(path.join(group));
        }
    }
    world.target.made.insert(path.into());
    Ok(())
}

/// Somebody makes a link: a backstore becomes a LUN, a LUN is mapped for an initiator.
pub(crate) fn link(world: &mut World, name: &Path, to: &Path) -> Result<()> {
    let directory = name.parent().unwrap_or(name);
    let place = world.files.resolve(to).ok_or_else(|| refused("link", name, libc::ENOENT))?;
    let fits = match (parts(directory).as_slice(), parts(&place).as_slice()) {
        (["iscsi", _, _, "lun", _], ["core", _, _]) => world.files.text(place.join("enable")).as_deref() == Some("1"),
        (["iscsi", iqn, group, "acls", _, _], ["iscsi", other, same, "lun", _]) => {
            // A LUN that nothing stands behind cannot be mapped.
            (iqn, group) == (other, same) && !links_in(world, &place).is_empty()
        }
        _ => return Err(refused("link", name, libc::EPERM)),
    };
    if !fits {
        return Err(refused("link", name, libc::ENODEV));
    }
    if !links_in(world, directory).is_empty() {
        return Err(refused("link", name, libc::EEXIST));
    }
    world.files.link(name, place);
    Ok(())
}

fn links_in(world: &World, directory: &Path) -> Vec<PathBuf> {
    let all = world.files.list(directory).into_iter().map(|name| directory.join(name));
    all.filter(|path| world.files.stat(path).is_some_and(|stat| !stat.is_file && !stat.is_directory)).collect()
}

/// Whether this holds nothing that somebody made. A link holds nothing, wherever it leads.
pub(crate) fn is_empty(world: &World, path: &Path) -> bool {
    if world.files.stat(path).is_some_and(|stat| !stat.is_directory) {
        return true;
    }
    let below = |other: &PathBuf| other != path && other.starts_with(path);
    !world.target.made.iter().any(below) && links_in(world, path).is_empty()
}

/// Somebody removes a link or a directory that is empty.
pub(crate) fn remove(world: &mut World, path: &Path) -> Result<()> {
    if world.files.stat(path).is_some_and(|stat| !stat.is_directory) {
        world.files.take(path);
        return Ok(());
    }
    if !world.target.made.contains(path) {
        return Err(refused("remove", path, libc::EPERM));
    }
    let is_linked = world.files.under(Path::new(ROOT)).any(|(name, _)| {
        name.parent() != Some(path) && world.files.resolve(name).as_deref() == Some(path) && name != path
    });
    if is_linked {
        return Err(refused("remove", path, libc::EBUSY));
    }
    if let ["core", hba, store] = parts(path).as_slice() {
        let held = User::Export { by: "LIO", name: format!("{hba}/{store}") };
        for users in world.users.values_mut() {
            users.retain(|user| *user != held);
        }
        world.users.retain(|_, users| !users.is_empty());
    }
    world.target.made.remove(path);
    world.files.take_tree(path);
    Ok(())
}

/// Somebody writes an attribute; `None` if it is not ours.
pub(crate) fn written(world: &mut World, path: &Path, value: &str) -> Option<Result<()>> {
    if !is_ours(path) || world.files.file(path).is_none() {
        return is_ours(path).then(|| Err(refused("write", path, libc::ENOENT)));
    }
    let fail = |errno| Some(Err(refused("write", path, errno)));
    let enabled = |world: &World, store: &Path| world.files.text(store.join("enable")).as_deref() == Some("1");
    match parts(path).as_slice() {
        ["core", _, _, "control"] if enabled(world, path.parent()?) => return fail(libc::EEXIST),
        ["core", _, _, "enable"] if enabled(world, path.parent()?) => return fail(libc::EEXIST),
        ["core", hba, store, "enable"] => {
            let control = world.files.text(path.with_file_name("control")).unwrap_or_default();
            let mut options = control.split(',');
            let Some(device) = options.find_map(|option| option.strip_prefix("udev_path=")) else {
                return fail(libc::EINVAL);
            };
            let Ok(name) = world.block("open", Path::new(device)) else { return fail(libc::ENOENT) };
            if world.claim(Path::new(device)).is_err() {
                return fail(libc::EBUSY);
            }
            let user = User::Export { by: "LIO", name: format!("{hba}/{store}") };
            world.users.entry(name).or_default().push(user);
            world.files.put(path, "1\n");
            return Some(Ok(()));
        }
        ["core", _, _, "attrib", _] if !enabled(world, path.ancestors().nth(2)?) => {
            panic!("{} is written before the backstore is enabled: Linux 6.1 crashes there", path.display())
        }
        ["core", _, _, "attrib", "emulate_write_cache"] => return fail(libc::EINVAL),
        ["core", hba, store, "wwn", "vpd_unit_serial"] => {
            let store = Path::new(ROOT).join("core").join(hba).join(store);
            let is_linked = world
                .files
                .under(Path::new(ROOT))
                .any(|(name, _)| name != store && world.files.resolve(name).is_some_and(|place| place == store));
            if is_linked {
                return fail(libc::EINVAL);
            }
            world.files.put(path, format!("T10 VPD Unit Serial Number: {value}\n"));
            return Some(Ok(()));
        }
        ["iscsi", iqn, group, "enable"] if value == "0" => {
            // Whoever is logged in is thrown out.
            let acls = Path::new(ROOT).join("iscsi").join(iqn).join(group).join("acls");
            for initiator in world.files.list(&acls) {
                world.files.put(acls.join(&initiator).join("info"), no_session(&initiator));
            }
        }
        _ => {}
    }
    world.files.put(path, format!("{value}\n"));
    Some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Host;

    const TARGET: &str = "iqn.2026-11.org.example:t";
    const INITIATOR: &str = "iqn.2026-11.org.example:i";

    fn at(path: &str) -> PathBuf {
        Path::new(ROOT).join(path)
    }

    async fn backstore(machine: &Machine) -> PathBuf {
        machine.put_raw("/srv/a.raw", 1 << 20);
        let setup = crate::LoopSetup { file: "/srv/a.raw".into(), read_only: false, label: "x".into() };
        machine.loop_attach(&setup).await.unwrap();
        machine.make_directory(&at("core/iblock_0")).await.unwrap();
        machine.make_directory(&at("core/iblock_0/x")).await.unwrap();
        machine.write(&at("core/iblock_0/x/control"), "udev_path=/dev/loop0").await.unwrap();
        machine.write(&at("core/iblock_0/x/enable"), "1").await.unwrap();
        at("core/iblock_0/x")
    }

    fn errno<T>(result: Result<T>) -> Option<i32> {
        match result {
            Err(Error::Io { source, .. }) => source.raw_os_error(),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_backstore_holds_its_device_and_stays_while_it_is_linked() {
        let machine = Machine::new();
        let store = backstore(&machine).await;
        let users = machine.users(Path::new("/dev/loop0")).await.unwrap();
        assert_eq!(users.iter().map(User::to_string).collect::<Vec<_>>(), ["exported by LIO as iblock_0/x"]);
        assert!(machine.claim(Path::new("/dev/loop0")).await.is_err());
        assert_eq!(errno(machine.write(&store.join("enable"), "1").await), Some(libc::EEXIST));
        assert_eq!(errno(machine.write(&store.join("attrib/emulate_write_cache"), "1").await), Some(libc::EINVAL));
        assert_eq!(errno(machine.make_directory(&at("core/other_0")).await), Some(libc::EPERM));
        machine.make_directory(&at("core/iblock_0/y")).await.unwrap();
        machine.write(&at("core/iblock_0/y/control"), "udev_path=/dev/loop0").await.unwrap();
        assert_eq!(errno(machine.write(&at("core/iblock_0/y/enable"), "1").await), Some(libc::EBUSY));

        for directory in ["iscsi", &format!("iscsi/{TARGET}"), &format!("iscsi/{TARGET}/tpgt_1")] {
            machine.make_directory(&at(directory)).await.unwrap();
        }
        let lun = at(&format!("iscsi/{TARGET}/tpgt_1/lun/lun_0"));
        machine.make_directory(&lun).await.unwrap();
        for _ in 0..2 {
            machine.symlink(&lun.join("x"), &store).await.unwrap();
        }
        assert_eq!(errno(machine.symlink(&lun.join("second"), &store).await), Some(libc::EEXIST));
        assert_eq!(errno(machine.remove(&store).await), Some(libc::EBUSY));
        assert_eq!(errno(machine.write(&store.join("wwn/vpd_unit_serial"), "aa").await), Some(libc::EINVAL));
        machine.remove(&lun).await.unwrap();
        assert!(machine.stat(&lun).unwrap().is_some(), "a LUN with a link in it went");
        machine.remove(&lun.join("x")).await.unwrap();
        machine.remove(&lun).await.unwrap();
        machine.remove(&store).await.unwrap();
        assert!(machine.claim(Path::new("/dev/loop0")).await.is_ok());
    }

    #[tokio::test]
    async fn only_the_initiator_of_an_acl_comes_in_and_disabling_throws_it_out() {
        let machine = Machine::new();
        let store = backstore(&machine).await;
        let group = at(&format!("iscsi/{TARGET}/tpgt_1"));
        let acl = group.join("acls").join(INITIATOR);
        for directory in [
            at("iscsi"),
            at(&format!("iscsi/{TARGET}")),
            group.clone(),
            group.join("lun/lun_0"),
            acl.clone(),
            acl.join("lun_0"),
            group.join("np/[::1]:3260"),
        ] {
            machine.make_directory(&directory).await.unwrap();
        }
        machine.symlink(&group.join("lun/lun_0/x"), &store).await.unwrap();
        machine.symlink(&acl.join("lun_0/lun_0"), &group.join("lun/lun_0")).await.unwrap();
        machine.write(&acl.join("auth/userid"), "u").await.unwrap();
        machine.write(&acl.join("auth/password"), "p").await.unwrap();
        let login =
            |initiator, password| machine.initiator_login(TARGET, "[::1]:3260", initiator, ("u", password), "10.0.0.2");
        assert_eq!(login(INITIATOR, "p"), Err("nobody listens"));
        machine.write(&group.join("enable"), "1").await.unwrap();
        assert_eq!(login(INITIATOR, "q"), Err("authorization failure"));
        assert_eq!(login("iqn.2026-11.org.example:j", "p"), Err("authorization failure"));
        assert_eq!(login(INITIATOR, "p"), Ok(()));
        let info = || machine.read(&acl.join("info")).unwrap().unwrap();
        assert!(info().contains("Address 10.0.0.2 TCP"), "{}", info());
        machine.write(&group.join("enable"), "0").await.unwrap();
        assert!(info().starts_with("No active"), "{}", info());
    }
}
