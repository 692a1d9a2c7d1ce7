//! PID 1: sets the machine up, runs the workload, says how it ended, and waits for its own end.

mod failure;
mod log;
mod modules;
mod mounts;
mod network;
mod ports;
mod pump;
mod resolver;
mod root;
#[cfg(feature = "service")]
mod service;
mod supervise;
mod trim;
mod volumes;
mod wait;
mod workload;

use alloc::vec::Vec;

use amphi_guest_init::{FromGuest, InitSpec, SPEC_PATH};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::system::{RebootCommand, reboot};

pub(crate) use log::KernelLog;

use failure::{Context, Failure};
use ports::{Control, Ports};
use workload::{StartError, Workload};

/// Does everything, and does not return.
pub(crate) fn run() -> ! {
    let mut control = None;
    let last_words = match run_workload(&mut control) {
        Ok(message) => message,
        Err(Failure(what)) => FromGuest::Failed { what },
    };
    match control {
        Some(mut control) => {
            control.send(&last_words);
            // The host may still be taking the output from this machine's memory; it ends the machine when it has all.
            control.wait_for_hangup();
        }
        None => KernelLog::say(format_args!("{last_words:?}")),
    }
    power_off()
}

/// Powers the machine off, or restarts it where it cannot be powered off: both end a microVM.
pub(crate) fn power_off() -> ! {
    loop {
        let _ = reboot(RebootCommand::PowerOff);
        let _ = reboot(RebootCommand::Restart);
    }
}

/// The whole run; returns the message to end with. `control` is set as soon as there is a way to send one.
fn run_workload(control: &mut Option<Control>) -> Result<FromGuest, Failure> {
    mounts::devices()?;
    let spec = read_spec()?;
    modules::load(&spec.modules, &spec.module_parameters)?;
    let (opened, ports) = Ports::open(spec.stdin)?;
    let control = control.insert(opened);

    #[cfg(feature = "service")]
    if let Some(service) = &spec.service {
        return service::run(&spec, service, ports, control);
    }
    let root = root::enter(&spec)?;
    let ended = run_in_root(&spec, &root, ports, control);
    root.finish();
    match ended {
        Ok(message) | Err(StartError::Command(message)) => Ok(message),
        Err(StartError::Setup(failure)) => Err(failure),
    }
}

/// The part of the run that is in the workload's root.
fn run_in_root(
    spec: &InitSpec,
    root: &root::Mounted,
    ports: Ports,
    control: &mut Control,
) -> Result<FromGuest, StartError> {
    mounts::standard()?;
    volumes::mount_all(&spec.volumes)?;
    network::loopback_up();
    if let Some(interface) = &spec.interface {
        network::set_up(interface)?;
        resolver::configure(&interface.dns)?;
    }
    rustix::system::sethostname(&spec.hostname).context(|| "cannot set the host name".into())?;
    let cgroup = mounts::limit_processes(spec.pids)?;
    let workload = Workload::prepare(spec, cgroup)?;
    root.protect(spec.read_only)?;
    control.send(&FromGuest::Ready);
    let running = workload.start(spec.terminal, ports.stdin.is_some())?;
    Ok(FromGuest::Exited { wait_status: supervise::supervise(running, ports, control)? })
}

fn read_spec() -> Result<InitSpec, Failure> {
    let what = || alloc::format!("cannot read {SPEC_PATH}");
    let file = rustix::fs::open(SPEC_PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    let bytes = read_to_end(&file).context(what)?;
    InitSpec::decode(&bytes).map_err(|error| Failure(alloc::format!("{SPEC_PATH}: {error}")))
}

/// Everything that `file` holds.
fn read_to_end(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let size = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    // One byte more, so that the end is seen without growing.
    let mut bytes = Vec::with_capacity(size.min(64 << 20) + 1);
    loop {
        bytes.reserve(1);
        if rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes))? == 0 {
            return Ok(bytes);
        }
    }
}
