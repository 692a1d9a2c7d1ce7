//! A directory or file of the host, as the guest's requests see it.
//!
//! What the guest knows of is a [node](nodes::Node): a descriptor that was opened without access (`O_PATH`), by one name in a
//! directory that was a node before, and without following symlinks. So no request leads out of the directory, whatever
//! is renamed meanwhile on either side. Only regular files and directories are ever opened, and through that descriptor.

mod attributes;
mod directory;
mod entries;
mod files;
mod nodes;
mod owners;
mod xattr;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use self::files::Handles;
use self::nodes::{Node, Nodes, Place};
pub(super) use self::owners::Caller;
pub use self::owners::Owners;
use super::wire::{Attributes, ROOT, Reply};

/// The name that a shared file has in the guest's root directory, which has nothing else.
pub const FILE_NAME: &str = "file";
/// How long a guest may rely on what it was told of a name or a file, in seconds: that long it may miss a change on the host.
const VALID: u64 = 1;

/// How a directory or file is shared.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whether the guest may change nothing.
    pub read_only: bool,
    /// Whose files they are.
    pub owners: Owners,
    /// The most descriptors that the guest may hold: one for each file that it knows of, and one for each that it has open.
    /// What goes beyond that fails with `ENFILE`.
    pub descriptors: usize,
}

/// A directory or file of the host that a guest uses.
pub struct Share {
    nodes: Nodes,
    handles: Handles,
    /// The file, where it is one that is shared.
    file: Option<OwnedFd>,
    /// `/proc/self/fd`, by which what a descriptor refers to is opened.
    descriptors: OwnedFd,
    settings: Settings,
}

impl Share {
    /// Shares what `top` refers to, which may have been opened with `O_PATH`.
    ///
    /// # Errors
    /// It is neither a directory nor a regular file, or `/proc` is not mounted.
    pub fn new(top: OwnedFd, settings: Settings) -> io::Result<Self> {
        let descriptors =
            openat(CWD, "/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = stat(top.as_fd())?;
        let mut share =
            Self { nodes: Nodes::default(), handles: Handles::default(), file: None, descriptors, settings };
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => share.nodes.set_root(top, &stat),
            FileType::RegularFile => share.file = Some(top),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a directory nor a regular file")),
        }
        Ok(share)
    }

    /// Forgets what earlier requests have made known and opened.
    pub(super) fn forget_all(&mut self) {
        self.handles = Handles::default();
        self.nodes.forget_all();
    }

    /// The guest has let go of a node, as often as `lookups` says.
    pub(super) fn forget(&mut self, node: u64, lookups: u64) {
        self.nodes.forget(node, lookups);
    }

    /// The node of that number. The root of a shared file is none: it is not on the host.
    fn node(&self, number: u64) -> Result<&Node, Errno> {
        match self.nodes.get(number) {
            Some(node) => Ok(node),
            None if number == ROOT => Err(Errno::ACCESS),
            None => Err(Errno::STALE),
        }
    }

    /// The directory of that number.
    fn directory(&self, number: u64) -> Result<&Node, Errno> {
        self.node(number).and_then(|node| if node.kind == FileType::Directory { Ok(node) } else { Err(Errno::NOTDIR) })
    }

    /// Refuses changes where there must not be any.
    fn for_change(&self) -> Result<(), Errno> {
        if self.settings.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Refuses `count` descriptors more than there may be.
    fn for_descriptors(&self, count: usize) -> Result<(), Errno> {
        if self.nodes.len() + self.handles.len() + count > self.settings.descriptors {
            Err(Errno::NFILE)
        } else {
            Ok(())
        }
    }

    /// Opens what `fd` refers to once more.
    fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        // The symlink there is one of the kernel's: it leads to the file itself, whatever has become of its name.
        openat(&self.descriptors, name_of(fd).as_str(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Makes known what `fd`, opened with `O_PATH`, refers to, which was found in a directory at `parent`.
    fn enter(&mut self, fd: OwnedFd, parent: Place) -> Result<(u64, Attributes), Errno> {
        let stat = stat(fd.as_fd())?;
        let attributes = self.attributes(stat, parent);
        let place = Place::of(&attributes.stat);
        if let Some(number) = self.nodes.count(place) {
            return Ok((number, attributes));
        }
        self.for_descriptors(1)?;
        Ok((self.nodes.add(fd, place, &attributes.stat), attributes))
    }

    /// What the guest is told of a file with `stat`, found in a directory at `parent`.
    fn attributes(&self, stat: rustix::fs::Statx, parent: Place) -> Attributes {
        let (user, group) = self.settings.owners.seen(stat.stx_uid, stat.stx_gid);
        let is_directory = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        let submount = is_directory && !Place::of(&stat).is_beside(parent);
        Attributes { stat, user, group, submount }
    }
}

impl Reply {
    /// `fuse_entry_out`.
    fn entry(&mut self, node: u64, attributes: &Attributes) {
        self.u64(node);
        // Node numbers are never used again.
        self.u64(0);
        self.u64(VALID);
        self.u64(VALID);
        self.u64(0);
        self.attributes(attributes);
    }
}

/// What the kernel knows of what `fd` refers to.
fn stat(fd: BorrowedFd<'_>) -> Result<rustix::fs::Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// The name of `fd` in `/proc/self/fd`.
fn name_of(fd: BorrowedFd<'_>) -> String {
    fd.as_raw_fd().to_string()
}
