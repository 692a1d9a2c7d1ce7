//! The file systems a container sees: an overlay as `/`, and `/proc`, `/sys` and `/dev` as the OCI runtime specification
//! asks ("Linux default filesystems").
//!
//! Runs in the child. Mounts are made detached and then attached by descriptor, so that no path of
//! the image is followed: what the image has as symlinks cannot lead a mount astray.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, stat, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::devices::make_dev;
use super::layers::{self, Layers, Notes, Upper};
use super::step::{At, Failure, Step};
use super::syscalls::{Attributes, mount_setattr};
use super::volumes::{self, VolumeMount};

/// What the parent has prepared for the mounts.
#[derive(Debug)]
pub(super) struct MountPlan<'a> {
    /// Where the image's directory comes from.
    pub(super) lower: Lower<'a>,
    /// Where the writable layer is, if it is not the parent that makes the overlay.
    pub(super) upper: UpperPlan<'a>,
    /// Whether `/` refuses writes.
    pub(super) read_only: bool,
    /// Whether the host has the unified cgroup hierarchy only, so that it can be shown at `/sys/fs/cgroup`.
    pub(super) unified_cgroup: bool,
    /// Whether group 5 (`tty`) exists in the user namespace.
    pub(super) tty_group: bool,
    /// What else of the host there is, in the order in which it is attached.
    pub(super) volumes: &'a [VolumeMount<'a>],
}

/// Where a writable layer is that the child makes.
#[derive(Debug, Clone, Copy)]
pub(super) enum UpperPlan<'a> {
    /// In memory, of that size as tmpfs takes it; `None` is the kernel's default, half of the memory.
    Memory(Option<&'a CStr>),
    /// In the folder with this path.
    Kept(&'a CStr),
}

/// The image's directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lower<'a> {
    /// A detached mount of it, made by a privileged parent; of several layers the parent makes the overlay.
    Tree(BorrowedFd<'a>),
    /// Its path, where the parent may not mount.
    Path(&'a CStr),
}

/// Paths below `/proc` and `/sys` that a workload must not see: they tell about, or act on, the whole host.
/// The list is that of docker and podman.
pub(super) const MASKED: &[&CStr] = &[
    c"proc/asound",
    c"proc/acpi",
    c"proc/interrupts",
    c"proc/kcore",
    c"proc/keys",
    c"proc/latency_stats",
    c"proc/sched_debug",
    c"proc/scsi",
    c"proc/timer_list",
    c"proc/timer_stats",
    c"sys/devices/virtual/powercap",
    c"sys/firmware",
    c"sys/fs/selinux",
];

/// Paths below `/proc` that a workload may read but not write.
pub(super) const READ_ONLY: &[&CStr] = &[c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

const HARMLESS: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

const READ_ONLY_MOUNT: Attributes<'_> =
    Attributes { set: libc::MOUNT_ATTR_RDONLY, private: false, recursive: false, userns: None };

/// The new root, not yet entered.
pub(super) struct Root {
    /// `/`.
    root: OwnedFd,
    /// `/dev`.
    dev: OwnedFd,
    /// `/dev/pts`.
    pts: OwnedFd,
}

impl Root {
    /// Builds everything, on top of the host's tree that this mount namespace still has. `made` is an overlay that
    /// the parent has made.
    pub(super) fn build(plan: &MountPlan<'_>, made: Option<OwnedFd>) -> Result<Self, Failure> {
        // Nothing may leak to the host. In a mount namespace of another user namespace all is
        // at most a slave already; this also keeps the host's later mounts out.
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at(Step::PrivateMounts)?;
        let root = overlay(plan, made)?;
        let proc = mount_at(&root, c"proc", c"proc", &[], HARMLESS, Step::Proc)?;
        let read_only = HARMLESS | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let sys = mount_at(&root, c"sys", c"sysfs", &[], read_only, Step::Sys)?;
        if plan.unified_cgroup {
            mount_at(&sys, c"fs/cgroup", c"cgroup2", &[], read_only, Step::Cgroup)?;
        }
        let dev = mount_at(
            &root,
            c"dev",
            c"tmpfs",
            &[(c"mode", c"755"), (c"size", c"65536k")],
            MountAttrFlags::MOUNT_ATTR_NOSUID,
            Step::Dev,
        )?;
        make_dev(dev.as_fd())?;
        let pts = pts(&dev, plan.tty_group)?;
        mount_at(&dev, c"shm", c"tmpfs", &[(c"mode", c"1777"), (c"size", c"65536k")], HARMLESS, Step::Shm)?;
        mount_at(&dev, c"mqueue", c"mqueue", &[], HARMLESS, Step::Mqueue)?;
        protect(proc.as_fd(), sys.as_fd())?;
        volumes::attach_all(plan.volumes, root.as_fd())?;
        Ok(Self { root, dev, pts })
    }

    /// The mount of `/dev`, and that of `/dev/pts`.
    pub(super) fn terminals(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.dev.as_fd(), self.pts.as_fd())
    }

    /// Makes this tree the root, lets go of the host's, and returns the root.
    pub(super) fn enter(self) -> Result<OwnedFd, Failure> {
        fchdir(&self.root).at(Step::PivotRoot)?;
        // The old root then lies over the new one, where `.` finds it.
        pivot_root(c".", c".").at(Step::PivotRoot)?;
        unmount(c".", UnmountFlags::DETACH).at(Step::PivotRoot)?;
        chdir(c"/").at(Step::PivotRoot)?;
        // Had anything stayed above the new root, `..` would lead there.
        let (top, above) = (stat(c"/").at(Step::PivotRoot)?, stat(c"/..").at(Step::PivotRoot)?);
        if (top.st_dev, top.st_ino) == (above.st_dev, above.st_ino) {
            Ok(self.root)
        } else {
            Err(Errno::BUSY).at(Step::PivotRoot)
        }
    }
}

/// Makes `/` itself refuse writes; the mounts below it keep their own modes.
pub(super) fn make_read_only(root: BorrowedFd<'_>) -> Result<(), Failure> {
    mount_setattr(root, &READ_ONLY_MOUNT).at(Step::ReadOnlyRoot)
}

/// A new, detached mount.
pub(super) fn new_mount(
    fstype: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key)?;
        } else {
            fsconfig_set_string(&context, *key, *value)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount to a directory or file.
pub(super) fn attach(mount: BorrowedFd<'_>, at: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", at, c"", flags)
}

/// Attaches a detached mount to the file or directory `name` of `dir`, which no one else can change.
pub(super) fn attach_to(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    move_mount(mount, c"", dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A detached copy of one mount, from the file or directory `name` of `dir` down.
pub(super) fn bind(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open_tree(dir, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Opens `name` in `dir` to mount there. A symlink is not followed.
fn mount_point(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        // A read-only file system answers so too where the directory is there.
        Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts a new file system on the directory `name` of `dir`, which is made if it is missing.
fn mount_at(
    dir: &OwnedFd,
    name: &CStr,
    fstype: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: MountAttrFlags,
    step: Step,
) -> Result<OwnedFd, Failure> {
    let mount = new_mount(fstype, options, attributes).at(step)?;
    let point = mount_point(dir.as_fd(), name).at(Step::MountPoint)?;
    attach(mount.as_fd(), point.as_fd()).at(step)?;
    Ok(mount)
}

/// Attaches the overlay, which the child makes itself unless the parent has.
fn overlay(plan: &MountPlan<'_>, made: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    if let Some(overlay) = made {
        attach_to(overlay.as_fd(), CWD, c"/proc").at(Step::Overlay)?;
        return Ok(overlay);
    }
    let clone;
    let lower = match plan.lower {
        Lower::Tree(tree) => tree,
        Lower::Path(path) => {
            clone = bind(CWD, path).at(Step::Lower)?;
            clone.as_fd()
        }
    };
    let folder;
    let upper = match plan.upper {
        UpperPlan::Memory(size) => Upper::Memory(size),
        UpperPlan::Kept(path) => {
            folder = bind(CWD, path).at(Step::Kept)?;
            Upper::Kept(folder.as_fd())
        }
    };
    let Layers { overlay, scratch } = layers::make(&[lower], upper, Notes::User)?;
    attach_to(overlay.as_fd(), scratch.as_fd(), c"root").at(Step::Overlay)?;
    Ok(overlay)
}

fn pts(dev: &OwnedFd, tty_group: bool) -> Result<OwnedFd, Failure> {
    let options = [(c"newinstance", c""), (c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
    let options = if tty_group { &options[..] } else { &options[..3] };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount_at(dev, c"pts", c"devpts", options, attributes, Step::Pts)
}

/// Hides [`MASKED`] and write-protects [`READ_ONLY`]. What this kernel does not have is passed over.
fn protect(proc: BorrowedFd<'_>, sys: BorrowedFd<'_>) -> Result<(), Failure> {
    for (index, path) in READ_ONLY.iter().enumerate() {
        let (dir, name) = below(path, proc, sys);
        match bind(dir, name) {
            Ok(mount) => {
                mount_setattr(mount.as_fd(), &READ_ONLY_MOUNT).at_item(Step::ReadOnlyPath, index)?;
                attach_to(mount.as_fd(), dir, name).at_item(Step::ReadOnlyPath, index)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at_item(Step::ReadOnlyPath, index),
        }
    }
    // One empty file system serves for all directories. It is copied only once attached, as older kernels ask.
    let mut empty_attached = false;
    let empty =
        new_mount(c"tmpfs", &[(c"mode", c"755")], HARMLESS | MountAttrFlags::MOUNT_ATTR_RDONLY).at(Step::MaskPath)?;
    for (index, path) in MASKED.iter().enumerate() {
        let (dir, name) = below(path, proc, sys);
        let mask = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() && !empty_attached => {
                attach_to(empty.as_fd(), dir, name).at_item(Step::MaskPath, index)?;
                empty_attached = true;
                continue;
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => bind(empty.as_fd(), c"."),
            Ok(_) => bind(CWD, c"/dev/null"),
            Err(Errno::NOENT) => continue,
            Err(errno) => Err(errno),
        }
        .at_item(Step::MaskPath, index)?;
        attach_to(mask.as_fd(), dir, name).at_item(Step::MaskPath, index)?;
    }
    Ok(())
}

/// The mount that holds `path`, and the path in it.
fn below<'a>(path: &'a CStr, proc: BorrowedFd<'a>, sys: BorrowedFd<'a>) -> (BorrowedFd<'a>, &'a CStr) {
    let (mount, prefix) = if path.to_bytes().starts_with(b"proc/") { (proc, 5) } else { (sys, 4) };
    let rest = path.to_bytes_with_nul().get(prefix..).and_then(|name| CStr::from_bytes_with_nul(name).ok());
    (mount, rest.unwrap_or(path))
}
