//! Loop devices. As in the kernel, one that was unbound stays where it is, with no size.

use super::{
    World, absent,
    world::{Block, VIRTUAL, node},
};
use crate::{Error, LoopDevice, LoopSetup, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

#[derive(Debug, Default)]
pub(crate) struct Loops {
    bound: BTreeMap<String, LoopDevice>,
    unbound: BTreeSet<String>,
    /// Those that are unbound when their last user leaves them (`LO_FLAGS_AUTOCLEAR`).
    leaving: BTreeSet<String>,
    /// Those that do not answer, as their file is on a server that is gone.
    silent: BTreeSet<String>,
}

impl Loops {
    pub(crate) fn list(&self) -> Vec<LoopDevice> {
        let answering = self.bound.values().filter(|device| !self.silent.contains(&device.name));
        answering
            .map(|device| LoopDevice { autoclear: self.leaving.contains(&device.name), ..device.clone() })
            .collect()
    }

    pub(crate) fn silence(&mut self, device: &str, silent: bool) {
        match silent {
            true => self.silent.insert(device.to_owned()),
            false => self.silent.remove(device),
        };
    }

    pub(crate) fn is_bound(&self, device: &Path) -> bool {
        self.bound.keys().any(|name| node(name) == device)
    }

    /// Whether a file belongs to a loop device that is not bound.
    pub(crate) fn hides(&self, path: &Path) -> bool {
        let places = ["/dev", "/sys/block", VIRTUAL];
        self.unbound.iter().any(|name| places.iter().any(|place| path.starts_with(Path::new(place).join(name))))
    }

    pub(crate) fn snapshot(&self) -> impl Iterator<Item = String> {
        self.bound.values().map(|it| {
            format!("{} is bound to {} as {:?}, direct {}", it.name, it.file.display(), it.label, it.direct_io)
        })
    }
}

/// The machine was turned on: the module is loaded, no device is there.
pub(crate) fn boot(world: &mut World) {
    world.loops = Loops::default();
    world.files.make_device("/dev/loop-control");
}

/// Binds the first device that is free.
pub(crate) fn attach(world: &mut World, setup: &LoopSetup) -> Result<PathBuf> {
    if world.files.stat("/dev/loop-control").is_none() {
        return Err(absent("open", "/dev/loop-control"));
    }
    let file = world.files.resolve(&setup.file).ok_or_else(|| absent("open", &setup.file))?;
    let stat = world.files.stat(&file).filter(|stat| stat.is_file);
    let stat = stat.ok_or_else(|| Error::io("bind", &setup.file)(io::ErrorKind::InvalidInput.into()))?;

    let name = match world.loops.unbound.iter().min_by_key(|name| (name.len(), *name)).cloned() {
        Some(name) => {
            world.loops.unbound.remove(&name);
            name
        }
        None => {
            let name = world.free_number("loop");
            add_empty(world, &name);
            name
        }
    };
    let device = LoopDevice {
        name: name.clone(),
        file_device: stat.device,
        file_inode: stat.inode,
        file,
        label: setup.label.clone(),
        direct_io: true,
        autoclear: false,
    };
    world.files.put(format!("/sys/block/{name}/loop/backing_file"), format!("{}\n", device.file.display()));
    world.files.put(format!("/sys/block/{name}/ro"), format!("{}\n", u8::from(setup.read_only)));
    world.loops.bound.insert(name.clone(), device);
    world.resize_block(&name, stat.size_bytes);
    Ok(node(&name))
}

/// Unbinds a device, or lets it be unbound when its last user leaves it.
pub(crate) fn detach(world: &mut World, device: &Path) -> Result<()> {
    let name = world.block("open", device)?;
    world.loops.leaving.insert(name);
    released(world);
    Ok(())
}

/// Somebody stopped using a device.
pub(crate) fn released(world: &mut World) {
    for name in world.loops.leaving.clone() {
        if world.users_of(&name).is_empty() {
            world.loops.leaving.remove(&name);
            unbind(world, &name);
        }
    }
}

/// Somebody unbinds a device, and binds it to another file.
pub(crate) fn rebind(world: &mut World, device: &str, file: &Path) {
    unbind(world, device);
    let setup = LoopSetup { file: file.into(), read_only: false, label: String::new() };
    let bound = attach(world, &setup).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(bound, node(device), "another device was free");
}

fn unbind(world: &mut World, name: &str) {
    world.loops.bound.remove(name);
    world.loops.unbound.insert(name.to_owned());
    world.files.take_tree(format!("{VIRTUAL}/{name}/loop"));
    world.files.put(format!("/sys/block/{name}/ro"), "0\n");
    world.resize_block(name, 0);
}

/// Lets a device see the size of its file.
pub(crate) fn resize(world: &mut World, device: &Path) -> Result<()> {
    let name = world.block("open", device)?;
    let bound = world.loops.bound.get(&name).ok_or_else(|| absent("resize", device))?;
    let (_, file) = world.files.by_inode(bound.file_inode).ok_or_else(|| absent("resize", device))?;
    let size_bytes = file.size_bytes;
    world.resize_block(&name, size_bytes);
    Ok(())
}

/// The beginning of the file below a device.
pub(crate) fn head(world: &World, device: &str) -> Option<Vec<u8>> {
    let bound = world.loops.bound.get(device)?;
    Some(world.files.by_inode(bound.file_inode)?.1.content.clone())
}

/// Files were renamed or removed: sysfs shows the names that they have now.
pub(crate) fn renamed(world: &mut World) {
    for (name, device) in &mut world.loops.bound {
        if let Some((path, _)) = world.files.by_inode(device.file_inode) {
            device.file = path.to_path_buf();
        } else if !device.file.to_string_lossy().ends_with(" (deleted)") {
            device.file = format!("{} (deleted)", device.file.display()).into();
        }
        world.files.put(format!("/sys/block/{name}/loop/backing_file"), format!("{}\n", device.file.display()));
    }
}

fn add_empty(world: &mut World, name: &str) {
    world.add_block(&Block {
        name,
        below: VIRTUAL,
        size_bytes: 0,
        read_only: false,
        logical_block_size: 512,
        physical_block_size: 512,
    });
}

#[cfg(test)]
mod tests {
    use crate::{Host, LoopSetup, block_device, sim::Machine};
    use std::path::Path;

    fn setup(file: &str) -> LoopSetup {
        LoopSetup { file: file.into(), read_only: true, label: "mortar".into() }
    }

    fn machine() -> Machine {
        let machine = Machine::new();
        machine.put_raw("/srv/a.raw", 8192);
        machine.put_raw("/srv/b.raw", 4096);
        machine
    }

    #[tokio::test]
    async fn a_device_comes_and_goes_and_comes_back_under_the_same_name() {
        let machine = machine();
        let before = machine.snapshot();
        let device = machine.loop_attach(&setup("/srv/a.raw")).await.unwrap();
        assert_eq!(device, Path::new("/dev/loop0"));
        assert_eq!(machine.loop_attach(&setup("/srv/b.raw")).await.unwrap(), Path::new("/dev/loop1"));
        let block = block_device(&machine, "loop0").unwrap().unwrap();
        assert_eq!((block.size_bytes, block.read_only), (8192, true));
        let file = machine.stat(Path::new("/srv/a.raw")).unwrap().unwrap();
        let bound = machine.loop_devices().await.unwrap();
        assert_eq!((bound[0].file_inode, bound[0].file_device), (file.inode, file.device));

        for name in ["/dev/loop0", "/dev/loop0", "/dev/loop1", "/dev/loop9"] {
            machine.loop_detach(Path::new(name)).await.unwrap();
        }
        assert_eq!(machine.effects().len(), 4, "an unbound device was detached: {:?}", machine.effects());
        assert_eq!(machine.snapshot(), before);
        assert_eq!(block_device(&machine, "loop0").unwrap().unwrap().size_bytes, 0);
        assert_eq!(machine.loop_attach(&setup("/srv/b.raw")).await.unwrap(), device);
    }

    #[tokio::test]
    async fn a_device_in_use_goes_with_its_last_user() {
        let machine = machine();
        let device = machine.loop_attach(&setup("/srv/a.raw")).await.unwrap();
        machine.mount("loop0", "/mnt");
        machine.loop_detach(&device).await.unwrap();
        let [left] = machine.loop_devices().await.unwrap().try_into().unwrap();
        assert!(left.autoclear);
        machine.release("loop0");
        assert!(machine.loop_devices().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_file_may_grow_move_and_go() {
        let machine = machine();
        let device = machine.loop_attach(&setup("/srv/a.raw")).await.unwrap();
        machine.truncate("/srv/a.raw", 16384);
        assert_eq!(block_device(&machine, "loop0").unwrap().unwrap().size_bytes, 8192);
        machine.loop_resize(&device).await.unwrap();
        assert_eq!(block_device(&machine, "loop0").unwrap().unwrap().size_bytes, 16384);

        let shown = || machine.read(Path::new("/sys/block/loop0/loop/backing_file")).unwrap().unwrap();
        machine.rename(Path::new("/srv/a.raw"), Path::new("/srv/c.raw")).await.unwrap();
        assert_eq!(shown(), "/srv/c.raw");
        machine.remove(Path::new("/srv/c.raw")).await.unwrap();
        assert_eq!(shown(), "/srv/c.raw (deleted)");
    }

    #[tokio::test]
    async fn what_cannot_be_bound() {
        let machine = machine();
        assert!(machine.loop_attach(&setup("/srv/none.raw")).await.is_err());
        assert!(machine.loop_attach(&setup("/srv")).await.is_err());
        machine.remove_tree("/dev/loop-control");
        assert!(machine.loop_attach(&setup("/srv/a.raw")).await.is_err());
        assert_eq!(machine.effects(), Vec::<String>::new());
    }
}
