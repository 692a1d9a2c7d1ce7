//! The system calls that rustix does not offer.

use core::arch::asm;
use core::ffi::{CStr, c_char, c_void};

use rustix::fd::{FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::process::Pid;

const RT_SIGPROCMASK: usize = 14;
const IOCTL: usize = 16;
const CLONE: usize = 56;
const EXECVE: usize = 59;
const KILL: usize = 62;
const EXIT_GROUP: usize = 231;
const SIGNALFD4: usize = 289;

const SIGCHLD: usize = 17;
const SIGKILL: usize = 9;
const CLONE_VM: usize = 0x100;
const CLONE_VFORK: usize = 0x4000;
const SIG_SETMASK: usize = 2;
const SFD_NONBLOCK_CLOEXEC: usize = 0o2_004_000;

/// `FITRIM` of `linux/fs.h`.
const FITRIM: usize = 0xc018_5879;

/// The size of the kernel's signal set.
const SIGNAL_SET: usize = size_of::<u64>();

/// A system call.
///
/// # Safety
/// As that of the call.
unsafe fn call(number: usize, arguments: [usize; 4]) -> Result<usize, Errno> {
    let result: isize;
    let [a, b, c, d] = arguments;
    // SAFETY: the kernel keeps all registers but these; what it does to memory is the caller's to answer for.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(i32::MAX)))
}

/// Ends the process.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: the call takes a number.
        let _ = unsafe { call(EXIT_GROUP, [status.into(), 0, 0, 0]) };
    }
}

/// Sends signal `number` to a process; an unknown number is an error.
pub(crate) fn kill(pid: Pid, number: i32) -> Result<(), Errno> {
    let number = usize::try_from(number).map_err(|_| Errno::INVAL)?;
    let pid = usize::try_from(pid.as_raw_nonzero().get()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the call takes numbers.
    unsafe { call(KILL, [pid, number, 0, 0]) }.map(drop)
}

/// Tells the disk of all free blocks of the file system that `directory`, open for reading, is in.
pub(crate) fn trim(directory: &OwnedFd) -> Result<(), Errno> {
    // Start, length and least length of what is looked at, in bytes; the kernel writes how much it was.
    let mut range = [0, u64::MAX, 0_u64];
    let range = (&raw mut range).expose_provenance();
    let fd = usize::try_from(rustix::fd::AsRawFd::as_raw_fd(directory)).map_err(|_| Errno::BADF)?;
    // SAFETY: the call reads and writes three numbers of 64 bits, which live on.
    unsafe { call(IOCTL, [fd, FITRIM, range, 0]) }.map(drop)
}

/// Kills all processes but this one, which is PID 1.
pub(crate) fn kill_all() -> Result<(), Errno> {
    // SAFETY: the call takes numbers; -1 is every process that one may signal.
    unsafe { call(KILL, [usize::MAX, SIGKILL, 0, 0]) }.map(drop)
}

/// Blocks SIGCHLD, and returns a descriptor that is readable while one is pending.
pub(crate) fn child_events() -> Result<OwnedFd, Errno> {
    let set: u64 = 1 << (SIGCHLD - 1);
    set_signal_mask(set)?;
    let set = (&raw const set).expose_provenance();
    // SAFETY: -1 asks for a new descriptor, and the set is of the size given.
    let fd = unsafe { call(SIGNALFD4, [usize::MAX, set, SIGNAL_SET, SFD_NONBLOCK_CLOEXEC]) }?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks exactly the signals of `set`, in which signal n is bit n - 1.
pub(crate) fn set_signal_mask(set: u64) -> Result<(), Errno> {
    let set = (&raw const set).expose_provenance();
    // SAFETY: the set is of the size given, and the old one is not asked for.
    unsafe { call(RT_SIGPROCMASK, [SIG_SETMASK, set, 0, SIGNAL_SET]) }.map(drop)
}

/// Executes `program`; returns only what went wrong.
///
/// # Safety
/// `arguments` and `environment` end with a null pointer; each before it is that of a string that ends with a zero.
pub(crate) unsafe fn execute(
    program: &CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    let program = program.as_ptr().expose_provenance();
    // SAFETY: the caller's promise.
    match unsafe { call(EXECVE, [program, arguments.expose_provenance(), environment.expose_provenance(), 0]) } {
        Ok(_) => Errno::NOSYS,
        Err(errno) => errno,
    }
}

/// Runs `child` with `argument` on `stack` in a new process, which shares this one's memory but nothing else; this one
/// stands still until the child has executed a program or ended. Copying the page tables, as fork does, would
/// cost more than all else that PID 1 does.
///
/// # Safety
/// `child` must do nothing with the shared memory that this process would not bear, must not allocate, and gets
/// along with `stack`.
pub(crate) unsafe fn spawn(
    child: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
    stack: &mut [u8],
) -> Result<Pid, Errno> {
    let top = stack.as_mut_ptr_range().end.expose_provenance() & !15;
    let result: isize;
    // SAFETY: in the parent the registers are as after any system call. In the child the stack pointer is the top of
    // `stack`, aligned as a call needs it, and `child` does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {child}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            child = in(reg) child,
            inout("rax") CLONE => result,
            in("rdi") CLONE_VM | CLONE_VFORK | SIGCHLD,
            in("rsi") top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            out("rcx") _,
            out("r11") _,
        );
    }
    let result = i32::try_from(result).map_err(|_| Errno::INVAL)?;
    if result > 0 { Pid::from_raw(result).ok_or(Errno::SRCH) } else { Err(Errno::from_raw_os_error(-result)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_shares_memory_and_ends() {
        unsafe extern "C" fn child(argument: *mut c_void) -> ! {
            // SAFETY: the test passes a pointer to a live u32, and stands still.
            unsafe { *argument.cast::<u32>() = 42 };
            exit(7)
        }
        let mut value = 0_u32;
        let mut stack = vec![0; 64 << 10];
        // SAFETY: the child writes one number and ends.
        let pid = unsafe { spawn(child, (&raw mut value).cast(), &mut stack) }.unwrap();
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!((value, status.exit_status()), (42, Some(7)));
    }

    #[test]
    fn failure_is_an_error_number() {
        assert_eq!(kill(Pid::INIT, 9999), Err(Errno::INVAL));
        let none = [core::ptr::null()];
        // SAFETY: both lists are empty.
        assert_eq!(unsafe { execute(c"/proc/self/nonexistent", none.as_ptr(), none.as_ptr()) }, Errno::NOENT);
    }
}
