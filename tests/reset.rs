//! The reset button: the same microVM begins anew, and runs its workload from the start.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;

use amphi::isolation::Stdio;
use amphi::isolation::vm::{VmIsolation, VmSandbox};
use amphi::spec::{DiskEngine, DiskSpec, VmDevices};
use amphi::{ExitStatus, Image, RunSpec, Sandbox};

use crate::harness::installed::{self, Kernel};
use crate::harness::{Case, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![vm("a_reset_guest_begins_anew", || a_reset_guest_begins_anew(&installed::own(), 1))]
}

/// A guest that runs `script`, and its output.
fn start(kernel: &Kernel, vcpus: u16, script: &str, devices: VmDevices) -> (VmSandbox, BufReader<PipeReader>) {
    let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
    let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(256).vcpus(vcpus);
    let spec = spec.kernel(&kernel.name).devices(devices).build().unwrap();
    let (output, writer) = std::io::pipe().unwrap();
    let stdio = Stdio { stdout: OwnedFd::from(writer), ..Stdio::null().unwrap() };
    let sandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
    assert!(sandbox.reset().is_err(), "it does not run");
    sandbox.start().unwrap();
    (sandbox, BufReader::new(output))
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A disk with room for a number, which tells one guest from the next.
fn disk(folder: &tempfile::TempDir) -> VmDevices {
    let path = folder.path().join("disk");
    fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let disk = DiskSpec { engine: DiskEngine::IoUring, ..DiskSpec::new(&path) };
    VmDevices { disks: vec![disk], ..VmDevices::default() }
}

/// Counts on the disk `/dev/vda` how many guests there have been, and says so.
const COUNT: &str = "n=$(dd if=/dev/vda bs=1 count=1 2>/dev/null | tr '\\0' 0); n=$((n + 1)); \
    echo -n $n | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; echo guest $n;";

fn a_reset_guest_begins_anew(kernel: &Kernel, vcpus: u16) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{COUNT} ls /tmp; touch /tmp/old; [ $n = 4 ] && exit 42; sleep 1000");
    let (sandbox, mut output) = start(kernel, vcpus, &script, disk(&folder));
    assert_eq!(line(&mut output), "guest 1");
    for n in 2..=4 {
        sandbox.reset().unwrap();
        assert_eq!(line(&mut output), format!("guest {n}"));
    }
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(42));
    assert_eq!(line(&mut output), "", "what the first one had in memory is gone");
    assert!(sandbox.reset().is_err(), "it has ended");
}
