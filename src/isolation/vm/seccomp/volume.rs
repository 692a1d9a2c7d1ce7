//! A thread `fs`: what a guest asks of one volume, below one directory. It is the only one that opens files.

use super::every_thread;
use super::rules::{DESCRIPTOR_FLAGS, KICK_AND_ABORT, KVM_IRQ_LINE, TERMINAL_RESTORE};
use crate::host::seccomp::{Policy, Rule, Test};

pub(super) const POLICY: Policy = super::policy(&[every_thread::ALLOWED, ALLOWED], &[every_thread::SPECIAL, SPECIAL]);

/// The bit of a file's mode that devices have, of either kind, and none of the files that a guest may make.
const DEVICE: u32 = 0o020_000;

const SPECIAL: &[(libc::c_long, Rule)] = &[
    (libc::SYS_mknodat, Rule::AllowIf { argument: 2, test: Test::NoneOfBits(DEVICE) }),
    (libc::SYS_ioctl, Rule::AllowIf { argument: 1, test: Test::OneOf(&[KVM_IRQ_LINE, TERMINAL_RESTORE]) }),
    (libc::SYS_fcntl, DESCRIPTOR_FLAGS),
    (libc::SYS_tgkill, KICK_AND_ABORT),
];

const ALLOWED: &[libc::c_long] = &[
    // The event loop, and its eventfds.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_read,
    // Names: always one name in a directory that is open, or a descriptor's own.
    libc::SYS_openat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_getdents64,
    libc::SYS_close,
    // Attributes.
    libc::SYS_fstat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fstatfs,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    // Contents.
    libc::SYS_preadv,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    // Files that belong to who makes them.
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
];
