//! One workload in one microVM: the guest's PID 1 is told what to run, and reports back.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amphi_devices::virtio::balloon::{Balloon, PAGE};
use amphi_devices::virtio::console::Port;
use amphi_guest_init::{CONTROL_PORT, Decoder, FromGuest, Message, STDERR_PORT, STDIN_PORT, STDOUT_PORT, ToGuest};
use vm_memory::GuestMemoryMmap;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::BeforeGuest;
use super::balloon::{self, BalloonState};
use super::device_set::{Devices, SerialConsole};
use super::disks::Disk;
use super::error::VmError;
use super::load::{GuestWriter, Initrd};
use super::machine::{Machine, MachineConfig};
use super::network::{self, NetworkError};
use super::outputs::Outputs;
use super::passt::Passt;
use super::plan::Plan;
use super::tail::{self, Tail};
use crate::image::initramfs::Initramfs;
use crate::isolation::timeline::Stamp;
use crate::isolation::{ExitStatus, IsolationError, Sandbox, Signal, Stdio, Timeline};
use crate::spec::WindowSize;

/// How long a guest may take to close the workload's output once it has told the workload's end.
const GRACE: Duration = Duration::from_secs(5);
/// A guest that is not ready by then may run on a KVM that cannot run kernels, and be a while from showing it.
const SUSPICIOUS: Duration = Duration::from_secs(3);

/// A microVM that runs one workload.
pub struct VmSandbox {
    plan: Plan,
    before_guest: BeforeGuest,
    stdio: Mutex<Option<Stdio>>,
    running: Mutex<Option<Arc<Running>>>,
    result: Mutex<Option<Finished>>,
    killed: AtomicBool,
    stamps: Arc<Stamps>,
}

/// The instants of a run, each set by the thread that sees it.
#[derive(Default)]
struct Stamps {
    created: Stamp,
    first_instruction: Arc<Stamp>,
    init_ready: Stamp,
    first_byte: Stamp,
    exited: Stamp,
    cleaned: Stamp,
}

struct Running {
    machine: Machine,
    control: UnixStream,
    outputs: Arc<Outputs>,
    console: Tail,
    /// After the machine, whose end ends it.
    _passt: Option<Passt>,
}

/// What became of the workload, kept for later calls of `wait`.
enum Finished {
    Status(ExitStatus),
    NotFound(String),
    NotExecutable { command: String, reason: String },
    Failed(Arc<VmError>),
}

impl Initrd for Initramfs {
    fn len(&self) -> u64 {
        self.len()
    }

    fn load(&self, memory: &GuestMemoryMmap, address: u64) -> Result<(), VmError> {
        let mut writer = GuestWriter::new(memory, address, self.len());
        self.write_to(&mut writer).map_err(|error| VmError::Root(Box::new(error)))?;
        if writer.is_full() {
            Ok(())
        } else {
            Err(VmError::Failed("the initrd changed its length while it was read".to_owned()))
        }
    }
}

impl VmSandbox {
    pub(super) fn new(plan: Plan, stdio: Stdio, before_guest: BeforeGuest) -> Self {
        Self {
            plan,
            before_guest,
            stdio: Mutex::new(Some(stdio)),
            running: Mutex::default(),
            result: Mutex::default(),
            killed: AtomicBool::new(false),
            stamps: Arc::default(),
        }
    }

    /// Asks the guest to have `bytes` in its balloon, in whole pages of 4 KiB. It does so in its own time, and as far as it
    /// can.
    ///
    /// # Errors
    /// There is no balloon, the workload does not run, or the guest has not that much memory.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), VmError> {
        let pages = balloon::pages(bytes, self.plan.memory)?;
        self.with_balloon(|balloon| balloon.set_target(pages))
    }

    /// How the guest's balloon is doing. The guest is also asked for new statistics, which a later call returns: they
    /// have come when [`Statistics::reports`](super::BalloonStatistics::reports) has grown.
    ///
    /// # Errors
    /// There is no balloon, or the workload does not run.
    pub fn balloon(&self) -> Result<BalloonState, VmError> {
        self.with_balloon(|balloon| {
            let (target, actual) = (u64::from(balloon.target()) * PAGE, u64::from(balloon.actual()) * PAGE);
            let statistics = balloon.statistics();
            balloon.request_statistics();
            BalloonState { target, actual, statistics }
        })
    }

    fn with_balloon<T>(&self, action: impl FnOnce(&mut Balloon) -> T) -> Result<T, VmError> {
        let unsupported = |what: &str| VmError::Unsupported(what.to_owned());
        // Held meanwhile, and with it the guest's memory, in which the balloon has its queues.
        let running = self.running().ok_or_else(|| unsupported("the balloon: the workload does not run"))?;
        let balloon = running.machine.balloon().ok_or_else(|| unsupported("the microVM has no balloon"))?;
        let mut balloon = balloon.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(action(&mut balloon))
    }

    fn ports(&self, stdio: Stdio, control: OwnedFd, outputs: &Arc<Outputs>) -> io::Result<Vec<Port>> {
        let output = |id, index, fd| Port {
            id,
            input: None,
            output: Some(fd),
            on_first_output: Some({
                let stamps = Arc::clone(&self.stamps);
                Box::new(move || stamps.first_byte.mark())
            }),
            on_closed: Some({
                let outputs = Arc::clone(outputs);
                Box::new(move || outputs.close(index))
            }),
        };
        let plain = |id, input, output| Port { id, input, output, on_first_output: None, on_closed: None };
        Ok(vec![
            plain(CONTROL_PORT, Some(control.try_clone()?), Some(control)),
            plain(STDIN_PORT, self.plan.stdin.then_some(stdio.stdin), None),
            output(STDOUT_PORT, 0, stdio.stdout),
            output(STDERR_PORT, 1, stdio.stderr),
        ])
    }

    fn boot(&self, stdio: Stdio) -> Result<Running, VmError> {
        let (control, guest_end) = UnixStream::pair().map_err(VmError::host("make the control channel"))?;
        let outputs = Outputs::new(&[&stdio.stdout, &stdio.stderr])
            .map_err(VmError::host("duplicate the workload's output streams"))?;
        let outputs = Arc::new(outputs);
        let console = Tail::default();
        let ports = self
            .ports(stdio, guest_end.into(), &outputs)
            .map_err(VmError::host("duplicate the control channel's descriptor"))?;
        let disks = self
            .plan
            .disks
            .iter()
            .map(Disk::try_clone)
            .collect::<io::Result<_>>()
            .map_err(VmError::host("duplicate a disk's descriptor"))?;
        // Before the machine is built: passt gets ready meanwhile.
        let (network, mut passt) = match network::connect(&self.plan.network)? {
            Some(connected) => (Some(connected.device), connected.passt),
            None => (None, None),
        };
        let machine = Machine::build(
            MachineConfig {
                kernel: &self.plan.kernel,
                initrd: &self.plan.initramfs,
                command_line: &self.plan.command_line,
                vcpus: self.plan.vcpus,
                memory: self.plan.memory,
                devices: Devices {
                    serial: SerialConsole { input: None, output: Box::new(console.clone()) },
                    console_ports: ports,
                    disks,
                    network,
                    extra: self.plan.devices.clone(),
                },
            },
            Arc::clone(&self.stamps.first_instruction),
        )?;
        passt.as_mut().map(Passt::wait_ready).transpose().map_err(NetworkError::from)?;
        self.stamps.created.mark();
        machine.start(&*self.before_guest)?;
        Ok(Running { machine, control, outputs, console, _passt: passt })
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn result(&self) -> MutexGuard<'_, Option<Finished>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the guest's reports until there is a final one, or the machine has ended without.
    fn follow(&self, running: &Running) -> Finished {
        let mut decoder = Decoder::<FromGuest>::new();
        let mut buffer = [0; 1024];
        let (mut machine_ended, mut probed) = (false, false);
        loop {
            if !machine_ended {
                let limit = (!probed && self.stamps.init_ready.get().is_none()).then_some(SUSPICIOUS);
                match wait_for_either(&running.control, &running.machine.ended_event(), limit) {
                    Event::Readable => {}
                    Event::Ended => {
                        // Joining delivers what the guest sent before its end.
                        machine_ended = true;
                        if let Err(cause) = running.machine.wait() {
                            let console = running.console.as_error_text();
                            return Finished::Failed(Arc::new(VmError::Broken { cause, console }));
                        }
                        let _ = running.control.set_nonblocking(true);
                    }
                    Event::Nothing => {
                        probed = true;
                        if let Some(status) = running.machine.no_kernel_runs() {
                            return Finished::Failed(Arc::new(VmError::NoKvm(status)));
                        }
                        continue;
                    }
                }
            }
            let count = match (&running.control).read(&mut buffer) {
                Ok(0) => return self.ended_early(running),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.ended_early(running),
            };
            decoder.push(&buffer[..count]);
            for message in decoder.by_ref() {
                match message {
                    Ok(message) => {
                        if let Some(finished) = self.take(message) {
                            return finished;
                        }
                    }
                    Err(error) => return Finished::Failed(Arc::new(VmError::Reports(error))),
                }
            }
        }
    }

    /// Notes one report of the guest's; a final one is returned.
    fn take(&self, message: FromGuest) -> Option<Finished> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Some(match message {
            FromGuest::Ready => {
                self.stamps.init_ready.mark();
                return None;
            }
            FromGuest::Exited { wait_status } => {
                self.stamps.exited.mark();
                Finished::Status(ExitStatus::from_wait_status(wait_status))
            }
            FromGuest::CommandNotFound { command } => Finished::NotFound(text(command)),
            FromGuest::CommandNotExecutable { command, errno } => Finished::NotExecutable {
                command: text(command),
                reason: io::Error::from_raw_os_error(errno).to_string(),
            },
            FromGuest::Failed { what } => Finished::Failed(Arc::new(VmError::Guest(tail::plain_text(&what)))),
        })
    }

    fn ended_early(&self, running: &Running) -> Finished {
        if self.killed.load(Ordering::Acquire) {
            return Finished::Status(ExitStatus::Signal(Signal::KILL));
        }
        let console = running.console.as_error_text();
        Finished::Failed(Arc::new(match running.machine.wait() {
            Ok(exit) => VmError::Ended { exit, console },
            Err(cause) => VmError::Broken { cause, console },
        }))
    }

    fn send(&self, message: &ToGuest) -> Result<(), IsolationError> {
        let Some(running) = self.running() else { return Ok(()) };
        // A guest that does not read its control channel must not hold up the host: what does not fit is lost.
        let bytes = message.encode();
        match rustix::net::send(
            running.control.as_fd(),
            &bytes,
            rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
        ) {
            Ok(_) | Err(Errno::AGAIN | Errno::PIPE) => Ok(()),
            Err(error) => Err(VmError::host("send to the guest's PID 1")(error.into()).into()),
        }
    }
}

/// What [`wait_for_either`] has seen.
enum Event {
    Readable,
    Ended,
    Nothing,
}

/// Waits until `stream` has something to read, or `ended` says that nothing more will come, or `limit` has passed.
fn wait_for_either(stream: &UnixStream, ended: &impl AsFd, limit: Option<Duration>) -> Event {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        let mut fds = [PollFd::new(stream, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Event::Nothing,
            Ok(_) if !fds[0].revents().is_empty() => return Event::Readable,
            Ok(_) if !fds[1].revents().is_empty() => return Event::Ended,
            Ok(_) | Err(Errno::INTR) => {}
            // Reading will say what is wrong.
            Err(_) => return Event::Readable,
        }
    }
}

impl Sandbox for VmSandbox {
    fn start(&self) -> Result<(), IsolationError> {
        let stdio = self.stdio.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(stdio) = stdio else {
            return Err(VmError::Unsupported("the sandbox was started before".to_owned()).into());
        };
        if self.killed.load(Ordering::Acquire) {
            *self.result() = Some(Finished::Status(ExitStatus::Signal(Signal::KILL)));
            return Ok(());
        }
        let running = Arc::new(self.boot(stdio)?);
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&running));
        // Whoever killed the sandbox before it was seen to run has left it to this.
        if self.killed.load(Ordering::Acquire) {
            running.machine.stop();
        }
        Ok(())
    }

    fn wait(&self) -> Result<ExitStatus, IsolationError> {
        let mut result = self.result();
        if result.is_none() {
            let Some(running) = self.running() else {
                return Err(VmError::Unsupported("the sandbox has not been started".to_owned()).into());
            };
            let finished = self.follow(&running);
            if matches!(finished, Finished::Status(_)) {
                let ended = running.machine.ended_event();
                if !running.outputs.wait_closed(GRACE, || ended.has_ended()) {
                    log::warn!("the guest keeps its output open though its workload has ended: it is stopped");
                }
            }
            running.machine.stop();
            let _ = running.machine.wait();
            self.stamps.exited.mark();
            self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(running);
            self.stamps.cleaned.mark();
            *result = Some(finished);
        }
        match &*result {
            Some(Finished::Status(status)) => Ok(*status),
            Some(Finished::NotFound(command)) => Err(IsolationError::CommandNotFound(command.clone())),
            Some(Finished::NotExecutable { command, reason }) => {
                Err(IsolationError::CommandNotExecutable { command: command.clone(), reason: reason.clone() })
            }
            Some(Finished::Failed(error)) => Err(VmError::Shared(Arc::clone(error)).into()),
            None => Err(VmError::Failed("the workload's end is not known".to_owned()).into()),
        }
    }

    fn kill(&self, signal: Signal) -> Result<(), IsolationError> {
        if signal == Signal::KILL {
            self.killed.store(true, Ordering::Release);
            if let Some(running) = self.running() {
                running.machine.stop();
            }
            return Ok(());
        }
        self.send(&ToGuest::Signal(signal.number()))
    }

    fn resize(&self, size: WindowSize) -> Result<(), IsolationError> {
        self.send(&ToGuest::Resize { rows: size.rows, columns: size.columns })
    }

    fn timeline(&self) -> Timeline {
        Timeline {
            created: self.stamps.created.get(),
            first_instruction: self.stamps.first_instruction.get(),
            init_ready: self.stamps.init_ready.get(),
            first_byte: self.stamps.first_byte.get(),
            exited: self.stamps.exited.get(),
            cleaned: self.stamps.cleaned.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use amphi_guest_init::InitSpec;

    use super::*;
    use crate::spec::VmDevices;

    fn sandbox() -> VmSandbox {
        let plan = Plan {
            kernel: "/no/such/kernel".into(),
            initramfs: Initramfs::new(&InitSpec::default(), &[], None).unwrap(),
            command_line: String::new(),
            vcpus: 1,
            memory: 16 << 20,
            disks: Vec::new(),
            network: crate::spec::Network::None,
            devices: VmDevices::default(),
            stdin: false,
        };
        VmSandbox::new(plan, Stdio::null().unwrap(), Arc::new(|| Ok(())))
    }

    #[test]
    fn a_kill_before_the_start_counts() {
        let sandbox = sandbox();
        sandbox.kill(Signal::KILL).unwrap();
        sandbox.start().unwrap();
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(Signal::KILL));
    }

    #[test]
    fn a_start_that_failed_leaves_nothing_to_wait_for() {
        let sandbox = sandbox();
        assert!(sandbox.start().is_err() && sandbox.start().is_err() && sandbox.wait().is_err());
        sandbox.kill(Signal::TERM).unwrap();
    }
}
