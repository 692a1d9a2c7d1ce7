//! Volumes: bind mounts of the host's directories and files.
//!
//! The parent takes them as detached mounts where it may, so that their owners can be shifted as those of the image are. The
//! child attaches them below the new root before that is entered; no symlink of the image leads out of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{
    CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::ContainerError;
use super::launch::above_standard;
use super::mounts::attach;
use super::process::ancestors;
use super::step::{At, Failure, Step};
use super::syscalls::{Attributes, mount_setattr};
use crate::isolation::volume_source;
use crate::spec;

/// As docker and podman do it: with all that is mounted below, which later changes on neither side reach.
const CLONE: OpenTreeFlags =
    OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC).union(OpenTreeFlags::AT_RECURSIVE);

/// A volume, prepared as far as it can be before the child exists.
#[derive(Debug)]
pub(super) struct Volume {
    /// What is shared, open without access.
    top: OwnedFd,
    source: CString,
    directory: bool,
    read_only: bool,
    /// Its place's ancestors from the top down, then itself.
    place: Vec<CString>,
}

impl Volume {
    /// Prepares `volume`, whose source must be there.
    pub(super) fn prepare(volume: &spec::Volume) -> Result<Self, ContainerError> {
        let (top, directory) = volume_source::open(&volume.source)
            .map_err(|source| ContainerError::Volume { path: volume.source.clone(), source })?;
        let source = CString::new(volume.source.as_os_str().as_bytes())
            .map_err(|_| ContainerError::NulByte("the path of a volume"))?;
        let place = ancestors("the path of a volume", &volume.destination)?;
        Ok(Self { top, source, directory, read_only: volume.read_only, place })
    }

    /// Where the workload sees it.
    pub(super) fn destination(&self) -> Option<PathBuf> {
        self.place.last().map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes())))
    }

    /// A mount for one start: a detached one where this process may make one. The child can do without, by the path.
    pub(super) fn mount(&self) -> Result<VolumeMount<'_>, ContainerError> {
        let tree = open_tree(&self.top, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH).ok();
        let tree = tree.map(above_standard).transpose().map_err(ContainerError::kernel("open a volume"))?;
        Ok(VolumeMount { volume: self, tree })
    }

    /// In the child: attaches `tree`, or a mount of its own making, below `root`.
    fn attach(&self, tree: Option<BorrowedFd<'_>>, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let clone;
        let tree = match tree {
            Some(tree) => tree,
            None => {
                clone = open_tree(CWD, &self.source, CLONE)?;
                clone.as_fd()
            }
        };
        let read_only = if self.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        mount_setattr(
            tree,
            &Attributes {
                set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only,
                private: true,
                recursive: true,
                userns: None,
            },
        )?;
        let point = self.mount_point(root)?;
        // A symlink of the image's may lead to another file system of the container's. What the kernel tells there is not
        // to be covered.
        if fstatfs(&point)?.f_type == PROC_SUPER_MAGIC {
            return Err(Errno::LOOP);
        }
        let is_directory = FileType::from_raw_mode(fstat(&point)?.st_mode).is_dir();
        if is_directory != self.directory {
            return Err(Errno::NOTDIR);
        }
        attach(tree, point.as_fd())
    }

    /// Opens its place, and makes what is missing of it.
    fn mount_point(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let find = |path: &CString| {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            openat2(root, path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        let mut found: Option<OwnedFd> = None;
        for (index, path) in self.place.iter().enumerate() {
            let next = match find(path) {
                Err(Errno::NOENT) => {
                    let parent = found.as_ref().map_or(root, AsFd::as_fd);
                    let is_file = !self.directory && index + 1 == self.place.len();
                    make(parent, last_name(path), is_file)?;
                    find(path)?
                }
                other => other?,
            };
            found = Some(next);
        }
        found.ok_or(Errno::NOENT)
    }
}

/// A volume on its way into a container.
#[derive(Debug)]
pub(super) struct VolumeMount<'a> {
    volume: &'a Volume,
    /// The detached mount, if there is one.
    pub(super) tree: Option<OwnedFd>,
}

/// Makes a directory, or an empty file, to mount something on.
fn make(parent: BorrowedFd<'_>, name: &CStr, is_file: bool) -> Result<(), Errno> {
    if is_file {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    } else {
        mkdirat(parent, name, Mode::from_raw_mode(0o755))
    }
}

/// What comes behind the last slash.
fn last_name(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    CStr::from_bytes_with_nul(&bytes[start..]).unwrap_or(path)
}

/// In the child: attaches all of them below `root`, in their order.
pub(super) fn attach_all(mounts: &[VolumeMount<'_>], root: BorrowedFd<'_>) -> Result<(), Failure> {
    let attach = |mount: &VolumeMount<'_>| mount.volume.attach(mount.tree.as_ref().map(AsFd::as_fd), root);
    mounts.iter().enumerate().try_for_each(|(index, mount)| attach(mount).at_item(Step::Volume, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_of_a_path() {
        assert_eq!(last_name(c"/a/bc"), c"bc");
        assert_eq!(last_name(c"/a"), c"a");
        assert_eq!(last_name(c"a"), c"a");
    }
}
