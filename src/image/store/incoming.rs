//! Files on their way into the store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::super::Digest;
use super::super::manifest::Descriptor;
use super::{Store, StoreError};

/// A file that only this process writes to, until it has its place.
///
/// Where a process ends before that, the file stays, and whoever fetches the same blob next goes on with it.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
    destination: PathBuf,
    /// What it must be, where it is a blob.
    blob: Option<(Digest, u64)>,
    /// Of what is in it.
    hash: Sha256,
    length: u64,
}

impl Store {
    /// The file in which to gather a blob; `None` where the blob is there. Waits for another process that gathers it.
    ///
    /// # Errors
    /// There can be no file.
    pub fn incoming_blob(&self, blob: &Descriptor) -> Result<Option<Incoming>, StoreError> {
        let destination = self.blob_path(blob.digest);
        let is_there = || self.has(blob);
        let Some(mut incoming) = self.incoming(&blob.digest.hex(), destination, is_there)? else { return Ok(None) };
        incoming.blob = Some((blob.digest, blob.size));
        let path = incoming.path.clone();
        let (hash, length) = Digest::of_reader(&incoming.file).map_err(StoreError::of("read", &path))?;
        (incoming.hash, incoming.length) = (hash, length);
        if length > blob.size {
            incoming.restart()?;
        }
        Ok(Some(incoming))
    }

    /// An empty file to become `destination`; `None` where that is there. Waits for another process that makes it.
    pub(super) fn incoming_file(&self, name: &str, destination: PathBuf) -> Result<Option<Incoming>, StoreError> {
        let copy = destination.clone();
        let Some(mut incoming) = self.incoming(name, destination, || copy.exists())? else { return Ok(None) };
        incoming.restart()?;
        Ok(Some(incoming))
    }

    fn incoming(
        &self,
        name: &str,
        destination: PathBuf,
        is_there: impl Fn() -> bool,
    ) -> Result<Option<Incoming>, StoreError> {
        let path = self.root.join("incoming").join(name);
        loop {
            if is_there() {
                return Ok(None);
            }
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
            let file = file.map_err(StoreError::of("make", &path))?;
            file.lock().map_err(StoreError::of("lock", &path))?;
            // Whoever had the lock may have moved the file away, or removed it.
            if same(&file, &path) {
                if is_there() {
                    let _ = fs::remove_file(&path);
                    return Ok(None);
                }
                return Ok(Some(Incoming { file, path, destination, blob: None, hash: Sha256::new(), length: 0 }));
            }
        }
    }
}

/// Whether `path` still names the open file.
pub(super) fn same(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

impl Incoming {
    /// How much of it is there already, from an earlier attempt.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing of it is there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The file itself, for who does not only append.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// The file cannot be emptied.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let empty = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        empty.map_err(StoreError::of("write", &self.path))?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    /// Adds bytes at the end. What is more than announced is refused, and where the disk is full the file goes.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some((digest, size)) = self.blob
            && self.length + bytes.len() as u64 > size
        {
            self.discard();
            return Err(StoreError::WrongBlob { digest, problem: format!("more than the {size} bytes announced") });
        }
        if let Err(error) = self.file.write_all(bytes) {
            if error.kind() == io::ErrorKind::StorageFull {
                self.discard();
            }
            return Err(StoreError::Use { action: "write", path: self.path.clone(), source: error });
        }
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Removes the file.
    pub fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Checks what is there, and gives it its name. Then it is on disk.
    ///
    /// # Errors
    /// It is not what it ought to be, and is removed; or it cannot be put in its place.
    pub fn finish(self) -> Result<(), StoreError> {
        if let Some((digest, size)) = self.blob {
            let found = Digest::from_hash(self.hash.clone());
            let problem = match (self.length == size, found == digest) {
                (false, _) => Some(format!("{} bytes, and {size} were announced", self.length)),
                (true, false) => Some(format!("other contents than announced: they are {found}")),
                (true, true) => None,
            };
            if let Some(problem) = problem {
                self.discard();
                return Err(StoreError::WrongBlob { digest, problem });
            }
        }
        let place = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.path, &self.destination)?;
            let folder = self.destination.parent().unwrap_or(Path::new("/"));
            File::open(folder)?.sync_all()
        };
        place().map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                self.discard();
            }
            StoreError::Use { action: "write", path: self.destination.clone(), source: error }
        })
    }
}
