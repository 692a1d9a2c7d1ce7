//! The files that the guest knows of, by the numbers that it has for them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Statx};

use crate::virtio::fs::wire::ROOT;

/// Which file it is: mount, device, inode. As long as a descriptor refers to the file, no other one has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

impl Place {
    pub(super) fn of(stat: &Statx) -> Self {
        Self { mount: stat.stx_mnt_id, device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino }
    }

    /// Whether both are in the same mounted file system.
    pub(super) fn is_beside(self, other: Self) -> bool {
        (self.mount, self.device) == (other.mount, other.device)
    }
}

/// A file or directory that the guest knows of.
#[derive(Debug)]
pub(super) struct Node {
    fd: OwnedFd,
    pub(super) place: Place,
    pub(super) kind: FileType,
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
    /// What the guest's cached contents belong to, where that is known for sure.
    pub(super) cached: Option<Version>,
}

/// The state of a file's contents: size, and times of the last changes of contents and of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) size: u64,
    pub(super) modified: (i64, u32),
    pub(super) changed: (i64, u32),
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_place: HashMap<Place, u64>,
    /// The number that was given last: none is given twice.
    last: u64,
}

impl Nodes {
    /// Sets the root, which stays for ever.
    pub(super) fn set_root(&mut self, fd: OwnedFd, stat: &Statx) {
        self.last = ROOT;
        self.insert(ROOT, fd, Place::of(stat), stat);
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Node> {
        self.by_number.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Node> {
        self.by_number.get_mut(&number)
    }

    /// Counts one more lookup of the node at `place`, if there is one, and returns its number.
    pub(super) fn count(&mut self, place: Place) -> Option<u64> {
        let number = *self.by_place.get(&place)?;
        let node = self.by_number.get_mut(&number)?;
        node.lookups = node.lookups.saturating_add(1);
        Some(number)
    }

    /// A new node, which was looked up once.
    pub(super) fn add(&mut self, fd: OwnedFd, place: Place, stat: &Statx) -> u64 {
        self.last = self.last.max(ROOT) + 1;
        self.insert(self.last, fd, place, stat);
        self.last
    }

    fn insert(&mut self, number: u64, fd: OwnedFd, place: Place, stat: &Statx) {
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        self.by_place.insert(place, number);
        self.by_number.insert(number, Node { fd, place, kind, lookups: 1, cached: None });
    }

    /// Takes back `lookups`, and with the last one the node.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        let Some(node) = self.by_number.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0
            && let Some(node) = self.by_number.remove(&number)
        {
            self.by_place.remove(&node.place);
        }
    }

    /// Forgets all but the root.
    pub(super) fn forget_all(&mut self) {
        self.by_number.retain(|&number, _| number == ROOT);
        self.by_place.retain(|_, &mut number| number == ROOT);
        if let Some(root) = self.by_number.get_mut(&ROOT) {
            root.lookups = 1;
        }
    }
}
