//! The threads `vcpuN`: they run the guest, and carry out what it asks of ports and registers.

use super::every_thread;
use super::rules::{
    DESCRIPTOR_FLAGS, KICK_AND_ABORT, KVM, KVM_IRQ_LINE, NO_FILES, NONE, READ, TERMINAL_RESTORE, VHOST,
    VHOST_SET_BACKEND, WRITE, ioctl,
};
use crate::host::seccomp::{Policy, Rule, Test};

pub(super) const POLICY: Policy = super::policy(&[every_thread::ALLOWED, ALLOWED], &[every_thread::SPECIAL, SPECIAL]);

const KVM_RUN: u32 = ioctl(NONE, 0, KVM, 0x80);
const KVM_GET_REGS: u32 = ioctl(READ, 144, KVM, 0x81);
/// `KVM_NMI`: a guest that does not feed its watchdog is moved to panic.
const KVM_INTERRUPT: u32 = ioctl(NONE, 0, KVM, 0x9a);
/// `KVM_KVMCLOCK_CTRL`: a guest that was paused learns of it.
const KVM_CLOCK_PAUSED: u32 = ioctl(NONE, 0, KVM, 0xad);
/// `TUNSETOFFLOAD`: what a driver has negotiated becomes the tap's when it sets `DRIVER_OK`.
const TUN_SET_OFFLOAD: u32 = ioctl(WRITE, 4, b'T', 208);

/// The first is what is asked for at each exit of the guest.
const IOCTLS: &[u32] = &[
    KVM_RUN,
    KVM_IRQ_LINE,
    KVM_GET_REGS,
    KVM_CLOCK_PAUSED,
    KVM_INTERRUPT,
    TUN_SET_OFFLOAD,
    TERMINAL_RESTORE,
    // The same for a network device whose frames the host's kernel moves, and before it VHOST_SET_FEATURES, _MEM_TABLE,
    // _VRING_NUM, _ADDR, _BASE, _KICK, _CALL and _ERR.
    VHOST_SET_BACKEND,
    ioctl(WRITE, 8, VHOST, 0x00),
    ioctl(WRITE, 8, VHOST, 0x03),
    ioctl(WRITE, 8, VHOST, 0x10),
    ioctl(WRITE, 40, VHOST, 0x11),
    ioctl(WRITE, 8, VHOST, 0x12),
    ioctl(WRITE, 8, VHOST, 0x20),
    ioctl(WRITE, 8, VHOST, 0x21),
    ioctl(WRITE, 8, VHOST, 0x22),
    // A reset: KVM_GET_MP_STATE, SET_NESTED_STATE, SET_REGS, SET_SREGS, SET_XSAVE, SET_XCRS, SET_DEBUGREGS, SET_LAPIC, SET_MSRS,
    // GET_MSRS (what became of one that cannot be set), SET_VCPU_EVENTS, SET_MP_STATE. All of them are about this vCPU's own state.
    ioctl(READ, 4, KVM, 0x98),
    ioctl(WRITE, 128, KVM, 0xbf),
    ioctl(WRITE, 144, KVM, 0x82),
    ioctl(WRITE, 312, KVM, 0x84),
    ioctl(WRITE, 4096, KVM, 0xa5),
    ioctl(WRITE, 392, KVM, 0xa7),
    ioctl(WRITE, 128, KVM, 0xa2),
    ioctl(WRITE, 1024, KVM, 0x8f),
    ioctl(WRITE, 8, KVM, 0x89),
    ioctl(READ | WRITE, 8, KVM, 0x88),
    ioctl(WRITE, 64, KVM, 0xa0),
    ioctl(WRITE, 4, KVM, 0x99),
];

const SPECIAL: &[(libc::c_long, Rule)] = &[
    (libc::SYS_ioctl, Rule::AllowIf { argument: 1, test: Test::OneOf(IOCTLS) }),
    (libc::SYS_openat, NO_FILES),
    (libc::SYS_fcntl, DESCRIPTOR_FLAGS),
    (libc::SYS_tgkill, KICK_AND_ABORT),
];

const ALLOWED: &[libc::c_long] = &[
    // What a guest has sent to its console is delivered before the device is reset: to sockets, and to files that say themselves
    // that a write would wait, or are asked before.
    libc::SYS_sendmsg,
    libc::SYS_pwritev2,
    libc::SYS_poll,
    // Eventfds are emptied; resetting a device disarms its timers and lets go of its descriptors.
    libc::SYS_read,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_settime,
    libc::SYS_close,
    // A driver's reset waits for the requests that are under way in a disk's ring.
    libc::SYS_io_uring_enter,
    libc::SYS_clock_nanosleep,
    // What has taken a vCPU out of the guest for a pause does not do so again.
    libc::SYS_rt_sigtimedwait,
];
