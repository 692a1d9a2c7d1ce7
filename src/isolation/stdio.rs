//! Where a workload's standard streams go.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The host's ends of the workload's standard streams. The sandbox owns and closes them.
#[derive(Debug)]
pub struct Stdio {
    /// Read from, and passed on, where the workload's standard input is connected.
    pub stdin: OwnedFd,
    /// Written with what the workload writes to its standard output.
    pub stdout: OwnedFd,
    /// Written with what the workload writes to its standard error.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Duplicates of the caller's own standard streams.
    ///
    /// # Errors
    /// One of them is closed.
    pub fn inherit() -> io::Result<Self> {
        Ok(Self {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }

    /// No input, and all output thrown away.
    ///
    /// # Errors
    /// `/dev/null` cannot be opened.
    pub fn null() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self { stdin: null.try_clone()?.into(), stdout: null.try_clone()?.into(), stderr: null.into() })
    }
}
