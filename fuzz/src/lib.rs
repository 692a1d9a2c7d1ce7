//! What the fuzz targets share. Each target is a few lines in `fuzz_targets`: how to make the thing, and what to feed it.

use std::fs::File;

use amphi_devices::virtio::VirtioDevice;
use event_manager::MutEventSubscriber;

pub use program::{Host, Input};

// The driver's side of a device and the programs that it runs are those of the devices' own tests.
#[path = "../../devices/tests/driver/guest.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "tests need more of it, and may panic")]
mod guest;
#[path = "../../devices/tests/driver/program.rs"]
mod program;

/// How much memory the guests have, in bytes from address 0 on.
pub const MEMORY: u64 = guest::MEMORY;

/// Runs a guest's program (see `devices/tests/driver/program.rs`) on a virtio device.
pub fn virtio<D: VirtioDevice + MutEventSubscriber + 'static>(device: D, bytes: &[u8]) {
    program::run(&mut guest::Guest::new(device), bytes);
}

/// The same with somebody on the host, who takes the bytes of what it does from the program.
pub fn virtio_with<D: VirtioDevice + MutEventSubscriber + 'static>(device: D, bytes: &[u8], host: Host<'_>) {
    program::run_with(&mut guest::Guest::new(device), bytes, host);
}

/// Does nothing but access the registers of a virtio device's transport.
pub fn registers<D: VirtioDevice + MutEventSubscriber + 'static>(device: D, bytes: &[u8]) {
    program::run_registers(&mut guest::Guest::new(device), bytes);
}

/// An empty file in memory.
pub fn file() -> File {
    // SAFETY: the name is a C string, and the descriptor is new.
    unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create");
        std::os::fd::FromRawFd::from_raw_fd(fd)
    }
}

/// A file that swallows whatever is written.
pub fn sink() -> File {
    File::options().write(true).open("/dev/null").expect("/dev/null is there")
}
