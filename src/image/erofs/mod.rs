//! Writing a directory tree as an EROFS image: read-only, uncompressed, the same bytes for the same tree.
//!
//! Format: the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`. Only what Linux 5.4 knows
//! is used: extended inodes, flat data with or without an inline tail, attributes beside their inode.
//! An image is metadata, beginning with the superblock, and then data, in blocks of 4 KiB.

mod attributes;
mod directory;
mod format;
mod plan;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::io::Errno;

use super::tree::{Node, Tree, TreeError};
use format::{BLOCK, Superblock};
use plan::{Inode, Plan};

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

/// Writes `tree` to `image`, which is empty.
pub(super) fn write(tree: &Tree, image: &File) -> Result<(), ErofsError> {
    let plan = Plan::new(tree)?;
    image.set_len(u64::from(plan.blocks) * BLOCK).map_err(ErofsError::Write)?;
    // Both parts are written in ascending order, through positions of their own.
    let mut metadata = BufWriter::with_capacity(256 << 10, Part { image, at: 0 });
    let mut position = 0;
    for inode in &plan.inodes {
        let contents = contents(tree, &plan, inode, image)?;
        let gap = inode.position - position;
        io::copy(&mut io::repeat(0).take(gap), &mut metadata).map_err(ErofsError::Write)?;
        let head = inode.encode(tree, &plan);
        let written = metadata
            .write_all(&head)
            .and_then(|()| metadata.write_all(&inode.attributes))
            .and_then(|()| metadata.write_all(&contents));
        written.map_err(ErofsError::Write)?;
        position = inode.position + (head.len() + inode.attributes.len() + contents.len()) as u64;
    }
    metadata.flush().map_err(ErofsError::Write)?;
    drop(metadata);
    let superblock =
        Superblock { inodes: plan.inodes.len() as u64, blocks: plan.blocks, root: plan.inodes[0].number() };
    superblock.write(image).map_err(ErofsError::Write)
}

/// Writes the whole blocks of an inode's contents to `image`, and returns its inline tail.
fn contents(tree: &Tree, plan: &Plan, inode: &Inode, image: &File) -> Result<Vec<u8>, ErofsError> {
    let node = &tree.nodes[inode.node];
    if node.metadata.is_file() {
        return file_contents(tree, node, inode, image);
    }
    let bytes = if node.metadata.is_dir() {
        directory::encode(tree, plan, inode)
    } else if node.metadata.is_symlink() {
        tree.link_target(node)?.as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let (blocks, tail) = bytes.split_at(bytes.len() - inode.tail);
    image.write_all_at(blocks, inode.data_position()).map_err(ErofsError::Write)?;
    Ok(tail.to_vec())
}

fn file_contents(tree: &Tree, node: &Node, inode: &Inode, image: &File) -> Result<Vec<u8>, ErofsError> {
    if inode.size == 0 {
        return Ok(Vec::new());
    }
    let read = |source| TreeError::Read { path: tree.path(node), source };
    let mut file = tree.open(node)?;
    let whole = inode.size - inode.tail as u64;
    let mut at = 0;
    while at < whole {
        // Holes need not be read: the image has them, too.
        let sparse = node.metadata.blocks() * 512 < inode.size;
        let (start, end) = if sparse { next_data(&file, at, whole).map_err(read)? } else { (at, whole) };
        if start < end {
            file.seek(SeekFrom::Start(start)).map_err(read)?;
            copy(&mut file, end - start, image, inode.data_position() + start, read)?;
        }
        at = end;
    }
    let mut tail = vec![0; inode.tail];
    file.read_exact_at(&mut tail, whole).map_err(read)?;
    tree.check(node, &file)?;
    Ok(tail)
}

/// The next stretch of data at or after `from` and before `limit`; it may be empty.
fn next_data(file: &File, from: u64, limit: u64) -> io::Result<(u64, u64)> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(start) if start < limit => {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
            Ok((start, end.clamp(start, limit)))
        }
        Ok(_) | Err(Errno::NXIO) => Ok((limit, limit)),
        Err(errno) => Err(errno.into()),
    }
}

fn copy(
    file: &mut File,
    length: u64,
    image: &File,
    at: u64,
    read_error: impl Fn(io::Error) -> TreeError,
) -> Result<(), ErofsError> {
    let mut to = Part { image, at };
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(256 << 10)];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match file.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(read_error(io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(got) => {
                to.write_all(&buffer[..got]).map_err(ErofsError::Write)?;
                left -= got as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error).into()),
        }
    }
    Ok(())
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
