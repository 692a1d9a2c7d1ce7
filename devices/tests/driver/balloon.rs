//! The balloon: what the guest puts in is given back to the host.

use std::io;
use std::sync::{Arc, Mutex};

use amphi_devices::virtio::balloon::{Balloon, BalloonFeatures, Reclaim};
use vm_memory::GuestAddress;

use crate::guest::{BUFFERS, F_EVENT_IDX, Guest, MEMORY, NEEDS_RESET, NOTIFY, STATUS, readable, writable};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const F_STATISTICS: u64 = 1 << 1;

/// Notes what it is to give back.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(u64, u64)>>>);

impl Reclaim for Notes {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((address.0, len));
        Ok(())
    }
}

impl Notes {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn device(notes: &Notes) -> Balloon {
    let features = BalloonFeatures { deflate_on_oom: true, reporting: true };
    Balloon::new(Box::new(notes.clone()), features, 256).unwrap()
}

pub(crate) fn balloon() -> Guest {
    Guest::new(device(&Notes::default()))
}

fn started() -> (Guest, Notes) {
    let notes = Notes::default();
    let mut guest = Guest::new(device(&notes));
    guest.start(0);
    (guest, notes)
}

fn list(guest: &mut Guest, queue: usize, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    guest.put(BUFFERS, &bytes);
    let head = guest.add(queue, &[readable(BUFFERS, 6), readable(BUFFERS + 6, bytes.len() as u32 - 6)]);
    guest.notify(queue);
    assert_eq!(guest.used(queue), Some((head, 0)));
    assert!(guest.interrupted());
}

#[test]
fn shows_what_it_wants_and_learns_what_it_has() {
    let (mut guest, _) = started();
    assert_eq!(guest.read(0x08), 5);
    assert_eq!(guest.config(0), 256_u32.to_le_bytes());
    guest.write(0x104, 200);
    assert_eq!(guest.config(4), 200_u32.to_le_bytes());
    guest.write(0x100, 7);
    assert_eq!(guest.config(0), 256_u32.to_le_bytes(), "the driver does not decide");
    assert_eq!(guest.offered() & 0x3f, 1 << 1 | 1 << 2 | 1 << 5);
}

#[test]
fn pages_are_given_back_in_runs() {
    let (mut guest, notes) = started();
    list(&mut guest, INFLATE, &[9, 8, 7, 100, 101, 101, 50]);
    assert_eq!(notes.take(), [(7 << 12, 3 << 12), (50 << 12, 1 << 12), (100 << 12, 2 << 12)]);
    list(&mut guest, DEFLATE, &[9, 8, 7]);
    assert_eq!(notes.take(), [], "the host gives them when they are touched");
}

#[test]
fn many_lists_are_taken_in_turns() {
    let (mut guest, notes) = started();
    guest.put(BUFFERS, &[0; 4096]);
    for _ in 0..40 {
        guest.add(INFLATE, &[readable(BUFFERS, 1024)]);
    }
    guest.write(NOTIFY, INFLATE as u32);
    guest.turn();
    assert_eq!(notes.take().len(), 16);
    guest.run();
    assert_eq!(notes.take().len(), 24);
    // A list may be as long as it likes, but not all of it is looked at.
    guest.put(BUFFERS, &(0..10_000_u32).flat_map(|n| (n % 4096).to_le_bytes()).collect::<Vec<_>>());
    guest.add(INFLATE, &[readable(BUFFERS, 40_000)]);
    guest.notify(INFLATE);
    assert_eq!(notes.take(), [(0, 4096 << 12)]);
}

#[test]
fn free_memory_is_taken_in_whole_pages() {
    let (mut guest, notes) = started();
    let ranges = [writable(0x20_0000, 0x20_0000), writable(0x10, 0x3000), writable(0x50_0010, 0x100)];
    let head = guest.add(REPORTING, &ranges);
    guest.notify(REPORTING);
    assert_eq!(guest.used(REPORTING), Some((head, 0)));
    assert_eq!(notes.take(), [(0x20_0000, 0x20_0000), (0x1000, 0x2000)]);
    // The first overflows where it is rounded up.
    let head = guest.add(REPORTING, &[writable(u64::MAX - 0xf, 0), writable(MEMORY, 0), writable(0x1000, 0x1000)]);
    guest.notify(REPORTING);
    assert_eq!(guest.used(REPORTING), Some((head, 0)));
    assert_eq!(notes.take(), [(0x1000, 0x1000)]);
    guest.add(REPORTING, &[readable(0, 0x1000)]);
    guest.notify(REPORTING);
    assert_eq!(notes.take(), [], "it is not the device's to write");
}

#[test]
fn queues_follow_one_another_without_gaps() {
    let notes = Notes::default();
    let mut guest = Guest::new(device(&notes));
    guest.start(F_STATISTICS);
    guest.add(REPORTING - 1, &[writable(0x1000, 0x1000)]);
    guest.notify(REPORTING - 1);
    assert_eq!(notes.take(), [(0x1000, 0x1000)]);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let device = Arc::new(Mutex::new(device(&Notes::default())));
    let mut guest = Guest::without_events(Box::new(Arc::clone(&device)));
    event_manager::SubscriberOps::add_subscriber(&mut guest.events, Box::new(Arc::clone(&device)));
    guest.start(F_EVENT_IDX);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let say = |guest: &mut Guest, free: u64| {
        guest.put(BUFFERS, &[entry(4, free), entry(5, 1 << 40), entry(99, 1)].concat());
        // The last entry is cut off.
        guest.add(STATISTICS, &[readable(BUFFERS, 39)]);
        guest.notify(STATISTICS);
    };
    device.lock().unwrap().request_statistics();
    say(&mut guest, 1000);
    assert!(guest.used(STATISTICS).is_some(), "they were asked for before there were any");
    say(&mut guest, 2000);
    assert!(guest.used(STATISTICS).is_none(), "the buffer is kept until new ones are wanted");
    let statistics = device.lock().unwrap().statistics();
    assert_eq!((statistics.reports, statistics.free, statistics.total), (2, Some(2000), Some(1 << 40)));
    assert_eq!(statistics.available, None);
    while guest.interrupted() {}
    device.lock().unwrap().request_statistics();
    assert!(guest.used(STATISTICS).is_some() && guest.interrupted());
    // More buffers than one: all but the last go back.
    say(&mut guest, 1);
    say(&mut guest, 2);
    assert!(guest.used(STATISTICS).is_some() && guest.used(STATISTICS).is_none());
}

#[test]
fn a_new_target_is_announced() {
    let device = Arc::new(Mutex::new(device(&Notes::default())));
    let mut guest = Guest::without_events(Box::new(Arc::clone(&device)));
    device.lock().unwrap().set_target(5);
    guest.start(0);
    assert_eq!(guest.config(0), 5_u32.to_le_bytes());
    device.lock().unwrap().set_target(6);
    assert!(guest.interrupted());
    assert_eq!(guest.read(crate::guest::INTERRUPT_STATUS), 2, "the configuration has changed");
    assert_eq!(guest.config(0), 6_u32.to_le_bytes());
}

#[test]
fn pages_outside_of_memory_stop_the_device() {
    for page in [(MEMORY >> 12) as u32, u32::MAX] {
        let (mut guest, notes) = started();
        guest.put(BUFFERS, &page.to_le_bytes());
        guest.add(INFLATE, &[readable(BUFFERS, 4)]);
        guest.notify(INFLATE);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0);
        assert_eq!(notes.take(), []);
        guest.start(0);
        list(&mut guest, INFLATE, &[1, 2]);
    }
}
