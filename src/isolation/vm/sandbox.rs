//! One workload in one microVM: the guest's PID 1 is told what to run, and reports back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amphi_devices::virtio::console::Port;
use amphi_guest_init::{CONTROL_PORT, Message, STDERR_PORT, STDIN_PORT, STDOUT_PORT, ToGuest};
use rustix::io::Errno;

use super::BeforeGuest;
use super::channel::Channel;
use super::device_set::{Devices, SerialConsole};
use super::disks::Disk;
use super::error::VmError;
use super::follow::{Finished, Running};
use super::machine::{Machine, MachineConfig};
use super::network;
use super::outputs::Outputs;
use super::plan::Plan;
use super::pmem::PmemFile;
use super::tail::Tail;
use super::volumes::OpenVolume;
use crate::isolation::timeline::Stamp;
use crate::isolation::{ExitStatus, IsolationError, Sandbox, Signal, Stdio, Timeline};
use crate::spec::WindowSize;

/// How long a guest may take to close the workload's output once it has told the workload's end.
const GRACE: Duration = Duration::from_secs(5);

/// A microVM that runs one workload.
pub struct VmSandbox {
    pub(super) plan: Plan,
    before_guest: BeforeGuest,
    stdio: Mutex<Option<Stdio>>,
    running: Mutex<Option<Arc<Running>>>,
    result: Mutex<Option<Finished>>,
    /// What the terminal was last resized to.
    pub(super) size: Mutex<Option<WindowSize>>,
    pub(super) killed: AtomicBool,
    pub(super) stamps: Arc<Stamps>,
}

/// The instants of a run, each set by the thread that sees it.
#[derive(Default)]
pub(super) struct Stamps {
    created: Stamp,
    first_instruction: Arc<Stamp>,
    pub(super) init_ready: Stamp,
    first_byte: Stamp,
    pub(super) exited: Stamp,
    cleaned: Stamp,
}

impl VmSandbox {
    pub(super) fn new(plan: Plan, stdio: Stdio, before_guest: BeforeGuest) -> Self {
        Self {
            plan,
            before_guest,
            stdio: Mutex::new(Some(stdio)),
            running: Mutex::default(),
            result: Mutex::default(),
            size: Mutex::default(),
            killed: AtomicBool::new(false),
            stamps: Arc::default(),
        }
    }

    fn ports(&self, stdio: Stdio, control: [OwnedFd; 2], outputs: &Arc<Outputs>) -> Vec<Port> {
        let output = |id, index, fd| Port {
            id,
            input: None,
            output: Some(fd),
            reopens: false,
            on_first_output: Some({
                let stamps = Arc::clone(&self.stamps);
                Box::new(move || stamps.first_byte.mark())
            }),
            on_closed: Some({
                let outputs = Arc::clone(outputs);
                Box::new(move || outputs.close(index))
            }),
        };
        let [to_guest, from_guest] = control;
        vec![
            // Whoever closes it, the next guest of this machine gets to use it.
            Port {
                id: CONTROL_PORT,
                input: Some(to_guest),
                output: Some(from_guest),
                reopens: true,
                ..Port::default()
            },
            Port { id: STDIN_PORT, input: self.plan.stdin.then_some(stdio.stdin), ..Port::default() },
            output(STDOUT_PORT, 0, stdio.stdout),
            output(STDERR_PORT, 1, stdio.stderr),
        ]
    }

    fn boot(&self, stdio: Stdio) -> Result<Running, VmError> {
        let (control, guest_end) = UnixStream::pair().map_err(VmError::host("make the control channel"))?;
        let outputs = Outputs::new(&[&stdio.stdout, &stdio.stderr])
            .map_err(VmError::host("duplicate the workload's output streams"))?;
        let outputs = Arc::new(outputs);
        let console = Tail::default();
        let duplicate = || guest_end.try_clone().map(OwnedFd::from);
        let duplicates = duplicate().and_then(|first| Ok([first, duplicate()?]));
        let duplicates = duplicates.map_err(VmError::host("duplicate the control channel's descriptor"))?;
        let ports = self.ports(stdio, duplicates, &outputs);
        let disks = self
            .plan
            .disks
            .iter()
            .map(Disk::try_clone)
            .collect::<io::Result<_>>()
            .map_err(VmError::host("duplicate a disk's descriptor"))?;
        let volumes = self.plan.volumes.iter().map(OpenVolume::try_clone).collect::<io::Result<_>>();
        let volumes = volumes.map_err(VmError::host("duplicate a volume's descriptor"))?;
        let pmem = self.plan.pmem.iter().map(PmemFile::try_clone).collect::<io::Result<_>>();
        let pmem = pmem.map_err(VmError::host("duplicate the descriptor of persistent memory"))?;
        let (network, mut connection) = network::connect(&self.plan.network)?;
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
                    pmem,
                    network,
                    volumes,
                    extra: self.plan.devices.clone(),
                },
            },
            Arc::clone(&self.stamps.first_instruction),
        )?;
        connection.wait_ready()?;
        self.stamps.created.mark();
        machine.start(&*self.before_guest)?;
        let channel = Channel::new(control, guest_end);
        Ok(Running { machine, channel, outputs, console, _network: connection })
    }

    /// The guest's RAM in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.plan.memory
    }

    pub(super) fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn result(&self) -> MutexGuard<'_, Option<Finished>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self, message: &ToGuest) -> Result<(), VmError> {
        let Some(running) = self.running() else { return Ok(()) };
        // A guest that does not read its control channel must not hold up the host: what does not fit is lost.
        let bytes = message.encode();
        match rustix::net::send(
            running.channel.control.as_fd(),
            &bytes,
            rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
        ) {
            Ok(_) | Err(Errno::AGAIN | Errno::PIPE) => Ok(()),
            Err(error) => Err(VmError::host("send to the guest's PID 1")(error.into())),
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
                if !running.outputs.wait_closed(GRACE, || ended.has_ended(), || running.machine.is_paused()) {
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
        Ok(self.send(&ToGuest::Signal(signal.number()))?)
    }

    fn resize(&self, size: WindowSize) -> Result<(), IsolationError> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
        Ok(self.send(&ToGuest::Resize { rows: size.rows, columns: size.columns })?)
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
    use crate::image::initramfs::Initramfs;
    use crate::spec::VmDevices;

    fn sandbox() -> VmSandbox {
        let plan = Plan {
            kernel: "/no/such/kernel".into(),
            initramfs: Initramfs::new(&InitSpec::default(), &[], None).unwrap(),
            command_line: String::new(),
            vcpus: 1,
            memory: 16 << 20,
            disks: Vec::new(),
            volumes: Vec::new(),
            pmem: Vec::new(),
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
        assert!(sandbox.pause().is_err() && sandbox.resume().is_err());
        sandbox.kill(Signal::TERM).unwrap();
    }
}
