//! Volumes: each a file system device with an event loop of its own, whose thread may do nothing but that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use amphi_devices::virtio::fs::{Fs, Owners, Settings, Share};
use rustix::fs::Mode;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getegid, geteuid, getrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

use super::error::VmError;
use super::seccomp;
use crate::host::landlock::{self, Below};
use crate::host::privileges;
use crate::isolation::volume_source;
use crate::spec::Volume;

/// The kernel module for volumes, for kernels that have it as one.
pub(super) const MODULE: &str = "virtiofs";
/// Descriptors that a process needs for everything but volumes, and then some.
const OTHER_DESCRIPTORS: u64 = 512;
/// The fewest that a volume is given; with less a guest could not find its way through a directory.
const FEWEST: usize = 64;

/// What the thread of a volume may do where the guest's users are the host's: all that concerns owners and modes of files,
/// but devices.
const FOR_OWNERS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// A volume whose source is open.
#[derive(Debug)]
pub(super) struct OpenVolume {
    top: OwnedFd,
    directory: bool,
    read_only: bool,
}

/// Opens the sources, so that what is shared is what was there when the run was planned.
pub(super) fn open(volumes: &[Volume]) -> Result<Vec<OpenVolume>, VmError> {
    volumes.iter().map(OpenVolume::new).collect()
}

impl OpenVolume {
    fn new(volume: &Volume) -> Result<Self, VmError> {
        let (top, directory) = volume_source::open(&volume.source)
            .map_err(|source| VmError::Volume { source, path: volume.source.clone() })?;
        Ok(Self { top, directory, read_only: volume.read_only })
    }

    /// Whether it is a directory, and not a file.
    pub(super) fn is_directory(&self) -> bool {
        self.directory
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { top: self.top.try_clone()?, ..*self })
    }

    /// The device for volume `index` of `count`.
    pub(super) fn device(&self, index: usize, count: usize) -> Result<Fs, VmError> {
        let settings = Settings { read_only: self.read_only, owners: owners(), descriptors: descriptors(count) };
        let top = fcntl_dupfd_cloexec(&self.top, 0).map_err(|errno| VmError::host("share a volume")(errno.into()))?;
        let share = Share::new(top, settings).map_err(VmError::host("share a volume"))?;
        Fs::new(share, &tag(index)).map_err(VmError::host("make a virtio file system device"))
    }

    /// Takes from the calling thread all that the volume does not need.
    pub(super) fn confine(&self) -> Result<(), Errno> {
        // The umask is the guest's business. Threads share it as long as they share their working directory.
        // SAFETY: descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::umask(Mode::empty());
        let kept = if owners() == Owners::Same { FOR_OWNERS } else { CapabilitySet::empty() };
        privileges::keep(kept)?;
        let below = Below { top: self.top.as_fd(), directory: self.directory, read_only: self.read_only };
        if !landlock::restrict(below)? {
            log::debug!("the host has no Landlock: the thread of a volume is kept in its place by amphi alone");
        }
        seccomp::confine_volume()
    }
}

/// By which tag the guest mounts a volume.
pub(super) fn tag(index: usize) -> String {
    format!("amphi{index}")
}

/// Whose the files are: as in a container, root's guests have the host's users, and everybody else's only one.
fn owners() -> Owners {
    let needed = FOR_OWNERS | CapabilitySet::SETPCAP;
    if geteuid().is_root() && capabilities(None).is_ok_and(|sets| sets.effective.contains(needed)) {
        Owners::Same
    } else {
        Owners::One { user: geteuid().as_raw(), group: getegid().as_raw() }
    }
}

/// How many descriptors each of `count` volumes may use.
fn descriptors(count: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let each = limit.saturating_sub(OTHER_DESCRIPTORS) / u64::try_from(count.max(1)).unwrap_or(1);
    usize::try_from(each).unwrap_or(usize::MAX).max(FEWEST)
}
