//! What went wrong, in words for the user of amphi.

use alloc::format;
use alloc::string::String;

use rustix::io::Errno;

/// Why the workload could not be started.
pub(super) struct Failure(pub(super) String);

/// Says what was attempted when a system call failed.
pub(super) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|errno| Failure(format!("{}: {}", what(), describe(errno))))
    }
}

/// The error in words, where it is a common one.
fn describe(errno: Errno) -> String {
    let text = match errno {
        Errno::NOENT => "no such file or directory",
        Errno::NXIO | Errno::NODEV => "no such device",
        Errno::NOTBLK => "not a block device",
        Errno::IO => "input/output error",
        Errno::NOMEM => "out of memory",
        Errno::ACCESS => "permission denied",
        Errno::PERM => "operation not permitted",
        Errno::BUSY => "device or resource busy",
        Errno::NOTDIR => "not a directory",
        Errno::INVAL => "invalid argument, or a damaged or unknown file system",
        Errno::NOSPC => "no space left",
        Errno::ROFS => "read-only file system",
        Errno::EXIST => "it exists already",
        Errno::ISDIR => "it is a directory",
        Errno::NAMETOOLONG => "its path is too long",
        Errno::MFILE => "too many directories inside each other",
        Errno::NOSYS | Errno::OPNOTSUPP => "the kernel does not support it",
        Errno::NOEXEC => "not for this kernel",
        Errno::TIMEDOUT => "it did not appear in time",
        _ => return format!("error {}", errno.raw_os_error()),
    };
    format!("{text} (error {})", errno.raw_os_error())
}
