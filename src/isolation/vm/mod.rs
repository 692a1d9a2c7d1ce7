//! A microVM on KVM.
//!
//! The boot path: [`plan`](self) turns a run specification into what a machine needs, `machine` builds and starts it,
//! `vcpu` runs the guest. `sandbox` follows the workload from outside.

mod balloon;
mod channel;
mod controls;
mod device_set;
mod direct;
mod disks;
mod error;
mod event_loop;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host_socket;
mod kernel_image;
mod load;
mod machine;
mod memory;
mod network;
mod outputs;
mod passt;
mod plan;
mod pmem;
mod release;
mod reset;
mod sandbox;
mod seccomp;
mod service;
mod signals;
mod state;
mod tail;
mod vcpu;
mod volumes;
mod x86_64;

pub use amphi_devices::virtio::balloon::Statistics as BalloonStatistics;
pub use balloon::BalloonState;
pub use direct::{DEFAULT_ARGUMENTS, DirectBoot, DirectMachine};
pub use error::VmError;
pub use kernel_image::KernelImageError;
pub use memory::MAPPING_NAME;
pub use network::NetworkError;
pub use passt::PasstError;
pub use sandbox::VmSandbox;
pub use seccomp::confine_caller;
pub use service::{KeptLayer, TreeSender};
pub use state::{MachineExit, Stopper};

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{Isolation, IsolationError, IsolationKind, Sandbox, Stdio};
use crate::spec::RunSpec;

/// What a program does on the thread that starts a microVM, right before the guest runs.
type BeforeGuest = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Runs workloads as microVMs.
pub struct VmIsolation {
    before_guest: BeforeGuest,
}

impl VmIsolation {
    /// The microVM isolation.
    #[must_use]
    pub fn new() -> Self {
        Self { before_guest: Arc::new(|| Ok(())) }
    }

    /// Has `action` called on the thread that calls [`Sandbox::start`], when everything that a microVM needs is open and
    /// all its threads are there, but before the guest's first instruction: the place for a program that is about nothing else
    /// to give up what it does not need any more, say by [`confine_caller`]. The microVM's own threads have done so by
    /// themselves then. If it fails, so does the start.
    ///
    /// `action` must not use the sandbox.
    #[must_use]
    pub fn before_guest(mut self, action: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.before_guest = Arc::new(action);
        self
    }

    /// As [`Isolation::create`], for what only a microVM can do.
    ///
    /// # Errors
    /// As there.
    pub fn create_vm(&self, spec: &RunSpec, stdio: Stdio) -> Result<VmSandbox, VmError> {
        Ok(VmSandbox::new(plan::Plan::new(spec)?, stdio, Arc::clone(&self.before_guest)))
    }
}

impl Default for VmIsolation {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for VmIsolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmIsolation").finish_non_exhaustive()
    }
}

impl Isolation for VmIsolation {
    fn kind(&self) -> IsolationKind {
        IsolationKind::Vm
    }

    fn probe(&self) -> Result<(), IsolationError> {
        machine::open_kvm()?;
        Ok(())
    }

    fn create(&self, spec: &RunSpec, stdio: Stdio) -> Result<Box<dyn Sandbox>, IsolationError> {
        Ok(Box::new(self.create_vm(spec, stdio)?))
    }
}
