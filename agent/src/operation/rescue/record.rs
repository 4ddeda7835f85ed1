//! A rescue as the journal keeps it, from before its first effect until the original is back.
//!
//! The definition of an instance may hold a password of its display: so it is here, in a file that only root reads, as
//! libvirt has it in another; never in an error, a log, or an operation.

use super::sources::Bound;
use driver::{AttachmentId, Derivation, DiskFormat, Error, Locator, Result};
use hypervisor::{
    Power,
    definition::{Bus, Definition, Layout, Rescue, RescueSource},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, time::Duration};
use uuid::Uuid;

/// All that is needed to put an instance back, and to take away what its rescue brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RescueRecord {
    /// Its UUID.
    pub(crate) instance: Uuid,
    pub(crate) name: String,
    /// Of this rescue: it stands in the definition that we make, so that no other is taken for it.
    pub(crate) generation: Uuid,
    pub(crate) state: RescueState,
    /// The definition, byte for byte.
    pub(crate) original: String,
    /// Of it, in hexadecimal.
    pub(crate) sha256: String,
    /// Ours, as the hypervisor keeps it; `None` before it was defined.
    pub(crate) defined: Option<String>,
    /// Whether it ran before.
    pub(crate) power: Power,
    pub(crate) disk: RescueDisk,
    /// How the copy of an image is made and discarded.
    pub(crate) derivation: Option<Derivation>,
    pub(crate) place: Place,
    pub(crate) layout: Layout,
    pub(crate) bus: Option<Bus>,
    pub(crate) data_disks: bool,
    pub(crate) seed: Option<PathBuf>,
    /// What the devices of the original are, whatever they are called.
    pub(crate) sources: Vec<Bound>,
    /// Milliseconds since 1970.
    pub(crate) created_ms: i64,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum RescueState {
    Rescuing,
    Rescued,
    Unrescuing {
        /// The original, with the names that its devices have by now.
        to: String,
        /// What it is put in the place of; `None` if there was nothing.
        over: Option<String>,
    },
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RescueDisk {
    /// A copy of this.
    Image(Locator),
    /// This itself.
    Volume(Locator),
}

/// How the instance gets at the rescue disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// On a device, by an attachment of ours.
    Attached(AttachmentId),
    /// By QEMU itself: a file.
    File,
    /// By QEMU itself: an RBD image, on the cluster of the root disk.
    Rbd,
}

impl RescueDisk {
    /// The image or the volume.
    pub(crate) fn locator(&self) -> &Locator {
        match self {
            Self::Image(locator) | Self::Volume(locator) => locator,
        }
    }
}

impl RescueRecord {
    /// Where the rescue disk is, or will be.
    pub(crate) fn at(&self) -> &Locator {
        self.derivation.as_ref().map_or_else(|| self.disk.locator(), |derivation| &derivation.to)
    }

    /// The attachment that it holds.
    pub(crate) fn attachment(&self) -> Option<&AttachmentId> {
        match &self.place {
            Place::Attached(id) => Some(id),
            Place::File | Place::Rbd => None,
        }
    }

    /// `the rescue of web1`
    pub(crate) fn title(&self) -> String {
        format!("the rescue of {}", self.name)
    }

    /// Whether a definition is one that this rescue made, whatever was changed in it since.
    pub(super) fn made(&self, definition: &str) -> bool {
        let generation = self.generation.to_string();
        Definition::parse(definition).is_ok_and(|it| it.marker().is_some_and(|marker| marker == generation))
    }

    /// What a rescue by this record does, one clause each, in the order in which it is done.
    pub(super) fn would(&self, grace: Duration) -> Vec<String> {
        let (name, at) = (&self.name, self.at());
        let mut would = Vec::new();
        would.extend(self.derivation.as_ref().map(|it| format!("derive {} from {}", it.to, it.image)));
        would.extend(self.attachment().map(|id| format!("attach {at} as {id}")));
        would.extend(self.seed.as_ref().map(|path| format!("write the seed {}", path.display())));
        would.extend((self.power == Power::Running).then(|| match grace.as_secs() {
            0 => format!("end {name} without asking its guest"),
            seconds => format!("stop {name}, whose guest has {seconds} s to shut down"),
        }));
        let layout = match self.layout {
            Layout::Classic => "first, its root second",
            Layout::Stable => "last, every other in its place",
        };
        would.push(format!("define {name} to boot from it: it comes {layout}"));
        would.push(format!("start {name}"));
        would
    }

    /// The definition to rescue by. `path` is the attachment's stable path.
    pub(super) fn rescued_definition(
        &self,
        format: DiskFormat,
        path: impl FnOnce(&AttachmentId) -> PathBuf,
    ) -> Result<String> {
        let source = match (&self.place, self.at()) {
            (Place::Attached(id), _) => RescueSource::Block { path: path(id) },
            (Place::Rbd, Locator::Rbd(image)) => {
                let namespace = image.pool.namespace.as_ref().map(|namespace| format!("{namespace}/"));
                RescueSource::Rbd {
                    image: format!("{}/{}{}", image.pool.pool, namespace.unwrap_or_default(), image.name),
                }
            }
            (Place::File, Locator::File(file)) => RescueSource::File { path: file.path().to_owned(), format },
            (place, at) => {
                return Err(Error::Host {
                    doing: format!("give {at} to the instance"),
                    source: format!("it is not {place:?}").into(),
                });
            }
        };
        Definition::parse(&self.original)?.rescue(&Rescue {
            generation: self.generation,
            source,
            seed: self.seed.clone(),
            layout: self.layout,
            bus: self.bus,
            data_disks: self.data_disks,
        })
    }

    /// The original, after it was held against its checksum.
    pub(super) fn original(&self) -> Result<&str> {
        match checksum(&self.original) == self.sha256 {
            true => Ok(&self.original),
            false => Err(Error::WrongState {
                what: format!(
                    "the kept definition of {} is damaged, and is not restored; define it anew from /etc/libvirt or a backup",
                    self.name
                ),
            }),
        }
    }
}

/// SHA-256, in hexadecimal.
pub(super) fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
