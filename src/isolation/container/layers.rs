//! The image's directory, or its layers, below a writable layer in memory or in a folder.
//!
//! The child makes this overlay in its own user namespace, where overlayfs keeps its notes in `user.` attributes. Before
//! Linux 6.6 tmpfs has none of those, and directories of the image could neither be removed nor replaced. There, a
//! privileged parent makes the overlay instead, with `trusted.` attributes. It does so as well for a layer in a folder, so that the
//! notes are the same whatever the kernel.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chmodat, chownat, mkdirat, statat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, mount_change};
use rustix::process::fchdir;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::mounts::{attach_to, bind, new_mount};
use super::step::{At, Failure, Step};
use super::syscalls;
use crate::image::store::MAX_STACK;

/// Where layers are attached, the lowest first, and how overlayfs is told of so many of them: the topmost comes first.
const PLACES: [&CStr; MAX_STACK] = [c"0", c"1", c"2", c"3", c"4", c"5", c"6", c"7"];
const STACKS: [&CStr; MAX_STACK] =
    [c"0", c"1:0", c"2:1:0", c"3:2:1:0", c"4:3:2:1:0", c"5:4:3:2:1:0", c"6:5:4:3:2:1:0", c"7:6:5:4:3:2:1:0"];

/// The first Linux whose tmpfs has `user.` attributes.
const TMPFS_USER_ATTRIBUTES: (u32, u32) = (6, 6);
/// The first Linux whose tmpfs can show other owners (idmapped mounts).
const TMPFS_SHIFTS: (u32, u32) = (6, 3);

/// Whose attributes the overlay uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notes {
    /// `user.overlay.*`, as a user namespace must.
    User,
    /// `trusted.overlay.*`, for root of the host.
    Trusted,
}

/// Where the writable layer is.
#[derive(Clone, Copy)]
pub(super) enum Upper<'a> {
    /// In memory, of that size as tmpfs takes it; `None` is the kernel's default, half of the memory.
    Memory(Option<&'a CStr>),
    /// In `upper` and `work` of a folder, a detached mount. They are made if they are missing.
    Kept(BorrowedFd<'a>),
}

/// What overlayfs is not to note in a layer that stays, whatever the kernel's defaults: who reads it would have to follow.
/// With `user.` attributes it does not.
const PLAIN: [(&CStr, &CStr); 3] = [(c"index", c"off"), (c"redirect_dir", c"off"), (c"metacopy", c"off")];

/// An overlay, and the tmpfs that it was made in, which is attached.
pub(super) struct Layers {
    /// Detached.
    pub(super) overlay: OwnedFd,
    /// Attached over `/proc` of the old root.
    pub(super) scratch: OwnedFd,
}

/// Puts `upper` over `lowers`, detached mounts, the lowest first. A tmpfs, in which it all comes together, belongs to this mount
/// namespace only, which must be private, and to the overlay. Allocates nothing.
pub(super) fn make(lowers: &[BorrowedFd<'_>], upper: Upper<'_>, notes: Notes) -> Result<Layers, Failure> {
    let size = if let Upper::Memory(size) = upper { size } else { None };
    let all = [(c"mode", c"755"), (c"size", size.unwrap_or(c""))];
    let options = if size.is_some() { &all[..] } else { &all[..1] };
    let scratch = new_mount(c"tmpfs", options, MountAttrFlags::empty()).at(Step::Scratch)?;
    // Before Linux 6.15 overlayfs takes layers only from mounts that are attached. The host's /proc is not
    // needed any more, and leaves with the old root. (On `/` it would lie over the old root after `pivot_root`.)
    attach_to(scratch.as_fd(), CWD, c"/proc").at(Step::Scratch)?;
    mkdirat(&scratch, c"root", Mode::from_raw_mode(0o755)).at(Step::Scratch)?;
    attach_layers(lowers, scratch.as_fd())?;
    let lower = *lowers.first().ok_or(Errno::INVAL).at(Step::Lower)?;
    let step = if let Upper::Kept(folder) = upper {
        mkdirat(&scratch, c"kept", Mode::from_raw_mode(0o755)).at(Step::Scratch)?;
        attach_to(folder, scratch.as_fd(), c"kept").at(Step::Kept)?;
        make_directories(folder, lower).at(Step::Kept)?;
        Step::KeptOverlay
    } else {
        make_directories(scratch.as_fd(), lower).at(Step::Scratch)?;
        Step::Overlay
    };
    fchdir(&scratch).at(step)?;
    let stack = STACKS[lowers.len() - 1];
    let (upperdir, workdir) = match upper {
        Upper::Memory(_) => (c"upper", c"work"),
        Upper::Kept(_) => (c"kept/upper", c"kept/work"),
    };
    let [a, b, c] = PLAIN;
    let user = (c"userxattr", c"");
    let all = [user, (c"lowerdir", stack), (c"upperdir", upperdir), (c"workdir", workdir), a, b, c];
    let options = match (upper, notes) {
        (_, Notes::User) => &all[..4],
        (Upper::Memory(_), Notes::Trusted) => &all[1..4],
        (Upper::Kept(_), Notes::Trusted) => &all[1..],
    };
    // Device nodes of an image are never to be used; in a user namespace they cannot be.
    let overlay = new_mount(c"overlay", options, MountAttrFlags::MOUNT_ATTR_NODEV).at(step)?;
    Ok(Layers { overlay, scratch })
}

/// Makes the directories that an overlay writes to, if they are not there already, in `folder` over `lower`.
fn make_directories(folder: BorrowedFd<'_>, lower: BorrowedFd<'_>) -> Result<(), Errno> {
    match mkdirat(folder, c"upper", Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    // This one comes last: while it is missing, the other is as it was made.
    match statat(folder, c"work", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // `/` of the container has the image's own mode and owner, not those of a fresh directory.
    let root = statat(lower, c"", AtFlags::EMPTY_PATH)?;
    let (user, group) = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
    // An owner that does not exist in this namespace cannot be given; it stays root then.
    let _ = chownat(folder, c"upper", Some(user), Some(group), AtFlags::empty());
    chmodat(folder, c"upper", Mode::from_raw_mode(root.st_mode & 0o7777), AtFlags::empty())?;
    mkdirat(folder, c"work", Mode::from_raw_mode(0o755))
}

/// Attaches layers in `scratch`, each in its place.
fn attach_layers(lowers: &[BorrowedFd<'_>], scratch: BorrowedFd<'_>) -> Result<(), Failure> {
    if lowers.is_empty() || lowers.len() > MAX_STACK {
        return Err(Errno::INVAL).at(Step::Lower);
    }
    for (lower, place) in lowers.iter().zip(PLACES) {
        mkdirat(scratch, place, Mode::from_raw_mode(0o755)).at(Step::Scratch)?;
        attach_to(*lower, scratch, place).at(Step::Lower)?;
    }
    Ok(())
}

/// Whether the parent has to make the overlay, if it may.
pub(super) fn needs_parent() -> bool {
    host_is_older_than(TMPFS_USER_ATTRIBUTES)
}

/// Whether `tree` is known not to show other owners. Others find out by trying, which takes a child and its namespaces.
pub(super) fn cannot_shift(tree: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(tree).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC) && host_is_older_than(TMPFS_SHIFTS)
}

fn host_is_older_than(first: (u32, u32)) -> bool {
    rustix::system::uname().release().to_str().is_ok_and(|release| version(release) < first)
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// In the parent: makes the overlay as root of the host, and returns it detached. What it is made in is attached where the child itself
/// would attach it, in the mount namespace of the child that `child` is a pidfd of, which waits meanwhile. `owner` is who makes what
/// overlayfs makes for itself: root of the container, where an idmapped mount has nobody else.
pub(super) fn make_privileged(
    lowers: &[BorrowedFd<'_>],
    upper: Upper<'_>,
    owner: Option<(u32, u32)>,
    child: BorrowedFd<'_>,
) -> Result<OwnedFd, Failure> {
    apart(|| {
        move_into_thread_name_spaces(child, ThreadNameSpaceType::MOUNT).at(Step::PrivateMounts)?;
        if let Some((user, group)) = owner {
            syscalls::make_files_as(user, group).at(Step::Kept)?;
        }
        make(lowers, upper, Notes::Trusted).map(|layers| layers.overlay)
    })
}

/// The layers over each other as a detached mount that cannot be written to, and detached mounts of them once more: `lowers`
/// themselves cannot be attached again. (Before Linux 6.15 only what is attached can be copied.)
pub(super) fn view(lowers: &[BorrowedFd<'_>]) -> Result<(OwnedFd, Vec<OwnedFd>), Failure> {
    apart(|| {
        enter_own_mounts()?;
        let scratch = new_mount(c"tmpfs", &[(c"mode", c"755")], MountAttrFlags::empty()).at(Step::Scratch)?;
        attach_to(scratch.as_fd(), CWD, c"/proc").at(Step::Scratch)?;
        attach_layers(lowers, scratch.as_fd())?;
        fchdir(&scratch).at(Step::Overlay)?;
        let options = [(c"lowerdir", STACKS[lowers.len() - 1])];
        let overlay = new_mount(c"overlay", &options, MountAttrFlags::MOUNT_ATTR_RDONLY).at(Step::Overlay)?;
        let copies = PLACES[..lowers.len()].iter().map(|place| bind(scratch.as_fd(), place));
        Ok((overlay, copies.collect::<Result<_, _>>().at(Step::Lower)?))
    })
}

/// The layers with a writable one over them as a detached mount, for amphi itself: with the owners that they have on disk.
pub(super) fn merged(lowers: &[BorrowedFd<'_>], upper: Upper<'_>) -> Result<OwnedFd, Failure> {
    apart(|| {
        enter_own_mounts()?;
        make(lowers, upper, Notes::Trusted).map(|layers| layers.overlay)
    })
}

/// Gives the calling thread a mount namespace of its own, which ends with it.
fn enter_own_mounts() -> Result<(), Failure> {
    // SAFETY: it does not touch the file descriptors, which all threads share.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.at(Step::PrivateMounts)?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at(Step::PrivateMounts)
}

/// Does `work` in a thread with a root and working directory of its own, which may enter another mount namespace.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: it does not touch the file descriptors, which all threads share.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.at(Step::PrivateMounts)?;
            work()
        });
        thread.join().unwrap_or(Err(Failure { step: Step::Overlay, errno: rustix::io::Errno::CANCELED, index: 0 }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.1.0-56-amd64"), (6, 1));
        assert_eq!(version("6.18.44-fc"), (6, 18));
        assert!(version("6.10-rc1") >= TMPFS_USER_ATTRIBUTES);
        assert_eq!(version(""), (0, 0));
    }
}
