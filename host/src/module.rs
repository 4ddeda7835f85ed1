//! Whether the running kernel has a part that may be a module, or could load it. Nothing is loaded to find out.

use crate::{Host, Result};
use std::path::{Path, PathBuf};

/// Where a part of the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// It is loaded, or built in.
    Here,
    /// It is on the disk, to be loaded.
    Loadable,
    /// Neither.
    Absent,
}

/// Looks for a module by its name, in which a dash and an underscore are the same (`modprobe(8)`).
pub fn module(host: &dyn Host, name: &str) -> Result<Module> {
    let plain = |name: &str| name.replace('-', "_");
    let name = plain(name);
    if host.resolve(&Path::new("/sys/module").join(&name))?.is_some() {
        return Ok(Module::Here);
    }
    let kernel = host.facts()?.kernel;
    let lists = |file: &str| -> Result<bool> {
        for top in ["/lib/modules", "/usr/lib/modules"] {
            let path: PathBuf = [top, &kernel, file].iter().collect();
            if let Some(text) = host.read(&path)? {
                return Ok(text.lines().filter_map(of_line).any(|listed| plain(listed) == name));
            }
        }
        Ok(false)
    };
    Ok(if lists("modules.builtin")? {
        Module::Here
    } else if lists("modules.dep")? {
        Module::Loadable
    } else {
        Module::Absent
    })
}

/// `kernel/drivers/scsi/iscsi_tcp.ko.xz: kernel/drivers/scsi/libiscsi.ko.xz` → `iscsi_tcp`
fn of_line(line: &str) -> Option<&str> {
    let path = line.split(':').next()?.trim();
    path.rsplit('/').next()?.split_once(".ko").map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_by_its_line() {
        let compressed = "kernel/drivers/scsi/iscsi_tcp.ko.xz: kernel/drivers/scsi/libiscsi_tcp.ko.xz";
        assert_eq!(of_line(compressed), Some("iscsi_tcp"));
        assert_eq!(of_line("kernel/drivers/md/dm-multipath.ko"), Some("dm-multipath"));
        assert_eq!(of_line(""), None);
    }

    #[cfg(feature = "sim")]
    #[tokio::test]
    async fn loaded_built_in_loadable_or_absent() {
        let machine = crate::sim::Machine::new();
        machine.put_file("/lib/modules/6.12.0/modules.builtin", "kernel/drivers/md/dm-multipath.ko\n");
        machine.put_file("/lib/modules/6.12.0/modules.dep", "kernel/drivers/block/rbd.ko.zst: kernel/net/libceph.ko\n");
        machine.put_directory("/sys/module/loop");
        let of = |name| module(&machine, name).unwrap();
        assert_eq!((of("loop"), of("dm_multipath")), (Module::Here, Module::Here));
        assert_eq!((of("rbd"), of("iscsi_tcp")), (Module::Loadable, Module::Absent));
        assert_eq!(of("libceph"), Module::Absent, "what a module needs is listed by a line of its own");
    }
}
