//! A user's own kernel and initramfs, without an image: the console is standard input and output.

use std::fs;
use std::path::Path;

use crate::harness::initramfs::{self, DO};
use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, tiny_elf, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("direct_boot_power_off", || ends("poweroff", &[])),
        vm("direct_boot_reboot_by_keyboard_controller", || ends("reboot", &["reboot=k"])),
        vm("direct_boot_reboot_by_triple_fault", || ends("reboot", &["reboot=t"])),
        vm("direct_boot_reboot_by_acpi", || ends("reboot", &["reboot=a"])),
        vm("direct_boot_panic", || panics(&["panic=-1", "reboot=k"])),
        vm("direct_boot_panic_of_a_kernel_that_would_wait", || panics(&["panic=0"])),
        vm("direct_boot_reads_the_console", direct_boot_reads_the_console),
        vm("a_triple_fault_ends_the_vm", a_triple_fault_ends_the_vm),
        vm("kernels_that_are_none", kernels_that_are_none),
        vm("initrds_that_are_none", initrds_that_are_none),
        vm("direct_boot_settings_that_are_none", settings_that_are_none),
    ]
}

/// Boots `kernel` with the test's initramfs, whose PID 1 does what `action` says.
fn boot(kernel: &Kernel, action: &str, kernel_args: &[&str]) -> (tempfile::TempDir, Amphi) {
    let (folder, initrd) = initramfs::write();
    let mut amphi = Amphi::new(["run", "--kernel", &kernel.name, "--memory", "128M", "--initrd"]).with([&initrd]);
    let action = format!("{DO}={action}");
    for arg in [action.as_str(), "quiet"].iter().chain(kernel_args) {
        amphi = amphi.with(["--kernel-arg", arg]);
    }
    (folder, amphi)
}

fn ends(action: &str, kernel_args: &[&str]) {
    let (_folder, amphi) = boot(&installed::own(), action, kernel_args);
    let finished = amphi.finish().expect(0);
    assert!(finished.text().contains(&format!("init: {action} on ")), "PID 1's line is on the console {finished}");
}

fn panics(kernel_args: &[&str]) {
    let (_folder, amphi) = boot(&installed::own(), "panic", kernel_args);
    let finished = amphi.finish().expect(125);
    assert!(finished.text().contains("Kernel panic"), "the kernel's words are on the console {finished}");
    assert!(finished.errors().contains("the guest's kernel panicked"), "{finished}");
}

fn direct_boot_reads_the_console() {
    let (_folder, amphi) = boot(&installed::own(), "echo", &[]);
    let mut started = amphi.with(["-i"]).input("typed\n").start();
    started.wait_for_output("read: typed");
    started.finish().expect(0);
}

fn a_triple_fault_ends_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    // ud2 before there is an interrupt table.
    fs::write(&kernel, tiny_elf::kernel(tiny_elf::X86_64, &[0x0f, 0x0b])).unwrap();
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, [0; 512]).unwrap();
    Amphi::new(["run", "--memory", "64M", "--kernel"])
        .with([&kernel])
        .with(["--initrd"])
        .with([&initrd])
        .finish()
        .expect(0);
}

fn kernels_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let (_initrd_folder, initrd) = initramfs::write();
    let mut truncated = tiny_elf::kernel(tiny_elf::X86_64, &[0xf4; 4096]);
    truncated.truncate(2000);
    let kernels: [(&str, Option<Vec<u8>>); 7] = [
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("text", Some(b"This is no kernel.\n".repeat(100))),
        ("truncated", Some(truncated)),
        ("arm", Some(tiny_elf::kernel(tiny_elf::AARCH64, &[0; 4096]))),
        ("folder", None),
        ("pipe", None),
    ];
    fs::create_dir(folder.path().join("folder")).unwrap();
    make_pipe(&folder.path().join("pipe"));
    for (name, content) in kernels {
        let path = folder.path().join(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let amphi = Amphi::new(["run", "--kernel"]).with([&path]).with(["--initrd"]).with([&initrd]);
        amphi.finish().expect_error(125, &[path.to_str().unwrap()]);
    }
}

fn initrds_that_are_none() {
    let kernel = installed::own().name;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    make_pipe(&pipe);
    for initrd in ["/no/such/initrd", "/etc", pipe.to_str().unwrap()] {
        Amphi::new(["run", "--kernel", &kernel, "--initrd", initrd]).finish().expect_error(125, &[initrd]);
    }
}

/// A pipe without another end, where whoever opens it waits for one.
fn make_pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
}

/// A direct boot's settings are checked like those of an image.
fn settings_that_are_none() {
    let kernel = installed::own().name;
    for (option, value) in
        [("--memory", "0"), ("--memory", "4K"), ("--memory", "1000T"), ("--cpus", "0.5"), ("--cpus", "255")]
    {
        Amphi::new(["run", "--kernel", &kernel, option, value]).finish().expect_error(125, &[option]);
    }
}
