use super::*;
use crate::host::seccomp::interpreter::evaluate;
use crate::host::seccomp::{AUDIT_ARCH_X86_64, fail_with};

const TRAP: u32 = libc::SECCOMP_RET_TRAP;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn verdict(filter: &[libc::sock_filter], number: libc::c_long, arguments: [u32; 3]) -> u32 {
    let [a, b, c] = arguments;
    evaluate(filter, AUDIT_ARCH_X86_64, u32::try_from(number).unwrap(), [a, b, c, 0, 0, 0]).0
}

fn filters() -> [(&'static [libc::sock_filter], Policy); 4] {
    [
        (&VCPU_FILTER, vcpu::POLICY),
        (&DEVICES_FILTER, devices::POLICY),
        (&VOLUME_FILTER, volume::POLICY),
        (&SUPERVISOR_FILTER, supervisor::POLICY),
    ]
}

#[test]
fn every_number_gets_what_its_list_says() {
    for (filter, policy) in filters() {
        for number in (0..1024).filter(|n| !policy.special.iter().copied().flatten().any(|&(special, _)| special == *n))
        {
            let expected = if policy.allowed.iter().any(|list| list.contains(&number)) { ALLOW } else { TRAP };
            assert_eq!(verdict(filter, number, [0; 3]), expected, "system call {number}");
        }
    }
}

#[test]
fn nothing_that_reaches_further_is_in_any_list() {
    for (filter, _) in filters() {
        for number in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_creat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_setuid,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_memfd_create,
            libc::SYS_rename,
        ] {
            assert_eq!(verdict(filter, number, [0; 3]), TRAP, "system call {number}");
        }
        assert_eq!(verdict(filter, libc::SYS_open, [0; 3]), fail_with(libc::EACCES));
        assert_ne!(verdict(filter, libc::SYS_openat2, [0; 3]), ALLOW);
        if !std::ptr::eq(filter, &raw const VOLUME_FILTER[..]) {
            assert_eq!(verdict(filter, libc::SYS_openat, [0; 3]), fail_with(libc::EACCES));
        }
        let read_write = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
        let executable = (libc::PROT_READ | libc::PROT_EXEC).cast_unsigned();
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert_eq!(verdict(filter, number, [0, 0, read_write]), ALLOW);
            assert_eq!(verdict(filter, number, [0, 0, executable]), TRAP);
        }
        assert_eq!(verdict(filter, libc::SYS_clone, [libc::SIGCHLD.cast_unsigned(), 0, 0]), TRAP, "a process");
        assert_eq!(verdict(filter, libc::SYS_socket, [libc::AF_INET.cast_unsigned(), 0, 0]), TRAP);
        // TIOCSTI types into the terminal's shell.
        assert_eq!(verdict(filter, libc::SYS_ioctl, [0, 0x5412, 0]), TRAP);
        assert_eq!(verdict(filter, libc::SYS_fcntl, [0, libc::F_SETOWN.cast_unsigned(), 0]), TRAP);
    }
}

#[test]
fn only_a_volumes_thread_uses_names_and_makes_no_devices() {
    let by_name = [libc::SYS_openat, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_fchownat];
    for number in by_name {
        assert_eq!(verdict(&VOLUME_FILTER, number, [0; 3]), ALLOW, "system call {number}");
        for filter in [&VCPU_FILTER[..], &DEVICES_FILTER] {
            assert_ne!(verdict(filter, number, [0; 3]), ALLOW, "system call {number}");
        }
    }
    for (kind, expected) in [
        (libc::S_IFREG, ALLOW),
        (libc::S_IFIFO, ALLOW),
        (libc::S_IFSOCK, ALLOW),
        (libc::S_IFCHR, TRAP),
        (libc::S_IFBLK, TRAP),
    ] {
        assert_eq!(verdict(&VOLUME_FILTER, libc::SYS_mknodat, [3, 0, kind | 0o777]), expected, "{kind:#o}");
    }
    for number in [libc::SYS_setuid, libc::SYS_setresuid, libc::SYS_chroot, libc::SYS_socket, libc::SYS_capset] {
        assert_eq!(verdict(&VOLUME_FILTER, number, [libc::AF_UNIX.cast_unsigned(), 0, 0]), TRAP);
    }
}

#[test]
fn arguments_decide_where_they_must() {
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_ioctl, [3, 0xae80, 0]), ALLOW, "KVM_RUN");
    assert_eq!(verdict(&DEVICES_FILTER, libc::SYS_ioctl, [3, 0xae80, 0]), TRAP, "KVM_RUN");
    // A vCPU's thread sets its own state, others read that of vCPUs which do not run.
    let (set_sregs, get_lapic, set_irqchip) = (0x4138_ae84, 0x8400_ae8e, 0x8208_ae63);
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_ioctl, [3, set_sregs, 0]), ALLOW, "KVM_SET_SREGS");
    assert_eq!(verdict(&SUPERVISOR_FILTER, libc::SYS_ioctl, [3, get_lapic, 0]), ALLOW, "KVM_GET_LAPIC");
    for filter in [&VCPU_FILTER[..], &DEVICES_FILTER, &VOLUME_FILTER] {
        for request in [get_lapic, set_irqchip, 0xae01] {
            assert_eq!(verdict(filter, libc::SYS_ioctl, [3, request, 0]), TRAP, "{request:#x}");
        }
    }
    let (set_owner, set_memory, set_backend) = (0xaf01, 0x4008_af03, 0x4008_af30);
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_ioctl, [3, set_memory, 0]), ALLOW, "VHOST_SET_MEM_TABLE");
    for (filter, _) in filters() {
        let expected = if std::ptr::eq(filter, &raw const VOLUME_FILTER[..]) { TRAP } else { ALLOW };
        assert_eq!(verdict(filter, libc::SYS_ioctl, [3, set_backend, 0]), expected, "VHOST_NET_SET_BACKEND");
        assert_eq!(verdict(filter, libc::SYS_ioctl, [3, set_owner, 0]), TRAP, "VHOST_SET_OWNER");
        if !std::ptr::eq(filter, &raw const VCPU_FILTER[..]) {
            assert_eq!(verdict(filter, libc::SYS_ioctl, [3, set_memory, 0]), TRAP, "VHOST_SET_MEM_TABLE");
        }
    }
    assert_eq!(verdict(&DEVICES_FILTER, libc::SYS_socket, [libc::AF_UNIX.cast_unsigned(), 0, 0]), ALLOW);
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_tgkill, [1, 1, libc::SIGRTMIN().cast_unsigned()]), ALLOW);
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_tgkill, [1, 1, libc::SIGKILL.cast_unsigned()]), TRAP);
    assert_eq!(verdict(&SUPERVISOR_FILTER, libc::SYS_io_uring_register, [3, 2, 0]), ALLOW, "IORING_REGISTER_FILES");
    assert_eq!(
        verdict(&SUPERVISOR_FILTER, libc::SYS_io_uring_register, [3, 12, 0]),
        TRAP,
        "IORING_REGISTER_ENABLE_RINGS"
    );
    assert_eq!(verdict(&VCPU_FILTER, libc::SYS_io_uring_register, [3, 2, 0]), TRAP, "IORING_REGISTER_FILES");
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS).cast_unsigned();
    assert_eq!(verdict(&SUPERVISOR_FILTER, libc::SYS_clone, [thread, 0, 0]), ALLOW);
    assert_eq!(verdict(&DEVICES_FILTER, libc::SYS_clone, [thread, 0, 0]), TRAP);
}

/// KVM_RUN is asked for at each exit of the guest, and each list is run once for every number when it is installed.
#[test]
fn no_path_is_long() {
    assert!(evaluate(&VCPU_FILTER, AUDIT_ARCH_X86_64, 16, [3, 0xae80, 0, 0, 0, 0]).1 <= 16);
    for (filter, _) in filters() {
        let path = |number| evaluate(filter, AUDIT_ARCH_X86_64, number, [0x7fff_ffff; 6]).1;
        let longest = (0..1024).filter(|&number| number != 16).map(path).max().unwrap();
        assert!(longest <= 20, "{longest} instructions");
        // Its argument is compared with one after the other, and those that are asked for often come first.
        assert!(path(16) <= 48, "{} instructions for an ioctl", path(16));
        assert!(filter.len() < 256, "{} instructions", filter.len());
    }
}

/// Runs `body` in a child process and returns its wait status.
fn in_child(body: impl FnOnce()) -> libc::c_int {
    // SAFETY: the child makes system calls only, and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit is a valid structure; `_exit` ends the child.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            body();
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: the status is writable.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

#[test]
fn a_forbidden_call_ends_the_process_with_sigsys() {
    for (filter, _) in filters() {
        let calm = in_child(|| {
            confine(filter).unwrap();
            // SAFETY: takes no arguments.
            unsafe { libc::getpid() };
        });
        assert!(libc::WIFEXITED(calm) && libc::WEXITSTATUS(calm) == 0, "status {calm:#x}");
        let forbidden = in_child(|| {
            confine(filter).unwrap();
            // SAFETY: takes integers only.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        });
        assert!(libc::WIFSIGNALED(forbidden) && libc::WTERMSIG(forbidden) == libc::SIGSYS, "status {forbidden:#x}");
    }
}

#[test]
fn capabilities_are_gone_for_good() {
    let thread = std::thread::spawn(|| {
        privileges::give_up().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!(value("NoNewPrivs:"), "1");
    });
    thread.join().unwrap();
}

/// What threads do besides their work: allocate, lock, panic, end.
#[test]
fn a_confined_thread_lives_and_dies_like_any_other() {
    for confine in [confine_vcpu, confine_devices, confine_volume] {
        let thread = std::thread::spawn(move || {
            confine().unwrap();
            let big = vec![1u8; 64 << 20];
            let table: std::collections::HashMap<_, _> = (0..1000).map(|n| (n, vec![n; 100])).collect();
            eprintln!("a panic follows, as the test wants it");
            assert_eq!(big.len(), table.len(), "{:?}", std::time::Instant::now());
        });
        assert!(thread.join().is_err(), "and the process lives on");
    }
}
