//! Running a workload to its end, new or of an instance that is started again.

use std::sync::Arc;

use amphi::instance::{Instances, Running};
use amphi::isolation::container::ContainerIsolation;
use amphi::isolation::vm::VmIsolation;
use amphi::isolation::{Instant, Isolation, IsolationError, Sandbox, Stdio};
use amphi::{ExitStatus, IsolationKind, RunSpec, Timeline};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::report::TimelineFd;
use super::signals::Forwarder;
use super::{confinement, terminal};
use crate::error::CliError;

/// A workload that is ready to be run.
pub(crate) struct Execution {
    /// How.
    pub(crate) kind: IsolationKind,
    /// What.
    pub(crate) spec: RunSpec,
    /// The instance that it is, unless nothing of it stays.
    pub(crate) instance: Option<Running>,
    /// Whether keys go to it one by one.
    pub(crate) raw_mode: bool,
    /// Who wants to know when it did what.
    pub(super) timeline: Option<TimelineFd>,
    /// When this process began.
    pub(super) start: Instant,
}

impl Execution {
    /// Runs an instance once more.
    pub(crate) fn of_instance(instance: Running, raw_mode: bool, start: Instant) -> Self {
        let (kind, spec) = (instance.instance().record.isolation, instance.spec().clone());
        Self { kind, spec, instance: Some(instance), raw_mode, timeline: None, start }
    }

    /// Runs the workload to its end and returns its exit status. How it ended is noted for the instance; where it did not even
    /// begin, an instance that is new goes.
    pub(crate) fn run(self, is_new: bool) -> Result<u8, CliError> {
        let Self { kind, spec, instance, raw_mode, timeline, start } = self;
        match prepare(kind, &spec) {
            Ok(prepared) => follow(prepared, instance, raw_mode, timeline, start),
            Err(error) => {
                if let Some(instance) = instance.filter(|_| is_new) {
                    instance.discard(&Instances::open_default())?;
                }
                Err(error)
            }
        }
    }
}

/// A sandbox that has not started, and who passes signals to it.
type Prepared = (Arc<dyn Sandbox>, Forwarder);

fn prepare(kind: IsolationKind, spec: &RunSpec) -> Result<Prepared, CliError> {
    let isolation = isolation(kind)?;
    // A container's start says the same, where it fails, and need not look first.
    if kind == IsolationKind::Vm {
        isolation.probe()?;
    }
    if kind == IsolationKind::Vm && !spec.volumes.is_empty() {
        allow_descriptors()?;
    }
    // The signals must be blocked before the isolation starts threads of its own.
    let forwarder = Forwarder::start(kind)?;
    Ok((Arc::from(isolation.create(spec, stdio()?)?), forwarder))
}

fn follow(
    (sandbox, forwarder): Prepared,
    instance: Option<Running>,
    raw_mode: bool,
    timeline_fd: Option<TimelineFd>,
    start: Instant,
) -> Result<u8, CliError> {
    let raw_mode = raw_mode.then(terminal::RawMode::enter).transpose()?.flatten();
    forwarder.attach(&sandbox);
    let status = sandbox.start().and_then(|()| {
        forwarder.started();
        sandbox.wait()
    });
    let timeline = sandbox.timeline();
    forwarder.detach();
    drop(raw_mode);
    drop(sandbox);

    let code = code(&forwarder, status);
    if let Some(instance) = instance {
        instance.finished(code.as_ref().map_or_else(IsolationError::exit_code, |code| *code));
    }
    let code = code?;
    if let Some(fd) = timeline_fd {
        fd.write(start, Timeline { cleaned: Some(Instant::now()), ..timeline })?;
    }
    Ok(code)
}

fn code(forwarder: &Forwarder, status: Result<ExitStatus, IsolationError>) -> Result<u8, IsolationError> {
    match forwarder.interrupted_by() {
        Some(by) => Ok(by.shell_code()),
        None => status.map(|status| status.shell_code()),
    }
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

pub(super) fn stdio() -> Result<Stdio, CliError> {
    Stdio::inherit().map_err(|source| CliError::Process { action: "use the standard streams", source })
}
