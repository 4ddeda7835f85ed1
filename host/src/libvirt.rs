//! libvirt's C library, opened when it is first needed: Mortar is built and installed without libvirt, and a linked one would
//! make every agent 11 MiB larger, whether it has instances or not.
//!
//! Each function stands here as its C header declares it (`libvirt/libvirt-domain.h` and its neighbours of libvirt 9.0). All of
//! them are in libvirt 1.2.3 (2014) and every later one; the library keeps its ABI (`.so.0`).
//!
//! Every call blocks, for as long as the daemon likes.

use libloading::os::unix::{Library as File, RTLD_LOCAL, RTLD_NOW};
use std::{
    error::Error as StdError,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void},
    fmt,
    mem::forget,
    ptr::null_mut,
    sync::Arc,
};

/// With the passwords (`virDomainXMLFlags`).
pub const XML_SECURE: c_uint = 1;
/// As it starts the next time.
pub const XML_INACTIVE: c_uint = 2;

/// It runs (`virDomainState`).
pub const STATE_RUNNING: c_int = 1;
/// It runs, and waits for something.
pub const STATE_BLOCKED: c_int = 2;
/// It was halted.
pub const STATE_PAUSED: c_int = 3;
/// It does not run.
pub const STATE_SHUTOFF: c_int = 5;

/// Those that stay when they are stopped (`virConnectListAllDomainsFlags`).
pub const LIST_PERSISTENT: c_uint = 1 << 2;
/// Those that run.
pub const LIST_RUNNING: c_uint = 1 << 4;
/// Those that were halted.
pub const LIST_PAUSED: c_uint = 1 << 5;
/// Those that do not run.
pub const LIST_SHUTOFF: c_uint = 1 << 6;
/// Those whose memory was saved.
pub const LIST_MANAGEDSAVE: c_uint = 1 << 8;
/// Those that start with the host.
pub const LIST_AUTOSTART: c_uint = 1 << 10;
/// Those with snapshots.
pub const LIST_HAS_SNAPSHOT: c_uint = 1 << 12;

/// `virConnectPtr`, `virDomainPtr`.
type Handle = *mut c_void;

/// The beginning of `virError`, virterror.h.
#[repr(C)]
struct VirError {
    code: c_int,
    domain: c_int,
    message: *const c_char,
}

/// An error as libvirt tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `virErrorNumber`.
    pub code: c_int,
    /// `virErrorDomain`: which part of libvirt it is of.
    pub domain: c_int,
    /// In its own words, which may have several lines.
    pub message: String,
}

/// The result of every call.
pub type Result<T> = std::result::Result<T, Said>;

macro_rules! functions {
    ($($function:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        #[allow(non_snake_case, reason = "as the header has them")]
        struct Functions {
            $($function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            fn of(file: &File) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    $($function: {
                        #[expect(unsafe_code, reason = "the header's prototype is all there is to go by")]
                        // SAFETY: the type is that of the field, which mirrors the C header.
                        let symbol = unsafe { file.get(stringify!($function)) }?;
                        *symbol
                    },)*
                })
            }
        }
    };
}

functions! {
    virConnectOpen(*const c_char) -> Handle;
    virConnectClose(Handle) -> c_int;
    virConnectGetLibVersion(Handle, *mut c_ulong) -> c_int;
    virConnectListAllDomains(Handle, *mut *mut Handle, c_uint) -> c_int;
    virDomainLookupByName(Handle, *const c_char) -> Handle;
    virDomainLookupByUUID(Handle, *const u8) -> Handle;
    virDomainDefineXML(Handle, *const c_char) -> Handle;
    virDomainFree(Handle) -> c_int;
    virDomainGetName(Handle) -> *const c_char;
    virDomainGetUUID(Handle, *mut u8) -> c_int;
    virDomainGetState(Handle, *mut c_int, *mut c_int, c_uint) -> c_int;
    virDomainGetAutostart(Handle, *mut c_int) -> c_int;
    virDomainGetXMLDesc(Handle, c_uint) -> *mut c_char;
    virDomainHasManagedSaveImage(Handle, c_uint) -> c_int;
    virDomainIsActive(Handle) -> c_int;
    virDomainIsPersistent(Handle) -> c_int;
    virDomainSnapshotNum(Handle, c_uint) -> c_int;
    virDomainCreateWithFlags(Handle, c_uint) -> c_int;
    virDomainShutdownFlags(Handle, c_uint) -> c_int;
    virDomainDestroyFlags(Handle, c_uint) -> c_int;
    virGetLastError() -> *const VirError;
    virSetErrorFunc(*mut c_void, extern "C" fn(*mut c_void, *const VirError));
}

/// The library, loaded until the process ends; clones are the same.
#[derive(Clone)]
pub struct Library(Arc<Functions>);

/// A connection to a daemon, closed when it is dropped.
pub struct Connection {
    functions: Arc<Functions>,
    handle: Handle,
}

/// An instance, as a connection knows it.
pub struct Domain {
    functions: Arc<Functions>,
    handle: Handle,
}

#[expect(unsafe_code, reason = "libvirt's objects may be used by any thread")]
// SAFETY: "all libvirt APIs are thread-safe", and its objects are counted atomically (libvirt.org/internals/locking).
unsafe impl Send for Connection {}
#[expect(unsafe_code, reason = "libvirt's objects may be used by any thread")]
// SAFETY: as above.
unsafe impl Sync for Connection {}

/// Everything that it says is in its errors; by itself it would write them to our stderr.
extern "C" fn keep_quiet(_data: *mut c_void, _error: *const VirError) {}

/// Makes a call of the table.
macro_rules! call {
    ($functions:expr, $function:ident($($argument:expr),*)) => {{
        #[expect(unsafe_code, reason = "C")]
        // SAFETY: the arguments are what the header asks for: handles that are held by their owner for as long as the call,
        // texts that end with a zero, and places of our own to write to.
        unsafe { ($functions.$function)($($argument),*) }
    }};
}

impl Library {
    /// Loads it. `Err` says why it cannot be, as where it is not installed.
    pub fn load() -> std::result::Result<Self, Box<dyn StdError + Send + Sync>> {
        #[expect(unsafe_code, reason = "to load a library is to run its code")]
        // SAFETY: libvirt's initialisers only set up its own state.
        let file = unsafe { File::open(Some("libvirt.so.0"), RTLD_NOW | RTLD_LOCAL) }?;
        let functions = Functions::of(&file)?;
        // What it has registered with the C library stays registered.
        forget(file);
        call!(functions, virSetErrorFunc(null_mut(), keep_quiet));
        Ok(Self(Arc::new(functions)))
    }

    /// Connects to the daemon at a URI.
    pub fn connect(&self, uri: &str) -> Result<Connection> {
        let uri = text(uri)?;
        let handle = call!(self.0, virConnectOpen(uri.as_ptr()));
        self.0.there(handle).map(|handle| Connection { functions: Arc::clone(&self.0), handle })
    }
}

impl Functions {
    /// What went wrong last, in this thread.
    fn said(&self) -> Said {
        let error = call!(self, virGetLastError());
        #[expect(unsafe_code, reason = "C")]
        // SAFETY: it is null or this thread's own error, which stays until the next call.
        let error = unsafe { error.as_ref() };
        match error {
            Some(error) => Said { code: error.code, domain: error.domain, message: copied(error.message) },
            None => Said { code: 0, domain: 0, message: "it does not say why".into() },
        }
    }

    fn there(&self, handle: Handle) -> Result<Handle> {
        if handle.is_null() { Err(self.said()) } else { Ok(handle) }
    }

    /// A number that is no error.
    fn number(&self, number: c_int) -> Result<u32> {
        u32::try_from(number).map_err(|_| self.said())
    }
}

impl Connection {
    /// As the daemon says: 9000000 is 9.0.0.
    pub fn version(&self) -> Result<u64> {
        let mut version: c_ulong = 0;
        self.functions.number(call!(self.functions, virConnectGetLibVersion(self.handle, &raw mut version)))?;
        Ok(version)
    }

    /// All instances, or those that a flag `LIST_…` names.
    pub fn domains(&self, flags: c_uint) -> Result<Vec<Domain>> {
        let mut list: *mut Handle = null_mut();
        let found = call!(self.functions, virConnectListAllDomains(self.handle, &raw mut list, flags));
        let count = self.functions.number(found)? as usize;
        let domain = |index| {
            #[expect(unsafe_code, reason = "C")]
            // SAFETY: the list has as many handles as it said, and each is ours from now on.
            let handle = unsafe { *list.add(index) };
            Domain { functions: Arc::clone(&self.functions), handle }
        };
        let domains = (0..count).map(domain).collect();
        free(list.cast());
        Ok(domains)
    }

    /// An instance by its name.
    pub fn by_name(&self, name: &str) -> Result<Domain> {
        let name = text(name)?;
        self.domain(call!(self.functions, virDomainLookupByName(self.handle, name.as_ptr())))
    }

    /// An instance by its UUID.
    pub fn by_uuid(&self, uuid: &[u8; 16]) -> Result<Domain> {
        self.domain(call!(self.functions, virDomainLookupByUUID(self.handle, uuid.as_ptr())))
    }

    /// Defines an instance, or in the place of the one with its UUID.
    pub fn define(&self, xml: &str) -> Result<Domain> {
        let xml = text(xml)?;
        self.domain(call!(self.functions, virDomainDefineXML(self.handle, xml.as_ptr())))
    }

    fn domain(&self, handle: Handle) -> Result<Domain> {
        self.functions.there(handle).map(|handle| Domain { functions: Arc::clone(&self.functions), handle })
    }
}

impl Domain {
    /// Its name.
    pub fn name(&self) -> String {
        copied(call!(self.functions, virDomainGetName(self.handle)))
    }

    /// Its UUID.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        let mut uuid = [0; 16];
        self.functions.number(call!(self.functions, virDomainGetUUID(self.handle, uuid.as_mut_ptr())))?;
        Ok(uuid)
    }

    /// One of `STATE_…`, or another.
    pub fn state(&self) -> Result<c_int> {
        let mut state = 0;
        let done = call!(self.functions, virDomainGetState(self.handle, &raw mut state, null_mut(), 0));
        self.functions.number(done).map(|_| state)
    }

    /// Whether it starts with the host.
    pub fn autostart(&self) -> Result<bool> {
        let mut autostart = 0;
        let done = call!(self.functions, virDomainGetAutostart(self.handle, &raw mut autostart));
        self.functions.number(done).map(|_| autostart != 0)
    }

    /// Its definition; flags are `XML_…`.
    pub fn xml(&self, flags: c_uint) -> Result<String> {
        let xml = call!(self.functions, virDomainGetXMLDesc(self.handle, flags));
        let handle = self.functions.there(xml.cast())?;
        let xml = copied(handle.cast());
        free(handle);
        Ok(xml)
    }

    /// Whether its memory was saved.
    pub fn has_managed_save(&self) -> Result<bool> {
        self.functions.number(call!(self.functions, virDomainHasManagedSaveImage(self.handle, 0))).map(|has| has != 0)
    }

    /// Whether it runs, in whatever state.
    pub fn is_active(&self) -> Result<bool> {
        self.functions.number(call!(self.functions, virDomainIsActive(self.handle))).map(|is| is != 0)
    }

    /// Whether it stays when it is stopped.
    pub fn is_persistent(&self) -> Result<bool> {
        self.functions.number(call!(self.functions, virDomainIsPersistent(self.handle))).map(|is| is != 0)
    }

    /// How many snapshots there are of it.
    pub fn snapshots(&self) -> Result<u32> {
        self.functions.number(call!(self.functions, virDomainSnapshotNum(self.handle, 0)))
    }

    /// Lets it run.
    pub fn start(&self) -> Result<()> {
        self.functions.number(call!(self.functions, virDomainCreateWithFlags(self.handle, 0))).map(|_| ())
    }

    /// Asks its guest to shut down.
    pub fn shut_down(&self) -> Result<()> {
        self.functions.number(call!(self.functions, virDomainShutdownFlags(self.handle, 0))).map(|_| ())
    }

    /// Ends it.
    pub fn destroy(&self) -> Result<()> {
        self.functions.number(call!(self.functions, virDomainDestroyFlags(self.handle, 0))).map(|_| ())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The daemon may be gone, and with it the connection.
        let _references_left = call!(self.functions, virConnectClose(self.handle));
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let _done = call!(self.functions, virDomainFree(self.handle));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Library")
    }
}

/// A text for C. One with a zero in it is none of libvirt's.
fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Said { code: 0, domain: 0, message: "there is a zero in it".into() })
}

fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    #[expect(unsafe_code, reason = "C")]
    // SAFETY: libvirt's texts end with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

fn free(memory: *mut c_void) {
    #[expect(unsafe_code, reason = "C")]
    // SAFETY: libvirt gave it to us to free, and it is not used any more.
    unsafe {
        libc::free(memory);
    }
}
