//! virtio-net: its queues, and a program like passt that sends frames, or something else, and sometimes reads.
#![no_main]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use amphi_devices::virtio::net::{FrameSocket, Net, Settings};
use amphi_fuzz::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (peer, device) = UnixStream::pair().expect("descriptors");
    peer.set_nonblocking(true).expect("it is a socket");
    if bytes.len() % 2 == 1 {
        fill_soon(&device);
    }
    let settings = Settings { mtu: Some(1500), ..Settings::default() };
    let net = Net::new(Box::new(FrameSocket::new(device)), settings).expect("descriptors");
    amphi_fuzz::virtio_with(net, bytes, &mut |input| turn(&peer, input));
});

/// Makes the socket take no more than a few frames.
fn fill_soon(socket: &UnixStream) {
    let size: libc::c_int = 4096;
    // SAFETY: the option's value is an integer, and so long.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const size).cast(), 4) };
    assert_eq!(result, 0, "SO_SNDBUF");
}

/// What the peer does. That the socket is full, or closed by the device's end, is no matter.
fn turn(mut peer: &UnixStream, input: &mut Input<'_>) {
    let _ = match input.byte() % 8 {
        0 => peer.read(&mut vec![0; input.half().into()]),
        // Any bytes: half a prefix, a frame that is too long, or the rest of one.
        1 => peer.write(&input.take::<8>()),
        2 => return drop(peer.shutdown(std::net::Shutdown::Write)),
        kind => {
            let len = if kind < 5 { input.half() } else { 14 + u16::from(input.byte()) };
            peer.write(&[&u32::from(len).to_be_bytes(), &vec![0x5a; len.into()][..]].concat())
        }
    };
}
