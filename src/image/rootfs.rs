//! A root file system in the form that both isolations take.

use std::path::{Path, PathBuf};

use super::store::LayerStack;
use super::{ImageError, Reference};

/// What becomes the workload's `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory tree. It is never written to: each run gets a writable layer of its own.
    Directory(PathBuf),
    /// The layers of an image in the store. They are never written to, and any number of runs shares them.
    Layers(LayerStack),
    /// A raw disk image, writable unless the run is read-only. MicroVMs only.
    Disk(PathBuf),
}

impl Rootfs {
    /// No root: what a specification has until it gets one.
    pub(crate) const fn nowhere() -> Self {
        Self::Directory(PathBuf::new())
    }

    /// What is not in the store.
    pub(super) fn open(reference: &Reference, text: &str) -> Result<Self, ImageError> {
        let canonical = |path: &Path| {
            path.canonicalize().map_err(|source| ImageError::Open {
                reference: text.to_owned(),
                path: path.to_owned(),
                source,
            })
        };
        let wrong = |path: PathBuf, expected| ImageError::WrongKind { reference: text.to_owned(), path, expected };
        match reference {
            Reference::Named(name) => Err(ImageError::NotInStore(name.familiar())),
            Reference::Archive(place) => Err(wrong(place.path().to_owned(), "a root file system")),
            Reference::Builtin => super::builtin::unpack().map(Self::Directory),
            Reference::Directory(path) => {
                let path = canonical(path)?;
                if path.is_dir() { Ok(Self::Directory(path)) } else { Err(wrong(path, "a directory")) }
            }
            Reference::Disk(path) => {
                use std::os::unix::fs::FileTypeExt;
                let path = canonical(path)?;
                let kind = path.metadata().map_err(|source| ImageError::Open {
                    reference: text.to_owned(),
                    path: path.clone(),
                    source,
                })?;
                if kind.is_file() || kind.file_type().is_block_device() {
                    Ok(Self::Disk(path))
                } else {
                    Err(wrong(path, "a file or a block device"))
                }
            }
        }
    }
}
