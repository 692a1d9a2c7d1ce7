//! The images of this user or host: an OCI image layout, and what is made from its layers.
//!
//! Below the store's folder:
//! - `oci-layout`, `index.json`, `blobs/sha256/HEX`: an OCI image layout. Images are entries of the index, named by the
//!   annotation `org.opencontainers.image.ref.name`.
//! - `layers/HEX.erofs`: a layer as a file system, named by the digest of its uncompressed archive; `layers/HEX.chain.erofs`:
//!   the lowest layers of an image as one, named by their chain ID. `layers/HEX.implied` marks a layer that has directories which
//!   only layers below describe; over those it is `layers/HEX.over.erofs`, named by the chain ID.
//! - `builds/HEX`: what a step of a build has made, named by what it was made from.
//! - `incoming/`: what is not complete. Each file is locked by the process that writes it.
//! - `trees/HEX`: images unpacked to folders, for kernels that cannot mount EROFS.
//! - `lock`: held shared by who adds what the index does not name yet or opens what it names, alone by who removes.
//!   `index.lock`: held while the index is changed.
//!
//! Every file gets its name by a rename, when it is complete and on disk; after a crash each is there whole, or not.

mod builds;
mod collect;
mod image;
mod incoming;
mod index;
mod instances;
mod layers;
mod new_layer;
mod trees;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use builds::Built;
pub use collect::{Garbage, Kind as GarbageKind};
pub use image::StoredImage;
pub use incoming::Incoming;
pub use instances::User;
pub use layers::{LayerFile, LayerStack, MAX_STACK};
pub use new_layer::{LayerSink, NewLayer};

use super::manifest::{DOCUMENT_LIMIT, Descriptor, DocumentError};
use super::{Digest, LayerError};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A store of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
    /// Where the instances are that keep images.
    instances: Option<PathBuf>,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of it cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Use {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A blob is not what its name says.
    #[error("{digest} has {problem}")]
    WrongBlob {
        /// The blob.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
    /// The index is no index.
    #[error("{path} is damaged", path = path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A document cannot be used.
    #[error("cannot use the image {digest}")]
    Document {
        /// The image's manifest.
        digest: Digest,
        /// What is wrong.
        source: DocumentError,
    },
    /// A layer cannot be made into a file system.
    #[error("cannot make a file system of the layer {digest}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// What is wrong.
        source: LayerError,
    },
}

impl StoreError {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Use { action, path: path.to_owned(), source }
    }
}

/// While it is held, nothing is removed from the store.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "its lock is what counts")] File);

impl Store {
    /// The store in amphi's data directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open_default() -> Result<Self, StoreError> {
        let data = crate::host::data_dir();
        Ok(Self { instances: Some(data.join("instances")), ..Self::open(&data.join("images"))? })
    }

    /// The store in the folder `root`, which is made if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned(), instances: None };
        if !store.root.join("oci-layout").exists() {
            for folder in ["blobs/sha256", "layers", "incoming", "trees"] {
                let path = root.join(folder);
                fs::create_dir_all(&path).map_err(StoreError::of("make", &path))?;
            }
            store.replace("oci-layout", LAYOUT.as_bytes())?;
        }
        Ok(store)
    }

    /// Keeps everything where it is until the result is dropped. Waits for who removes something just now.
    ///
    /// # Errors
    /// The lock cannot be used.
    pub fn hold(&self) -> Result<Hold, StoreError> {
        let file = self.lock_file("lock")?;
        file.lock_shared().map_err(StoreError::of("lock", &self.root.join("lock")))?;
        Ok(Hold(file))
    }

    fn lock_file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.root.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.map_err(StoreError::of("open", &path))
    }

    /// Where a blob is, or would be.
    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether the blob is there, with that length.
    #[must_use]
    pub fn has(&self, blob: &Descriptor) -> bool {
        self.blob_path(blob.digest).metadata().is_ok_and(|metadata| metadata.len() == blob.size)
    }

    /// Opens a blob. Its length is checked; what is in it was when it came.
    ///
    /// # Errors
    /// It is missing, or has another length.
    pub fn open_blob(&self, blob: &Descriptor) -> Result<File, StoreError> {
        let path = self.blob_path(blob.digest);
        let file = File::open(&path).map_err(StoreError::of("open", &path))?;
        let length = file.metadata().map_err(StoreError::of("read", &path))?.len();
        if length != blob.size {
            let problem = format!("{length} bytes, and {} were announced", blob.size);
            return Err(StoreError::WrongBlob { digest: blob.digest, problem });
        }
        Ok(file)
    }

    /// Reads a document, and checks it against its digest.
    ///
    /// # Errors
    /// It is missing, longer than documents may be, or damaged.
    pub fn read_document(&self, blob: &Descriptor) -> Result<Vec<u8>, StoreError> {
        let file = self.open_blob(blob)?;
        let mut bytes = Vec::new();
        let read = file.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(StoreError::of("read", &self.blob_path(blob.digest)))?;
        if bytes.len() as u64 > DOCUMENT_LIMIT || Digest::of(&bytes) != blob.digest {
            return Err(StoreError::WrongBlob {
                digest: blob.digest,
                problem: "other contents than its digest says".into(),
            });
        }
        Ok(bytes)
    }

    /// Keeps a document, and returns its digest. To be called while the store is held.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let length = bytes.len() as u64;
        if let Some(mut incoming) = self.incoming_blob(&Descriptor::new("", digest, length))? {
            incoming.restart()?;
            incoming.write(bytes)?;
            incoming.finish()?;
        }
        Ok(digest)
    }

    /// Replaces a file of the store's folder by one with these contents.
    fn replace(&self, name: &str, contents: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let write = || -> io::Result<()> {
            let mut new = tempfile::Builder::new().prefix("new-").tempfile_in(self.root.join("incoming"))?;
            io::Write::write_all(&mut new, contents)?;
            new.as_file().sync_all()?;
            new.persist(&path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(StoreError::of("write", &path))
    }
}

#[cfg(test)]
mod tests;
