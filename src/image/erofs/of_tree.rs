//! A directory tree as the contents of an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;

use super::super::tree::{Node, Tree, TreeError};
use super::super::xattr;
use super::listing::{Attributes, Contents, Entry, Listing};
use super::{ErofsError, Part, Source, attributes};

/// What `tree` holds.
pub(super) fn list(tree: &Tree) -> Result<Listing, ErofsError> {
    let mut listing = Listing::default();
    let mut linked = HashMap::new();
    for (index, node) in tree.nodes.iter().enumerate() {
        let metadata = &node.metadata;
        let new = listing.inodes.len();
        let inode = match !metadata.is_dir() && metadata.nlink() > 1 {
            true => *linked.entry((metadata.dev(), metadata.ino())).or_insert(new),
            false => new,
        };
        let name = node.path.file_name().unwrap_or_default().as_bytes().to_vec();
        listing.entries.push(Entry { name, parent: node.parent, inode });
        if inode == new {
            listing.inodes.push(attributes_of(tree, node, index)?);
        }
    }
    Ok(listing)
}

fn attributes_of(tree: &Tree, node: &Node, entry: usize) -> Result<Attributes, ErofsError> {
    let metadata = &node.metadata;
    let path = || tree.path(node);
    let attributes = xattr::read(&path()).map_err(|source| TreeError::Read { path: path(), source })?;
    let attributes = attributes::encode(&attributes)
        .ok_or_else(|| ErofsError::TooLarge { path: path(), what: "its extended attributes" })?;
    let size = if metadata.is_file() || metadata.is_symlink() { metadata.size() } else { 0 };
    Ok(Attributes {
        entry,
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or_default()),
        device: node.device_numbers(),
        attributes,
        contents: Contents::Later(size),
    })
}

/// The tree's files.
pub(super) struct Files<'a> {
    pub(super) tree: &'a Tree,
    pub(super) listing: &'a Listing,
}

impl Source for Files<'_> {
    fn contents(&mut self, index: usize, image: &File, at: u64, tail: usize) -> Result<Vec<u8>, ErofsError> {
        let node = &self.tree.nodes[self.listing.inodes[index].entry];
        if node.metadata.is_file() {
            return file_contents(self.tree, node, image, at, tail);
        }
        let target = self.tree.link_target(node)?;
        let (blocks, tail) = target.as_bytes().split_at(target.len() - tail);
        image.write_all_at(blocks, at).map_err(ErofsError::Write)?;
        Ok(tail.to_vec())
    }
}

fn file_contents(tree: &Tree, node: &Node, image: &File, to: u64, tail: usize) -> Result<Vec<u8>, ErofsError> {
    let size = node.metadata.size();
    let read = |source| TreeError::Read { path: tree.path(node), source };
    let mut file = tree.open(node)?;
    let whole = size - tail as u64;
    let mut at = 0;
    while at < whole {
        // Holes need not be read: the image has them, too.
        let sparse = node.metadata.blocks() * 512 < size;
        let (start, end) = if sparse { next_data(&file, at, whole).map_err(read)? } else { (at, whole) };
        if start < end {
            file.seek(SeekFrom::Start(start)).map_err(read)?;
            copy(&mut file, end - start, image, to + start, read)?;
        }
        at = end;
    }
    let mut tail = vec![0; tail];
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
