//! A small guest: memory, a driver's half of the transport and of the rings, and an event loop for the device.

use std::sync::{Arc, Mutex};

use amphi_devices::BusDevice;
use amphi_devices::virtio::VirtioDevice;
use amphi_devices::virtio::mmio::MmioTransport;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const MEMORY: u64 = 16 << 20;
/// Rings lie from here on, buffers above.
const RINGS: u64 = 0x10_0000;
const RING_SPACE: u64 = 0x4000;
pub(crate) const BUFFERS: u64 = 0x80_0000;
/// Where the second region of memory begins: right after the first, so that buffers may span both.
pub(crate) const SECOND_REGION: u64 = 0xc0_0000;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;

pub(crate) const NOTIFY: u64 = 0x50;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;

pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_VERSION_1: u64 = 1 << 32;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

pub(crate) fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

pub(crate) fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// The driver's side of one ring.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) transport: MmioTransport,
    pub(crate) interrupt: EventFd,
    pub(crate) events: EventManager<Subscriber>,
    pub(crate) rings: Vec<Ring>,
}

pub(crate) fn memory() -> GuestMemoryMmap {
    let second = (GuestAddress(SECOND_REGION), (MEMORY - SECOND_REGION) as usize);
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SECOND_REGION as usize), second]).unwrap()
}

impl Guest {
    /// A guest with a device on an event loop of its own.
    pub(crate) fn new<D: VirtioDevice + MutEventSubscriber + 'static>(device: D) -> Self {
        let device = Arc::new(Mutex::new(device));
        let mut guest = Self::without_events(Box::new(Arc::clone(&device)));
        guest.events.add_subscriber(Box::new(device));
        guest
    }

    pub(crate) fn without_events(device: Box<dyn VirtioDevice>) -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = memory();
        let line = Box::new(interrupt.try_clone().unwrap());
        let transport = MmioTransport::new(memory.clone(), device, line).unwrap();
        Self { memory, transport, interrupt, events: EventManager::new().unwrap(), rings: Vec::new() }
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(self.read(0x10)) << 32 | u64::from(low)
    }

    pub(crate) fn select_features(&mut self, features: u64) {
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, word);
        }
    }

    /// Up to `FEATURES_OK`; returns the status that the device shows then.
    pub(crate) fn negotiate(&mut self, features: u64) -> u32 {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.select_features(features);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(STATUS)
    }

    /// Lays out and enables every queue that the device has.
    pub(crate) fn set_up_queues(&mut self) {
        self.rings.clear();
        for index in 0.. {
            self.write(0x30, index);
            let size = self.read(0x34);
            if size == 0 {
                break;
            }
            let descriptors = RINGS + u64::from(index) * RING_SPACE;
            let available = descriptors + 0x2000;
            let used = descriptors + 0x3000;
            self.write(0x38, size);
            for (register, address) in [(0x80, descriptors), (0x90, available), (0xa0, used)] {
                self.write(register, address as u32);
                self.write(register + 4, (address >> 32) as u32);
            }
            self.write(0x44, 1);
            self.memory.write_slice(&[0; RING_SPACE as usize], GuestAddress(descriptors)).unwrap();
            let size = size as u16;
            let (next_descriptor, next_available, next_used) = (0, 0, 0);
            self.rings.push(Ring { size, descriptors, available, used, next_descriptor, next_available, next_used });
        }
    }

    /// From reset to a running device, with the offered features except `without`.
    pub(crate) fn start(&mut self, without: u64) {
        let features = self.offered() & !without;
        assert_eq!(self.negotiate(features), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.set_up_queues();
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.read(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.run();
    }

    /// Runs the device until it has nothing to do.
    pub(crate) fn run(&mut self) {
        for _ in 0..1000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device never rests");
    }

    /// One round of the event loop.
    pub(crate) fn turn(&mut self) {
        self.events.run_with_timeout(0).unwrap();
    }

    pub(crate) fn notify(&mut self, queue: usize) {
        self.write(NOTIFY, queue as u32);
        self.run();
    }

    pub(crate) fn descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.rings[queue].descriptors + u64::from(index) * 16);
        self.raw_descriptor(at, address, len, flags, next);
    }

    pub(crate) fn raw_descriptor(&self, at: GuestAddress, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Puts `head` on the available ring.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = GuestAddress(ring.available + 4 + u64::from(ring.next_available % ring.size) * 2);
        self.memory.write_obj(head, slot).unwrap();
        ring.next_available = ring.next_available.wrapping_add(1);
        self.memory.write_obj(ring.next_available, GuestAddress(ring.available + 2)).unwrap();
    }

    /// Makes the available ring's index any number.
    pub(crate) fn set_available(&mut self, queue: usize, index: u16) {
        let ring = &mut self.rings[queue];
        ring.next_available = index;
        self.memory.write_obj(index, GuestAddress(ring.available + 2)).unwrap();
    }

    /// Makes a chain available without notifying. Returns its head.
    pub(crate) fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.rings[queue];
        let first = ring.next_descriptor;
        ring.next_descriptor = (first + buffers.len() as u16) % ring.size;
        let size = ring.size;
        for (index, buffer) in buffers.iter().enumerate() {
            let this = (first + index as u16) % size;
            let last = index + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            self.descriptor(queue, this, buffer.address, buffer.len, flags, (this + 1) % size);
        }
        self.offer(queue, first);
        first
    }

    /// Makes a chain available in an indirect table at `table`.
    pub(crate) fn add_indirect(&mut self, queue: usize, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, buffer) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            let at = GuestAddress(table + index as u64 * 16);
            self.raw_descriptor(at, buffer.address, buffer.len, flags, index as u16 + 1);
        }
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor;
        ring.next_descriptor = (head + 1) % ring.size;
        self.descriptor(queue, head, table, buffers.len() as u32 * 16, INDIRECT, 0);
        self.offer(queue, head);
        head
    }

    /// The next chain that the device has used, and how much it wrote.
    pub(crate) fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(ring.used + 2)).unwrap();
        if index == ring.next_used {
            return None;
        }
        let slot = ring.used + 4 + u64::from(ring.next_used % ring.size) * 8;
        ring.next_used = ring.next_used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((head as u16, len))
    }

    /// The same, waiting for the host where the device does.
    pub(crate) fn wait_for_used(&mut self, queue: usize) -> (u16, u32) {
        for _ in 0..1000 {
            if let Some(used) = self.used(queue) {
                return used;
            }
            self.events.run_with_timeout(10).unwrap();
        }
        panic!("the device uses no chain");
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Whether the interrupt came since the last time.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.read().is_ok()
    }
}
