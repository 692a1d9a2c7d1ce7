//! A guest with the device, programs of the host, and the packets between them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amphi_devices::virtio::vsock::Vsock;

use crate::guest::{BUFFERS, Guest, NEEDS_RESET, NOTIFY, STATUS, readable, writable};

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const CID: u64 = 3;

pub(super) const REQUEST: u16 = 1;
pub(super) const RESPONSE: u16 = 2;
pub(super) const RST: u16 = 3;
pub(super) const SHUTDOWN: u16 = 4;
pub(super) const RW: u16 = 5;
pub(super) const CREDIT_UPDATE: u16 = 6;
pub(super) const CREDIT_REQUEST: u16 = 7;

pub(super) const RECEIVE: u32 = 1;
pub(super) const SEND: u32 = 2;

/// The driver's window: what it has room for.
pub(super) const WINDOW: u32 = 20_000;
/// Where packets for the device lie, and where those from it go.
pub(super) const OUT: u64 = BUFFERS;
pub(super) const IN: u64 = BUFFERS + 0x20_0000;
const IN_LEN: u32 = 4096;

/// A folder of its own, removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("amphi-vsock-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("v")
    }

    /// A program that serves a port of the host's.
    pub(super) fn service(&self, port: u32) -> UnixListener {
        let listener = UnixListener::bind(self.0.join(format!("v_{port}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A program that connects to the device.
    pub(super) fn client(&self, greeting: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        stream
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn device(folder: &Folder) -> Vsock {
    Vsock::new(CID as u32, UnixListener::bind(folder.socket()).unwrap(), folder.socket()).unwrap()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) src: (u64, u32),
    pub(super) dst: (u64, u32),
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
    pub(super) data: Vec<u8>,
}

/// A packet from the guest's `port` to the host's.
pub(super) fn packet(port: u32, host_port: u32, op: u16) -> Packet {
    let (src, dst) = ((CID, port), (2, host_port));
    Packet { src, dst, kind: 1, op, flags: 0, buf_alloc: WINDOW, fwd_cnt: 0, data: Vec::new() }
}

impl Packet {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.src.0.to_le_bytes(), self.dst.0.to_le_bytes()].concat();
        for word in [self.src.1, self.dst.1, self.data.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([self.kind.to_le_bytes(), self.op.to_le_bytes()].concat());
        for word in [self.flags, self.buf_alloc, self.fwd_cnt] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.data);
        bytes
    }

    fn parse(bytes: &[u8]) -> Self {
        let number =
            |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
        let word = |at| number(at, 4) as u32;
        assert_eq!(bytes.len(), 44 + word(24) as usize, "the length is that of the data");
        Self {
            src: (number(0, 8), word(16)),
            dst: (number(8, 8), word(20)),
            kind: number(28, 2) as u16,
            op: number(30, 2) as u16,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
            data: bytes[44..].to_vec(),
        }
    }
}

pub(super) struct Machine {
    pub(super) guest: Guest,
    pub(super) folder: Folder,
}

impl Machine {
    pub(super) fn new(without: u64) -> Self {
        let folder = Folder::new();
        let mut guest = Guest::new(device(&folder));
        guest.start(without);
        let mut machine = Self { guest, folder };
        machine.fill(128);
        machine
    }

    /// Offers so many buffers for packets from the device.
    pub(super) fn fill(&mut self, count: usize) {
        for _ in 0..count {
            self.offer_buffer();
        }
        self.guest.notify(RX);
    }

    /// Which of the buffers: descriptors and buffers go round together.
    fn offer_buffer(&mut self) {
        // In two pieces that cut the header.
        let head = self.guest.add(RX, &[writable(IN, 40), writable(IN, 0)]);
        let at = IN + u64::from(head) * u64::from(IN_LEN);
        let size = self.guest.rings[RX].size;
        self.guest.descriptor(RX, head, at, 40, 3, (head + 1) % size);
        self.guest.descriptor(RX, (head + 1) % size, at + 40, IN_LEN - 40, 2, 0);
    }

    pub(super) fn send(&mut self, packet: &Packet) {
        self.send_without_notice(packet);
        self.guest.notify(TX);
    }

    pub(super) fn send_without_notice(&mut self, packet: &Packet) {
        let bytes = packet.bytes();
        self.guest.put(OUT, &bytes);
        self.guest.add(TX, &[readable(OUT, 44), readable(OUT + 44, bytes.len() as u32 - 44)]);
    }

    /// The next packet from the device; its buffer is offered again.
    pub(super) fn next(&mut self) -> Option<Packet> {
        self.guest.run();
        let (head, len) = self.guest.used(RX)?;
        let bytes = self.guest.get(IN + u64::from(head) * u64::from(IN_LEN), len as usize);
        self.offer_buffer();
        self.guest.write(NOTIFY, RX as u32);
        Some(Packet::parse(&bytes))
    }

    #[track_caller]
    pub(super) fn expect(&mut self, op: u16) -> Packet {
        let packet = self.next().unwrap_or_else(|| panic!("no packet came"));
        assert_eq!(packet.op, op, "{packet:?}");
        packet
    }

    #[track_caller]
    pub(super) fn expect_nothing(&mut self) {
        assert_eq!(self.next(), None);
        assert_eq!(self.guest.read(STATUS) & NEEDS_RESET, 0);
    }

    /// A connection that the host's program has made to port 80 of the guest; returns it with the host's port.
    pub(super) fn connected(&mut self) -> (UnixStream, u32) {
        let mut program = self.folder.client("CONNECT 80\n");
        let request = self.expect(REQUEST);
        assert_eq!((request.src.0, request.dst, request.kind), (2, (CID, 80), 1));
        self.send(&packet(80, request.src.1, RESPONSE));
        let answer = format!("OK {}\n", request.src.1);
        let mut bytes = vec![0; answer.len()];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, answer.as_bytes());
        (program, request.src.1)
    }

    /// A connection that the guest has made to port 7 of the host, with the program's end.
    pub(super) fn accepted(&mut self, service: &UnixListener, guest_port: u32) -> UnixStream {
        self.send(&packet(guest_port, 7, REQUEST));
        let response = self.expect(RESPONSE);
        assert_eq!((response.src, response.dst), ((2, 7), (CID, guest_port)));
        let (program, _) = service.accept().unwrap();
        program.set_nonblocking(false).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        program
    }

    /// All data that comes in a row.
    pub(super) fn data(&mut self) -> Vec<u8> {
        let mut data = Vec::new();
        while let Some(packet) = self.next() {
            assert_eq!(packet.op, RW, "{packet:?}");
            data.extend(packet.data);
        }
        data
    }
}

pub(super) fn ends(program: &mut UnixStream) {
    let mut byte = [0];
    match program.read(&mut byte) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} instead of the end"),
    }
}
