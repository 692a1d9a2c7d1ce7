//! What an image is to hold, wherever that comes from.

use std::path::PathBuf;

/// The names and inodes of an image.
#[derive(Debug, Default)]
pub(in crate::image) struct Listing {
    /// Each directory comes before what is in it; names in a directory ascend by their bytes. The first is the top.
    pub(in crate::image) entries: Vec<Entry>,
    /// In the order of their first names.
    pub(in crate::image) inodes: Vec<Attributes>,
}

/// A name.
#[derive(Debug)]
pub(in crate::image) struct Entry {
    /// The last part of the path; empty for the top.
    pub(in crate::image) name: Vec<u8>,
    /// The index of the directory that it is in; the top is in itself.
    pub(in crate::image) parent: usize,
    /// The index of its inode; names of one file share it.
    pub(in crate::image) inode: usize,
}

/// What an inode says about a file.
#[derive(Debug)]
pub(in crate::image) struct Attributes {
    /// The index of its first name.
    pub(in crate::image) entry: usize,
    /// Type and permissions, as `st_mode`.
    pub(in crate::image) mode: u32,
    /// The owner.
    pub(in crate::image) uid: u32,
    /// The group.
    pub(in crate::image) gid: u32,
    /// The time of modification, in seconds since 1970, and the nanoseconds beyond.
    pub(in crate::image) mtime: (i64, u32),
    /// Major and minor number of a device node.
    pub(in crate::image) device: (u32, u32),
    /// Extended attributes, encoded by [`encode`](super::encode_attributes).
    pub(in crate::image) attributes: Vec<u8>,
    /// What a regular file or symbolic link holds.
    pub(in crate::image) contents: Contents,
}

/// Where the contents of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Contents {
    /// Still to be written, so many bytes. For what has no contents, and for directories, 0.
    Later(u64),
    /// In the image already, in whole blocks from `block` on, but for the last `tail` bytes.
    Placed {
        /// The length in all.
        size: u64,
        /// The first block.
        block: u32,
        /// How many bytes are to be put behind the inode, fewer than a block.
        tail: usize,
    },
}

impl Default for Contents {
    fn default() -> Self {
        Self::Later(0)
    }
}

impl Attributes {
    /// The file's type, one of the `S_IF` constants.
    pub(super) const fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(super) const fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

impl Listing {
    /// The inode of an entry.
    pub(super) fn inode(&self, entry: usize) -> &Attributes {
        &self.inodes[self.entries[entry].inode]
    }

    /// The path of an entry below the top, for messages.
    pub(in crate::image) fn path(&self, mut entry: usize) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let mut names = Vec::new();
        while entry != 0 {
            names.push(std::ffi::OsStr::from_bytes(&self.entries[entry].name));
            entry = self.entries[entry].parent;
        }
        names.iter().rev().collect()
    }
}
