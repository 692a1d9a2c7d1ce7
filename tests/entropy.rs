//! The entropy device: random numbers of the host's in every guest.

use crate::harness::installed::{self, Kernel};
use crate::harness::{Amphi, Case, Isolation, vm};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        vm("entropy_on_amphis_own_kernel", || comes_from_the_host(&installed::own())),
        vm("entropy_on_a_stock_kernel", || comes_from_the_host(&installed::stock("6.1."))),
    ]
}

fn comes_from_the_host(kernel: &Kernel) {
    let script = "cat /sys/class/misc/hw_random/rng_current; head -c 100000 /dev/hwrng | gzip -c | wc -c";
    let finished = Amphi::sh(Isolation::Vm, script).with(["--kernel", &kernel.name]).finish().expect(0);
    let text = finished.text();
    let (source, size) = text.split_once('\n').unwrap_or_else(|| panic!("two lines {finished}"));
    assert!(source.starts_with("virtio_rng"), "{finished}");
    assert!(size.parse::<u32>().unwrap() > 100_000, "random bytes do not compress {finished}");
}
