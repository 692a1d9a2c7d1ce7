//! virtio-pmem: its queue.
#![no_main]

use amphi_devices::virtio::pmem::Pmem;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let file = (bytes.len() % 4 != 0).then(amphi_fuzz::file);
    amphi_fuzz::virtio(Pmem::new(GuestAddress(1 << 32), 2 << 20, file).expect("descriptors"), bytes);
});
