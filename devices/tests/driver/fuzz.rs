//! Nonsense from a seeded generator: whatever the guest does, nothing panics and nothing goes on for ever.
//!
//! The fuzz targets (`fuzz/` at the top of the repository) run the same programs, guided by what they reach. This is what
//! every `cargo test` does.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use amphi_devices::virtio::block::{Block, Engine};
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::net::{FrameSocket, Net, Settings};
use amphi_devices::virtio::rng::Rng;

use crate::block::{self, file};
use crate::guest::Guest;
use crate::{balloon, fs, pmem, program, vsock};

/// Xorshift, for numbers that are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.next().to_le_bytes()[3]).take(len).collect()
}

fn devices(folder: &Path) -> Vec<Guest> {
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
        Guest::new(Rng::new().unwrap()),
        balloon::balloon(),
        pmem::guest(Some(file())),
        Guest::new(vsock::device(&vsock::Folder::new())),
        fs::share(File::open(folder).unwrap(), fs::settings()),
    ]
}

#[test]
fn random_programs() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("d");
    std::fs::create_dir(&shared).unwrap();
    for seed in 1..=200 {
        for guest in &mut devices(&shared) {
            program::run(guest, &noise(seed, 4096));
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is made outside of what is shared");
}
