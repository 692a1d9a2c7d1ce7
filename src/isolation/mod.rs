//! The two ways to run a [`RunSpec`], behind one pair of traits.
//!
//! A method enters a trait only when both halves implement it; powers that only one half has
//! are inherent to its own type.

pub mod container;
mod exit;
mod kept_layer;
mod stdio;
mod timeline;
pub mod vm;
mod volume_source;
pub mod writable_disk;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use exit::{ExitStatus, Signal};
pub use kept_layer::{KeptLayer, TreeSource};
pub use stdio::Stdio;
pub use timeline::{Instant, Timeline};

use crate::spec::{RunSpec, WindowSize};

/// Which isolation to run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationKind {
    /// A microVM on KVM, with a kernel of its own.
    Vm,
    /// A Linux container, on the host's kernel.
    Container,
}

impl IsolationKind {
    /// Both kinds, the microVM first.
    pub const ALL: [Self; 2] = [Self::Vm, Self::Container];
}

impl fmt::Display for IsolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vm => "vm",
            Self::Container => "container",
        })
    }
}

/// The text is neither `vm` nor `container`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an isolation: use vm or container")]
pub struct ParseIsolationKindError(String);

impl FromStr for IsolationKind {
    type Err = ParseIsolationKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "vm" => Ok(Self::Vm),
            "container" => Ok(Self::Container),
            _ => Err(ParseIsolationKindError(text.to_owned())),
        }
    }
}

/// One way to isolate a workload.
pub trait Isolation: Send + Sync {
    /// Which one this is.
    fn kind(&self) -> IsolationKind;

    /// Whether this host can run it.
    ///
    /// # Errors
    /// What is missing, and how to mend it.
    fn probe(&self) -> Result<(), IsolationError>;

    /// Checks `spec` against what this isolation can honour and makes a sandbox that has not started.
    /// Nothing of the workload runs yet, and nothing outside the process is changed.
    ///
    /// # Errors
    /// A setting that this isolation cannot honour, or a file that it needs and cannot use.
    fn create(&self, spec: &RunSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, IsolationError>;
}

/// One run of a workload. Methods may be called from several threads.
///
/// Dropping a sandbox kills what still runs in it and removes everything it made on the host.
pub trait Sandbox: Send + Sync {
    /// Starts the workload and returns as soon as it is on its way. Called once.
    ///
    /// # Errors
    /// What could not be set up. Nothing is left behind then.
    fn start(&self) -> Result<(), IsolationError>;

    /// Blocks until the workload has ended and all its output is delivered. May be called again.
    ///
    /// # Errors
    /// The isolation itself failed, so that the workload's status is not known.
    fn wait(&self) -> Result<ExitStatus, IsolationError>;

    /// Sends `signal` to the workload. [`Signal::KILL`] ends the sandbox whatever runs in it, also while it is
    /// being started: [`Sandbox::wait`] then returns this signal. No effect once it has ended.
    ///
    /// # Errors
    /// The signal could not be delivered.
    fn kill(&self, signal: Signal) -> Result<(), IsolationError>;

    /// Tells the workload's terminal its new size. No effect without a terminal.
    ///
    /// # Errors
    /// The size could not be passed on.
    fn resize(&self, size: WindowSize) -> Result<(), IsolationError>;

    /// The instants reached so far.
    fn timeline(&self) -> Timeline;
}

/// The isolation of that kind.
#[must_use]
pub fn isolation(kind: IsolationKind) -> Box<dyn Isolation> {
    match kind {
        IsolationKind::Vm => Box::new(vm::VmIsolation::new()),
        IsolationKind::Container => Box::new(container::ContainerIsolation::new()),
    }
}

/// Why an isolation could not run a workload.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// The command was not found in the root file system (exit status 127).
    #[error("command {0:?} not found in the image")]
    CommandNotFound(String),
    /// The command is there but cannot be executed (exit status 126).
    #[error("command {command:?} cannot be executed: {reason}")]
    CommandNotExecutable {
        /// The command as given.
        command: String,
        /// What the kernel says.
        reason: String,
    },
    /// The microVM failed.
    #[error(transparent)]
    Vm(#[from] vm::VmError),
    /// The container failed.
    #[error(transparent)]
    Container(#[from] container::ContainerError),
}

impl IsolationError {
    /// The exit status that says this: 125, 126 or 127, as docker and podman use them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CommandNotFound(_) => 127,
            Self::CommandNotExecutable { .. } => 126,
            Self::Vm(_) | Self::Container(_) => 125,
        }
    }
}
