//! The form in which a guest gets its root file system.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use amphi_guest_init::Root;

use super::Rootfs;
use super::cache::{self, CacheError};
use super::disk::{self, DiskFormatError};
use super::disk_file::{DiskError, open_disk};
use super::store::LayerFile;
use super::tree::{Tree, TreeError};
use super::xattr;

/// The largest root that travels in the initramfs, in bytes: unpacking takes time, and a disk costs a device.
const INLINE_LIMIT: u64 = 8 << 20;
/// And the largest part of the guest's memory: an inline root is in memory, while it is unpacked even twice.
const INLINE_SHARE: u64 = 8;

/// A root file system, ready to be shown to a guest.
#[derive(Debug)]
pub(crate) enum GuestRoot {
    /// A small directory, to be packed into the initramfs.
    Inline(Tree),
    /// Read-only images, to be the first disks; the guest lays them, and a writable layer in memory, over each other.
    Block {
        /// The images, open for reading, the lowest first.
        files: Vec<File>,
        /// The file systems' type.
        fstype: &'static str,
    },
    /// A disk of the user's, to be the first disk. It is locked as long as this is open.
    Disk {
        /// The disk, open for writing unless the run is read-only.
        file: File,
        /// The file system's type.
        fstype: &'static str,
    },
}

/// Why a guest cannot get its root file system.
#[derive(Debug, thiserror::Error)]
pub enum GuestRootError {
    /// The directory cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The directory cannot be made into a disk image.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A layer cannot be opened once more.
    #[error("cannot use the layer {path}", path = path.display())]
    Layer {
        /// The layer's file system.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk holds no usable file system.
    #[error("cannot boot from the disk {path}", path = path.display())]
    DiskFormat {
        /// The disk's file.
        path: PathBuf,
        /// What it holds instead.
        source: DiskFormatError,
    },
}

impl GuestRoot {
    /// Finds the best form of `rootfs` for a guest with `memory` bytes, and prepares it.
    ///
    /// # Errors
    /// The root file system cannot be read, or not be made into a disk image.
    pub(crate) fn plan(rootfs: &Rootfs, memory: u64, read_only: bool) -> Result<Self, GuestRootError> {
        match rootfs {
            Rootfs::Directory(path) => {
                Self::of_directory(path, memory, &crate::host::data_dir().join("cache").join("dirs"))
            }
            Rootfs::Layers(stack) => {
                let open = |layer: &LayerFile| {
                    layer.file.try_clone().map_err(|source| GuestRootError::Layer { path: layer.path.clone(), source })
                };
                let files = stack.files.iter().map(open).collect::<Result<_, _>>()?;
                Ok(Self::Block { files, fstype: "erofs" })
            }
            Rootfs::Disk(path) => Self::of_disk(path, read_only),
        }
    }

    fn of_directory(path: &Path, memory: u64, cache: &Path) -> Result<Self, GuestRootError> {
        let tree = Tree::scan(path)?;
        if fits_in_memory(&tree, INLINE_LIMIT.min(memory / INLINE_SHARE)) && !has_attributes(&tree)? {
            return Ok(Self::Inline(tree));
        }
        Ok(Self::Block { files: vec![cache::image_of(&tree, cache)?], fstype: "erofs" })
    }

    fn of_disk(path: &Path, read_only: bool) -> Result<Self, GuestRootError> {
        let file = open_disk(path, read_only)?;
        let fstype = disk::file_system(&file)
            .map_err(|source| DiskError::Open { path: path.to_owned(), source })?
            .map_err(|source| GuestRootError::DiskFormat { path: path.to_owned(), source })?;
        Ok(Self::Disk { file, fstype })
    }

    /// The kernel modules that the guest needs for it, beyond those of the disk's driver, by name.
    pub(crate) fn modules(&self) -> &'static [&'static str] {
        match self {
            Self::Inline(_) => &[],
            Self::Block { .. } => &["erofs", "overlay"],
            Self::Disk { fstype: "ext4", .. } => &["ext4"],
            Self::Disk { fstype: "xfs", .. } => &["xfs"],
            Self::Disk { fstype: "btrfs", .. } => &["btrfs"],
            Self::Disk { fstype: "squashfs", .. } => &["squashfs"],
            Self::Disk { .. } => &["erofs"],
        }
    }

    /// Whether it travels in the initramfs.
    pub(crate) fn is_inline(&self) -> bool {
        matches!(self, Self::Inline(_))
    }

    /// The form in the guest's words, where disks are called as `device` says, by their numbers.
    pub(crate) fn in_guest(&self, device: impl Fn(usize) -> String) -> Root {
        let name = |index| device(index).into_bytes();
        match self {
            Self::Inline(_) => Root::Inline,
            Self::Block { files, fstype } => {
                Root::Layered { devices: (0..files.len()).map(name).collect(), fstype: (*fstype).into() }
            }
            Self::Disk { fstype, .. } => Root::Disk { device: name(0), fstype: (*fstype).into() },
        }
    }
}

/// Whether the tree takes at most `limit` bytes of memory, counted in pages, with one for each entry.
fn fits_in_memory(tree: &Tree, limit: u64) -> bool {
    let mut seen = HashSet::new();
    let sizes = tree.nodes.iter().map(|node| {
        let metadata = &node.metadata;
        let again = metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino()));
        let contents = if metadata.is_file() && !again { metadata.size() } else { 0 };
        contents.saturating_add(4096)
    });
    sizes.fold(0, u64::saturating_add) <= limit
}

fn has_attributes(tree: &Tree) -> Result<bool, TreeError> {
    for node in &tree.nodes {
        let path = tree.path(node);
        let attributes = xattr::read(&path).map_err(|source| TreeError::Read { path, source })?;
        if !attributes.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn small_directories_travel_inline_and_others_on_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (root, cache) = (dir.path().join("root"), dir.path().join("cache"));
        fs::create_dir(&root).unwrap();
        fs::write(root.join("f"), vec![1; 1 << 20]).unwrap();
        for n in 0..100 {
            fs::hard_link(root.join("f"), root.join(n.to_string())).unwrap();
        }
        let plan = |memory| GuestRoot::of_directory(&root, memory, &cache).unwrap();
        assert!(plan(128 << 20).is_inline(), "names of one file count once");
        let block = plan(8 << 20);
        assert_eq!(block.modules(), ["erofs", "overlay"]);
        assert_eq!(
            block.in_guest(|index| format!("/dev/{index}")),
            Root::Layered { devices: vec![b"/dev/0".to_vec()], fstype: b"erofs".to_vec() }
        );
        File::create(root.join("large")).unwrap().set_len(9 << 20).unwrap();
        assert!(matches!(plan(1 << 40), GuestRoot::Block { .. }));
    }

    #[test]
    fn attributes_need_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        if let Err(errno) = rustix::fs::setxattr(&root, "user.key", b"v", rustix::fs::XattrFlags::empty()) {
            eprintln!("SKIPPED: the temporary directory has no extended attributes ({errno})");
            return;
        }
        let planned = GuestRoot::of_directory(&root, 1 << 30, &dir.path().join("cache")).unwrap();
        assert!(matches!(planned, GuestRoot::Block { .. }));
    }

    #[test]
    fn a_writable_disk_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![0; 4096]).unwrap();
        let unknown = GuestRoot::of_disk(&path, false);
        assert!(matches!(unknown, Err(GuestRootError::DiskFormat { .. })));
        File::options().write(true).open(&path).unwrap().write_all_at(b"\x53\xef", 1080).unwrap();
        let first = GuestRoot::of_disk(&path, false).unwrap();
        assert_eq!(first.modules(), ["ext4"]);
        for read_only in [false, true] {
            assert!(matches!(GuestRoot::of_disk(&path, read_only), Err(GuestRootError::Disk(DiskError::InUse { .. }))));
        }
        drop(first);
        let _one = GuestRoot::of_disk(&path, true).unwrap();
        assert!(GuestRoot::of_disk(&path, true).is_ok(), "readers may share");
    }
}
