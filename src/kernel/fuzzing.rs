//! Doors for the fuzz targets; built for them only.

use std::fs::File;
use std::path::Path;

use super::{BzImage, Compression, KernelError, extracted, test_images};

/// A sound ELF kernel with that body.
#[must_use]
pub fn kernel(body: &[u8]) -> Vec<u8> {
    test_images::kernel(body)
}

/// A sound bzImage, but for what `change` does to its payload. `compression` chooses how that is compressed.
pub fn bz_image(change: impl FnOnce(Vec<u8>) -> Vec<u8>, compression: u8) -> Vec<u8> {
    const KNOWN: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Lz4, Compression::Zstd];
    let payload = test_images::compress(KNOWN[usize::from(compression) % KNOWN.len()], &kernel(&[0x90; 64]));
    test_images::bz_image(&change(payload))
}

/// Unpacks the payload of the bzImage in `image`.
///
/// # Errors
/// As for a file that a user names.
pub fn extract(image: &[u8], header: &BzImage, out: &mut File) -> Result<(), KernelError> {
    extracted::extract_to(image, Path::new("the image"), header, out)
}
