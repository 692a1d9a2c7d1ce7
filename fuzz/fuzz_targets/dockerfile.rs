//! Dockerfiles with their variables, `.dockerignore` files, and the patterns of both.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| amphi::build::fuzzing::read_texts(bytes));
