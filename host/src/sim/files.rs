//! Every file of the simulated machine: `/sys` and `/dev` as the kernel shows them, and what is on its disks.

use crate::{Command, FileStat, Output};
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

/// `st_dev` of every simulated file.
const DEVICE: u64 = 0xfd01;

/// How many links a path may lead through (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// What stands under a name.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory {
        inode: u64,
    },
    File(File),
    Link {
        target: PathBuf,
        inode: u64,
    },
    /// A device node, block or character.
    Device {
        inode: u64,
    },
}

/// A regular file. What is not in `content` is a hole.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
    pub(crate) inode: u64,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl File {
    /// Its first bytes, holes read as zeros.
    pub(crate) fn head(&self, length: usize) -> Vec<u8> {
        let mut head = self.content.clone();
        head.resize(usize::try_from(self.size_bytes).unwrap_or(usize::MAX).min(length), 0);
        head
    }
}

/// The tree. Every method but [`Files::take_tree`] and [`Files::stat`] follows the links on its way.
#[derive(Debug)]
pub(crate) struct Files {
    nodes: BTreeMap<PathBuf, Node>,
    next_inode: u64,
    /// Its file systems know `FICLONE`.
    pub(crate) reflinks: bool,
}

impl Files {
    pub(crate) fn new() -> Self {
        let mut files = Self { nodes: BTreeMap::new(), next_inode: 2, reflinks: true };
        files.make_directory("/");
        files
    }

    /// Where a path leads once every link in it is followed.
    pub(crate) fn resolve(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let resolved = self.place(path.as_ref(), true)?;
        self.nodes.contains_key(&resolved).then_some(resolved)
    }

    /// What a path leads to.
    pub(crate) fn node(&self, path: impl AsRef<Path>) -> Option<&Node> {
        self.nodes.get(&self.resolve(path)?)
    }

    /// The regular file that a path leads to.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> Option<&File> {
        match self.node(path)? {
            Node::File(file) => Some(file),
            _ => None,
        }
    }

    /// As [`Files::file`], to change it.
    pub(crate) fn file_mut(&mut self, path: impl AsRef<Path>) -> Option<&mut File> {
        let path = self.resolve(path)?;
        match self.nodes.get_mut(&path)? {
            Node::File(file) => Some(file),
            _ => None,
        }
    }

    /// A regular file by its inode, whatever it is called.
    pub(crate) fn by_inode(&self, wanted: u64) -> Option<(&Path, &File)> {
        self.nodes.iter().find_map(|(path, node)| match node {
            Node::File(file) if file.inode == wanted => Some((path.as_path(), file)),
            _ => None,
        })
    }

    /// A file's text without the newline at its end.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = String::from_utf8_lossy(&self.file(path)?.content).into_owned();
        Some(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
    }

    /// The names in a directory, sorted.
    pub(crate) fn list(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let Some(directory) = self.resolve(directory) else { return Vec::new() };
        self.under(&directory)
            .filter(|(path, _)| path.parent() == Some(&directory))
            .filter_map(|(path, _)| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Everything below a directory, sorted by path; the path is taken as it stands.
    pub(crate) fn under<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = (&'a Path, &'a Node)> {
        self.nodes
            .range(directory.to_path_buf()..)
            .map(|(path, node)| (path.as_path(), node))
            .take_while(move |(path, _)| path.starts_with(directory))
            .filter(move |(path, _)| *path != directory)
    }

    /// What a path is, its last link not followed.
    pub(crate) fn stat(&self, path: impl AsRef<Path>) -> Option<FileStat> {
        let (inode, size_bytes, is_file, is_directory) = match self.nodes.get(&self.place(path.as_ref(), false)?)? {
            Node::Directory { inode } => (*inode, 4096, false, true),
            Node::File(file) => (file.inode, file.size_bytes, true, false),
            Node::Link { target, inode } => (*inode, target.as_os_str().len() as u64, false, false),
            Node::Device { inode } => (*inode, 0, false, false),
        };
        Some(FileStat { device: DEVICE, inode, size_bytes, is_file, is_directory })
    }

    /// Writes a text file, which keeps its inode if it is there. Missing directories are made.
    pub(crate) fn put(&mut self, path: impl AsRef<Path>, text: impl Into<String>) {
        let content = text.into().into_bytes();
        let size_bytes = content.len() as u64;
        if let Some(file) = self.file_mut(&path) {
            (file.content, file.size_bytes) = (content, size_bytes);
        } else {
            self.create(path, content, size_bytes, 0o644);
        }
    }

    /// Puts a new regular file in place of whatever has the name.
    pub(crate) fn create(&mut self, path: impl AsRef<Path>, content: Vec<u8>, size_bytes: u64, mode: u32) {
        let inode = self.inode();
        let file = File { content, size_bytes, mode, inode, attributes: BTreeMap::new() };
        self.insert(path.as_ref(), Node::File(file));
    }

    /// Makes a directory, and those above it.
    pub(crate) fn make_directory(&mut self, path: impl AsRef<Path>) {
        if self.resolve(&path).is_none() {
            let inode = self.inode();
            self.insert(path.as_ref(), Node::Directory { inode });
        }
    }

    /// Makes or replaces a link.
    pub(crate) fn link(&mut self, name: impl AsRef<Path>, target: impl Into<PathBuf>) {
        let node = Node::Link { target: target.into(), inode: self.inode() };
        self.insert(name.as_ref(), node);
    }

    /// Puts a file under a second name, with the same inode.
    pub(crate) fn hard_link(&mut self, file: impl AsRef<Path>, name: impl AsRef<Path>) {
        if let Some(file) = self.file(file).cloned() {
            self.insert(name.as_ref(), Node::File(file));
        }
    }

    /// Makes a device node.
    pub(crate) fn make_device(&mut self, path: impl AsRef<Path>) {
        let node = Node::Device { inode: self.inode() };
        self.insert(path.as_ref(), node);
    }

    /// Takes one name away, its last link not followed. A directory must be empty.
    pub(crate) fn take(&mut self, path: impl AsRef<Path>) -> Option<Node> {
        let path = self.place(path.as_ref(), false)?;
        if self.under(&path).next().is_some() {
            return None;
        }
        self.nodes.remove(&path)
    }

    /// Takes a name away with everything below it; the path is taken as it stands.
    pub(crate) fn take_tree(&mut self, path: impl AsRef<Path>) {
        self.nodes.retain(|name, _| !name.starts_with(path.as_ref()));
    }

    /// Gives a file or a whole directory another name. False if there is no such file.
    pub(crate) fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> bool {
        if let Some(parent) = to.as_ref().parent() {
            self.make_directory(parent);
        }
        let (Some(from), Some(to)) = (self.place(from.as_ref(), false), self.place(to.as_ref(), false)) else {
            return false;
        };
        let moved: Vec<PathBuf> = self.nodes.keys().filter(|path| path.starts_with(&from)).cloned().collect();
        for path in &moved {
            if let (Ok(below), Some(node)) = (path.strip_prefix(&from), self.nodes.remove(path)) {
                let name = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
                self.nodes.insert(name, node);
            }
        }
        !moved.is_empty()
    }

    /// Makes a file with the content of another, which stays. Nothing, if that is not there.
    pub(crate) fn copy(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Option<FileStat> {
        let file = self.file(&from)?;
        let (content, size_bytes) = (file.content.clone(), file.size_bytes);
        self.create(to, content, size_bytes, 0o600);
        self.stat(from)
    }

    fn inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    fn insert(&mut self, path: &Path, node: Node) {
        if let Some(parent) = path.parent() {
            self.make_directory(parent);
        }
        let place = self.place(path, false).unwrap_or_else(|| path.to_path_buf());
        self.nodes.insert(place, node);
    }

    /// Where a name stands, whether or not anything is there; `None` if its directory is not there.
    fn place(&self, path: &Path, follow_last: bool) -> Option<PathBuf> {
        let mut place = PathBuf::from("/");
        let mut left: Vec<PathBuf> = parts(path);
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == Path::new("..") {
                place.pop();
                continue;
            }
            if !matches!(self.nodes.get(&place), Some(Node::Directory { .. })) && place != Path::new("/") {
                return None;
            }
            let next = place.join(&part);
            match self.nodes.get(&next) {
                Some(Node::Link { target, .. }) if follow_last || !left.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        place = PathBuf::from("/");
                    }
                    left.extend(parts(target));
                }
                _ => place = next,
            }
        }
        Some(place)
    }
}

/// `qemu-img create -f qcow2 -F FORMAT -b BACKING … FILE SIZE`: a header that names its backing file.
pub(crate) fn qemu_img(files: &mut Files, command: &Command) -> Output {
    let after = |option: &str| command.args.iter().skip_while(|arg| *arg != option).nth(1);
    let (Some(backing), [.., file, size]) = (after("-b"), command.args.as_slice()) else {
        return Output { code: 1, stderr: "qemu-img: Expecting image file name".into(), ..Output::default() };
    };
    let Ok(size) = size.parse::<u64>() else {
        return Output { code: 1, stderr: "qemu-img: Invalid image size".into(), ..Output::default() };
    };
    let mut header = b"QFI\xfb".to_vec();
    header.extend(3_u32.to_be_bytes());
    header.extend(104_u64.to_be_bytes());
    header.extend(u32::try_from(backing.len()).unwrap_or_default().to_be_bytes());
    header.extend(16_u32.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.resize(104, 0);
    header.extend(backing.as_bytes());
    let size_bytes = header.len() as u64;
    match files.file_mut(file) {
        Some(file) => (file.content, file.size_bytes) = (header, size_bytes),
        None => files.create(file, header, size_bytes, 0o644),
    }
    Output::default()
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<PathBuf> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_but_the_last_one_only_when_asked() {
        let mut files = Files::new();
        files.put("/sys/devices/virtual/block/dm-3/size", "8\n");
        files.link("/sys/block/dm-3", "../devices/virtual/block/dm-3");
        files.link("/loop", "/loop");
        assert_eq!(files.text("/sys/block/dm-3/size").unwrap(), "8");
        assert_eq!(files.resolve("/sys/block/dm-3").unwrap(), Path::new("/sys/devices/virtual/block/dm-3"));
        assert_eq!(files.list("/sys/block/dm-3"), ["size"]);
        assert_eq!(files.list("/sys/block"), ["dm-3"]);
        assert_eq!(files.resolve("/loop"), None);
        assert!(!files.stat("/sys/block/dm-3").unwrap().is_directory);
        assert!(files.stat("/sys/block/dm-3/size").unwrap().is_file);
    }

    #[test]
    fn a_rename_keeps_the_inode_and_takes_a_directory_whole() {
        let mut files = Files::new();
        files.create("/srv/a/x.raw", Vec::new(), 1024, 0o600);
        let before = files.stat("/srv/a/x.raw");
        assert!(files.rename("/srv/a", "/mnt/b"));
        assert_eq!(files.stat("/mnt/b/x.raw"), before);
        assert_eq!(files.stat("/srv/a"), None);
        assert!(!files.rename("/srv/a", "/srv/c"));
    }

    #[test]
    fn only_empty_directories_are_taken() {
        let mut files = Files::new();
        files.put("/etc/iscsi/nodes/x", "");
        assert!(files.take("/etc/iscsi").is_none());
        assert!(files.take("/etc/iscsi/nodes/x").is_some());
        assert!(files.take("/etc/iscsi/nodes").is_some());
        files.take_tree("/etc");
        assert_eq!(files.stat("/etc"), None);
    }
}
