//! Many iSCSI targets of the kernel's own (LIO), with one LUN each, for tests of crowds and for the benchmark. Made here and
//! not by the guest's shell library: some hundred processes less.

#![allow(clippy::disallowed_methods, reason = "from outside the agent, as an operator would")]

use std::{
    fs::{File, create_dir_all, remove_dir, remove_file, write},
    os::unix::fs::symlink,
};

const LIO: &str = "/sys/kernel/config/target";

/// Targets `PREFIX-0`, `PREFIX-1`, …, each with a volume of another size at LUN 0. They go when this is dropped.
#[derive(Debug)]
pub struct Targets {
    prefix: &'static str,
    count: usize,
    portals: Vec<String>,
}

impl Targets {
    /// So many, each listening on all of these portals (`127.0.0.1:3260`).
    pub fn new(prefix: &'static str, count: usize, portals: &[&str]) -> Self {
        let this = Self { prefix, count, portals: portals.iter().map(|portal| (*portal).to_owned()).collect() };
        for number in 0..count {
            let (store, target) = (this.store(number), this.target(number));
            let (file, size) = (this.file(number), this.size(number));
            File::create(&file).unwrap().set_len(size).unwrap();
            create_dir_all(&store).unwrap();
            write(format!("{store}/control"), format!("fd_dev_name={file},fd_dev_size={size},fd_buffered_io=1"))
                .unwrap();
            write(format!("{store}/enable"), "1").unwrap();
            write(format!("{store}/wwn/vpd_unit_serial"), this.serial(number)).unwrap();
            create_dir_all(&target).unwrap();
            for (attribute, value) in [
                ("authentication", "0"),
                ("generate_node_acls", "1"),
                ("cache_dynamic_acls", "1"),
                ("demo_mode_write_protect", "0"),
            ] {
                write(format!("{target}/attrib/{attribute}"), value).unwrap();
            }
            create_dir_all(format!("{target}/lun/lun_0")).unwrap();
            symlink(&store, format!("{target}/lun/lun_0/volume")).unwrap();
            for portal in &this.portals {
                create_dir_all(format!("{target}/np/{portal}")).unwrap();
            }
            write(format!("{target}/enable"), "1").unwrap();
        }
        this
    }

    fn store(&self, number: usize) -> String {
        format!("{LIO}/core/fileio_0/{}-{number}", self.prefix)
    }

    fn file(&self, number: usize) -> String {
        format!("/var/tmp/{}-{number}.img", self.prefix)
    }

    fn target(&self, number: usize) -> String {
        format!("{LIO}/iscsi/{}/tpgt_1", self.iqn(number))
    }

    /// 25 hexadecimal digits, which the kernel takes into the WWN.
    fn serial(&self, number: usize) -> String {
        let sum = self.prefix.bytes().fold(0_usize, |sum, byte| (sum * 31 + usize::from(byte)) % 0xfff_ffff);
        format!("{sum:016x}{number:09x}")
    }

    pub fn iqn(&self, number: usize) -> String {
        format!("iqn.2026-11.org.example:{}-{number}", self.prefix)
    }

    pub fn locator(&self, number: usize) -> String {
        format!("iscsi://{}/{}/0", self.portals.join(","), self.iqn(number))
    }

    pub fn size(&self, number: usize) -> u64 {
        (4 << 20) + 4096 * number as u64
    }

    pub fn wwn(&self, number: usize) -> String {
        format!("36001405{}", self.serial(number))
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        for number in 0..self.count {
            let (store, target) = (self.store(number), self.target(number));
            let _ = write(format!("{target}/enable"), "0");
            let _ = remove_file(format!("{target}/lun/lun_0/volume"));
            for portal in &self.portals {
                let _ = remove_dir(format!("{target}/np/{portal}"));
            }
            let directories = [format!("{target}/lun/lun_0"), target.clone(), target.replace("/tpgt_1", ""), store];
            for directory in directories {
                let _ = remove_dir(directory);
            }
            let _ = remove_file(self.file(number));
        }
    }
}
