//! The driver of a console.

mod protocol;
mod streams;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amphi_devices::virtio::console::{Console, Port};

use crate::block::file;
use crate::guest::{BUFFERS, F_EVENT_IDX, Guest, NEEDS_RESET, STATUS, readable, writable};

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const F_MULTIPORT: u64 = 1 << 1;

const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const MESSAGES: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1_0000;

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

fn counter() -> (Arc<AtomicUsize>, Box<dyn FnOnce() + Send>) {
    let count = Arc::new(AtomicUsize::new(0));
    let inner = Arc::clone(&count);
    (
        count,
        Box::new(move || {
            inner.fetch_add(1, Ordering::SeqCst);
        }),
    )
}

fn output(id: u32, file: impl Into<OwnedFd>) -> Port {
    Port { id, output: Some(file.into()), ..Port::default() }
}

fn input(id: u32, file: impl Into<OwnedFd>) -> Port {
    Port { id, input: Some(file.into()), ..Port::default() }
}

fn receive_queue(id: u32) -> usize {
    if id == 0 { 0 } else { id as usize * 2 + 2 }
}

fn transmit_queue(id: u32) -> usize {
    receive_queue(id) + 1
}

/// The driver of a console.
struct Driver {
    guest: Guest,
}

impl Driver {
    /// With the control queue filled, and nothing said yet.
    fn silent(ports: Vec<Port>) -> Self {
        let mut driver = Self { guest: Guest::new(Console::new(ports).unwrap()) };
        driver.start(0);
        driver
    }

    /// With these ports known and open on both sides.
    fn open(ports: Vec<Port>) -> Self {
        let ids: Vec<u32> = ports.iter().map(|port| port.id).collect();
        let mut driver = Self::silent(ports);
        driver.open_ports(&ids);
        driver
    }

    fn start(&mut self, without: u64) {
        self.guest.start(without);
        for slot in 0..8 {
            self.guest.add(CONTROL_IN, &[writable(MESSAGES + slot * 64, 64)]);
        }
        self.guest.notify(CONTROL_IN);
    }

    fn open_ports(&mut self, ids: &[u32]) {
        self.say(u32::MAX, DEVICE_READY, 1);
        let mut added: Vec<u32> =
            self.heard().iter().map(|&(id, event, _)| (event == PORT_ADD).then_some(id).unwrap()).collect();
        added.sort_unstable();
        assert_eq!(added, ids);
        for &id in ids {
            self.say(id, PORT_READY, 1);
            self.say(id, PORT_OPEN, 1);
        }
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        let at = MESSAGES + 0x8000;
        self.guest.put(at, &message);
        self.guest.add(CONTROL_OUT, &[readable(at, 8)]);
        self.guest.notify(CONTROL_OUT);
        assert!(self.guest.used(CONTROL_OUT).is_some(), "messages are taken at once");
    }

    /// What the device has said; the buffers are given back.
    fn heard(&mut self) -> Vec<(u32, u16, u16)> {
        let mut heard = Vec::new();
        while let Some((head, len)) = self.guest.used(CONTROL_IN) {
            assert_eq!(len, 8);
            let at = MESSAGES + u64::from(head) * 64;
            let bytes = self.guest.get(at, 8);
            heard.push((
                u32::from_le_bytes(bytes[..4].try_into().unwrap()),
                u16::from_le_bytes(bytes[4..6].try_into().unwrap()),
                u16::from_le_bytes(bytes[6..].try_into().unwrap()),
            ));
            self.guest.offer(CONTROL_IN, head);
        }
        self.guest.notify(CONTROL_IN);
        heard
    }

    fn send(&mut self, id: u32, bytes: &[u8]) {
        let at = DATA + u64::from(id) * 0x1_0000;
        self.guest.put(at, bytes);
        self.guest.add(transmit_queue(id), &[readable(at, bytes.len() as u32)]);
        self.guest.notify(transmit_queue(id));
    }

    fn sent(&mut self, id: u32) -> usize {
        std::iter::from_fn(|| self.guest.used(transmit_queue(id))).count()
    }

    fn post(&mut self, id: u32, len: u32) {
        self.guest.add(receive_queue(id), &[writable(DATA, len)]);
        self.guest.notify(receive_queue(id));
    }

    fn received(&mut self, id: u32) -> Option<Vec<u8>> {
        let (_, len) = self.guest.used(receive_queue(id))?;
        Some(self.guest.get(DATA, len as usize))
    }
}

fn drain(reader: &mut File, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    reader.read_exact(&mut bytes).unwrap();
    bytes
}
