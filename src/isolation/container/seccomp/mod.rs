//! The workload's seccomp filter, compiled by the compiler of amphi itself: at run time it is a constant.

mod compiler;
mod policy;

use compiler::Program;

const PROGRAM: Program = compiler::compile(policy::ALLOWED, policy::SPECIAL);

/// The filter, ready for `seccomp(2)`.
pub(super) static FILTER: [libc::sock_filter; PROGRAM.len()] = PROGRAM.instructions();

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

    /// What the filter answers, and after how many instructions, by the rules of classic BPF.
    fn run(arch: u32, number: u32, argument: u32) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let i = FILTER[at];
            steps += 1;
            at += 1;
            let jump = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                0x20 => {
                    accumulator = match i.k {
                        0 => number,
                        4 => arch,
                        16 => argument,
                        other => panic!("load from {other}"),
                    }
                }
                0x15 => at += jump(accumulator == i.k),
                0x35 => at += jump(accumulator >= i.k),
                0x45 => at += jump(accumulator & i.k != 0),
                0x06 => return (i.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn verdict(number: libc::c_long, argument: u32) -> u32 {
        run(compiler::AUDIT_ARCH_X86_64, u32::try_from(number).unwrap(), argument).0
    }

    #[test]
    fn every_number_gets_what_the_policy_says() {
        let special: Vec<_> = policy::SPECIAL.iter().map(|&(number, _)| number).collect();
        for number in (0..1024).filter(|n| !special.contains(n)) {
            let expected = if policy::ALLOWED.contains(&number) {
                ALLOW
            } else if number > compiler::LAST_KNOWN {
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
        assert_eq!(run(0x4000_0003, 1, 0).0, libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(verdict(0x4000_0000, 0), ENOSYS);
    }

    /// The kernel runs the filter once for each known number when it is installed, so length of path is start-up time.
    #[test]
    fn no_path_is_long() {
        let longest = (0..1024).map(|n| run(compiler::AUDIT_ARCH_X86_64, n, 0x7fff_ffff).1).max().unwrap();
        assert!(longest <= 20, "{longest} instructions");
        assert!(FILTER.len() < 256, "{} instructions", FILTER.len());
    }
}
