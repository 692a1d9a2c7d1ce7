//! A writable layer that stays, in the folder of its instance: the overlay's directories `upper` and `work`. With a limit they are in a
//! file system of their own, in a file of that size which a loop device makes a disk.
//!
//! On disk everything has the owners that the workload sees. Where root's containers have ids of their own, the folder is mounted
//! idmapped, as the image is. Without privilege all of it belongs to the caller, who is root inside.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, fstatfs, open};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::c_path;
use super::error::ContainerError;
use super::last_run;
use super::launch::above_standard;
use super::layer_mounts::mount_disk;
use crate::isolation::writable_disk;
use crate::spec::WritableLayer;

/// `linux/magic.h`
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// A kept layer's folder.
#[derive(Debug)]
pub(super) struct KeptFolder {
    path: PathBuf,
    /// The same for a child that mounts it itself.
    pub(super) c_path: CString,
    folder: OwnedFd,
    /// The file system with a limit, locked.
    disk: Option<File>,
}

impl KeptFolder {
    /// The folder of a layer that is to be kept; `None` where it is not.
    pub(super) fn open(layer: &WritableLayer) -> Result<Option<Self>, ContainerError> {
        let Some(path) = &layer.folder else { return Ok(None) };
        let failed = |source: io::Error| ContainerError::KeptLayer { path: path.clone(), source };
        let path = path.canonicalize().map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        // The kernel says only that something is invalid.
        if fstatfs(&folder).is_ok_and(|fs| fs.f_type == OVERLAYFS_SUPER_MAGIC) {
            let source = io::Error::other(
                "it lies on an overlay itself, which cannot be below another: use --rm, or another --root",
            );
            return Err(failed(source));
        }
        // What has no limit at its first run gets none later.
        let begun = path.join("work").exists();
        let limited = path.join(WritableLayer::FILE).exists() || (layer.limit.is_some() && !begun);
        if limited && !rustix::process::geteuid().is_root() {
            return Err(ContainerError::LimitOfKept);
        }
        let disk = limited.then(|| writable_disk::open(&path, layer.limit)).transpose()?;
        Ok(Some(Self { c_path: c_path(&path)?, path, folder, disk }))
    }

    /// Whether it is a file system of its own, which only who may mount can use.
    pub(super) const fn has_limit(&self) -> bool {
        self.disk.is_some()
    }

    /// Notes which process is PID 1 of the container that is about to write to the layer.
    pub(super) fn note_first_process(&self, pid: i32) -> Result<(), ContainerError> {
        let failed = |source| ContainerError::KeptLayer { path: self.path.clone(), source };
        last_run::note(&self.path, pid).map_err(failed)
    }

    /// A detached mount of it.
    pub(super) fn mount(&self) -> Result<OwnedFd, ContainerError> {
        if let Some(disk) = &self.disk {
            let failed = |source| ContainerError::KeptLayer { path: self.path.join(WritableLayer::FILE), source };
            return mount_disk(disk).map_err(failed);
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(self.folder.as_fd(), "", flags).and_then(above_standard);
        tree.map_err(|errno| ContainerError::KeptLayer { path: self.path.clone(), source: errno.into() })
    }
}
