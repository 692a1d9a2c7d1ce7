//! The run's timeline, for the process that measures it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use amphi::bench::RunReport;
use amphi::isolation::{Instant, Timeline};

use crate::error::CliError;

/// The descriptor named by `--timeline-fd`.
pub(super) struct TimelineFd(File);

impl TimelineFd {
    /// Takes over descriptor `fd` and keeps it from the programs that this process starts.
    pub(super) fn open(fd: i32) -> Result<Self, CliError> {
        let refuse = |source| CliError::Process { action: "use the descriptor of --timeline-fd", source };
        if fd <= libc::STDERR_FILENO {
            return Err(refuse(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        // SAFETY: fcntl with F_SETFD changes nothing but a flag of a descriptor, and fails for a number that is none.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return Err(refuse(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is open, as fcntl has just shown; whoever names it on the command line hands it
        // over, and this early nothing else in this process has opened anything but the standard streams.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Writes the report.
    pub(super) fn write(mut self, process_start: Instant, timeline: Timeline) -> Result<(), CliError> {
        let failed = |source| CliError::Process { action: "write the timeline", source };
        let mut line = serde_json::to_vec(&RunReport { process_start, timeline }).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.0.write_all(&line).map_err(failed)
    }
}
