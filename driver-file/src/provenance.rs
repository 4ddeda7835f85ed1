//! Where a managed file came from, written onto the file itself: extended attributes go with it wherever it is renamed.
//!
//! The id is written last and removed first: a file that has it has the others.

use crate::refusal::{self, machine};
use driver::{Derivation, DiskFormat, Error, Locator, Means, RawFile, Result, VolumeId, VolumeName};
use host::Host;
use std::{collections::BTreeMap, io::ErrorKind};

const PREFIX: &str = "mortar.";
const ID: &str = "mortar.id";
const NAME: &str = "mortar.name";
const ORIGIN: &str = "mortar.origin";

/// Beside [`Derivation::MARK`]: how a derived volume was made, and as what.
const MEANS: &str = "mortar.rescue.means";
const FORMAT: &str = "mortar.rescue.format";

/// What a derived volume tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rescue {
    pub(crate) owner: String,
    pub(crate) means: Means,
    pub(crate) format: DiskFormat,
}

/// What a file tells of a rescue; `None` if it is not for any.
pub(crate) async fn rescue(host: &dyn Host, file: &RawFile) -> Result<Option<Rescue>> {
    let attributes = attributes(host, file).await?;
    let Some(owner) = attributes.get(Derivation::MARK).cloned() else { return Ok(None) };
    let means = match attributes.get(MEANS).map(String::as_str) {
        Some("reflink") => Means::Reflink,
        Some("overlay") => Means::Overlay,
        // One that says nothing is nobody's but its own.
        _ => Means::Copy,
    };
    let format = match attributes.get(FORMAT).map(String::as_str) {
        Some("qcow2") => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    };
    Ok(Some(Rescue { owner, means, format }))
}

/// The mark comes last: what has it has the rest.
pub(crate) async fn write_rescue(host: &dyn Host, file: &RawFile, rescue: &Rescue) -> Result<()> {
    let means = match rescue.means {
        Means::Reflink => "reflink",
        Means::Overlay => "overlay",
        _ => "copy",
    };
    let format = rescue.format.to_string();
    let attributes =
        [(MEANS, Some(means)), (FORMAT, Some(format.as_str())), (Derivation::MARK, Some(rescue.owner.as_str()))];
    let doing = format!("write the attributes of {}", file.path().display());
    let locator = Locator::File(file.clone());
    host.set_attributes(file.path(), &attributes).await.map_err(refusal::of(&locator, doing))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) id: VolumeId,
    pub(crate) name: VolumeName,
    /// The path that the file had before.
    pub(crate) origin: RawFile,
}

/// What a file tells; `None` if it is not managed.
pub(crate) async fn read(host: &dyn Host, file: &RawFile) -> Result<Option<Provenance>> {
    let attributes = attributes(host, file).await?;
    let Some(id) = attributes.get(ID) else { return Ok(None) };
    let text = |name: &str| attributes.get(name).map(String::as_str).unwrap_or_default();
    let parsed = || Ok(Provenance { id: id.parse()?, name: text(NAME).parse()?, origin: RawFile::new(text(ORIGIN))? });
    match parsed() {
        Ok(found) => Ok(Some(found)),
        Err::<_, Error>(error) => Err(Error::WrongState {
            what: format!("its attributes {PREFIX}* are not ours ({error}); `setfattr -x` removes them"),
        }),
    }
}

pub(crate) async fn write(host: &dyn Host, file: &RawFile, provenance: &Provenance) -> Result<()> {
    let Provenance { id, name, origin } = provenance;
    let (id, origin) = (id.to_string(), origin.path().to_string_lossy());
    let attributes = [(ORIGIN, Some(origin.as_ref())), (NAME, Some(name.as_str())), (ID, Some(id.as_str()))];
    let doing = format!("write the attributes of {}", file.path().display());
    let locator = Locator::File(file.clone());
    host.set_attributes(file.path(), &attributes).await.map_err(refusal::of(&locator, doing))
}

/// Forgets it. A file that tells nothing is left as it is.
pub(crate) async fn remove(host: &dyn Host, file: &RawFile) -> Result<()> {
    let there = attributes(host, file).await?;
    let there: Vec<_> = [ID, NAME, ORIGIN].into_iter().filter(|name| there.contains_key(*name)).collect();
    if there.is_empty() {
        return Ok(());
    }
    let nothing: Vec<_> = there.into_iter().map(|name| (name, None)).collect();
    let doing = format!("remove the attributes of {}", file.path().display());
    host.set_attributes(file.path(), &nothing).await.map_err(refusal::of(&Locator::File(file.clone()), doing))
}

/// None where the file system has none.
async fn attributes(host: &dyn Host, file: &RawFile) -> Result<BTreeMap<String, String>> {
    match host.attributes(file.path(), PREFIX).await {
        Err(host::Error::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => Ok(BTreeMap::new()),
        other => other.map_err(machine(format!("read the attributes of {}", file.path().display()))),
    }
}

impl Provenance {
    /// Where a file that is at `now` would go back to: its name of before, in the directory where it is. The directory
    /// may have been moved since, and with it all that is in it.
    pub(crate) fn way_back(&self, now: &RawFile) -> Locator {
        let name = self.origin.path().file_name().and_then(|name| name.to_str());
        Locator::File(name.map_or_else(|| self.origin.clone(), |name| now.sibling(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;
    use proptest::prelude::*;
    use std::path::Path;

    const PATH: &str = "/srv/a.raw";

    /// A file, and the runtime that asks for its attributes.
    fn stage() -> (Machine, RawFile, tokio::runtime::Runtime) {
        let machine = Machine::new();
        machine.put_raw(PATH, 512);
        (machine, RawFile::new(PATH).unwrap(), tokio::runtime::Builder::new_current_thread().build().unwrap())
    }

    proptest! {
        #[test]
        fn no_attribute_panics(id in "([0-9a-f-]{36}|\\PC{0,20})", name in "\\PC{0,20}", origin in "/?(\\PC|/){0,20}", means in "(reflink|overlay|\\PC{0,9})") {
            let (machine, file, runtime) = stage();
            runtime.block_on(async {
                let attributes = [
                    (ID, Some(id.as_str())),
                    (NAME, Some(name.as_str())),
                    (ORIGIN, Some(origin.as_str())),
                    (Derivation::MARK, Some(name.as_str())),
                    (MEANS, Some(means.as_str())),
                    (FORMAT, Some(means.as_str())),
                ];
                machine.set_attributes(Path::new(PATH), &attributes).await.unwrap();
                if let Ok(found) = read(&machine, &file).await {
                    let found = found.unwrap();
                    assert_eq!((found.name.to_string(), found.origin.path().to_str().unwrap()), (name.clone(), origin.as_str()));
                }
                assert_eq!(rescue(&machine, &file).await.unwrap().unwrap().owner, name);
            });
        }

        #[test]
        fn what_is_written_is_read_back(name in "[A-Za-z0-9_.-]{1,40}", origin in "(/[!-.0-~]{1,12}){1,4}", means in 0..3_u8, qcow: bool) {
            let (machine, file, runtime) = stage();
            let (Ok(name), Ok(origin)) = (name.parse(), RawFile::new(&origin)) else { return Ok(()) };
            let written = Provenance { id: VolumeId::make_up(), name, origin };
            let derived = Rescue {
                owner: "a".into(),
                means: [Means::Copy, Means::Reflink, Means::Overlay][usize::from(means)],
                format: if qcow { DiskFormat::Qcow2 } else { DiskFormat::Raw },
            };
            runtime.block_on(async {
                write(&machine, &file, &written).await.unwrap();
                write_rescue(&machine, &file, &derived).await.unwrap();
                assert_eq!(read(&machine, &file).await.unwrap(), Some(written));
                assert_eq!(rescue(&machine, &file).await.unwrap(), Some(derived));
                remove(&machine, &file).await.unwrap();
                assert_eq!(read(&machine, &file).await.unwrap(), None);
            });
        }
    }
}
