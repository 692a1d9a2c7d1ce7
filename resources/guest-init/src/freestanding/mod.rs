//! What a C library would otherwise do: the entry point, memory, and the end after a panic.

mod memory;

use alloc::vec::Vec;
use core::ffi::{CStr, c_char};
use core::fmt::Write;

use crate::syscall;

#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator::new();

// The kernel enters here with the argument count at the stack pointer, which is aligned, and no return address.
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

/// Takes up arguments and environment from the stack as the kernel left it (System V ABI, "process initialization").
///
/// # Safety
/// `stack` is the initial stack pointer.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel put the argument count there, then that many pointers and a null, then the environment's
    // pointers and a null; all point to strings that end with a zero and stay for the life of the process.
    let (arguments, environment) = unsafe {
        let vector = stack.add(1).cast::<*const c_char>();
        (strings(vector), strings(vector.add(*stack + 1)))
    };
    syscall::exit(crate::program(&arguments, &environment))
}

/// Copies the strings of a vector that ends with a null pointer.
///
/// # Safety
/// Each pointer before the null is that of a string that ends with a zero.
unsafe fn strings(mut vector: *const *const c_char) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    // SAFETY: the caller's promise; the loop stops at the null.
    unsafe {
        while !(*vector).is_null() {
            list.push(CStr::from_ptr(*vector).to_bytes().to_vec());
            vector = vector.add(1);
        }
    }
    list
}

/// Says what happened where someone may read it, and stops: PID 1 must not end, or the kernel panics.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut line = crate::init::KernelLog::open();
    let _ = write!(line, "{info}");
    drop(line);
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        crate::init::power_off();
    }
    syscall::exit(125)
}

/// The compiler's own libraries are built to unwind, and name these two. Nothing unwinds here: a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// See [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    syscall::exit(125)
}
