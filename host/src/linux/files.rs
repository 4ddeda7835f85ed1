//! Files: whole or not at all, and never one over another.

use super::{ioctls, is_absent};
use crate::{Error, FileStat, Result, Room, step::Going};
use nix::{
    fcntl::{AT_FDCWD, PosixFadviseAdvice, RenameFlags, posix_fadvise, renameat2},
    unistd::{Whence, lseek},
};
use std::{
    collections::BTreeMap,
    ffi::{CString, OsString},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(super) fn head(path: &Path, length: usize) -> Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::io("open", path))?;
    // The kernel may have it from before another host has written to the device. It forgets whole pages only.
    const PAGE: usize = 64 << 10;
    let pages = i64::try_from(length.next_multiple_of(PAGE)).unwrap_or(i64::MAX);
    let _asked_anew = posix_fadvise(&file, 0, pages, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

fn told(meta: &fs::Metadata) -> FileStat {
    FileStat {
        device: meta.dev(),
        inode: meta.ino(),
        size_bytes: meta.size(),
        is_file: meta.is_file(),
        is_directory: meta.is_dir(),
    }
}

pub(super) fn stat(path: &Path) -> Result<Option<FileStat>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(told(&meta))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

pub(super) fn resolve(path: &Path) -> Result<Option<PathBuf>> {
    match real_path(path) {
        Ok(resolved) => Ok(Some(resolved)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io("resolve", path)(error)),
    }
}

/// As realpath(3), which asks the kernel for each part of a path; here the kernel follows it as a whole, in three system calls.
pub(super) fn real_path(path: &Path) -> io::Result<PathBuf> {
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let real = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    // Of what is gone meanwhile, or lies outside of our root, this is no path (proc_pid_fd(5)).
    let is_path = real.is_absolute() && !real.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
    if is_path { Ok(real) } else { fs::canonicalize(path) }
}

/// What goes meanwhile is left out.
pub(super) fn in_directory(directory: &Path) -> Result<Vec<(String, FileStat)>> {
    let stat = |name: String| Ok(stat(&directory.join(&name))?.map(|stat| (name, stat)));
    super::list(directory)?.into_iter().filter_map(|name| stat(name).transpose()).collect()
}

pub(super) fn replace(path: &Path, content: &[u8], mode: u32, synced: bool) -> Result<()> {
    let directory = parent(path);
    make_directories(directory, 0o700)?;
    let beside = beside(path);
    let write = || -> io::Result<()> {
        remove_stale(&beside)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        if synced {
            file.sync_all()?;
        }
        fs::rename(&beside, path)?;
        if synced { sync_directory(directory) } else { Ok(()) }
    };
    write().map_err(|error| {
        let _half_written = fs::remove_file(&beside);
        Error::io("write", path)(error)
    })
}

/// Makes `to` by `fill` from `from`, or leaves nothing.
fn made(from: &Path, to: &Path, fill: impl FnOnce(&File, &File) -> Result<()>) -> Result<FileStat> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(from);
    let source = opened.map_err(Error::io("open", from))?;
    let stat = told(&source.metadata().map_err(Error::io("look at", from))?);
    let target = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists { path: to.into() }),
        opened => opened.map_err(Error::io("make", to))?,
    };
    let filled = fill(&source, &target).and_then(|()| target.sync_all().map_err(Error::io("sync", to)));
    filled.inspect_err(|_| {
        let _half_written = fs::remove_file(to);
    })?;
    Ok(stat)
}

pub(super) fn reflink(from: &Path, to: &Path) -> Result<FileStat> {
    made(from, to, |source, target| {
        // SAFETY: FICLONE takes a descriptor by value; both are open for the whole call.
        #[expect(unsafe_code, reason = "ioctl")]
        let done = unsafe { ioctls::ficlone(target.as_raw_fd(), source.as_raw_fd() as u64) };
        done.map(drop).map_err(|errno| {
            let error = match errno {
                // What a file system says that knows nothing of it, or not of these two files.
                nix::Error::ENOTTY | nix::Error::EINVAL | nix::Error::EXDEV => io::ErrorKind::Unsupported.into(),
                other => other.into(),
            };
            Error::io("share the blocks of", from)(error)
        })
    })
}

/// How much is copied between two looks at the clock.
const PIECE: usize = 4 << 20;

pub(super) fn copy(from: &Path, to: &Path, limit: Duration, step: Option<&Going>) -> Result<FileStat> {
    let end = Instant::now() + limit;
    made(from, to, |source, target| {
        let length = source.metadata().map_err(Error::io("look at", from))?.len();
        target.set_len(length).map_err(Error::io("write", to))?;
        let (mut at, mut buffer) = (0, vec![0; PIECE]);
        while let Some((begin, stop)) = data(source, at, length).map_err(Error::io("read", from))? {
            at = begin;
            while at < stop {
                if step.is_some_and(Going::is_cancelled) {
                    return Err(Error::Cancelled);
                }
                if Instant::now() >= end {
                    return Err(Error::TimedOut { what: format!("copy of {}", from.display()), after: limit });
                }
                let piece = usize::try_from(stop - at).unwrap_or(PIECE).min(PIECE);
                source.read_exact_at(&mut buffer[..piece], at).map_err(Error::io("read", from))?;
                target.write_all_at(&buffer[..piece], at).map_err(Error::io("write", to))?;
                at += piece as u64;
                if let Some(step) = step {
                    let done = u128::from(at) * 100 / u128::from(length.max(1));
                    step.says(format!("copy {} to {}: {done} %", from.display(), to.display()));
                }
            }
        }
        Ok(())
    })
}

/// Where the next data of a file is, which begins and ends between `at` and `length`; `None` if there is no more.
fn data(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
    if at >= length {
        return Ok(None);
    }
    let begin = match seek(at, Whence::SeekData) {
        Ok(begin) => u64::try_from(begin).unwrap_or(at),
        Err(nix::Error::ENXIO) => return Ok(None),
        // Where holes cannot be looked for there are none.
        Err(nix::Error::EINVAL) => return Ok(Some((at, length))),
        Err(errno) => return Err(errno.into()),
    };
    let stop = u64::try_from(seek(begin, Whence::SeekHole)?).unwrap_or(length);
    Ok(Some((begin.min(length), stop.min(length))))
}

pub(super) fn room(path: &Path) -> Result<Room> {
    let found =
        nix::sys::statvfs::statvfs(path).map_err(|errno| Error::io("look at the room of", path)(errno.into()))?;
    let block = found.fragment_size();
    Ok(Room { total_bytes: found.blocks() * block, free_bytes: found.blocks_available() * block })
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => sync_directory(parent(to)).map_err(Error::io("sync", parent(to))),
        Err(nix::Error::EEXIST) => Err(Error::Exists { path: to.into() }),
        Err(errno) => Err(Error::io("rename", from)(errno.into())),
    }
}

pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.map_err(Error::io("remove", path)),
    }
}

pub(super) fn link(name: &Path, target: &Path) -> Result<()> {
    let directory = parent(name);
    if !directory.exists() {
        make_directories(directory, 0o755)?;
        // Whatever our umask: those who use the links are others.
        fs::set_permissions(directory, Permissions::from_mode(0o755))
            .map_err(Error::io("set the mode of", directory))?;
    }
    let put_in_place = || -> io::Result<()> {
        let beside = beside(name);
        remove_stale(&beside)?;
        std::os::unix::fs::symlink(target, &beside)?;
        fs::rename(&beside, name)
    };
    let made = match std::os::unix::fs::symlink(target, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => put_in_place(),
        made => made,
    };
    made.map_err(Error::io("link", name))
}

/// Only this one: in configfs each directory is a thing, and its parents have to be others.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(Error::io("make the directory", path)),
    }
}

/// In place, without a rename: configfs knows none.
pub(super) fn symlink(name: &Path, target: &Path) -> Result<()> {
    match std::os::unix::fs::symlink(target, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // configfs gives a link a target of its own spelling.
            match (fs::canonicalize(name), fs::canonicalize(target)) {
                (Ok(there), Ok(wanted)) if there == wanted => Ok(()),
                _ => Err(Error::Exists { path: name.into() }),
            }
        }
        other => other.map_err(Error::io("link", name)),
    }
}

/// The name spaces in the order in which they are tried: tmpfs has no `user.` before Linux 6.6.
const NAME_SPACES: [&str; 2] = ["user.", "trusted."];

pub(super) fn attributes(path: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for name in xattr::names(path).map_err(Error::io("read the attributes of", path))? {
        let Some(plain) = NAME_SPACES.iter().find_map(|space| name.strip_prefix(space)) else { continue };
        if plain.starts_with(prefix) {
            let value = xattr::get(path, &name).map_err(Error::io("read the attributes of", path))?;
            found.insert(plain.to_owned(), value);
        }
    }
    Ok(found)
}

pub(super) fn set_attributes(path: &Path, attributes: &[(String, Option<String>)]) -> Result<()> {
    for (name, value) in attributes {
        match value {
            Some(value) => {
                let mut result = Ok(());
                for space in NAME_SPACES {
                    result = xattr::set(path, &format!("{space}{name}"), value);
                    if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
                        break;
                    }
                }
                result.map_err(Error::io("set an attribute of", path))?;
            }
            None => {
                for space in NAME_SPACES {
                    xattr::remove(path, &format!("{space}{name}"))
                        .map_err(Error::io("remove an attribute of", path))?;
                }
            }
        }
    }
    let sync = || File::open(path)?.sync_all();
    sync().map_err(Error::io("sync", path))
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The name under which a file is made before it takes its place. There is one for each name, so that what a crash
/// leaves is overwritten, not gathered.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_directories(directory: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(directory).map_err(Error::io("make", directory))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

mod xattr {
    //! Extended attributes of a path, links not followed (xattr(7)).

    use super::*;

    fn c_path(path: &Path) -> io::Result<CString> {
        Ok(CString::new(path.as_os_str().as_bytes())?)
    }

    /// A value longer than this is none of ours.
    const LONGEST: usize = 64 << 10;

    /// A system call's result as a length, or its error.
    fn length(result: isize) -> io::Result<usize> {
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
        let path = c_path(path)?;
        let mut buffer = vec![0_u8; LONGEST];
        // SAFETY: the path ends with a NUL, and the buffer has the length given.
        #[expect(unsafe_code, reason = "no safe wrapper")]
        let got = length(unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) });
        match got {
            Ok(got) => Ok(buffer[..got]
                .split(|byte| *byte == 0)
                .filter(|name| !name.is_empty())
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect()),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn get(path: &Path, name: &str) -> io::Result<String> {
        let (path, name) = (c_path(path)?, CString::new(name)?);
        let mut buffer = vec![0_u8; LONGEST];
        // SAFETY: path and name end with a NUL, and the buffer has the length given.
        #[expect(unsafe_code, reason = "no safe wrapper")]
        let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        Ok(String::from_utf8_lossy(&buffer[..length(got)?]).into_owned())
    }

    pub(super) fn set(path: &Path, name: &str, value: &str) -> io::Result<()> {
        let (path, name) = (c_path(path)?, CString::new(name)?);
        // SAFETY: path and name end with a NUL, and the value has the length given.
        #[expect(unsafe_code, reason = "no safe wrapper")]
        let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn remove(path: &Path, name: &str) -> io::Result<()> {
        let (path, name) = (c_path(path)?, CString::new(name)?);
        // SAFETY: path and name end with a NUL.
        #[expect(unsafe_code, reason = "no safe wrapper")]
        let done = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
        match io::Error::last_os_error() {
            _ if done == 0 => Ok(()),
            error if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
            error => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::{TempDir, tempdir};

    fn names(directory: &TempDir) -> Vec<String> {
        super::super::list(directory.path()).unwrap()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let directory = tempdir().unwrap();
        let path = directory.path().join("below/secret");
        // What a crash left half-written, for everybody to read.
        replace(&path, b"first", 0o600, true).unwrap();
        fs::write(beside(&path), "half").unwrap();
        replace(&path, b"second", 0o640, true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o640, 0o700));
        assert_eq!(super::super::list(path.parent().unwrap()).unwrap(), ["secret"]);
        assert_eq!(head(&path, 3).unwrap(), b"sec");
    }

    #[test]
    fn a_rename_takes_no_name_that_is_taken() {
        let directory = tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert!(matches!(rename(&a, &b), Err(Error::Exists { path }) if path == b));
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"a".to_vec(), b"b".to_vec()));
        rename(&a, &c).unwrap();
        assert_eq!((names(&directory), stat(&a).unwrap()), (vec!["b".to_owned(), "c".to_owned()], None));
        assert!(rename(&a, &c).is_err());
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes_or_is_not_there() {
        let directory = tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let file = File::create(&a).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 9 << 20, (40 << 20) + 7] {
            file.write_all_at(&vec![7; 5 << 20], at).unwrap();
        }
        let late = copy(&a, &b, Duration::ZERO, None);
        assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
        assert_eq!(names(&directory), ["a"]);
        let copied = copy(&a, &b, Duration::from_secs(60), None).unwrap();
        assert_eq!(Some(copied), stat(&a).unwrap());
        assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap());
        let meta = fs::metadata(&b).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        // Where the file system has holes.
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
        assert!(blocks(&b) <= blocks(&a) + 64, "{} and {}", blocks(&b), blocks(&a));
        assert!(matches!(copy(&a, &b, Duration::from_secs(60), None), Err(Error::Exists { .. })));
        fs::remove_file(&b).unwrap();
        match reflink(&a, &b) {
            Ok(_) => assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap()),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                assert_eq!(names(&directory), ["a"]);
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let directory = tempdir().unwrap();
        let name = directory.path().join("by-id/x");
        for target in ["/dev/sda", "/dev/sdb"] {
            link(&name, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&name).unwrap(), Path::new(target));
        }
        assert!(!stat(&name).unwrap().unwrap().is_file);
        assert_eq!(super::super::list(name.parent().unwrap()).unwrap(), ["x"]);
        remove(name.parent().unwrap()).unwrap();
        for _ in 0..2 {
            remove(&name).unwrap();
        }
        remove(name.parent().unwrap()).unwrap();
        assert_eq!(names(&directory), Vec::<String>::new());
    }

    #[test]
    fn attributes_are_set_changed_and_removed() {
        let directory = tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "").unwrap();
        let put =
            |name: &str, value: Option<&str>| set_attributes(&path, &[(name.to_owned(), value.map(str::to_owned))]);
        match put("mortar.id", Some("1")) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                println!("skipped, no attributes in {}", directory.path().display());
                return;
            }
            other => other.unwrap(),
        }
        put("mortar.id", Some("2")).unwrap();
        put("mortar.name", Some("a b")).unwrap();
        put("other", Some("x")).unwrap();
        let expected = [("mortar.id", "2"), ("mortar.name", "a b")];
        let expected: BTreeMap<_, _> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(attributes(&path, "mortar.").unwrap(), expected);
        for _ in 0..2 {
            put("mortar.id", None).unwrap();
        }
        assert_eq!(attributes(&path, "mortar.").unwrap().into_keys().collect::<Vec<_>>(), ["mortar.name"]);
        assert!(attributes(&directory.path().join("none"), "").is_err());
    }
}
