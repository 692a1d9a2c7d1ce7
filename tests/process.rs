//! The workload's process: environment, folder, user, name, signals, children.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Amphi, Case, Isolation, both};

pub(crate) fn cases() -> Vec<Case> {
    [
        both("environment", environment),
        both("working_directory", working_directory),
        both("the_last_of_an_option_counts", the_last_of_an_option_counts),
        both("user_by_name", user_by_name),
        both("user_by_number", user_by_number),
        both("unknown_user", unknown_user),
        both("hostname", hostname),
        both("kernel_release", kernel_release),
        both("command_not_found", command_not_found),
        both("command_not_executable", command_not_executable),
        both("orphans_are_reaped", orphans_are_reaped),
        both("signals_reach_the_workload", signals_reach_the_workload),
        both("a_signal_is_heeded_as_soon_as_the_workload_is_there", a_signal_is_heeded_at_once),
        both("a_signal_during_the_start_ends_it", a_signal_during_the_start_ends_it),
        both("an_unhandled_signal_ends_the_workload", an_unhandled_signal_ends_the_workload),
        both("the_instance_ends_with_the_workload", the_instance_ends_with_the_workload),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn environment(isolation: Isolation) {
    let script = r#"echo "$A|$B|${C-unset}|$HOME"; test -n "$PATH" && test -z "$SECRET""#;
    Amphi::sh(isolation, script)
        .with(["-e", "A=two words", "-e", "B=x=y", "-e", "C="])
        .env("SECRET", "the host's")
        .finish()
        .expect_text("two words|x=y||/root");
}

fn working_directory(isolation: Isolation) {
    Amphi::run(isolation, ["pwd"]).with(["-w", "/home/alice"]).finish().expect_text("/home/alice");
    Amphi::run(isolation, ["pwd"]).with(["-w", "/made/for/it"]).finish().expect_text("/made/for/it");
}

fn the_last_of_an_option_counts(isolation: Isolation) {
    let options = ["-w", "/home/alice", "-e", "A=1", "--rm", "--rm", "-w", "/", "-e", "B=2"];
    Amphi::sh(isolation, r#"pwd; echo "$A$B""#).with(options).finish().expect_text("/\n12");
}

fn user_by_name(isolation: Isolation) {
    let script = r#"id -u; id -g; id -G; echo "$HOME""#;
    Amphi::sh(isolation, script).with(["-u", "alice"]).finish().expect_text("1000\n1001\n1001 50\n/home/alice");
}

fn user_by_number(isolation: Isolation) {
    Amphi::sh(isolation, "id -u; id -g").with(["-u", "1234:50"]).finish().expect_text("1234\n50");
}

fn unknown_user(isolation: Isolation) {
    Amphi::run(isolation, ["id"])
        .with(["-u", "nobody-of-that-name"])
        .finish()
        .expect_error(125, &["nobody-of-that-name"]);
}

fn hostname(isolation: Isolation) {
    Amphi::run(isolation, ["hostname"]).with(["--hostname", "one-name"]).finish().expect_text("one-name");
    Amphi::run(isolation, ["hostname"]).with(["--name", "an-instance"]).finish().expect_text("an-instance");
    // Nothing of the host's, and another one each time.
    let script = r#"test "$(hostname)" = "$HOSTNAME"; hostname"#;
    let [one, other] = [0, 1].map(|_| Amphi::sh(isolation, script).finish().expect(0).text());
    assert!(one.len() == 12 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
    assert_ne!(one, other);
}

fn kernel_release(isolation: Isolation) {
    let finished = Amphi::run(isolation, ["uname", "-r"]).finish().expect(0);
    let hosts = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let same = finished.text() == hosts.trim_end();
    assert_eq!(same, isolation == Isolation::Container, "the host runs {} {finished}", hosts.trim_end());
}

fn command_not_found(isolation: Isolation) {
    for command in ["no-such-command", "/bin/no-such-command"] {
        Amphi::run(isolation, [command]).finish().expect_error(127, &["no-such-command", "not found"]);
    }
}

fn command_not_executable(isolation: Isolation) {
    for command in ["/etc/not-executable", "/etc"] {
        Amphi::run(isolation, [command]).finish().expect_error(126, &[command]);
    }
}

fn orphans_are_reaped(isolation: Isolation) {
    let script = "zombies() { grep -l '^State:.Z' /proc/[0-9]*/status | wc -l; }; \
                  for i in 1 2 3; do (sh -c 'sleep 0.2 & exit' &); done; sleep 1; \
                  i=0; while [ $(zombies) != 0 ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; zombies";
    Amphi::sh(isolation, script).finish().expect_text("0");
}

const WAIT: &str = "echo ready; while :; do sleep 0.1; done";

fn signals_reach_the_workload(isolation: Isolation) {
    for (name, signal) in [("TERM", Signal::TERM), ("INT", Signal::INT), ("USR1", Signal::USR1)] {
        let mut started = Amphi::sh(isolation, &format!("trap 'echo got {name}; exit 3' {name}; {WAIT}")).start();
        started.wait_for_output("ready");
        started.signal(signal);
        let finished = started.finish().expect(3);
        assert_eq!(finished.text(), format!("ready\ngot {name}"), "{finished}");
    }
}

fn a_signal_is_heeded_at_once(isolation: Isolation) {
    // The signal follows the first byte so closely that amphi may not have returned from the start.
    let attempts = if isolation == Isolation::Vm { 4 } else { 40 };
    for _ in 0..attempts {
        let mut started = Amphi::sh(isolation, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done").start();
        started.wait_for_output("ready");
        started.signal(Signal::TERM);
        started.finish().expect(3);
    }
}

fn a_signal_during_the_start_ends_it(isolation: Isolation) {
    let (attempts, step) = match isolation {
        Isolation::Vm => (6, Duration::from_millis(50)),
        Isolation::Container => (40, Duration::from_micros(500)),
    };
    for attempt in 0..attempts {
        let started = Amphi::run(isolation, ["sleep", "1000"]).start();
        std::thread::sleep(step * attempt);
        started.signal(Signal::TERM);
        started.finish().expect_signal(Signal::TERM);
    }
}

fn an_unhandled_signal_ends_the_workload(isolation: Isolation) {
    let mut started = Amphi::sh(isolation, WAIT).start();
    started.wait_for_output("ready");
    started.signal(Signal::TERM);
    started.finish().expect(143);
}

fn the_instance_ends_with_the_workload(isolation: Isolation) {
    // What it left running holds its standard output open.
    Amphi::sh(isolation, "sleep 1000 & echo over").finish().expect_text("over");
}
