//! What a virtio device owes its transport.

use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::mmio::VirtioInterrupt;

/// Everything that a device gets when the driver sets `DRIVER_OK`.
pub struct ActivationContext {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The queues that the driver enabled, checked by the transport, in the order of their indices.
    /// A queue that the driver left disabled is not ready (`QueueT::ready`).
    pub queues: Vec<Queue>,
    /// One eventfd a queue, which the guest's notification writes (an ioeventfd under KVM).
    /// The same ones at each activation.
    pub queue_events: Arc<[EventFd]>,
    /// How the device tells the driver of used buffers or of a changed configuration.
    pub interrupt: Arc<VirtioInterrupt>,
    /// The feature bits that both sides agreed on.
    pub features: u64,
}

/// The device cannot start its work; the transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
#[error("virtio device cannot be activated: {0}")]
pub struct ActivateError(pub String);

/// A virtio device without its transport. Status, feature negotiation and queue addresses live in the transport.
pub trait VirtioDevice: Send {
    /// The device ID (specification section 5).
    fn device_type(&self) -> u32;
    /// The largest size of each queue, a power of two; its length is the number of queues. Asked once.
    fn queue_max_sizes(&self) -> Vec<u16>;
    /// The feature bits that the device offers. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;
    /// Fills `data` from the configuration space at `offset`; what lies outside it stays as it is. Drivers see 256 bytes at most.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes to the configuration space; what lies outside it, or is read-only, is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Starts the device's work. Called once between resets, on a vCPU's thread: it must not block.
    ///
    /// # Errors
    /// The queues cannot be served.
    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError>;
    /// Stops the work and forgets the queues: guest memory is not touched any more once this returns.
    /// Afterwards the device may be activated again.
    fn reset(&mut self);
    /// Waits for the requests that the host is carrying out, and hands them back to the driver. New ones are not taken before
    /// the event loop calls the device again. Called on the event loop's thread, while no vCPU runs.
    fn quiesce(&mut self) {}
}

/// A device that lives on two threads: vCPUs reach it through its transport, an event loop through the clone
/// of the `Arc`. The lock is free unless a vCPU activates or resets the device, or reads its configuration.
impl<D: VirtioDevice> VirtioDevice for Arc<Mutex<D>> {
    fn device_type(&self) -> u32 {
        self.lock().unwrap_or_else(PoisonError::into_inner).device_type()
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        self.lock().unwrap_or_else(PoisonError::into_inner).queue_max_sizes()
    }
    fn features(&self) -> u64 {
        self.lock().unwrap_or_else(PoisonError::into_inner).features()
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read_config(offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write_config(offset, data);
    }
    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).activate(context)
    }
    fn reset(&mut self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }
    fn quiesce(&mut self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).quiesce();
    }
}
