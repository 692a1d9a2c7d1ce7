//! Reading tar archives as layers are: POSIX.1-1988, GNU and pax headers, from a stream, with bounded memory.
//!
//! Formats: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Tar Internals".

use std::io::{self, Read};

use super::LayerError;
use super::pax::Records;
use crate::image::xattr::Attributes;

const BLOCK: usize = 512;
/// The longest pax header or long name, in bytes.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// The most stretches of data of a sparse file.
const STRETCHES: usize = 1 << 16;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// An entry of an archive, without its data.
#[derive(Debug)]
pub(super) struct Header {
    /// As the archive has it.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permissions, without the type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970, and nanoseconds beyond.
    pub(super) mtime: (i64, u32),
    pub(super) device: (u32, u32),
    /// Where a link leads.
    pub(super) link: Vec<u8>,
    pub(super) attributes: Attributes,
    /// The file's length, with its holes.
    pub(super) size: u64,
    /// Where its data is, if not everywhere: offset and length.
    stretches: Option<Vec<(u64, u64)>>,
}

/// An archive that is read once, from its beginning to its end.
pub(super) struct Archive<R> {
    reader: R,
    /// Of the current entry's data in the archive.
    left: u64,
    /// Behind it.
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// What is behind the archive.
    pub(super) fn into_inner(self) -> R {
        self.reader
    }

    /// The next entry; what is left of the last one's data is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Header>, LayerError> {
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_data()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or(LayerError::Malformed("an entry's size is no number"))?;
            self.set_data(size)?;
            match block[156] {
                b'x' => records.read(&self.extension()?)?,
                // Defaults for all that follows: nothing that an image needs.
                b'g' => drop(self.extension()?),
                b'L' => long_path = Some(self.extension()?),
                b'K' => long_link = Some(self.extension()?),
                kind => {
                    if let Some(header) = self.entry(kind, &block, size, records, long_path, long_link)? {
                        return Ok(Some(header));
                    }
                    (records, long_path, long_link) = (Records::default(), None, None);
                }
            }
        }
    }

    /// The entry whose header is `block`; `None` where it is of a kind that means nothing here.
    fn entry(
        &mut self,
        kind: u8,
        block: &[u8; BLOCK],
        size: u64,
        records: Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Option<Header>, LayerError> {
        let path = long_path.map_or_else(|| path(block), until_nul);
        let link = long_link.map_or_else(|| until_nul(block[157..257].to_vec()), until_nul);
        let path = records.path.unwrap_or(path);
        let is_sparse = kind == b'S' || records.sparse.is_some();
        let kind = match kind {
            // Before POSIX a directory was told by the end of its name.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Ok(None),
        };
        let stored = records.size.unwrap_or(size);
        // Links and directories have no data, whatever their size says.
        let has_data = !matches!(kind, Kind::HardLink | Kind::Symlink | Kind::Directory);
        self.set_data(if has_data { stored } else { 0 })?;
        let field = |range: std::ops::Range<usize>| {
            number(&block[range]).ok_or(LayerError::Malformed("a field of an entry is no number"))
        };
        let id = |value: i64| u32::try_from(value).map_err(|_| LayerError::Malformed("an owner is out of range"));
        let device = |value: i64| u32::try_from(value).map_err(|_| LayerError::Malformed("a device is out of range"));
        let has_devices = matches!(kind, Kind::Character | Kind::Block);
        let devices = if has_devices { (device(field(329..337)?)?, device(field(337..345)?)?) } else { (0, 0) };
        let mut header = Header {
            path,
            kind,
            // Of more than 12 bits the rest is the type, which the kind says already.
            mode: u32::try_from(field(100..108)? & 0o7777).unwrap_or_default(),
            uid: records.uid.map_or_else(|| field(108..116).and_then(id), Ok)?,
            gid: records.gid.map_or_else(|| field(116..124).and_then(id), Ok)?,
            mtime: records.mtime.map_or_else(|| field(136..148).map(|seconds| (seconds, 0)), Ok)?,
            device: devices,
            link: records.link.unwrap_or(link),
            attributes: records.attributes,
            size: if kind == Kind::File { stored } else { 0 },
            stretches: None,
        };
        if is_sparse && kind == Kind::File {
            let (path, size, stretches) = match records.sparse {
                Some(sparse) if sparse.in_data => (sparse.path, sparse.size, self.map_in_data()?),
                Some(sparse) => (sparse.path, sparse.size, sparse.stretches),
                None => {
                    let (size, stretches) = self.old_map(block)?;
                    (None, Some(size), stretches)
                }
            };
            header.path = path.unwrap_or(header.path);
            header.size = size.unwrap_or(header.size);
            check(&stretches, header.size, self.left)?;
            header.stretches = Some(stretches);
        }
        Ok(Some(header))
    }

    /// Gives the data of the current entry, a file, to `sink`, with each piece's offset in the file.
    pub(super) fn data(
        &mut self,
        header: &Header,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let whole = [(0, header.size)];
        let mut buffer = vec![0; 128 << 10];
        for &(offset, length) in header.stretches.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < length {
                let wanted = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
                self.reader.read_exact(&mut buffer[..wanted]).map_err(LayerError::Read)?;
                self.left -= wanted as u64;
                sink(offset + done, &buffer[..wanted])?;
                done += wanted as u64;
            }
        }
        Ok(())
    }

    /// The next block that is not all zeros; `None` at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                // Some writers leave the two blocks of zeros out.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(LayerError::Malformed("it ends within a header")),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum: i64 = block.iter().map(|&byte| i64::from(byte)).sum();
        let field: i64 = block[148..156].iter().map(|&byte| i64::from(byte)).sum();
        if number(&block[148..156]) != Some(sum - field + 8 * i64::from(b' ')) {
            return Err(LayerError::Malformed("a header's checksum is wrong: it is no tar archive"));
        }
        Ok(Some(block))
    }

    fn set_data(&mut self, size: u64) -> Result<(), LayerError> {
        let end = size.checked_next_multiple_of(BLOCK as u64);
        self.padding = end.ok_or(LayerError::Malformed("an entry is too large"))? - size;
        self.left = size;
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        let left = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.reader).take(left), &mut io::sink()).map_err(LayerError::Read)?;
        if skipped == left { Ok(()) } else { Err(LayerError::Malformed("it ends within a file")) }
    }

    /// The data of the current entry, which is part of the next one's header.
    fn extension(&mut self) -> Result<Vec<u8>, LayerError> {
        if self.left > EXTENSION_LIMIT {
            return Err(LayerError::Malformed("an extended header is longer than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or_default()];
        self.reader.read_exact(&mut bytes).map_err(LayerError::Read)?;
        self.left = 0;
        Ok(bytes)
    }

    /// The size and the stretches of a sparse file in the old GNU format, whose map goes on in blocks of its own.
    fn old_map(&mut self, block: &[u8; BLOCK]) -> Result<(u64, Vec<(u64, u64)>), LayerError> {
        let wrong = || LayerError::Malformed("a sparse file's map makes no sense");
        let positive = |bytes: &[u8]| number(bytes).and_then(|n| u64::try_from(n).ok()).ok_or_else(wrong);
        let mut stretches = Vec::new();
        let mut add = |map: &[u8]| -> Result<(), LayerError> {
            for entry in map.chunks_exact(24).filter(|entry| entry[0] != 0) {
                stretches.push((positive(&entry[..12])?, positive(&entry[12..])?));
            }
            if stretches.len() > STRETCHES { Err(wrong()) } else { Ok(()) }
        };
        add(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let mut next = [0; BLOCK];
            self.reader.read_exact(&mut next).map_err(LayerError::Read)?;
            add(&next[..504])?;
            more = next[504] != 0;
        }
        Ok((positive(&block[483..495])?, stretches))
    }

    /// The map that begins the data of a sparse file in pax format 1.0: decimal numbers, one a line, in whole blocks.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, LayerError> {
        let wrong = || LayerError::Malformed("a sparse file's map makes no sense");
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut line = |archive: &mut Self| -> Result<u64, LayerError> {
            let mut value: Option<u64> = None;
            loop {
                if at == BLOCK {
                    archive.left = archive.left.checked_sub(BLOCK as u64).ok_or_else(wrong)?;
                    archive.reader.read_exact(&mut block).map_err(LayerError::Read)?;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return value.ok_or_else(wrong),
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        value = Some(
                            value.unwrap_or(0).checked_mul(10).and_then(|v| v.checked_add(digit)).ok_or_else(wrong)?,
                        );
                    }
                    _ => return Err(wrong()),
                }
            }
        };
        let count = line(self)?;
        if count > STRETCHES as u64 {
            return Err(wrong());
        }
        (0..count).map(|_| Ok((line(self)?, line(self)?))).collect()
    }
}

/// Refuses a sparse file's map that leaves the file, goes backwards, or has not as much data as there is.
fn check(stretches: &[(u64, u64)], size: u64, stored: u64) -> Result<(), LayerError> {
    let (mut end, mut total) = (0, 0_u64);
    for &(offset, length) in stretches {
        let after = offset.checked_add(length).filter(|&after| offset >= end && after <= size);
        end = after.ok_or(LayerError::Malformed("a sparse file's map makes no sense"))?;
        total += length;
    }
    if total <= stored { Ok(()) } else { Err(LayerError::Malformed("a sparse file's map makes no sense")) }
}

/// A number in octal digits, or in binary where the first bit says so.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Seven bits of the first byte count, the highest of them for the sign.
        let first = i64::from((field[0] << 1).cast_signed() >> 1);
        return field[1..].iter().try_fold(first, |value, &byte| value.checked_mul(256)?.checked_add(i64::from(byte)));
    }
    let text = field.split(|&byte| byte == 0).next()?.trim_ascii();
    text.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// The path in a header: its prefix, where the format has one, and its name.
fn path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(block[..100].to_vec());
    // GNU's format has other things in the prefix's place.
    if &block[257..263] != b"ustar\0" || block[345] == 0 {
        return name;
    }
    let mut path = until_nul(block[345..500].to_vec());
    path.push(b'/');
    path.extend_from_slice(&name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"9\0\0\0\0\0\0\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn maps_of_sparse_files_are_checked() {
        assert!(check(&[(0, 5), (10, 5)], 15, 10).is_ok());
        for (map, size, stored) in [
            (vec![(10, 5), (0, 5)], 15, 10),
            (vec![(0, 16)], 15, 16),
            (vec![(0, 5)], 5, 4),
            (vec![(u64::MAX, 2)], 5, 9),
        ] {
            assert!(check(&map, size, stored).is_err(), "{map:?}");
        }
    }
}
