//! Writing to the standard streams.

use core::fmt::{self, Write};

use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Formatted text for a descriptor, written when it is flushed.
pub(super) struct Output(alloc::string::String);

impl Output {
    /// Formats `text` and writes it to standard output.
    pub(super) fn print(text: fmt::Arguments<'_>) -> Result<u8, Errno> {
        let mut output = Self(alloc::string::String::new());
        let _ = output.0.write_fmt(text);
        write_all(stdout(), output.0.as_bytes()).map(|()| 0)
    }

    /// Writes a line to standard error; there is nobody to tell if that fails.
    pub(super) fn error(text: fmt::Arguments<'_>) {
        let mut output = Self(alloc::string::String::new());
        let _ = output.0.write_fmt(format_args!("{text}\n"));
        // SAFETY: this program never closes its standard streams; if the caller has, the write fails.
        let _ = write_all(unsafe { BorrowedFd::borrow_raw(2) }, output.0.as_bytes());
    }
}

/// Standard output.
pub(super) fn stdout() -> BorrowedFd<'static> {
    // SAFETY: this program never closes its standard streams; if the caller has, the write fails.
    unsafe { BorrowedFd::borrow_raw(1) }
}

/// Writes everything.
pub(super) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
