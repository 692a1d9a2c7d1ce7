//! What a workload finds is the same in both isolations. Each case runs the same call in one after the other.

use crate::harness::{Amphi, Case, Finished, Isolation, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("parity_of_the_environment", the_environment),
        vm("parity_of_users", users),
        vm("parity_of_working_directories", working_directories),
        vm("parity_of_the_process", the_process),
        vm("parity_of_limits", limits),
        vm("parity_of_a_read_only_root", a_read_only_root),
        vm("parity_of_devices", devices),
        vm("parity_of_errors", errors),
    ]
}

/// The call in a microVM and in a container, whose status and output must be the same.
#[track_caller]
fn same(options: &[&str], script: &str) -> Finished {
    let [vm, container] =
        [Isolation::Vm, Isolation::Container].map(|isolation| Amphi::sh(isolation, script).with(options).finish());
    assert_eq!(
        (vm.code(), vm.text(), vm.errors()),
        (container.code(), container.text(), container.errors()),
        "left a microVM, right a container {vm} {container}"
    );
    vm
}

fn the_environment() {
    // The id that is the host name differs each time, unless it is given.
    let all = same(&["--hostname", "box", "-e", "B=2", "-e", "A=1"], "env | sort").expect(0);
    for variable in ["A=1", "B=2", "HOME=/root", "HOSTNAME=box", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin"] {
        assert!(all.text().contains(variable), "{variable} {all}");
    }
    same(&["--hostname", "box", "-e", "PATH=/bin", "-e", "HOME=/x", "-u", "alice"], "env | sort").expect(0);
    same(&["--hostname", "box", "-t"], "env | sort").expect(0);
}

fn users() {
    for user in ["root", "alice", "alice:staff", "1000", "1234", "1234:50", "0:1001"] {
        same(&["-u", user], "id; grep Groups /proc/self/status; cd && pwd; touch /tmp/x && stat -c '%u %g %a' /tmp/x")
            .expect(0);
    }
}

fn working_directories() {
    for folder in ["/", "/home/alice", "/tmp/../tmp", "/made/for/it"] {
        let script = "pwd; stat -c '%u %g %a' .";
        same(&["-w", folder], script).expect(0);
        same(&["-w", folder, "-u", "alice"], script).expect(0);
    }
}

fn the_process() {
    same(&[], "umask; grep -E '^(SigBlk|SigIgn|SigCgt|Threads)' /proc/self/status; nice; cat /proc/self/oom_score_adj")
        .expect(0);
    same(&[], "exec cat /proc/self/cmdline | tr '\\0' ' '").expect(0);
    same(&[], "ls -l /proc/self/fd | grep -c ^l; test -t 0 || echo no terminal").expect(0);
    same(&["-t"], "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; ls -l /proc/self/fd | grep -c ^l")
        .expect(0);
    // The workload leads a group that its signals stay in.
    same(&[], "trap 'echo got it; exit 4' TERM; kill -TERM 0; sleep 60").expect(4);
}

fn limits() {
    same(
        &[],
        "ulimit -S -n; ulimit -H -n; ulimit -S -c; ulimit -H -c; ulimit -s; ulimit -f; ulimit -t; ulimit -v; ulimit -d",
    )
    .expect(0);
    let script = "i=0; while [ $i -lt 9 ]; do sleep 60 & i=$((i+1)); done; echo all";
    same(&["--pids", "10"], script).expect(0);
    let finished = same(&["--pids", "9"], script);
    assert!(!finished.text().contains("all"), "{finished}");
}

fn a_read_only_root() {
    same(&["--read-only"], "touch /x; mkdir /tmp/x; echo x >/dev/null && touch /dev/shm/x && echo shm").expect(0);
    same(&["--read-only", "-w", "/home/alice"], "pwd").expect(0);
}

fn devices() {
    // No console: a microVM's is its kernel's, a container has one only as a name of its terminal.
    let names = "null zero full random urandom tty ptmx pts shm mqueue fd stdin stdout stderr";
    same(&[], &format!("for d in {names}; do test -e /dev/$d || echo no $d; done; ls -ld /dev/shm /tmp | cut -c 1-10"))
        .expect(0);
    same(
        &["-u", "alice"],
        "echo x >/dev/null; echo out >/dev/stdout; echo err >/dev/stderr; head -c 3 /dev/zero | wc -c",
    )
    .expect(0);
}

fn errors() {
    for (option, value, word) in [
        ("-u", "nosuchuser", "no user"),
        ("-u", "alice:nosuchgroup", "no group"),
        ("-u", "4294967295", "not a user or group number"),
        ("-w", "/etc/passwd", "cannot use the working directory"),
        ("-w", "/etc/passwd/below", "not a directory"),
    ] {
        for isolation in [Isolation::Vm, Isolation::Container] {
            Amphi::run(isolation, ["true"]).with([option, value]).finish().expect_error(125, &[value, word]);
        }
    }
    for command in ["no-such-command", "/bin/no-such-command", "/etc/not-executable", "/etc", "/etc/passwd/x"] {
        let [vm, container] =
            [Isolation::Vm, Isolation::Container].map(|isolation| Amphi::run(isolation, [command]).finish());
        assert_eq!((vm.code(), vm.errors()), (container.code(), container.errors()), "{command}");
        assert!(vm.errors().contains(command), "{vm}");
    }
}
