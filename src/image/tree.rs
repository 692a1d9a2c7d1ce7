//! A directory tree's entries, read once, in an order that depends on nothing but the names.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

/// A directory, what is in it, and so on down; mount points are entered only at the top.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The directory at the top.
    root: PathBuf,
    /// The same, open: what is read below it is found from here, and through no symbolic link that has taken the place
    /// of a directory meanwhile. Who may write to the tree need not be allowed to read what this process may.
    top: OwnedFd,
    /// Each directory comes before what is in it; names in a directory ascend by their bytes. The first is the top.
    pub(crate) nodes: Vec<Node>,
}

/// An entry of a tree.
#[derive(Debug)]
pub(crate) struct Node {
    /// The path below the top; empty for the top.
    pub(crate) path: PathBuf,
    /// The index of the directory that it is in; the top is in itself.
    pub(crate) parent: usize,
    /// What `lstat` says.
    pub(crate) metadata: Metadata,
}

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An entry cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The entry.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// An entry is not the same as a moment ago.
    #[error("{path} changed while it was being read; run again when nothing writes to the directory", path = path.display())]
    Changed {
        /// The entry.
        path: PathBuf,
    },
}

impl Node {
    /// Major and minor number of a device node; zeros for anything else.
    pub(crate) fn device_numbers(&self) -> (u32, u32) {
        match self.metadata.mode() & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => {
                (rustix::fs::major(self.metadata.rdev()), rustix::fs::minor(self.metadata.rdev()))
            }
            _ => (0, 0),
        }
    }
}

impl Tree {
    /// Reads the tree's names and metadata. Symbolic links are not followed.
    pub(crate) fn scan(root: &Path) -> Result<Self, TreeError> {
        let read = |path: &Path, source| TreeError::Read { path: path.to_owned(), source };
        let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let top = top.map_err(|errno| read(root, errno.into()))?;
        let metadata = fs::metadata(root).map_err(|source| read(root, source))?;
        let device = metadata.dev();
        let mut nodes = vec![Node { path: PathBuf::new(), parent: 0, metadata }];
        // Directories still to be read, deepest and first-named last.
        let mut pending: Vec<(PathBuf, usize)> = Vec::new();
        let mut next = Some((PathBuf::new(), 0));
        while let Some((path, parent)) = next {
            let index = if path.as_os_str().is_empty() {
                0
            } else {
                let full = root.join(&path);
                let metadata = fs::symlink_metadata(&full).map_err(|source| read(&full, source))?;
                nodes.push(Node { path: path.clone(), parent, metadata });
                nodes.len() - 1
            };
            if nodes[index].metadata.is_dir() && nodes[index].metadata.dev() == device {
                let full = root.join(&path);
                let mut names = names(&top, &path).map_err(|errno| read(&full, errno.into()))?;
                names.sort_unstable();
                pending.extend(names.into_iter().rev().map(|name| (path.join(name), index)));
            }
            next = pending.pop();
        }
        Ok(Self { root: root.to_owned(), top, nodes })
    }

    /// Where `node` is.
    pub(crate) fn path(&self, node: &Node) -> PathBuf {
        if node.path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&node.path) }
    }

    /// Opens the regular file `node`, if it still is what it was.
    pub(crate) fn open(&self, node: &Node) -> Result<File, TreeError> {
        let file = open_beneath(&self.top, &node.path, OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(|errno| TreeError::Read { path: self.path(node), source: errno.into() })?;
        let file = File::from(file);
        self.check(node, &file)?;
        Ok(file)
    }

    /// Checks that `file` is `node` and has not changed since the scan.
    pub(crate) fn check(&self, node: &Node, file: &File) -> Result<(), TreeError> {
        let path = self.path(node);
        let now = file.metadata().map_err(|source| TreeError::Read { path: path.clone(), source })?;
        let identity =
            |m: &Metadata| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        if identity(&now) == identity(&node.metadata) { Ok(()) } else { Err(TreeError::Changed { path }) }
    }

    /// Where the symbolic link `node` points.
    pub(crate) fn link_target(&self, node: &Node) -> Result<OsString, TreeError> {
        let path = self.path(node);
        let target = open_beneath(&self.top, &node.path, OFlags::PATH)
            .and_then(|link| rustix::fs::readlinkat(link, "", Vec::new()))
            .map_err(|errno| TreeError::Read { path: path.clone(), source: errno.into() })?;
        let target = OsString::from_vec(target.into_bytes());
        if target.len() as u64 == node.metadata.size() { Ok(target) } else { Err(TreeError::Changed { path }) }
    }
}

/// Opens `path` below `top`, and not if any part of it is a symbolic link; a link itself can be had as a path only.
fn open_beneath(top: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
}

/// What the directory `path` below `top` holds, in no order.
fn names(top: &OwnedFd, path: &Path) -> rustix::io::Result<Vec<OsString>> {
    let directory = open_beneath(top, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn entries_come_in_the_order_of_their_bytes_below_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["b/z", "b/a", "a.x", "b-", "a/1"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let tree = Tree::scan(dir.path()).unwrap();
        let paths: Vec<_> = tree.nodes.iter().map(|n| n.path.as_os_str().as_bytes()).collect();
        let expected = ["", "a", "a/1", "a.x", "b", "b/a", "b/z", "b-", "link"];
        assert_eq!(paths, expected.map(str::as_bytes));
        for node in &tree.nodes[1..] {
            assert_eq!(tree.nodes[node.parent].path, node.path.parent().unwrap());
        }
    }

    #[test]
    fn what_changed_after_the_scan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), b"1").unwrap();
        let tree = Tree::scan(dir.path()).unwrap();
        assert!(tree.open(&tree.nodes[1]).is_ok());
        fs::write(dir.path().join("f"), b"22").unwrap();
        assert!(matches!(tree.open(&tree.nodes[1]), Err(TreeError::Changed { .. })));
        fs::remove_file(dir.path().join("f")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("f")).unwrap();
        assert!(matches!(tree.open(&tree.nodes[1]), Err(TreeError::Read { .. })), "a link is not followed");
    }

    #[test]
    fn a_directory_that_has_become_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("d/f"), b"secret").unwrap();
        std::os::unix::fs::symlink("secret", root.join("d/l")).unwrap();
        let tree = Tree::scan(&root).unwrap();
        let node = |path: &str| tree.nodes.iter().find(|node| node.path == Path::new(path)).unwrap();
        assert!(tree.open(node("d/f")).is_ok());
        assert_eq!(tree.link_target(node("d/l")).unwrap(), "secret");
        fs::rename(root.join("d"), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("d")).unwrap();
        assert!(matches!(tree.open(node("d/f")), Err(TreeError::Read { .. })));
        assert!(matches!(tree.link_target(node("d/l")), Err(TreeError::Read { .. })));
        assert!(names(&tree.top, Path::new("d")).is_err());
    }
}
