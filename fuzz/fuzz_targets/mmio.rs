//! The MMIO transport: any access to any register, in any order and width.
#![no_main]

use amphi_devices::virtio::console::{Console, Port};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let port = Port { id: 1, output: Some(amphi_fuzz::sink().into()), ..Port::default() };
    amphi_fuzz::registers(Console::new(vec![port]).expect("a port"), bytes);
});
