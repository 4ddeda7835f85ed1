//! What the kernel shows in sysfs, and sends as it changes.

#![no_main]

use host::{Uevent, sim::Machine};
use libfuzzer_sys::fuzz_target;

/// What is read of a session and of a map.
const ATTRIBUTES: [&str; 9] = [
    "/sys/class/iscsi_session/session3/targetname",
    "/sys/class/iscsi_session/session3/state",
    "/sys/class/iscsi_session/session3/ifacename",
    "/sys/class/iscsi_session/session3/target_id",
    "/sys/class/iscsi_connection/connection3:0/persistent_address",
    "/sys/class/iscsi_connection/connection3:0/persistent_port",
    "/sys/block/dm-7/dm/uuid",
    "/sys/block/dm-7/dm/name",
    "/sys/block/dm-7/size",
];

fuzz_target!(|input: (&[u8], Vec<&str>)| {
    let _uevent = Uevent::parse(input.0);
    driver_lvm::fuzz::label(input.0);
    let machine = Machine::new();
    machine.put_directory("/sys/devices/platform/host2/session3");
    machine.put_link("/sys/class/iscsi_session/session3/device", "/sys/devices/platform/host2/session3");
    for (path, value) in ATTRIBUTES.into_iter().zip(input.1) {
        driver_lvm::fuzz::names(value);
        machine.put_file(path, value);
    }
    driver_iscsi::fuzz::sysfs(&machine);
});
