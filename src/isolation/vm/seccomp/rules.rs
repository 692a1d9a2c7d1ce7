//! What an argument has to be, where several lists say the same.

use crate::host::seccomp::{Rule, Test};

/// `TCSETSW2` of asm-generic/ioctls.h: a panic puts the terminal back in order, on whatever thread it is.
pub(super) const TERMINAL_RESTORE: u32 = 0x402c_542c;

/// Memory never becomes executable: what a flaw lets in has to make do with the code that is there.
pub(super) const NO_NEW_CODE: Rule =
    Rule::AllowIf { argument: 2, test: Test::NoneOfBits(libc::PROT_EXEC.cast_unsigned()) };

/// Nothing is opened. It fails instead of being a fault for the sake of a panic: with `RUST_BACKTRACE` set that looks for the
/// program's symbols, finds none, and goes on to unwind, so that one microVM ends and not the process.
pub(super) const NO_FILES: Rule = Rule::Fail(libc::EACCES);

/// `FIONBIO` of asm-generic/ioctls.h: the standard library makes sockets non-blocking by it.
pub(super) const SET_NONBLOCKING: u32 = 0x5421;

/// The name of a thread, which is part of the messages of panics and of refused calls.
pub(super) const THREAD_NAME: Rule = Rule::AllowIf {
    argument: 0,
    test: Test::OneOf(&[libc::PR_GET_NAME.cast_unsigned(), libc::PR_SET_NAME.cast_unsigned()]),
};

/// Descriptors are duplicated and asked or told whether they block: never signals to others (`F_SETOWN`), locks or leases.
pub(super) const DESCRIPTOR_FLAGS: Rule = Rule::AllowIf {
    argument: 1,
    test: Test::OneOf(&[
        libc::F_DUPFD_CLOEXEC.cast_unsigned(),
        libc::F_GETFL.cast_unsigned(),
        libc::F_SETFL.cast_unsigned(),
        libc::F_GETFD.cast_unsigned(),
    ]),
};

/// Sockets of the host's own file system only: no network.
pub(super) const UNIX_SOCKETS: Rule =
    Rule::AllowIf { argument: 0, test: Test::OneOf(&[libc::AF_UNIX.cast_unsigned()]) };

/// A vCPU is taken out of the guest by SIGRTMIN (34 with glibc, which keeps two for itself); a panic ends in SIGABRT.
pub(super) const KICK_AND_ABORT: Rule =
    Rule::AllowIf { argument: 2, test: Test::OneOf(&[34, libc::SIGABRT.cast_unsigned()]) };

/// An ioctl's number, by the rules of asm-generic/ioctl.h.
pub(super) const fn ioctl(direction: u32, size: u32, kind: u8, number: u8) -> u32 {
    direction << 30 | size << 16 | (kind as u32) << 8 | number as u32
}

/// No argument; the kernel reads one; the kernel writes one.
pub(super) const NONE: u32 = 0;
pub(super) const WRITE: u32 = 1;
pub(super) const READ: u32 = 2;

/// The kind of all ioctls of vhost.
pub(super) const VHOST: u8 = 0xaf;
/// `VHOST_NET_SET_BACKEND`: the host's kernel begins or ends its work on a network device's queue.
pub(super) const VHOST_SET_BACKEND: u32 = ioctl(WRITE, 8, VHOST, 0x30);

/// The kind of all ioctls of KVM.
pub(super) const KVM: u8 = 0xae;
/// `KVM_IRQ_LINE`: a device raises its interrupt.
pub(super) const KVM_IRQ_LINE: u32 = ioctl(WRITE, 8, KVM, 0x61);
