//! A guest's behaviour as a string of bytes: what the fuzzers find is a file, and runs again anywhere.
//!
//! Every string is a program. Most of its operations are plausible, so that it comes far, and none needs to be.

use amphi_devices::BusDevice;

use crate::guest::{
    ACKNOWLEDGE, BUFFERS, Buffer, DRIVER, DRIVER_OK, FEATURES_OK, Guest, INDIRECT, MEMORY, NEXT, NOTIFY,
};
use crate::guest::{STATUS, WRITE, readable, writable};

/// More operations than this say nothing new.
const MOST_OPERATIONS: usize = 512;

/// The first port that a virtio-vsock device gives to a program of the host that connects.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The bytes still to be interpreted. At the end there are zeros.
#[allow(unreachable_pub, reason = "the fuzz targets' crate makes it public")]
pub struct Input<'a>(&'a [u8]);

#[allow(unreachable_pub, reason = "the fuzz targets' crate makes it public")]
impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        let (head, rest) = self.0.split_at(count);
        bytes[..count].copy_from_slice(head);
        self.0 = rest;
        bytes
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// The next two bytes.
    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// A register's value: any, or a small one, or a single bit.
    fn value(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from_le_bytes(self.take()),
            1 => 1 << (self.byte() % 64),
            _ => u64::from(self.byte()),
        }
    }

    /// A guest physical address: mostly of a buffer, now and then at an edge or anywhere.
    fn address(&mut self) -> u64 {
        match self.byte() % 16 {
            0 => u64::from_le_bytes(self.take()),
            1 => MEMORY - u64::from(self.byte()),
            2..=4 => BUFFERS + u64::from(self.half()) * 64,
            _ => BUFFERS + u64::from(self.byte() % 64) * 64,
        }
    }

    /// The length of a buffer.
    fn length(&mut self) -> u32 {
        match self.byte() % 8 {
            0 => u32::from_le_bytes(self.take()),
            1 => u32::from(self.half()),
            2 => 512 * u32::from(self.byte() % 16),
            3 => [0, 1, 8, 16][usize::from(self.byte() % 4)],
            _ => u32::from(self.byte()),
        }
    }
}

/// What is at the device's other side on the host: called whenever the program gives it a turn.
#[allow(unreachable_pub, reason = "the fuzz targets' crate makes it public")]
pub type Host<'a> = &'a mut dyn FnMut(&mut Input<'_>);

/// Runs the program on `guest`. Its device works whenever the program lets it, and in the end.
#[allow(dead_code, reason = "the fuzz targets always have a host's side")]
pub(crate) fn run(guest: &mut Guest, bytes: &[u8]) {
    run_with(guest, bytes, &mut |_| {});
}

/// The same, with somebody on the host.
pub(crate) fn run_with(guest: &mut Guest, bytes: &[u8], host: Host<'_>) {
    let mut input = Input::new(bytes);
    start(guest, 0);
    for _ in 0..MOST_OPERATIONS {
        if input.is_empty() {
            break;
        }
        operation(guest, &mut input, host);
    }
    guest.run();
}

/// Accesses registers only, and lets the device work now and then.
#[allow(dead_code, reason = "for the fuzz targets")]
pub(crate) fn run_registers(guest: &mut Guest, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    for operation in 0..2 * MOST_OPERATIONS {
        if input.is_empty() {
            break;
        }
        access(guest, &mut input);
        if operation % 16 == 15 {
            guest.run();
        }
    }
    guest.run();
}

fn operation(guest: &mut Guest, input: &mut Input<'_>, host: Host<'_>) {
    match input.byte() % 22 {
        0 => start(guest, input.value()),
        1 => access(guest, input),
        2 => descriptor(guest, input),
        3 => {
            if let Some(queue) = queue(guest, input) {
                let head = input.half();
                guest.offer(queue, head);
            }
        }
        4 => {
            let (address, bytes) = (input.address(), input.take::<16>());
            // Where there is no memory, a guest's write goes nowhere.
            if address <= MEMORY - 16 {
                guest.put(address, &bytes);
            }
        }
        5 => guest.turn(),
        6 => {
            let index = input.half();
            if let Some(queue) = queue(guest, input) {
                guest.set_available(queue, index);
            }
        }
        7 | 8 => {
            if let Some(queue) = queue(guest, input) {
                guest.write(NOTIFY, queue as u32);
                guest.run();
            }
        }
        9 => {
            let (table, count) = (input.address().min(MEMORY - 4096), input.byte() % 8);
            let buffers = buffers(input, count);
            if let Some(queue) = queue(guest, input) {
                guest.add_indirect(queue, table, &buffers);
            }
        }
        10..=12 => request(guest, input),
        13 | 14 => packet(guest, input),
        15 => supply(guest, input),
        16 => {
            host(input);
            guest.run();
        }
        // The machine's reset button.
        19 => guest.transport.reset(),
        20 | 21 => fuse_request(guest, input),
        _ => {
            let count = input.byte() % 4 + 1;
            let buffers = buffers(input, count);
            if let Some(queue) = queue(guest, input) {
                // What the first buffer says is often all that a device looks at.
                let (head, bytes) = (buffers[0].address, input.take::<16>());
                if head <= MEMORY - 16 {
                    guest.put(head, &bytes);
                }
                guest.add(queue, &buffers);
                guest.write(NOTIFY, queue as u32);
                guest.run();
            }
        }
    }
}

/// A request as most devices have them: a header with a small number first, perhaps sixteen bytes more, and room for an answer.
fn request(guest: &mut Guest, input: &mut Input<'_>) {
    let Some(queue) = queue(guest, input) else { return };
    let shape = input.byte();
    let (mut header, mut data) = (input.take::<16>(), input.take::<16>());
    if shape & 1 == 0 {
        header[0] %= 32;
        header[1..4].fill(0);
    }
    for (index, word) in data.chunks_exact_mut(4).enumerate() {
        if shape >> (4 + index) & 1 == 0 {
            word[0] %= 8;
            word[1..].fill(0);
        }
    }
    guest.put(BUFFERS, &header);
    guest.put(BUFFERS + 0x1000, &data);
    let mut buffers = vec![readable(BUFFERS, 16)];
    if shape & 2 == 0 {
        buffers.push(readable(BUFFERS + 0x1000, if shape & 4 == 0 { 16 } else { input.length() }));
    }
    buffers.push(writable(BUFFERS + 0x2000, if shape & 8 == 0 { 1 } else { input.length() }));
    guest.add(queue, &buffers);
    guest.write(NOTIFY, queue as u32);
    guest.run();
}

/// A packet of the guest's, on the queue that those go out by: a header as virtio-vsock has it (section 5.10.6), mostly of
/// a stream to the host with few ports, and data. To other devices it is a frame or a stream's bytes.
fn packet(guest: &mut Guest, input: &mut Input<'_>) {
    if guest.rings.len() < 2 {
        return;
    }
    let [shape, op, from, to] = input.take();
    let len = if shape & 1 == 0 { u32::from(shape) } else { input.length() };
    let host_port = u32::from(to % 4) | if to & 0x80 == 0 { 0 } else { FIRST_HOST_PORT };
    let [buf_alloc, fwd_cnt] = [2, 4].map(|bit| if shape & bit == 0 { 1 << 16 } else { input.value() as u32 });
    let mut header = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    for word in [u32::from(from % 4), host_port, len] {
        header.extend(word.to_le_bytes());
    }
    header.extend([1, 0, op % 8, 0]);
    for word in [u32::from(op >> 3 & 3), buf_alloc, fwd_cnt] {
        header.extend(word.to_le_bytes());
    }
    if shape & 0xf0 == 0xf0 {
        let at = usize::from(input.byte()) % header.len();
        header[at] = input.byte();
    }
    guest.put(BUFFERS + 0x3000, &header);
    let mut buffers = vec![readable(BUFFERS + 0x3000, 44)];
    if shape & 8 == 0 {
        buffers.push(readable(BUFFERS + 0x4000, len));
    }
    guest.add(1, &buffers);
    guest.write(NOTIFY, 1);
    guest.run();
}

/// FUSE requests: opcode, how many words come before the names, and how many names.
const FUSE: [(u32, u8, u8); 38] = [
    (1, 0, 1),
    (2, 2, 0),
    (3, 4, 0),
    (4, 22, 0),
    (5, 0, 0),
    (6, 0, 2),
    (8, 4, 1),
    (9, 2, 1),
    (10, 0, 1),
    (11, 0, 1),
    (12, 2, 2),
    (13, 2, 1),
    (14, 2, 0),
    (15, 10, 0),
    (16, 10, 1),
    (17, 0, 0),
    (18, 6, 0),
    (20, 4, 0),
    (21, 2, 2),
    (22, 2, 1),
    (23, 2, 0),
    (24, 0, 1),
    (26, 16, 0),
    (27, 2, 0),
    (28, 10, 0),
    (29, 6, 0),
    (30, 4, 0),
    (35, 4, 1),
    (36, 2, 0),
    (38, 0, 0),
    (42, 10, 0),
    (43, 8, 0),
    (44, 10, 0),
    (45, 4, 2),
    (46, 6, 0),
    (47, 14, 0),
    (50, 2, 0),
    (51, 4, 1),
];

/// A request to a file system device, mostly with numbers of nodes and handles that there may be.
fn fuse_request(guest: &mut Guest, input: &mut Input<'_>) {
    let Some(queue) = guest.rings.len().checked_sub(1) else { return };
    let [shape, which, node] = input.take();
    let (opcode, words, names) = FUSE[usize::from(which) % FUSE.len()];
    let mut body = Vec::new();
    for _ in 0..words / 2 {
        let value = if input.byte().is_multiple_of(4) { input.value() } else { u64::from(input.byte() % 8) };
        body.extend(value.to_le_bytes());
    }
    for _ in 0..names {
        let name: &[u8] = match input.byte() % 16 {
            0 => b"..",
            1 => b"d/../../outside",
            2 => &input.take::<8>(),
            3 => b"user.a",
            4 => b"file",
            n => &[b"fdsn"[usize::from(n) % 4]],
        };
        body.extend(name);
        body.push(0);
    }
    let len = if shape & 0x1f == 0x1f { input.length() } else { 40 + body.len() as u32 };
    let mut header = [len, opcode].map(u32::to_le_bytes).concat();
    for value in [7_u64, u64::from(node % 16), 0, 0] {
        header.extend(value.to_le_bytes());
    }
    guest.put(BUFFERS + 0x5000, &header);
    guest.put(BUFFERS + 0x6000, &body);
    let room = if shape & 0x60 == 0x60 { input.length() } else { 4096 };
    let mut buffers = vec![readable(BUFFERS + 0x5000, 40)];
    if !body.is_empty() {
        buffers.push(readable(BUFFERS + 0x6000, body.len() as u32));
    }
    buffers.push(writable(BUFFERS + 0x20_0000, room));
    guest.add(queue, &buffers);
    guest.write(NOTIFY, queue as u32);
    guest.run();
}

/// Buffers for what the device has to say.
fn supply(guest: &mut Guest, input: &mut Input<'_>) {
    let Some(queue) = queue(guest, input) else { return };
    let count = input.byte();
    let len = if count & 0x80 == 0 { 4096 } else { input.length() };
    for index in 0..u64::from(count % 16) {
        guest.add(queue, &[writable(BUFFERS + 0x10_0000 + index * 0x1000, len)]);
    }
    guest.write(NOTIFY, queue as u32);
    guest.run();
}

/// From reset to a running device, as far as it agrees.
fn start(guest: &mut Guest, without: u64) {
    let features = guest.offered() & !without;
    guest.negotiate(features);
    guest.set_up_queues();
    guest.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Reads or writes a register, with any width and at any offset.
fn access(guest: &mut Guest, input: &mut Input<'_>) {
    let selector = input.byte();
    let offset = if selector & 1 == 0 { u64::from(input.half() & 0xfff) } else { u64::from(input.byte() % 0x50) * 4 };
    let len = [1, 2, 4, 4, 4, 8, 3, 4][usize::from(selector >> 1 & 7)];
    if selector & 0x80 == 0 {
        let value = input.value();
        guest.transport.write(offset, &value.to_le_bytes()[..len]);
    } else {
        guest.transport.read(offset, &mut [0; 8][..len]);
    }
}

fn queue(guest: &Guest, input: &mut Input<'_>) -> Option<usize> {
    usize::from(input.byte()).checked_rem(guest.rings.len())
}

fn descriptor(guest: &Guest, input: &mut Input<'_>) {
    let Some(queue) = queue(guest, input) else { return };
    let size = guest.rings[queue].size;
    let (index, next) = (input.half() % size, input.half());
    let flags = u16::from(input.byte()) & (NEXT | WRITE | INDIRECT);
    let next = if input.byte().is_multiple_of(8) { next } else { next % size };
    guest.descriptor(queue, index, input.address(), input.length(), flags, next);
}

fn buffers(input: &mut Input<'_>, count: u8) -> Vec<Buffer> {
    let buffer = |input: &mut Input<'_>| {
        let writable = input.byte() & 1 == 1;
        Buffer { address: input.address(), len: input.length(), writable }
    };
    (0..count).map(|_| buffer(input)).collect()
}
