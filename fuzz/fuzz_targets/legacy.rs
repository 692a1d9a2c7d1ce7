//! The ports of a microVM: serial console, power, reset, watchdog, and what lies between them.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use amphi_devices::acpi::watchdog::{Expired, WATCHDOG_SIZE, Watchdog};
use amphi_devices::legacy::PowerEvents;
use amphi_devices::legacy::power::{POWER_SIZE, PowerControl};
use amphi_devices::legacy::reset::{KEYBOARD_CONTROLLER_PORT, KeyboardReset};
use amphi_devices::legacy::serial::{COM1_PORT, SERIAL_SIZE, Serial};
use amphi_devices::{Bus, Interrupt, timer};
use amphi_fuzz::Input;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use libfuzzer_sys::fuzz_target;

const POWER: u64 = 0x600;
const WATCHDOG: u64 = 0x610;

struct Line;

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Power;

impl PowerEvents for Power {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn panicked(&self) {}
}

struct Silence;

impl Expired for Silence {
    fn expired(&self) -> bool {
        true
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (reader, mut writer) = io::pipe().expect("descriptors");
    io::Write::write_all(&mut writer, bytes.get(..1024).unwrap_or(bytes)).expect("it fits");
    let serial = Serial::new(Box::new(Line), Box::new(io::sink()), Some(reader.into())).expect("an input");
    let serial = Arc::new(Mutex::new(serial));
    let mut events: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new().expect("an epoll");
    events.add_subscriber(Box::new(Arc::clone(&serial)));
    let mut bus = Bus::new();
    bus.insert(COM1_PORT, SERIAL_SIZE, serial).expect("free ports");
    bus.insert(POWER, POWER_SIZE, Arc::new(Mutex::new(PowerControl::new(Arc::new(Power))))).expect("free ports");
    let reset = Arc::new(Mutex::new(KeyboardReset::new(Arc::new(Power))));
    bus.insert(KEYBOARD_CONTROLLER_PORT, 1, reset).expect("a free port");

    let mut watchdog = Watchdog::new(300, timer::monotonic().expect("a timer"), Box::new(Silence));
    watchdog.start().expect("a timer");
    let watchdog = Arc::new(Mutex::new(watchdog));
    events.add_subscriber(Box::new(Arc::clone(&watchdog)));
    bus.insert(WATCHDOG, WATCHDOG_SIZE, Arc::clone(&watchdog) as _).expect("free ports");

    let mut input = Input::new(bytes);
    while !input.is_empty() {
        let [selector, offset] = input.take();
        let port = [COM1_PORT, POWER, KEYBOARD_CONTROLLER_PORT, WATCHDOG][usize::from(selector & 3)];
        let port = (port + u64::from(offset % 16)).saturating_sub(u64::from(selector >> 2 & 1));
        let len = [1, 1, 2, 4][usize::from(selector >> 3 & 3)];
        match selector >> 5 {
            0 => drop(events.run_with_timeout(0).expect("epoll")),
            1 | 2 => bus.read(port, &mut [0; 4][..len]),
            _ => bus.write(port, &input.take::<4>()[..len]),
        }
    }
    let state = watchdog.lock().expect("nothing has panicked").state();
    assert!((1..=300).contains(&state.length), "{state:?}");
});
