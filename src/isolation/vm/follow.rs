//! What the guest's PID 1 reports, followed to the workload's end.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amphi_guest_init::FromGuest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::channel::Channel;
use super::error::VmError;
use super::machine::Machine;
use super::network::Connection;
use super::outputs::Outputs;
use super::sandbox::VmSandbox;
use super::tail::{self, Tail};
use crate::isolation::{ExitStatus, Signal};

/// A guest that is not ready by then may run on a KVM that cannot run kernels, and be a while from showing it.
const SUSPICIOUS: Duration = Duration::from_secs(3);

/// A workload's machine, from its start to its end.
pub(super) struct Running {
    pub(super) machine: Machine,
    pub(super) channel: Channel,
    pub(super) outputs: Arc<Outputs>,
    pub(super) console: Tail,
    pub(super) _network: Connection,
}

/// What became of the workload, kept for later calls of `wait`.
pub(super) enum Finished {
    Status(ExitStatus),
    NotFound(String),
    NotExecutable { command: String, reason: String },
    Failed(Arc<VmError>),
}

impl VmSandbox {
    /// Reads the guest's reports until there is a final one, or the machine has ended without.
    pub(super) fn follow(&self, running: &Running) -> Finished {
        let (mut machine_ended, mut probed) = (false, false);
        loop {
            if !machine_ended {
                let limit = (!probed && self.stamps.init_ready.get().is_none()).then_some(SUSPICIOUS);
                match wait_for_either(&running.channel.control, &running.machine.ended_event(), limit) {
                    Event::Readable => {}
                    Event::Ended => {
                        // Joining delivers what the guest sent before its end.
                        machine_ended = true;
                        if let Err(cause) = running.machine.wait() {
                            let console = running.console.as_error_text();
                            return Finished::Failed(Arc::new(VmError::Broken { cause, console }));
                        }
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
            let mut reports = running.channel.reports();
            match running.channel.receive(&mut reports) {
                Ok(false) => {}
                Err(Errno::INTR) => continue,
                // What there was to read was taken away by a reset.
                Err(Errno::AGAIN) if !machine_ended => continue,
                Ok(true) | Err(_) => return self.ended_early(running),
            }
            while let Some(message) = reports.decoder.next() {
                let finished = match message {
                    Ok(message) => self.take(message),
                    Err(error) => Some(Finished::Failed(Arc::new(VmError::Reports(error)))),
                };
                if let Some(finished) = finished {
                    reports.complete = true;
                    return finished;
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
