//! A microVM on KVM.
//!
//! The boot path: [`plan`](self) turns a run specification into what a machine needs, `machine` builds and starts it,
//! `vcpu` runs the guest. `sandbox` follows the workload from outside.

mod balloon;
mod device_set;
mod direct;
mod error;
mod event_loop;
mod host_socket;
mod kernel_image;
mod load;
mod machine;
mod memory;
mod outputs;
mod plan;
mod sandbox;
mod signals;
mod tail;
mod vcpu;
mod x86_64;

pub use amphi_devices::virtio::balloon::Statistics as BalloonStatistics;
pub use balloon::BalloonState;
pub use direct::{DEFAULT_ARGUMENTS, DirectBoot, DirectMachine};
pub use error::VmError;
pub use kernel_image::KernelImageError;
pub use machine::{MachineExit, Stopper};
pub use memory::MAPPING_NAME;
pub use sandbox::VmSandbox;

use super::{Isolation, IsolationError, IsolationKind, Sandbox, Stdio};
use crate::spec::RunSpec;

/// Runs workloads as microVMs.
#[derive(Debug, Default)]
pub struct VmIsolation(());

impl VmIsolation {
    /// The microVM isolation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Isolation::create`], for what only a microVM can do.
    ///
    /// # Errors
    /// As there.
    pub fn create_vm(&self, spec: &RunSpec, stdio: Stdio) -> Result<VmSandbox, VmError> {
        Ok(VmSandbox::new(plan::Plan::new(spec)?, stdio))
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
