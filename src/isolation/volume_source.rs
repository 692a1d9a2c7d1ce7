//! The host's end of a volume, for both isolations.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// Opens what is shared, without access, and tells whether it is a directory, and not a regular file.
pub(super) fn open(path: &Path) -> io::Result<(OwnedFd, bool)> {
    let top = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&top)?.st_mode) {
        FileType::Directory => Ok((top, true)),
        FileType::RegularFile => Ok((top, false)),
        _ => Err(io::Error::other("it is neither a directory nor a regular file")),
    }
}
