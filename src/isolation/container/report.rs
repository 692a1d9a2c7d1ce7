//! What the container's processes tell the parent: one page of shared memory.
//!
//! It needs no system call to write, so it works under the seccomp filter, and it survives the writer.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::step::{Failure, Step};
use crate::isolation::Instant;

/// Set in [`Fields::status`] beside the wait status, which has 16 bits.
const STATUS_KNOWN: u32 = 1 << 31;

#[repr(C)]
#[derive(Default)]
struct Fields {
    step: AtomicU32,
    errno: AtomicU32,
    index: AtomicU32,
    status: AtomicU32,
    first_instruction: AtomicU64,
    init_ready: AtomicU64,
    exited: AtomicU64,
}

/// The shared page. All zero is "nothing has happened yet".
#[derive(Debug)]
pub(super) struct Report(NonNull<Fields>);

// SAFETY: the page holds atomics only and is unmapped only when the value is dropped.
unsafe impl Send for Report {}
// SAFETY: as above.
unsafe impl Sync for Report {}

impl Report {
    /// A new page, shared with all processes cloned from now on.
    pub(super) fn new() -> Result<Self, Errno> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let page = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<Fields>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        NonNull::new(page.cast::<Fields>()).map(Self).ok_or(Errno::NOMEM)
    }

    fn fields(&self) -> &Fields {
        // SAFETY: the page is mapped, zeroed by the kernel (valid for atomics), aligned, and lives as long as `self`.
        unsafe { self.0.as_ref() }
    }

    /// The child runs.
    pub(super) fn mark_first_instruction(&self) {
        self.fields().first_instruction.store(Instant::now().0, Ordering::Relaxed);
    }

    /// All is set up; the workload is about to be executed.
    pub(super) fn mark_init_ready(&self) {
        self.fields().init_ready.store(Instant::now().0, Ordering::Relaxed);
    }

    /// Set-up failed.
    pub(super) fn fail(&self, failure: Failure) {
        let fields = self.fields();
        fields.errno.store(failure.errno.raw_os_error().cast_unsigned(), Ordering::Relaxed);
        fields.index.store(failure.index, Ordering::Relaxed);
        fields.step.store(failure.step as u32, Ordering::Release);
    }

    /// The workload has ended with this wait status.
    pub(super) fn workload_ended(&self, status: i32) {
        self.fields().exited.store(Instant::now().0, Ordering::Relaxed);
        self.fields().status.store(status.cast_unsigned() | STATUS_KNOWN, Ordering::Release);
    }

    /// What failed, if anything did.
    pub(super) fn failure(&self) -> Option<Failure> {
        let fields = self.fields();
        let step = Step::from_number(fields.step.load(Ordering::Acquire))?;
        let errno = Errno::from_raw_os_error(fields.errno.load(Ordering::Relaxed).cast_signed());
        Some(Failure { step, errno, index: fields.index.load(Ordering::Relaxed) })
    }

    /// The workload's wait status, once it has ended.
    pub(super) fn status(&self) -> Option<i32> {
        let status = self.fields().status.load(Ordering::Acquire);
        (status & STATUS_KNOWN != 0).then_some((status & !STATUS_KNOWN).cast_signed())
    }

    /// When the child began, was ready to execute the workload, and knew how that ended.
    pub(super) fn instants(&self) -> [Option<Instant>; 3] {
        let fields = self.fields();
        [&fields.first_instruction, &fields.init_ready, &fields.exited].map(|stamp| {
            match stamp.load(Ordering::Relaxed) {
                0 => None,
                at => Some(Instant(at)),
            }
        })
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference outlives `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), size_of::<Fields>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_zero_is_not_no_status() {
        let report = Report::new().unwrap();
        assert_eq!(report.status(), None);
        report.workload_ended(0);
        assert_eq!(report.status(), Some(0));
        report.workload_ended(9);
        assert_eq!(report.status(), Some(9));
        assert!(report.instants()[2].is_some());
    }

    #[test]
    fn a_failure_arrives_whole() {
        let report = Report::new().unwrap();
        assert_eq!(report.failure(), None);
        let failure = Failure { step: Step::MakeDevice, errno: Errno::PERM, index: 3 };
        report.fail(failure);
        assert_eq!(report.failure(), Some(failure));
    }
}
