//! The transport's registers, with a device that only takes notes.

use std::sync::{Arc, Mutex};

use amphi_devices::BusDevice;
use amphi_devices::virtio::mmio::{MmioTransport, NOTIFY_OFFSET, RegisterPages, VirtioInterrupt};
use amphi_devices::virtio::{ActivateError, ActivationContext, VirtioDevice};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, F_EVENT_IDX, F_VERSION_1, FEATURES_OK, Guest, INTERRUPT_ACK, INTERRUPT_STATUS,
    MEMORY, NEEDS_RESET, STATUS,
};

const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Whether a queue is ready, its size, and whether it uses event indices.
type QueueNote = (bool, u16, bool);

#[derive(Default)]
struct Notes {
    activations: Vec<(u64, Vec<QueueNote>)>,
    interrupt: Option<Arc<VirtioInterrupt>>,
    resets: usize,
    config: [u8; 8],
    refuse: bool,
}

#[derive(Clone, Default)]
struct Noting(Arc<Mutex<Notes>>);

impl VirtioDevice for Noting {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![8, 256]
    }
    fn features(&self) -> u64 {
        1 | F_EVENT_IDX
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let notes = self.0.lock().unwrap();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = notes.config.get(offset as usize + index).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut notes = self.0.lock().unwrap();
        for (index, byte) in data.iter().enumerate() {
            if let Some(cell) = notes.config.get_mut(offset as usize + index) {
                *cell = *byte;
            }
        }
    }
    fn activate(&mut self, context: ActivationContext) -> Result<(), ActivateError> {
        let mut notes = self.0.lock().unwrap();
        let queues = context.queues.iter().map(|q| (q.ready(), q.size(), q.event_idx_enabled())).collect();
        notes.activations.push((context.features, queues));
        notes.interrupt = Some(context.interrupt);
        if notes.refuse { Err(ActivateError("on purpose".to_owned())) } else { Ok(()) }
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
}

fn guest() -> (Guest, Noting) {
    let device = Noting::default();
    (Guest::without_events(Box::new(device.clone())), device)
}

#[test]
fn identifies_itself() {
    let (mut guest, _) = guest();
    assert_eq!([guest.read(0), guest.read(4), guest.read(8)], [0x7472_6976, 2, 42]);
    assert_eq!(guest.offered(), 1 | F_EVENT_IDX | F_VERSION_1);
    guest.write(0x14, 2);
    assert_eq!(guest.read(0x10), 0, "there are 64 feature bits");
    for shared_memory in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(guest.read(shared_memory), u32::MAX);
    }
    let sizes = [0, 1, 2, u32::MAX].map(|queue| {
        guest.write(0x30, queue);
        guest.read(0x34)
    });
    assert_eq!(sizes, [8, 256, 0, 0]);
}

#[test]
fn only_aligned_words_reach_the_control_registers() {
    let (mut guest, _) = guest();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0xfe, 4)] {
        let mut data = vec![0xaa; len];
        guest.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
    }
    for len in [0, 1, 2, 3, 5, 8] {
        guest.transport.write(STATUS, &vec![ACKNOWLEDGE as u8; len]);
        assert_eq!(guest.read(STATUS), 0, "{len} bytes");
    }
}

#[test]
fn features_must_be_offered_and_modern() {
    let (mut guest, _) = guest();
    for (features, accepted) in [
        (0, false),
        (1, false),
        (F_VERSION_1, true),
        (F_VERSION_1 | 1 | F_EVENT_IDX, true),
        (F_VERSION_1 | 2, false),
        (u64::MAX, false),
    ] {
        let status = guest.negotiate(features);
        assert_eq!(status & FEATURES_OK != 0, accepted, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_agreed_on() {
    let (mut guest, device) = guest();
    guest.negotiate(F_VERSION_1);
    guest.select_features(F_VERSION_1 | 1);
    guest.write(STATUS, RUNNING);
    assert_eq!(device.0.lock().unwrap().activations[0].0, F_VERSION_1);
}

#[test]
fn steps_cannot_be_skipped_or_taken_back() {
    let (mut guest, device) = guest();
    guest.write(STATUS, DRIVER_OK);
    assert_eq!(guest.read(STATUS), 0);
    guest.write(STATUS, DRIVER);
    assert_eq!(guest.read(STATUS), 0);
    guest.negotiate(F_VERSION_1);
    guest.write(STATUS, ACKNOWLEDGE);
    assert_eq!(guest.read(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    guest.write(STATUS, RUNNING);
    guest.write(STATUS, RUNNING);
    assert_eq!(device.0.lock().unwrap().activations.len(), 1, "activated once");
}

#[test]
fn the_device_gets_the_queues_that_are_ready() {
    let (mut guest, device) = guest();
    guest.negotiate(F_VERSION_1 | F_EVENT_IDX);
    guest.set_up_queues();
    guest.write(0x30, 1);
    guest.write(0x44, 0);
    guest.write(STATUS, RUNNING);
    let notes = device.0.lock().unwrap();
    assert_eq!(notes.activations, [(F_VERSION_1 | F_EVENT_IDX, vec![(true, 8, true), (false, 256, false)])]);
}

#[test]
fn a_ready_queue_keeps_its_addresses() {
    let (mut guest, device) = guest();
    guest.negotiate(F_VERSION_1);
    guest.set_up_queues();
    guest.write(0x30, 0);
    guest.write(0x38, 3);
    guest.write(0x80, 0x1234_5678);
    guest.write(STATUS, RUNNING);
    assert_eq!(guest.read(STATUS), RUNNING);
    assert_eq!(device.0.lock().unwrap().activations[0].1[0], (true, 8, false));
    guest.write(0x30, 0);
    guest.write(0x44, 0);
    assert_eq!(guest.read(0x44), 1, "running queues are out of the driver's reach");
}

#[test]
fn unsound_queues_need_a_reset() {
    let cases: [(&str, &[(u64, u32)]); 8] = [
        ("size 0", &[(0x38, 0)]),
        ("no power of two", &[(0x38, 3)]),
        ("larger than offered", &[(0x38, 16)]),
        ("far larger", &[(0x38, 0x1_0008)]),
        ("misaligned", &[(0x80, 0x1001)]),
        ("outside of memory", &[(0x80, MEMORY as u32)]),
        ("wraps", &[(0xa0, u32::MAX - 3), (0xa4, u32::MAX)]),
        ("null", &[(0x90, 0), (0x94, 0)]),
    ];
    for (what, writes) in cases {
        let (mut guest, device) = guest();
        guest.negotiate(F_VERSION_1);
        guest.set_up_queues();
        guest.write(0x30, 0);
        guest.write(0x44, 0);
        for &(offset, value) in writes {
            guest.write(offset, value);
        }
        guest.write(0x44, 1);
        guest.write(STATUS, RUNNING);
        assert_eq!(guest.read(STATUS), RUNNING | NEEDS_RESET, "{what}");
        assert_eq!(guest.read(INTERRUPT_STATUS), 2, "{what}");
        assert!(guest.interrupted(), "{what}");
        assert!(device.0.lock().unwrap().activations.is_empty(), "{what}");
        guest.start(0);
    }
}

#[test]
fn a_device_may_refuse() {
    let (mut guest, device) = guest();
    device.0.lock().unwrap().refuse = true;
    guest.negotiate(F_VERSION_1);
    guest.write(STATUS, RUNNING);
    assert_eq!(guest.read(STATUS), RUNNING | NEEDS_RESET);
    assert!(guest.interrupted());
}

#[test]
fn reset_forgets_everything() {
    let (mut guest, device) = guest();
    guest.start(0);
    device.0.lock().unwrap().interrupt.as_ref().unwrap().signal_used_queue();
    guest.write(STATUS, 0);
    assert_eq!(device.0.lock().unwrap().resets, 2, "starting resets too");
    assert_eq!([guest.read(STATUS), guest.read(INTERRUPT_STATUS), guest.read(0x44)], [0, 0, 0]);
    guest.negotiate(F_VERSION_1);
    guest.write(STATUS, RUNNING);
    let notes = device.0.lock().unwrap();
    assert!(notes.activations[1].1.iter().all(|queue| !queue.0), "no queue is left from before");
}

#[test]
fn a_reset_of_the_host_is_one_of_the_drivers() {
    let (mut guest, device) = guest();
    // Whatever the driver was about: selectors that point elsewhere, a step that it has not finished, a failure.
    guest.start(0);
    for (offset, value) in [(0x14, 1), (0x24, 1), (0x30, 1), (STATUS, RUNNING | 128)] {
        guest.write(offset, value);
    }
    device.0.lock().unwrap().interrupt.as_ref().unwrap().needs_reset();
    guest.transport.reset();
    assert_eq!(device.0.lock().unwrap().resets, 2, "starting resets too");
    assert_eq!([guest.read(STATUS), guest.read(INTERRUPT_STATUS), guest.read(0x44)], [0, 0, 0]);
    assert_eq!(guest.read(0x10), (1 | F_EVENT_IDX) as u32, "the low half of the features is selected");
    guest.transport.reset();
    guest.start(0);
    assert_eq!((guest.read(STATUS), device.0.lock().unwrap().activations.len()), (RUNNING, 2));
}

#[test]
fn notifications_reach_the_queue_they_name() {
    let (mut guest, _) = guest();
    guest.write(NOTIFY_OFFSET, 0);
    assert!(guest.transport.queue_events()[0].read().is_err(), "not before it runs");
    guest.start(0);
    guest.write(NOTIFY_OFFSET, 1);
    guest.write(NOTIFY_OFFSET, 2);
    guest.write(NOTIFY_OFFSET, u32::MAX);
    assert!(guest.transport.queue_events()[0].read().is_err());
    assert_eq!(guest.transport.queue_events()[1].read().unwrap(), 1);
}

#[test]
fn interrupts_stay_until_acknowledged() {
    let (mut guest, device) = guest();
    guest.start(0);
    let interrupt = device.0.lock().unwrap().interrupt.clone().unwrap();
    let generation = guest.read(0xfc);
    interrupt.signal_used_queue();
    assert!(guest.interrupted());
    assert_eq!(guest.read(INTERRUPT_STATUS), 1);
    interrupt.signal_config_change(&[7, 6, 5]);
    assert!(guest.interrupted());
    assert_eq!(guest.read(INTERRUPT_STATUS), 3);
    assert_eq!(guest.read(0xfc), generation + 1);
    assert_eq!(guest.config(0), [7, 6, 5, 0]);
    guest.write(INTERRUPT_ACK, 1);
    assert_eq!(guest.read(INTERRUPT_STATUS), 2);
    guest.write(INTERRUPT_ACK, u32::MAX);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    interrupt.needs_reset();
    assert_eq!(guest.read(STATUS), RUNNING | NEEDS_RESET);
    assert_eq!(interrupt.device_status(), RUNNING | NEEDS_RESET);
}

/// Nobody sets the status register for interrupts that the host's kernel raises.
#[test]
fn what_the_kernel_may_signal_stays_set_until_a_reset() {
    let (mut guest, device) = guest();
    guest.start(0);
    let interrupt = device.0.lock().unwrap().interrupt.clone().unwrap();
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    interrupt.used_queue_event().unwrap().write(1).unwrap();
    assert!(guest.interrupted());
    interrupt.signal_config_change(&[1]);
    assert_eq!(guest.read(INTERRUPT_STATUS), 3);
    guest.write(INTERRUPT_ACK, 3);
    assert_eq!(guest.read(INTERRUPT_STATUS), 1);
    guest.write(STATUS, 0);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    guest.start(0);
    interrupt.signal_used_queue();
    guest.write(INTERRUPT_ACK, 1);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
}

#[test]
fn the_registers_page_shows_what_reads_give() {
    let pages = RegisterPages::new(2).unwrap();
    assert!(pages.page(2).is_none());
    let line = Box::new(EventFd::new(0).unwrap());
    let device = Box::new(Noting::default());
    let page = pages.page(1).unwrap();
    let mut transport = MmioTransport::with_registers(crate::guest::memory(), device, line, page).unwrap();
    let compare = |transport: &mut MmioTransport| {
        for offset in (0..0x1000).step_by(4) {
            let mut read = [0; 4];
            transport.read(offset, &mut read);
            let shown = pages.host_address().wrapping_add(0x1000 + offset as usize);
            // SAFETY: The second page begins at 0x1000, is mapped, and nobody else has it here.
            assert_eq!(unsafe { shown.cast::<[u8; 4]>().read_volatile() }, read, "{offset:#x}");
        }
    };
    compare(&mut transport);
    // Status, both halves of the features, a queue, and the configuration, in an order that a driver has.
    let writes = [
        (0x70, 1),
        (0x70, 3),
        (0x14, 1),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 1),
        (0x38, 8),
        (0x44, 1),
        (0x100, 7),
    ];
    for (offset, value) in writes {
        transport.write(offset, &u32::to_le_bytes(value));
        compare(&mut transport);
    }
    let mut queue_is_ready = [0; 4];
    transport.read(0x44, &mut queue_is_ready);
    assert_eq!(queue_is_ready, [1, 0, 0, 0]);
    // SAFETY: The first page is mapped as well.
    let neighbour = unsafe { pages.host_address().cast::<[u8; 0x1000]>().read_volatile() };
    assert_eq!(neighbour, [0; 0x1000]);
}

#[test]
fn configuration_is_read_in_any_width_and_written_by_a_driver() {
    let (mut guest, device) = guest();
    guest.transport.write(0x100, &[9]);
    assert_eq!(guest.config(0), [0_u8], "nobody drives it yet");
    guest.write(STATUS, ACKNOWLEDGE);
    guest.write(STATUS, ACKNOWLEDGE | DRIVER);
    guest.transport.write(0x101, &[1, 2, 3]);
    assert_eq!(device.0.lock().unwrap().config, [0, 1, 2, 3, 0, 0, 0, 0]);
    assert_eq!(guest.config(2), [2, 3]);
    assert_eq!(guest.config(0), [0, 1, 2, 3, 0, 0, 0, 0]);
    assert_eq!(guest.config(0xeff), [0_u8]);
}

#[test]
fn queue_sizes_must_be_powers_of_two() {
    struct Odd;
    impl VirtioDevice for Odd {
        fn device_type(&self) -> u32 {
            1
        }
        fn queue_max_sizes(&self) -> Vec<u16> {
            vec![3]
        }
        fn features(&self) -> u64 {
            0
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn write_config(&mut self, _: u64, _: &[u8]) {}
        fn activate(&mut self, _: ActivationContext) -> Result<(), ActivateError> {
            Ok(())
        }
        fn reset(&mut self) {}
    }
    let line = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let transport =
        amphi_devices::virtio::mmio::MmioTransport::new(crate::guest::memory(), Box::new(Odd), Box::new(line));
    assert!(transport.is_err());
}
