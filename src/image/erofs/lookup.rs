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
#[derive(Debug, Clone)]
pub(in crate::image) struct Inode {
    /// Where inodes are numbered from.
    base: u64,
    position: u64,
    bytes: [u8; INODE],
    attributes: Vec<u8>,
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the layer's file system is damaged")
}

/// What `image` says about each part of `path`, from the top down as far as it goes: for `a/b` about the top, `a` and `a/b`.
pub(in crate::image) fn walk(image: &File, path: &[&[u8]]) -> io::Result<Vec<Found>> {
    let mut inode = Inode::top(image)?;
    let mut all = vec![inode.found()];
    for name in path {
        if !inode.is_directory() {
            break;
        }
        let Some(child) = inode.child(image, name)? else { break };
        inode = child;
        all.push(inode.found());
    }
    Ok(all)
}

impl Inode {
    /// The directory at the top of an image.
    pub(in crate::image) fn top(image: &File) -> io::Result<Self> {
        let mut superblock = [0; 128];
        image.read_exact_at(&mut superblock, 1024)?;
        let root = u16::from_le_bytes([superblock[14], superblock[15]]);
        let base = u32::from_le_bytes([superblock[40], superblock[41], superblock[42], superblock[43]]);
        Self::read(image, u64::from(base) * BLOCK, root.into())
    }

    fn read(image: &File, base: u64, number: u64) -> io::Result<Self> {
        let position = number.checked_mul(SLOT).and_then(|at| at.checked_add(base)).ok_or_else(damaged)?;
        let mut inode = Self { base, position, bytes: [0; INODE], attributes: Vec::new() };
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

    pub(in crate::image) fn found(&self) -> Found {
        Found {
            mode: self.u16(4).into(),
            uid: self.u32(24),
            gid: self.u32(28),
            mtime: (self.u64(32).cast_signed(), self.u32(40)),
            device: self.u32(16),
            attributes: decode_attributes(&self.attributes),
        }
    }

    /// What tells it from others of the same image.
    pub(in crate::image) const fn position(&self) -> u64 {
        self.position
    }

    /// Type and permissions, as `st_mode`.
    pub(in crate::image) fn mode(&self) -> u32 {
        self.u16(4).into()
    }

    pub(in crate::image) fn is_directory(&self) -> bool {
        self.mode() & libc::S_IFMT == libc::S_IFDIR
    }

    /// The length of the contents in bytes.
    pub(in crate::image) fn size(&self) -> u64 {
        self.u64(8)
    }

    /// How many names it has.
    pub(in crate::image) fn links(&self) -> u32 {
        self.u32(44)
    }

    /// Reads contents from `offset` on, at most to the end of a block or of the whole ones; 0 at the end.
    pub(in crate::image) fn read_at(&self, image: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let size = self.size();
        let left = size.saturating_sub(offset);
        let inline = if self.u16(0) == FORMAT_INLINE { size % BLOCK } else { 0 };
        let whole = size - inline;
        let (at, room) = match offset < whole {
            true => ((u64::from(self.u32(16)) * BLOCK).checked_add(offset).ok_or_else(damaged)?, whole - offset),
            false => (self.position + INODE as u64 + self.attributes.len() as u64 + (offset - whole), left),
        };
        let length = usize::try_from(room.min(left)).unwrap_or(usize::MAX).min(buffer.len());
        image.read_exact_at(&mut buffer[..length], at)?;
        Ok(length)
    }

    /// The number of the inode that `name` has in this directory, and that.
    pub(in crate::image) fn child(&self, image: &File, name: &[u8]) -> io::Result<Option<Self>> {
        let mut number = None;
        self.each_name(image, |found, of| {
            if found == name {
                number = Some(of);
            }
            number.is_none()
        })?;
        number.map(|number| Self::read(image, self.base, number)).transpose()
    }

    /// The names in this directory.
    pub(in crate::image) fn names(&self, image: &File) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.each_name(image, |name, _| {
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
            true
        })?;
        Ok(names)
    }

    /// Gives each name in this directory, with its inode's number, to `take` until that says no.
    fn each_name(&self, image: &File, mut take: impl FnMut(&[u8], u64) -> bool) -> io::Result<()> {
        let size = self.size();
        for index in 0..size.div_ceil(BLOCK) {
            let length = usize::try_from((size - index * BLOCK).min(BLOCK)).map_err(|_| damaged())?;
            let mut block = vec![0; length];
            let mut filled = 0;
            while filled < length {
                let got = self.read_at(image, &mut block[filled..], index * BLOCK + filled as u64)?;
                if got == 0 {
                    return Err(damaged());
                }
                filled += got;
            }
            let field =
                |at: usize| block.get(at..at + 2).map(|bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
            let count = field(8).ok_or_else(damaged)? / 12;
            for entry in 0..count {
                let start = field(entry * 12 + 8).ok_or_else(damaged)?;
                let end = if entry + 1 < count { field(entry * 12 + 20).ok_or_else(damaged)? } else { length };
                let found = block.get(start..end).ok_or_else(damaged)?;
                let number = block.get(entry * 12..entry * 12 + 8).and_then(|bytes| bytes.try_into().ok());
                let number = u64::from_le_bytes(number.ok_or_else(damaged)?);
                if !take(found.split(|&byte| byte == 0).next().unwrap_or_default(), number) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
