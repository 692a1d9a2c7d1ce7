//! Frames between a driver and a socket that speaks passt's protocol.

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use amphi_devices::rate_limiter::{Rate, RateLimits};
use amphi_devices::virtio::net::{FrameSocket, Net, Settings};

use crate::guest::{
    BUFFERS, F_EVENT_IDX, Guest, INTERRUPT_STATUS, NEEDS_RESET, NOTIFY, SECOND_REGION, STATUS, readable, writable,
};

pub(crate) const RECEIVE: usize = 0;
pub(crate) const TRANSMIT: usize = 1;
pub(crate) const F_MRG_RXBUF: u64 = 1 << 15;
const HEADER: usize = 12;
const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
/// Where frames to send lie.
const OUT: u64 = BUFFERS + 0x10_0000;

/// A frame of `len` bytes that differs from those of other seeds.
pub(crate) fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
}

fn device(settings: Settings) -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Net::new(Box::new(FrameSocket::new(theirs)), settings).unwrap(), ours)
}

pub(crate) fn guest(without: u64) -> (Guest, UnixStream) {
    let (net, peer) = device(Settings { mac: MAC, ..Settings::default() });
    let mut guest = Guest::new(net);
    guest.start(without);
    (guest, peer)
}

/// A running device whose other end stays open for as long as the test runs.
pub(crate) fn hostile_guest() -> Guest {
    let (guest, peer) = guest(0);
    std::mem::forget(peer);
    guest
}

pub(crate) fn put(peer: &mut UnixStream, frame: &[u8]) {
    let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
    peer.write_all(&[&len[..], frame].concat()).unwrap();
}

/// Takes the next frame from the socket.
fn take(peer: &mut UnixStream) -> Option<Vec<u8>> {
    let mut len = [0; 4];
    match peer.read(&mut len) {
        Ok(4) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
        other => panic!("{other:?}"),
    }
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    Some(frame)
}

/// Puts a frame and its header into guest memory, and on the transmit queue in `pieces`.
pub(crate) fn send(guest: &mut Guest, header: &[u8; HEADER], frame: &[u8], pieces: usize) -> u16 {
    let bytes = [header.as_slice(), frame].concat();
    guest.put(OUT, &bytes);
    let step = bytes.len().div_ceil(pieces);
    let mut buffers = Vec::new();
    for at in (0..bytes.len()).step_by(step) {
        buffers.push(readable(OUT + at as u64, step.min(bytes.len() - at) as u32));
    }
    guest.add(TRANSMIT, &buffers)
}

/// Makes `count` receive buffers of `len` bytes available.
pub(crate) fn supply(guest: &mut Guest, count: usize, len: u32) {
    for index in 0..count {
        guest.add(RECEIVE, &[writable(BUFFERS + index as u64 * u64::from(len), len)]);
    }
    guest.notify(RECEIVE);
}

#[test]
fn shows_its_address_state_and_mtu() {
    let (net, _peer) = device(Settings { mac: MAC, mtu: Some(65_520), ..Settings::default() });
    let mut guest = Guest::new(net);
    assert_eq!(guest.config(0), MAC);
    assert_eq!(guest.config(6), [1, 0], "the link is up");
    assert_eq!(guest.config(10), 65_520_u16.to_le_bytes());
    assert_eq!(guest.config(12), [0_u8; 4], "past the end");
    for bit in [3, 5, 15, 16] {
        assert_ne!(guest.offered() & 1 << bit, 0, "feature {bit}");
    }
    assert_eq!(guest.offered() & 0x3fc7, 0, "a socket does no offloads");
    assert!(
        Net::new(
            Box::new(FrameSocket::new(UnixStream::pair().unwrap().0)),
            Settings { mtu: Some(67), ..Settings::default() }
        )
        .is_err()
    );
}

#[test]
fn frames_leave_without_their_header_however_they_are_cut() {
    for without in [0, F_EVENT_IDX] {
        let (mut guest, mut peer) = guest(without);
        for (pieces, len) in [(1, 14), (1, 1514), (2, 60), (5, 1514), (40, 65_534), (13, 65_535)] {
            let frame = frame(len, pieces as u8);
            // All that a header says is of no meaning here.
            let head = send(&mut guest, &[0xff; HEADER], &frame, pieces);
            guest.notify(TRANSMIT);
            assert_eq!(guest.used(TRANSMIT), Some((head, 0)));
            assert_eq!(take(&mut peer), Some(frame));
            // With event indices, this driver asks for the first interrupt only.
            assert_eq!(guest.interrupted(), without == F_EVENT_IDX || len == 14);
        }
    }
}

#[test]
fn indirect_chains_and_buffers_across_regions_are_sent() {
    let (mut guest, mut peer) = guest(0);
    let frame = frame(3000, 9);
    let start = SECOND_REGION - 100;
    guest.put(start, &[&[0; HEADER][..], &frame].concat());
    let cut = [readable(start, 4), readable(start + 4, 1000), readable(start + 1004, 2008)];
    guest.add_indirect(TRANSMIT, BUFFERS, &cut);
    guest.notify(TRANSMIT);
    assert!(guest.used(TRANSMIT).is_some());
    assert_eq!(take(&mut peer), Some(frame));
}

#[test]
fn what_is_no_frame_is_lost_and_does_no_harm() {
    let (mut guest, mut peer) = guest(0);
    for len in [0, 1, 13, 65_536, 100_000, 1 << 20] {
        let head = send(&mut guest, &[0; HEADER], &frame(len, 0), 3.min(HEADER + len));
        guest.notify(TRANSMIT);
        assert_eq!(guest.used(TRANSMIT), Some((head, 0)), "{len} bytes");
        assert_eq!(take(&mut peer), None, "{len} bytes");
    }
    send(&mut guest, &[0; HEADER], &frame(100, 1), 1);
    guest.notify(TRANSMIT);
    assert_eq!(take(&mut peer), Some(frame(100, 1)));
    assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn a_peer_that_does_not_read_holds_up_frames_and_loses_none() {
    let (mut guest, mut peer) = guest(0);
    let mut sent = 0;
    let mut done = 0;
    for seed in 0..100 {
        send(&mut guest, &[0; HEADER], &frame(60_000, seed), 2);
        guest.notify(TRANSMIT);
        sent += 1;
        while guest.used(TRANSMIT).is_some() {
            done += 1;
        }
        if done < sent {
            break;
        }
    }
    assert!(done < sent, "the socket's buffer is endless");
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for seed in 0..sent {
        let mut len = [0; 4];
        peer.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        let mut read = 0;
        while read < frame.len() {
            guest.run();
            read += peer.read(&mut frame[read..]).unwrap();
        }
        assert!(frame == self::frame(60_000, seed as u8), "frame {seed} of {sent}");
        guest.run();
    }
    while guest.used(TRANSMIT).is_some() {
        done += 1;
    }
    assert_eq!(done, sent);
}

#[test]
fn frames_arrive_with_a_header_in_one_buffer() {
    for without in [0, F_EVENT_IDX, F_MRG_RXBUF] {
        let (mut guest, mut peer) = guest(without);
        guest.put(BUFFERS, &[0xff; 8192]);
        supply(&mut guest, 4, 2048);
        while guest.interrupted() {}
        let frames = [frame(14, 1), frame(1514, 2), frame(2036, 3)];
        frames.iter().for_each(|frame| put(&mut peer, frame));
        guest.run();
        for (index, frame) in frames.iter().enumerate() {
            let (_, len) = guest.used(RECEIVE).expect("it was received");
            assert_eq!(len as usize, HEADER + frame.len());
            let at = BUFFERS + index as u64 * 2048;
            assert_eq!(guest.get(at, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "num_buffers is 1");
            assert_eq!(guest.get(at + HEADER as u64, frame.len()), *frame);
        }
        assert!(guest.interrupted());
        assert_eq!(guest.used(RECEIVE), None);
    }
}

#[test]
fn large_frames_take_several_buffers_which_become_used_together() {
    let (mut guest, mut peer) = guest(0);
    supply(&mut guest, 50, 1526);
    let (large, small) = (frame(65_534, 7), frame(100, 8));
    put(&mut peer, &large);
    guest.run();
    put(&mut peer, &small);
    guest.run();
    let count = u16::from_le_bytes(guest.get(BUFFERS + 10, 2).try_into().unwrap());
    assert_eq!(count, 43, "65546 bytes in buffers of 1526");
    let used: Vec<_> = std::iter::from_fn(|| guest.used(RECEIVE)).map(|(_, len)| len).collect();
    assert_eq!(used, [[1526; 42].as_slice(), &[65_546 - 42 * 1526, 112]].concat());
    assert!(guest.get(BUFFERS, 65_546)[HEADER..] == large);
    assert_eq!(guest.get(BUFFERS + 43 * 1526 + HEADER as u64, 100), small);
}

#[test]
fn a_frame_waits_for_room_and_notifications_are_asked_for() {
    for without in [0, F_EVENT_IDX] {
        let (mut guest, mut peer) = guest(without);
        supply(&mut guest, 2, 1000);
        put(&mut peer, &frame(4000, 5));
        put(&mut peer, &frame(20, 6));
        guest.run();
        assert_eq!(guest.used(RECEIVE), None, "part of a frame is nothing");
        let mut heads = 0;
        for index in 2..10 {
            guest.add(RECEIVE, &[writable(BUFFERS + index * 1000, 1000)]);
            guest.notify(RECEIVE);
            heads += std::iter::from_fn(|| guest.used(RECEIVE)).count();
        }
        assert_eq!(heads, 6, "five for the first frame");
        let received: Vec<u8> = guest.get(BUFFERS, 4012);
        assert!(received[HEADER..] == frame(4000, 5));
        assert_eq!(guest.get(BUFFERS + 5000 + HEADER as u64, 20), frame(20, 6));
    }
}

#[test]
fn a_frame_that_no_buffer_can_hold_is_dropped() {
    let (mut guest, mut peer) = guest(F_MRG_RXBUF);
    supply(&mut guest, 3, 1526);
    put(&mut peer, &frame(1515, 1));
    put(&mut peer, &frame(9000, 2));
    put(&mut peer, &frame(1514, 3));
    guest.run();
    assert_eq!(guest.used(RECEIVE).unwrap().1, 1526);
    assert_eq!(guest.get(BUFFERS + HEADER as u64, 1514), frame(1514, 3));
    assert_eq!(guest.used(RECEIVE), None);
    // And with mergeable buffers, where the whole queue is too small.
    let (mut guest, mut peer) = self::guest(0);
    supply(&mut guest, 256, 20);
    put(&mut peer, &frame(9000, 2));
    put(&mut peer, &frame(14, 3));
    guest.run();
    assert_eq!(std::iter::from_fn(|| guest.used(RECEIVE)).count(), 2, "26 bytes in buffers of 20");
    assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0);
}

#[test]
fn frames_in_pieces_are_put_together() {
    let (mut guest, mut peer) = guest(0);
    supply(&mut guest, 8, 1000);
    let frame = frame(3000, 4);
    let stream = [&3000_u32.to_be_bytes()[..], &frame, &[0, 0, 0]].concat();
    for piece in stream.chunks(7) {
        peer.write_all(piece).unwrap();
        guest.run();
    }
    assert_eq!(std::iter::from_fn(|| guest.used(RECEIVE)).count(), 4);
    assert!(guest.get(BUFFERS + HEADER as u64, 3000) == frame);
    peer.write_all(&[14, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]).unwrap();
    guest.run();
    assert_eq!(guest.used(RECEIVE).unwrap().1, 26);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_leaves_the_stream_in_step() {
    let (mut guest, mut peer) = guest(0);
    supply(&mut guest, 4, 2000);
    peer.write_all(&1000_u32.to_be_bytes()).unwrap();
    peer.write_all(&[1; 400]).unwrap();
    guest.run();
    guest.write(STATUS, 0);
    peer.write_all(&[1; 100]).unwrap();
    guest.run();
    guest.start(0);
    peer.write_all(&[1; 500]).unwrap();
    put(&mut peer, &frame(50, 3));
    guest.run();
    supply(&mut guest, 4, 2000);
    assert_eq!(guest.used(RECEIVE).unwrap().1, 62);
    assert_eq!(guest.get(BUFFERS + HEADER as u64, 50), frame(50, 3));
    assert_eq!(guest.used(RECEIVE), None);
}

#[test]
fn a_host_side_that_ends_or_lies_takes_the_link_down() {
    for lie in [None, Some(13_u32), Some(65_536), Some(u32::MAX)] {
        let (mut guest, mut peer) = guest(0);
        supply(&mut guest, 4, 2000);
        while guest.interrupted() {}
        guest.write(0x64, 3);
        match lie {
            None => drop(peer),
            Some(len) => peer.write_all(&[&len.to_be_bytes()[..], &[0; 100]].concat()).unwrap(),
        }
        guest.run();
        assert_eq!(guest.config(6), [0, 0], "{lie:?}");
        assert!(guest.interrupted(), "{lie:?}");
        assert_eq!(guest.read(INTERRUPT_STATUS) & 2, 2, "{lie:?}: the configuration has changed");
        assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0, "{lie:?}");
        // What the driver sends now is lost; it is not kept waiting.
        send(&mut guest, &[0; HEADER], &frame(100, 1), 1);
        guest.notify(TRANSMIT);
        assert!(guest.used(TRANSMIT).is_some(), "{lie:?}");
        guest.start(0);
        assert_eq!(guest.config(6), [0, 0], "{lie:?}: after a reset as before");
    }
}

#[test]
fn one_side_cannot_keep_the_loop_to_itself() {
    let (mut guest, mut peer) = guest(0);
    // Frames of 64 KiB, all of the same memory.
    guest.put(OUT, &[0; 65_547]);
    for _ in 0..256 {
        guest.add(TRANSMIT, &[readable(OUT, 65_547)]);
    }
    guest.write(NOTIFY, TRANSMIT as u32);
    guest.turn();
    let first = std::iter::from_fn(|| guest.used(TRANSMIT)).count();
    assert!(first < 33, "{first} of 256 in one turn");
    // 2 MiB of small ones at most, too.
    supply(&mut guest, 256, 100);
    for _ in 0..256 {
        put(&mut peer, &frame(60, 0));
    }
    guest.run();
    assert_eq!(std::iter::from_fn(|| guest.used(RECEIVE)).count(), 256);
}

#[test]
fn rates_are_held_in_both_directions() {
    let rate = |per_second| NonZeroU64::new(per_second).map(Rate::new);
    let limits = RateLimits { bandwidth: None, operations: rate(100) };
    let (net, mut peer) = device(Settings { receive: limits, transmit: limits, ..Settings::default() });
    let mut guest = Guest::new(net);
    guest.start(0);
    supply(&mut guest, 100, 100);
    let begin = Instant::now();
    for _ in 0..40 {
        put(&mut peer, &frame(60, 0));
        send(&mut guest, &[0; HEADER], &frame(60, 0), 1);
    }
    guest.notify(TRANSMIT);
    let (mut received, mut sent) = (0, 0);
    while received < 40 || sent < 40 {
        guest.events.run_with_timeout(1000).unwrap();
        received += std::iter::from_fn(|| guest.used(RECEIVE)).count();
        sent += std::iter::from_fn(|| guest.used(TRANSMIT)).count();
        let most = 11 + begin.elapsed().as_millis() / 10;
        assert!(received.max(sent) as u128 <= most, "{received} and {sent} after {:?}", begin.elapsed());
    }
}
