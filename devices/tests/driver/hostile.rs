//! Drivers that break the rules: the device says that it needs a reset, and works again after it.

use amphi_devices::virtio::block::{Block, Engine};
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress};

use crate::block::{self, file};
use crate::guest::{BUFFERS, Guest, INDIRECT, MEMORY, NEEDS_RESET, NEXT, STATUS, WRITE, readable, writable};
use crate::{balloon, net, vsock};

const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const PORT_IN: usize = 4;
const PORT_OUT: usize = 5;

fn console() -> Guest {
    let port = Port { id: 1, input: Some(file().into()), output: Some(file().into()), ..Port::default() };
    let mut guest = Guest::new(Console::new(vec![port]).unwrap());
    start_console(&mut guest);
    guest
}

/// With the port open, so that its queues are looked at.
fn start_console(guest: &mut Guest) {
    guest.start(0);
    guest.put(BUFFERS, &[1, 0, 0, 0, 6, 0, 1, 0]);
    guest.add(CONTROL_OUT, &[readable(BUFFERS, 8)]);
    guest.notify(CONTROL_OUT);
    assert!(guest.used(CONTROL_OUT).is_some());
}

fn block() -> Guest {
    let file = file();
    file.set_len(1 << 20).unwrap();
    let mut guest = Guest::new(Block::new(file, false, "").unwrap());
    guest.start(0);
    guest
}

fn block_with_io_uring() -> Guest {
    let file = file();
    file.set_len(1 << 20).unwrap();
    let mut guest = Guest::new(block::block(file, Engine::IoUring));
    guest.start(0);
    guest
}

type Trick = fn(&mut Guest, usize);

/// What is wrong for every device.
const TRICKS: [(&str, Trick); 12] = [
    ("the head is outside of the table", |guest, queue| guest.offer(queue, u16::MAX)),
    ("the head is just outside of the table", |guest, queue| {
        let size = guest.rings[queue].size;
        guest.offer(queue, size);
    }),
    ("a chain leaves the table", |guest, queue| {
        guest.descriptor(queue, 0, BUFFERS, 16, NEXT, u16::MAX);
        guest.offer(queue, 0);
    }),
    ("a chain loops onto itself", |guest, queue| {
        guest.descriptor(queue, 0, BUFFERS, 16, NEXT, 0);
        guest.offer(queue, 0);
    }),
    ("a chain loops over two", |guest, queue| {
        guest.descriptor(queue, 0, BUFFERS, 16, NEXT | WRITE, 1);
        guest.descriptor(queue, 1, BUFFERS, 16, NEXT | WRITE, 0);
        guest.offer(queue, 0);
    }),
    ("a buffer is outside of memory", |guest, queue| {
        guest.add(queue, &[readable(BUFFERS, 16), writable(MEMORY, 1)]);
    }),
    ("a buffer crosses the end of memory", |guest, queue| {
        guest.add(queue, &[readable(MEMORY - 8, 16), writable(BUFFERS, 512)]);
    }),
    ("a buffer wraps", |guest, queue| {
        guest.add(queue, &[readable(u64::MAX - 8, 16), writable(u64::MAX, u32::MAX)]);
    }),
    ("buffers sum up to more than 4 GiB", |guest, queue| {
        guest.add(queue, &[writable(0, u32::MAX), writable(0, u32::MAX)]);
    }),
    ("a readable buffer follows a writable one", |guest, queue| {
        guest.add(queue, &[readable(BUFFERS, 16), writable(BUFFERS, 512), readable(BUFFERS, 16)]);
    }),
    ("an indirect table within an indirect table", |guest, queue| {
        guest.raw_descriptor(GuestAddress(BUFFERS + 0x100), BUFFERS + 0x100, 16, INDIRECT, 0);
        guest.descriptor(queue, 0, BUFFERS + 0x100, 16, INDIRECT, 0);
        guest.offer(queue, 0);
    }),
    ("more is available than the queue holds", |guest, queue| {
        guest.add(queue, &[readable(BUFFERS, 16)]);
        let index = GuestAddress(guest.rings[queue].available + 2);
        guest.memory.write_obj(40_000_u16, index).unwrap();
    }),
];

/// Indirect tables that are wrong for every device.
const TABLES: [(&str, u64, u32); 5] = [
    ("empty", BUFFERS, 0),
    ("no whole descriptors", BUFFERS, 17),
    ("outside of memory", MEMORY, 16),
    ("wrapping", u64::MAX - 15, 32),
    ("too long", 0, 16 * 0x1_0000),
];

fn is_stopped(guest: &mut Guest, queue: usize, what: &str) {
    guest.notify(queue);
    assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "queue {queue}: {what}");
    assert!(guest.interrupted(), "queue {queue}: {what}");
    // It stays stopped, whatever comes.
    guest.notify(queue);
    assert!(guest.used(queue).is_none(), "queue {queue}: {what}");
}

fn every_trick_stops(make: fn() -> Guest, restart: fn(&mut Guest), queues: &[usize]) {
    for &queue in queues {
        for (what, trick) in TRICKS {
            let mut guest = make();
            guest.put(BUFFERS, &[0; 4096]);
            while guest.interrupted() {}
            trick(&mut guest, queue);
            is_stopped(&mut guest, queue, what);
            restart(&mut guest);
        }
        for (what, table, len) in TABLES {
            let mut guest = make();
            while guest.interrupted() {}
            guest.descriptor(queue, 0, table, len, INDIRECT, 0);
            guest.offer(queue, 0);
            is_stopped(&mut guest, queue, what);
            restart(&mut guest);
        }
    }
}

#[test]
fn block_stops_and_recovers() {
    every_trick_stops(block, |guest| guest.start(0), &[0]);
    every_trick_stops(block_with_io_uring, |guest| guest.start(0), &[0]);
}

fn rng() -> Guest {
    let mut guest = Guest::new(Rng::new().unwrap());
    guest.start(0);
    guest
}

#[test]
fn rng_stops_and_recovers() {
    every_trick_stops(rng, |guest| guest.start(0), &[0]);
}

fn vsock() -> Guest {
    let mut guest = Guest::new(vsock::device(&vsock::Folder::new()));
    guest.start(0);
    guest
}

fn started_balloon() -> Guest {
    let mut guest = balloon::balloon();
    guest.start(0);
    guest
}

#[test]
fn balloon_stops_and_recovers() {
    every_trick_stops(started_balloon, |guest| guest.start(0), &[0, 1, 2]);
}

#[test]
fn vsock_stops_and_recovers() {
    every_trick_stops(vsock, |guest| guest.start(0), &[1]);
}

#[test]
fn console_stops_and_recovers() {
    every_trick_stops(console, start_console, &[CONTROL_OUT, PORT_IN, PORT_OUT]);
}

#[test]
fn net_stops_and_recovers() {
    every_trick_stops(net::hostile_guest, |guest| guest.start(0), &[net::RECEIVE, net::TRANSMIT]);
}

#[test]
fn an_indirect_table_longer_than_the_queue_is_refused() {
    let mut guest = block();
    let table = BUFFERS + 0x10_0000;
    // A request for the serial number that is sound but for its length.
    guest.put(BUFFERS, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut buffers = vec![writable(BUFFERS + 0x1000, 1); 256];
    buffers[0] = readable(BUFFERS, 16);
    guest.add_indirect(0, table, &buffers);
    guest.notify(0);
    assert!(guest.used(0).is_some(), "256 buffers fit");
    while guest.interrupted() {}
    buffers.push(writable(BUFFERS + 0x1000, 1));
    guest.add_indirect(0, table, &buffers);
    is_stopped(&mut guest, 0, "257 buffers in a queue of 256");
}

#[test]
fn requests_without_header_or_status_are_refused() {
    for (what, chain) in [
        ("no header", vec![writable(BUFFERS, 512)]),
        ("half a header", vec![readable(BUFFERS, 15), writable(BUFFERS, 1)]),
        ("no status", vec![readable(BUFFERS, 16)]),
        ("empty status", vec![readable(BUFFERS, 16), writable(BUFFERS, 0)]),
        ("nothing at all", vec![readable(0, 0)]),
    ] {
        let mut guest = block();
        guest.add(0, &chain);
        is_stopped(&mut guest, 0, what);
    }
}

#[test]
fn console_buffers_of_the_wrong_kind_are_refused() {
    for (queue, chain) in [
        (CONTROL_OUT, writable(BUFFERS, 8)),
        (CONTROL_OUT, readable(BUFFERS, 7)),
        (PORT_IN, readable(BUFFERS, 64)),
        (PORT_IN, writable(BUFFERS, 0)),
    ] {
        let mut guest = console();
        guest.add(queue, &[chain]);
        is_stopped(&mut guest, queue, &format!("{chain:?}"));
    }
    // The device looks at these only once it has something to say.
    for chain in [readable(BUFFERS, 8), writable(BUFFERS, 7)] {
        let mut guest = console();
        guest.add(CONTROL_IN, &[chain]);
        guest.put(BUFFERS, &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]);
        guest.add(CONTROL_OUT, &[readable(BUFFERS, 8)]);
        guest.notify(CONTROL_OUT);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
    }
}

#[test]
fn what_precedes_a_broken_chain_is_reported() {
    let mut guest = block();
    guest.put(BUFFERS, &[0; 64]);
    let good = guest.add(0, &[readable(BUFFERS, 16), writable(BUFFERS + 0x1000, 513)]);
    guest.offer(0, u16::MAX);
    guest.notify(0);
    assert_eq!(guest.used(0), Some((good, 513)));
    assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn receive_buffers_without_room_for_a_header_are_refused() {
    for chain in [writable(BUFFERS, 11), readable(BUFFERS, 100), writable(BUFFERS, 0)] {
        let (mut guest, mut peer) = net::guest(0);
        net::put(&mut peer, &net::frame(60, 0));
        guest.add(net::RECEIVE, &[chain]);
        guest.notify(net::RECEIVE);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
    }
}

#[test]
fn a_buffer_that_is_given_twice_is_refused() {
    let (mut guest, mut peer) = net::guest(0);
    let head = guest.add(net::RECEIVE, &[writable(BUFFERS, 100)]);
    guest.offer(net::RECEIVE, head);
    guest.notify(net::RECEIVE);
    net::put(&mut peer, &net::frame(150, 0));
    guest.run();
    assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0);
    guest.start(0);
}

#[test]
fn frames_to_send_without_a_whole_header_are_refused() {
    for chain in [readable(BUFFERS, 11), writable(BUFFERS, 100), readable(BUFFERS, 0)] {
        let (mut guest, _peer) = net::guest(0);
        guest.add(net::TRANSMIT, &[chain]);
        guest.notify(net::TRANSMIT);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
    }
}
