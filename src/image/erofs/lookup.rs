//! Finding what an image of this writer says about a path. Only images that amphi has made itself are read so, but nothing
//! in them is believed: a damaged one gives an error, not a wrong answer outside of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, FORMAT_INLINE, INODE, SLOT};
use super::{ATTRIBUTES_HEADER, decode_attributes};
use crate::image::xattr::Attributes;

/// What an image says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Found {
    pub(in crate::image) mode: u32,
    pub(in crate::image) uid: u32,
    pub(in crate::image) gid: u32,
    pub(in crate::image) mtime: (i64, u32),
    pub(in crate::image) device: u32,
    pub(in crate::image) attributes: Attributes,
}

/// An inode as it lies in the image.
struct Inode {
    position: u64,
    bytes: [u8; INODE],
    attributes: Vec<u8>,
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the layer's file system is damaged")
}

/// What `image` says about each part of `path`, from the top down as far as it goes: for `a/b` about the top, `a` and `a/b`.
pub(in crate::image) fn walk(image: &File, path: &[&[u8]]) -> io::Result<Vec<Found>> {
    let mut superblock = [0; 128];
    image.read_exact_at(&mut superblock, 1024)?;
    let root = u16::from_le_bytes([superblock[14], superblock[15]]);
    let base = u64::from(u32::from_le_bytes([superblock[40], superblock[41], superblock[42], superblock[43]])) * BLOCK;
    let mut inode = Inode::read(image, base, root.into())?;
    let mut all = vec![inode.found()];
    for name in path {
        if u32::from(inode.u16(4)) & libc::S_IFMT != libc::S_IFDIR {
            break;
        }
        let Some(number) = inode.child(image, name)? else { break };
        inode = Inode::read(image, base, number)?;
        all.push(inode.found());
    }
    Ok(all)
}

impl Inode {
    fn read(image: &File, base: u64, number: u64) -> io::Result<Self> {
        let position = number.checked_mul(SLOT).and_then(|at| at.checked_add(base)).ok_or_else(damaged)?;
        let mut inode = Self { position, bytes: [0; INODE], attributes: Vec::new() };
        image.read_exact_at(&mut inode.bytes, position)?;
        let count = usize::from(inode.u16(2));
        if count > 0 {
            inode.attributes = vec![0; ATTRIBUTES_HEADER + 4 * (count - 1)];
            image.read_exact_at(&mut inode.attributes, position + INODE as u64)?;
        }
        Ok(inode)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn found(&self) -> Found {
        Found {
            mode: self.u16(4).into(),
            uid: self.u32(24),
            gid: self.u32(28),
            mtime: (self.u64(32).cast_signed(), self.u32(40)),
            device: self.u32(16),
            attributes: decode_attributes(&self.attributes),
        }
    }

    /// The number of the inode that `name` has in this directory.
    fn child(&self, image: &File, name: &[u8]) -> io::Result<Option<u64>> {
        let size = self.u64(8);
        for index in 0..size.div_ceil(BLOCK) {
            let length = usize::try_from((size - index * BLOCK).min(BLOCK)).map_err(|_| damaged())?;
            let mut block = vec![0; length];
            let inline = self.u16(0) == FORMAT_INLINE && (index + 1) * BLOCK > size;
            let at = match inline {
                true => self.position + INODE as u64 + self.attributes.len() as u64,
                false => (u64::from(self.u32(16)) + index) * BLOCK,
            };
            image.read_exact_at(&mut block, at)?;
            let field =
                |at: usize| block.get(at..at + 2).map(|bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
            let count = field(8).ok_or_else(damaged)? / 12;
            for entry in 0..count {
                let start = field(entry * 12 + 8).ok_or_else(damaged)?;
                let end = if entry + 1 < count { field(entry * 12 + 20).ok_or_else(damaged)? } else { length };
                let found = block.get(start..end).ok_or_else(damaged)?;
                if found.split(|&byte| byte == 0).next() == Some(name) {
                    let number = block.get(entry * 12..entry * 12 + 8).and_then(|bytes| bytes.try_into().ok());
                    return Ok(Some(u64::from_le_bytes(number.ok_or_else(damaged)?)));
                }
            }
        }
        Ok(None)
    }
}
