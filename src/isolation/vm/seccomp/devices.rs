//! The thread `devices`: queue work of all devices, on descriptors that were opened before the guest ran.

use super::every_thread;
use super::rules::{
    DESCRIPTOR_FLAGS, KICK_AND_ABORT, KVM_IRQ_LINE, NO_FILES, NONE, SET_NONBLOCKING, TERMINAL_RESTORE, UNIX_SOCKETS,
    VHOST_SET_BACKEND, ioctl,
};
use crate::host::seccomp::{Policy, Rule, Test};

pub(super) const POLICY: Policy = super::policy(&[every_thread::ALLOWED, ALLOWED], &[every_thread::SPECIAL, SPECIAL]);

/// `BLKDISCARD` and `BLKZEROOUT` of linux/fs.h.
const BLOCK_DISCARD: u32 = ioctl(NONE, 0, 0x12, 119);
const BLOCK_ZERO_OUT: u32 = ioctl(NONE, 0, 0x12, 127);

const SPECIAL: &[(libc::c_long, Rule)] = &[
    (
        libc::SYS_ioctl,
        Rule::AllowIf {
            argument: 1,
            test: Test::OneOf(&[
                KVM_IRQ_LINE,
                BLOCK_DISCARD,
                BLOCK_ZERO_OUT,
                SET_NONBLOCKING,
                TERMINAL_RESTORE,
                // A pause, and its end.
                VHOST_SET_BACKEND,
            ]),
        },
    ),
    // vsock: a connection of the guest's becomes one to a socket of the host's.
    (libc::SYS_socket, UNIX_SOCKETS),
    (libc::SYS_openat, NO_FILES),
    (libc::SYS_fcntl, DESCRIPTOR_FLAGS),
    (libc::SYS_tgkill, KICK_AND_ABORT),
];

const ALLOWED: &[libc::c_long] = &[
    // The event loop, and timers of rate limits.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_create,
    // Streams, eventfds, taps.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Disks.
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_io_uring_enter,
    libc::SYS_clock_nanosleep,
    // Sockets: console streams, vsock, the user-mode network.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    // What is closed is let go of.
    libc::SYS_close,
];
