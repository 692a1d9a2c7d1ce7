//! The compressed payload of a bzImage.
//!
//! The kernel's build appends the uncompressed length as four bytes to every payload but gzip's, which has it
//! anyway (scripts/Makefile.lib, `size_append`). That length bounds what is written; a cap bounds the length.

use std::fmt;
use std::io::{self, Read, Write};

use liblzma::stream::Stream;
use serde::Serialize;

/// Larger than any kernel, in bytes: a distribution's uncompressed one has about 60 MiB.
pub(super) const KERNEL_MAX: u64 = 512 << 20;
/// Memory that an LZMA or xz decoder may take, in bytes. The kernel's build uses dictionaries up to 128 MiB.
const DECODER_MEMORY_MAX: u64 = 256 << 20;
/// `zstd -22 --ultra`, as the kernel's build calls it, makes windows of 2^27 bytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Every block of an LZ4 legacy frame but the last holds this much, in bytes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA in its old container ("alone").
    Lzma,
    /// xz, with the x86 filter.
    Xz,
    /// LZO in the lzop container. amphi cannot unpack it.
    Lzo,
    /// LZ4 in its legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Compression {
    /// Its name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The compression that data starting with `magic` has.
    pub(super) fn recognise(magic: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x7fELF", Compression::None),
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
            (&LZ4_LEGACY_MAGIC, Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        MAGICS.iter().find(|(magic_of, _)| magic.starts_with(magic_of)).map(|(_, c)| *c)
    }
}

/// Writes the uncompressed form of `payload` to `out` and returns its length in bytes.
///
/// # Errors
/// The data is damaged, ends early, is longer than it says, or asks for more memory than a kernel needs.
pub(super) fn extract(compression: Compression, payload: &[u8], out: &mut dyn Write) -> io::Result<u64> {
    if compression == Compression::None {
        out.write_all(payload)?;
        return Ok(payload.len() as u64);
    }
    let (body, size) = payload.split_last_chunk::<4>().ok_or_else(|| damaged("it is shorter than four bytes"))?;
    let expected = u64::from(u32::from_le_bytes(*size));
    if expected > KERNEL_MAX {
        return Err(damaged("it claims to be larger than any kernel"));
    }
    let written = match compression {
        // gzip's own trailer ends with the length, so it stays part of the stream.
        Compression::Gzip => copy_bounded(flate2::read::GzDecoder::new(payload), out, expected)?,
        Compression::Lz4 => lz4_legacy(body, out, expected)?,
        _ => copy_bounded(decoder(compression, body)?, out, expected)?,
    };
    if written != expected {
        return Err(damaged("it is shorter than it says"));
    }
    Ok(written)
}

/// A reader of the uncompressed form of `data`, for the compressions that have streaming decoders.
pub(super) fn decoder<'a>(compression: Compression, data: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(data),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(data)),
        Compression::Bzip2 => Box::new(bzip2::read::BzDecoder::new(data)),
        Compression::Lzma => {
            let stream = Stream::new_lzma_decoder(DECODER_MEMORY_MAX)?;
            Box::new(liblzma::read::XzDecoder::new_stream(io::BufReader::new(data), stream))
        }
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(DECODER_MEMORY_MAX, 0)?;
            Box::new(liblzma::read::XzDecoder::new_stream(io::BufReader::new(data), stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(data)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Lz4 => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "LZ4 is understood only inside a bzImage"));
        }
        Compression::Lzo => {
            let reason = "LZO is not supported: use a kernel compressed in another way, or its uncompressed vmlinux";
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
    })
}

/// Copies at most `limit` bytes; more is an error.
pub(super) fn copy_bounded(source: impl Read, out: &mut dyn Write, limit: u64) -> io::Result<u64> {
    let mut bounded = source.take(limit.saturating_add(1));
    let written = io::copy(&mut bounded, out)?;
    if written > limit { Err(damaged("it is longer than it says")) } else { Ok(written) }
}

/// LZ4's legacy frame: the magic number, then blocks that each have their length in front.
fn lz4_legacy(mut data: &[u8], out: &mut dyn Write, limit: u64) -> io::Result<u64> {
    let block_len = usize::try_from(limit).unwrap_or(usize::MAX).min(LZ4_LEGACY_BLOCK);
    let mut block = vec![0; block_len];
    let mut written = 0_u64;
    while let Some((head, rest)) = data.split_first_chunk::<4>() {
        data = rest;
        if *head == LZ4_LEGACY_MAGIC {
            continue;
        }
        let len = u32::from_le_bytes(*head) as usize;
        let (compressed, rest) = data.split_at_checked(len).ok_or_else(|| damaged("an LZ4 block is cut short"))?;
        data = rest;
        let n = lz4_flex::block::decompress_into(compressed, &mut block).map_err(io::Error::other)?;
        written += n as u64;
        if written > limit {
            return Err(damaged("it is longer than it says"));
        }
        out.write_all(block.get(..n).ok_or_else(|| damaged("an LZ4 block is too long"))?)?;
    }
    Ok(written)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
