//! Requests to a disk.

mod limits;
mod under_way;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use amphi_devices::virtio::block::{Block, Engine};

use crate::guest::{
    BUFFERS, Buffer, F_EVENT_IDX, Guest, NEEDS_RESET, NOTIFY, SECOND_REGION, STATUS, readable, writable,
};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SECTORS: u64 = 64;
const HEADER: u64 = BUFFERS;
const STATUS_BYTE: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const F_FLUSH: u64 = 1 << 9;

/// Makes a test for each engine of each function.
macro_rules! with_both_engines {
    ($($test:ident,)*) => {
        mod sync {
            $(#[test]
            fn $test() {
                super::$test(amphi_devices::virtio::block::Engine::Sync);
            })*
        }
        mod io_uring {
            $(#[test]
            fn $test() {
                super::$test(amphi_devices::virtio::block::Engine::IoUring);
            })*
        }
    };
}
pub(crate) use with_both_engines;

with_both_engines! {
    shows_its_size_and_limits,
    reads_into_scattered_buffers_and_across_regions,
    writes_what_it_reads_later,
    parts_may_be_cut_anywhere,
    indirect_chains_work,
    tells_its_serial_number,
    refuses_what_it_cannot_do,
    a_read_only_disk_is_not_written,
    sectors_are_zeroed_and_discarded,
    a_queue_full_of_requests_is_served,
    a_shortened_file_is_an_error_for_the_guest_only,
    survives_resets,
}

/// A file without a name, which goes away with its last descriptor.
pub(crate) fn file() -> File {
    // SAFETY: The name is a C string, and the descriptor is new.
    unsafe {
        let fd = libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        std::os::fd::FromRawFd::from_raw_fd(fd)
    }
}

/// A disk whose sector N is filled with N.
fn disk() -> File {
    let mut file = file();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; 512]).unwrap();
    }
    file
}

/// A writable disk over `file`.
pub(crate) fn block(file: File, engine: Engine) -> Block {
    Block::new(file, false, "").unwrap().with_engine(engine).unwrap()
}

fn guest(engine: Engine, read_only: bool) -> (Guest, File) {
    let file = disk();
    let block =
        Block::new(file.try_clone().unwrap(), read_only, "a serial number").unwrap().with_engine(engine).unwrap();
    let mut guest = Guest::new(block);
    guest.start(0);
    (guest, file)
}

fn put_header(guest: &Guest, kind: u32, sector: u64) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    guest.put(HEADER, &header);
    guest.put(STATUS_BYTE, &[0xff]);
}

/// Carries out one request; returns its status and how much was written to guest memory.
fn request(guest: &mut Guest, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    put_header(guest, kind, sector);
    let chain = [&[readable(HEADER, 16)], data, &[writable(STATUS_BYTE, 1)]].concat();
    let head = guest.add(0, &chain);
    guest.notify(0);
    let (used, len) = guest.wait_for_used(0);
    assert_eq!(used, head);
    (guest.get(STATUS_BYTE, 1)[0], len)
}

fn shows_its_size_and_limits(engine: Engine) {
    let (mut guest, _) = guest(engine, false);
    assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(guest.config(12)), 254, "header and status take two of 256 descriptors");
    assert_eq!(u32::from_le_bytes(guest.config(20)), 512);
    assert_eq!(guest.config(60), [0_u8; 4], "past the end");
    assert_eq!(guest.config(58), [0_u8; 8], "across the end");
    assert_eq!(guest.offered() & (1 << 5), 0);
}

fn reads_into_scattered_buffers_and_across_regions(engine: Engine) {
    let (mut guest, _) = guest(engine, false);
    let boundary = SECOND_REGION - 100;
    let data = [writable(DATA, 512), writable(boundary, 1024), writable(DATA + 512, 0), writable(DATA + 512, 512)];
    assert_eq!(request(&mut guest, IN, 3, &data), (OK, 4 * 512 + 1));
    assert!(guest.interrupted());
    assert_eq!(guest.get(DATA, 512), [3; 512]);
    assert_eq!(guest.get(boundary, 1024), [[4; 512], [5; 512]].concat());
    assert_eq!(guest.get(DATA + 512, 512), [6; 512]);
}

fn writes_what_it_reads_later(engine: Engine) {
    let (mut guest, file) = guest(engine, false);
    guest.put(DATA, &[0xab; 1024]);
    assert_eq!(request(&mut guest, OUT, 10, &[readable(DATA, 300), readable(DATA + 300, 724)]), (OK, 1));
    let mut on_disk = [0; 1536];
    file.read_exact_at(&mut on_disk, 10 * 512).unwrap();
    assert_eq!(on_disk[..1024], [0xab; 1024]);
    assert_eq!(on_disk[1024..], [12; 512]);
    assert_eq!(request(&mut guest, FLUSH, 0, &[]), (OK, 1));
}

fn parts_may_be_cut_anywhere(engine: Engine) {
    let (mut guest, _) = guest(engine, false);
    put_header(&guest, IN, 7);
    // The header in three pieces; data and status in one buffer.
    let chain = [readable(HEADER, 1), readable(HEADER + 1, 10), readable(HEADER + 11, 5), writable(DATA, 513)];
    guest.add(0, &chain);
    guest.notify(0);
    assert_eq!(guest.wait_for_used(0).1, 513);
    assert_eq!(guest.get(DATA, 513), [&[7; 512][..], &[OK]].concat());
}

fn indirect_chains_work(engine: Engine) {
    let (mut guest, _) = guest(engine, false);
    put_header(&guest, IN, 9);
    let chain = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS_BYTE, 1)];
    guest.add_indirect(0, BUFFERS + 0x800, &chain);
    guest.notify(0);
    assert_eq!(guest.wait_for_used(0).1, 513);
    assert_eq!(guest.get(DATA, 512), [9; 512]);
}

fn tells_its_serial_number(engine: Engine) {
    let (mut guest, _) = guest(engine, true);
    guest.put(DATA, &[0xff; 32]);
    assert_eq!(request(&mut guest, GET_ID, 0, &[writable(DATA, 20)]), (OK, 21));
    assert_eq!(guest.get(DATA, 21), b"a serial number\0\0\0\0\0\xff");
    assert_eq!(request(&mut guest, GET_ID, 0, &[writable(DATA, 4)]), (OK, 5));
}

fn refuses_what_it_cannot_do(engine: Engine) {
    let (mut guest, file) = guest(engine, false);
    let before = file.metadata().unwrap().len();
    for (what, kind, sector, data, expected) in [
        ("past the end", IN, SECTORS, &[writable(DATA, 512)][..], IOERR),
        ("across the end", IN, SECTORS - 1, &[writable(DATA, 1024)], IOERR),
        ("offset overflows", OUT, u64::MAX, &[readable(DATA, 512)], IOERR),
        ("sector overflows", IN, u64::MAX / 512 + 1, &[writable(DATA, 512)], IOERR),
        ("write past the end", OUT, SECTORS, &[readable(DATA, 512)], IOERR),
        ("no whole sector", IN, 0, &[writable(DATA, 511)], IOERR),
        ("a type of old", 2, 0, &[], UNSUPP),
        ("an unknown type", 0xdead_beef, 0, &[writable(DATA, 512)], UNSUPP),
        ("half a segment", DISCARD, 0, &[readable(DATA, 8)], IOERR),
    ] {
        assert_eq!(request(&mut guest, kind, sector, data).0, expected, "{what}");
    }
    assert_eq!(file.metadata().unwrap().len(), before);
    assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0, "none of this breaks the device");
}

fn a_read_only_disk_is_not_written(engine: Engine) {
    let (mut guest, file) = guest(engine, true);
    assert_ne!(guest.offered() & 1 << 5, 0);
    assert_eq!(guest.offered() & (1 << 13 | 1 << 14), 0);
    guest.put(DATA, &[0xab; 512]);
    assert_eq!(request(&mut guest, OUT, 1, &[readable(DATA, 512)]), (IOERR, 1));
    assert_eq!(request(&mut guest, WRITE_ZEROES, 0, &[readable(DATA, 16)]), (IOERR, 1));
    assert_eq!(request(&mut guest, FLUSH, 0, &[]), (OK, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [1; 512]);
}

fn sectors_are_zeroed_and_discarded(engine: Engine) {
    let (mut guest, file) = guest(engine, false);
    let mut segment = |sector: u64, sectors: u32, flags: u32, kind| {
        guest.put(DATA, &[&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat());
        request(&mut guest, kind, 0, &[readable(DATA, 16)]).0
    };
    assert_eq!(segment(2, 2, 0, WRITE_ZEROES), OK);
    assert_eq!(segment(5, 1, 1, WRITE_ZEROES), OK);
    assert_eq!(segment(7, 1, 0, DISCARD), OK);
    assert_eq!(segment(7, 0, 0, DISCARD), OK);
    assert_eq!(segment(7, 1, 1, DISCARD), UNSUPP);
    assert_eq!(segment(7, 1, 2, WRITE_ZEROES), UNSUPP);
    assert_eq!(segment(SECTORS - 1, 2, 0, WRITE_ZEROES), IOERR);
    assert_eq!(segment(u64::MAX, u32::MAX, 0, WRITE_ZEROES), IOERR);
    let mut on_disk = vec![0; 9 * 512];
    file.read_exact_at(&mut on_disk, 0).unwrap();
    let first_bytes: Vec<u8> = on_disk.chunks(512).map(|sector| sector[511]).collect();
    assert_eq!(first_bytes[..7], [0, 1, 0, 0, 4, 0, 6]);
    assert_eq!(first_bytes[8], 8);
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
}

fn a_queue_full_of_requests_is_served(engine: Engine) {
    for without in [0, F_EVENT_IDX, F_FLUSH] {
        let mut guest = Guest::new(block(disk(), engine));
        guest.start(without);
        for round in 0..3 {
            put_header(&guest, IN, 1);
            let mut heads: Vec<u16> = (0..64)
                .map(|_| guest.add(0, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS_BYTE, 1)]))
                .collect();
            guest.notify(0);
            let mut used: Vec<u16> = heads.iter().map(|_| guest.wait_for_used(0).0).collect();
            if engine == Engine::IoUring {
                used.sort_unstable();
                heads.sort_unstable();
            }
            assert_eq!(used, heads, "round {round} without {without:#x}");
        }
    }
}

#[test]
fn greedy_requests_are_done_in_turns_and_endless_ones_refused() {
    let engine = Engine::Sync;
    let file = file();
    file.set_len(64 << 20).unwrap();
    let mut guest = Guest::new(block(file, engine));
    guest.start(0);
    // All into the same memory.
    let data = [writable(DATA + 0x10_0000, 2 << 20); 17];
    assert_eq!(request(&mut guest, IN, 0, &data), (IOERR, 1), "34 MiB at once");
    assert_eq!(request(&mut guest, IN, 0, &data[..16]), (OK, (32 << 20) + 1));
    for _ in 0..4 {
        guest.add(0, &[&[readable(HEADER, 16)], &data[..8], &[writable(STATUS_BYTE, 1)]].concat());
    }
    guest.write(NOTIFY, 0);
    guest.turn();
    assert_eq!(std::iter::from_fn(|| guest.used(0)).count(), 2, "of 16 MiB each");
    guest.run();
    assert_eq!(std::iter::from_fn(|| guest.used(0)).count(), 2);
    put_header(&guest, FLUSH, 0);
    for _ in 0..3 {
        guest.add(0, &[readable(HEADER, 16), writable(STATUS_BYTE, 1)]);
    }
    guest.write(NOTIFY, 0);
    guest.turn();
    assert_eq!(std::iter::from_fn(|| guest.used(0)).count(), 1, "a flush may take long");
}

fn a_shortened_file_is_an_error_for_the_guest_only(engine: Engine) {
    let (mut guest, file) = guest(engine, false);
    file.set_len(512).unwrap();
    assert_eq!(request(&mut guest, IN, 1, &[writable(DATA, 512)]).0, IOERR);
    assert_eq!(request(&mut guest, IN, 0, &[writable(DATA, 512)]).0, OK);
}

fn survives_resets(engine: Engine) {
    let (mut guest, _) = guest(engine, false);
    for _ in 0..3 {
        assert_eq!(request(&mut guest, IN, 3, &[writable(DATA, 512)]), (OK, 513));
        guest.write(STATUS, 0);
        // A notification that comes too late finds nothing to do, and must not be seen for ever.
        guest.transport.queue_events()[0].write(1).unwrap();
        guest.run();
        guest.start(0);
    }
}
