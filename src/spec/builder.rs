//! Builds a [`RunSpec`] and checks the rules that involve more than one setting.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{
    CpuLimit, DiskSpec, MemorySize, Network, ParseDiskError, ParseNetworkError, Process, Resources, RunSpec, VmDevices,
    VmOptions, Volume, VolumeError, WindowSize, WritableLayer, short_id,
};
use crate::image::{Image, Rootfs};

/// The longest host name that Linux takes (`HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

/// Why settings do not make a [`RunSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the caller nor the image names a command, or the command is an empty text.
    #[error("no command to run: the image names none, so name one after IMAGE")]
    NoCommand,
    /// A text holds a NUL byte, which no system call can pass on.
    #[error("{what} {text:?} holds a NUL byte")]
    Nul {
        /// What the text is, such as `argument`.
        what: &'static str,
        /// The text.
        text: OsString,
    },
    /// An environment variable's name is empty or has an `=` in it.
    #[error("--env {0:?} is not a name for an environment variable: it may be neither empty nor hold an equals sign")]
    EnvironmentName(OsString),
    /// The working directory is relative.
    #[error("--workdir {path} is not absolute", path = .0.display())]
    RelativeCwd(PathBuf),
    /// The user is an empty text, or one side of its colon is.
    #[error("--user {0:?} is not a user: write NAME or UID, and after a colon GROUP or GID")]
    User(String),
    /// Not a host name that Linux and other programs can live with.
    #[error(
        "--hostname {0:?} is not a host name: use at most 64 letters, digits, dots and hyphens, beginning and ending with a letter or digit"
    )]
    Hostname(String),
    /// More memory than there is.
    #[error("--memory {wanted} is more than this host has ({available})")]
    Memory {
        /// What was asked for.
        wanted: MemorySize,
        /// What the host has in all.
        available: MemorySize,
    },
    /// A limit of no processes at all.
    #[error("--pids 0 leaves no room for the command itself: use a number above 0")]
    NoProcesses,
    /// A limit for the layer that a disk does not have.
    #[error("--storage-opt: a disk is written to itself, and has the size that it has: leave the option out")]
    LimitOfDisk,
    /// A kept layer above a disk.
    #[error("the disk {path} is written to itself, so that there is no layer to keep", path = .0.display())]
    LayerOfDisk(PathBuf),
    /// A network whose settings make no sense together.
    #[error("--network: {0}")]
    Network(ParseNetworkError),
    /// A volume whose paths make no sense.
    #[error("--volume {path}: {problem}", path = path.display())]
    Volume {
        /// The source.
        path: PathBuf,
        /// What is wrong.
        problem: VolumeError,
    },
    /// Two volumes at one path.
    #[error("--volume: two of them are at {path}; only one can be there", path = .0.display())]
    SameDestination(PathBuf),
    /// A kernel argument that would break out of the command line.
    #[error("--kernel-arg {0:?} holds a line break or a NUL byte, or is empty")]
    KernelArgument(String),
    /// A disk whose settings make no sense.
    #[error("--disk {path}: {source}", path = path.display())]
    Disk {
        /// The disk's file.
        path: PathBuf,
        /// What is wrong.
        source: ParseDiskError,
    },
}

/// Settings that become a [`RunSpec`]; made by [`RunSpec::builder`].
#[derive(Debug, Clone)]
pub struct RunSpecBuilder {
    spec: RunSpec,
    /// What comes before the command.
    entrypoint: Vec<OsString>,
    host_memory: Option<u64>,
}

impl RunSpec {
    /// The settings to run `image` as its author meant it: its default command as root in `/`, without limits,
    /// without input, with a private writable layer.
    #[must_use]
    pub fn builder(image: &Image) -> RunSpecBuilder {
        let command = image.default_command.iter().map(OsString::from).collect();
        let mut builder = RunSpecBuilder::new(image.rootfs.clone(), command);
        builder.entrypoint = image.entrypoint.iter().map(OsString::from).collect();
        for (name, value) in &image.env {
            builder = builder.env(name, value);
        }
        builder.spec.process.cwd = image.working_dir.as_ref().map_or_else(|| "/".into(), PathBuf::from);
        builder.spec.process.user.clone_from(&image.user);
        builder
    }
}

impl RunSpecBuilder {
    fn new(rootfs: Rootfs, argv: Vec<OsString>) -> Self {
        let process = Process { argv, env: Vec::new(), cwd: "/".into(), user: None, terminal: None, stdin: false };
        let spec = RunSpec {
            rootfs,
            process,
            hostname: short_id(),
            read_only: false,
            writable: WritableLayer::default(),
            resources: Resources::default(),
            network: Network::None,
            volumes: Vec::new(),
            vm: VmOptions::default(),
        };
        Self { spec, entrypoint: Vec::new(), host_memory: host_memory() }
    }

    /// The command and its arguments, instead of the image's own. An entry point of the image stays in front.
    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, argv: impl IntoIterator<Item = T>) -> Self {
        self.spec.process.argv = argv.into_iter().map(Into::into).collect();
        self
    }

    /// The entry point, instead of the image's own; the image's command goes with it.
    #[must_use]
    pub fn entrypoint<T: Into<OsString>>(mut self, entrypoint: impl IntoIterator<Item = T>) -> Self {
        self.entrypoint = entrypoint.into_iter().map(Into::into).collect();
        self.spec.process.argv.clear();
        self
    }

    /// Sets an environment variable; the last value set for a name counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.spec.process.env.retain(|(other, _)| *other != name);
        self.spec.process.env.push((name, value));
        self
    }

    /// The working directory, absolute; made if the image has none of that name.
    #[must_use]
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.spec.process.cwd = cwd.into();
        self
    }

    /// The user: `NAME|UID[:GROUP|GID]`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.spec.process.user = Some(user.into());
        self
    }

    /// Gives the process a pseudo-terminal of that size.
    #[must_use]
    pub const fn terminal(mut self, size: WindowSize) -> Self {
        self.spec.process.terminal = Some(size);
        self
    }

    /// Whether standard input is connected.
    #[must_use]
    pub const fn stdin(mut self, connected: bool) -> Self {
        self.spec.process.stdin = connected;
        self
    }

    /// The host name inside; by default twelve random hexadecimal digits.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.spec.hostname = name.into();
        self
    }

    /// Whether `/` refuses writes.
    #[must_use]
    pub const fn read_only(mut self, read_only: bool) -> Self {
        self.spec.read_only = read_only;
        self
    }

    /// Where writes to `/` go; by default to memory, and they are gone with the run.
    #[must_use]
    pub fn writable(mut self, layer: WritableLayer) -> Self {
        self.spec.writable = layer;
        self
    }

    /// So many whole CPUs.
    ///
    /// # Panics
    /// Where `cpus` is 0.
    #[must_use]
    pub const fn vcpus(self, cpus: u16) -> Self {
        self.cpus(CpuLimit::whole(cpus))
    }

    /// The CPU limit. A microVM takes whole CPUs only, which it checks when it is created.
    #[must_use]
    pub const fn cpus(mut self, limit: CpuLimit) -> Self {
        self.spec.resources.cpus = Some(limit);
        self
    }

    /// The memory: a microVM's RAM, a container's limit.
    #[must_use]
    pub const fn memory(mut self, size: MemorySize) -> Self {
        self.spec.resources.memory = Some(size);
        self
    }

    /// The memory in mebibytes.
    #[must_use]
    pub const fn memory_mib(self, mib: u32) -> Self {
        self.memory(MemorySize::from_mib(mib))
    }

    /// The most processes and threads that the workload may have.
    #[must_use]
    pub const fn pids(mut self, limit: u32) -> Self {
        self.spec.resources.pids = Some(limit);
        self
    }

    /// The network; none by default.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.spec.network = network;
        self
    }

    /// Adds a directory or file of the host.
    #[must_use]
    pub fn volume(mut self, volume: Volume) -> Self {
        self.spec.volumes.push(volume);
        self
    }

    /// The guest kernel: a file, or the name of an installed one. MicroVMs only.
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<PathBuf>) -> Self {
        self.spec.vm.kernel = Some(kernel.into());
        self
    }

    /// Adds an argument at the end of the guest kernel's command line. MicroVMs only.
    #[must_use]
    pub fn kernel_arg(mut self, argument: impl Into<String>) -> Self {
        self.spec.vm.kernel_args.push(argument.into());
        self
    }

    /// Adds a disk after those there are. MicroVMs only.
    #[must_use]
    pub fn disk(mut self, disk: DiskSpec) -> Self {
        self.spec.vm.devices.disks.push(disk);
        self
    }

    /// Devices beyond those that every microVM has, instead of those named before. MicroVMs only.
    #[must_use]
    pub fn devices(mut self, devices: VmDevices) -> Self {
        self.spec.vm.devices = devices;
        self
    }

    /// The checked specification.
    ///
    /// # Errors
    /// The first setting that makes no sense, or not together with the others or with this host.
    pub fn build(mut self) -> Result<RunSpec, SpecError> {
        self.spec.process.argv.splice(0..0, self.entrypoint);
        check_process(&self.spec.process)?;
        if !is_hostname(&self.spec.hostname) {
            return Err(SpecError::Hostname(self.spec.hostname));
        }
        if let Some(wanted) = self.spec.resources.memory {
            check_memory(wanted, self.host_memory)?;
        }
        if self.spec.resources.pids == Some(0) {
            return Err(SpecError::NoProcesses);
        }
        check_writable(&self.spec.rootfs, &self.spec.writable)?;
        check_network(&self.spec.network)?;
        check_volumes(&mut self.spec.volumes)?;
        for argument in &self.spec.vm.kernel_args {
            check_kernel_argument(argument)?;
        }
        self.spec.vm.devices.check()?;
        Ok(self.spec)
    }
}

fn check_process(process: &Process) -> Result<(), SpecError> {
    if process.argv.first().is_none_or(|command| command.is_empty()) {
        return Err(SpecError::NoCommand);
    }
    let no_nul = |what, text: &OsStr| match text.as_bytes().contains(&0) {
        true => Err(SpecError::Nul { what, text: text.to_owned() }),
        false => Ok(()),
    };
    process.argv.iter().try_for_each(|argument| no_nul("argument", argument))?;
    for (name, value) in &process.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(SpecError::EnvironmentName(name.clone()));
        }
        no_nul("environment variable", name)?;
        no_nul("environment value", value)?;
    }
    no_nul("working directory", process.cwd.as_os_str())?;
    if !process.cwd.is_absolute() {
        return Err(SpecError::RelativeCwd(process.cwd.clone()));
    }
    match &process.user {
        Some(user) if user.contains('\0') || user.split(':').count() > 2 || user.split(':').any(str::is_empty) => {
            Err(SpecError::User(user.clone()))
        }
        _ => Ok(()),
    }
}

/// A disk has no layer above it.
fn check_writable(rootfs: &Rootfs, writable: &WritableLayer) -> Result<(), SpecError> {
    match rootfs {
        Rootfs::Disk(_) if writable.limit.is_some() => Err(SpecError::LimitOfDisk),
        Rootfs::Disk(path) if writable.folder.is_some() => Err(SpecError::LayerOfDisk(path.clone())),
        _ => Ok(()),
    }
}

/// Checks volumes, and puts those first that others lie in.
fn check_volumes(volumes: &mut [Volume]) -> Result<(), SpecError> {
    for volume in &mut *volumes {
        volume.check().map_err(|problem| SpecError::Volume { path: volume.source.clone(), problem })?;
    }
    volumes.sort_by_key(Volume::depth);
    let mut seen = HashSet::new();
    match volumes.iter().find(|volume| !seen.insert(&volume.destination)) {
        Some(volume) => Err(SpecError::SameDestination(volume.destination.clone())),
        None => Ok(()),
    }
}

fn is_hostname(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= HOSTNAME_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && !name.contains("..")
}

/// Refuses more memory than there is `available`, in bytes, where that is known.
pub(crate) fn check_memory(wanted: MemorySize, available: Option<u64>) -> Result<(), SpecError> {
    match available {
        Some(available) if wanted.bytes() > available => {
            // Whole mebibytes of a number of bytes that came from an u64 fit; a host has at least one.
            let mib = u32::try_from(available >> 20).unwrap_or(u32::MAX);
            Err(SpecError::Memory { wanted, available: MemorySize::from_mib(mib) })
        }
        _ => Ok(()),
    }
}

/// Refuses an argument that would break out of the kernel's command line.
pub(crate) fn check_kernel_argument(argument: &str) -> Result<(), SpecError> {
    if argument.is_empty() || argument.contains(['\n', '\0']) {
        return Err(SpecError::KernelArgument(argument.to_owned()));
    }
    Ok(())
}

/// Refuses a network whose settings make no sense together.
pub(crate) fn check_network(network: &Network) -> Result<(), SpecError> {
    network.check().map_err(SpecError::Network)
}

/// All memory of the host in bytes, where the kernel says it.
pub(crate) fn host_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    info.totalram.checked_mul(u64::from(info.mem_unit)).filter(|&bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> RunSpecBuilder {
        let mut builder = RunSpecBuilder::new(Rootfs::Directory("/root".into()), vec!["/bin/sh".into()]);
        builder.host_memory = Some(1 << 30);
        builder
    }

    #[test]
    fn what_is_not_said_has_harmless_defaults() {
        let spec = builder().build().unwrap();
        assert_eq!(spec.process.argv, ["/bin/sh"]);
        assert_eq!(spec.process.cwd, PathBuf::from("/"));
        assert!(!spec.read_only && !spec.process.stdin && spec.process.terminal.is_none());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let spec = builder().env("A", "1").env("B", "2").env("A", "3").build().unwrap();
        assert_eq!(spec.process.env, [("B".into(), "2".into()), ("A".into(), "3".into())]);
    }

    #[test]
    fn a_command_is_needed() {
        assert_eq!(builder().args::<OsString>([]).build().unwrap_err(), SpecError::NoCommand);
        assert_eq!(builder().args([""]).build().unwrap_err(), SpecError::NoCommand);
    }

    #[test]
    fn names_of_variables_are_checked() {
        for name in ["", "A=B", "=A"] {
            assert_eq!(builder().env(name, "x").build().unwrap_err(), SpecError::EnvironmentName(name.into()));
        }
        assert!(matches!(builder().env("A", "x\0y").build(), Err(SpecError::Nul { .. })));
        assert!(builder().env("lower.case-too", "").build().is_ok());
    }

    #[test]
    fn working_directories_are_absolute() {
        assert_eq!(builder().cwd("a/b").build().unwrap_err(), SpecError::RelativeCwd("a/b".into()));
    }

    #[test]
    fn host_names_are_checked() {
        for name in ["", "-a", "a-", "a..b", "a_b", "ä", "a b", ".a", &"a".repeat(65)] {
            assert_eq!(builder().hostname(name).build().unwrap_err(), SpecError::Hostname(name.into()), "{name}");
        }
        for name in ["a", "web-1", "a.b.example", &"a".repeat(64)] {
            assert!(builder().hostname(name).build().is_ok(), "{name}");
        }
    }

    #[test]
    fn users_are_checked() {
        for user in ["", ":", "a:", ":b", "a:b:c"] {
            assert_eq!(builder().user(user).build().unwrap_err(), SpecError::User(user.into()), "{user}");
        }
        assert!(builder().user("1000:1000").build().is_ok());
    }

    #[test]
    fn memory_beyond_the_hosts_is_refused() {
        assert!(builder().memory_mib(1024).build().is_ok());
        let error = builder().memory_mib(1025).build().unwrap_err();
        assert_eq!(error.to_string(), "--memory 1025 MiB is more than this host has (1 GiB)");
    }

    #[test]
    fn kernel_arguments_stay_on_their_line() {
        assert!(builder().kernel_arg("console=ttyS0").build().is_ok());
        for argument in ["", "a\nb"] {
            assert!(matches!(builder().kernel_arg(argument).build(), Err(SpecError::KernelArgument(_))));
        }
    }

    #[test]
    fn volumes_are_in_the_order_in_which_they_lie_in_each_other() {
        let built = builder()
            .volume(Volume::new("/1", "/a/b/"))
            .volume(Volume::new("/2", "/c"))
            .volume(Volume::new("/3", "/a"));
        let order: Vec<_> = built.clone().build().unwrap().volumes.into_iter().map(|volume| volume.source).collect();
        assert_eq!(order, [PathBuf::from("/2"), "/3".into(), "/1".into()]);
        let error = built.clone().volume(Volume::new("/4", "/a/./b")).build().unwrap_err();
        assert_eq!(error, SpecError::SameDestination("/a/b".into()));
        let error = built.volume(Volume::new("x", "/d")).build().unwrap_err();
        assert!(matches!(error, SpecError::Volume { problem: VolumeError::Named(_), .. }));
    }

    #[test]
    fn a_disk_has_no_layer_above_it() {
        let disk = || RunSpecBuilder::new(Rootfs::Disk("/d".into()), vec!["/bin/sh".into()]);
        let limit = WritableLayer { limit: Some(MemorySize::from_mib(64)), ..WritableLayer::default() };
        let kept = WritableLayer { folder: Some("/i".into()), ..WritableLayer::default() };
        assert_eq!(disk().writable(limit.clone()).build().unwrap_err(), SpecError::LimitOfDisk);
        assert_eq!(disk().writable(kept).build().unwrap_err(), SpecError::LayerOfDisk("/d".into()));
        assert_eq!(builder().writable(limit.clone()).build().unwrap().writable, limit);
    }

    #[test]
    fn a_process_limit_leaves_room_for_one() {
        assert_eq!(builder().pids(0).build().unwrap_err(), SpecError::NoProcesses);
    }
}
