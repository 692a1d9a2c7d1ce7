//! The few system calls that rustix does not wrap, or not without the C library's fork hooks.
//!
//! All of them are safe to make between `clone3` and `execve` in a copy of a process that had several
//! threads: they neither allocate nor take a lock.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

// Flags that do not fit the 32 bits of the C library's type for them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 { Ok(result) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    // SAFETY: the location is this thread's own and always readable.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Which side of a [`clone3`] or [`fork`] this is.
pub(super) enum Side<T> {
    /// The caller.
    Parent(T),
    /// The new process.
    Child,
}

/// What the parent knows of its child.
pub(super) struct Cloned {
    /// The child's process id in the parent's PID namespace.
    pub(super) pid: i32,
    /// Refers to the child whatever becomes of its id.
    pub(super) pidfd: OwnedFd,
}

/// Makes a copy of this process in the new namespaces that `flags` ask for, with all signal handlers reset,
/// born in `cgroup` where one is given. The copy sends no signal when it ends, so that no one
/// who waits for children in general comes across it.
///
/// # Safety
/// The child has only the calling thread, while locks may be held by others: until it executes a program or
/// exits it must not allocate, take locks or unwind.
pub(super) unsafe fn clone3(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> Result<Side<Cloned>, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned()) | CLONE_CLEAR_SIGHAND;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().cast_unsigned());
    }
    // SAFETY: `args` is initialised and of the size given, `pidfd` outlives the call, memory is not shared
    // (no CLONE_VM), and the caller vouches for what the child does.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent(Cloned { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd }))
}

/// `fork(2)` without the C library's handlers, which take locks.
///
/// # Safety
/// As for [`clone3`].
pub(super) unsafe fn fork() -> Result<Side<i32>, Errno> {
    // SAFETY: no memory is shared and no pointer is passed; the caller vouches for what the child does.
    match check(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(i32::try_from(pid).unwrap_or(i32::MAX))),
    }
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes<'a> {
    /// What the mount gets (`MOUNT_ATTR_...`).
    pub(super) set: u64,
    /// Whether mounts below it do not show in other mount namespaces, nor theirs here.
    pub(super) private: bool,
    /// Whether what is mounted below it changes as well.
    pub(super) recursive: bool,
    /// Whose ids its owners are shown by, for `MOUNT_ATTR_IDMAP`.
    pub(super) userns: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of the mount that `mount` is the root of.
pub(super) fn mount_setattr(mount: BorrowedFd<'_>, attributes: &Attributes<'_>) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: if attributes.private { libc::MS_PRIVATE } else { 0 },
        userns_fd: attributes.userns.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, and `attr` is initialised and of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// Closes every descriptor but those in `keep`, which is in ascending order.
pub(super) fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut first = 0;
    for &fd in keep {
        let fd = fd.cast_unsigned();
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes integers only. The callers own nothing that uses the descriptors closed here.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Puts every signal that can be caught back to its default action, those that were ignored too.
pub(super) fn reset_signal_actions() {
    // The kernel's structure: handler, flags, restorer, mask. All zero is SIG_DFL.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the structure is initialised and the mask is of 8 bytes. SIGKILL and SIGSTOP fail, as they may.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
}

/// Blocks exactly the signals whose bits are set, and returns those blocked before.
pub(super) fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both masks are of the 8 bytes given. It cannot fail with these arguments.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8) };
    old
}

/// A descriptor from which the signals whose bits are set in `mask` can be read.
pub(super) fn signalfd(mask: u64) -> Result<OwnedFd, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the mask is of the 8 bytes given.
    let fd = check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) })?;
    // SAFETY: the kernel returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// Has what this thread makes from now on belong to that user and group, with the capabilities that it has. Other threads stay
/// as they are.
pub(super) fn make_files_as(user: u32, group: u32) -> Result<(), Errno> {
    use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    // SAFETY: these take integers only, and change the calling thread alone. They return what was before, not whether they worked.
    let now = unsafe {
        libc::setfsgid(group);
        libc::setfsuid(user);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    let same = |now: i32, wanted: u32| now.cast_unsigned() == wanted;
    if same(now.0, user) && same(now.1, group) { Ok(()) } else { Err(Errno::PERM) }
}

/// Executes `program`. Returns only on failure.
///
/// # Safety
/// `argv` and `envp` are null-terminated arrays of C strings.
pub(super) unsafe fn execve(
    program: &CStr,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> Errno {
    // SAFETY: the program is a C string, and the caller vouches for the arrays.
    unsafe { libc::execve(program.as_ptr(), argv, envp) };
    last_error()
}

/// Ends the process at once.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(code) }
}
