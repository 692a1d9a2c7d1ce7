//! Frames that the kernel moves between a driver's rings and a tap interface. Without root, or without `/dev/vhost-net`, nothing
//! is tried.

use amphi_devices::rate_limiter::{Rate, RateLimits};
use amphi_devices::virtio::net::{Settings, VhostError, VhostNet};

use crate::guest::{
    BUFFERS, DRIVER_OK, F_EVENT_IDX, Guest, INTERRUPT_ACK, INTERRUPT_STATUS, NEEDS_RESET, STATUS, readable, writable,
};
use crate::net::{F_MRG_RXBUF, RECEIVE, TRANSMIT, send, supply};
use crate::tap::{HEADER, Host, ethernet, in_namespace, open_when_free, soon};

const PATH: &str = "/dev/vhost-net";

fn with_vhost(body: impl FnOnce() + Send + 'static) {
    if std::fs::metadata(PATH).is_err() {
        println!("nothing is tried: there is no {PATH}");
        return;
    }
    in_namespace(body);
}

fn guest() -> (Guest, Host) {
    let guest = Guest::new(VhostNet::new(open_when_free(), Settings::default()).unwrap());
    (guest, Host::new())
}

/// The next chain that the kernel has used.
fn used(guest: &mut Guest, queue: usize) -> (u16, u32) {
    soon(|| guest.used(queue))
}

fn exchange(guest: &mut Guest, host: &Host, seed: u8) {
    send(guest, &[0; HEADER], &ethernet(1514, seed), 3);
    guest.notify(TRANSMIT);
    used(guest, TRANSMIT);
    assert_eq!(soon(|| host.take()), ethernet(1514, seed));
    host.put(&ethernet(100, seed));
    assert_eq!(used(guest, RECEIVE).1, 112);
}

#[test]
fn frames_go_both_ways() {
    with_vhost(|| {
        for without in [0, F_MRG_RXBUF, F_EVENT_IDX, F_MRG_RXBUF | F_EVENT_IDX] {
            let (mut guest, host) = guest();
            guest.start(without);
            supply(&mut guest, 4, 2048);
            exchange(&mut guest, &host, 1);
            assert_eq!(guest.get(BUFFERS + HEADER as u64, 100), ethernet(100, 1));
            soon(|| guest.interrupted().then_some(()));
            exchange(&mut guest, &host, 2);
            let table = BUFFERS + 0x2_0000;
            guest.put(table + 0x1000, &[&[0; HEADER][..], &ethernet(500, 3)].concat());
            guest.add_indirect(TRANSMIT, table, &[readable(table + 0x1000, 12), readable(table + 0x100c, 500)]);
            guest.notify(TRANSMIT);
            assert_eq!(soon(|| host.take()), ethernet(500, 3));
        }
    });
}

#[test]
fn a_driver_that_looks_sees_why_it_was_interrupted() {
    with_vhost(|| {
        let (mut guest, host) = guest();
        assert_eq!(guest.read(INTERRUPT_STATUS), 0);
        guest.start(0);
        supply(&mut guest, 4, 2048);
        for seed in 1..4 {
            host.put(&ethernet(100, seed));
            used(&mut guest, RECEIVE);
            assert_eq!(guest.read(INTERRUPT_STATUS), 1);
            guest.write(INTERRUPT_ACK, 3);
        }
        guest.write(STATUS, 0);
        assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    });
}

#[test]
fn a_device_that_is_reset_starts_again_from_nothing() {
    with_vhost(|| {
        let (mut guest, host) = guest();
        for without in [0, F_MRG_RXBUF, F_EVENT_IDX, 0] {
            guest.start(without);
            supply(&mut guest, 4, 2048);
            exchange(&mut guest, &host, 1);
            guest.write(STATUS, 0);
            let rings = guest.get(guest.rings[RECEIVE].used, 512);
            host.put(&ethernet(200, 9));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(guest.get(guest.rings[RECEIVE].used, 512), rings, "it is reset");
            // What was under way to the last driver is this one's.
            guest.start(0);
            supply(&mut guest, 4, 2048);
            assert_eq!(used(&mut guest, RECEIVE).1, 212);
            guest.write(STATUS, 0);
        }
    });
}

#[test]
fn nothing_moves_while_it_rests() {
    with_vhost(|| {
        let (mut guest, host) = guest();
        guest.start(0);
        supply(&mut guest, 4, 2048);
        exchange(&mut guest, &host, 1);
        guest.transport.quiesce();
        let memory = guest.get(0, 16 << 20);
        host.put(&ethernet(200, 2));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(guest.get(0, 16 << 20) == memory, "it rests");
        send(&mut guest, &[0; HEADER], &ethernet(300, 3), 1);
        guest.write(crate::guest::NOTIFY, TRANSMIT as u32);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(host.take().is_none() && guest.used(TRANSMIT).is_none(), "it rests");
        // The event loop calls the device.
        guest.run();
        assert_eq!(used(&mut guest, RECEIVE).1, 212);
        assert_eq!(soon(|| host.take()), ethernet(300, 3));
        used(&mut guest, TRANSMIT);
        exchange(&mut guest, &host, 4);
        // Reset while it rests, and asked for more than once.
        guest.transport.quiesce();
        guest.transport.quiesce();
        guest.write(STATUS, 0);
        guest.run();
        guest.start(0);
        supply(&mut guest, 4, 2048);
        exchange(&mut guest, &host, 5);
    });
}

/// What the kernel finds wrong stops the device until it is reset.
#[test]
fn nonsense_in_a_queue_is_the_drivers_to_mend() {
    with_vhost(|| {
        let (mut guest, host) = guest();
        let nonsense: [fn(&mut Guest); 5] = [
            // More buffers than the ring has.
            |guest| guest.set_available(TRANSMIT, 1000),
            // A descriptor past the table's end.
            |guest| guest.offer(TRANSMIT, 1000),
            // A chain without an end.
            |guest| {
                guest.descriptor(TRANSMIT, 0, BUFFERS, 100, crate::guest::NEXT, 0);
                guest.offer(TRANSMIT, 0);
            },
            // Memory that is none.
            |guest| {
                guest.add(TRANSMIT, &[readable(1 << 40, 100)]);
            },
            // A buffer to write to where one to read belongs.
            |guest| {
                guest.add(TRANSMIT, &[writable(BUFFERS, 100)]);
            },
        ];
        for (index, nonsense) in nonsense.iter().enumerate() {
            guest.start(0);
            supply(&mut guest, 4, 2048);
            nonsense(&mut guest);
            guest.notify(TRANSMIT);
            soon(|| {
                guest.run();
                (guest.read(STATUS) & NEEDS_RESET != 0).then_some(())
            });
            assert_eq!(guest.read(INTERRUPT_STATUS) & 2, 2, "nonsense {index}");
            guest.notify(TRANSMIT);
            assert_eq!(host.take(), None);
            guest.write(STATUS, 0);
            guest.start(0);
            supply(&mut guest, 4, 2048);
            exchange(&mut guest, &host, 7);
            assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0);
            guest.write(STATUS, 0);
        }
    });
}

/// An error that the driver was faster than is no fault of its next queues'.
#[test]
fn an_error_from_before_a_reset_is_forgotten() {
    with_vhost(|| {
        let (mut guest, host) = guest();
        guest.start(0);
        guest.set_available(TRANSMIT, 1000);
        guest.write(crate::guest::NOTIFY, TRANSMIT as u32);
        std::thread::sleep(std::time::Duration::from_millis(50));
        guest.write(STATUS, 0);
        guest.start(0);
        supply(&mut guest, 4, 2048);
        exchange(&mut guest, &host, 7);
        assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0);
    });
}

/// The kernel takes the addresses of rings as they are: a ring that lies in two regions of memory is in one piece only for the
/// guest.
#[test]
fn rings_are_in_one_piece_of_memory() {
    with_vhost(|| {
        for register in [0x80, 0x90, 0xa0] {
            let (mut guest, _host) = guest();
            let features = guest.offered();
            guest.negotiate(features);
            guest.set_up_queues();
            guest.write(0x30, 1);
            guest.write(0x44, 0);
            guest.write(register, (crate::guest::SECOND_REGION - 64) as u32);
            guest.write(0x44, 1);
            let status = guest.read(STATUS);
            guest.write(STATUS, status | DRIVER_OK);
            assert_ne!(guest.read(STATUS) & NEEDS_RESET, 0, "{register:#x}");
        }
    });
}

#[test]
fn there_are_no_limits() {
    with_vhost(|| {
        let limited = RateLimits { operations: Some(Rate::new(std::num::NonZeroU64::MIN)), ..RateLimits::default() };
        for settings in [
            Settings { receive: limited, ..Settings::default() },
            Settings { transmit: limited, ..Settings::default() },
        ] {
            assert!(matches!(VhostNet::new(open_when_free(), settings), Err(VhostError::Limits)));
        }
    });
}
