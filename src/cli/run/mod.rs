//! `amphi run`.

mod args;
mod confinement;
mod direct;
mod environment;
mod footprint;
mod report;
mod signals;
mod terminal;

pub(crate) use args::RunArgs;

use std::sync::Arc;

use amphi::image::{Image, Rootfs, registry};
use amphi::isolation::Isolation;
use amphi::isolation::container::ContainerIsolation;
use amphi::isolation::vm::VmIsolation;
use amphi::isolation::{Instant, Sandbox, Stdio};
use amphi::{IsolationKind, RunSpec, host};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::args::IsolationChoice;
use self::report::TimelineFd;
use self::signals::Forwarder;
use crate::cli::image::ProgressBar;
use crate::error::CliError;

/// Runs a workload to its end and returns its exit status.
///
/// # Errors
/// amphi failed, or the command could not be executed.
pub(crate) fn run(args: RunArgs, start: Instant) -> Result<u8, CliError> {
    args.check()?;
    let timeline_fd = args.timeline_fd.map(TimelineFd::open).transpose()?;
    let Some(reference) = args.image()? else { return direct::run(&args, timeline_fd, start) };
    let options = registry::Options { tls_ca: args.tls_ca.clone(), ..registry::Options::default() };
    let image = Image::open_or_pull(reference, &options, &ProgressBar::new(reference))?;
    let kind = choose(&args, &image)?;
    let spec = resolve(&args, &image)?;

    let isolation = isolation(kind)?;
    isolation.probe()?;
    if kind == IsolationKind::Vm && !spec.volumes.is_empty() {
        allow_descriptors()?;
    }
    // The signals must be blocked before the isolation starts threads of its own.
    let forwarder = Forwarder::start(kind)?;
    let sandbox: Arc<dyn Sandbox> = Arc::from(isolation.create(&spec, stdio()?)?);
    let raw_mode = args.wants_raw_mode().then(terminal::RawMode::enter).transpose()?.flatten();
    forwarder.attach(&sandbox);
    let status = sandbox.start().and_then(|()| {
        forwarder.started();
        sandbox.wait()
    });
    let mut timeline = sandbox.timeline();
    forwarder.detach();
    drop(raw_mode);
    drop(sandbox);

    let code = forwarder.interrupted_by().map_or_else(|| status.map(|s| s.shell_code()), |by| Ok(by.shell_code()))?;
    timeline.cleaned = Some(Instant::now());
    if let Some(fd) = timeline_fd {
        fd.write(start, timeline)?;
    }
    Ok(code)
}

/// The isolation of that kind. A microVM's process gives up all that it does not need before the guest runs; a container's
/// workload is confined by itself.
fn isolation(kind: IsolationKind) -> Result<Box<dyn Isolation>, CliError> {
    Ok(match kind {
        IsolationKind::Container => Box::new(ContainerIsolation::new()),
        IsolationKind::Vm => {
            confinement::report_refused_calls()
                .map_err(|source| CliError::Process { action: "install a handler for SIGSYS", source })?;
            Box::new(VmIsolation::new().before_guest(confinement::confine))
        }
    })
}

/// The isolation to use: for `auto` found out by trying.
fn choose(args: &RunArgs, image: &Image) -> Result<IsolationKind, CliError> {
    match args.isolation {
        IsolationChoice::Vm => Ok(IsolationKind::Vm),
        IsolationChoice::Container => Ok(IsolationKind::Container),
        // What only a VM can do leaves no choice; if KVM is no use, the VM half says why.
        IsolationChoice::Auto if args.needs_vm() || matches!(image.rootfs, Rootfs::Disk(_)) => Ok(IsolationKind::Vm),
        IsolationChoice::Auto => {
            let status = host::kvm::probe();
            if status.is_usable() {
                return Ok(IsolationKind::Vm);
            }
            eprintln!("amphi: notice: no VM can run here ({status}), so this runs as a container");
            Ok(IsolationKind::Container)
        }
    }
}

/// What a process may have at most where nobody has said otherwise (`fs.nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// Lets this process have as many descriptors as it may: a guest uses one for each file of a volume that it knows of.
fn allow_descriptors() -> Result<(), CliError> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map(|maximum| maximum.max(MOST_DESCRIPTORS));
    // Only root may have more than its limit says.
    if setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).is_ok() {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .map_err(|source| CliError::Process { action: "raise the limit of open files", source: source.into() })
}

fn resolve(args: &RunArgs, image: &Image) -> Result<RunSpec, CliError> {
    let mut builder = RunSpec::builder(image).stdin(args.interactive).read_only(args.read_only);
    builder = builder.network(args.network());
    if let Some(entrypoint) = &args.entrypoint {
        builder = builder.entrypoint(Some(entrypoint).filter(|program| !program.is_empty()));
    }
    let command = args.command();
    if !command.is_empty() {
        builder = builder.args(command.iter().cloned());
    }
    for (name, value) in environment::collect(&args.env_file, &args.env)? {
        builder = builder.env(name, value);
    }
    if args.tty {
        builder = builder.terminal(terminal::size());
    }
    if let Some(cwd) = &args.workdir {
        builder = builder.cwd(cwd);
    }
    if let Some(user) = &args.user {
        builder = builder.user(user);
    }
    if let Some(name) = args.hostname.as_ref().or(args.name.as_ref()) {
        builder = builder.hostname(name);
    }
    if let Some(cpus) = args.cpus {
        builder = builder.cpus(cpus);
    }
    if let Some(memory) = args.memory {
        builder = builder.memory(memory);
    }
    if let Some(pids) = args.pids {
        builder = builder.pids(pids);
    }
    if let Some(kernel) = &args.kernel {
        builder = builder.kernel(kernel);
    }
    for argument in &args.kernel_arg {
        builder = builder.kernel_arg(argument);
    }
    for volume in &args.volume {
        builder = builder.volume(volume.clone());
    }
    Ok(builder.devices(args.devices()).build()?)
}

fn stdio() -> Result<Stdio, CliError> {
    Stdio::inherit().map_err(|source| CliError::Process { action: "use the standard streams", source })
}
