//! A Linux container on the host's kernel.
//!
//! A run goes so: [`create`](Isolation::create) looks everything up; [`start`](super::Sandbox::start) makes the
//! cgroup and clones one child into new namespaces (`launch`); the child builds its tree of mounts and becomes
//! PID 1 (`child`, `mounts`, `init`) with the workload as its only child, which is stripped of what it does not need
//! (`capabilities`, `seccomp`) and executed. Nothing is executed in between, and nothing on the host but
//! the cgroup outlives the child: all mounts lie in its mount namespace, all written files in a tmpfs there.
//!
//! Needs Linux 5.12 (`mount_setattr`). The child ends when amphi does, however that ends.

mod arguments;
mod capabilities;
mod cgroup;
mod child;
mod devices;
mod error;
mod handover;
mod init;
mod launch;
mod layers;
mod loopback;
mod mounts;
mod namespaces;
mod process;
mod relay;
mod report;
mod sandbox;
mod seccomp;
mod step;
mod syscalls;
mod terminal;
mod volumes;

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

pub use error::ContainerError;

use self::launch::Config;
use self::process::{Process, open_root};
use self::sandbox::Container;
use self::volumes::Volume;
use super::{Isolation, IsolationError, IsolationKind, Sandbox, Stdio};
use crate::host::cgroup::{Cgroups, Version};
use crate::image::Rootfs;
use crate::spec::{RunSpec, short_id};

/// Runs workloads as containers.
#[derive(Debug, Default)]
pub struct ContainerIsolation(());

impl ContainerIsolation {
    /// The container isolation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Isolation for ContainerIsolation {
    fn kind(&self) -> IsolationKind {
        IsolationKind::Container
    }

    fn probe(&self) -> Result<(), IsolationError> {
        let unsupported = |problem: &str| Err(ContainerError::Unsupported(problem.to_owned()).into());
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            match fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces")) {
                Ok(limit) if limit.trim() != "0" => {}
                Ok(_) => {
                    return unsupported(&format!(
                        "/proc/sys/user/max_{kind}_namespaces is 0; set it to 10000, for instance"
                    ));
                }
                Err(_) => return unsupported(&format!("the kernel has no {kind} namespaces")),
            }
        }
        if !rustix::process::geteuid().is_root() {
            let switch = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
            if switch.is_ok_and(|value| value.trim() == "0") {
                return unsupported("kernel.unprivileged_userns_clone is 0; set it to 1 or run amphi as root");
            }
        }
        // Missing from the list it may still be a module that is loaded on demand, if it is not switched off.
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !filesystems.split_ascii_whitespace().any(|name| name == "overlay") && !Path::new("/proc/modules").exists() {
            return unsupported("the kernel has no overlayfs");
        }
        Ok(())
    }

    fn create(&self, spec: &RunSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, IsolationError> {
        let Rootfs::Directory(directory) = &spec.rootfs else { return Err(ContainerError::DiskImage.into()) };
        if spec.vm.kernel.is_some() {
            return Err(ContainerError::VmOnly("--kernel").into());
        }
        if !spec.vm.kernel_args.is_empty() {
            return Err(ContainerError::VmOnly("--kernel-arg").into());
        }
        if let Some(option) = spec.vm.devices.first_option() {
            return Err(ContainerError::VmOnly(option).into());
        }
        if !spec.network.is_none() {
            return Err(ContainerError::Network.into());
        }
        let id = short_id();
        let hostname = spec.hostname.clone().into_bytes();
        let root = open_root(directory)?;
        let process = Process::prepare(&spec.process, root.as_fd(), &hostname)?;
        let absolute =
            fs::canonicalize(directory).map_err(|source| ContainerError::Rootfs { path: directory.clone(), source })?;
        let nul = |_| ContainerError::NulByte("the path of the root directory");
        // Needs privilege; the child can do without, with less.
        let tree = open_tree(CWD, &absolute, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let config = Config {
            id,
            hostname,
            process,
            tree: tree
                .ok()
                .map(launch::above_standard)
                .transpose()
                .map_err(ContainerError::kernel("open the image"))?,
            path: CString::new(absolute.as_os_str().as_bytes()).map_err(nul)?,
            scratch_size: spec.resources.memory.map(|size| size_text(size.bytes())),
            read_only: spec.read_only,
            unified_cgroup: Cgroups::detect().is_ok_and(|cgroups| cgroups.version() == Version::V2),
            resources: spec.resources,
            volumes: spec.volumes.iter().map(Volume::prepare).collect::<Result<_, _>>()?,
            terminal: spec.process.terminal,
            stdin: spec.process.stdin,
        };
        Ok(Box::new(Container::new(config, stdio)))
    }
}

/// Decimal digits, which tmpfs takes for bytes.
fn size_text(bytes: u64) -> CString {
    // Digits have no NUL in them, so the default is never taken.
    CString::new(bytes.to_string()).unwrap_or_default()
}
