//! Archives of the user's, to be put into a layer: read once, with their contents kept for later.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};

use super::archive::{Archive, Kind};
use super::compression::Decoder;
use super::{EntryKind, LayerEntry, LayerError, MAX_ENTRIES, MAX_NAMES, MAX_RATIO, RATIO_GRACE};
use crate::image::belongs_to_images;

const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = b"\xfd7zXZ\0";
/// The most memory that xz may ask for, in bytes: what `xz -9` needs, and some more.
const XZ_MEMORY: u64 = 128 << 20;
/// Where a header has what tells a tar archive since POSIX.1-1988.
const MAGIC: std::ops::Range<usize> = 257..262;

/// What an archive holds.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// The entries as the archive has them, each with where its contents are in `contents`. No path has `..` in it.
    pub(crate) entries: Vec<(LayerEntry, u64)>,
    /// A file without a name.
    pub(crate) contents: File,
}

/// Reads an archive, plain or compressed by gzip, bzip2, xz or zstd; `None` where `file`, of `size` bytes, is none.
///
/// # Errors
/// It is malformed or too large, or its contents cannot be kept.
pub(crate) fn read_archive(mut file: File, size: u64) -> Result<Option<Unpacked>, LayerError> {
    let mut begin = [0; 6];
    let got = file.read(&mut begin).map_err(LayerError::Read)?;
    file.rewind().map_err(LayerError::Read)?;
    let begin = &begin[..got];
    let reader: Box<dyn Read> = if begin.starts_with(BZIP2) {
        Box::new(bzip2::read::MultiBzDecoder::new(file))
    } else if begin.starts_with(XZ) {
        let stream =
            liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(|e| LayerError::Read(e.into()))?;
        Box::new(liblzma::read::XzDecoder::new_stream(file, stream))
    } else {
        Box::new(Decoder::new(file).map_err(LayerError::Read)?)
    };
    let limit = size.saturating_mul(MAX_RATIO).saturating_add(RATIO_GRACE);
    let mut reader = Limited { inner: reader, left: limit };
    let mut first = Vec::new();
    // What cannot be decompressed is a file like any other, as are archives of before 1988.
    if (&mut reader).take(512).read_to_end(&mut first).is_err() || first.get(MAGIC) != Some(b"ustar") {
        return Ok(None);
    }
    unpack(io::Cursor::new(first).chain(reader), limit).map(Some)
}

fn unpack(reader: impl Read, limit: u64) -> Result<Unpacked, LayerError> {
    let mut archive = Archive::new(reader);
    let mut contents = BufWriter::new(tempfile::tempfile().map_err(LayerError::Write)?);
    let (mut entries, mut at, mut names) = (Vec::new(), 0_u64, 0);
    while let Some(header) = archive.next()? {
        let wrong = |problem| LayerError::entry(&header.path, problem);
        let path = clean(&header.path).ok_or_else(|| wrong("has a path with .. in it"))?;
        let kind = match header.kind {
            Kind::File => EntryKind::File(header.size),
            Kind::HardLink => {
                EntryKind::HardLink(clean(&header.link).ok_or_else(|| wrong("is a link that leads out"))?)
            }
            Kind::Symlink => EntryKind::Symlink(header.link.clone()),
            Kind::Character => EntryKind::Character(header.device.0, header.device.1),
            Kind::Block => EntryKind::Block(header.device.0, header.device.1),
            Kind::Directory => EntryKind::Directory,
            Kind::Fifo => EntryKind::Fifo,
        };
        let mut attributes = header.attributes.clone();
        attributes.retain(|(name, _)| belongs_to_images(name));
        names += path.len() + header.link.len();
        names += attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if entries.len() >= MAX_ENTRIES || names > MAX_NAMES || at.saturating_add(header.size) > limit {
            return Err(LayerError::TooLarge("has too many entries, too many names, or is a decompression bomb"));
        }
        if header.kind == Kind::File {
            // Holes of sparse files stay holes.
            archive.data(&header, |offset, bytes| {
                contents.seek(io::SeekFrom::Start(at + offset)).map_err(LayerError::Write)?;
                contents.write_all(bytes).map_err(LayerError::Write)
            })?;
        }
        let (mode, uid, gid, mtime) = (header.mode, header.uid, header.gid, header.mtime.0);
        entries.push((LayerEntry { path, kind, mode, uid, gid, mtime, attributes }, at));
        at += header.size;
    }
    let contents = contents.into_inner().map_err(|error| LayerError::Write(error.into_error()))?;
    contents.set_len(at).map_err(LayerError::Write)?;
    Ok(Unpacked { entries, contents })
}

/// The path without what does not matter; `None` where it has `..` in it.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    (!parts.contains(&&b".."[..])).then(|| parts.join(&b'/'))
}

/// A reader that fails where it gives more than it may.
struct Limited {
    inner: Box<dyn Read>,
    left: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(got as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::LayerArchive;
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = LayerArchive::new(Vec::new());
        archive.append(&LayerEntry::directory(b"d", 3), io::empty()).unwrap();
        for (path, text) in [(&b"d/a"[..], "one"), (b"d/b", "second")] {
            let kind = EntryKind::File(text.len() as u64);
            archive.append(&LayerEntry { kind, ..LayerEntry::directory(path, 3) }, text.as_bytes()).unwrap();
        }
        archive.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Option<Unpacked>, LayerError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        read_archive(file, bytes.len() as u64)
    }

    #[test]
    fn archives_are_read_however_they_are_compressed() {
        let plain = archive();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&plain).unwrap();
        let xz = liblzma::encode_all(&plain[..], 1).unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for bytes in [plain, gzip.finish().unwrap(), bzip2.finish().unwrap(), xz, zstd] {
            let unpacked = read(&bytes).unwrap().unwrap();
            let paths: Vec<_> = unpacked.entries.iter().map(|(entry, _)| &entry.path[..]).collect();
            assert_eq!(paths, [&b"d"[..], b"d/a", b"d/b"]);
            let mut text = [0; 6];
            unpacked.contents.read_exact_at(&mut text, unpacked.entries[2].1).unwrap();
            assert_eq!(&text, b"second");
        }
    }

    #[test]
    fn what_is_no_archive_is_a_file() {
        for bytes in [&b""[..], b"text", &[0x1f, 0x8b, 1], &[0; 4096]] {
            assert!(read(bytes).unwrap().is_none());
        }
        let mut archive = LayerArchive::new(Vec::new());
        archive.append(&LayerEntry::directory(b"../x", 0), io::empty()).unwrap();
        assert!(read(&archive.finish().unwrap()).is_err());
    }
}
