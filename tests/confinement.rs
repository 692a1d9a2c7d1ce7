//! What amphi's own process may do while a guest runs: the filters of its threads, and its privileges.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::harness::{Amphi, Case, Isolation, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![vm("threads_are_confined", threads_are_confined), vm("threads_ask_for_little", threads_ask_for_little)]
}

fn threads_are_confined() {
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let folder = tempfile::tempdir().unwrap();
    let volume = format!("{}:/v", folder.path().display());
    let mut started = Amphi::sh(Isolation::Vm, script).with(["--cpus", "2", "-v", &volume]).start();
    started.wait_for_output("ready");
    let mut names = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{}/task", started.id())).unwrap().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        let name = value("Name:");
        assert_eq!((value("Seccomp:").as_str(), value("NoNewPrivs:").as_str()), ("2", "1"), "thread {name}");
        // A volume's thread keeps chown, dac_override, fowner, fsetid, setgid and setuid.
        let kept = if name == "fs0" { "db" } else { "" };
        for (set, expected) in [("CapEff:", kept), ("CapPrm:", kept), ("CapInh:", ""), ("CapAmb:", "")] {
            assert_eq!(value(set).trim_start_matches('0'), expected, "{set} of thread {name}");
        }
        names.insert(name);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(names, ["amphi", "devices", "fs0", "signals", "vcpu0", "vcpu1"]);
    started.signal(Signal::TERM);
    started.finish().expect(0);
}

/// What the threads of each kind may be seen to ask for under load. All else is either not needed, or belongs in here, in
/// the filters (`src/isolation/vm/seccomp`), and, with its reason, in the commit that brings it.
const EXPECTED: [(&str, &[&str]); 5] = [
    (
        "fs",
        &[
            // The guest's interrupt.
            "ioctl",
            "epoll_wait",
            "epoll_ctl",
            "futex",
            "read",
            "write",
            "tgkill",
            "getpid",
            "close",
            "openat",
            "statx",
            "readlinkat",
            "mkdirat",
            "mknodat",
            "symlinkat",
            "linkat",
            "unlinkat",
            "renameat2",
            "getdents64",
            "fchmod",
            "fchmodat",
            "fchownat",
            "utimensat",
            "fstatfs",
            "getxattr",
            "setxattr",
            "listxattr",
            "removexattr",
            "preadv",
            "pwritev2",
            "ftruncate",
            "fallocate",
            "lseek",
            "copy_file_range",
            "fsync",
            "fdatasync",
            "syncfs",
            "setfsuid",
            "setfsgid",
        ],
    ),
    (
        "vcpu",
        &[
            "ioctl",
            "futex",
            "write",
            "read",
            "tgkill",
            "getpid",
            "epoll_ctl",
            "close",
            "io_uring_enter",
            // A kick that came after `KVM_RUN` had returned is taken back.
            "rt_sigtimedwait",
        ],
    ),
    (
        "devices",
        &[
            "epoll_wait",
            "epoll_ctl",
            "ioctl",
            "futex",
            "read",
            "write",
            "readv",
            "writev",
            "preadv",
            "preadv2",
            "pwritev",
            "pwritev2",
            "pread64",
            "pwrite64",
            "fdatasync",
            "fsync",
            "lseek",
            "fallocate",
            "poll",
            "recvfrom",
            "sendto",
            "recvmsg",
            "sendmsg",
            "shutdown",
            "io_uring_enter",
            "timerfd_settime",
            "tgkill",
            "getpid",
            "close",
        ],
    ),
    (
        "amphi",
        &[
            "poll",
            "recvfrom",
            "read",
            "sendto",
            "write",
            "futex",
            "close",
            "ioctl",
            "exit_group",
            "tgkill",
            "getpid",
            "unlink",
            // The VM that has ended is left to the kernel.
            "io_uring_register",
            // A guest that is not ready after some seconds, as under strace, has KVM tried on a thread.
            "ppoll",
            "clone",
            "clone3",
            "rseq",
            "set_robust_list",
        ],
    ),
    ("signals", &["rt_sigtimedwait", "futex"]),
];
/// What any thread does for its memory and its end; `fcntl` is how a debug build checks what it closes.
const COMMON: [&str; 13] = [
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "clock_gettime",
    "getrandom",
    "rt_sigprocmask",
    "sigaltstack",
    "exit",
    "sched_getaffinity",
    "fcntl",
];

/// Runs a load under strace, and looks at what each thread calls once it has its filter. A call that the filter forbids would
/// have ended amphi.
fn threads_ask_for_little() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let root = rootfs::ext4(folder.path());
    let data = vec![b'x'; 300_000];
    let folder_of_hosts = folder.path().join("volume");
    fs::create_dir(&folder_of_hosts).unwrap();
    fs::set_permissions(&folder_of_hosts, fs::Permissions::from_mode(0o777)).unwrap();
    let script = "cat >/data && sync && cat /data && wc -c </data >&2 && cd /v && cp /data a && mkdir d && mv a d/b && \
                  ln d/b c && ln -s c s && ls -l . s >/dev/null && readlink s >/dev/null && mkfifo p && chmod 600 c && \
                  chown 7 c && touch -d 2020-01-01 c && truncate -s 10 c && df . >/dev/null && sync && rm -r d c p s";
    let volume = format!("{}:/v", folder_of_hosts.display());
    let finished = Amphi::run_image(Isolation::Vm, root.as_ref(), ["/bin/sh", "-c", script])
        .with(["-i", "--cpus", "2", "-v", &volume])
        .input(data.clone())
        .finish_under(&["strace", "-f", "-q", "-o", trace.to_str().unwrap(), "--"])
        .expect(0);
    assert!(finished.stdout == data, "what came back {finished}");

    let calls = calls_after_filter(&fs::read_to_string(&trace).unwrap());
    assert!(calls["amphi"].contains("io_uring_register"), "the VM is waited for: {calls:?}");
    for (kind, expected) in EXPECTED {
        let of_kind: Vec<_> = calls.iter().filter(|(name, _)| name.starts_with(kind)).collect();
        assert!(!of_kind.is_empty(), "no thread {kind} has a filter: {calls:?}");
        for (name, called) in of_kind {
            let odd: Vec<_> = called
                .iter()
                .filter(|call| !expected.contains(&call.as_str()) && !COMMON.contains(&call.as_str()))
                .collect();
            assert!(odd.is_empty(), "thread {name} calls {odd:?}");
        }
    }
}

/// By the threads' names, what they call after they have installed a filter.
fn calls_after_filter(trace: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in trace.lines() {
        let Some((id, rest)) = line.split_once(' ') else { continue };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        if call.contains(' ') {
            continue;
        }
        let name = names.entry(id).or_insert_with(|| "amphi".to_owned());
        if call == "prctl" && arguments.starts_with("PR_SET_NAME") {
            arguments.split('"').nth(1).unwrap().clone_into(name);
        }
        if let Some(called) = calls.get_mut(name) {
            called.insert(call.to_owned());
        } else if call == "seccomp" {
            calls.insert(name.clone(), BTreeSet::new());
        }
    }
    calls
}
