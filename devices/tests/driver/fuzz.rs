//! Nonsense from a seeded generator: whatever the guest does, nothing panics and nothing goes on for ever.
//!
//! The fuzz targets (`fuzz/` at the top of the repository) run the same programs, guided by what they reach. This is what
//! every `cargo test` does.

use std::io::Write;

use amphi_devices::virtio::block::{Block, Engine};
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::net::{FrameSocket, Net, Settings};

use crate::block::{self, file};
use crate::guest::Guest;
use crate::program;

/// Xorshift, for bytes that are the same in every run.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn devices() -> Vec<Guest> {
    let port = |id| Port { id, input: Some(file().into()), output: Some(file().into()), ..Port::default() };
    let disk = file();
    disk.set_len(1 << 20).unwrap();
    let (network, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    // It answers with its own frames, and those are as long as they say.
    (&network).write_all(&[&1000_u32.to_be_bytes()[..], &[0; 1000]].concat().repeat(50)).unwrap();
    let loopback = FrameSocket::new(peer);
    std::mem::forget(network);
    vec![
        Guest::new(Console::new(vec![port(1), port(3)]).unwrap()),
        Guest::new(Block::new(disk.try_clone().unwrap(), false, "").unwrap()),
        Guest::new(block::block(disk, Engine::IoUring)),
        Guest::new(Net::new(Box::new(loopback), Settings::default()).unwrap()),
    ]
}

#[test]
fn random_programs() {
    for seed in 1..=200 {
        for guest in &mut devices() {
            program::run(guest, &noise(seed, 4096));
        }
    }
}
