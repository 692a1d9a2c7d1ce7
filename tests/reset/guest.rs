//! A guest that counts how often it has begun.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use amphi::isolation::Stdio;
use amphi::isolation::vm::{VmIsolation, VmSandbox};
use amphi::spec::{DiskEngine, DiskSpec, Network, VmDevices, Volume};
use amphi::{Image, RunSpec, Sandbox};
use tempfile::TempDir;

use crate::harness::installed::Kernel;
use crate::harness::rootfs;

/// By which the guest's memory is found among this process's mappings.
pub(super) const UNUSUAL_MIB: u32 = 206;

/// What a guest is made of.
pub(super) struct Guest {
    pub(super) kernel: Kernel,
    pub(super) vcpus: u16,
    pub(super) devices: VmDevices,
    pub(super) volumes: Vec<Volume>,
    pub(super) network: Network,
    pub(super) input: Option<OwnedFd>,
}

impl Guest {
    pub(super) fn new(kernel: Kernel) -> Self {
        let (devices, network) = (VmDevices::default(), Network::None);
        Self { kernel, vcpus: 2, devices, volumes: Vec::new(), network, input: None }
    }

    /// Runs `script`, and returns its output as well. That ends with the microVM.
    pub(super) fn start(self, script: &str) -> (Arc<VmSandbox>, BufReader<PipeReader>) {
        let image = Image::open(&format!("dir:{}", rootfs::busybox().display())).unwrap();
        let spec = RunSpec::builder(&image).args(["/bin/sh", "-c", script]).memory_mib(UNUSUAL_MIB).vcpus(self.vcpus);
        let spec = spec.kernel(&self.kernel.name).devices(self.devices).stdin(self.input.is_some());
        let spec = self.volumes.into_iter().fold(spec.network(self.network), |spec, volume| spec.volume(volume));
        let spec = spec.build().unwrap();
        let (output, writer) = std::io::pipe().unwrap();
        let mut stdio = Stdio { stdout: OwnedFd::from(writer), ..Stdio::null().unwrap() };
        stdio.stdin = self.input.unwrap_or(stdio.stdin);
        let sandbox = VmIsolation::new().create_vm(&spec, stdio).unwrap();
        assert!(sandbox.reset().is_err(), "it does not run");
        sandbox.start().unwrap();
        let sandbox = Arc::new(sandbox);
        let follower = Arc::clone(&sandbox);
        // Somebody follows the guest all the time, as the command does.
        thread::spawn(move || {
            if let Err(error) = follower.wait() {
                eprintln!("the microVM has ended: {error:?}");
            }
        });
        (sandbox, BufReader::new(output))
    }
}

pub(super) fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// As [`line`], of a guest that still runs.
pub(super) fn line_of_some(output: &mut impl BufRead) -> String {
    let line = line(output);
    assert!(!line.is_empty(), "the output has ended");
    line
}

/// A disk that counts guests ([`COUNT`]).
fn disk(folder: &TempDir) -> DiskSpec {
    let path = folder.path().join("disk");
    fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
    DiskSpec { engine: DiskEngine::IoUring, ..DiskSpec::new(&path) }
}

pub(super) fn with_disk(folder: &TempDir) -> VmDevices {
    VmDevices { disks: vec![disk(folder)], ..VmDevices::default() }
}

/// Counts on the disk `/dev/vda` how many guests there have been, and says so.
pub(super) const COUNT: &str = "n=$(head -c 9 /dev/vda | tr -d '\\0 '); n=$((n + 1)); \
    printf '%-9s' $n | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; echo guest $n;";
