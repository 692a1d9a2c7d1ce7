//! Requests to make persistent memory last.

use std::fs::File;

use amphi_devices::virtio::pmem::Pmem;
use vm_memory::GuestAddress;

use crate::block::file;
use crate::guest::{BUFFERS, Buffer, F_EVENT_IDX, Guest, NEEDS_RESET, NOTIFY, STATUS, readable, writable};

const START: u64 = 1 << 40;
const SIZE: u64 = 6 << 20;
const REQUEST: u64 = BUFFERS;
const RESPONSE: u64 = BUFFERS + 0x1000;

/// Persistent memory over `file`.
pub(crate) fn guest(file: Option<File>) -> Guest {
    Guest::new(Pmem::new(GuestAddress(START), SIZE, file).unwrap())
}

fn started(file: Option<File>) -> Guest {
    let mut guest = guest(file);
    guest.start(F_EVENT_IDX);
    guest
}

/// The device's answer to a request of that kind.
fn answer(guest: &mut Guest, kind: u32) -> u32 {
    guest.put(REQUEST, &kind.to_le_bytes());
    guest.put(RESPONSE, &[0xee; 8]);
    let head = guest.add(0, &[readable(REQUEST, 4), writable(RESPONSE, 4)]);
    guest.notify(0);
    assert_eq!(guest.used(0), Some((head, 4)));
    assert!(guest.interrupted());
    let answer = guest.get(RESPONSE, 8);
    assert_eq!(answer[4..], [0xee; 4], "nothing beyond the answer");
    u32::from_le_bytes(answer[..4].try_into().unwrap())
}

#[test]
fn the_driver_is_told_where_it_is() {
    let mut guest = started(None);
    assert_eq!(guest.read(0x08), 27, "the device is persistent memory");
    assert_eq!(u64::from_le_bytes(guest.config(0)), START);
    assert_eq!(u64::from_le_bytes(guest.config(8)), SIZE);
}

#[test]
fn flushes_succeed_or_fail_and_other_requests_fail() {
    for file in [Some(file()), None] {
        let mut guest = started(file);
        assert_eq!((answer(&mut guest, 0), answer(&mut guest, 1), answer(&mut guest, u32::MAX)), (0, 1, 1));
    }
    // A pipe cannot be flushed.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut guest = started(Some(File::from(std::os::fd::OwnedFd::from(writer))));
    assert_eq!(answer(&mut guest, 0), 1);
}

#[test]
fn many_requests_are_answered_in_order() {
    let mut guest = started(Some(file()));
    guest.put(REQUEST, &[0; 4]);
    for round in 0..5 {
        let heads: Vec<_> = (0..32).map(|_| guest.add(0, &[readable(REQUEST, 4), writable(RESPONSE, 4)])).collect();
        guest.write(NOTIFY, 0);
        guest.run();
        let used: Vec<_> = std::iter::from_fn(|| guest.used(0)).collect();
        assert_eq!(used, heads.iter().map(|&head| (head, 4)).collect::<Vec<_>>(), "round {round}");
    }
}

#[test]
fn requests_without_room_stop_the_device() {
    let chains: [&[Buffer]; 4] = [
        &[readable(REQUEST, 3), writable(RESPONSE, 4)],
        &[readable(REQUEST, 4), writable(RESPONSE, 3)],
        &[readable(REQUEST, 4)],
        &[writable(RESPONSE, 4)],
    ];
    for chain in chains {
        let mut guest = started(Some(file()));
        guest.put(REQUEST, &[0; 4]);
        let head = guest.add(0, &[readable(REQUEST, 4), writable(RESPONSE, 4)]);
        guest.add(0, chain);
        guest.notify(0);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
        assert_eq!(guest.used(0), Some((head, 4)), "what came before is answered");
        guest.start(F_EVENT_IDX);
        assert_eq!(answer(&mut guest, 0), 0, "it works again after a reset");
    }
}
