//! Standard output and error by way of a pipe, where the host's own file is not fit to be handed in.
//!
//! Most are handed in as they are, without a copy. But a workload must not get the host's terminal unless it asked for
//! one, and what it finds behind `/dev/stdout` must be its own to open, which a host's file is not
//! when its user ids are others than the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{FileType, fchown, fstat, fstatfs};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Uid;

use super::error::ContainerError;
use super::launch::above_standard;
use super::terminal::write_all;
use crate::isolation::timeline::Stamp;

/// `PIPEFS_MAGIC` of linux/magic.h: a pipe without a name, which only its holders can be affected by.
const PIPEFS_MAGIC: u64 = 0x5049_5045;
const BUFFER: usize = 64 << 10;

/// Threads that pass a workload's output on.
#[derive(Debug, Default)]
pub(super) struct Relays(Mutex<Vec<JoinHandle<()>>>);

/// The workload's ends of its standard output and error.
pub(super) struct Outputs {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Outputs {
    /// Further descriptors of the same files.
    pub(super) fn try_clone(&self) -> Result<Self, ContainerError> {
        let clone = |fd: &OwnedFd| {
            rustix::io::fcntl_dupfd_cloexec(fd, 3)
                .map_err(ContainerError::kernel("connect the standard output and error"))
        };
        Ok(Self { stdout: clone(&self.stdout)?, stderr: clone(&self.stderr)? })
    }
}

impl Relays {
    /// Makes outputs fit for a workload whose user is `owner` on the host. `shifted` says that
    /// its user ids are others than the host's.
    pub(super) fn make(
        &self,
        given: &Outputs,
        owner: Option<u32>,
        shifted: bool,
        first_byte: &Arc<Stamp>,
    ) -> Result<Outputs, ContainerError> {
        let error = ContainerError::kernel("connect the standard output and error");
        let connect = || -> Result<Outputs, Errno> {
            if !needs_relay(given.stdout.as_fd(), shifted)? {
                let stderr = self.one(&given.stderr, owner, shifted, first_byte)?;
                lend(given.stdout.as_fd(), owner);
                return Ok(Outputs { stdout: rustix::io::fcntl_dupfd_cloexec(&given.stdout, 3)?, stderr });
            }
            let stdout = self.one(&given.stdout, owner, shifted, first_byte)?;
            // One pipe for both keeps the order of what is written to them.
            let stderr = if same_file(&given.stdout, &given.stderr)? {
                rustix::io::fcntl_dupfd_cloexec(&stdout, 3)?
            } else {
                self.one(&given.stderr, owner, shifted, first_byte)?
            };
            Ok(Outputs { stdout, stderr })
        };
        connect().map_err(error)
    }

    fn one(
        &self,
        given: &OwnedFd,
        owner: Option<u32>,
        shifted: bool,
        first_byte: &Arc<Stamp>,
    ) -> Result<OwnedFd, Errno> {
        let copy = rustix::io::fcntl_dupfd_cloexec(given, 3)?;
        if !needs_relay(given.as_fd(), shifted)? {
            lend(given.as_fd(), owner);
            return Ok(copy);
        }
        let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
        lend(to.as_fd(), owner);
        let first_byte = Arc::clone(first_byte);
        let thread =
            std::thread::Builder::new().name("output".to_owned()).spawn(move || pass(&from, &copy, &first_byte));
        let thread = thread.map_err(|source| Errno::from_io_error(&source).unwrap_or(Errno::AGAIN))?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        above_standard(to)
    }

    /// Waits until all is passed on. All processes that could write more must have ended.
    pub(super) fn finish(&self) {
        for thread in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It has nothing to return, and a panic in it has been reported by its own hook.
            let _ = thread.join();
        }
    }
}

/// Passes bytes until nobody can write any more.
fn pass(from: &OwnedFd, to: &OwnedFd, first_byte: &Stamp) {
    let mut buffer = vec![0u8; BUFFER];
    loop {
        match read(from, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                first_byte.mark();
                // Closing our end tells the workload that nobody takes its output any more.
                if write_all(to.as_fd(), &buffer[..count]).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn needs_relay(fd: BorrowedFd<'_>, shifted: bool) -> Result<bool, Errno> {
    const OTHERS_WRITE: u32 = 0o002;
    let stat = fstat(fd)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => false,
        FileType::Fifo if is_pipe(fd)? => false,
        FileType::CharacterDevice if rustix::termios::isatty(fd) => true,
        _ => shifted && stat.st_mode & OTHERS_WRITE == 0,
    })
}

fn is_pipe(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(u64::try_from(fstatfs(fd)?.f_type).is_ok_and(|magic| magic == PIPEFS_MAGIC))
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Errno> {
    let (a, b) = (fstat(a)?, fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Lets the workload's user open a pipe by its `/proc/self/fd` name. Without the right to, it is left as it is.
pub(super) fn lend(fd: BorrowedFd<'_>, owner: Option<u32>) {
    if let (Some(owner), Ok(true)) = (owner, is_pipe(fd)) {
        let _ = fchown(fd, Some(Uid::from_raw(owner)), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_handed_in_and_private_files_are_not() {
        let (_from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert!(!needs_relay(to.as_fd(), true).unwrap());
        let file = tempfile::tempfile().unwrap();
        assert!(needs_relay(file.as_fd(), true).unwrap());
        assert!(!needs_relay(file.as_fd(), false).unwrap());
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        assert!(!needs_relay(null.as_fd(), true).unwrap());
    }

    #[test]
    fn a_relay_passes_everything_on_in_order() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let given = Outputs { stdout: file.try_clone().unwrap(), stderr: file.try_clone().unwrap() };
        let (relays, stamp) = (Relays::default(), Arc::new(Stamp::default()));
        let outputs = relays.make(&given, None, true, &stamp).unwrap();
        for (n, fd) in [&outputs.stdout, &outputs.stderr, &outputs.stdout].into_iter().enumerate() {
            rustix::io::write(fd, n.to_string().as_bytes()).unwrap();
        }
        drop(outputs);
        relays.finish();
        let mut text = [0u8; 8];
        assert_eq!(rustix::io::pread(&file, &mut text, 0).unwrap(), 3);
        assert_eq!(&text[..3], b"012");
        assert!(stamp.get().is_some());
    }
}
