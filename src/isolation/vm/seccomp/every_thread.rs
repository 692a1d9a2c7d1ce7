//! What any thread does besides its work: allocate, lock, panic, end. All lists of this folder begin with these.

use super::rules::{NO_FILES, NO_NEW_CODE, THREAD_NAME};
use crate::host::seccomp::Rule;

pub(super) const SPECIAL: &[(libc::c_long, Rule)] = &[
    (libc::SYS_mmap, NO_NEW_CODE),
    (libc::SYS_mprotect, NO_NEW_CODE),
    (libc::SYS_prctl, THREAD_NAME),
    (libc::SYS_open, NO_FILES),
    (libc::SYS_readlink, NO_FILES),
    (libc::SYS_getcwd, NO_FILES),
];

pub(super) const ALLOWED: &[libc::c_long] = &[
    // Messages of the log and of a panic; and notifications, by eventfds.
    libc::SYS_write,
    libc::SYS_writev,
    // Locks, and waking those who wait for the machine's end.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    // Memory: the allocator's, a thread's stack at its end, and guest memory that is given back.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // Time, where the kernel's clock is not one that the vDSO can read.
    libc::SYS_clock_gettime,
    // Seeds of hash tables.
    libc::SYS_getrandom,
    // The end of a thread, of a process after a panic, and who it is that ends.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // How many processors there are, which glibc wants to know before it makes an arena.
    libc::SYS_sched_getaffinity,
    // What a system call becomes that a stop of the process has interrupted.
    libc::SYS_restart_syscall,
];
