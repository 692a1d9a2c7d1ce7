//! The file systems that every Linux program expects.

use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::failure::{Context, Failure};

/// Mounts the device nodes of the initramfs, and makes sure that the first three descriptors are taken, so that none
/// opened later is mistaken for a standard stream. The kernel takes them only where it has a console.
pub(super) fn devices() -> Result<(), Failure> {
    let made = mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None);
    made.context(|| "cannot mount the device nodes (devtmpfs)".into())?;
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
        let null = null.context(|| "cannot open /dev/null".into())?;
        if rustix::fd::AsRawFd::as_raw_fd(&null) > 2 {
            return Ok(());
        }
        core::mem::forget(null);
    }
}

/// What is mounted in the workload's root: type, place, flags beyond `nosuid`, options, whether it must be there.
type Standard = (&'static CStr, &'static CStr, MountFlags, Option<&'static CStr>, bool);

const STANDARD: [Standard; 7] = [
    (c"proc", c"/proc", MountFlags::NODEV.union(MountFlags::NOEXEC), None, true),
    (c"sysfs", c"/sys", MountFlags::NODEV.union(MountFlags::NOEXEC), None, true),
    (c"devtmpfs", c"/dev", MountFlags::empty(), None, true),
    (c"devpts", c"/dev/pts", MountFlags::NOEXEC, Some(c"ptmxmode=0666,mode=0620,gid=5"), false),
    (c"tmpfs", c"/dev/shm", MountFlags::NODEV, Some(c"mode=1777"), false),
    (c"mqueue", c"/dev/mqueue", MountFlags::NODEV.union(MountFlags::NOEXEC), None, false),
    (c"cgroup2", CGROUP, MountFlags::NODEV.union(MountFlags::NOEXEC), None, false),
];

const CGROUP: &CStr = c"/sys/fs/cgroup";

/// Mounts them, making the places where they are missing. Nothing is hidden or read-only there, as it is in a
/// container: root in a microVM is root of a whole machine.
pub(super) fn standard() -> Result<(), Failure> {
    for (fstype, place, flags, options, required) in STANDARD {
        let _ = rustix::fs::mkdir(place, Mode::from_raw_mode(0o755));
        let mounted = mount(fstype, place, fstype, flags | MountFlags::NOSUID, options);
        if required {
            mounted.context(|| format!("cannot mount {}", place.to_string_lossy()))?;
        }
    }
    for (to, link) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = rustix::fs::symlink(to, link);
    }
    Ok(())
}

/// Makes a control group that allows `most` processes and threads, if that is not 0; returns the file through which
/// a process enters it.
pub(super) fn limit_processes(most: u32) -> Result<Option<OwnedFd>, Failure> {
    if most == 0 {
        return Ok(None);
    }
    let limited = || -> Result<OwnedFd, Errno> {
        write(c"/sys/fs/cgroup/cgroup.subtree_control", b"+pids")?;
        rustix::fs::mkdir("/sys/fs/cgroup/workload", Mode::from_raw_mode(0o755))?;
        let most: Vec<u8> = format!("{most}").into_bytes();
        write(c"/sys/fs/cgroup/workload/pids.max", &most)?;
        rustix::fs::open("/sys/fs/cgroup/workload/cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    };
    limited().map(Some).context(|| format!("cannot limit the workload to {most} processes in the guest's cgroups"))
}

fn write(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}
