//! Threads that no signal reaches but those of their own faults.

use std::mem::MaybeUninit;

/// What the kernel raises in the very thread that did something wrong. Blocked, they would end the process past any handler,
/// and with it past the one that says what went wrong.
const FAULTS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];

/// Runs `start`, which starts a thread, with all other signals blocked: the thread inherits that, so that it never runs a
/// moment without. Signals are for the threads of whoever embeds amphi; a vCPU's thread is taken out of the guest by one
/// whose default action would end the process, and a write to a closed pipe raises `SIGPIPE` on the devices' thread.
pub(super) fn blocked<T>(start: impl FnOnce() -> T) -> T {
    let _unblock = Unblock(block_all());
    start()
}

/// The calling thread's signal mask, which comes back when this is dropped.
struct Unblock(libc::sigset_t);

impl Drop for Unblock {
    fn drop(&mut self) {
        // SAFETY: the mask is one that the system gave; only the calling thread's is set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Blocks all signals of the calling thread but its own faults, and returns its mask.
fn block_all() -> libc::sigset_t {
    let (mut all, mut previous) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: `sigfillset` initialises the first set, and `pthread_sigmask`, which cannot fail with valid arguments,
    // the second.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        for fault in FAULTS {
            libc::sigdelset(all.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), previous.as_mut_ptr());
        previous.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the calling thread blocks `SIGRTMIN`.
    fn is_blocked() -> bool {
        let mut now = MaybeUninit::uninit();
        // SAFETY: without a set to apply, the present mask is written, and then asked.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), now.as_mut_ptr());
            libc::sigismember(now.as_ptr(), libc::SIGRTMIN()) == 1
        }
    }

    #[test]
    fn a_thread_starts_blocked_and_its_maker_is_as_before() {
        assert!(!is_blocked());
        let thread = blocked(|| std::thread::spawn(is_blocked));
        assert!(!is_blocked());
        assert!(thread.join().unwrap());
    }
}
