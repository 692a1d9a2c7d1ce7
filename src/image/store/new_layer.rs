//! A layer that is made here: compressed, hashed and put into the store while it is written.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::super::Digest;
use super::super::manifest::Descriptor;
use super::{Store, StoreError};

const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The operating system in gzip's header (RFC 1952, 2.3.1): unknown, so that it is the same wherever it is made.
const UNKNOWN_SYSTEM: u8 = 255;

/// A layer that is in the store, and of no image yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLayer {
    /// The compressed archive.
    pub descriptor: Descriptor,
    /// The digest of the archive, uncompressed.
    pub diff_id: Digest,
}

/// Hashes and counts what goes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where the archive of a new layer is written to.
pub struct LayerSink {
    inner: Hashing<GzEncoder<Hashing<BufWriter<File>>>>,
}

impl Write for LayerSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Store {
    /// Makes a layer of the tar archive that `write` writes, uncompressed. The same archive gives the same layer. To be called
    /// while the store is held, and the store to be held until something leads to the layer ([`Draft::save`]): nothing does yet.
    /// Where `write` fails, or the process is killed, nothing of it stays.
    ///
    /// [`Draft::save`]: crate::image::Draft::save
    ///
    /// # Errors
    /// `write` fails, or the layer cannot be kept.
    pub fn add_layer<E: From<StoreError>>(
        &self,
        write: impl FnOnce(&mut LayerSink) -> Result<(), E>,
    ) -> Result<NewLayer, E> {
        let folder = self.root.join("incoming");
        let failed = |source| StoreError::of("write a layer in", &folder)(source);
        let mut new = tempfile::Builder::new();
        let new = new.prefix("layer-").permissions(fs::Permissions::from_mode(0o644));
        let new = new.tempfile_in(&folder).map_err(failed)?;
        new.as_file().lock().map_err(failed)?;
        let file = new.as_file().try_clone().map_err(failed)?;
        let compressed = Hashing::new(BufWriter::with_capacity(256 << 10, file));
        let gzip = GzBuilder::new().operating_system(UNKNOWN_SYSTEM).write(compressed, Compression::default());
        let mut sink = LayerSink { inner: Hashing::new(gzip) };
        write(&mut sink)?;
        let (diff_id, gzip) = (Digest::from_hash(sink.inner.hash), sink.inner.inner);
        let mut compressed = gzip.finish().map_err(failed)?;
        compressed.flush().map_err(failed)?;
        let descriptor = Descriptor::new(MEDIA_TYPE, Digest::from_hash(compressed.hash), compressed.length);
        if !self.has(&descriptor) {
            let destination = self.blob_path(descriptor.digest);
            let place = || -> io::Result<()> {
                new.as_file().sync_all()?;
                new.persist(&destination)?;
                File::open(destination.parent().unwrap_or(&self.root))?.sync_all()
            };
            place().map_err(StoreError::of("write", &destination))?;
        }
        Ok(NewLayer { descriptor, diff_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_archive_gives_the_same_layer() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let make = || {
            store.add_layer(|sink| -> Result<(), StoreError> {
                sink.write_all(&[7; 100_000]).unwrap();
                Ok(())
            })
        };
        let layer = make().unwrap();
        assert_eq!(layer, make().unwrap());
        assert_eq!(layer.diff_id, Digest::of(&[7; 100_000]));
        let bytes = fs::read(store.blob_path(layer.descriptor.digest)).unwrap();
        assert_eq!(Digest::of(&bytes), layer.descriptor.digest);
        assert_eq!(bytes[4..10], [0, 0, 0, 0, 0, 255], "no time and no system");
        let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
        assert_eq!(io::copy(&mut decoder, &mut io::sink()).unwrap(), 100_000);
    }

    #[test]
    fn of_a_layer_that_fails_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let failed = store.add_layer(|sink| {
            sink.write_all(b"half").unwrap();
            Err(StoreError::of("read", folder.path())(io::ErrorKind::Other.into()))
        });
        assert!(failed.is_err());
        for place in ["incoming", "blobs/sha256"] {
            assert_eq!(fs::read_dir(folder.path().join(place)).unwrap().count(), 0, "{place}");
        }
    }
}
