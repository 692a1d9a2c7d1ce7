//! Guests that hang, and guests that are to learn that they are another machine now.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;

use amphi::isolation::Stdio;
use amphi::isolation::vm::VmIsolation;
use amphi::spec::VmDevices;
use amphi::{ExitStatus, Image, RunSpec, Sandbox};

use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, Isolation, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    let stock = || installed::stock("6.12.");
    vec![
        vm("a_guest_that_hangs_is_ended", || a_guest_that_hangs_is_ended(&installed::own())),
        vm("a_guest_that_hangs_is_ended_on_a_stock_kernel", move || a_guest_that_hangs_is_ended(&stock())),
        vm("a_guest_that_hangs_says_where", || a_guest_that_hangs_says_where(&installed::own())),
        vm("a_guest_that_hangs_says_where_on_a_stock_kernel", move || a_guest_that_hangs_says_where(&stock())),
        vm("a_watchdog_is_fed_by_the_kernel", a_watchdog_is_fed_by_the_kernel),
        vm("a_new_generation_reseeds", || a_new_generation_reseeds(&installed::own())),
        vm("a_new_generation_reseeds_a_stock_kernel", move || a_new_generation_reseeds(&stock())),
        vm("watchdog_settings_that_are_none", settings_that_are_none),
    ]
}

/// Has a program promise to feed the watchdog every two seconds, and not keep that.
const HANG: &str = "watchdog -F -T 2 -t 1000 /dev/watchdog";

fn a_guest_that_hangs_is_ended(kernel: &Kernel) {
    let amphi = Amphi::sh(Isolation::Vm, HANG).with(["--watchdog", "25", "--kernel", &kernel.name]);
    amphi.finish().expect_error(125, &["ended before the workload", "did not feed its watchdog", "--watchdog"]);
}

fn a_guest_that_hangs_says_where(kernel: &Kernel) {
    let amphi = Amphi::sh(Isolation::Vm, HANG).with(["--watchdog", "25,action=panic", "--kernel", &kernel.name]);
    let finished = amphi.with(["--cpus", "2"]).finish().expect(125);
    for word in ["did not feed its watchdog", "Kernel panic", "NMI"] {
        assert!(finished.errors().contains(word), "the error does not say {word:?} {finished}");
    }
}

fn a_watchdog_is_fed_by_the_kernel() {
    let sys = "/sys/class/watchdog/watchdog0";
    let script = format!("cat {sys}/identity {sys}/timeout; sleep 20; [ $(cat {sys}/timeleft) -gt 0 ] && echo alive");
    Amphi::sh(Isolation::Vm, &script).with(["--watchdog", "15"]).finish().expect_text("wdat_wdt\n15\nalive");
    Amphi::sh(Isolation::Vm, &format!("ls {sys}")).finish().expect(1);
}

fn a_new_generation_reseeds(kernel: &Kernel) {
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let reseeds = "dmesg | grep -c 'crng reseeded due to virtual machine fork'";
    let script = format!(
        "echo ready $({reseeds}); \
         for n in 1 2; do until [ $({reseeds}) = $n ]; do sleep 0.1; done; echo reseeded $n; done"
    );
    let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", &script]).kernel(&kernel.name);
    let spec = spec.devices(VmDevices { generation_id: true, ..VmDevices::default() }).build().unwrap();
    let (output, writer) = std::io::pipe().unwrap();
    let stdio = Stdio { stdout: OwnedFd::from(writer), ..Stdio::null().unwrap() };
    let sandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
    assert!(sandbox.new_generation().is_err(), "it does not run");
    sandbox.start().unwrap();
    let mut lines = BufReader::new(output).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "ready 0");
    for n in 1..=2 {
        // As whoever restores a machine would do it.
        sandbox.pause().unwrap();
        sandbox.new_generation().unwrap();
        sandbox.resume().unwrap();
        assert_eq!(lines.next().unwrap(), format!("reseeded {n}"));
    }
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0));
}

fn settings_that_are_none() {
    for setting in ["", "0", "x", "5,action=reset"] {
        Amphi::run(Isolation::Vm, ["true"]).with(["--watchdog", setting]).finish().expect_error(125, &["--watchdog"]);
    }
    Amphi::run(Isolation::Container, ["true"]).with(["--watchdog", "5"]).finish().expect_error(125, &["--watchdog"]);
}
