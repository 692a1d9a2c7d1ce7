//! Requests that the host is still carrying out when something else happens.

use std::time::Duration;

use amphi_devices::virtio::block::Engine;

use super::{DATA, HEADER, IN, IOERR, OK, OUT, STATUS_BYTE, block, file, put_header, request};
use crate::guest::{F_EVENT_IDX, Guest, NEEDS_RESET, NOTIFY, STATUS, readable, writable};

const MIB: u32 = 1 << 20;
/// Of requests that each read a mebibyte to the same place.
const REQUESTS: usize = 32;

/// A guest with a large disk that reads as `content`.
fn guest(content: u8) -> Guest {
    use std::os::unix::fs::FileExt;
    let file = file();
    file.write_all_at(&vec![content; REQUESTS * MIB as usize], 0).unwrap();
    let mut guest = Guest::new(block(file, Engine::IoUring));
    guest.start(0);
    guest
}

fn offer_reads(guest: &mut Guest) {
    put_header(guest, IN, 0);
    for _ in 0..REQUESTS {
        guest.add(0, &[readable(HEADER, 16), writable(DATA, MIB), writable(STATUS_BYTE, 1)]);
    }
    guest.write(NOTIFY, 0);
    guest.turn();
}

fn nothing_is_written(guest: &Guest) {
    guest.put(DATA, &vec![0; MIB as usize]);
    guest.put(STATUS_BYTE, &[0xee]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.get(DATA, MIB as usize).iter().all(|&byte| byte == 0), "memory is written after a reset");
    assert_eq!(guest.get(STATUS_BYTE, 1), [0xee], "a status is written after a reset");
}

#[test]
fn a_reset_waits_for_them() {
    let mut guest = guest(0xab);
    for _ in 0..10 {
        offer_reads(&mut guest);
        guest.write(STATUS, 0);
        nothing_is_written(&guest);
        guest.run();
        guest.start(0);
        assert_eq!(request(&mut guest, IN, 3, &[writable(DATA, 512)]), (OK, 513), "it works again");
    }
}

#[test]
fn a_monitor_that_wants_quiet_gets_it_and_the_driver_its_requests() {
    let mut guest = guest(0xab);
    guest.start(F_EVENT_IDX);
    for _ in 0..10 {
        offer_reads(&mut guest);
        guest.transport.quiesce();
        for _ in 0..REQUESTS {
            assert_eq!(guest.used(0).map(|(_, written)| written), Some(MIB + 1));
        }
        assert!(guest.interrupted());
        nothing_is_written(&guest);
        assert_eq!(request(&mut guest, IN, 3, &[writable(DATA, 512)]), (OK, 513), "it works on");
    }
}

#[test]
fn a_broken_chain_waits_for_them() {
    let mut guest = guest(0xab);
    for _ in 0..5 {
        guest.put(HEADER, &[0; 16]);
        for _ in 0..REQUESTS {
            guest.add(0, &[readable(HEADER, 16), writable(DATA, MIB), writable(STATUS_BYTE, 1)]);
        }
        guest.offer(0, u16::MAX);
        guest.notify(0);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0);
        nothing_is_written(&guest);
        guest.start(0);
    }
}

#[test]
fn a_chain_that_is_made_available_twice_breaks_the_queue() {
    for _ in 0..5 {
        let mut guest = guest(0xab);
        put_header(&guest, IN, 0);
        let head = guest.add(0, &[readable(HEADER, 16), writable(DATA, MIB), writable(STATUS_BYTE, 1)]);
        guest.offer(0, head);
        guest.notify(0);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0);
        guest.start(0);
        assert_eq!(request(&mut guest, IN, 3, &[writable(DATA, 512)]), (OK, 513));
    }
}

#[test]
fn many_at_once_all_end_and_each_with_its_own_data() {
    let mut guest = guest(0);
    for round in 0..4_u8 {
        for (kind, status) in [(OUT, OK), (IN, OK)] {
            for slot in 0..64_u64 {
                let header = HEADER + 0x2000 + slot * 16;
                let sector = slot * 2;
                guest.put(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
                let data = DATA + 0x8000 + slot * 1024;
                let byte = if kind == OUT { slot as u8 ^ round } else { 0xff };
                guest.put(data, &[byte; 1024]);
                guest.put(STATUS_BYTE + slot, &[0xff]);
                let half = |at| if kind == OUT { readable(at, 512) } else { writable(at, 512) };
                let chain = [readable(header, 16), half(data), half(data + 512), writable(STATUS_BYTE + slot, 1)];
                // Every other one in a single buffer.
                let single = if kind == OUT { readable(data, 1024) } else { writable(data, 1024) };
                let short = [chain[0], single, chain[3]];
                guest.add(0, if slot % 2 == 0 { &chain } else { &short });
            }
            guest.notify(0);
            for _ in 0..64 {
                let (_, written) = guest.wait_for_used(0);
                assert_eq!(written, if kind == OUT { 1 } else { 1025 });
            }
            assert_eq!(guest.get(STATUS_BYTE, 64), [status; 64]);
        }
        for slot in 0..64_u64 {
            assert_eq!(guest.get(DATA + 0x8000 + slot * 1024, 1024), [slot as u8 ^ round; 1024]);
        }
    }
    assert_eq!(request(&mut guest, IN, u64::from(MIB) * 32 / 512, &[writable(DATA, 512)]).0, IOERR);
}
