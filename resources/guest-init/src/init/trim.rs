//! Giving blocks back to the host that the workload does not need any more.
//!
//! Mounted with `discard`, ext4 does that as it goes on, some time after the commit in which blocks were freed, and no more
//! when it is unmounted. So what was freed last is given back here, where it may be much.

use alloc::format;
use alloc::string::String;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::syscall;

/// How many bytes may stay on the host without being needed: less is not worth the time, which grows with the disk's size.
const NEGLIGIBLE: u64 = 4 << 20;
/// The unit of a disk's statistics, whatever its block size is.
const SECTOR: u64 = 512;

/// How many bytes are free in the file system that `top` is in.
pub(super) fn free_bytes(top: &OwnedFd) -> Result<u64, Errno> {
    let statistics = rustix::fs::fstatvfs(top)?;
    Ok(statistics.f_bfree.saturating_mul(statistics.f_frsize))
}

/// Gives free blocks of the file system that `top` is in back. It is on `device`, was mounted with so many bytes `free`, and
/// everything is written.
pub(super) fn give_back(top: &OwnedFd, device: &[u8], free: u64) {
    // What was needed at the begin and is not now, and what was needed in between.
    let freed = free_bytes(top).unwrap_or(u64::MAX).saturating_sub(free);
    if freed.saturating_add(written_bytes(device).unwrap_or(u64::MAX)) > NEGLIGIBLE {
        // A kernel that cannot do it leaves the blocks with the host, and that is all.
        let _ = syscall::trim(top);
    }
}

/// How many bytes were written to the device `/dev/NAME`.
fn written_bytes(device: &[u8]) -> Option<u64> {
    let name = core::str::from_utf8(device.strip_prefix(b"/dev/")?).ok()?;
    let path = format!("/sys/block/{name}/stat");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 512];
    let length = rustix::io::read(&file, &mut text).ok()?;
    sectors_written(&text[..length])?.checked_mul(SECTOR)
}

/// The seventh number (Linux, Documentation/block/stat.rst).
fn sectors_written(statistics: &[u8]) -> Option<u64> {
    String::from_utf8_lossy(statistics).split_ascii_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read() {
        assert_eq!(sectors_written(b"    24   0  192   3   5  0   4096   7   0   12   13 0 0 0 0 2 1\n"), Some(4096));
        assert_eq!(sectors_written(b"1 2 3"), None);
        assert_eq!(written_bytes(b"/dev/nonexistent"), None);
    }
}
