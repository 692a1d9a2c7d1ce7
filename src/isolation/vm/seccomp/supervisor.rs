//! Threads that follow a microVM from outside: in the command its main thread, and the one that takes signals.

use super::every_thread;
use super::rules::{
    KVM, KVM_IRQ_LINE, NO_FILES, NONE, READ, SET_NONBLOCKING, TERMINAL_RESTORE, VHOST_SET_BACKEND, WRITE, ioctl,
};
use crate::host::seccomp::{Policy, Rule, Test};

pub(super) const POLICY: Policy = super::policy(&[every_thread::ALLOWED, ALLOWED], &[every_thread::SPECIAL, SPECIAL]);

/// What a thread is made with; a process would have none of these.
const THREAD: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).cast_unsigned();

const SPECIAL: &[(libc::c_long, Rule)] = &[
    // A guest that never gets ready, or stops in an odd way, is explained by a small VM of the host's own
    // (`host::kvm::probe`), on a thread of its own.
    (libc::SYS_clone, Rule::AllowIf { argument: 0, test: Test::AllOfBits(THREAD) }),
    // Its flags are in memory, which a filter cannot read. The C library falls back to clone(2).
    (libc::SYS_clone3, Rule::Fail(libc::ENOSYS)),
    (libc::SYS_ioctl, Rule::AllowIf { argument: 1, test: Test::OneOf(IOCTLS) }),
    (libc::SYS_openat, NO_FILES),
    // A reset that finds files of the initramfs closed is refused, and is no fault.
    (libc::SYS_openat2, NO_FILES),
    (libc::SYS_fcntl, Rule::AllowIf { argument: 1, test: Test::OneOf(FCNTLS) }),
    // A VM that has ended is left to the kernel by a ring of which nothing else can be asked (`release.rs`).
    (libc::SYS_io_uring_register, Rule::AllowIf { argument: 1, test: Test::OneOf(&[IORING_REGISTER_FILES]) }),
];

/// Of linux/io_uring.h.
const IORING_REGISTER_FILES: u32 = 2;

/// As on other threads, and the place that a VM takes on its way out.
const FCNTLS: &[u32] = &[
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_SETFL.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_OFD_SETLK.cast_unsigned(),
];

/// `TIOCGWINSZ` of asm-generic/ioctls.h.
const TERMINAL_SIZE: u32 = 0x5413;

const IOCTLS: &[u32] = &[
    TERMINAL_RESTORE,
    TERMINAL_SIZE,
    // The interrupt that tells a guest of a new generation.
    KVM_IRQ_LINE,
    SET_NONBLOCKING,
    // The host's kernel lets go of guest memory before that is unmapped.
    VHOST_SET_BACKEND,
    // The probe: KVM_CREATE_VM, CHECK_EXTENSION, GET_VCPU_MMAP_SIZE, GET_SUPPORTED_CPUID, CREATE_VCPU,
    // SET_USER_MEMORY_REGION, RUN, GET_REGS, SET_REGS, GET_SREGS, SET_SREGS, SET_CPUID2.
    ioctl(NONE, 0, KVM, 0x01),
    ioctl(NONE, 0, KVM, 0x03),
    ioctl(NONE, 0, KVM, 0x04),
    ioctl(READ | WRITE, 8, KVM, 0x05),
    ioctl(NONE, 0, KVM, 0x41),
    ioctl(WRITE, 32, KVM, 0x46),
    ioctl(NONE, 0, KVM, 0x80),
    ioctl(READ, 144, KVM, 0x81),
    ioctl(WRITE, 144, KVM, 0x82),
    ioctl(READ, 312, KVM, 0x83),
    ioctl(WRITE, 312, KVM, 0x84),
    ioctl(WRITE, 8, KVM, 0x90),
    // A reset reads how processors and interrupt controllers begin, from others in a VM that never runs: KVM_SET_TSS_ADDR,
    // CREATE_IRQCHIP, GET_MSR_INDEX_LIST, SET_MSRS, GET_MSRS, GET_MP_STATE, GET_NESTED_STATE, GET_XSAVE, GET_XCRS, GET_DEBUGREGS, GET_LAPIC,
    // GET_VCPU_EVENTS, GET_IRQCHIP. And sets the interrupt controllers: KVM_SET_IRQCHIP.
    ioctl(NONE, 0, KVM, 0x47),
    ioctl(NONE, 0, KVM, 0x60),
    ioctl(READ | WRITE, 4, KVM, 0x02),
    ioctl(WRITE, 8, KVM, 0x89),
    ioctl(READ | WRITE, 8, KVM, 0x88),
    ioctl(READ, 4, KVM, 0x98),
    ioctl(READ | WRITE, 128, KVM, 0xbe),
    ioctl(READ, 4096, KVM, 0xa4),
    ioctl(READ, 392, KVM, 0xa6),
    ioctl(READ, 128, KVM, 0xa1),
    ioctl(READ, 1024, KVM, 0x8e),
    ioctl(READ, 64, KVM, 0x9f),
    ioctl(READ | WRITE, 520, KVM, 0x62),
    ioctl(READ, 520, KVM, 0x63),
];

const ALLOWED: &[libc::c_long] = &[
    // A reset reads kernel and initramfs anew.
    libc::SYS_pread64,
    libc::SYS_lseek,
    // The guest's reports, messages to it, what amphi itself says, the timeline.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    // Letting go: descriptors, and the names of sockets that others connect to, if they are still those.
    libc::SYS_close,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // A disk's ring is emptied before its memory goes.
    libc::SYS_io_uring_enter,
    // Signals: waiting for them, passing them on, taking a vCPU out of the guest, dying of one as the workload did.
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigaction,
    libc::SYS_tgkill,
    libc::SYS_kill,
    // Helpers of the VM's, such as the user-mode network's, are waited for.
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_send_signal,
    // Waiting for a moment.
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    // The start of a thread, for the probe.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    // What standard streams are: a terminal or not.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
];
