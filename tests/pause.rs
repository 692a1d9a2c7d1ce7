//! A guest that is stopped where it is, and goes on.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use amphi::isolation::vm::{VmIsolation, VmSandbox};
use amphi::isolation::{Signal, Stdio};
use amphi::spec::{DiskEngine, DiskSpec, VmDevices};
use amphi::{ExitStatus, Image, RunSpec, Sandbox};

use crate::harness::installed::{self, Kernel};
use crate::harness::world::seconds;
use crate::harness::{Case, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("a_paused_guest_does_nothing", a_paused_guest_does_nothing).alone(),
        vm("a_paused_guest_can_be_killed", a_paused_guest_can_be_killed),
        vm("a_disk_survives_many_pauses", || a_disk_survives_many_pauses(&installed::own())),
        vm("a_disk_survives_many_pauses_on_a_stock_kernel", || a_disk_survives_many_pauses(&installed::stock("6.12."))),
        vm("a_pause_is_no_lockup", a_pause_is_no_lockup).alone(),
    ]
}

/// A guest with two processors that runs `script`, and its output.
fn start(kernel: &Kernel, script: &str, devices: VmDevices) -> (VmSandbox, BufReader<PipeReader>) {
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(256).vcpus(2);
    let spec = spec.kernel(&kernel.name).devices(devices).build().unwrap();
    let (output, writer) = std::io::pipe().unwrap();
    let stdio = Stdio { stdout: OwnedFd::from(writer), ..Stdio::null().unwrap() };
    let sandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
    assert!(sandbox.pause().is_err() && sandbox.resume().is_err(), "it does not run");
    sandbox.start().unwrap();
    (sandbox, BufReader::new(output))
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// What `proc_pid_stat(5)` says of this process's threads of that kind, from the state on.
fn threads(kind: &str) -> Vec<Vec<String>> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_kind = tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|c| c.starts_with(kind)));
    let stats = of_kind.map(|task| fs::read_to_string(task.path().join("stat")).unwrap());
    stats.map(|stat| stat.rsplit(')').next().unwrap().split_whitespace().map(ToOwned::to_owned).collect()).collect()
}

/// The processor time that this process's threads of that kind have had, in ticks, and how many there are.
fn time_of(kind: &str) -> (u64, usize) {
    let threads = threads(kind);
    let times = threads.iter().flat_map(|stat| &stat[11..=12]).map(|ticks| ticks.parse::<u64>().unwrap());
    (times.sum(), threads.len())
}

/// Waits until threads of that kind sleep: one that has said that it stops still has a few steps to go.
fn wait_for_sleep(kind: &str) {
    let deadline = Instant::now() + seconds(5);
    while threads(kind).iter().any(|stat| stat[0] != "S") {
        assert!(Instant::now() < deadline, "{kind} runs while it is paused");
        thread::sleep(Duration::from_millis(1));
    }
}

fn a_paused_guest_does_nothing() {
    let busy = "(while :; do :; done) & (while :; do :; done) & echo busy; sleep 1000";
    let (sandbox, mut output) = start(&installed::own(), busy, VmDevices::default());
    assert_eq!(line(&mut output), "busy");
    for _ in 0..5 {
        sandbox.pause().unwrap();
        sandbox.pause().unwrap();
        wait_for_sleep("vcpu");
        wait_for_sleep("devices");
        let before = (time_of("vcpu"), time_of("devices"));
        assert_eq!((before.0.1, before.1.1), (2, 1), "its threads");
        thread::sleep(Duration::from_millis(300));
        assert_eq!((time_of("vcpu"), time_of("devices")), before, "processor time while it is paused");
        sandbox.resume().unwrap();
        sandbox.resume().unwrap();
        let running = time_of("vcpu").0;
        while time_of("vcpu").0 == running {
            thread::sleep(Duration::from_millis(10));
        }
    }
    sandbox.kill(Signal::KILL).unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(Signal::KILL));
    assert!(sandbox.pause().is_err(), "it has ended");
}

fn a_paused_guest_can_be_killed() {
    let (sandbox, mut output) = start(&installed::own(), "echo ready; sleep 1000", VmDevices::default());
    assert_eq!(line(&mut output), "ready");
    sandbox.pause().unwrap();
    sandbox.kill(Signal::TERM).unwrap();
    sandbox.kill(Signal::KILL).unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(Signal::KILL));
}

fn a_disk_survives_many_pauses(kernel: &Kernel) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let disk = DiskSpec { engine: DiskEngine::IoUring, ..DiskSpec::new(&path) };
    let script = "echo ready; \
        dd if=/dev/urandom of=/x bs=1M count=4 2>/dev/null; \
        for i in 0 1 2; do dd if=/x of=/dev/vda bs=64k seek=$((i * 64)) conv=fsync 2>/dev/null; done; \
        echo 3 >/proc/sys/vm/drop_caches; \
        md5sum </x; for i in 0 1 2; do dd if=/dev/vda bs=64k skip=$((i * 64)) count=64 2>/dev/null | md5sum; done";
    let (sandbox, mut output) = start(kernel, script, VmDevices { disks: vec![disk], ..VmDevices::default() });
    assert_eq!(line(&mut output), "ready");
    let pauses = thread::scope(|scope| {
        let sums = scope.spawn(|| {
            let sums: Vec<_> = (0..4).map(|_| line(&mut output)).collect();
            assert!(sums[0].len() > 30 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        });
        let mut pauses = 0;
        while !sums.is_finished() {
            sandbox.pause().unwrap();
            thread::sleep(Duration::from_millis(5));
            sandbox.resume().unwrap();
            thread::sleep(Duration::from_millis(5));
            pauses += 1;
        }
        sums.join().unwrap();
        pauses
    });
    assert!(pauses > 3, "{pauses}");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0));
}

/// With a distribution's kernel, which looks for processors that hang.
fn a_pause_is_no_lockup() {
    let script = "echo 2 >/proc/sys/kernel/watchdog_thresh; (while :; do :; done) & echo busy; sleep 8; \
        dmesg | grep -c -i -e 'soft lockup' -e 'stall'; exit 3";
    let (sandbox, mut output) = start(&installed::stock("6.12."), script, VmDevices::default());
    assert_eq!(line(&mut output), "busy");
    thread::sleep(Duration::from_secs(1));
    sandbox.pause().unwrap();
    // Twice as long as a processor may take to get round to its watchdog.
    thread::sleep(Duration::from_secs(8));
    sandbox.resume().unwrap();
    assert_eq!(line(&mut output), "0", "reports of a lockup");
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(3));
}
