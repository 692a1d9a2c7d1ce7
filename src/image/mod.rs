//! Images: what a reference names, opened and checked.

mod builtin;
mod cache;
mod disk;
mod disk_file;
mod erofs;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guest_root;
pub mod initramfs;
mod reference;
mod rootfs;
mod tree;
mod xattr;

pub use cache::CacheError;
pub use disk::DiskFormatError;
pub use disk_file::{DiskError, open_disk};
pub use erofs::ErofsError;
pub(crate) use guest_root::GuestRoot;
pub use guest_root::GuestRootError;
pub use initramfs::{Initramfs, InitramfsError};
pub use reference::{ParseReferenceError, Reference};
pub use rootfs::Rootfs;
pub use tree::TreeError;

use std::path::PathBuf;

/// An opened image: a root file system, and the process its author meant to run in it.
#[derive(Debug, Clone)]
pub struct Image {
    /// What becomes `/`.
    pub rootfs: Rootfs,
    /// The command to run where the user names none.
    pub default_command: Vec<String>,
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is malformed or of a kind that this version does not know.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// The path is missing or cannot be read.
    #[error("cannot open image {reference}: {path}", path = path.display())]
    Open {
        /// The image as the user named it.
        reference: String,
        /// The path that failed.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The path is there but is not what the reference says it is.
    #[error("cannot open image {reference}: {path} is not {expected}", path = path.display())]
    WrongKind {
        /// The image as the user named it.
        reference: String,
        /// The path that is something else.
        path: PathBuf,
        /// What it ought to be.
        expected: &'static str,
    },
    /// The built-in image could not be unpacked.
    #[error("cannot unpack the built-in image to {path}", path = path.display())]
    Builtin {
        /// Where it was to go.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
}

impl Image {
    /// Opens the image that `reference` names: `builtin`, `dir:PATH` or `disk:FILE`.
    ///
    /// # Errors
    /// The reference is malformed, or what it names is missing or of another kind.
    pub fn open(reference: &str) -> Result<Self, ImageError> {
        let parsed: Reference = reference.parse()?;
        let rootfs = Rootfs::open(&parsed, reference)?;
        let default_command = match parsed {
            Reference::Builtin => vec!["/bin/hello".to_owned()],
            _ => vec!["/bin/sh".to_owned()],
        };
        Ok(Self { rootfs, default_command })
    }
}
