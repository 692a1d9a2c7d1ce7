//! Landlock: a thread takes from itself the right to open or change any file but those below one place.
//!
//! The constants and structures are those of linux/landlock.h.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

const VERSION: libc::c_uint = 1;
const PATH_BENEATH: libc::c_uint = 1;

/// Rights that a ruleset may handle (`LANDLOCK_ACCESS_FS_...`).
mod right {
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const READ_FILE: u64 = 1 << 2;
    pub(super) const READ_DIR: u64 = 1 << 3;
    pub(super) const REMOVE_DIR: u64 = 1 << 4;
    pub(super) const REMOVE_FILE: u64 = 1 << 5;
    pub(super) const MAKE_DIR: u64 = 1 << 7;
    pub(super) const MAKE_REG: u64 = 1 << 8;
    pub(super) const MAKE_SOCK: u64 = 1 << 9;
    pub(super) const MAKE_FIFO: u64 = 1 << 10;
    pub(super) const MAKE_SYM: u64 = 1 << 12;
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    /// Executing, and making devices of either kind: never allowed.
    pub(super) const NEVER: u64 = 1 | 1 << 6 | 1 << 11;
    /// Controlling devices; from version 5 on.
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
}

const OF_FILES: u64 = right::WRITE_FILE | right::READ_FILE | right::TRUNCATE;
const OF_READERS: u64 = right::READ_FILE | right::READ_DIR;
const ALLOWED: u64 = OF_FILES
    | OF_READERS
    | right::REMOVE_DIR
    | right::REMOVE_FILE
    | right::MAKE_DIR
    | right::MAKE_REG
    | right::MAKE_SOCK
    | right::MAKE_FIFO
    | right::MAKE_SYM
    | right::REFER;

/// What a thread keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Below<'a> {
    /// The directory or regular file, which may be open with `O_PATH`.
    pub(crate) top: BorrowedFd<'a>,
    /// Whether it is a directory.
    pub(crate) directory: bool,
    /// Whether nothing may be changed.
    pub(crate) read_only: bool,
}

/// Restricts the calling thread, which has `no_new_privs`, and all that it will make. Returns whether the kernel can do so;
/// before version 2 (Linux 5.19) a restricted thread could not rename between directories, so those count as none.
pub(crate) fn restrict(below: Below<'_>) -> Result<bool, Errno> {
    let handled = match version() {
        0 | 1 => return Ok(false),
        2 => (ALLOWED & !right::TRUNCATE) | right::NEVER,
        3 | 4 => ALLOWED | right::NEVER,
        _ => ALLOWED | right::NEVER | right::IOCTL_DEV,
    };
    let ruleset = create(handled)?;
    let of_kind = if below.directory { ALLOWED } else { OF_FILES };
    let of_mode = if below.read_only { OF_READERS } else { ALLOWED };
    allow(ruleset.as_fd(), below.top, handled & of_kind & of_mode)?;
    // SAFETY: takes a descriptor and a number.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(true)
}

/// The version of Landlock; 0 is none.
fn version() -> libc::c_long {
    // SAFETY: with this flag there is neither a structure nor a length.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) }.max(0)
}

fn create(handled: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: the structure's first member alone is one that all versions take.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, size_of::<u64>(), 0) })?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::BADF)?) })
}

fn allow(ruleset: BorrowedFd<'_>, parent: BorrowedFd<'_>, rights: u64) -> Result<(), Errno> {
    #[repr(C, packed)]
    struct PathBeneath {
        rights: u64,
        parent: i32,
    }
    let rule = PathBeneath { rights, parent: parent.as_raw_fd() };
    // SAFETY: the structure is the one for this kind of rule.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) })
        .map(drop)
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_restricted_thread_keeps_what_is_below() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::write(&outside, "x").unwrap();
        std::thread::spawn(move || {
            let top = File::open(&inside).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            if !restrict(Below { top: top.as_fd(), directory: true, read_only: false }).unwrap() {
                return;
            }
            fs::write(inside.join("a"), "x").unwrap();
            fs::create_dir(inside.join("d")).unwrap();
            fs::rename(inside.join("a"), inside.join("d/a")).unwrap();
            assert!(fs::read(&outside).is_err() && fs::write(&outside, "y").is_err());
            assert!(fs::read_dir("/").is_err());
            assert!(restrict(Below { top: top.as_fd(), directory: true, read_only: true }).unwrap());
            assert!(fs::read(inside.join("d/a")).is_ok() && fs::write(inside.join("b"), "x").is_err());
        })
        .join()
        .unwrap();
    }
}
