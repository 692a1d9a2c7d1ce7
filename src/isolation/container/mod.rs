//! A Linux container on the host's kernel.
//!
//! A run goes so: [`create`](Isolation::create) looks everything up; [`start`](super::Sandbox::start) makes the
//! cgroup and clones one child into new namespaces (`launch`); the child builds its tree of mounts and becomes
//! PID 1 (`child`, `mounts`, `init`) with the workload as its only child, which is stripped of what it does not need
//! (`capabilities`, `seccomp`) and executed. Nothing is executed in between, and nothing on the host but
//! the cgroup outlives the child: all mounts lie in its mount namespace, all written files in a tmpfs there, or
//! where the run says so in a folder of its instance (`kept`).
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
mod kept;
mod kept_layer;
mod last_run;
mod launch;
mod layer_mounts;
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
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

pub use error::ContainerError;
pub use kept_layer::{KeptLayer, TreeReceiver, Visit};

use self::kept::KeptFolder;
use self::launch::Config;
use self::process::{Process, open_root};
use self::sandbox::Container;
use self::volumes::Volume;
use super::{Isolation, IsolationError, IsolationKind, Sandbox, Stdio};
use crate::host::cgroup::Version;
use crate::image::Rootfs;
use crate::image::store::LayerStack;
use crate::spec::{MemorySize, RunSpec, short_id};

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
        unsupported().map_or(Ok(()), |error| Err(error.into()))
    }

    fn create(&self, spec: &RunSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, IsolationError> {
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
        let cgroups = cgroup::find(&spec.resources)?;
        let id = short_id();
        let hostname = spec.hostname.clone().into_bytes();
        let Root { trees, layered, path, view, kept } = match &spec.rootfs {
            Rootfs::Directory(directory) => Root::of_directory(directory)?,
            Rootfs::Layers(stack) => Root::of_layers(stack)?,
            Rootfs::Disk(_) => return Err(ContainerError::DiskImage.into()),
        };
        let writable = KeptFolder::open(&spec.writable)?;
        if trees.is_empty() && writable.as_ref().is_some_and(KeptFolder::has_limit) {
            return Err(ContainerError::LimitOfKept.into());
        }
        let process = Process::prepare(&spec.process, view.as_fd(), &hostname)?;
        let config = Config {
            id,
            hostname,
            process,
            trees,
            layered,
            path,
            _kept: kept,
            kept: writable,
            scratch_size: scratch_size(spec).map(|size| size_text(size.bytes())),
            read_only: spec.read_only,
            unified_cgroup: cgroups.version() == Version::V2,
            cgroups,
            resources: spec.resources,
            volumes: spec.volumes.iter().map(Volume::prepare).collect::<Result<_, _>>()?,
            terminal: spec.process.terminal,
            stdin: spec.process.stdin,
        };
        Ok(Box::new(Container::new(config, stdio)))
    }
}

/// What of the host keeps it from having containers, where that can be seen without making one.
fn unsupported() -> Option<ContainerError> {
    let problem = |problem: &str| Some(ContainerError::Unsupported(problem.to_owned()));
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        match fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces")) {
            Ok(limit) if limit.trim() != "0" => {}
            Ok(_) => {
                return problem(&format!("/proc/sys/user/max_{kind}_namespaces is 0; set it to 10000, for instance"));
            }
            Err(_) => return problem(&format!("the kernel has no {kind} namespaces")),
        }
    }
    if !rustix::process::geteuid().is_root() {
        let switch = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
        if switch.is_ok_and(|value| value.trim() == "0") {
            return problem("kernel.unprivileged_userns_clone is 0; set it to 1 or run amphi as root");
        }
    }
    // Missing from the list it may still be a module that is loaded on demand, if it is not switched off.
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.split_ascii_whitespace().any(|name| name == "overlay") && !Path::new("/proc/modules").exists() {
        return problem("the kernel has no overlayfs");
    }
    None
}

/// The image, opened.
struct Root {
    trees: Vec<OwnedFd>,
    layered: bool,
    path: CString,
    /// Where users are looked up.
    view: OwnedFd,
    /// Keeps an unpacked image from being removed.
    kept: Option<fs::File>,
}

impl Root {
    fn of_directory(directory: &Path) -> Result<Self, ContainerError> {
        let view = open_root(directory)?;
        let failed = |source| ContainerError::Rootfs { path: directory.to_owned(), source };
        let absolute = fs::canonicalize(directory).map_err(failed)?;
        // Needs privilege; the child can do without, with less.
        let tree = open_tree(CWD, &absolute, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let tree = tree.ok().map(launch::above_standard).transpose();
        let trees = tree.map_err(ContainerError::kernel("open the image"))?.into_iter().collect();
        Ok(Self { trees, layered: false, path: c_path(&absolute)?, view, kept: None })
    }

    fn of_layers(stack: &LayerStack) -> Result<Self, ContainerError> {
        let trees = match layer_mounts::mount(stack) {
            Ok(trees) => trees,
            Err(error) => {
                // Without privilege, or without EROFS in the kernel.
                log::info!("the image's layers cannot be mounted ({error}): they are unpacked");
                let unpacked = stack.unpacked().map_err(|source| ContainerError::Unpack(Box::new(source)));
                let (tree, kept) = unpacked?;
                return Ok(Self { kept: Some(kept), ..Self::of_directory(&tree)? });
            }
        };
        let path = stack.files.last().map_or(Path::new("/"), |layer| &layer.path);
        let failed = |source| ContainerError::Rootfs { path: path.to_owned(), source };
        let (view, trees) = match &trees[..] {
            [single] => (single.try_clone().map_err(failed)?, trees),
            _ => {
                let all: Vec<_> = trees.iter().map(AsFd::as_fd).collect();
                let (view, copies) = layers::view(&all).map_err(|failure| failed(failure.errno.into()))?;
                let above = copies.into_iter().map(launch::above_standard).collect::<Result<_, _>>();
                (view, above.map_err(ContainerError::kernel("open the image"))?)
            }
        };
        Ok(Self { trees, layered: true, path: c_path(path)?, view, kept: None })
    }
}

fn c_path(path: &Path) -> Result<CString, ContainerError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ContainerError::NulByte("the path of the root directory"))
}

/// The size of a writable layer in memory: that counts as the container's own.
fn scratch_size(spec: &RunSpec) -> Option<MemorySize> {
    spec.writable.limit.into_iter().chain(spec.resources.memory).min()
}

/// Decimal digits, which tmpfs takes for bytes.
fn size_text(bytes: u64) -> CString {
    // Digits have no NUL in them, so the default is never taken.
    CString::new(bytes.to_string()).unwrap_or_default()
}
