//! Getting into the workload's root file system, and leaving it in order.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use amphi_guest_init::{INLINE_ROOT, InitSpec, LAYER_DIR, OVER_DIR, Root};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};

use super::failure::{Context, Failure};
use super::{trim, wait};

/// The file system of a kept writable layer.
pub(super) const WRITABLE_FSTYPE: &[u8] = b"ext4";

/// How often a disk's file system is asked to become read-only, a millisecond apart.
const ATTEMPTS: usize = 100;

/// What the overlay of a kept layer must not do, whatever the kernel's defaults are: leave in the layer what only it understands.
const PLAIN: &str = ",redirect_dir=off,metacopy=off,index=off";

/// The root file system, mounted.
pub(super) struct Mounted {
    disk: Option<WritableDisk>,
}

/// A disk that the root writes to, and that is to be left in order.
enum WritableDisk {
    /// It is the root.
    Root,
    /// It is below the overlay that is the root.
    Kept {
        /// The top of its file system.
        top: OwnedFd,
        /// The device.
        device: Vec<u8>,
        /// How many bytes were free when it was mounted.
        free: u64,
    },
}

/// Mounts the file system that is to be the root on [`INLINE_ROOT`].
pub(super) fn mount_root(spec: &InitSpec) -> Result<Mounted, Failure> {
    match &spec.root {
        Root::Inline if spec.writable.is_none() && spec.memory_limit == 0 => {
            mount_bind(INLINE_ROOT, INLINE_ROOT).context(|| "cannot mount the inline root".into())?;
        }
        Root::Inline => layer(spec, None)?,
        Root::Layered { devices, fstype } => layer(spec, Some((devices, fstype)))?,
        Root::Disk { device, fstype } => {
            let flags = if spec.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
            mount_device(device, fstype, INLINE_ROOT, flags, None)?;
            return Ok(Mounted { disk: (!spec.read_only).then_some(WritableDisk::Root) });
        }
    }
    let Some(device) = &spec.writable else { return Ok(Mounted { disk: None }) };
    let kept = || -> Result<WritableDisk, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(OVER_DIR, flags, Mode::empty())?;
        Ok(WritableDisk::Kept { free: trim::free_bytes(&top)?, top, device: device.clone() })
    };
    Ok(Mounted { disk: Some(kept().context(|| "cannot use the writable layer".into())?) })
}

/// Mounts the root, and makes it this process's.
pub(super) fn enter(spec: &InitSpec) -> Result<Mounted, Failure> {
    let mounted = mount_root(spec)?;
    // The initramfs cannot be left with pivot_root(2). A root moved over it is a real root all the same: unlike
    // in a mere chroot, processes in it may make user namespaces.
    switch().context(|| "cannot switch to the root file system".into())?;
    Ok(mounted)
}

/// Opens a directory, only to name it.
pub(super) fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn switch() -> Result<(), Errno> {
    rustix::process::chdir(INLINE_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

/// Mounts a block device as soon as it is there.
pub(super) fn mount_device(
    device: &[u8],
    fstype: &[u8],
    place: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), Failure> {
    let name = || String::from_utf8_lossy(device).into_owned();
    wait::until(|| match rustix::fs::accessat(CWD, device, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()) {
        Ok(()) => Ok(Some(())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    })
    .context(|| format!("cannot find the block device {}", name()))?;
    let what = if place == OVER_DIR { "writable layer" } else { "root file system" };
    mount(device, place, fstype, flags, options)
        .context(|| format!("cannot mount the {what} ({}) on {}", String::from_utf8_lossy(fstype), name()))
}

/// Mounts the devices, the lowest first, and puts them, or else the inline root, and a writable layer, on a disk or in
/// memory, over each other.
fn layer(spec: &InitSpec, layers: Option<(&Vec<Vec<u8>>, &Vec<u8>)>) -> Result<(), Failure> {
    let mode = Mode::from_raw_mode(0o755);
    let failed = || "cannot put a writable layer over the root file system (overlay)".into();
    match &spec.writable {
        None => {
            let size = if spec.memory_limit > 0 { format!(",size={}", spec.memory_limit) } else { String::new() };
            let options = CString::new(format!("mode=0755{size}")).unwrap_or_default();
            mount("tmpfs", OVER_DIR, "tmpfs", MountFlags::empty(), Some(&*options)).context(failed)?;
        }
        Some(device) => {
            // So that what is removed in the guest takes no room on the host.
            mount_device(device, WRITABLE_FSTYPE, OVER_DIR, MountFlags::empty(), Some(c"discard"))?;
        }
    }
    let is_new = made(rustix::fs::mkdir(format!("{OVER_DIR}/upper"), mode)).context(failed)?;
    made(rustix::fs::mkdir(format!("{OVER_DIR}/work"), mode)).context(failed)?;
    let mut options = String::from("lowerdir=");
    let lowest = match layers {
        None => {
            options.push_str(INLINE_ROOT);
            options.push(',');
            String::from(INLINE_ROOT)
        }
        Some((devices, fstype)) => {
            for (index, device) in devices.iter().enumerate() {
                let place = format!("{LAYER_DIR}{index}");
                rustix::fs::mkdir(&place, mode).context(failed)?;
                mount_device(device, fstype, &place, MountFlags::RDONLY, None)?;
            }
            for index in (0..devices.len()).rev() {
                options.push_str(&format!("{LAYER_DIR}{index}"));
                options.push(if index > 0 { ':' } else { ',' });
            }
            format!("{LAYER_DIR}0")
        }
    };
    let plain = if spec.writable.is_some() { PLAIN } else { "" };
    options.push_str(&format!("upperdir={OVER_DIR}/upper,workdir={OVER_DIR}/work{plain}\0"));
    CStr::from_bytes_with_nul(options.as_bytes())
        .map_err(|_| Errno::INVAL)
        .and_then(|options| {
            // The attributes of the top are those of the lowest layer's until they are changed.
            let top = is_new.then(|| rustix::fs::stat(&lowest)).transpose()?;
            mount("overlay", INLINE_ROOT, "overlay", MountFlags::empty(), Some(options))?;
            top.map_or(Ok(()), |top| take_over_top(&top))
        })
        .context(failed)
}

/// Whether something was made, and not there before.
fn made(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Gives `/` the mode and the owner that the lowest layer's top has, not those of a fresh directory.
fn take_over_top(top: &rustix::fs::Stat) -> Result<(), Errno> {
    let (user, group) = (rustix::fs::Uid::from_raw(top.st_uid), rustix::fs::Gid::from_raw(top.st_gid));
    if (top.st_uid, top.st_gid) != (0, 0) {
        rustix::fs::chown(INLINE_ROOT, Some(user), Some(group))?;
    }
    if top.st_mode & 0o7777 != 0o755 {
        rustix::fs::chmod(INLINE_ROOT, Mode::from_raw_mode(top.st_mode & 0o7777))?;
    }
    Ok(())
}

impl Mounted {
    /// Makes the root read-only where it is not yet.
    pub(super) fn protect(&self, read_only: bool) -> Result<(), Failure> {
        if !read_only {
            return Ok(());
        }
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"")
            .context(|| "cannot make the root file system read-only".into())
    }

    /// Brings a disk's file system into order. All other processes are gone by now.
    pub(super) fn finish(self) {
        let Some(disk) = self.disk else { return };
        rustix::fs::sync();
        if let WritableDisk::Kept { top, device, free } = disk {
            trim::give_back(&top, &device, free);
            // By its own name, as the overlay lies above it.
            if rustix::process::fchdir(&top).is_err() {
                return;
            }
        }
        for _ in 0..ATTEMPTS {
            // A file that a process had open may be let go a little after that process is gone.
            if mount_remount(".", MountFlags::RDONLY, c"") != Err(Errno::BUSY) {
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
