//! virtio-vsock: packets, and programs of the host that listen, connect, write, read, shut down and leave.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use amphi_devices::virtio::vsock::Vsock;
use amphi_fuzz::Input;
use libfuzzer_sys::fuzz_target;

/// More connections than this say nothing new.
const MOST_PROGRAMS: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a place for sockets");
    let path = folder.path().join("v");
    // Port 1 is served; behind port 2 is a socket at which nobody listens any more.
    let service = listener(folder.path().join("v_1"));
    drop(listener(folder.path().join("v_2")));
    let vsock = Vsock::new(3, listener(path.clone()), path.clone()).expect("descriptors");
    let mut host = Host { path, service, programs: Vec::new() };
    amphi_fuzz::virtio_with(vsock, bytes, &mut |input| host.turn(input));
});

fn listener(path: PathBuf) -> UnixListener {
    let listener = UnixListener::bind(path).expect("the name is free");
    listener.set_nonblocking(true).expect("it is a socket");
    listener
}

struct Host {
    path: PathBuf,
    service: UnixListener,
    programs: Vec<UnixStream>,
}

impl Host {
    /// What the programs do. That a socket is full, or closed by the device's end, is no matter.
    fn turn(&mut self, input: &mut Input<'_>) {
        let (action, which) = (input.byte(), usize::from(input.byte()));
        let new = match action % 8 {
            0 => self.service.accept().map(|(stream, _)| stream).ok(),
            1 => UnixStream::connect(&self.path).ok(),
            _ => None,
        };
        if let Some(mut stream) = new.filter(|_| self.programs.len() < MOST_PROGRAMS) {
            stream.set_nonblocking(true).expect("it is a socket");
            let _ = match (action % 8, action >> 3) {
                (0, _) => Ok(0),
                (_, 0) => stream.write(&input.take::<16>()),
                (_, 1) => stream.write(b"CONNECT"),
                _ => stream.write(format!("CONNECT {}\n", which % 4).as_bytes()),
            };
            self.programs.push(stream);
        }
        let count = self.programs.len();
        let Some(which) = which.checked_rem(count) else { return };
        let stream = &mut self.programs[which];
        let _ = match action % 8 {
            2 | 3 => stream.write(&vec![0x5a; input.half().into()]),
            4 | 5 => stream.read(&mut vec![0; input.half().into()]),
            6 => {
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(action >> 3) % 3];
                return drop(stream.shutdown(how));
            }
            7 => return drop(self.programs.swap_remove(which)),
            _ => Ok(0),
        };
    }
}
