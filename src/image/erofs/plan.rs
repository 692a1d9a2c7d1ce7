//! Where everything in an image goes.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use super::super::tree::{Node, Tree, TreeError};
use super::super::xattr;
use super::format::{BLOCK, FIRST_INODE, FORMAT_INLINE, FORMAT_PLAIN, INODE, SLOT};
use super::{ErofsError, attributes, directory};

/// The layout of an image.
pub(super) struct Plan {
    /// In ascending order of their positions; the first is the root's.
    pub(super) inodes: Vec<Inode>,
    /// For each node of the tree its inode's index; names of one file share it.
    pub(super) of_node: Vec<usize>,
    /// For each node of the tree, if it is a directory, the nodes in it.
    pub(super) children: Vec<Vec<usize>>,
    /// The image's length in blocks.
    pub(super) blocks: u32,
}

/// An inode and its contents.
pub(super) struct Inode {
    /// The first of its names in the tree.
    pub(super) node: usize,
    /// Where it is in the image.
    pub(super) position: u64,
    links: u32,
    /// The length of the contents.
    pub(super) size: u64,
    /// How much of the contents' end is behind the inode.
    pub(super) tail: usize,
    /// The block where the rest of the contents begins.
    first_block: u32,
    /// Its extended attributes, encoded.
    pub(super) attributes: Vec<u8>,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Result<Self, ErofsError> {
        let mut plan =
            Self { inodes: Vec::new(), of_node: Vec::new(), children: vec![Vec::new(); tree.nodes.len()], blocks: 0 };
        for (index, node) in tree.nodes.iter().enumerate().skip(1) {
            plan.children[node.parent].push(index);
        }
        let mut linked = HashMap::new();
        for (index, node) in tree.nodes.iter().enumerate() {
            let metadata = &node.metadata;
            let new = plan.inodes.len();
            let inode = match !metadata.is_dir() && metadata.nlink() > 1 {
                true => *linked.entry((metadata.dev(), metadata.ino())).or_insert(new),
                false => new,
            };
            plan.of_node.push(inode);
            if inode == new {
                let inode = plan.inode(tree, index)?;
                plan.inodes.push(inode);
            } else {
                plan.inodes[inode].links += 1;
            }
        }
        plan.place(tree)?;
        Ok(plan)
    }

    /// All about a node's inode but its place.
    fn inode(&self, tree: &Tree, index: usize) -> Result<Inode, ErofsError> {
        let node = &tree.nodes[index];
        let path = || tree.path(node);
        let attributes = xattr::read(&path()).map_err(|source| TreeError::Read { path: path(), source })?;
        let attributes = attributes::encode(&attributes)
            .ok_or_else(|| ErofsError::TooLarge { path: path(), what: "its extended attributes" })?;
        let (size, links) = if node.metadata.is_dir() {
            let directories = self.children[index].iter().filter(|&&child| tree.nodes[child].metadata.is_dir()).count();
            let links = u32::try_from(2 + directories).unwrap_or(u32::MAX);
            (directory::size(self.children[index].iter().map(|&child| tree.nodes[child].name())), links)
        } else if node.metadata.is_file() || node.metadata.is_symlink() {
            (node.metadata.size(), 1)
        } else {
            (0, 1)
        };
        Ok(Inode { node: index, position: 0, links, size, tail: 0, first_block: 0, attributes })
    }

    /// Gives each inode its position, and its contents their blocks.
    fn place(&mut self, tree: &Tree) -> Result<(), ErofsError> {
        let mut end = FIRST_INODE;
        let mut data_blocks = 0_u64;
        for inode in &mut self.inodes {
            let head = INODE as u64 + inode.attributes.len() as u64;
            let tail = inode.size % BLOCK;
            let mut position = end.next_multiple_of(SLOT);
            let room = BLOCK - position % BLOCK;
            // An inode and its tail lie in one block; a tail that does not fit there takes a block of the data.
            let needed = head + tail;
            let next_block = position.next_multiple_of(BLOCK);
            inode.tail = 0;
            if tail > 0 && needed <= BLOCK && (needed <= room || room < BLOCK - tail) {
                if needed > room {
                    position = next_block;
                }
                // Less than a block.
                inode.tail = usize::try_from(tail).unwrap_or_default();
            } else if room < INODE as u64 {
                position = next_block;
            }
            inode.position = position;
            end = position + head + inode.tail as u64;
            // Numbered from the data's beginning as yet.
            let first = data_blocks;
            data_blocks += (inode.size - inode.tail as u64).div_ceil(BLOCK);
            let too_large = || ErofsError::TooLarge {
                path: tree.path(&tree.nodes[inode.node]),
                what: "there are more than 2^32 blocks",
            };
            inode.first_block = u32::try_from(first).map_err(|_| too_large())?;
        }
        let metadata_blocks = end.div_ceil(BLOCK);
        let root = || ErofsError::TooLarge { path: tree.path(&tree.nodes[0]), what: "there are more than 2^32 blocks" };
        self.blocks = u32::try_from(metadata_blocks + data_blocks).map_err(|_| root())?;
        for inode in &mut self.inodes {
            // Below `blocks`, which fits.
            inode.first_block += u32::try_from(metadata_blocks).unwrap_or_default();
        }
        Ok(())
    }
}

impl Inode {
    /// The inode's number, by which directories name it.
    pub(super) fn number(&self) -> u64 {
        self.position / SLOT
    }

    /// Where in the image the contents' whole blocks are.
    pub(super) fn data_position(&self) -> u64 {
        u64::from(self.first_block) * BLOCK
    }

    /// The inode as `struct erofs_inode_extended`.
    pub(super) fn encode(&self, tree: &Tree, plan: &Plan) -> [u8; INODE] {
        let node = &tree.nodes[self.node];
        let metadata = &node.metadata;
        let format = if self.tail > 0 { FORMAT_INLINE } else { FORMAT_PLAIN };
        // The count is of units of four bytes behind the header, and one for that.
        let attributes = self.attributes.len().checked_sub(attributes::HEADER).map_or(0, |length| length / 4 + 1);
        let place = if is_device(node) { device(node) } else { self.first_block };
        let number = u32::try_from(plan.of_node[self.node] + 1).unwrap_or(u32::MAX);
        let mut bytes = [0; INODE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &format.to_le_bytes());
        put(2, &u16::try_from(attributes).unwrap_or_default().to_le_bytes());
        put(4, &metadata.mode().to_le_bytes()[..2]);
        put(8, &self.size.to_le_bytes());
        put(16, &place.to_le_bytes());
        put(20, &number.to_le_bytes());
        put(24, &metadata.uid().to_le_bytes());
        put(28, &metadata.gid().to_le_bytes());
        put(32, &metadata.mtime().to_le_bytes());
        put(40, &u32::try_from(metadata.mtime_nsec()).unwrap_or_default().to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

fn is_device(node: &Node) -> bool {
    matches!(node.metadata.mode() & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
}

/// A device's number as the kernel's `new_encode_dev` has it.
fn device(node: &Node) -> u32 {
    let (major, minor) = node.device_numbers();
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
