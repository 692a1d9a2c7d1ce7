//! From a run specification to what a machine needs, before anything is made: kernel, initramfs, disks, command line.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use amphi_guest_init::{InitSpec, Service};

use super::disks::Disk;
use super::error::VmError;
use super::network;
use super::pmem::PmemFile;
use super::volumes::{self, OpenVolume};
use crate::image::initramfs::Initramfs;
use crate::image::tree::Tree;
use crate::image::{GuestRoot, Rootfs};
use crate::isolation::writable_disk;
use crate::kernel::Kernel;
use crate::spec::{MemorySize, Network, RunSpec, VmDevices};

/// The vCPUs of a run that names no number.
const DEFAULT_VCPUS: u32 = 1;
/// The guest RAM of a run that names no size.
const DEFAULT_MEMORY: MemorySize = MemorySize::from_mib(256);
/// APIC IDs have eight bits in the MADT's plain entries, and the last one is the broadcast.
pub(super) const MAX_VCPUS: u8 = 254;
const PAGE_MASK: u64 = 0xfff;

/// What every guest's kernel is told. Each argument's reason:
/// - `quiet`: printing is slow and nobody reads it; `loglevel=1` keeps what a panic says.
/// - `panic=-1 reboot=t`: a panic ends the machine at once, by a triple fault, which needs no device.
/// - `random.trust_cpu=on`: the pool is ready before PID 1 asks.
/// - `cryptomgr.notests no_timer_check tsc=reliable rcupdate.rcu_expedited=1`: no self-tests, no waits.
/// - `noreplace-smp`: with one processor the kernel would take the LOCK prefix out of some 8,000 of its instructions,
///   each through a mapping of its own, and that takes longer than all the rest of a small kernel's boot.
/// - `pci=off i8042.noaux 8250.nr_uarts=0`: no probing for what is not there, or not used.
/// - `earlycon=... keep_bootcon`: no console is set up, but what a panic says still reaches COM1, and the user.
const COMMAND_LINE: &str = "quiet loglevel=1 panic=-1 reboot=t rdinit=/init random.trust_cpu=on cryptomgr.notests \
    no_timer_check tsc=reliable rcupdate.rcu_expedited=1 noreplace-smp pci=off 8250.nr_uarts=0 \
    earlycon=uart8250,io,0x3f8 keep_bootcon";

/// Modules that a guest gets if its kernel has them: a panic is reported as such by this one. Kernels that were installed before
/// amphi took it along have it not.
const OPTIONAL_MODULES: [&str; 1] = ["pvpanic_mmio"];

/// What a machine for one workload needs.
pub(super) struct Plan {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: Initramfs,
    pub(super) command_line: String,
    pub(super) vcpus: u8,
    pub(super) memory: u64,
    pub(super) disks: Vec<Disk>,
    pub(super) volumes: Vec<OpenVolume>,
    pub(super) pmem: Vec<PmemFile>,
    pub(super) network: Network,
    pub(super) devices: VmDevices,
    pub(super) stdin: bool,
}

impl Plan {
    pub(super) fn new(spec: &RunSpec) -> Result<Self, VmError> {
        let vcpus = vcpus(spec)?;
        let memory = spec.resources.memory.unwrap_or(DEFAULT_MEMORY).bytes() & !PAGE_MASK;
        // What the user has named comes first: a mistake in it is told even where there is no kernel yet.
        let volumes = volumes::open(&spec.volumes)?;
        let disks: Vec<_> = spec.vm.devices.disks.iter().map(Disk::open).collect::<Result<_, _>>()?;
        let pmem = spec.vm.devices.pmem.iter().map(PmemFile::open).collect::<Result<_, _>>()?;
        let kernel = Kernel::resolve(spec.vm.kernel.as_deref())?;
        let root = GuestRoot::plan(&spec.rootfs, memory, spec.read_only).map_err(|e| VmError::Root(Box::new(e)))?;
        let writable =
            spec.writable.folder.as_ref().map(|folder| writable_disk::open(folder, spec.writable.limit)).transpose()?;
        let mut wanted = wanted_modules(Some(&root), writable.is_some());
        if spec.writable.limit.is_some() {
            wanted.push("overlay");
        }
        if !spec.network.is_none() {
            wanted.push(network::MODULE);
        }
        if !spec.volumes.is_empty() {
            wanted.push(volumes::MODULE);
        }
        wanted.extend(spec.vm.devices.modules());
        let modules = kernel.modules_for(&wanted, &OPTIONAL_MODULES)?;
        let mut init = init_spec(spec, &root, &volumes);
        let (tree, root_disks) = root_disks(root, spec.read_only);
        // Behind all others, so that these have the names that they have without it.
        let number = root_disks.len() + spec.vm.devices.disks.len();
        init.writable = writable.is_some().then(|| disk_name(number).into_bytes());
        let initramfs = Initramfs::new(&init, &modules, tree).map_err(|e| VmError::Root(Box::new(e)))?;
        let mut command_line = COMMAND_LINE.to_owned();
        for argument in spec.vm.devices.kernel_arguments().iter().chain(&spec.vm.kernel_args) {
            command_line.push(' ');
            command_line.push_str(argument);
        }
        let disks = root_disks.into_iter().chain(disks).chain(writable.map(|file| Disk::root(file, false))).collect();
        let (network, devices, stdin) = (spec.network.clone(), spec.vm.devices.clone(), spec.process.stdin);
        Ok(Self {
            kernel: kernel.image,
            initramfs,
            command_line,
            vcpus,
            memory,
            disks,
            pmem,
            volumes,
            network,
            devices,
            stdin,
        })
    }
}

impl Plan {
    /// A machine in which guest init does `service` with the writable disk in `folder` and, where that is needed, the root above
    /// which it is.
    pub(super) fn for_service(
        kernel: Option<&Path>,
        rootfs: Option<&Rootfs>,
        folder: &Path,
        service: Service,
    ) -> Result<Self, VmError> {
        let memory = DEFAULT_MEMORY.bytes();
        let kernel = Kernel::resolve(kernel)?;
        let root = rootfs.map(|rootfs| GuestRoot::plan(rootfs, memory, false)).transpose();
        let root = root.map_err(|e| VmError::Root(Box::new(e)))?;
        let writable = writable_disk::open(folder, None)?;
        let modules = kernel.modules_for(&wanted_modules(root.as_ref(), true), &OPTIONAL_MODULES)?;
        let mut init = InitSpec { stdin: matches!(service, Service::Unpack { .. }), ..InitSpec::default() };
        init.service = Some(service);
        let (tree, mut disks) = root.map_or_else(Default::default, |root| {
            init.root = root.in_guest(disk_name);
            root_disks(root, false)
        });
        init.writable = Some(disk_name(disks.len()).into_bytes());
        disks.push(Disk::root(writable, false));
        let initramfs = Initramfs::new(&init, &modules, tree).map_err(|e| VmError::Root(Box::new(e)))?;
        Ok(Self {
            kernel: kernel.image,
            initramfs,
            command_line: COMMAND_LINE.to_owned(),
            vcpus: 1,
            memory,
            disks,
            volumes: Vec::new(),
            pmem: Vec::new(),
            network: Network::None,
            devices: VmDevices::default(),
            stdin: init.stdin,
        })
    }
}

/// The modules that a guest's kernel needs for what every guest has, for its root, and for a writable layer on a disk.
fn wanted_modules(root: Option<&GuestRoot>, kept: bool) -> Vec<&'static str> {
    let mut wanted = vec!["virtio_mmio", "virtio_console", "virtio_rng"];
    if kept || root.is_some_and(|root| !root.is_inline()) {
        wanted.push("virtio_blk");
    }
    if kept {
        wanted.extend(["ext4", "overlay"]);
    }
    wanted.extend(root.map_or(&[][..], GuestRoot::modules));
    wanted
}

/// Takes a root apart: what travels in the initramfs, and its disks.
fn root_disks(root: GuestRoot, read_only: bool) -> (Option<Tree>, Vec<Disk>) {
    match root {
        GuestRoot::Inline(tree) => (Some(tree), Vec::new()),
        GuestRoot::Block { files, .. } => (None, files.into_iter().map(|file| Disk::root(file, true)).collect()),
        GuestRoot::Disk { file, .. } => (None, vec![Disk::root(file, read_only)]),
    }
}

fn vcpus(spec: &RunSpec) -> Result<u8, VmError> {
    let count = match spec.resources.cpus {
        None => DEFAULT_VCPUS,
        Some(limit) => limit.as_whole().ok_or_else(|| {
            VmError::Unsupported(format!(
                "--cpus {limit}: a microVM has whole vCPUs; use a whole number, or --isolation container"
            ))
        })?,
    };
    u8::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_VCPUS)
        .ok_or_else(|| VmError::Unsupported(format!("--cpus {count}: a microVM has at most {MAX_VCPUS} vCPUs")))
}

/// What the guest calls virtio disk number `index`. A machine has interrupt lines for fewer than 26.
fn disk_name(index: usize) -> String {
    format!("/dev/vd{}", char::from(b'a' + u8::try_from(index % 26).unwrap_or_default()))
}

fn init_spec(spec: &RunSpec, root: &GuestRoot, volumes: &[OpenVolume]) -> InitSpec {
    let bytes = |text: &OsStr| text.as_bytes().to_vec();
    let env = spec.process.env.iter().map(|(key, value)| {
        let mut pair = bytes(key);
        pair.push(b'=');
        pair.extend_from_slice(value.as_bytes());
        pair
    });
    let volumes =
        spec.volumes.iter().zip(volumes).enumerate().map(|(index, (volume, open))| amphi_guest_init::Volume {
            tag: volumes::tag(index).into_bytes(),
            destination: bytes(volume.destination.as_os_str()),
            directory: open.is_directory(),
            read_only: volume.read_only,
        });
    InitSpec {
        modules: Vec::new(),
        module_parameters: spec.vm.devices.module_parameters(),
        root: root.in_guest(disk_name),
        writable: None,
        memory_limit: spec.writable.limit.map_or(0, MemorySize::bytes),
        service: None,
        read_only: spec.read_only,
        hostname: spec.hostname.clone().into_bytes(),
        argv: spec.process.argv.iter().map(|argument| bytes(argument)).collect(),
        env: env.collect(),
        cwd: spec.process.cwd.clone().into_os_string().into_vec(),
        user: spec.process.user.clone().unwrap_or_default().into_bytes(),
        terminal: spec.process.terminal.map(|size| (size.rows, size.columns)),
        stdin: spec.process.stdin,
        pids: spec.resources.pids.unwrap_or(0),
        interface: network::interface(&spec.network),
        volumes: volumes.collect(),
    }
}
