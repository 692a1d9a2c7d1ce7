//! The command's own threads while a microVM runs: confined, with a message where one oversteps its bounds.
//!
//! The library confines the threads that it makes, and leaves the caller's to the caller: this is the caller.

use std::fmt::{self, Write as _};
use std::{io, mem, ptr};

use amphi::isolation::vm;

use super::terminal;

/// The exit status that says that amphi itself failed.
const AMPHI_FAILED: libc::c_int = 125;

/// Confines the calling thread to following a microVM.
pub(super) fn confine() -> io::Result<()> {
    vm::confine_caller()
}

/// Has a refused system call, on any thread, say so before it ends the process.
pub(super) fn report_refused_calls() -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_refused_call as *const () as libc::sighandler_t;
    // With SA_RESETHAND a refusal inside the handler is not handled again but ends the process at once.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may: it neither
    // allocates nor waits for a lock, and never returns.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The start of a `siginfo_t` of SIGSYS on 64-bit Linux, which libc has no names for.
#[repr(C)]
struct RefusedCall {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    address: usize,
    number: libc::c_int,
    arch: libc::c_uint,
}

extern "C" fn on_refused_call(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both, of these types, and they live as long as the handler runs.
    let (call, registers) =
        unsafe { (&*info.cast::<RefusedCall>(), &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    let mut name = [0u8; 16];
    // SAFETY: the buffer has the 16 bytes that the kernel fills.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = name.split(|&byte| byte == 0).next().and_then(|name| str::from_utf8(name).ok()).unwrap_or("?");
    let mut line = Line::default();
    let register = |index: libc::c_int| usize::try_from(index).map_or(0, |index| registers[index]);
    // A line that is too long is cut.
    let _ = writeln!(
        line,
        "amphi: thread {name} made system call {number} ({a:#x}, {b:#x}, {c:#x}), which its seccomp filter forbids: a \
         flaw in amphi, or a guest that has found one",
        number = call.number,
        a = register(libc::REG_RDI),
        b = register(libc::REG_RSI),
        c = register(libc::REG_RDX),
    );
    terminal::restore();
    // SAFETY: the buffer is initialised up to its length; `_exit` ends the process without running anything of it.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(AMPHI_FAILED)
    }
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_forbidden_call_ends_the_process_with_a_message() {
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: the child makes system calls only, allocates nothing, and ends without unwinding.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above; the descriptors are open.
            unsafe {
                libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO);
                if report_refused_calls().and_then(|()| confine()).is_ok() {
                    libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                }
                libc::_exit(0);
            }
        }
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let mut status = 0;
        // SAFETY: the status is writable.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == AMPHI_FAILED, "{status:#x}: {text}");
        let call = format!("made system call {} (", libc::SYS_socket);
        assert!(text.starts_with("amphi: thread ") && text.contains(&call) && text.ends_with('\n'), "{text}");
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut line = Line::default();
        for _ in 0..100 {
            line.write_str("0123456789").unwrap();
        }
        assert_eq!(line.len, line.bytes.len());
    }
}
