//! VMs that are closed by the host's kernel after their process has ended (`src/isolation/vm/release.rs`).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(200);

/// Returns when there is none left: each has a byte of the KVM device locked until it is gone.
pub(crate) fn wait() -> std::io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/kvm")?;
    let lock = libc::flock {
        l_type: libc::F_WRLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the argument is a `struct flock`, as the command wants it.
    while unsafe { libc::fcntl(device.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } != 0 {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
