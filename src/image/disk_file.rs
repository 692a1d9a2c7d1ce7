//! Opening a user's disk: only what is one, and only where no other run would be disturbed.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is missing, or not for this user.
    #[error("cannot open the disk {path}", path = path.display())]
    Open {
        /// The disk's file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("the disk {path} is neither a file nor a block device", path = path.display())]
    WrongKind {
        /// What was given.
        path: PathBuf,
    },
    /// Somebody else uses it.
    #[error(
        "the disk {path} is in use, by another run or twice in this one; a writable disk can have only one user",
        path = path.display()
    )]
    InUse {
        /// The disk's file.
        path: PathBuf,
    },
}

/// How long a lock is waited for. A run that was killed, or that used `io_uring`, is gone before the kernel has closed its
/// disks: it waits for what is under way, then for grace periods, and no process waits for either.
const RELEASE: Duration = Duration::from_secs(1);

/// Opens the file or block device `path`, and locks it for as long as it is open: against every other user, or only
/// against those that write where it is `read_only`. A run that has just ended is given a second to let go of it.
///
/// # Errors
/// It is missing, no disk, or locked already.
pub fn open_disk(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let failed = |source| DiskError::Open { path: path.to_owned(), source };
    // Whoever opens a pipe would wait for its other end.
    let nonblocking = libc::O_NONBLOCK;
    let file = match File::options().read(true).write(!read_only).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        // What cannot be opened may still be named for what it is.
        Err(_) if path.metadata().is_ok_and(|metadata| !is_disk(&metadata)) => {
            return Err(DiskError::WrongKind { path: path.to_owned() });
        }
        Err(source) => return Err(failed(source)),
    };
    if !is_disk(&file.metadata().map_err(failed)?) {
        return Err(DiskError::WrongKind { path: path.to_owned() });
    }
    fcntl_setfl(&file, OFlags::empty()).map_err(|errno| failed(errno.into()))?;
    match lock(&file, read_only) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn lock(file: &File, shared: bool) -> Result<(), TryLockError> {
    let first = Instant::now();
    loop {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Err(TryLockError::WouldBlock) if first.elapsed() < RELEASE => thread::sleep(Duration::from_millis(2)),
            done => return done,
        }
    }
}

fn is_disk(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_files_and_block_devices_are_disks() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for read_only in [false, true] {
            for path in [dir.path(), &pipe, Path::new("/dev/null")] {
                assert!(matches!(open_disk(path, read_only), Err(DiskError::WrongKind { .. })), "{path:?}");
            }
            assert!(matches!(open_disk(&dir.path().join("missing"), read_only), Err(DiskError::Open { .. })));
        }
    }

    #[test]
    fn who_has_just_ended_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        let first = open_disk(&path, false).unwrap();
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(first);
        });
        assert!(open_disk(&path, false).is_ok());
        ending.join().unwrap();
    }

    #[test]
    fn a_writable_disk_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        let first = open_disk(&path, false).unwrap();
        for read_only in [false, true] {
            assert!(matches!(open_disk(&path, read_only), Err(DiskError::InUse { .. })));
        }
        drop(first);
        let _one = open_disk(&path, true).unwrap();
        assert!(open_disk(&path, true).is_ok(), "readers may share");
        assert!(matches!(open_disk(&path, false), Err(DiskError::InUse { .. })));
    }
}
