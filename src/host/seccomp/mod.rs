//! System call filters: policies become constants of classic BPF, which a thread installs for itself.

mod compiler;
#[cfg(test)]
pub(crate) mod interpreter;

use rustix::io::Errno;

#[cfg(test)]
pub(crate) use compiler::AUDIT_ARCH_X86_64;
pub(crate) use compiler::{Policy, Program, Rule, Test, compile, fail_with};

/// Installs a filter for the calling thread and all that it will make. Needs `no_new_privs`, or CAP_SYS_ADMIN.
///
/// Neither allocates nor takes a lock, so that a copy of a process that had several threads may call it.
pub(crate) fn install(filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // Without SPEC_ALLOW kernels before 5.16 turn a Spectre v4 mitigation on for each filtered process, which halves
    // the speed of some interpreters; the usual container runtimes pass it too.
    // SAFETY: the program is valid for the call, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: the location is this thread's own and always readable.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}
