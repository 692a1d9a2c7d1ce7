//! `amphi run --kernel K [--initrd I]`: boots a machine of the user's own making, its console on the standard streams.

use amphi::IsolationKind;
use amphi::isolation::Instant;
use amphi::isolation::vm::{DirectBoot, MachineExit};
use amphi::spec::MemorySize;

use super::args::RunArgs;
use super::execute::stdio;
use super::report::TimelineFd;
use super::signals::Forwarder;
use super::{confinement, terminal};
use crate::error::CliError;

/// A direct boot's RAM where the user names no size.
const DEFAULT_MEMORY: MemorySize = MemorySize::from_mib(256);

/// Boots, and returns the exit status: 0 however the guest chose to end, unless its kernel panicked or its watchdog ended it.
pub(super) fn run(args: &RunArgs, timeline_fd: Option<TimelineFd>, start: Instant) -> Result<u8, CliError> {
    let Some(kernel) = args.kernel.clone() else {
        return Err(CliError::Option { option: "--kernel", problem: "a boot without IMAGE needs a kernel".to_owned() });
    };
    let vcpus = match args.cpus.map(|limit| limit.as_whole().and_then(|whole| u8::try_from(whole).ok())) {
        None => 1,
        Some(Some(whole)) => whole,
        Some(None) => {
            let problem = "a microVM has whole vCPUs, at most 254".to_owned();
            return Err(CliError::Option { option: "--cpus", problem });
        }
    };
    let memory = args.memory.unwrap_or(DEFAULT_MEMORY);
    let boot = DirectBoot {
        kernel,
        initrd: args.initrd.clone(),
        arguments: args.kernel_arg.clone(),
        vcpus,
        memory,
        network: args.network(),
        devices: args.devices(),
    };
    // Signals end the machine, so that the terminal is restored and nothing is left behind.
    let forwarder = Forwarder::start(IsolationKind::Vm)?;
    let raw_mode = args.wants_raw_mode().then(terminal::RawMode::enter).transpose()?.flatten();
    let streams = stdio()?;
    confinement::report_refused_calls()
        .map_err(|source| CliError::Process { action: "install a handler for SIGSYS", source })?;
    let ended = boot.start_after(streams.stdin, streams.stdout, confinement::confine).and_then(|machine| {
        forwarder.attach_machine(machine.stopper());
        forwarder.started();
        machine.wait()
    });
    drop(raw_mode);
    forwarder.die_if_interrupted();
    let (exit, timeline) = ended?;
    log::info!("the guest ended: {exit}");
    if let Some(fd) = timeline_fd {
        fd.write(start, timeline)?;
    }
    match exit {
        MachineExit::Panicked => Err(CliError::GuestPanicked),
        MachineExit::Watchdog => Err(CliError::GuestHung),
        _ => Ok(0),
    }
}
