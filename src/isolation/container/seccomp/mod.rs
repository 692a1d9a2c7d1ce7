//! The workload's seccomp filter: at run time it is a constant.

mod policy;

use policy::POLICY;

use crate::host::seccomp::{Program, compile};

const PROGRAM: Program = compile(&POLICY);

/// The filter, ready for `seccomp(2)`.
pub(super) static FILTER: [libc::sock_filter; PROGRAM.len()] = PROGRAM.instructions();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::seccomp::AUDIT_ARCH_X86_64;
    use crate::host::seccomp::interpreter::evaluate;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

    fn verdict(number: libc::c_long, argument: u32) -> u32 {
        let number = u32::try_from(number).unwrap();
        evaluate(&FILTER, AUDIT_ARCH_X86_64, number, [argument, 0, 0, 0, 0, 0]).0
    }

    #[test]
    fn every_number_gets_what_the_policy_says() {
        let special: Vec<_> = POLICY.special.iter().copied().flatten().map(|&(number, _)| number).collect();
        for number in (0..1024).filter(|n| !special.contains(n)) {
            let expected = if POLICY.allowed.iter().any(|list| list.contains(&number)) {
                ALLOW
            } else if number > POLICY.last_known {
                ENOSYS
            } else {
                EPERM
            };
            assert_eq!(verdict(number, 0), expected, "system call {number}");
        }
    }

    /// What a dynamic loader and the start of any program call; a static program may do without half of it.
    #[test]
    fn every_program_can_start() {
        for number in [
            libc::SYS_access,
            libc::SYS_arch_prctl,
            libc::SYS_brk,
            libc::SYS_close,
            libc::SYS_execve,
            libc::SYS_exit_group,
            libc::SYS_fstat,
            libc::SYS_getrandom,
            libc::SYS_ioctl,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_munmap,
            libc::SYS_newfstatat,
            libc::SYS_openat,
            libc::SYS_pread64,
            libc::SYS_prlimit64,
            libc::SYS_read,
            libc::SYS_rseq,
            libc::SYS_set_robust_list,
            libc::SYS_set_tid_address,
            libc::SYS_write,
        ] {
            assert_eq!(verdict(number, 0), ALLOW, "system call {number}");
        }
    }

    #[test]
    fn escapes_are_refused() {
        for number in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_move_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
        ] {
            assert_eq!(verdict(number, 0), EPERM, "system call {number}");
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        assert_eq!(verdict(libc::SYS_clone, libc::SIGCHLD.cast_unsigned()), ALLOW);
        assert_eq!(verdict(libc::SYS_clone, libc::CLONE_NEWUSER.cast_unsigned()), EPERM);
        assert_eq!(verdict(libc::SYS_clone, libc::CLONE_NEWNS.cast_unsigned() | 17), EPERM);
        assert_eq!(verdict(libc::SYS_clone3, 0), ENOSYS);
        assert_eq!(verdict(libc::SYS_socket, libc::AF_INET.cast_unsigned()), ALLOW);
        assert_eq!(verdict(libc::SYS_socket, libc::AF_VSOCK.cast_unsigned()), EPERM);
        assert_eq!(verdict(libc::SYS_socket, libc::AF_ALG.cast_unsigned()), EPERM);
        assert_eq!(verdict(libc::SYS_personality, 0xffff_ffff), ALLOW);
        // ADDR_NO_RANDOMIZE
        assert_eq!(verdict(libc::SYS_personality, 0x0004_0000), EPERM);
    }

    #[test]
    fn other_architectures_end_the_process_and_x32_is_unknown() {
        assert_eq!(evaluate(&FILTER, 0x4000_0003, 1, [0; 6]).0, libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(verdict(0x4000_0000, 0), ENOSYS);
    }

    /// The kernel runs the filter once for each known number when it is installed, so length of path is start-up time.
    #[test]
    fn no_path_is_long() {
        let longest = (0..1024).map(|n| evaluate(&FILTER, AUDIT_ARCH_X86_64, n, [0x7fff_ffff; 6]).1).max().unwrap();
        assert!(longest <= 20, "{longest} instructions");
        assert!(FILTER.len() < 256, "{} instructions", FILTER.len());
    }
}
