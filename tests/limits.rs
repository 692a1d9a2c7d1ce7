//! Limits: memory, CPUs, processes, a read-only root.

use rustix::process::Signal;

use crate::harness::{Amphi, Case, Isolation, both, cgroup, vm};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = [
        both("memory_is_what_was_given", memory_is_what_was_given),
        both("memory_is_limited", memory_is_limited),
        both("cpus", cpus),
        both("pids", pids),
        both("read_only", read_only),
    ]
    .into_iter()
    .flatten()
    .collect();
    cases.push(vm("memory_above_the_gap", memory_above_the_gap));
    cases.push(vm("memory_that_the_host_has_not", memory_that_the_host_has_not));
    cases
}

/// What the host's cgroups say of a container with `options`; see [`cgroup::limit`].
fn container_limit(options: &[&str], marker: &str, controller: &str, v2: &str, v1: &str) -> String {
    let script = format!("echo ready; exec sleep {marker}");
    let mut started = Amphi::sh(Isolation::Container, &script).with(options).start();
    started.wait_for_output("ready");
    let limit = cgroup::limit(marker, controller, v2, v1);
    started.signal(Signal::TERM);
    started.finish().expect(143);
    limit
}

/// `MemTotal` in KiB.
fn guest_memory(options: &[&str]) -> u64 {
    let finished =
        Amphi::sh(Isolation::Vm, "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").with(options).finish();
    let finished = finished.expect(0);
    finished.text().parse().unwrap_or_else(|_| panic!("no number {finished}"))
}

fn memory_is_what_was_given(isolation: Isolation) {
    match isolation {
        Isolation::Vm => {
            let total = guest_memory(&["--memory", "128M"]);
            assert!((64 << 10..=128 << 10).contains(&total), "{total} KiB");
        }
        Isolation::Container => {
            let options = ["--memory", "128M"];
            let limit = container_limit(&options, "876701", "memory", "memory.max", "memory.limit_in_bytes");
            assert_eq!(limit, "134217728");
        }
    }
}

fn memory_is_limited(isolation: Isolation) {
    let take = |mib| format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null && echo enough");
    Amphi::sh(isolation, &take(16)).with(["--memory", "128M"]).finish().expect_text("enough");
    let finished = Amphi::sh(isolation, &take(400)).with(["--memory", "128M"]).finish();
    assert_eq!(finished.text(), "", "it got more than it may have {finished}");
}

fn memory_above_the_gap() {
    let total = guest_memory(&["--memory", "4G"]);
    assert!((3700 << 10..=4 << 20).contains(&total), "{total} KiB");
}

fn memory_that_the_host_has_not() {
    Amphi::run(Isolation::Vm, ["true"]).with(["--memory", "100T"]).finish().expect_error(125, &["memory"]);
}

fn cpus(isolation: Isolation) {
    match isolation {
        Isolation::Vm => Amphi::run(isolation, ["nproc"]).with(["--cpus", "2"]).finish().expect_text("2"),
        Isolation::Container => {
            let limit = container_limit(&["--cpus", "2"], "876702", "cpu", "cpu.max", "cpu.cfs_quota_us");
            let quota: u64 = limit.split(' ').next().and_then(|quota| quota.parse().ok()).unwrap();
            assert_eq!(quota, 200_000, "of a period of 100 ms: {limit}");
        }
    }
}

fn pids(isolation: Isolation) {
    let script = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; echo all";
    Amphi::sh(isolation, script).finish().expect_text("all");
    let finished = Amphi::sh(isolation, script).with(["--pids", "20"]).finish();
    assert!(!finished.text().contains("all"), "it started 40 processes where 20 are allowed {finished}");
    assert!(finished.errors().contains("fork"), "the shell says that it cannot fork {finished}");
}

fn read_only(isolation: Isolation) {
    let script = "touch /tmp/file && echo written";
    Amphi::sh(isolation, script).finish().expect_text("written");
    let finished = Amphi::sh(isolation, script).with(["--read-only"]).finish().expect(1);
    assert!(finished.errors().contains("Read-only file system"), "{finished}");
}
