//! What an image has at a path, without being mounted: for saying what a writable layer above it changes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::Rootfs;
use super::store::LayerStack;
use super::view::{View, ViewNode};

/// What an image says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowerFile {
    /// Permissions, and of the kinds of files only whether it is a directory, as in `st_mode`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was changed last, in seconds since 1970.
    pub mtime: i64,
}

impl LowerFile {
    /// Whether it is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

impl Rootfs {
    /// What the image has at `path`, from its root on without a slash in front. No symbolic link is followed. A disk has nothing.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn lower_file(&self, path: &[u8]) -> io::Result<Option<LowerFile>> {
        match self {
            Self::Directory(root) => in_directory(root, path),
            Self::Layers(stack) => file_in_layers(stack, path),
            Self::Disk(_) => Ok(None),
        }
    }

    /// The names in the directory that the image has at `path`.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn lower_names(&self, path: &[u8]) -> io::Result<BTreeSet<Vec<u8>>> {
        match self {
            Self::Directory(root) => names_in_directory(root, path),
            Self::Layers(stack) => names_in_layers(stack, path),
            Self::Disk(_) => Ok(BTreeSet::new()),
        }
    }
}

/// Opens what is below `root`, without following a link.
fn open_below(root: &Path, path: &[u8]) -> io::Result<Option<File>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(&top, path, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        // A link itself cannot be opened so; one on the way hides what is behind it.
        Err(Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn in_directory(root: &Path, path: &[u8]) -> io::Result<Option<LowerFile>> {
    let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let Some(parent) = open_below(root, parent)? else { return Ok(None) };
    let name = if name.is_empty() { b"." } else { name };
    match rustix::fs::statat(&parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(LowerFile {
            mode: mode_of(stat.st_mode),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
        })),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The kinds that are not told apart are the same.
const fn mode_of(mode: u32) -> u32 {
    let kind = if mode & libc::S_IFMT == libc::S_IFDIR { libc::S_IFDIR } else { 0 };
    kind | mode & 0o7777
}

fn names_in_directory(root: &Path, path: &[u8]) -> io::Result<BTreeSet<Vec<u8>>> {
    let path = root.join(OsStr::from_bytes(path));
    // Where a link were on the way, nothing of the layer above would be at this path.
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.mode() & libc::S_IFMT == libc::S_IFDIR => {}
        _ => return Ok(BTreeSet::new()),
    }
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect()
}

fn view(stack: &LayerStack) -> View {
    View::new(stack.files.iter().map(|layer| Arc::clone(&layer.file)).collect())
}

/// What the layers have at `path`, where no link is on the way.
fn in_layers(view: &View, path: &[u8]) -> io::Result<Option<ViewNode>> {
    let mut node = view.top()?;
    for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
        node = match node {
            Some(directory) if directory.is_directory() => view.child(&directory, part)?,
            _ => None,
        };
    }
    Ok(node)
}

fn file_in_layers(stack: &LayerStack, path: &[u8]) -> io::Result<Option<LowerFile>> {
    let view = view(stack);
    let Some(node) = in_layers(&view, path)? else { return Ok(None) };
    let kind = if node.is_directory() { libc::S_IFDIR } else { 0 };
    let entry = view.entry(&node, Vec::new())?;
    Ok(Some(LowerFile { mode: kind | entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }))
}

fn names_in_layers(stack: &LayerStack, path: &[u8]) -> io::Result<BTreeSet<Vec<u8>>> {
    let view = view(stack);
    match in_layers(&view, path)? {
        Some(directory) if directory.is_directory() => {
            Ok(view.children(&directory)?.into_iter().map(|(name, _)| name).collect())
        }
        _ => Ok(BTreeSet::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_looked_into_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/b/f"), "").unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("l")).unwrap();
        let root = Rootfs::Directory(folder.path().to_owned());
        assert!(root.lower_file(b"").unwrap().unwrap().is_directory());
        assert!(root.lower_file(b"a/b").unwrap().unwrap().is_directory());
        assert!(!root.lower_file(b"a/b/f").unwrap().unwrap().is_directory());
        assert!(!root.lower_file(b"l").unwrap().unwrap().is_directory());
        for path in [&b"l/b"[..], b"a/b/f/x", b"none", b"none/x"] {
            assert_eq!(root.lower_file(path).unwrap(), None);
        }
        assert_eq!(root.lower_names(b"a").unwrap(), [b"b".to_vec()].into());
        assert!(root.lower_names(b"l").unwrap().is_empty());
    }
}
