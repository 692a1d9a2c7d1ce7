//! Layers into one EROFS file, in one pass over their archives: contents go to the file as they come, names and
//! attributes after them.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::archive::{Archive, Header};
use super::compression::Decoder;
use super::tree::{Origin, Tree, is_opaque};
use super::{LayerError, MAX_RATIO, RATIO_GRACE};
use crate::image::digest::Digest;
use crate::image::erofs::{self, BLOCK, Contents, ErofsError, Found, INODE, Listing, Source};

/// Up to this length the end of a file lies behind its inode; a longer one takes a block.
const INLINE_TAIL: u64 = BLOCK / 2;
/// How many bytes are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A layer to convert.
pub(in crate::image) struct Layer {
    /// The compressed archive.
    pub(in crate::image) file: File,
    /// Its length, from which the most that it may unpack to follows.
    pub(in crate::image) size: u64,
    /// What the archive must be, uncompressed; `None` where nobody has said.
    pub(in crate::image) diff_id: Option<Digest>,
}

/// What [`convert`] makes.
#[derive(Debug, Clone, Copy)]
pub(in crate::image) enum Conversion<'a> {
    /// One layer, to lie over others.
    Single,
    /// One layer, to lie over just these file systems, the lowest first. Directories that it does not describe are like theirs.
    Over(&'a [File]),
    /// The lowest layers of an image, with nothing below them.
    Flattened,
}

/// What [`convert`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Converted {
    /// Whether there are directories that only the layers below describe. They would be hidden by what is made up for them.
    pub(in crate::image) implied_directories: bool,
}

/// Makes `image`, an empty file, a file system of `layers`, the lowest first.
///
/// # Errors
/// A layer is malformed, too large, or not what its image says; or `image` cannot be written.
pub(in crate::image) fn convert(
    layers: Vec<Layer>,
    conversion: Conversion<'_>,
    image: &File,
) -> Result<Converted, LayerError> {
    let gathered = gather(layers, conversion, image)?;
    let Gathered { listing, origins, tails, base, converted } = gathered;
    erofs::finish(&listing, &mut Kept { origins, tails }, image, base)?;
    Ok(converted)
}

/// What layers hold, with their files' contents in `image`.
pub(super) struct Gathered {
    pub(super) listing: Listing,
    pub(super) origins: Vec<Origin>,
    pub(super) tails: File,
    base: u32,
    converted: Converted,
}

/// Reads `layers` to their ends, and puts the contents of files where `image` has them.
pub(super) fn gather(layers: Vec<Layer>, conversion: Conversion<'_>, image: &File) -> Result<Gathered, LayerError> {
    let mut tree = Tree::new();
    let mut writer = Writer::new(image)?;
    for (index, layer) in layers.into_iter().enumerate() {
        if index > 0 {
            tree.next_layer();
        }
        add(layer, &mut tree, &mut writer)?;
    }
    let implied = tree.implied();
    let converted = Converted { implied_directories: !implied.is_empty() };
    if let Conversion::Over(below) = conversion {
        for (file, path) in implied {
            if let Some(found) = look_below(below, &path).map_err(LayerError::Read)? {
                tree.describe(file, found);
            }
        }
    }
    let (listing, origins) = tree.list(!matches!(conversion, Conversion::Flattened))?;
    let (base, tails) = writer.finish()?;
    Ok(Gathered { listing, origins, tails, base, converted })
}

/// What the file systems, the lowest first, show as the directory `path` when they lie over each other.
fn look_below(below: &[File], path: &[Box<[u8]>]) -> io::Result<Option<Found>> {
    let path: Vec<&[u8]> = path.iter().map(|name| &**name).collect();
    for image in below.iter().rev() {
        let mut all = erofs::walk(image, &path)?;
        let is_directory = |found: &Found| found.mode & libc::S_IFMT == libc::S_IFDIR;
        if all.len() > path.len() {
            return Ok(all.pop().filter(is_directory));
        }
        // Something on the way hides what lies further below.
        if all.iter().any(|found| !is_directory(found) || is_opaque(found)) {
            return Ok(None);
        }
    }
    Ok(None)
}

fn add(layer: Layer, tree: &mut Tree, writer: &mut Writer<'_>) -> Result<(), LayerError> {
    let limit = layer.size.saturating_mul(MAX_RATIO).saturating_add(RATIO_GRACE);
    let decoder = Decoder::new(layer.file).map_err(LayerError::Read)?;
    let mut archive = Archive::new(Hashing { inner: decoder, hash: Sha256::new(), left: limit });
    let mut size = 0_u64;
    while let Some(header) = archive.next()? {
        size = size.saturating_add(header.size);
        if size > limit {
            return Err(TOO_LARGE);
        }
        if let Some(file) = tree.add(&header)? {
            let (contents, tail_at) = writer.file(&mut archive, &header, tree.attributes_len(file))?;
            tree.set_contents(file, contents, tail_at);
        }
    }
    // What follows the archive's end belongs to the layer's digest.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(read_error)?;
    let found = Digest::from_hash(rest.hash);
    match layer.diff_id {
        Some(expected) if expected != found => {
            Err(LayerError::WrongContents { found: found.to_string(), expected: expected.to_string() })
        }
        _ => Ok(()),
    }
}

const TOO_LARGE: LayerError =
    LayerError::TooLarge("unpacks to more than 250 times its size and 1 GiB: amphi takes it for a decompression bomb");

fn read_error(error: io::Error) -> LayerError {
    if error.kind() == io::ErrorKind::FileTooLarge { TOO_LARGE } else { LayerError::Read(error) }
}

/// A reader that notes the digest of what is read, and ends with an error where that is too much.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(got as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}

/// The part of an image that is written while the archive is read.
struct Writer<'a> {
    image: &'a File,
    /// Whole blocks not yet written, which begin at block `start`.
    buffer: Vec<u8>,
    start: u64,
    /// The ends of files, to be put behind their inodes.
    tails: BufWriter<File>,
    tails_len: u64,
}

impl<'a> Writer<'a> {
    fn new(image: &'a File) -> Result<Self, LayerError> {
        let tails = tempfile::tempfile().map_err(LayerError::Write)?;
        Ok(Self { image, buffer: Vec::new(), start: 1, tails: BufWriter::new(tails), tails_len: 0 })
    }

    /// The block that comes next.
    fn next_block(&self) -> u64 {
        self.start + self.buffer.len() as u64 / BLOCK
    }

    /// Writes the contents of a file whose attributes take `attributes` bytes.
    fn file<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        header: &Header,
        attributes: usize,
    ) -> Result<(Contents, u64), LayerError> {
        let size = header.size;
        let rest = size % BLOCK;
        let inline = rest > 0 && rest <= INLINE_TAIL && (INODE + attributes) as u64 + INLINE_TAIL <= BLOCK;
        let whole = if inline { size - rest } else { size };
        let block = self.next_block();
        let first = u32::try_from(block).map_err(|_| LayerError::TooLarge("has more than 2^32 blocks of 4 KiB"))?;
        let mut tail = vec![0; if inline { usize::try_from(rest).unwrap_or_default() } else { 0 }];
        archive.data(header, |offset, bytes| {
            let of_whole = usize::try_from(whole.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
            self.put(block * BLOCK + offset, &bytes[..of_whole])?;
            if of_whole < bytes.len() {
                let at = usize::try_from(offset + of_whole as u64 - whole).unwrap_or_default();
                tail[at..at + bytes.len() - of_whole].copy_from_slice(&bytes[of_whole..]);
            }
            Ok(())
        })?;
        self.go_to(block + whole.div_ceil(BLOCK))?;
        let tail_at = self.tails_len;
        self.tails.write_all(&tail).map_err(LayerError::Write)?;
        self.tails_len += tail.len() as u64;
        Ok((Contents::Placed { size, block: first, tail: tail.len() }, tail_at))
    }

    /// Puts bytes where they belong, which is not before what is there already. What is left out, and whole blocks of
    /// zeros, stay holes of the image.
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), LayerError> {
        let end = self.start * BLOCK + self.buffer.len() as u64;
        if at > end {
            let gap = at - end;
            if gap < BLOCK {
                self.buffer.resize(self.buffer.len() + usize::try_from(gap).unwrap_or_default(), 0);
            } else {
                self.flush()?;
                self.start = at / BLOCK;
                self.buffer.resize(usize::try_from(at % BLOCK).unwrap_or_default(), 0);
            }
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            // The last block may go on.
            let keep = self.buffer.len() % usize::try_from(BLOCK).unwrap_or_default();
            let rest = self.buffer.split_off(self.buffer.len() - keep);
            self.flush()?;
            self.buffer = rest;
        }
        Ok(())
    }

    /// Fills up to where `block` begins.
    fn go_to(&mut self, block: u64) -> Result<(), LayerError> {
        self.put(block * BLOCK, &[])
    }

    /// Writes what is gathered, and goes on behind it, at the next whole block.
    fn flush(&mut self) -> Result<(), LayerError> {
        let block = usize::try_from(BLOCK).unwrap_or_default();
        let mut from = 0;
        while from < self.buffer.len() {
            let rest = &self.buffer[from..];
            let is_hole = |chunk: &[u8]| chunk.iter().all(|&byte| byte == 0);
            let hole = is_hole(&rest[..block.min(rest.len())]);
            let length: usize = rest.chunks(block).take_while(|chunk| is_hole(chunk) == hole).map(<[u8]>::len).sum();
            if !hole {
                self.image
                    .write_all_at(&rest[..length], self.start * BLOCK + from as u64)
                    .map_err(LayerError::Write)?;
            }
            from += length;
        }
        self.start += (self.buffer.len() as u64).div_ceil(BLOCK);
        self.buffer.clear();
        Ok(())
    }

    /// The block behind all contents, and the tails.
    fn finish(mut self) -> Result<(u32, File), LayerError> {
        self.flush()?;
        let base = u32::try_from(self.start).map_err(|_| LayerError::TooLarge("has more than 2^32 blocks of 4 KiB"))?;
        let mut tails = self.tails.into_inner().map_err(|error| LayerError::Write(error.into_error()))?;
        tails.rewind().map_err(LayerError::Write)?;
        Ok((base, tails))
    }
}

/// What the archives have left for the time after them.
struct Kept {
    origins: Vec<Origin>,
    tails: File,
}

impl Source for Kept {
    fn contents(&mut self, index: usize, image: &File, at: u64, tail: usize) -> Result<Vec<u8>, ErofsError> {
        match &self.origins[index] {
            Origin::Tail(position) => {
                let mut bytes = vec![0; tail];
                self.tails.read_exact_at(&mut bytes, *position).map_err(ErofsError::Write)?;
                Ok(bytes)
            }
            Origin::Target(target) => {
                let (blocks, tail) = target.split_at(target.len() - tail);
                image.write_all_at(blocks, at).map_err(ErofsError::Write)?;
                Ok(tail.to_vec())
            }
        }
    }
}

#[cfg(test)]
mod tests;
