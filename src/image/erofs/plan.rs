//! Where everything in an image goes.

use super::format::{BLOCK, FIRST_INODE, FORMAT_INLINE, FORMAT_PLAIN, INODE, SLOT};
use super::listing::{Attributes, Contents, Listing};
use super::{ErofsError, attributes, directory};

/// The layout of an image.
pub(super) struct Plan {
    /// In ascending order of their positions, one for each of the listing's; the first is the root's.
    pub(super) inodes: Vec<Inode>,
    /// For each entry of the listing, if it is a directory, the entries in it.
    pub(super) children: Vec<Vec<usize>>,
    /// The block from which inodes are numbered.
    pub(super) base: u32,
    /// The image's length in blocks.
    pub(super) blocks: u32,
}

/// Where an inode and its contents are.
#[derive(Default)]
pub(super) struct Inode {
    /// Where it is in the image.
    pub(super) position: u64,
    /// By which directories name it.
    pub(super) number: u64,
    links: u32,
    /// The length of the contents.
    pub(super) size: u64,
    /// How much of the contents' end is behind the inode.
    pub(super) tail: usize,
    /// The block where the rest of the contents begins.
    first_block: u32,
}

impl Plan {
    /// The layout of `listing` with its inodes from block `base` on; what is before it holds contents already.
    pub(super) fn new(listing: &Listing, base: u32) -> Result<Self, ErofsError> {
        let mut children = vec![Vec::new(); listing.entries.len()];
        let mut inodes: Vec<Inode> = listing.inodes.iter().map(|_| Inode::default()).collect();
        for (index, entry) in listing.entries.iter().enumerate() {
            let is_directory = listing.inodes[entry.inode].is_directory();
            inodes[entry.inode].links += if is_directory { 2 } else { 1 };
            if index > 0 {
                children[entry.parent].push(index);
                inodes[listing.entries[entry.parent].inode].links += u32::from(is_directory);
            }
        }
        for (inode, attributes) in inodes.iter_mut().zip(&listing.inodes) {
            inode.size = match attributes.contents {
                Contents::Later(_) if attributes.is_directory() => {
                    let names = children[attributes.entry].iter();
                    directory::size(names.map(|&child| &*listing.entries[child].name))
                }
                Contents::Later(size) | Contents::Placed { size, .. } => size,
            };
        }
        let mut plan = Self { inodes, children, base, blocks: 0 };
        plan.place(listing)?;
        Ok(plan)
    }

    /// Gives each inode its position, and its contents their blocks.
    fn place(&mut self, listing: &Listing) -> Result<(), ErofsError> {
        let start = u64::from(self.base) * BLOCK;
        // The superblock is in the first block; elsewhere a slot stays free, so that no number is 0.
        let mut end = if self.base == 0 { FIRST_INODE } else { start + SLOT };
        let mut data_blocks = 0_u64;
        let too_large =
            |entry| ErofsError::TooLarge { path: listing.path(entry), what: "there are more than 2^32 blocks" };
        for (inode, attributes) in self.inodes.iter_mut().zip(&listing.inodes) {
            let head = INODE as u64 + attributes.attributes.len() as u64;
            let (tail, forced) = match attributes.contents {
                Contents::Placed { tail, .. } => (tail as u64, true),
                Contents::Later(_) => (inode.size % BLOCK, false),
            };
            let mut position = end.next_multiple_of(SLOT);
            let room = BLOCK - position % BLOCK;
            // An inode and its tail lie in one block; a tail that does not fit there takes a block of the data.
            let needed = head + tail;
            let next_block = position.next_multiple_of(BLOCK);
            inode.tail = 0;
            if tail > 0 && needed <= BLOCK && (forced || needed <= room || room < BLOCK - tail) {
                if needed > room {
                    position = next_block;
                }
                // Less than a block.
                inode.tail = usize::try_from(tail).unwrap_or_default();
            } else if room < INODE as u64 {
                position = next_block;
            }
            inode.position = position;
            inode.number = (position - start) / SLOT;
            end = position + head + inode.tail as u64;
            if let Contents::Placed { block, .. } = attributes.contents {
                inode.first_block = block;
                continue;
            }
            // Numbered from the data's beginning as yet.
            let first = data_blocks;
            data_blocks += (inode.size - inode.tail as u64).div_ceil(BLOCK);
            inode.first_block = u32::try_from(first).map_err(|_| too_large(attributes.entry))?;
        }
        let metadata_end = end.div_ceil(BLOCK);
        self.blocks = u32::try_from(metadata_end + data_blocks).map_err(|_| too_large(0))?;
        for (inode, attributes) in self.inodes.iter_mut().zip(&listing.inodes) {
            if matches!(attributes.contents, Contents::Later(_)) {
                // Below `blocks`, which fits.
                inode.first_block += u32::try_from(metadata_end).unwrap_or_default();
            }
        }
        Ok(())
    }
}

impl Inode {
    /// Where in the image the contents' whole blocks are.
    pub(super) fn data_position(&self) -> u64 {
        u64::from(self.first_block) * BLOCK
    }

    /// The inode as `struct erofs_inode_extended`; it is the listing's one with that `index`.
    pub(super) fn encode(&self, attributes: &Attributes, index: usize) -> [u8; INODE] {
        let format = if self.tail > 0 { FORMAT_INLINE } else { FORMAT_PLAIN };
        // The count is of units of four bytes behind the header, and one for that.
        let count = attributes.attributes.len().checked_sub(attributes::HEADER).map_or(0, |length| length / 4 + 1);
        let is_device = matches!(attributes.kind(), libc::S_IFCHR | libc::S_IFBLK);
        let place = if is_device { device(attributes.device) } else { self.first_block };
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let mut bytes = [0; INODE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &format.to_le_bytes());
        put(2, &u16::try_from(count).unwrap_or_default().to_le_bytes());
        put(4, &attributes.mode.to_le_bytes()[..2]);
        put(8, &self.size.to_le_bytes());
        put(16, &place.to_le_bytes());
        put(20, &number.to_le_bytes());
        put(24, &attributes.uid.to_le_bytes());
        put(28, &attributes.gid.to_le_bytes());
        put(32, &attributes.mtime.0.to_le_bytes());
        put(40, &attributes.mtime.1.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

/// A device's number as the kernel's `new_encode_dev` has it.
const fn device((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
