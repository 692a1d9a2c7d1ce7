//! A layer of an image from a registry: any archive, plain or compressed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let first = amphi::image::fuzzing::convert_layer(bytes);
    assert!(first == amphi::image::fuzzing::convert_layer(bytes), "the same layer gives the same file system");
});
