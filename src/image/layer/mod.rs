//! Layers: the archives that an image is made of, as file systems.

mod archive;
mod compression;
mod convert;
mod pax;
mod read;
mod tree;
mod unpack;
mod write;

use std::io;

pub(super) use convert::{Conversion, Layer, convert};
pub(crate) use read::read_archive;
pub(super) use tree::is_opaque;
pub(super) use unpack::unpack;
pub use write::{EntryKind, LayerArchive, LayerEntry};

use super::erofs::ErofsError;

/// The most entries of a layer, and of the layers that are made into one file system.
pub(super) const MAX_ENTRIES: usize = 2_000_000;
/// The most bytes that names, link targets and extended attributes may take together.
pub(super) const MAX_NAMES: usize = 512 << 20;
/// What a layer may unpack to: this many times its length in the registry, and 1 GiB more.
pub(super) const MAX_RATIO: u64 = 250;
/// See [`MAX_RATIO`].
pub(super) const RATIO_GRACE: u64 = 1 << 30;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The layer's file cannot be read, or not be decompressed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// It is no tar archive, or a damaged one.
    #[error("the layer is malformed: {0}")]
    Malformed(&'static str),
    /// An entry cannot be where its name says.
    #[error("the layer's entry {path:?} {problem}")]
    Entry {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It holds more than amphi takes.
    #[error("the layer {0}")]
    TooLarge(&'static str),
    /// The contents are not those that the image's configuration names.
    #[error("the layer unpacks to {found}, but the image's configuration says {expected}")]
    WrongContents {
        /// What it is.
        found: String,
        /// What it ought to be.
        expected: String,
    },
    /// What is made of it cannot be written.
    #[error("cannot write the layer's file system")]
    Write(#[source] io::Error),
    /// What is made of it does not fit the format.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

impl LayerError {
    fn entry(path: &[u8], problem: &'static str) -> Self {
        Self::Entry { path: String::from_utf8_lossy(path).into_owned(), problem }
    }
}
