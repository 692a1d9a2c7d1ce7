//! The superblock and the numbers of the format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The block size in bytes.
pub(in crate::image) const BLOCK: u64 = 4096;
/// An inode's number is its position divided by this.
pub(super) const SLOT: u64 = 32;
/// The size of an extended inode (`struct erofs_inode_extended`) in bytes.
pub(in crate::image) const INODE: usize = 64;

/// Where the superblock is, and its size.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 128;
/// Where the first inode may be.
pub(super) const FIRST_INODE: u64 = SUPERBLOCK + SUPERBLOCK_SIZE as u64;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum, and inodes have the time of modification.
const FEATURES: u32 = 1 << 0 | 1 << 1;
const VOLUME: &[u8; 16] = b"amphi\0\0\0\0\0\0\0\0\0\0\0";

/// `i_format` of an extended inode with its data in blocks only.
pub(super) const FORMAT_PLAIN: u16 = 1;
/// `i_format` of an extended inode with the rest of its data, after whole blocks, behind it.
pub(super) const FORMAT_INLINE: u16 = 1 | 2 << 1;

/// What the superblock says.
pub(super) struct Superblock {
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// The number of the root's inode.
    pub(super) root: u64,
    /// The block from which inodes are numbered.
    pub(super) base: u32,
}

impl Superblock {
    /// Puts the superblock into `image`, in which all else of the first block is already.
    pub(super) fn write(&self, image: &File) -> io::Result<()> {
        let mut block = [0; 3072]; // to the end of the first block
        image.read_exact_at(&mut block, SUPERBLOCK)?;
        block[..SUPERBLOCK_SIZE].fill(0);
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &FEATURES.to_le_bytes());
        put(12, &[12]); // the block size's logarithm
        // The root comes first, and so within reach of 16 bits.
        put(14, &u16::try_from(self.root).map_err(io::Error::other)?.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.base.to_le_bytes());
        put(64, VOLUME);
        let checksum = crc32c(&block);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
        image.write_all_at(&block, SUPERBLOCK)
    }
}

/// CRC-32C as the kernel computes it for EROFS: from all ones, not inverted at the end. One block, once an image: no
/// table is worth its while.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32C is that of these digits, inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
