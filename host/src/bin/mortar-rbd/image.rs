//! An open image. It is closed when it is dropped.
#![expect(unsafe_code, reason = "Ceph's interface is C")]

use crate::{
    api::{
        Blank, Handle, IMAGE_NOT_MIRRORED, ImageWatcher, LinkedImageSpec, MirrorImageInfo, Rbd, SNAPSHOT_OF_A_USER,
        SnapInfo, SnapSpec,
    },
    cluster::{Pool, all, ok},
    text::{c_string, ceph_said, text},
};
use host::rbd_job::{Failure, METADATA_PREFIX, Mirroring, Parent, Snapshot, Step, Watcher};
use std::{
    collections::BTreeMap,
    ffi::{c_char, c_int},
    ptr::{null, null_mut},
};

/// How many keys of metadata are asked for at a time.
const PAGE: u64 = 128;

/// An open image.
pub(crate) struct Image<'a> {
    pool: &'a Pool<'a>,
    handle: Handle,
}

impl<'a> Image<'a> {
    /// Opens the image of this name to look at it: leaves no watch, and takes no lock.
    pub(crate) fn look(pool: &'a Pool<'a>, name: &str) -> Result<Self, Failure> {
        let wanted = c_string(name)?;
        Self::open(pool, format!("open the image {name}"), |rbd, image| {
            // SAFETY: the pool is open, the string ends with NUL, and the call fills in the handle.
            unsafe { (rbd.rbd_open_read_only)(pool.io, wanted.as_ptr(), image, null()) }
        })
    }

    /// Opens the image of this id to look at it.
    pub(crate) fn look_by_id(pool: &'a Pool<'a>, id: &str) -> Result<Self, Failure> {
        let wanted = c_string(id)?;
        Self::open(pool, format!("open the image with the id {id}"), |rbd, image| {
            // SAFETY: as above.
            unsafe { (rbd.rbd_open_by_id_read_only)(pool.io, wanted.as_ptr(), image, null()) }
        })
    }

    /// Opens the image of this id to change it: we watch it until it is closed.
    pub(crate) fn change_by_id(pool: &'a Pool<'a>, id: &str) -> Result<Self, Failure> {
        let wanted = c_string(id)?;
        Self::open(pool, format!("open the image with the id {id} for writing"), |rbd, image| {
            // SAFETY: as above.
            unsafe { (rbd.rbd_open_by_id)(pool.io, wanted.as_ptr(), image, null()) }
        })
    }

    fn open(pool: &'a Pool<'a>, doing: String, open: impl FnOnce(&Rbd, *mut Handle) -> c_int) -> Result<Self, Failure> {
        let mut handle = null_mut();
        match ok(open(&pool.ceph.rbd, &raw mut handle)) {
            Ok(_) => Ok(Self { pool, handle }),
            Err(code) => Err(ceph_said(Step::Image, doing, code)),
        }
    }

    fn rbd(&self) -> &'a Rbd {
        &self.pool.ceph.rbd
    }

    pub(crate) fn name(&self) -> Result<String, Failure> {
        self.string("read an image's name", |buffer, length| {
            // SAFETY: the buffer is as long as the length says.
            unsafe { (self.rbd().rbd_get_name)(self.handle, buffer, length) }
        })
    }

    /// Its id; empty for an image of format 1.
    pub(crate) fn id(&self) -> Result<String, Failure> {
        let mut old = 0;
        // SAFETY: the call fills in the flag.
        let code = unsafe { (self.rbd().rbd_get_old_format)(self.handle, &raw mut old) };
        ok(code).map_err(|code| ceph_said(Step::Image, "read an image's format", code))?;
        if old != 0 {
            return Ok(String::new());
        }
        self.string("read an image's id", |buffer, length| {
            // SAFETY: the length is a valid reference, and the buffer is as long as it says.
            unsafe { (self.rbd().rbd_get_id)(self.handle, buffer, *length) }
        })
    }

    fn string(&self, doing: &str, mut ask: impl FnMut(*mut c_char, *mut usize) -> c_int) -> Result<String, Failure> {
        let mut room = 256;
        loop {
            // One byte more than we say, so that it ends with NUL in any case.
            let (mut buffer, mut length) = (vec![0; room + 1], room);
            match ok(ask(buffer.as_mut_ptr(), &raw mut length)) {
                Ok(_) => return Ok(text(buffer.as_ptr())),
                Err(code) if code == -libc::ERANGE && room < 1 << 20 => room = length.max(room * 2),
                Err(code) => return Err(ceph_said(Step::Image, doing, code)),
            }
        }
    }

    pub(crate) fn size(&self) -> Result<u64, Failure> {
        let mut size = 0;
        // SAFETY: the call fills in the number.
        let code = unsafe { (self.rbd().rbd_get_size)(self.handle, &raw mut size) };
        ok(code).map_err(|code| ceph_said(Step::Image, "read an image's size", code))?;
        Ok(size)
    }

    /// Its features, a bit each.
    pub(crate) fn features(&self) -> Result<u64, Failure> {
        let mut features = 0;
        // SAFETY: the call fills in the number.
        let code = unsafe { (self.rbd().rbd_get_features)(self.handle, &raw mut features) };
        ok(code).map_err(|code| ceph_said(Step::Image, "read an image's features", code))?;
        Ok(features)
    }

    /// Its metadata under [`METADATA_PREFIX`].
    pub(crate) fn metadata(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut metadata = BTreeMap::new();
        // Keys come in the order of their bytes, so ours are side by side, behind the prefix alone.
        let mut after = METADATA_PREFIX.to_owned();
        loop {
            let page = self.metadata_after(&after)?;
            let seen = page.len();
            let ours = page.into_iter().take_while(|(key, _)| key.starts_with(METADATA_PREFIX));
            let before = metadata.len();
            metadata.extend(ours);
            match metadata.last_key_value() {
                Some((last, _)) if metadata.len() - before == seen && seen as u64 == PAGE => after.clone_from(last),
                _ => return Ok(metadata),
            }
        }
    }

    fn metadata_after(&self, after: &str) -> Result<Vec<(String, String)>, Failure> {
        let start = c_string(after)?;
        let (mut key_room, mut value_room) = (4 << 10, 16 << 10);
        loop {
            let (mut keys, mut values) = (vec![0; key_room], vec![0; value_room]);
            let (mut keys_length, mut values_length) = (key_room, value_room);
            // SAFETY: the string ends with NUL, and both buffers are as long as their lengths say.
            let code = unsafe {
                (self.rbd().rbd_metadata_list)(
                    self.handle,
                    start.as_ptr(),
                    PAGE,
                    keys.as_mut_ptr().cast(),
                    &raw mut keys_length,
                    values.as_mut_ptr().cast(),
                    &raw mut values_length,
                )
            };
            match ok(code) {
                Ok(_) => return Ok(strings(&keys, keys_length).zip(strings(&values, values_length)).collect()),
                Err(code) if code == -libc::ERANGE => {
                    key_room = key_room.max(keys_length);
                    value_room = value_room.max(values_length);
                }
                Err(code) => return Err(ceph_said(Step::Image, "read an image's metadata", code)),
            }
        }
    }

    pub(crate) fn set_metadata(&self, key: &str, value: &str) -> Result<(), Failure> {
        let (name, content) = (c_string(key)?, c_string(value)?);
        // SAFETY: the image is open, the strings end with NUL.
        let code = unsafe { (self.rbd().rbd_metadata_set)(self.handle, name.as_ptr(), content.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Metadata, format!("set the metadata {key}"), code))
    }

    pub(crate) fn remove_metadata(&self, key: &str) -> Result<(), Failure> {
        let name = c_string(key)?;
        // SAFETY: the image is open, the string ends with NUL.
        let code = unsafe { (self.rbd().rbd_metadata_remove)(self.handle, name.as_ptr()) };
        match ok(code) {
            Err(code) if code == -libc::ENOENT => Ok(()),
            done => {
                done.map(|_| ()).map_err(|code| ceph_said(Step::Metadata, format!("remove the metadata {key}"), code))
            }
        }
    }

    /// Who watches it. One that we opened for writing is watched by us too.
    pub(crate) fn watchers(&self) -> Result<Vec<Watcher>, Failure> {
        let list = all(16, |items: *mut ImageWatcher, count| {
            // SAFETY: there is room for as many items as the count says.
            unsafe { (self.rbd().rbd_watchers_list)(self.handle, items, count) }
        });
        let mut list = list.map_err(|code| ceph_said(Step::Image, "list an image's watchers", code))?;
        let watchers = list
            .iter()
            .map(|watcher| Watcher { address: text(watcher.addr), client: format!("client.{}", watcher.id) })
            .collect();
        // SAFETY: librbd filled in exactly these, and nothing of them is used after.
        unsafe { (self.rbd().rbd_watchers_list_cleanup)(list.as_mut_ptr(), list.len()) };
        Ok(watchers)
    }

    pub(crate) fn mirroring(&self) -> Result<Option<Mirroring>, Failure> {
        let mut info = MirrorImageInfo::BLANK;
        // SAFETY: the structure is as long as we say, and the call fills it in.
        let code =
            unsafe { (self.rbd().rbd_mirror_image_get_info)(self.handle, &raw mut info, size_of::<MirrorImageInfo>()) };
        match ok(code) {
            Err(code) if code == -libc::ENOENT => return Ok(None),
            read => read.map_err(|code| ceph_said(Step::Image, "read an image's mirroring", code))?,
        };
        let mirroring = (info.state != IMAGE_NOT_MIRRORED).then_some(Mirroring { primary: info.primary != 0 });
        // SAFETY: librbd filled it in, and nothing of it is used after.
        unsafe { (self.rbd().rbd_mirror_image_get_info_cleanup)(&raw mut info) };
        Ok(mirroring)
    }

    pub(crate) fn parent(&self) -> Result<Option<Parent>, Failure> {
        let (mut image, mut snapshot) = (LinkedImageSpec::BLANK, SnapSpec::BLANK);
        // SAFETY: the call fills in both structures.
        let code = unsafe { (self.rbd().rbd_get_parent)(self.handle, &raw mut image, &raw mut snapshot) };
        match ok(code) {
            Err(code) if code == -libc::ENOENT => return Ok(None),
            read => read.map_err(|code| ceph_said(Step::Image, "read an image's parent", code))?,
        };
        let parent = Parent {
            pool: text(image.pool_name),
            namespace: text(image.pool_namespace),
            image: text(image.image_name),
            image_id: text(image.image_id),
            snapshot: text(snapshot.name),
            snapshot_id: snapshot.id,
        };
        // SAFETY: librbd filled in both, and nothing of them is used after.
        unsafe {
            (self.rbd().rbd_linked_image_spec_cleanup)(&raw mut image);
            (self.rbd().rbd_snap_spec_cleanup)(&raw mut snapshot);
        }
        Ok(Some(parent))
    }

    /// The snapshots that users made, oldest first; others belong to groups, to mirroring or to the trash.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        let list = all(32, |items: *mut SnapInfo, count| {
            // SAFETY: the count is a valid reference.
            let room = c_int::try_from(unsafe { *count }).unwrap_or(c_int::MAX);
            let mut capacity = room;
            // SAFETY: there is room for as many items as the capacity says.
            let code = unsafe { (self.rbd().rbd_snap_list)(self.handle, items, &raw mut capacity) };
            // It returns how many there are; behind them comes one without a name. Too many: how many to make room for.
            let filled = if code < 0 { capacity } else { code };
            // SAFETY: as above.
            unsafe { *count = usize::try_from(filled).unwrap_or_default() };
            code
        });
        let mut list = list.map_err(|code| ceph_said(Step::Image, "list an image's snapshots", code))?;
        let mut snapshots = Vec::new();
        for info in &list {
            if self.is_of_a_user(info.id)? {
                let protected = self.is_protected(info)?;
                let (id, name, size) = (info.id, text(info.name), info.size);
                snapshots.push(Snapshot { id, name, size, protected, children: None });
            }
        }
        // What librbd goes by is the one without a name behind the last.
        list.push(SnapInfo::BLANK);
        // SAFETY: librbd filled in these, the last has no name, and nothing of them is used after.
        unsafe { (self.rbd().rbd_snap_list_end)(list.as_mut_ptr()) };
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    fn is_of_a_user(&self, snapshot: u64) -> Result<bool, Failure> {
        let mut kind = SNAPSHOT_OF_A_USER;
        // SAFETY: the call fills in the number.
        let code = unsafe { (self.rbd().rbd_snap_get_namespace_type)(self.handle, snapshot, &raw mut kind) };
        ok(code).map_err(|code| ceph_said(Step::Image, "read what a snapshot belongs to", code))?;
        Ok(kind == SNAPSHOT_OF_A_USER)
    }

    fn is_protected(&self, snapshot: &SnapInfo) -> Result<bool, Failure> {
        let mut protected = 0;
        // SAFETY: the name is librbd's own, and the call fills in the flag.
        let code = unsafe { (self.rbd().rbd_snap_is_protected)(self.handle, snapshot.name, &raw mut protected) };
        ok(code).map_err(|code| ceph_said(Step::Image, "read whether a snapshot is protected", code))?;
        Ok(protected != 0)
    }

    /// How many clones a snapshot has. From then on the image is open at this snapshot, so this is to be asked last.
    pub(crate) fn children(&self, snapshot: u64) -> Result<u64, Failure> {
        let failed = |code| ceph_said(Step::Image, "list a snapshot's clones", code);
        // SAFETY: the image is open.
        ok(unsafe { (self.rbd().rbd_snap_set_by_id)(self.handle, snapshot) }).map_err(failed)?;
        let list = all(32, |items: *mut LinkedImageSpec, count| {
            // SAFETY: there is room for as many items as the count says.
            unsafe { (self.rbd().rbd_list_children3)(self.handle, items, count) }
        });
        let mut list = list.map_err(failed)?;
        // SAFETY: librbd filled in exactly these, and nothing of them is used after.
        unsafe { (self.rbd().rbd_linked_image_spec_list_cleanup)(list.as_mut_ptr(), list.len()) };
        Ok(list.len() as u64)
    }

    pub(crate) fn take_snapshot(&self, snapshot: &str) -> Result<(), Failure> {
        let name = c_string(snapshot)?;
        // SAFETY: the image is open, the string ends with NUL.
        let code = unsafe { (self.rbd().rbd_snap_create)(self.handle, name.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Clone, format!("take the snapshot {snapshot}"), code))
    }

    /// Removes a snapshot. One that has clones (of the second format) lives on for them, without a name.
    pub(crate) fn remove_snapshot(&self, snapshot: &str) -> Result<(), Failure> {
        let name = c_string(snapshot)?;
        // SAFETY: the image is open, the string ends with NUL.
        let code = unsafe { (self.rbd().rbd_snap_remove)(self.handle, name.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Clone, format!("remove the snapshot {snapshot}"), code))
    }

    pub(crate) fn rename_snapshot(&self, from: &str, to: &str) -> Result<(), Failure> {
        let (old, new) = (c_string(from)?, c_string(to)?);
        // SAFETY: the image is open, the strings end with NUL.
        let code = unsafe { (self.rbd().rbd_snap_rename)(self.handle, old.as_ptr(), new.as_ptr()) };
        ok(code)
            .map(|_| ())
            .map_err(|code| ceph_said(Step::Rename, format!("rename the snapshot {from} to {to}"), code))
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        // SAFETY: the image is open. What it returns is of no use: the handle is gone in any case.
        unsafe { (self.rbd().rbd_close)(self.handle) };
    }
}

/// The strings in a buffer, each ended by NUL.
fn strings(buffer: &[u8], length: usize) -> impl Iterator<Item = String> {
    let mut pieces: Vec<&[u8]> = buffer[..length.min(buffer.len())].split(|byte| *byte == 0).collect();
    pieces.pop();
    pieces.into_iter().map(|piece| String::from_utf8_lossy(piece).into_owned())
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn strings_are_told_apart_by_nul() {
        let read = |buffer: &[u8], length| strings(buffer, length).collect::<Vec<_>>();
        assert_eq!(read(b"a\0bc\0\0junk", 6), ["a", "bc", ""]);
        assert_eq!(read(b"", 0), [""; 0]);
    }
}
