//! The options of `amphi run`.

use std::ffi::OsString;
use std::path::PathBuf;

use amphi::spec::{
    Balloon, CpuLimit, DiskSpec, MemorySize, Network, PmemSpec, PortMapping, StorageOption, UserNetwork, VmDevices,
    Volume, Vsock, Watchdog,
};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::error::CliError;

/// Which isolation the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum IsolationChoice {
    /// A microVM on KVM
    #[default]
    Vm,
    /// A Linux container
    Container,
    /// A microVM where KVM is usable, else a container, with a notice
    Auto,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "amphi run [OPTIONS] IMAGE [--] [COMMAND [ARG...]]\n       \
                      amphi run [OPTIONS] --kernel FILE [--initrd FILE]",
    after_help = "IMAGE is a name such as alpine:3.20 or registry.example/app (in the store, else pulled), `oci:PATH[:NAME]`, \
                  `docker-archive:FILE`, `oci-archive:FILE`, `builtin` (carried \
                  inside amphi), `dir:PATH` (a root directory) or `disk:FILE` (a raw disk, vm only). Everything after IMAGE is the command's.\n\n\
                  The exit status is the command's own, 128 plus the number of the signal that ended it, 125 where \
                  amphi failed, 126 where the command cannot be executed, 127 where it is not found."
)]
pub(crate) struct RunArgs {
    /// How to isolate the command
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub(super) isolation: IsolationChoice,
    /// Connect standard input
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Keep nothing: what is written to the root is in memory, and gone when the command ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Name the instance; also its host name where --hostname gives no other
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// CPUs: whole ones for a microVM, a share such as 0.5 for a container too
    #[arg(long, value_name = "N")]
    pub(super) cpus: Option<CpuLimit>,
    /// Memory, such as 128M: a microVM's RAM, a container's limit
    #[arg(short, long, value_name = "SIZE")]
    pub(super) memory: Option<MemorySize>,
    /// The most processes and threads
    #[arg(long, value_name = "N", visible_alias = "pids-limit")]
    pub(super) pids: Option<u32>,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub(super) read_only: bool,
    /// Limit what the writable layer takes in, as size=SIZE
    #[arg(long, value_name = "size=SIZE")]
    pub(super) storage_opt: Option<StorageOption>,
    /// Set an environment variable; NAME alone copies the host's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<OsString>,
    /// Read environment variables from a file, one NAME[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Run this program, with the command as its arguments, instead of what the image names; empty for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<OsString>,
    /// Trust the certificates in this file as well, when the image has to be pulled; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) tls_ca: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<PathBuf>,
    /// User and group, by name or number as the image knows them
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Network: none, user (the host's connections, by passt) or tap:NAME (vm only, but for none). Options behind commas:
    /// mac=, rx-bandwidth=, rx-ops=, tx-bandwidth=, tx-ops=; with tap: also ip=ADDRESS/PREFIX, gateway=, dns=, vhost
    #[arg(long, value_name = "NETWORK[,OPTION]...", default_value = "none")]
    network: Network,
    /// Accepted for docker's sake: PID 1 reaps orphans and passes signals on in both isolations anyway
    #[arg(long)]
    init: bool,
    /// Guest kernel: a file, or the name of an installed one (vm only)
    #[arg(long, value_name = "FILE|NAME")]
    pub(super) kernel: Option<PathBuf>,
    /// Add to the guest kernel's command line; may be repeated (vm only)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(super) kernel_arg: Vec<String>,
    /// Boot this initial RAM disk as it is, without IMAGE (vm only)
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// Give the guest a file or block device as a disk; may be repeated (vm only). OPTION: ro, direct, serial=TEXT,
    /// engine=auto|io_uring|sync, bandwidth=SIZE/s, ops=N/s
    #[arg(long, value_name = "FILE[,OPTION]...", value_parser = OsStringValueParser::new().try_map(DiskSpec::try_from))]
    pub(super) disk: Vec<DiskSpec>,
    /// Give the guest a file as persistent memory, which it shares with the host's page cache; may be repeated (vm only)
    #[arg(long, value_name = "FILE[,ro]", value_parser = OsStringValueParser::new().try_map(PmemSpec::try_from))]
    pub(super) pmem: Vec<PmemSpec>,
    /// Connect sockets of the guest (vsock) with UNIX sockets at PATH and PATH_PORT (vm only)
    #[arg(long, value_name = "PATH[,cid=N]")]
    pub(super) vsock: Option<Vsock>,
    /// Give the guest a memory balloon with SIZE in it, 0 for an empty one (vm only)
    #[arg(long, value_name = "SIZE[,reporting][,no-deflate-on-oom]")]
    pub(super) balloon: Option<Balloon>,
    /// End the guest when its kernel has been silent for so long; with action=panic, have it say first where it hangs (vm only)
    #[arg(long, value_name = "SECONDS[,action=stop|panic]")]
    pub(super) watchdog: Option<Watchdog>,
    /// Give the guest an identifier that changes when it goes on as another machine (vm only)
    #[arg(long)]
    pub(super) generation_id: bool,
    #[arg(short, long, hide = true)]
    detach: bool,
    /// Show the command a directory or file of this host at DESTINATION, both absolute paths; may be repeated
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:ro]", value_parser = OsStringValueParser::new().try_map(Volume::try_from))]
    pub(super) volume: Vec<Volume>,
    /// Let a port of the host lead to one of the workload's; may be repeated (with --network user)
    #[arg(short, long, value_name = "[IP:]HOST:GUEST[/udp]")]
    publish: Vec<PortMapping>,
    /// Write the run's timeline to this descriptor, as a line of JSON
    #[arg(long, hide = true, value_name = "FD")]
    pub(super) timeline_fd: Option<i32>,
    /// What to run, then the command and its arguments
    #[arg(trailing_var_arg = true, value_name = "IMAGE [--] [COMMAND [ARG...]]")]
    operands: Vec<OsString>,
}

impl RunArgs {
    /// The image's name; `None` for a direct boot.
    pub(super) fn image(&self) -> Result<Option<&str>, CliError> {
        let text = |name: &OsString| CliError::ImageName(name.clone());
        self.operands.first().map(|name| name.to_str().ok_or_else(|| text(name))).transpose()
    }

    /// The command and its arguments; empty where the image's own is meant.
    pub(super) fn command(&self) -> &[OsString] {
        match self.operands.get(1..) {
            Some([separator, command @ ..]) if separator == "--" => command,
            command => command.unwrap_or_default(),
        }
    }

    /// The first option given that only a microVM can honour.
    pub(super) fn vm_only_option(&self) -> Option<&'static str> {
        [
            ("--kernel", self.kernel.is_some()),
            ("--kernel-arg", !self.kernel_arg.is_empty()),
            ("--initrd", self.initrd.is_some()),
            ("--disk", !self.disk.is_empty()),
            ("--pmem", !self.pmem.is_empty()),
            ("--vsock", self.vsock.is_some()),
            ("--balloon", self.balloon.is_some()),
            ("--watchdog", self.watchdog.is_some()),
            ("--generation-id", self.generation_id),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }

    /// The network, with the ports that lead into it.
    pub(super) fn network(&self) -> Network {
        match &self.network {
            Network::User(user) => Network::User(UserNetwork { ports: self.publish.clone(), ..user.clone() }),
            other => other.clone(),
        }
    }

    /// Whether only a microVM can do what is asked for.
    pub(super) fn needs_vm(&self) -> bool {
        self.vm_only_option().is_some() || !self.network.is_none()
    }

    /// The devices asked for, beyond those that every microVM has.
    pub(super) fn devices(&self) -> VmDevices {
        VmDevices {
            disks: self.disk.clone(),
            pmem: self.pmem.clone(),
            vsock: self.vsock.clone(),
            balloon: self.balloon,
            watchdog: self.watchdog,
            generation_id: self.generation_id,
        }
    }

    /// Whether keys go to the command one by one, instead of lines that the terminal has edited.
    pub(super) const fn wants_raw_mode(&self) -> bool {
        self.interactive && self.tty
    }

    /// Checks what is wrong whatever the image and the host are.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let wrong = |option, problem: &str| Err(CliError::Option { option, problem: problem.to_owned() });
        if self.detach {
            return wrong("-d", "not supported yet");
        }
        if !self.publish.is_empty() && !matches!(self.network, Network::User(_)) {
            return wrong("--publish", "ports are for a network that the host makes: use --network user as well");
        }
        if self.isolation == IsolationChoice::Container && !self.network.is_none() {
            return wrong("--network", "a container has none as yet: use --isolation vm, or leave the option out");
        }
        if let (IsolationChoice::Container, Some(option)) = (self.isolation, self.vm_only_option()) {
            return wrong(option, "a container shares the host's kernel: use --isolation vm, or leave the option out");
        }
        if self.name.as_deref().is_some_and(|name| !is_name(name)) {
            return wrong(
                "--name",
                "a name is made of letters, digits, dots and hyphens, and begins with a letter or digit",
            );
        }
        self.check_boot_source()
    }

    fn check_boot_source(&self) -> Result<(), CliError> {
        let wrong = |option, problem: &str| Err(CliError::Option { option, problem: problem.to_owned() });
        if self.operands.is_empty() {
            if self.kernel.is_none() {
                return wrong("IMAGE", "name an image (such as builtin or dir:PATH), or --kernel and --initrd");
            }
            if let Some(option) = self.workload_option() {
                return wrong(option, "without IMAGE the initial RAM disk decides what runs: name an image as well");
            }
        } else if self.initrd.is_some() {
            return wrong("--initrd", "an image brings an initial RAM disk of its own: leave out either of the two");
        }
        Ok(())
    }

    /// The first option given that needs amphi's own init in the guest.
    fn workload_option(&self) -> Option<&'static str> {
        [
            ("--env", !self.env.is_empty()),
            ("--env-file", !self.env_file.is_empty()),
            ("--entrypoint", self.entrypoint.is_some()),
            ("--workdir", self.workdir.is_some()),
            ("--user", self.user.is_some()),
            ("--hostname", self.hostname.is_some()),
            ("--pids", self.pids.is_some()),
            ("--read-only", self.read_only),
            ("--storage-opt", self.storage_opt.is_some()),
            ("--volume", !self.volume.is_empty()),
        ]
        .into_iter()
        .find_map(|(option, given)| given.then_some(option))
    }
}

fn is_name(name: &str) -> bool {
    name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Wrapper {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &[&str]) -> RunArgs {
        let matches = Wrapper::command().try_get_matches_from([&["run"], line].concat()).unwrap();
        Wrapper::from_arg_matches(&matches).unwrap().run
    }

    fn problem(line: &[&str]) -> (&'static str, String) {
        match parse(line).check() {
            Err(CliError::Option { option, problem }) => (option, problem),
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn everything_after_the_image_is_the_commands() {
        let args = parse(&["-i", "builtin", "ls", "-i", "--cpus", "--", "x"]);
        assert_eq!(args.image().unwrap(), Some("builtin"));
        assert_eq!(args.command(), ["ls", "-i", "--cpus", "--", "x"]);
        assert!(args.interactive && args.cpus.is_none());
        assert_eq!(parse(&["builtin", "--", "--", "x"]).command(), ["--", "x"]);
        assert_eq!(parse(&["builtin", "-x"]).command(), ["-x"]);
        assert!(parse(&["builtin"]).command().is_empty());
    }

    #[test]
    fn kernel_arguments_may_begin_with_a_hyphen() {
        let args = parse(&["--kernel-arg", "-x", "--kernel-arg=a=b", "builtin"]);
        assert_eq!(args.kernel_arg, ["-x", "a=b"]);
    }

    #[test]
    fn what_only_a_vm_has_is_refused_for_a_container() {
        let vm_only = [("--kernel", "k"), ("--kernel-arg", "a"), ("--disk", "d"), ("--vsock", "v"), ("--balloon", "0")];
        assert_eq!(problem(&["--isolation", "container", "--generation-id", "builtin"]).0, "--generation-id");
        for (option, value) in vm_only.into_iter().chain([("--watchdog", "5"), ("--pmem", "p")]) {
            assert_eq!(problem(&["--isolation", "container", option, value, "builtin"]).0, option);
        }
        assert!(parse(&["--isolation", "auto", "--kernel", "k", "builtin"]).check().is_ok());
    }

    #[test]
    fn what_comes_later_is_said() {
        let (named, problem) = problem(&["-d", "builtin"]);
        assert_eq!(named, "-d");
        assert!(problem.contains("not supported yet"), "{problem}");
    }

    #[test]
    fn networks_are_for_microvms_and_ports_for_networks() {
        assert!(parse(&["--network", "none", "builtin"]).check().is_ok());
        let args = parse(&["--network", "user", "-p", "80:81", "-p", "1:2/udp", "builtin"]);
        assert!(args.check().is_ok() && args.needs_vm());
        assert!(matches!(args.network(), Network::User(user) if user.ports.len() == 2));
        assert_eq!(problem(&["-p", "80:80", "builtin"]).0, "--publish");
        assert_eq!(problem(&["--network", "tap:t", "-p", "80:80", "builtin"]).0, "--publish");
        assert_eq!(problem(&["--network", "user", "--isolation", "container", "builtin"]).0, "--network");
    }

    #[test]
    fn a_direct_boot_takes_no_settings_of_a_workload() {
        assert!(parse(&["--kernel", "k", "--initrd", "i", "--memory", "64M"]).check().is_ok());
        assert_eq!(problem(&["--kernel", "k", "--env", "A=b"]).0, "--env");
        assert_eq!(problem(&["--initrd", "i"]).0, "IMAGE");
        assert_eq!(problem(&[]).0, "IMAGE");
        assert_eq!(problem(&["--initrd", "i", "builtin"]).0, "--initrd");
    }

    #[test]
    fn names_are_checked() {
        assert!(parse(&["--name", "web-1.a", "builtin"]).check().is_ok());
        for name in ["", "-a", "a/b", "a b", ".a"] {
            assert_eq!(problem(&[&format!("--name={name}"), "builtin"]).0, "--name", "{name}");
        }
    }
}
