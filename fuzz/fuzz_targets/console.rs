//! virtio-console: its queues, its control messages, and the host's streams.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use amphi_devices::virtio::console::{Console, Port};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut host, device) = UnixStream::pair().expect("descriptors");
    host.write_all(bytes.get(..1024).unwrap_or(bytes)).expect("it fits");
    let ports = vec![
        Port { id: 1, input: Some(device.into()), output: Some(amphi_fuzz::sink().into()), ..Port::default() },
        Port { id: 3, output: Some(amphi_fuzz::sink().into()), ..Port::default() },
    ];
    amphi_fuzz::virtio(Console::new(ports).expect("two ports"), bytes);
    drop(host);
});
