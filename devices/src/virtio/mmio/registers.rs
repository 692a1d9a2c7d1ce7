//! What the driver has written to a transport: plain data.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::virtio::ActivateError;

/// Half `select` of a 64-bit register that is reached as 32-bit words; words above the second are zero.
#[expect(clippy::cast_possible_truncation, reason = "cutting off the other half is the purpose")]
pub(super) fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Sets half `select` of a 64-bit register; words above the second do not exist.
pub(super) fn set_word(value: &mut u64, select: u32, word: u32) {
    match select {
        0 => *value = *value & !u64::from(u32::MAX) | u64::from(word),
        1 => *value = *value & u64::from(u32::MAX) | u64::from(word) << 32,
        _ => {}
    }
}

/// The registers that only the driver writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

/// One queue's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    descriptors: u64,
    driver_area: u64,
    device_area: u64,
}

impl Registers {
    pub(super) fn new(max_sizes: &[u16]) -> Self {
        let queues = max_sizes.iter().map(|&size| QueueRegisters::new(size)).collect();
        Self { device_features_sel: 0, driver_features_sel: 0, driver_features: 0, queue_sel: 0, queues }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(&sizes);
    }

    pub(super) fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    pub(super) fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size.into(), ready: false, descriptors: 0, driver_area: 0, device_area: 0 }
    }

    /// A ready queue keeps its values until it is taken out of service (section 4.2.2.2).
    pub(super) fn write(&mut self, offset: u32, value: u32) {
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            self.ready = value & 1 != 0;
            return;
        }
        if self.ready {
            return;
        }
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_word(&mut self.descriptors, 0, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_word(&mut self.descriptors, 1, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_word(&mut self.driver_area, 0, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_word(&mut self.driver_area, 1, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_word(&mut self.device_area, 0, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_word(&mut self.device_area, 1, value),
            _ => {}
        }
    }

    /// The queue that these registers describe, checked against `memory`; one that is not ready stays so.
    pub(super) fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, ActivateError> {
        let invalid = |what: &dyn std::fmt::Display| ActivateError(format!("{what}: {self:?}"));
        let mut queue = Queue::new(self.max_size).map_err(|error| invalid(&error))?;
        if !self.ready {
            return Ok(queue);
        }
        let size = u16::try_from(self.size).map_err(|_| invalid(&"queue size"))?;
        queue.try_set_size(size).map_err(|error| invalid(&error))?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).map_err(|error| invalid(&error))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver_area)).map_err(|error| invalid(&error))?;
        queue.try_set_used_ring_address(GuestAddress(self.device_area)).map_err(|error| invalid(&error))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // The queue crate takes an available ring at address 0 for one that was never set.
        if self.driver_area == 0 || !queue.is_valid(memory) {
            return Err(invalid(&"queue outside of guest memory"));
        }
        Ok(queue)
    }
}
