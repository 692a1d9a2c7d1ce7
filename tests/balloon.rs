//! Memory that a guest lends back to its host.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use amphi::isolation::Stdio;
use amphi::isolation::vm::{VmIsolation, VmSandbox};
use amphi::spec::{Balloon, VmDevices};
use amphi::{ExitStatus, Image, RunSpec, Sandbox};

use crate::harness::installed::{self, Kernel, WithKernel};
use crate::harness::world::{seconds, until};
use crate::harness::{Amphi, Case, Isolation, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        vm("balloon_gives_memory_back_and_returns_it", || gives_memory_back_and_returns_it(&installed::own(), &SMALL)),
        vm("balloon_gives_memory_back_and_returns_it_on_a_stock_kernel", || {
            gives_memory_back_and_returns_it(&installed::stock("6.12."), &LARGE);
        }),
        vm("balloon_with_kernel_6_1", balloon_with_kernel_6_1),
        vm("balloon_settings_that_are_none", settings_that_are_none),
    ];
    let with_each_kernel: [(&str, WithKernel); 2] = [
        ("balloon_reports_free_memory", reports_free_memory),
        ("balloon_yields_before_a_process_dies", yields_before_a_process_dies),
    ];
    for (name, case) in with_each_kernel {
        cases.push(vm(name, move || case(&installed::own())));
        cases.push(vm(&format!("{name}_on_a_stock_kernel"), move || case(&installed::stock("6.12."))));
    }
    cases
}

const MIB: u64 = 1 << 20;

/// Of a guest and what it does, in MiB.
struct Sizes {
    /// An unusual number, by which the guest's memory is found among this process's mappings.
    memory: u32,
    /// Which the guest fills: less than half of what its kernel leaves, which is as much as its `/dev/shm` takes.
    filled: u64,
    /// Which leaves the guest less than that.
    balloon: u64,
}

const SMALL: Sizes = Sizes { memory: 202, filled: 80, balloon: 140 };
/// Debian's kernel keeps some 40 MiB for itself, and its modules take as much again.
const LARGE: Sizes = Sizes { memory: 302, filled: 115, balloon: 200 };

/// How much of the memory of the guest with so many MiB the host has given, in bytes.
fn resident(mib: u32) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let size = |line: &&str| line.starts_with("Size:") && number(line) == Some(u64::from(mib) << 10);
    let mut lines = maps.lines();
    lines.find(size).expect("the guest's memory is mapped");
    lines.find(|line| line.starts_with("Rss:")).and_then(number).unwrap() << 10
}

fn gives_memory_back_and_returns_it(kernel: &Kernel, sizes: &Sizes) {
    let (filled, balloon) = (sizes.filled * MIB, sizes.balloon * MIB);
    let resident = || resident(sizes.memory);
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let fill =
        format!("dd if=/dev/zero of=/dev/shm/x bs=1M count={} 2>/dev/null && rm /dev/shm/x && echo", sizes.filled);
    // What fails ends the guest, and so the output.
    let script = format!("{fill} filled && read line && {fill} again && read line && exit 7");
    let spec = RunSpec::builder(&image)
        .args(["/bin/sh", "-c", &script])
        .memory_mib(sizes.memory)
        .kernel(&kernel.name)
        .stdin(true)
        .devices(VmDevices { balloon: Some(Balloon::new()), ..VmDevices::default() })
        .build()
        .unwrap();
    let (mut output, writer) = std::io::pipe().unwrap();
    let (reader, mut input) = std::io::pipe().unwrap();
    let null = Stdio::null().unwrap();
    let stdio = Stdio { stdin: OwnedFd::from(reader), stdout: OwnedFd::from(writer), ..null };
    let sandbox: VmSandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
    assert!(sandbox.set_balloon(0).is_err(), "it does not run");
    sandbox.start().unwrap();
    let mut line = [0; 7];
    output.read_exact(&mut line).unwrap();
    let full = resident();
    assert!(full > filled, "{full}");

    sandbox.set_balloon(balloon).unwrap();
    until(seconds(15), "the balloon fills", || sandbox.balloon().unwrap().actual == balloon);
    let lent = resident();
    assert!(lent + filled / 2 < full, "{full} bytes, and then {lent}");
    let before = sandbox.balloon().unwrap().statistics;
    until(seconds(15), "the guest tells how it is doing", || {
        sandbox.balloon().unwrap().statistics.reports > before.reports + 1
    });
    let statistics = sandbox.balloon().unwrap().statistics;
    // A balloon that yields when memory is short counts as memory that is used.
    assert!(statistics.free.unwrap() + balloon < statistics.total.unwrap(), "{statistics:?}");

    sandbox.set_balloon(0).unwrap();
    until(seconds(15), "the balloon empties", || sandbox.balloon().unwrap().actual == 0);
    input.write_all(b"go\n").unwrap();
    let mut line = [0; 6];
    output.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"again\n");
    assert!(resident() > lent + filled / 2, "{lent} bytes, and then {}", resident());
    assert!(sandbox.set_balloon(u64::from(sizes.memory) * MIB).is_err(), "more than the guest has");
    input.write_all(b"end\n").unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(7));
    assert!(sandbox.balloon().is_err(), "it has ended");
}

/// A line of `/proc/PID/status`, in bytes.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn reports_free_memory(kernel: &Kernel) {
    let script = "dd if=/dev/zero of=/dev/null bs=120M count=1 2>/dev/null; echo done; sleep 1000";
    let options = ["--kernel", &kernel.name, "--balloon", "0,reporting", "--memory", "256M"];
    let mut started = Amphi::sh(Isolation::Vm, script).with(options).start();
    started.wait_for_output("done");
    let pid = started.id();
    let peak = status(pid, "VmHWM");
    assert!(peak > 120 * MIB, "{peak}");
    until(seconds(15), "the process's memory comes back", || status(pid, "VmRSS") + 80 * MIB < peak);
}

/// What `script` writes in a guest with 200 MiB once less than `free` KiB of them are free.
fn inflated(kernel: &Kernel, balloon: &str, free: u32, script: &str) -> String {
    let now = "$(sed -n 's/MemFree: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)";
    let wait = format!("until [ {now} -lt {free} ]; do sleep 0.1; done");
    let options = ["--kernel", &kernel.name, "--balloon", balloon, "--memory", "200M"];
    let amphi = Amphi::sh(Isolation::Vm, &format!("{wait}; {script}")).with(options);
    amphi.finish().expect(0).text()
}

fn balloon_with_kernel_6_1() {
    assert_eq!(inflated(&installed::stock("6.1."), "64M", 110_000, "echo less"), "less");
}

fn yields_before_a_process_dies(kernel: &Kernel) {
    let take = "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null && echo enough; true";
    assert_eq!(inflated(kernel, "100M", 90_000, take), "enough");
    assert_eq!(inflated(kernel, "100M,no-deflate-on-oom", 90_000, take), "");
}

fn settings_that_are_none() {
    for setting in ["", "x", "64M,grow", "1"] {
        Amphi::run(Isolation::Vm, ["true"]).with(["--balloon", setting]).finish().expect_error(125, &["--balloon"]);
    }
    let larger = ["--memory", "128M", "--balloon", "128M"];
    Amphi::run(Isolation::Vm, ["true"]).with(larger).finish().expect_error(125, &["--balloon", "128 MiB"]);
    Amphi::run(Isolation::Container, ["true"]).with(["--balloon", "0"]).finish().expect_error(125, &["--balloon"]);
}
