//! virtio-balloon: its queues, and what the monitor wants of it meanwhile. All that it gives back is the guest's.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use amphi_devices::virtio::balloon::{Balloon, BalloonFeatures, PAGE, Reclaim};
use amphi_fuzz::MEMORY;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

struct Check;

impl Reclaim for Check {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        assert!(address.0 % PAGE == 0 && len % PAGE == 0 && len > 0, "{len} bytes at {:#x}", address.0);
        assert!(address.0 < MEMORY && len <= MEMORY - address.0, "{len} bytes at {:#x}", address.0);
        if address.0 & PAGE == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let features = BalloonFeatures { deflate_on_oom: bytes.len() % 2 == 0, reporting: bytes.len() % 4 < 3 };
    let balloon = Balloon::new(Box::new(Check), features, 256).expect("descriptors");
    let balloon = Arc::new(Mutex::new(balloon));
    amphi_fuzz::virtio_with(Arc::clone(&balloon), bytes, &mut |input| {
        let mut balloon = balloon.lock().expect("nothing has panicked");
        match input.byte() {
            0..128 => balloon.request_statistics(),
            pages => balloon.set_target(pages.into()),
        }
    });
});
