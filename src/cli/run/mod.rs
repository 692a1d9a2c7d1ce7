//! `amphi run`.

mod args;
mod confinement;
mod direct;
mod environment;
mod execute;
mod footprint;
mod report;
mod signals;
mod terminal;

pub(crate) use args::RunArgs;
pub(crate) use execute::Execution;
pub(crate) use terminal::size as terminal_size;

use amphi::image::{Image, Rootfs, registry};
use amphi::instance::{Instances, NewInstance};
use amphi::isolation::Instant;
use amphi::spec::WritableLayer;
use amphi::{IsolationKind, RunSpec, host};

use self::args::IsolationChoice;
use self::report::TimelineFd;
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
    let mut spec = resolve(&args, &image)?;
    let instance = (!args.rm).then(|| {
        let id = Instances::new_id();
        if args.hostname.is_none() && args.name.is_none() {
            spec.hostname.clone_from(&id);
        }
        let new = NewInstance { id, name: args.name.clone(), image: reference, isolation: kind, spec: spec.clone() };
        Instances::open_default().create(new)
    });
    let instance = instance.transpose()?;
    if let Some(instance) = &instance {
        spec = instance.spec().clone();
    }
    let raw_mode = args.wants_raw_mode();
    Execution { kind, spec, instance, raw_mode, timeline: timeline_fd, start }.run(true)
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

fn resolve(args: &RunArgs, image: &Image) -> Result<RunSpec, CliError> {
    let mut builder = RunSpec::builder(image).stdin(args.interactive).read_only(args.read_only);
    builder = builder.network(args.network());
    let limit = args.storage_opt.map(|option| option.size);
    builder = builder.writable(WritableLayer { limit, ..WritableLayer::default() });
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
