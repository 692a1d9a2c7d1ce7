//! Doors for the fuzz targets; built for them only.

use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::kernel_image::KernelFile;

/// Loads the kernel in `path` into the memory of a small guest.
pub fn load_kernel(path: &Path) {
    if let Ok(memory) = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]) {
        let _ = KernelFile::open(path).and_then(|kernel| kernel.load(&memory));
    }
}
