//! Standard streams and exit statuses.

use crate::harness::command::{TERMINAL_COLUMNS, TERMINAL_ROWS};
use crate::harness::{Amphi, Case, Isolation, both};

pub(crate) fn cases() -> Vec<Case> {
    [
        both("streams_and_status", streams_and_status),
        both("status_of_a_killed_workload", status_of_a_killed_workload),
        both("binary_data_passes_unchanged", binary_data_passes_unchanged),
        both("output_is_complete_at_exit", output_is_complete_at_exit),
        both("a_slow_reader_gets_everything", a_slow_reader_gets_everything),
        both("stdin_is_empty_without_i", stdin_is_empty_without_i),
        both("stdin_may_outlive_the_workload", stdin_may_outlive_the_workload),
        both("terminal", terminal),
        both("builtin_image", builtin_image),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn streams_and_status(isolation: Isolation) {
    let finished = Amphi::sh(isolation, "echo out; echo err >&2; exit 7").finish().expect(7);
    assert_eq!(finished.stdout, b"out\n", "{finished}");
    assert!(finished.errors().lines().any(|line| line == "err"), "{finished}");
    assert!(!finished.errors().contains("out"), "the streams are mixed {finished}");
}

fn status_of_a_killed_workload(isolation: Isolation) {
    Amphi::sh(isolation, "kill -9 $$").finish().expect(137);
}

/// Bytes in which every value occurs, in no simple order.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn binary_data_passes_unchanged(isolation: Isolation) {
    let data = noise(10 << 20);
    let finished = Amphi::run(isolation, ["cat"]).with(["-i"]).input(data.clone()).finish().expect(0);
    assert_eq!(finished.stdout.len(), data.len(), "the length of what came back");
    let differs = finished.stdout.iter().zip(&data).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}

fn output_is_complete_at_exit(isolation: Isolation) {
    let script = "dd if=/dev/zero bs=64k count=64 2>/dev/null; dd if=/dev/zero bs=64k count=48 >&2 2>/dev/null";
    let finished = Amphi::sh(isolation, script).finish().expect(0);
    assert_eq!(finished.stdout.len(), 4 << 20, "bytes of standard output");
    assert!(finished.stderr.len() >= 3 << 20, "{} bytes of standard error", finished.stderr.len());
}

/// The output lies in pipes and queues when the workload has ended.
fn a_slow_reader_gets_everything(isolation: Isolation) {
    let script = "dd if=/dev/zero bs=50k count=10 2>/dev/null";
    Amphi::sh(isolation, script).finish_through("{ sleep 6; wc -c; }").expect_text("512000");
}

fn stdin_is_empty_without_i(isolation: Isolation) {
    Amphi::run(isolation, ["wc", "-c"]).input("ignored").finish().expect_text("0");
}

fn stdin_may_outlive_the_workload(isolation: Isolation) {
    Amphi::run(isolation, ["echo", "done"]).with(["-i"]).open_input().finish().expect_text("done");
}

fn terminal(isolation: Isolation) {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && read -r line && echo \"read $line\"";
    let finished = Amphi::sh(isolation, script).with(["-i", "-t"]).input("typed\n").finish_on_terminal().expect(0);
    let text = finished.text();
    assert!(text.contains("read typed"), "the workload reads what is typed {finished}");
    let size = format!("{TERMINAL_ROWS} {TERMINAL_COLUMNS}");
    assert!(text.lines().any(|line| line.trim() == size), "the terminal has the size of the caller's {finished}");
}

fn builtin_image(isolation: Isolation) {
    Amphi::new(["run", "--rm", "--isolation", isolation.name(), "builtin"]).finish().expect(0);
}
