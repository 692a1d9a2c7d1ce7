//! What is left behind: nothing, however amphi ends. And many instances at once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::installed::{self, Kernel};
use crate::harness::leftovers::Snapshot;
use crate::harness::world;
use crate::harness::{Amphi, Case, Finished, Isolation, both, container, vm};

pub(crate) fn cases() -> Vec<Case> {
    let alone = [
        both("a_normal_end_leaves_nothing", a_normal_end_leaves_nothing),
        both("failures_leave_nothing", failures_leave_nothing),
        both("sigterm_leaves_nothing", |isolation| signal_leaves_nothing(isolation, Signal::TERM, 143)),
        both("sigint_leaves_nothing", |isolation| signal_leaves_nothing(isolation, Signal::INT, 130)),
        both("a_signal_at_any_time_ends_it", a_signal_at_any_time_ends_it),
        both("sigkill_leaves_nothing_after_the_next_start", sigkill_leaves_nothing_after_the_next_start),
        vec![container("sigkill_with_many_processes_leaves_nothing", sigkill_with_many_processes_leaves_nothing)],
        vec![vm("vms_left_to_the_kernel_are_closed", vms_left_to_the_kernel_are_closed)],
        vec![vm("a_vm_that_finds_no_place_is_waited_for", a_vm_that_finds_no_place_is_waited_for)],
    ];
    let mut cases: Vec<_> = alone.into_iter().flatten().map(Case::alone).collect();
    cases.push(vm("a_guest_that_ends_first_is_an_error", a_guest_that_ends_first_is_an_error));
    cases.push(vm("a_guest_whose_kernel_panics_is_an_error", || {
        a_guest_whose_kernel_panics_is_an_error(&installed::own())
    }));
    cases.push(vm("a_panic_of_a_stock_kernel_is_an_error", || {
        a_guest_whose_kernel_panics_is_an_error(&installed::stock("6.12."));
    }));
    cases.extend(both("several_at_once", several_at_once));
    cases
}

/// A number that no other process sleeps for, as the marker of a case's workload.
fn marker(isolation: Isolation, number: u32) -> String {
    format!("{}{number}", if isolation == Isolation::Vm { 87_650 } else { 87_660 })
}

/// A call with a state folder of its own.
fn call(isolation: Isolation, state: &Path, script: &str) -> Amphi {
    Amphi::sh(isolation, script).env("XDG_RUNTIME_DIR", state)
}

fn a_normal_end_leaves_nothing(isolation: Isolation) {
    let state = tempfile::tempdir().unwrap();
    let marker = marker(isolation, 1);
    call(isolation, state.path(), "true").finish().expect(0);
    let before = Snapshot::take(&marker, &state.path().join("amphi"));
    call(isolation, state.path(), &format!("sleep {marker} & mount -t tmpfs none /tmp; exit 4")).finish().expect(4);
    before.expect_nothing_new(&marker, &state.path().join("amphi"));
}

fn failures_leave_nothing(isolation: Isolation) {
    let state = tempfile::tempdir().unwrap();
    let marker = marker(isolation, 2);
    call(isolation, state.path(), "true").finish().expect(0);
    let before = Snapshot::take(&marker, &state.path().join("amphi"));
    call(isolation, state.path(), "true").with(["-u", "unknown-user"]).finish().expect(125);
    Amphi::run(isolation, ["unknown-command"]).env("XDG_RUNTIME_DIR", state.path()).finish().expect(127);
    Amphi::run_image(isolation, "dir:/no/such/folder".as_ref(), ["true"]).finish().expect(125);
    before.expect_nothing_new(&marker, &state.path().join("amphi"));
}

fn signal_leaves_nothing(isolation: Isolation, signal: Signal, status: i32) {
    let state = tempfile::tempdir().unwrap();
    let marker = marker(isolation, 3);
    call(isolation, state.path(), "true").finish().expect(0);
    let before = Snapshot::take(&marker, &state.path().join("amphi"));
    let mut started = call(isolation, state.path(), &format!("echo ready; exec sleep {marker}")).start();
    started.wait_for_output("ready");
    assert!(Snapshot::take(&marker, state.path()).has_process(), "the snapshot sees what runs");
    started.signal(signal);
    started.finish().expect(status);
    before.expect_nothing_new(&marker, &state.path().join("amphi"));
}

fn a_signal_at_any_time_ends_it(isolation: Isolation) {
    let state = tempfile::tempdir().unwrap();
    let marker = marker(isolation, 5);
    call(isolation, state.path(), "true").finish().expect(0);
    let before = Snapshot::take(&marker, &state.path().join("amphi"));
    for delay in [0, 30, 100, 200, 400, 800] {
        let started = call(isolation, state.path(), &format!("exec sleep {marker}")).start();
        std::thread::sleep(Duration::from_millis(delay));
        started.signal(Signal::TERM);
        started.finish().expect_signal(Signal::TERM);
    }
    before.expect_nothing_new(&marker, &state.path().join("amphi"));
}

fn sigkill_leaves_nothing_after_the_next_start(isolation: Isolation) {
    let state = tempfile::tempdir().unwrap();
    let marker = marker(isolation, 4);
    call(isolation, state.path(), "true").finish().expect(0);
    let before = Snapshot::take(&marker, &state.path().join("amphi"));
    let mut started = call(isolation, state.path(), &format!("echo ready; exec sleep {marker}")).start();
    started.wait_for_output("ready");
    started.signal(Signal::KILL);
    let _: Finished = started.finish();
    call(isolation, state.path(), "true").finish().expect(0);
    before.expect_nothing_new(&marker, &state.path().join("amphi"));
}

fn sigkill_with_many_processes_leaves_nothing() {
    // So many take a while to end, and the next start comes in the middle of it.
    let many = "i=0; while [ $i -lt 300 ]; do sleep 876605 & i=$((i+1)); done; echo ready; wait";
    let state = tempfile::tempdir().unwrap();
    call(Isolation::Container, state.path(), "true").finish().expect(0);
    let before = Snapshot::take("876605", &state.path().join("amphi"));
    for _ in 0..5 {
        let mut started = call(Isolation::Container, state.path(), many).start();
        started.wait_for_output("ready");
        started.signal(Signal::KILL);
        // On a busy host that takes a moment, in which its groups still count as in use.
        started.wait_until_gone();
        call(Isolation::Container, state.path(), "true").finish().expect(0);
        let _: Finished = started.finish();
        before.expect_nothing_new("876605", &state.path().join("amphi"));
    }
}

/// The places for VMs that the kernel closes by itself (`release.rs`): bytes of the KVM device, each locked until its VM is
/// gone. Taken all together here, as soon as all are free.
fn take_all_places() -> File {
    let device = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let lock = libc::flock {
        l_type: libc::F_WRLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the argument is a `struct flock`, as the command wants it.
    let take = || unsafe { libc::fcntl(device.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 };
    let deadline = Instant::now() + world::seconds(10);
    while !take() {
        assert!(Instant::now() < deadline, "VMs are still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    device
}

fn vms_left_to_the_kernel_are_closed() {
    for _ in 0..3 {
        let calls: Vec<_> = (0..6).map(|_| Amphi::sh(Isolation::Vm, "true").start()).collect();
        for started in calls {
            started.finish().expect(0);
        }
        drop(take_all_places());
    }
}

fn a_vm_that_finds_no_place_is_waited_for() {
    let all_places = take_all_places();
    Amphi::sh(Isolation::Vm, "exit 3").finish().expect(3);
    drop(all_places);
}

fn a_guest_that_ends_first_is_an_error() {
    for (script, said) in [("poweroff -f", "switched the power off"), ("reboot -f", "triple fault")] {
        Amphi::sh(Isolation::Vm, &format!("{script}; sleep 60")).finish().expect_error(125, &["ended before", said]);
    }
}

fn a_guest_whose_kernel_panics_is_an_error(kernel: &Kernel) {
    let panic = Amphi::sh(Isolation::Vm, "echo c >/proc/sysrq-trigger; sleep 60");
    let finished = panic.with(["--kernel", &kernel.name]).finish().expect(125);
    for word in ["the guest's kernel panicked", "sysrq triggered crash"] {
        assert!(finished.errors().contains(word), "the error does not say {word:?} {finished}");
    }
}

fn several_at_once(isolation: Isolation) {
    let calls: Vec<_> = (1..=3).map(|n| Amphi::sh(isolation, &format!("echo {n}; exit {n}")).start()).collect();
    for (n, started) in (1..).zip(calls) {
        let finished = started.finish().expect(n);
        assert_eq!(finished.text(), n.to_string(), "{finished}");
    }
}
