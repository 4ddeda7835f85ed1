//! What the verbs are tried on: a volume of each backend, which can grow and shrink again.

use crate::{
    cli::{names, read, until},
    machine::{GuestStage, Multipathd, sh, try_sh},
};
use driver::Backend;
use std::time::Duration;
use tests::stage::Stage;

const SIZE: u64 = 16 << 20;
const GROWN: u64 = 24 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    File,
    /// By one portal.
    Iscsi,
    /// By two.
    Multipath,
    Lvm,
    Rbd,
}

impl Subject {
    pub(super) fn backend(self) -> Backend {
        match self {
            Self::File => Backend::File,
            Self::Iscsi | Self::Multipath => Backend::Iscsi,
            Self::Lvm => Backend::Lvm,
            Self::Rbd => Backend::Rbd,
        }
    }

    pub(super) fn named(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Iscsi => "iSCSI, one path",
            Self::Multipath => "iSCSI, two paths",
            Self::Lvm => "LVM",
            Self::Rbd => "RBD",
        }
    }
}

/// A subject on its stage.
pub(super) struct Tried {
    pub(super) subject: Subject,
    pub(super) locator: String,
    pub(super) stage: GuestStage,
    _multipathd: Option<Multipathd>,
    _unit: Option<Unit>,
}

/// The loop device below an iSCSI subject: LIO fixes the size of a file, but follows that of a device.
struct Unit;

const UNIT: &str = "/var/tmp/crash-unit";

impl Drop for Unit {
    fn drop(&mut self) {
        try_sh(&format!("losetup --detach $(losetup --noheadings --output NAME --associated {UNIT}); rm {UNIT}"));
    }
}

impl Tried {
    pub(super) async fn make(subject: Subject) -> Self {
        let (mut stage, mut unit, mut multipathd) = (GuestStage::bare(), None, None);
        let locator = match subject {
            Subject::File | Subject::Lvm | Subject::Rbd => stage.volume(subject.backend(), "v", SIZE).await,
            Subject::Iscsi | Subject::Multipath => {
                stage = GuestStage::with_target();
                unit = Some(Unit);
                let (iqn, store) = (stage.iqn(), stage.store(0));
                sh(&format!(
                    "loop=$(loop_file {UNIT} {SIZE}); lio_fileio {store} 0000000000000000000000c5 {SIZE} $loop
                     lio_map {iqn} 0 {store}"
                ));
                if subject == Subject::Iscsi {
                    format!("iscsi://127.0.0.1/{iqn}/0")
                } else {
                    sh(&format!("lio_portal {iqn} 127.0.0.2:3260"));
                    multipathd = Some(Multipathd::up());
                    format!("iscsi://127.0.0.1,127.0.0.2/{iqn}/0")
                }
            }
        };
        Self { subject, locator, stage, _multipathd: multipathd, _unit: unit }
    }

    /// It is attached, and grows on its backend; what learns that by itself has learned it.
    pub(super) fn grow(&self) {
        self.resize(GROWN);
        if self.subject == Subject::Rbd {
            until("the mapping to learn its size", Duration::from_secs(30), || {
                let sizes =
                    names("/sys/bus/rbd/devices").into_iter().map(|id| read(format!("/sys/bus/rbd/devices/{id}/size")));
                sizes.into_iter().any(|size| size == GROWN.to_string()).then_some(())
            });
        }
    }

    /// It is not attached, and is as small again as it was.
    pub(super) fn shrink(&self) {
        self.resize(SIZE);
    }

    fn resize(&self, size: u64) {
        let name = self.locator.split_once(':').unwrap().1;
        match self.subject {
            Subject::File => sh(&format!("truncate -s {size} {name}")),
            Subject::Lvm => sh(&format!("lvresize --quiet --force --yes -L {size}b {name} >/dev/null")),
            Subject::Rbd => sh(&format!("rbd resize --no-progress --allow-shrink --size {size}B {name}")),
            Subject::Iscsi | Subject::Multipath => sh(&format!(
                "truncate -s {size} {UNIT}; losetup -c $(losetup --noheadings --output NAME --associated {UNIT})"
            )),
        };
    }
}
