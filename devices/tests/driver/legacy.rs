//! The serial port, and the ways to switch a machine off.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use amphi_devices::BusDevice;
use amphi_devices::legacy::PowerEvents;
use amphi_devices::legacy::panic::PanicRegister;
use amphi_devices::legacy::power::{
    POWER_SIZE, PowerControl, RESET, RESET_VALUE, S5_TYPE, SLEEP_CONTROL, SLEEP_STATUS,
};
use amphi_devices::legacy::reset::KeyboardReset;
use amphi_devices::legacy::serial::Serial;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const DATA_READY: u8 = 1;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Machine {
    serial: Arc<Mutex<Serial>>,
    events: EventManager<Box<dyn MutEventSubscriber + Send>>,
    output: Output,
    interrupt: EventFd,
}

impl Machine {
    fn new(input: Option<OwnedFd>) -> Self {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let output = Output::default();
        let line = Box::new(interrupt.try_clone().unwrap());
        let serial = Serial::new(line, Box::new(output.clone()), input).unwrap();
        let serial = Arc::new(Mutex::new(serial));
        let mut events: EventManager<Box<dyn MutEventSubscriber + Send>> = EventManager::new().unwrap();
        events.add_subscriber(Box::new(Arc::clone(&serial)));
        let mut machine = Self { serial, events, output, interrupt };
        machine.run();
        machine
    }

    fn run(&mut self) {
        for _ in 0..100 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the serial port never rests");
    }

    fn read(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.serial.lock().unwrap().read(offset, &mut byte);
        byte[0]
    }

    fn write(&self, offset: u64, value: u8) {
        self.serial.lock().unwrap().write(offset, &[value]);
    }

    /// All that the guest can read now.
    fn receive(&self) -> Vec<u8> {
        std::iter::from_fn(|| (self.read(LINE_STATUS) & DATA_READY != 0).then(|| self.read(DATA))).collect()
    }
}

fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = io::pipe().unwrap();
    (reader.into(), OwnedFd::from(writer).into())
}

#[test]
fn serial_output_is_written_at_once() {
    let machine = Machine::new(None);
    for &byte in b"boot" {
        machine.write(DATA, byte);
        assert_eq!(machine.output.0.lock().unwrap().last(), Some(&byte));
    }
    assert_eq!(*machine.output.0.lock().unwrap(), b"boot");
}

#[test]
fn serial_input_is_taken_as_the_guest_reads_it() {
    let (reader, mut writer) = pipe();
    let mut machine = Machine::new(Some(reader));
    machine.write(INTERRUPT_ENABLE, 1);
    machine.write(MODEM_CONTROL, 1 << 3);
    let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
    writer.write_all(&text).unwrap();
    let mut received = Vec::new();
    while received.len() < text.len() {
        machine.run();
        assert!(machine.interrupt.read().is_ok(), "after {} bytes", received.len());
        let part = machine.receive();
        assert!((1..=64).contains(&part.len()), "{} bytes fit into the FIFO", part.len());
        received.extend(part);
    }
    assert_eq!(received, text);
    writer.write_all(b"more").unwrap();
    machine.run();
    assert_eq!(machine.receive(), b"more");
    drop(writer);
    machine.run();
    machine.run();
    assert_eq!(machine.receive(), b"");
}

#[test]
fn serial_input_waits_while_the_guest_tests_its_port() {
    let (reader, mut writer) = pipe();
    let mut machine = Machine::new(Some(reader));
    machine.write(INTERRUPT_ENABLE, 1);
    machine.write(MODEM_CONTROL, 1 << 4);
    machine.write(DATA, b'x');
    writer.write_all(b"input").unwrap();
    machine.run();
    assert_eq!(machine.receive(), b"x", "only what the guest sends itself");
    machine.run();
    assert_eq!(machine.receive(), b"");
    machine.write(MODEM_CONTROL, 1 << 3);
    machine.run();
    assert_eq!(machine.receive(), b"input");
    assert!(machine.output.0.lock().unwrap().is_empty());
}

#[test]
fn serial_input_waits_until_the_driver_wants_it() {
    let (reader, mut writer) = pipe();
    let mut machine = Machine::new(Some(reader));
    writer.write_all(b"typed early").unwrap();
    machine.run();
    assert_eq!(machine.receive(), b"", "a driver that starts up throws away what it finds");
    machine.write(LINE_CONTROL, 1 << 7);
    machine.write(INTERRUPT_ENABLE, 1);
    machine.run();
    assert_eq!(machine.receive(), b"", "the divisor latch is no interrupt enable register");
    machine.write(LINE_CONTROL, 0);
    machine.write(INTERRUPT_ENABLE, 0xf);
    machine.run();
    assert_eq!(machine.receive(), b"", "a driver that probes the port lets no interrupts out");
    machine.write(INTERRUPT_ENABLE, 0);
    machine.write(MODEM_CONTROL, 1 << 3);
    machine.run();
    assert_eq!(machine.receive(), b"", "nobody waits for data");
    machine.write(INTERRUPT_ENABLE, 1);
    machine.run();
    assert_eq!(machine.receive(), b"typed early");
}

#[test]
fn serial_port_is_as_at_first_after_a_reset() {
    let registers = |machine: &Machine| [1, 2, 3, 4, 5, 6, 7].map(|offset| machine.read(offset));
    let (reader, mut writer) = pipe();
    let mut machine = Machine::new(Some(reader));
    let first = registers(&machine);
    machine.write(INTERRUPT_ENABLE, 3);
    machine.write(MODEM_CONTROL, 1 << 3);
    writer.write_all(b"not taken").unwrap();
    machine.run();
    for (offset, value) in [(MODEM_CONTROL, 1 << 4), (DATA, b'x'), (7, 9), (LINE_CONTROL, 1 << 7), (DATA, 1), (1, 2)] {
        machine.write(offset, value);
    }
    machine.serial.lock().unwrap().reset();
    machine.run();
    assert_eq!(registers(&machine), first);
    machine.write(LINE_CONTROL, 1 << 7);
    assert_eq!([machine.read(0), machine.read(1)], [12, 0], "the divisor");
    machine.write(LINE_CONTROL, 0);
    writer.write_all(b"later").unwrap();
    machine.run();
    assert_eq!(machine.receive(), b"", "nobody waits for data, and what was there is gone");
    machine.write(INTERRUPT_ENABLE, 1);
    machine.write(MODEM_CONTROL, 1 << 3);
    machine.run();
    assert_eq!(machine.receive(), b"later");
    machine.write(DATA, b'o');
    assert_eq!(*machine.output.0.lock().unwrap(), b"o");
}

#[test]
fn serial_port_takes_bytes_only() {
    let machine = Machine::new(None);
    let mut serial = machine.serial.lock().unwrap();
    serial.write(DATA, &[1, 2]);
    serial.write(u64::MAX, &[1]);
    serial.read(u64::MAX, &mut [0]);
    serial.read(DATA, &mut [0; 4]);
    serial.read(DATA, &mut []);
    assert!(machine.output.0.lock().unwrap().is_empty());
}

#[derive(Default)]
struct Events(Mutex<Vec<&'static str>>);

impl Events {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl PowerEvents for Events {
    fn power_off(&self) {
        self.0.lock().unwrap().push("off");
    }
    fn reset(&self) {
        self.0.lock().unwrap().push("reset");
    }
    fn panicked(&self) {
        self.0.lock().unwrap().push("panic");
    }
}

#[test]
fn only_a_panic_without_a_crash_kernel_is_one() {
    let events = Arc::new(Events::default());
    let mut register = PanicRegister::new(Arc::clone(&events) as Arc<dyn PowerEvents>);
    let mut offered = [0];
    register.read(0, &mut offered);
    assert_eq!(offered, [3]);
    for value in 0..=u8::MAX {
        register.write(0, &[value]);
        let expected: &[&str] = if value & 1 != 0 { &["panic"] } else { &[] };
        assert_eq!(events.take(), expected, "{value:#x}");
        register.write(0, &[value, value]);
        assert!(events.take().is_empty());
    }
}

#[test]
fn only_s5_switches_off() {
    let events = Arc::new(Events::default());
    let mut power = PowerControl::new(Arc::clone(&events) as Arc<dyn PowerEvents>);
    for value in 0..=u8::MAX {
        power.write(SLEEP_CONTROL, &[value]);
        let enabled = value & 0b10_0000 != 0;
        let sleep_type = value >> 2 & 7;
        let expected: &[&str] = if enabled && sleep_type == S5_TYPE { &["off"] } else { &[] };
        assert_eq!(events.take(), expected, "{value:#x}");
        power.write(RESET, &[value]);
        let expected: &[&str] = if value == RESET_VALUE { &["reset"] } else { &[] };
        assert_eq!(events.take(), expected, "{value:#x}");
        power.write(SLEEP_STATUS, &[value]);
        power.write(SLEEP_CONTROL, &[value, value]);
        assert!(events.take().is_empty());
    }
    for offset in 0..POWER_SIZE {
        let mut byte = [0xff];
        power.read(offset, &mut byte);
        assert_eq!(byte, [0]);
    }
}

#[test]
fn keyboard_controller_resets() {
    let events = Arc::new(Events::default());
    let mut keyboard = KeyboardReset::new(Arc::clone(&events) as Arc<dyn PowerEvents>);
    let mut status = [0xff];
    keyboard.read(0, &mut status);
    assert_eq!(status, [0], "the input buffer is empty: nothing to wait for");
    for command in 0..=u8::MAX {
        keyboard.write(0, &[command]);
        let expected: &[&str] = if command == 0xfe { &["reset"] } else { &[] };
        assert_eq!(events.take(), expected, "{command:#x}");
    }
}
