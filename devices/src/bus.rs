//! Address ranges of port or memory space, and the devices that answer there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A device that is reached by reads and writes within its range.
pub trait BusDevice: Send {
    /// Fills `data` from the device at `offset` from the start of its range. What is not written reads as zero.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the device at `offset` from the start of its range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Two devices want the same addresses, or a range is empty or wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range {start:#x}+{len:#x} is empty, wraps, or is taken")]
pub struct RangeError {
    /// The range's first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

struct Slot {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Finds the device for an address. Cheap to share between vCPU threads: each device has its own lock.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
}

impl Bus {
    /// A bus with no device on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `start..start + len`.
    ///
    /// # Errors
    /// The range is empty, wraps, or overlaps another.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), RangeError> {
        let error = RangeError { start, len };
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(error)?;
        let below = self.slots.range(..end).next_back();
        if below.is_some_and(|(&other, slot)| other + slot.len > start) {
            return Err(error);
        }
        self.slots.insert(start, Slot { len, device });
        Ok(())
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &Slot)> {
        let (&start, slot) = self.slots.range(..=address).next_back()?;
        let offset = address - start;
        (offset.checked_add(len as u64)? <= slot.len).then_some((offset, slot))
    }

    /// Reads from the device at `address`. Where there is none, all bits read as 1, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, slot)) => {
                data.fill(0);
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`. Where there is none, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, slot)) = self.find(address, data.len()) {
            slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cell(Vec<u8>);

    impl BusDevice for Cell {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            let offset = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.0[offset..offset + data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            let offset = usize::try_from(offset).unwrap();
            self.0[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.insert(0x100, 8, Arc::new(Mutex::new(Cell(vec![0; 8])))).unwrap();
        bus
    }

    #[test]
    fn what_is_written_is_read() {
        let bus = bus();
        bus.write(0x104, &[1, 2]);
        let mut data = [0; 4];
        bus.read(0x103, &mut data);
        assert_eq!(data, [0, 1, 2, 0]);
    }

    #[test]
    fn empty_addresses_read_as_ones() {
        let bus = bus();
        for address in [0, 0xff, 0x108, 0x107, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            bus.write(address, &data);
            assert_eq!(data, [0xff; 2], "{address:#x}");
        }
    }

    #[test]
    fn ranges_may_not_overlap() {
        let mut bus = bus();
        for (start, len) in [(0x100, 8), (0xf9, 8), (0x107, 1), (0x0, 0x1000), (0x200, 0), (u64::MAX, 2)] {
            let device = Arc::new(Mutex::new(Cell(Vec::new())));
            assert_eq!(bus.insert(start, len, device), Err(RangeError { start, len }));
        }
        bus.insert(0x108, 1, Arc::new(Mutex::new(Cell(vec![0])))).unwrap();
    }
}
