//! Requests for random numbers.

use amphi_devices::virtio::rng::Rng;

use crate::guest::{BUFFERS, F_EVENT_IDX, Guest, NEEDS_RESET, NOTIFY, SECOND_REGION, STATUS, readable, writable};

fn guest(without: u64) -> Guest {
    let mut guest = Guest::new(Rng::new().unwrap());
    guest.start(without);
    guest
}

#[test]
fn fills_every_buffer_of_a_chain() {
    for without in [0, F_EVENT_IDX] {
        let mut guest = guest(without);
        assert_eq!(guest.read(0x08), 4, "the device is an entropy source");
        let boundary = SECOND_REGION - 512;
        let head = guest.add(0, &[writable(BUFFERS, 1000), writable(BUFFERS + 1000, 0), writable(boundary, 1024)]);
        guest.notify(0);
        assert_eq!(guest.used(0), Some((head, 2024)));
        assert!(guest.interrupted());
        let (first, second) = (guest.get(BUFFERS, 1000), guest.get(boundary, 1024));
        assert_eq!(guest.get(BUFFERS + 1000, 1000), [0; 1000], "nothing beyond the buffer");
        // Of 2024 random bytes, almost all 256 values occur, and eight zeroes in a row do not.
        let mut seen = [false; 256];
        first.iter().chain(&second).for_each(|&byte| seen[usize::from(byte)] = true);
        assert!(seen.iter().filter(|&&seen| seen).count() > 240);
        assert!(first.windows(8).chain(second.windows(8)).all(|bytes| bytes != [0; 8]));
    }
}

#[test]
fn greedy_requests_are_filled_in_part_and_in_turns() {
    let mut guest = guest(0);
    for _ in 0..3 {
        guest.add(0, &[writable(BUFFERS, 1 << 20)]);
    }
    guest.write(NOTIFY, 0);
    guest.turn();
    assert_eq!(guest.used(0).map(|(_, len)| len), Some(64 << 10));
    assert_eq!(guest.used(0), None, "others get their turn");
    guest.run();
    assert_eq!(std::iter::from_fn(|| guest.used(0)).map(|(_, len)| len).collect::<Vec<_>>(), [64 << 10; 2]);
}

#[test]
fn requests_without_room_stop_the_device() {
    for chain in [readable(BUFFERS, 64), writable(BUFFERS, 0)] {
        let mut guest = guest(0);
        guest.add(0, &[chain]);
        guest.notify(0);
        assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{chain:?}");
        assert!(guest.used(0).is_none());
        guest.start(0);
        guest.add(0, &[writable(BUFFERS, 8)]);
        guest.notify(0);
        assert_eq!(guest.used(0).map(|(_, len)| len), Some(8), "it works again after a reset");
    }
}
