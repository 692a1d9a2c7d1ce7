//! virtio-rng: its queue.
#![no_main]

use amphi_devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| amphi_fuzz::virtio(Rng::new().expect("descriptors"), bytes));
