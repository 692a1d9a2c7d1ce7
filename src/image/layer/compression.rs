//! How layers are compressed: told by their first bytes, not by what a manifest says.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// The largest window of a zstd stream, as a power of two in bytes (128 MiB): what `zstd` itself takes without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A layer's archive, as it comes out of whatever compresses it.
pub(super) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(compressed: R) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(256 << 10, compressed);
        let start = reader.fill_buf()?;
        if start.starts_with(&GZIP) {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(reader))));
        }
        if start.starts_with(&ZSTD) {
            let mut decoder = zstd::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            return Ok(Self::Zstd(decoder));
        }
        Ok(Self::Plain(reader))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_compression_is_recognised() {
        let text = b"what a layer holds".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        for bytes in [&text, &gzip, &zstd] {
            assert!(decode(bytes).unwrap() == text);
        }
        // Members one after the other are one stream.
        assert!(decode(&[&gzip[..], &gzip].concat()).unwrap() == text.repeat(2));
        for bytes in [&gzip, &zstd] {
            assert!(decode(&bytes[..bytes.len() / 2]).is_err(), "what is cut off is an error");
        }
    }
}
