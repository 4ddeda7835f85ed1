//! A connection to a cluster, and a pool's namespace in it. Both are let go when they are dropped.
#![expect(unsafe_code, reason = "Ceph's interface is C")]

use crate::{
    api::{Blank, Ceph, Handle, ImageSpec, NOT_MIRRORED, OPTION_CLONE_FORMAT, OPTION_FEATURES, TrashImageInfo},
    text::{c_string, ceph_said, text},
};
use host::rbd_job::{Failure, Job, Step, Trashed};
use secrecy::{ExposeSecret, SecretString};
use std::{
    ffi::{CStr, CString, c_int},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::null_mut,
};
use zeroize::Zeroizing;

/// A cluster that we are connected to.
pub(crate) struct Cluster<'a> {
    pub(crate) ceph: &'a Ceph,
    handle: Handle,
}

impl<'a> Cluster<'a> {
    pub(crate) fn connect(ceph: &'a Ceph, job: &Job) -> Result<Self, Failure> {
        let failed = |doing: String| move |code| ceph_said(Step::Connect, doing, code);
        let (name, user) = (c_string(&job.cluster)?, c_string(&format!("client.{}", job.user))?);
        let mut handle = null_mut();
        // SAFETY: the strings end with NUL and outlive the call, which fills in the handle.
        let code = unsafe { (ceph.rados.rados_create2)(&raw mut handle, name.as_ptr(), user.as_ptr(), 0) };
        ok(code).map_err(failed("prepare a connection".into()))?;
        let cluster = Self { ceph, handle };

        if let Some(conf) = &job.conf {
            cluster.read_conf(conf, !job.monitors.is_empty())?;
        }
        // What librados has to say is in its error numbers, and nobody is to talk to a process that lives so shortly.
        for (option, value) in
            [("log_file", ""), ("log_to_stderr", "false"), ("err_to_stderr", "false"), ("admin_socket", "")]
        {
            cluster.set(option, value)?;
        }
        // No data is read or written here; a cache would only cost every image a thread.
        cluster.set("rbd_cache", "false")?;
        let seconds = job.timeout_ms.div_ceil(1000).max(1).to_string();
        for option in ["client_mount_timeout", "rados_mon_op_timeout", "rados_osd_op_timeout"] {
            cluster.set(option, &seconds)?;
        }
        if !job.monitors.is_empty() {
            cluster.set("mon_host", &job.monitors.join(","))?;
        }
        if let Some(key) = &job.key {
            cluster.set_key(key)?;
        }
        // SAFETY: the handle is configured and not connected yet.
        let code = unsafe { (ceph.rados.rados_connect)(cluster.handle) };
        ok(code).map_err(failed(format!("connect to the cluster as client.{}", job.user)))?;
        Ok(cluster)
    }

    fn read_conf(&self, conf: &Path, may_be_absent: bool) -> Result<(), Failure> {
        let path = CString::new(conf.as_os_str().as_bytes())
            .map_err(|_| Failure::new(Step::Job, "read the job", "a path holds a NUL"))?;
        // SAFETY: the path ends with NUL.
        let code = unsafe { (self.ceph.rados.rados_conf_read_file)(self.handle, path.as_ptr()) };
        match ok(code) {
            Err(code) if may_be_absent && code == -libc::ENOENT => Ok(()),
            read => read.map(|_| ()).map_err(|code| ceph_said(Step::Connect, format!("read {}", conf.display()), code)),
        }
    }

    fn set(&self, option: &str, value: &str) -> Result<(), Failure> {
        self.set_to(option, &c_string(value)?)
    }

    fn set_key(&self, key: &SecretString) -> Result<(), Failure> {
        let bytes = Zeroizing::new([key.expose_secret().as_bytes(), b"\0"].concat());
        let value = CStr::from_bytes_with_nul(&bytes)
            .map_err(|_| Failure::new(Step::Job, "read the job", "the key holds a NUL"))?;
        self.set_to("key", value)
    }

    fn set_to(&self, option: &str, value: &CStr) -> Result<(), Failure> {
        let name = c_string(option)?;
        // SAFETY: both strings end with NUL, and librados copies them.
        let code = unsafe { (self.ceph.rados.rados_conf_set)(self.handle, name.as_ptr(), value.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Connect, format!("set the option {option}"), code))
    }

    pub(crate) fn fsid(&self) -> Result<String, Failure> {
        let mut buffer = [0; 37];
        // SAFETY: the buffer is as long as we say.
        let code = unsafe { (self.ceph.rados.rados_cluster_fsid)(self.handle, buffer.as_mut_ptr(), buffer.len()) };
        ok(code).map_err(|code| ceph_said(Step::Connect, "read the cluster's id", code))?;
        Ok(text(buffer.as_ptr()))
    }

    /// Opens a pool, with all that follows done in one of its namespaces.
    pub(crate) fn pool(&self, pool: &str, namespace: &str) -> Result<Pool<'_>, Failure> {
        let (name, space) = (c_string(pool)?, c_string(namespace)?);
        let mut io = null_mut();
        // SAFETY: we are connected, the name ends with NUL, and the call fills in the handle.
        let code = unsafe { (self.ceph.rados.rados_ioctx_create)(self.handle, name.as_ptr(), &raw mut io) };
        ok(code).map_err(|code| ceph_said(Step::Pool, format!("open the pool {pool}"), code))?;
        // SAFETY: the handle is open, the string ends with NUL.
        unsafe { (self.ceph.rados.rados_ioctx_set_namespace)(io, space.as_ptr()) };
        Ok(Pool { ceph: self.ceph, io, _cluster: self })
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing that was opened in it is open any more: all of that borrows us.
        unsafe { (self.ceph.rados.rados_shutdown)(self.handle) };
    }
}

/// A pool's namespace.
pub(crate) struct Pool<'a> {
    pub(crate) ceph: &'a Ceph,
    pub(crate) io: Handle,
    _cluster: &'a Cluster<'a>,
}

// SAFETY: librados and librbd take calls on one I/O context from many threads; what is set on it (the namespace) is set
// before it is shared.
unsafe impl Sync for Pool<'_> {}

impl Pool<'_> {
    pub(crate) fn id(&self) -> i64 {
        // SAFETY: the handle is open.
        unsafe { (self.ceph.rados.rados_ioctx_get_id)(self.io) }
    }

    /// Whether any of its images may be mirrored.
    pub(crate) fn is_mirrored(&self) -> Result<bool, Failure> {
        let mut mode = NOT_MIRRORED;
        // SAFETY: the handle is open, and the call fills in the mode.
        let code = unsafe { (self.ceph.rbd.rbd_mirror_mode_get)(self.io, &raw mut mode) };
        ok(code).map_err(|code| ceph_said(Step::Pool, "read the pool's mirroring", code))?;
        Ok(mode != NOT_MIRRORED)
    }

    /// Its images: name and id.
    pub(crate) fn images(&self) -> Result<Vec<(String, String)>, Failure> {
        let list = all(1024, |items: *mut ImageSpec, count| {
            // SAFETY: there is room for as many items as the count says.
            unsafe { (self.ceph.rbd.rbd_list2)(self.io, items, count) }
        });
        let mut list = list.map_err(|code| ceph_said(Step::List, "list the images", code))?;
        let images = list.iter().map(|image| (text(image.name), text(image.id))).collect();
        // SAFETY: librbd filled in exactly these, and nothing of them is used after.
        unsafe { (self.ceph.rbd.rbd_image_spec_list_cleanup)(list.as_mut_ptr(), list.len()) };
        Ok(images)
    }

    pub(crate) fn trash(&self) -> Result<Vec<Trashed>, Failure> {
        let list = all(64, |items: *mut TrashImageInfo, count| {
            // SAFETY: there is room for as many items as the count says.
            unsafe { (self.ceph.rbd.rbd_trash_list)(self.io, items, count) }
        });
        let mut list = list.map_err(|code| ceph_said(Step::List, "list the trash", code))?;
        let trash = list.iter().map(|entry| Trashed { id: text(entry.id), name: text(entry.name) }).collect();
        // SAFETY: librbd filled in exactly these, and nothing of them is used after.
        unsafe { (self.ceph.rbd.rbd_trash_list_cleanup)(list.as_mut_ptr(), list.len()) };
        Ok(trash)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let (old, new) = (c_string(from)?, c_string(to)?);
        // SAFETY: the handle is open, the strings end with NUL.
        let code = unsafe { (self.ceph.rbd.rbd_rename)(self.io, old.as_ptr(), new.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Rename, format!("rename the image {from} to {to}"), code))
    }

    /// Clones a snapshot of an image. In the second format, for which the snapshot need not be protected.
    pub(crate) fn clone(&self, parent: &str, snapshot: &str, to: &str, features: u64) -> Result<(), Failure> {
        let [from, of, name] = [c_string(parent)?, c_string(snapshot)?, c_string(to)?];
        let rbd = &self.ceph.rbd;
        let mut options = null_mut();
        // SAFETY: the call fills in the handle.
        unsafe { (rbd.rbd_image_options_create)(&raw mut options) };
        let set = |option, value| {
            // SAFETY: the options were made, and live until below.
            ok(unsafe { (rbd.rbd_image_options_set_uint64)(options, option, value) })
        };
        let cloned = set(OPTION_FEATURES, features).and_then(|_| set(OPTION_CLONE_FORMAT, 2)).and_then(|_| {
            // SAFETY: the handles are open, the strings end with NUL.
            ok(unsafe { (rbd.rbd_clone3)(self.io, from.as_ptr(), of.as_ptr(), self.io, name.as_ptr(), options) })
        });
        // SAFETY: they are of no use to anybody any more.
        unsafe { (rbd.rbd_image_options_destroy)(options) };
        let doing = || format!("clone {parent}@{snapshot} as {to}");
        cloned.map(|_| ()).map_err(|code| ceph_said(Step::Clone, doing(), code))
    }

    /// Removes an image, or what is left of one. One that is not there is fine.
    pub(crate) fn remove(&self, image: &str) -> Result<(), Failure> {
        let name = c_string(image)?;
        // SAFETY: the handle is open, the string ends with NUL.
        let code = unsafe { (self.ceph.rbd.rbd_remove)(self.io, name.as_ptr()) };
        match ok(code) {
            Err(code) if code == -libc::ENOENT => Ok(()),
            done => done.map(|_| ()).map_err(|code| ceph_said(Step::Clone, format!("remove the image {image}"), code)),
        }
    }

    /// Removes a name that leads to an image but is not in the pool's directory.
    pub(crate) fn remove_stray_name(&self, name: &str) -> Result<(), Failure> {
        let object = c_string(&format!("rbd_id.{name}"))?;
        // SAFETY: the handle is open, the string ends with NUL.
        let code = unsafe { (self.ceph.rados.rados_remove)(self.io, object.as_ptr()) };
        ok(code).map(|_| ()).map_err(|code| ceph_said(Step::Rename, format!("remove the stray name {name}"), code))
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        // SAFETY: no image is open in it any more: all of them borrow us.
        unsafe { (self.ceph.rados.rados_ioctx_destroy)(self.io) };
    }
}

/// Ceph's functions return an error's number as a negative one.
pub(crate) fn ok(code: c_int) -> Result<c_int, c_int> {
    if code < 0 { Err(code) } else { Ok(code) }
}

/// Asks for a list in the way of librbd: with room for so many; if it says that they are more, with room for those.
pub(crate) fn all<T: Blank>(room: usize, mut ask: impl FnMut(*mut T, *mut usize) -> c_int) -> Result<Vec<T>, c_int> {
    let mut room = room;
    loop {
        let (mut items, mut count) = (vec![T::BLANK; room], room);
        match ok(ask(items.as_mut_ptr(), &raw mut count)) {
            Ok(_) => {
                items.truncate(count);
                return Ok(items);
            }
            Err(code) if code == -libc::ERANGE => room = count.max(room * 2),
            Err(code) => return Err(code),
        }
    }
}
