//! Writing a directory tree as an EROFS image: read-only, uncompressed, the same bytes for the same tree.
//!
//! Format: the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`. Only what Linux 5.4 knows
//! is used: extended inodes, flat data with or without an inline tail, attributes beside their inode.
//! An image is the superblock, data that came before the rest was known ([`Contents::Placed`]), metadata, and the rest
//! of the data, in blocks of 4 KiB.

mod attributes;
mod directory;
mod format;
mod listing;
mod lookup;
mod of_tree;
mod plan;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use attributes::HEADER as ATTRIBUTES_HEADER;
pub(super) use attributes::{decode as decode_attributes, encode as encode_attributes};
pub(super) use format::{BLOCK, INODE};
pub(super) use listing::{Attributes, Contents, Entry, Listing};
pub(super) use lookup::{Found, Inode as StoredInode, walk};

use super::tree::{Tree, TreeError};
use format::Superblock;
use plan::Plan;

/// Why there is no EROFS image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The format has no room for a file, or for all together.
    #[error("{path} does not fit in an EROFS image: {what}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
    },
    /// The image cannot be written.
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
}

/// Where the contents of a listing's files come from.
pub(super) trait Source {
    /// Writes the contents of the inode `index` to `image` from the position `at` on, all but the last `tail` bytes, and
    /// returns those. Contents that are placed already are not written again. Not called for directories.
    ///
    /// # Errors
    /// They cannot be read, or not be written.
    fn contents(&mut self, index: usize, image: &File, at: u64, tail: usize) -> Result<Vec<u8>, ErofsError>;
}

/// Writes `tree` to `image`, which is empty.
pub(super) fn write(tree: &Tree, image: &File) -> Result<(), ErofsError> {
    let listing = of_tree::list(tree)?;
    finish(&listing, &mut of_tree::Files { tree, listing: &listing }, image, 0)
}

/// Makes `image` a file system of what `listing` says. Blocks before `base` may hold contents already, but not the first one.
pub(super) fn finish(listing: &Listing, source: &mut impl Source, image: &File, base: u32) -> Result<(), ErofsError> {
    let plan = Plan::new(listing, base)?;
    image.set_len(u64::from(plan.blocks) * BLOCK).map_err(ErofsError::Write)?;
    // Both parts are written in ascending order, through positions of their own.
    let mut position = u64::from(base) * BLOCK;
    let mut metadata = BufWriter::with_capacity(256 << 10, Part { image, at: position });
    for (index, (inode, attributes)) in plan.inodes.iter().zip(&listing.inodes).enumerate() {
        let contents = match attributes.is_directory() {
            true => {
                let bytes = directory::encode(listing, &plan, attributes.entry);
                let (blocks, tail) = bytes.split_at(bytes.len() - inode.tail);
                image.write_all_at(blocks, inode.data_position()).map_err(ErofsError::Write)?;
                tail.to_vec()
            }
            false if inode.size > 0 => source.contents(index, image, inode.data_position(), inode.tail)?,
            false => Vec::new(),
        };
        let gap = inode.position - position;
        io::copy(&mut io::repeat(0).take(gap), &mut metadata).map_err(ErofsError::Write)?;
        let head = inode.encode(attributes, index);
        let written = metadata
            .write_all(&head)
            .and_then(|()| metadata.write_all(&attributes.attributes))
            .and_then(|()| metadata.write_all(&contents));
        written.map_err(ErofsError::Write)?;
        position = inode.position + (head.len() + attributes.attributes.len() + contents.len()) as u64;
    }
    metadata.flush().map_err(ErofsError::Write)?;
    drop(metadata);
    let superblock = Superblock {
        inodes: plan.inodes.len() as u64,
        blocks: plan.blocks,
        root: plan.inodes[0].number,
        base: plan.base,
    };
    superblock.write(image).map_err(ErofsError::Write)
}

/// A place in the image that moves on with what is written there.
struct Part<'a> {
    image: &'a File,
    at: u64,
}

impl Write for Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.image.write_at(bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
