//! Frames between a driver and a tap interface of the kernel's, in a network namespace of the test's own. Without root
//! there is none, and nothing is tried.

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use amphi_devices::virtio::net::{Net, Settings, Tap, TapError};

use crate::guest::{BUFFERS, Guest, NEEDS_RESET, STATUS};
use crate::net::{F_MRG_RXBUF, RECEIVE, TRANSMIT, frame, send, supply};

pub(crate) const HEADER: usize = 12;
const NAME: &str = "tap0";
/// A type of frame for experiments.
const ETHERTYPE: u16 = 0x88b5;

/// Runs `body` in a new network namespace, on a thread of its own.
pub(crate) fn in_namespace(body: impl FnOnce() + Send + 'static) {
    // SAFETY: Neither call touches memory.
    if unsafe { libc::geteuid() } != 0 || std::fs::metadata("/dev/net/tun").is_err() {
        println!("nothing is tried: a tap interface takes root and /dev/net/tun");
        return;
    }
    std::thread::spawn(|| {
        // SAFETY: Only this thread changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // The kernel's own frames are not to be seen.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        body();
    })
    .join()
    .unwrap();
}

/// The host's end: sends and receives whole frames at the interface.
pub(crate) struct Host(OwnedFd);

impl Host {
    pub(crate) fn new() -> Self {
        // SAFETY: All structures are valid, and the descriptor is new.
        unsafe {
            let protocol = ETHERTYPE.to_be();
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
            assert!(fd >= 0);
            let fd = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()) as i32;
            let len = mem::size_of_val(&address) as u32;
            assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
            Self(fd)
        }
    }

    pub(crate) fn put(&self, frame: &[u8]) {
        // SAFETY: The buffer is that long.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len().cast_signed());
    }

    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        // SAFETY: The buffer is that long.
        let len = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        frame.truncate(usize::try_from(len).ok()?);
        Some(frame)
    }
}

/// A frame that the kernel takes for none of its own.
pub(crate) fn ethernet(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = frame(len, seed);
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame
}

/// Opens the interface once its last user has closed it. A child that another test has forked, and that has not executed its
/// program yet, holds a copy of every descriptor for a moment.
pub(crate) fn open_when_free() -> Tap {
    soon(|| match Tap::open(NAME) {
        Err(TapError::Busy { .. }) => None,
        opened => Some(opened.unwrap()),
    })
}

/// What `look` finds within some seconds.
pub(crate) fn soon<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn guest(without: u64) -> (Guest, Host) {
    let tap = open_when_free();
    assert_eq!(tap.mtu(), 1500);
    // As a user would for large frames.
    let larger = std::process::Command::new("ip").args(["link", "set", NAME, "mtu", "9000"]).status().unwrap();
    assert!(larger.success());
    let mut guest = Guest::new(Net::new(Box::new(tap), Settings::default()).unwrap());
    guest.start(without);
    (guest, Host::new())
}

#[test]
fn frames_go_both_ways() {
    in_namespace(|| {
        for without in [0, F_MRG_RXBUF] {
            let (mut guest, host) = guest(without);
            supply(&mut guest, 4, 2048);
            for len in [60, 1514] {
                send(&mut guest, &[0; HEADER], &ethernet(len, 1), 3);
                guest.notify(TRANSMIT);
                assert!(guest.used(TRANSMIT).is_some());
                assert_eq!(host.take(), Some(ethernet(len, 1)));
            }
            host.put(&ethernet(100, 2));
            guest.run();
            assert_eq!(guest.used(RECEIVE).unwrap().1, 112);
            assert_eq!(guest.get(BUFFERS, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(guest.get(BUFFERS + HEADER as u64, 100), ethernet(100, 2));
            assert!(guest.interrupted());
        }
    });
}

#[test]
fn large_frames_fill_several_buffers_and_wait_for_room() {
    in_namespace(|| {
        let (mut guest, host) = guest(0);
        supply(&mut guest, 3, 1000);
        // Nothing is known of its length until it is read.
        host.put(&ethernet(8000, 3));
        host.put(&ethernet(70, 4));
        guest.run();
        assert_eq!(guest.used(RECEIVE), None);
        for index in 3..12 {
            guest.add(RECEIVE, &[crate::guest::writable(BUFFERS + index * 1000, 1000)]);
            guest.notify(RECEIVE);
        }
        let used: Vec<_> = std::iter::from_fn(|| guest.used(RECEIVE)).map(|(_, len)| len).collect();
        assert_eq!(used, [[1000; 8].as_slice(), &[12, 82]].concat());
        let received = guest.get(BUFFERS, 8012);
        assert_eq!(received[10], 9, "num_buffers");
        assert!(received[HEADER..] == ethernet(8000, 3));
        assert_eq!(guest.get(BUFFERS + 9000 + HEADER as u64, 70), ethernet(70, 4));
    });
}

#[test]
fn a_frame_larger_than_a_lone_buffer_is_dropped() {
    in_namespace(|| {
        let (mut guest, host) = guest(F_MRG_RXBUF);
        supply(&mut guest, 2, 1526);
        host.put(&ethernet(8000, 3));
        host.put(&ethernet(70, 4));
        guest.run();
        assert_eq!(guest.used(RECEIVE).unwrap().1, 82);
        assert_eq!(guest.used(RECEIVE), None);
    });
}

#[test]
fn headers_of_nonsense_lose_the_frame_at_most() {
    in_namespace(|| {
        let (mut guest, host) = guest(0);
        let mut seed = 1_u64;
        for round in 0..2000 {
            let mut header = [0; HEADER];
            for byte in &mut header {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = if seed & 3 == 0 { 0 } else { seed as u8 };
            }
            // Few flags and kinds of segmentation mean anything.
            header[0] &= 3;
            header[1] %= 6;
            send(&mut guest, &header, &ethernet([14, 60, 1514, 40_000][round % 4], 1), 1 + round % 3);
            guest.notify(TRANSMIT);
            assert!(guest.used(TRANSMIT).is_some(), "round {round}: {header:?}");
            while host.take().is_some() {}
        }
        assert_eq!(guest.read(STATUS) & NEEDS_RESET, 0);
        send(&mut guest, &[0; HEADER], &ethernet(100, 1), 1);
        guest.notify(TRANSMIT);
        assert_eq!(host.take(), Some(ethernet(100, 1)));
    });
}

#[test]
fn offloads_are_offered_and_taken() {
    in_namespace(|| {
        let (mut guest, host) = guest(0);
        for bit in [0, 1, 7, 8, 11, 12] {
            assert_ne!(guest.offered() & 1 << bit, 0, "offload {bit}");
        }
        // NEEDS_CSUM from byte 34 on, to be stored 16 bytes after that.
        send(&mut guest, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &ethernet(100, 5), 1);
        guest.notify(TRANSMIT);
        assert_eq!(host.take().map(|frame| frame.len()), Some(100));
    });
}

#[test]
fn an_interface_that_goes_away_takes_the_link_down() {
    in_namespace(|| {
        let (mut guest, _host) = guest(0);
        supply(&mut guest, 2, 2048);
        let removed = std::process::Command::new("ip").args(["link", "del", NAME]).status().unwrap();
        assert!(removed.success());
        guest.run();
        assert_eq!(guest.config(6), [0, 0]);
        send(&mut guest, &[0; HEADER], &ethernet(100, 1), 1);
        guest.notify(TRANSMIT);
        assert!(guest.used(TRANSMIT).is_some());
    });
}

#[test]
fn interfaces_that_cannot_be_had_are_told_apart() {
    in_namespace(|| {
        for name in ["", "a b", "a/b", "..", "a-name-that-is-too-long", "a%d"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name:?}");
        }
        assert!(matches!(Tap::open("lo"), Err(TapError::Kind { .. })));
        let first = Tap::open(NAME).unwrap();
        assert!(matches!(Tap::open(NAME), Err(TapError::Busy { .. })));
        drop(first);
        drop(open_when_free());
        // It is gone with its last user.
        // SAFETY: The name is a C string.
        soon(|| (unsafe { libc::if_nametoindex(c"tap0".as_ptr()) } == 0).then_some(()));
    });
}
