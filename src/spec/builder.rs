//! Builds a [`RunSpec`] of settings that have been checked.

use std::ffi::OsString;
use std::path::PathBuf;

use super::checks::{
    check_kernel_argument, check_memory, check_network, check_process, check_volumes, check_writable, host_memory,
    is_hostname,
};
use super::{
    CpuLimit, DiskSpec, MemorySize, Network, Process, Resources, RunSpec, SpecError, VmDevices, VmOptions, Volume,
    WindowSize, WritableLayer, short_id,
};
use crate::image::{Image, Rootfs};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VolumeError;

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
