//! Manifests, indexes and configurations, names and challenges, as a registry or a file may have them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| amphi::image::fuzzing::read_documents(bytes));
