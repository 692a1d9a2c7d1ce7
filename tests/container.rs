//! What only a container promises: the confinement of its process.

use std::fs;

use crate::harness::{Amphi, Case, Isolation, container};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        container("confinement_of_the_process", confinement_of_the_process),
        container("own_namespaces", own_namespaces),
        container("masked_and_read_only_paths", masked_and_read_only_paths),
        container("forbidden_calls", forbidden_calls),
        container("devices", devices),
        container("vm_options_are_refused", vm_options_are_refused),
    ]
}

fn sh(script: &str) -> Amphi {
    Amphi::sh(Isolation::Container, script)
}

fn confinement_of_the_process() {
    let script = "sed -n 's/^\\(CapEff\\|CapBnd\\|NoNewPrivs\\|Seccomp\\):\\s*//p' /proc/self/status";
    // The capabilities that docker and podman leave: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    // net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
    let text = sh(script).finish().expect(0).text();
    let lines: Vec<_> = text.lines().collect();
    let allowed = 0xa804_25fb_u64;
    for line in &lines[..2] {
        let set = u64::from_str_radix(line, 16).unwrap();
        assert_eq!(set & !allowed, 0, "more capabilities than the usual default: {set:x}");
        assert_ne!(set, 0, "root in the container has the usual capabilities");
    }
    assert_eq!(lines[2..], ["1", "2"], "no_new_privs, and a seccomp filter");
}

fn own_namespaces() {
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let inside = sh(&format!("readlink /proc/self/ns/{kind}")).finish().expect(0).text();
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside, outside.to_string_lossy(), "the {kind} namespace is the host's");
    }
    sh("ls -d /proc/[0-9]* | wc -l | { read n; test $n -lt 8; }").finish().expect(0);
    sh("ls /sys/class/net").finish().expect_text("lo");
}

fn masked_and_read_only_paths() {
    sh("head -c 1 /proc/kcore | wc -c").finish().expect_text("0");
    sh("cat /proc/keys /proc/timer_list 2>/dev/null | wc -c").finish().expect_text("0");
    for path in ["/proc/sys/kernel/printk_ratelimit", "/proc/sysrq-trigger"] {
        let finished = sh(&format!("echo 1 >{path}")).finish();
        assert!(
            finished.errors().contains("nonexistent directory") || finished.errors().contains("can't create"),
            "{finished}"
        );
    }
    sh("cat /proc/sys/kernel/printk_ratelimit >/dev/null").finish().expect(0);
}

fn forbidden_calls() {
    for script in [
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
        "nsenter -t 1 -n true",
    ] {
        let finished = sh(&format!("{script} && echo allowed")).finish();
        assert!(!finished.text().contains("allowed"), "{finished}");
    }
}

fn devices() {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                  test -e /dev/kvm && echo kvm; test -e /dev/mem && echo mem; echo x >/dev/null; \
                  head -c 4 /dev/zero | wc -c; test -d /dev/shm && test -c /dev/pts/ptmx && test -e /dev/stdout && echo rest";
    sh(script).finish().expect_text("4\nrest");
}

fn vm_options_are_refused() {
    for options in [["--kernel", "some-kernel"], ["--kernel-arg", "quiet"], ["--initrd", "some-initrd"]] {
        sh("true").with(options).finish().expect_error(125, &[options[0]]);
    }
}
