//! One container as a [`Sandbox`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;

use super::error::{ContainerError, from_child};
use super::launch::{Config, LaunchError, Launched, above_standard, launch};
use super::layers::cannot_shift;
use super::namespaces::IdMap;
use super::relay::{Outputs, Relays, lend};
use super::terminal::{self, Terminal};
use crate::isolation::timeline::Stamp;
use crate::isolation::{ExitStatus, IsolationError, Sandbox, Signal, Stdio, Timeline};
use crate::spec::WindowSize;

const SIGNAL: &str = "send a signal to the container";
const RESIZE: &str = "resize the container's terminal";

/// A container, from its creation to its end.
#[derive(Debug)]
pub(super) struct Container {
    config: Config,
    /// Taken by the start.
    stdio: Mutex<Option<Stdio>>,
    /// Where signals and sizes go from the moment there is something that takes them.
    reach: Mutex<Reach>,
    /// Set at the end of the start.
    running: OnceLock<Running>,
    /// The result; locked by the one who waits.
    status: Mutex<Option<ExitStatus>>,
    created: Stamp,
    first_byte: Arc<Stamp>,
    exited: Stamp,
    cleaned: Stamp,
}

/// The container as others than its start see it.
#[derive(Debug, Default)]
struct Reach {
    /// Set as soon as its PID 1 listens, which is before the workload can write its first byte.
    launched: Option<Arc<Launched>>,
    /// Came before that.
    signals: Vec<Signal>,
    /// Came before there was a terminal.
    size: Option<WindowSize>,
}

#[derive(Debug)]
struct Running {
    launched: Arc<Launched>,
    relays: Relays,
    terminal: Option<Terminal>,
}

/// A panic elsewhere leaves these values as good as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container that has not started.
    pub(super) fn new(config: Config, stdio: Stdio) -> Self {
        Self {
            config,
            stdio: Mutex::new(Some(stdio)),
            reach: Mutex::default(),
            running: OnceLock::new(),
            status: Mutex::new(None),
            created: Stamp::default(),
            first_byte: Arc::default(),
            exited: Stamp::default(),
            cleaned: Stamp::default(),
        }
    }

    /// Starts with the best id map that the image's file system allows.
    fn launch(&self, stdio: Stdio) -> Result<Running, IsolationError> {
        let streams = ContainerError::kernel("connect the standard streams");
        let standard = || -> Result<_, Errno> {
            let given = Outputs { stdout: above_standard(stdio.stdout)?, stderr: above_standard(stdio.stderr)? };
            Ok((above_standard(stdio.stdin)?, given))
        };
        let (stdin, given) = { standard }().map_err(streams)?;
        let mut map = match IdMap::choose() {
            IdMap::Shifted { .. }
                if self.config.trees.is_empty() || self.config.trees.iter().any(|tree| cannot_shift(tree.as_fd())) =>
            {
                IdMap::Identity
            }
            map => map,
        };
        let process = &self.config.process;
        loop {
            map.check(process.uid.as_raw(), process.gid.as_raw())?;
            let owner = map.host_user(process.uid.as_raw());
            let relays = Relays::default();
            let outputs = if self.config.terminal.is_some() {
                given.try_clone()
            } else {
                relays.make(&given, owner, matches!(map, IdMap::Shifted { .. }), &self.first_byte)
            }?;
            if self.config.stdin {
                lend(stdin.as_fd(), owner);
            }
            let connected = Some(stdin.as_fd()).filter(|_| self.config.stdin && self.config.terminal.is_none());
            match launch(&self.config, &map, connected, outputs, &self.created) {
                Ok((launched, overlay)) => {
                    let launched = Arc::new(launched);
                    self.release(&launched, overlay)?;
                    launched.wait_until_executed(&self.config)?;
                    let terminal = match self.config.terminal {
                        Some(_) if launched.is_executed() => {
                            let stdio = Stdio { stdin, stdout: given.stdout, stderr: given.stderr };
                            Some(self.serve_terminal(&launched, stdio)?)
                        }
                        _ => None,
                    };
                    return Ok(Running { launched, relays, terminal });
                }
                Err(LaunchError::CannotShift(errno)) => {
                    log::info!(
                        "{:?}, or a volume, cannot show other owners ({errno}): the container has the host's ids",
                        self.config.path
                    );
                    map = IdMap::Identity;
                }
                Err(LaunchError::Isolation(error)) => return Err(error),
            }
        }
    }

    /// Lets the child go on, and signals reach the container, those first that came before. Both under one lock: whoever asks
    /// for the timeline because of what the workload wrote must find that it has begun.
    fn release(&self, launched: &Arc<Launched>, overlay: Option<OwnedFd>) -> Result<(), ContainerError> {
        let mut reach = lock(&self.reach);
        launched.release(overlay);
        for signal in std::mem::take(&mut reach.signals) {
            launched.signal(signal).map_err(ContainerError::kernel(SIGNAL))?;
        }
        reach.launched = Some(Arc::clone(launched));
        Ok(())
    }

    fn serve_terminal(&self, launched: &Launched, stdio: Stdio) -> Result<Terminal, ContainerError> {
        let action = "serve the container's terminal";
        let master = terminal::receive(launched.control.as_fd()).map_err(ContainerError::kernel(action))?;
        Terminal::serve(master, stdio, self.config.stdin, Arc::clone(&self.first_byte))
            .map_err(|source| ContainerError::Kernel { action, hint: None, source })
    }

    fn running(&self) -> Result<&Running, ContainerError> {
        self.running.get().ok_or(ContainerError::NotStarted)
    }
}

impl Sandbox for Container {
    fn start(&self) -> Result<(), IsolationError> {
        let stdio = lock(&self.stdio).take().ok_or(ContainerError::StartedTwice)?;
        let running = self.launch(stdio).map_err(|error| {
            // With this the last one who holds the container lets go of it.
            lock(&self.reach).launched = None;
            // What the host lacks says more than which step failed for want of it.
            super::unsupported().map_or(error, IsolationError::from)
        })?;
        let mut reach = lock(&self.reach);
        if let (Some(terminal), Some(size)) = (&running.terminal, reach.size.take()) {
            terminal.resize(size).map_err(ContainerError::kernel(RESIZE))?;
        }
        self.running.set(running).map_err(|_| ContainerError::StartedTwice.into())
    }

    fn wait(&self) -> Result<ExitStatus, IsolationError> {
        let running = self.running()?;
        let mut known = lock(&self.status);
        if let Some(status) = *known {
            return Ok(status);
        }
        let launched = &running.launched;
        let first = launched.first.wait().map_err(ContainerError::kernel("wait for the container"))?;
        match launched.report.instants() {
            [_, _, Some(exited)] => self.exited.mark_at(exited),
            _ => self.exited.mark(),
        }
        // All that was in the container is dead, so these end too.
        running.relays.finish();
        if let Some(terminal) = &running.terminal {
            terminal.finish();
        }
        launched.remove_cgroup();
        self.cleaned.mark();
        let status = match (launched.report.status(), first) {
            (Some(status), _) => ExitStatus::from_wait_status(status),
            // PID 1 was killed, and the workload with it.
            (None, ExitStatus::Signal(signal)) => ExitStatus::Signal(signal),
            (None, ExitStatus::Code(_)) => {
                return Err(match launched.report.failure() {
                    Some(failure) => from_child(failure, &self.config.process, &self.config.volumes),
                    None => ContainerError::Died.into(),
                });
            }
        };
        *known = Some(status);
        Ok(status)
    }

    fn kill(&self, signal: Signal) -> Result<(), IsolationError> {
        let mut reach = lock(&self.reach);
        if let Some(launched) = &reach.launched {
            return launched.signal(signal).map_err(|errno| ContainerError::kernel(SIGNAL)(errno).into());
        }
        // As with signals in general: one of a kind waits.
        if !reach.signals.contains(&signal) {
            reach.signals.push(signal);
        }
        Ok(())
    }

    fn resize(&self, size: WindowSize) -> Result<(), IsolationError> {
        let mut reach = lock(&self.reach);
        let Some(running) = self.running.get() else {
            reach.size = Some(size);
            return Ok(());
        };
        match &running.terminal {
            Some(terminal) => terminal.resize(size).map_err(|errno| ContainerError::kernel(RESIZE)(errno).into()),
            None => Ok(()),
        }
    }

    fn timeline(&self) -> Timeline {
        let launched = lock(&self.reach).launched.clone();
        let [first_instruction, init_ready, _] =
            launched.map(|launched| launched.report.instants()).unwrap_or_default();
        Timeline {
            // The child may run before the parent's call has returned.
            created: self.created.get().map(|at| first_instruction.map_or(at, |first| first.min(at))),
            first_instruction,
            init_ready,
            first_byte: self.first_byte.get(),
            exited: self.exited.get(),
            cleaned: self.cleaned.get(),
        }
    }
}
