//! Leaving a VM that has ended to the host's kernel.
//!
//! Whoever closes the last descriptor of a VM waits for grace periods of the kernel's (RCU): some 20 ms in which there is
//! nothing to do. A file that is registered with an `io_uring` is closed by a thread of the kernel's once the ring is
//! gone, and no process waits for that.
//!
//! What somebody may rely on when amphi has ended does not hang on it: guest memory, disks, networks and sockets are let go
//! before. What is left is the kernel's own memory for the VM.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use kvm_ioctls::{Kvm, VmFd};
use rustix::io_uring::{IoringRegisterOp, IoringSetupFlags, io_uring_params, io_uring_register, io_uring_setup};

/// How many VMs of this host may be on their way out in this manner. The kernel closes them one after the other, and does not
/// limit how many wait: where VMs end faster than that, the others wait for their own.
const MOST: libc::off_t = 4;

/// A ring that never carries out anything: it is not enabled, and never will be.
pub(super) struct DeferredRelease(OwnedFd);

impl DeferredRelease {
    /// Makes the ring; nothing where the host allows none.
    pub(super) fn prepare() -> Option<Self> {
        let mut params = io_uring_params::default();
        params.flags = IoringSetupFlags::R_DISABLED;
        // SAFETY: the parameters ask for a ring whose memory is the kernel's own.
        match unsafe { io_uring_setup(1, &mut params) } {
            Ok(ring) => Some(Self(ring)),
            Err(error) => {
                log::debug!("the end of the VM is waited for: no io_uring ({error})");
                None
            }
        }
    }

    /// Hands `vm` over. The caller closes its own descriptors of both, and drops this after them.
    pub(super) fn hand_over(&self, kvm: &Kvm, vm: &VmFd) {
        if !take_place(kvm) {
            return;
        }
        // What is registered first is closed last, and gives the place back.
        let files: [RawFd; 2] = [kvm.as_raw_fd(), vm.as_raw_fd()];
        // SAFETY: the argument is an array of as many descriptors as are announced.
        let registered =
            unsafe { io_uring_register(self.0.as_fd(), IoringRegisterOp::RegisterFiles, files.as_ptr().cast(), 2) };
        if let Err(error) = registered {
            log::debug!("the end of the VM is waited for: {error}");
        }
    }
}

/// Takes one of the host's places, if one is free. A place is a byte of the KVM device, locked for as long as this opening of
/// it lasts: so the kernel gives it back whatever happens to this process.
fn take_place(kvm: &Kvm) -> bool {
    #[allow(clippy::cast_possible_truncation, reason = "both are 0 or 1")]
    let (write_lock, from_start) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    (0..MOST).any(|place| {
        let lock = libc::flock { l_type: write_lock, l_whence: from_start, l_start: place, l_len: 1, l_pid: 0 };
        // SAFETY: the argument is a `struct flock`, as the command wants it.
        unsafe { libc::fcntl(kvm.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
    })
}
