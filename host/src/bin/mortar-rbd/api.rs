//! Ceph's C libraries, opened when they are needed: Mortar is built and installed without Ceph.
//!
//! Each function stands here as its C header declares it (`rados/librados.h` and `rbd/librbd.h` of Ceph 16.2), with the
//! line where. All of them are in Ceph 14 (2019) and every later one; both libraries keep their ABI (`.so.2`, `.so.1`).

use host::rbd_job::{Failure, Step};
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use std::{
    error::Error,
    ffi::{c_char, c_int, c_uint, c_void},
    mem::{forget, offset_of},
    ptr::{null, null_mut},
};

/// A cluster (`rados_t`), a pool and namespace in it (`rados_ioctx_t`), an open image (`rbd_image_t`),
/// options for a new one (`rbd_image_options_t`).
pub(crate) type Handle = *mut c_void;

/// `rbd_image_spec_t`, librbd.h:86.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageSpec {
    pub(crate) id: *mut c_char,
    pub(crate) name: *mut c_char,
}

/// `rbd_linked_image_spec_t`, librbd.h:91.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LinkedImageSpec {
    pub(crate) pool_id: i64,
    pub(crate) pool_name: *mut c_char,
    pub(crate) pool_namespace: *mut c_char,
    pub(crate) image_id: *mut c_char,
    pub(crate) image_name: *mut c_char,
    pub(crate) trash: u8,
}

/// `rbd_snap_spec_t`, librbd.h:100.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SnapSpec {
    pub(crate) id: u64,
    pub(crate) namespace_type: c_uint,
    pub(crate) name: *mut c_char,
}

/// `rbd_snap_info_t`, librbd.h:106.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SnapInfo {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) name: *const c_char,
}

/// `rbd_mirror_image_info_t`, librbd.h:189.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MirrorImageInfo {
    pub(crate) global_id: *mut c_char,
    pub(crate) state: c_uint,
    pub(crate) primary: u8,
}

/// `rbd_trash_image_info_t`, librbd.h:311.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TrashImageInfo {
    pub(crate) id: *mut c_char,
    pub(crate) name: *mut c_char,
    pub(crate) source: c_uint,
    pub(crate) deletion_time: libc::time_t,
    pub(crate) deferment_end_time: libc::time_t,
}

/// `rbd_image_watcher_t`, librbd.h:319.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageWatcher {
    pub(crate) addr: *mut c_char,
    pub(crate) id: i64,
    pub(crate) cookie: u64,
}

/// `RBD_IMAGE_OPTION_FEATURES`, librbd.h:288.
pub(crate) const OPTION_FEATURES: c_int = 1;
/// `RBD_IMAGE_OPTION_CLONE_FORMAT`, librbd.h:299.
pub(crate) const OPTION_CLONE_FORMAT: c_int = 12;
/// `RBD_SNAP_NAMESPACE_TYPE_USER`, librbd.h:80.
pub(crate) const SNAPSHOT_OF_A_USER: c_uint = 0;
/// `RBD_MIRROR_MODE_DISABLED`, librbd.h:149.
pub(crate) const NOT_MIRRORED: c_uint = 0;
/// `RBD_MIRROR_IMAGE_DISABLED`, librbd.h:186.
pub(crate) const IMAGE_NOT_MIRRORED: c_uint = 2;

macro_rules! library {
    ($(#[$of:meta])* $table:ident
     $($(#[$line:meta])* $function:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$of])*
        pub(crate) struct $table {
            $($(#[$line])* pub(crate) $function: unsafe extern "C" fn($($argument: $type),*) $(-> $result)?,)*
        }

        impl $table {
            fn of(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($function: {
                        #[expect(unsafe_code, reason = "the header's prototype is all there is to go by")]
                        // SAFETY: the type is that of the field, which mirrors the C header.
                        let symbol = unsafe { library.get(stringify!($function)) }?;
                        *symbol
                    },)*
                })
            }
        }
    };
}

library! {
    /// librados.so.2
    Rados
    /// librados.h:445
    rados_create2(cluster: *mut Handle, cluster_name: *const c_char, name: *const c_char, flags: u64) -> c_int;
    /// librados.h:493
    rados_connect(cluster: Handle) -> c_int;
    /// librados.h:513
    rados_shutdown(cluster: Handle);
    /// librados.h:551
    rados_conf_read_file(cluster: Handle, path: *const c_char) -> c_int;
    /// librados.h:618
    rados_conf_set(cluster: Handle, option: *const c_char, value: *const c_char) -> c_int;
    /// librados.h:663
    rados_cluster_fsid(cluster: Handle, buffer: *mut c_char, length: usize) -> c_int;
    /// librados.h:779
    rados_ioctx_create(cluster: Handle, pool: *const c_char, io: *mut Handle) -> c_int;
    /// librados.h:804
    rados_ioctx_destroy(io: Handle);
    /// librados.h:1008
    rados_ioctx_get_id(io: Handle) -> i64;
    /// librados.h:1055
    rados_ioctx_set_namespace(io: Handle, namespace: *const c_char);
    /// librados.h:1628
    rados_remove(io: Handle, object: *const c_char) -> c_int;
}

library! {
    /// librbd.so.1
    Rbd
    /// librbd.h:400
    rbd_image_options_create(options: *mut Handle);
    /// librbd.h:401
    rbd_image_options_destroy(options: Handle);
    /// librbd.h:404
    rbd_image_options_set_uint64(options: Handle, option: c_int, value: u64) -> c_int;
    /// librbd.h:419
    rbd_image_spec_list_cleanup(images: *mut ImageSpec, count: usize);
    /// librbd.h:421
    rbd_linked_image_spec_cleanup(image: *mut LinkedImageSpec);
    /// librbd.h:422
    rbd_linked_image_spec_list_cleanup(images: *mut LinkedImageSpec, count: usize);
    /// librbd.h:424
    rbd_snap_spec_cleanup(snapshot: *mut SnapSpec);
    /// librbd.h:429
    rbd_list2(io: Handle, images: *mut ImageSpec, capacity: *mut usize) -> c_int;
    /// librbd.h:465
    rbd_clone3(parent_io: Handle, parent: *const c_char, snapshot: *const c_char, clone_io: Handle, clone: *const c_char, options: Handle) -> c_int;
    /// librbd.h:468
    rbd_remove(io: Handle, name: *const c_char) -> c_int;
    /// librbd.h:472
    rbd_rename(io: Handle, from: *const c_char, to: *const c_char) -> c_int;
    /// librbd.h:480
    rbd_trash_list(io: Handle, entries: *mut TrashImageInfo, count: *mut usize) -> c_int;
    /// librbd.h:483
    rbd_trash_list_cleanup(entries: *mut TrashImageInfo, count: usize);
    /// librbd.h:538
    rbd_mirror_mode_get(io: Handle, mode: *mut c_uint) -> c_int;
    /// librbd.h:664
    rbd_open_by_id(io: Handle, id: *const c_char, image: *mut Handle, snapshot: *const c_char) -> c_int;
    /// librbd.h:693
    rbd_open_read_only(io: Handle, name: *const c_char, image: *mut Handle, snapshot: *const c_char) -> c_int;
    /// librbd.h:695
    rbd_open_by_id_read_only(io: Handle, id: *const c_char, image: *mut Handle, snapshot: *const c_char) -> c_int;
    /// librbd.h:706
    rbd_close(image: Handle) -> c_int;
    /// librbd.h:716
    rbd_get_size(image: Handle, size: *mut u64) -> c_int;
    /// librbd.h:717
    rbd_get_features(image: Handle, features: *mut u64) -> c_int;
    /// librbd.h:715
    rbd_get_old_format(image: Handle, old: *mut u8) -> c_int;
    /// librbd.h:733
    rbd_get_name(image: Handle, name: *mut c_char, length: *mut usize) -> c_int;
    /// librbd.h:734
    rbd_get_id(image: Handle, id: *mut c_char, length: usize) -> c_int;
    /// librbd.h:753
    rbd_get_parent(image: Handle, parent: *mut LinkedImageSpec, snapshot: *mut SnapSpec) -> c_int;
    /// librbd.h:830
    rbd_snap_list(image: Handle, snapshots: *mut SnapInfo, capacity: *mut c_int) -> c_int;
    /// librbd.h:832
    rbd_snap_list_end(snapshots: *mut SnapInfo);
    /// librbd.h:834
    rbd_snap_create(image: Handle, name: *const c_char) -> c_int;
    /// librbd.h:838
    rbd_snap_remove(image: Handle, name: *const c_char) -> c_int;
    /// librbd.h:848
    rbd_snap_rename(image: Handle, from: *const c_char, to: *const c_char) -> c_int;
    /// librbd.h:873
    rbd_snap_is_protected(image: Handle, name: *const c_char, protected: *mut c_int) -> c_int;
    /// librbd.h:902
    rbd_snap_set_by_id(image: Handle, id: u64) -> c_int;
    /// librbd.h:906
    rbd_snap_get_namespace_type(image: Handle, id: u64, kind: *mut c_uint) -> c_int;
    /// librbd.h:973
    rbd_list_children3(image: Handle, images: *mut LinkedImageSpec, capacity: *mut usize) -> c_int;
    /// librbd.h:1229
    rbd_metadata_set(image: Handle, key: *const c_char, value: *const c_char) -> c_int;
    /// librbd.h:1230
    rbd_metadata_remove(image: Handle, key: *const c_char) -> c_int;
    /// librbd.h:1253
    rbd_metadata_list(image: Handle, after: *const c_char, most: u64, keys: *mut c_char, keys_length: *mut usize, values: *mut c_char, values_length: *mut usize) -> c_int;
    /// librbd.h:1269
    rbd_mirror_image_get_info(image: Handle, info: *mut MirrorImageInfo, size: usize) -> c_int;
    /// librbd.h:1272
    rbd_mirror_image_get_info_cleanup(info: *mut MirrorImageInfo);
    /// librbd.h:1365
    rbd_watchers_list(image: Handle, watchers: *mut ImageWatcher, capacity: *mut usize) -> c_int;
    /// librbd.h:1369
    rbd_watchers_list_cleanup(watchers: *mut ImageWatcher, count: usize);
}

/// Both libraries, open until the process ends: they have threads of their own, which would not survive a `dlclose`.
pub(crate) struct Ceph {
    pub(crate) rados: Rados,
    pub(crate) rbd: Rbd,
}

impl Ceph {
    pub(crate) fn load() -> Result<Self, Failure> {
        let (rados, rbd) = (open("librados.so.2")?, open("librbd.so.1")?);
        let tables = Rados::of(&rados).and_then(|rados| Ok(Self { rados, rbd: Rbd::of(&rbd)? }));
        forget((rados, rbd));
        tables.map_err(|error| {
            let why = format!("{error}; Ceph 14 or later is needed, install a newer librbd1");
            Failure::new(Step::Library, "use Ceph's libraries", why)
        })
    }
}

/// Lazily: most of what such a library refers to is never called, and binding it takes longer than the job.
fn open(library: &str) -> Result<Library, Failure> {
    #[expect(unsafe_code, reason = "a library runs its own code when it is loaded")]
    // SAFETY: these two are made to be loaded by any program, and no other thread of ours runs yet.
    unsafe { Library::open(Some(library), RTLD_LAZY | RTLD_LOCAL) }.map_err(|error| {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let why = format!("{why}; install the package librbd1 (Debian, Ubuntu, Red Hat and Fedora name it so)");
        Failure::new(Step::Library, format!("load {library}"), why)
    })
}

/// What the functions that fill in a list are given to begin with.
pub(crate) trait Blank: Copy {
    const BLANK: Self;
}

impl Blank for ImageSpec {
    const BLANK: Self = Self { id: null_mut(), name: null_mut() };
}

impl Blank for LinkedImageSpec {
    const BLANK: Self = Self {
        pool_id: 0,
        pool_name: null_mut(),
        pool_namespace: null_mut(),
        image_id: null_mut(),
        image_name: null_mut(),
        trash: 0,
    };
}

impl Blank for SnapSpec {
    const BLANK: Self = Self { id: 0, namespace_type: 0, name: null_mut() };
}

impl Blank for SnapInfo {
    const BLANK: Self = Self { id: 0, size: 0, name: null() };
}

impl Blank for MirrorImageInfo {
    const BLANK: Self = Self { global_id: null_mut(), state: 0, primary: 0 };
}

impl Blank for TrashImageInfo {
    const BLANK: Self = Self { id: null_mut(), name: null_mut(), source: 0, deletion_time: 0, deferment_end_time: 0 };
}

impl Blank for ImageWatcher {
    const BLANK: Self = Self { addr: null_mut(), id: 0, cookie: 0 };
}

/// As a C compiler lays them out on a 64-bit machine.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<ImageSpec>() == 16);
    assert!(size_of::<LinkedImageSpec>() == 48 && offset_of!(LinkedImageSpec, trash) == 40);
    assert!(size_of::<SnapSpec>() == 24 && offset_of!(SnapSpec, name) == 16);
    assert!(size_of::<SnapInfo>() == 24);
    assert!(size_of::<MirrorImageInfo>() == 16 && offset_of!(MirrorImageInfo, primary) == 12);
    assert!(size_of::<TrashImageInfo>() == 40 && offset_of!(TrashImageInfo, deletion_time) == 24);
    assert!(size_of::<ImageWatcher>() == 24);
};
