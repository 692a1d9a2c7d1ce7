//! The kernel's log: the one place to be heard where the control port is missing.

use core::fmt::{self, Write};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

/// One line in the kernel's log, written when it is dropped.
pub(crate) struct KernelLog {
    file: Option<OwnedFd>,
    line: [u8; 512],
    length: usize,
}

impl KernelLog {
    /// Begins a line of the level "emergency", the one that reaches a console that is told to be quiet.
    pub(crate) fn open() -> Self {
        let file = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        let mut log = Self { file, line: [0; 512], length: 0 };
        let _ = log.write_str("<0>amphi init: ");
        log
    }

    /// Writes a line.
    pub(crate) fn say(what: fmt::Arguments<'_>) {
        let _ = Self::open().write_fmt(what);
    }
}

impl Write for KernelLog {
    /// Takes what fits in the line.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let length = text.len().min(self.line.len() - self.length);
        self.line[self.length..][..length].copy_from_slice(&text.as_bytes()[..length]);
        self.length += length;
        Ok(())
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = rustix::io::write(file, &self.line[..self.length]);
        }
    }
}
