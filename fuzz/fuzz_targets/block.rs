//! virtio-blk: its queue and its configuration.
#![no_main]

use amphi_devices::virtio::block::Block;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let disk = amphi_fuzz::file();
    disk.set_len(1 << 20).expect("memory");
    let read_only = bytes.len() % 8 == 7;
    amphi_fuzz::virtio(Block::new(disk, read_only, "fuzz").expect("a disk of whole sectors"), bytes);
});
