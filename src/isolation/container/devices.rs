//! The contents of `/dev`: the default devices of the OCI runtime specification, and the usual symlinks.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, FileType, Mode, mknodat, symlinkat};
use rustix::io::Errno;

use super::mounts::{attach_to, bind};
use super::step::{At, Failure, Step};

/// Name in `/dev`, and path on the host. A user namespace may not make device nodes, so they are bind mounts.
pub(super) const DEVICES: &[(&CStr, &CStr)] = &[
    (c"null", c"/dev/null"),
    (c"zero", c"/dev/zero"),
    (c"full", c"/dev/full"),
    (c"random", c"/dev/random"),
    (c"urandom", c"/dev/urandom"),
    (c"tty", c"/dev/tty"),
];

const LINKS: &[(&CStr, &CStr)] = &[
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
    (c"core", c"/proc/kcore"),
];

/// Fills the fresh tmpfs `dev`. The host's `/dev` must still be reachable.
pub(super) fn make_dev(dev: BorrowedFd<'_>) -> Result<(), Failure> {
    for (index, (name, path)) in DEVICES.iter().enumerate() {
        let node = bind(CWD, path).at_item(Step::MakeDevice, index)?;
        place(node.as_fd(), dev, name).at_item(Step::MakeDevice, index)?;
    }
    for (name, target) in LINKS {
        symlinkat(*target, dev, *name).at(Step::Dev)?;
    }
    Ok(())
}

/// Puts the detached mount of a device at the new file `name` of `dev`.
pub(super) fn place(node: BorrowedFd<'_>, dev: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    mknodat(dev, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
    attach_to(node, dev, name)
}
