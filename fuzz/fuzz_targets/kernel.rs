//! Kernels' files: recognising, unpacking and loading them, and finding their configuration.
#![no_main]

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use amphi::isolation::vm::fuzzing::load_kernel;
use amphi::kernel::config::Config;
use amphi::kernel::{Format, fuzzing};
use libfuzzer_sys::fuzz_target;

/// Changes a sound image where the input is not zero, so that nonsense gets past the first checks.
fn changed(mut image: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    image.resize(image.len().max(bytes.len()), 0);
    image.iter_mut().zip(bytes).for_each(|(byte, change)| *byte ^= change);
    image
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&selector, bytes)) = bytes.split_first() else { return };
    let image = match selector % 8 {
        0 => bytes.to_vec(),
        1..=3 => changed(fuzzing::kernel(&[0x90; 64]), bytes),
        compression => fuzzing::bz_image(|payload| changed(payload, bytes), compression),
    };
    let file = amphi_fuzz::file();
    file.write_all_at(&image, 0).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if let Ok(Format::BzImage(header)) = Format::recognise(&file, &path) {
        let _ = fuzzing::extract(&image, &header, &mut amphi_fuzz::file());
    }
    let _ = Config::in_image(&image);
    load_kernel(&path);
});
