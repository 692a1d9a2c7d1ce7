//! Nonsense from a seeded generator: whatever the guest does, nothing panics and nothing goes on for ever.

use amphi_devices::BusDevice;
use amphi_devices::virtio::block::Block;
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::rng::Rng;

use crate::balloon;
use crate::block::file;
use crate::guest::{ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, FEATURES_OK, Guest, MEMORY, STATUS};
use crate::vsock;

/// Xorshift, for numbers that are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly plausible, sometimes not.
    fn address(&mut self) -> u64 {
        match self.below(16) {
            0 => self.next(),
            1 => MEMORY - self.below(64),
            2..=8 => BUFFERS + self.below(64) * 64,
            _ => BUFFERS + self.below(0x40_0000),
        }
    }
}

fn devices() -> Vec<Guest> {
    let port = |id| Port { id, input: Some(file().into()), output: Some(file().into()), ..Port::default() };
    let disk = file();
    disk.set_len(1 << 20).unwrap();
    vec![
        Guest::new(Console::new(vec![port(1), port(3)]).unwrap()),
        Guest::new(Block::new(disk, false, "").unwrap()),
        Guest::new(Rng::new().unwrap()),
        balloon::balloon(),
        Guest::new(vsock::device(&vsock::Folder::new())),
    ]
}

fn random_register(guest: &mut Guest, random: &mut Random) {
    let offset = if random.below(4) == 0 { random.below(0x1000) } else { random.below(0x40) * 4 };
    let value = match random.below(3) {
        0 => random.next(),
        1 => random.below(16),
        _ => 1 << random.below(32),
    };
    let len = [1, 2, 4, 4, 4, 8][random.below(6) as usize];
    if random.below(3) == 0 {
        guest.transport.read(offset, &mut [0; 8][..len]);
    } else {
        guest.transport.write(offset, &value.to_le_bytes()[..len]);
    }
}

#[test]
fn random_registers() {
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        for guest in &mut devices() {
            for step in 0..2000 {
                if step % 100 == 0 {
                    // From time to time, give nonsense a running device to work on.
                    let features = guest.offered();
                    guest.negotiate(features);
                    guest.set_up_queues();
                    guest.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
                }
                random_register(guest, &mut random);
                if step % 20 == 0 {
                    guest.run();
                }
            }
        }
    }
}

#[test]
fn random_rings() {
    for seed in 1..=150 {
        let mut random = Random::new(seed);
        for guest in &mut devices() {
            guest.start(random.next() & 1 << 29);
            for _ in 0..10 {
                random_chains(guest, &mut random);
                guest.run();
                if guest.read(STATUS) & 64 != 0 {
                    guest.start(0);
                }
            }
        }
    }
}

fn random_chains(guest: &mut Guest, random: &mut Random) {
    // Buffers that make sense as a console's message, or as the header of a request.
    for slot in 0..64 {
        let (port, event, open) = (random.below(4) as u8, random.below(8) as u8, random.below(4) != 0);
        guest.put(BUFFERS + slot * 64, &[port, 0, 0, 0, event, 0, open.into(), 0, random.below(64) as u8]);
        guest.put(BUFFERS + slot * 64 + 9, &[0; 55]);
    }
    for queue in 0..guest.rings.len() {
        let size = guest.rings[queue].size;
        for index in 0..size.min(16) {
            let flags = (random.below(4) | if random.below(20) == 0 { 4 } else { 0 }) as u16;
            let len = if random.below(10) == 0 { random.next() as u32 } else { random.below(2048) as u32 };
            let beyond = random.below(2);
            let next = random.below(u64::from(size) + beyond) as u16;
            guest.descriptor(queue, index, random.address(), len, flags, next);
        }
        for _ in 0..random.below(4) {
            let head = random.below(u64::from(size)) as u16;
            guest.offer(queue, head);
        }
        guest.write(0x50, queue as u32);
    }
}
