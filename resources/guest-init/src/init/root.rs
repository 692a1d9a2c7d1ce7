//! Getting into the workload's root file system, and leaving it in order.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use amphi_guest_init::{INLINE_ROOT, OVER_DIR, Root};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};

use super::failure::{Context, Failure};
use super::wait;

/// How often a disk's file system is asked to become read-only, a millisecond apart.
const ATTEMPTS: usize = 100;

/// The root file system that this process is in.
pub(super) struct Entered {
    /// Whether it is a disk's, mounted writable.
    writable_disk: bool,
}

/// Makes the file system that `root` names the root.
pub(super) fn enter(root: &Root, read_only: bool) -> Result<Entered, Failure> {
    let mut writable_disk = false;
    match root {
        Root::Inline => mount_bind(INLINE_ROOT, INLINE_ROOT).context(|| "cannot mount the inline root".into())?,
        Root::Layered { devices, fstype } => layer(devices, fstype)?,
        Root::Disk { device, fstype } => {
            let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
            mount_device(device, fstype, INLINE_ROOT, flags)?;
            writable_disk = !read_only;
        }
    }
    // The initramfs cannot be left with pivot_root(2). A root moved over it is a real root all the same: unlike
    // in a mere chroot, processes in it may make user namespaces.
    switch().context(|| "cannot switch to the root file system".into())?;
    Ok(Entered { writable_disk })
}

fn switch() -> Result<(), Errno> {
    rustix::process::chdir(INLINE_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn mount_device(device: &[u8], fstype: &[u8], place: &str, flags: MountFlags) -> Result<(), Failure> {
    let name = || String::from_utf8_lossy(device).into_owned();
    wait::until(|| match rustix::fs::accessat(CWD, device, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()) {
        Ok(()) => Ok(Some(())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    })
    .context(|| format!("cannot find the block device {}", name()))?;
    mount(device, place, fstype, flags, None)
        .context(|| format!("cannot mount the root file system ({}) on {}", String::from_utf8_lossy(fstype), name()))
}

/// Mounts the devices, the lowest first, and puts them and a layer in memory over each other.
fn layer(devices: &[Vec<u8>], fstype: &[u8]) -> Result<(), Failure> {
    let mode = Mode::from_raw_mode(0o755);
    let failed = || "cannot put a writable layer over the root file system (overlay)".into();
    mount("tmpfs", OVER_DIR, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
        .and_then(|()| rustix::fs::mkdir(format!("{OVER_DIR}/upper"), mode))
        .and_then(|()| rustix::fs::mkdir(format!("{OVER_DIR}/work"), mode))
        .context(failed)?;
    let mut options = String::from("lowerdir=");
    for (index, device) in devices.iter().enumerate() {
        let place = format!("{OVER_DIR}/{index}");
        rustix::fs::mkdir(&place, mode).context(failed)?;
        mount_device(device, fstype, &place, MountFlags::RDONLY)?;
    }
    for index in (0..devices.len()).rev() {
        options.push_str(&format!("{OVER_DIR}/{index}"));
        options.push(if index > 0 { ':' } else { ',' });
    }
    options.push_str(&format!("upperdir={OVER_DIR}/upper,workdir={OVER_DIR}/work\0"));
    core::ffi::CStr::from_bytes_with_nul(options.as_bytes())
        .map_err(|_| Errno::INVAL)
        .and_then(|options| mount("overlay", INLINE_ROOT, "overlay", MountFlags::empty(), Some(options)))
        .and_then(|()| take_over_top())
        .context(failed)
}

/// Gives `/` the mode and the owner that the lowest layer's top has, not those of a fresh directory.
fn take_over_top() -> Result<(), Errno> {
    let top = rustix::fs::stat(format!("{OVER_DIR}/0"))?;
    let (user, group) = (rustix::fs::Uid::from_raw(top.st_uid), rustix::fs::Gid::from_raw(top.st_gid));
    if (top.st_uid, top.st_gid) != (0, 0) {
        rustix::fs::chown(INLINE_ROOT, Some(user), Some(group))?;
    }
    if top.st_mode & 0o7777 != 0o755 {
        rustix::fs::chmod(INLINE_ROOT, Mode::from_raw_mode(top.st_mode & 0o7777))?;
    }
    Ok(())
}

impl Entered {
    /// Makes the root read-only where it is not yet.
    pub(super) fn protect(&self, read_only: bool) -> Result<(), Failure> {
        if !read_only {
            return Ok(());
        }
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"")
            .context(|| "cannot make the root file system read-only".into())
    }

    /// Brings a disk's file system into order. All other processes are gone by now.
    pub(super) fn finish(&self) {
        if !self.writable_disk {
            return;
        }
        rustix::fs::sync();
        for _ in 0..ATTEMPTS {
            // A file that a process had open may be let go a little after that process is gone.
            if mount_remount("/", MountFlags::RDONLY, c"") != Err(Errno::BUSY) {
                return;
            }
            let _ = rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
        }
    }
}

/// Makes a directory and those above it, as root; what is there already stays as it is.
pub(super) fn make_directories(path: &[u8]) -> Result<(), Errno> {
    for end in (1..=path.len()).filter(|&end| end == path.len() || path[end] == b'/') {
        match rustix::fs::mkdir(&path[..end], Mode::from_raw_mode(0o755)) {
            // A directory that is there is found to be one, or not, when it is opened.
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(drop)
}
