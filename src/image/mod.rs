//! Images: what a reference names, opened and checked.

pub mod archive;
mod builtin;
mod cache;
mod config;
mod digest;
mod disk;
mod disk_file;
mod draft;
mod erofs;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guest_root;
pub mod initramfs;
mod layer;
mod lower;
pub mod manifest;
mod name;
mod reference;
pub mod registry;
mod rootfs;
pub mod store;
mod timestamp;
pub(crate) mod tree;
mod unnamed;
mod view;
mod xattr;

pub use cache::CacheError;
pub(crate) use digest::HashingReader;
pub use digest::{Digest, ParseDigestError};
pub use disk::DiskFormatError;
pub use disk_file::{DiskError, open_disk};
pub use draft::Draft;
pub use erofs::ErofsError;
pub(crate) use guest_root::GuestRoot;
pub use guest_root::GuestRootError;
pub use initramfs::{Initramfs, InitramfsError};
pub(crate) use layer::read_archive;
pub use layer::{EntryKind, LayerArchive, LayerEntry, LayerError};
pub use lower::LowerFile;
pub use name::{ImageName, ParseNameError};
pub use reference::{ParseReferenceError, Reference};
pub use rootfs::Rootfs;
pub use store::{NewLayer, Store, StoreError, StoredImage};
pub use timestamp::{ParseTimestampError, Timestamp};
pub(crate) use tree::Tree;
pub use tree::TreeError;
pub(crate) use unnamed::view_of_archive;
pub(crate) use view::{View, ViewNode};
pub(crate) use xattr::{belongs_to_images, read as read_attributes};

use std::path::PathBuf;

/// An opened image: a root file system, and the process its author meant to run in it.
#[derive(Debug, Clone)]
pub struct Image {
    /// What becomes `/`.
    pub rootfs: Rootfs,
    /// The program that the command is given to as arguments, with arguments of its own; often there is none.
    pub entrypoint: Vec<String>,
    /// The command to run where the user names none.
    pub default_command: Vec<String>,
    /// Environment variables, which the user's come after.
    pub env: Vec<(String, String)>,
    /// The working directory where the user names none.
    pub working_dir: Option<String>,
    /// The user where the user names none.
    pub user: Option<String>,
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
    /// The store has no such image.
    #[error("{0} is not in the store: fetch it with `amphi pull`")]
    NotInStore(String),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry does not give the image.
    #[error(transparent)]
    Registry(Box<registry::RegistryError>),
    /// The layout or archive cannot be read.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
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
    /// Opens the image that `reference` names: `builtin`, `dir:PATH`, `disk:FILE`, `oci:PATH[:NAME]`,
    /// `docker-archive:FILE`, or the name of an image in the store.
    ///
    /// # Errors
    /// The reference is malformed, or what it names is missing or of another kind.
    pub fn open(reference: &str) -> Result<Self, ImageError> {
        let parsed: Reference = reference.parse()?;
        if let Reference::Named(name) = &parsed {
            return Self::stored(name)?.ok_or_else(|| ImageError::NotInStore(name.familiar()));
        }
        if let Reference::Archive(place) = &parsed {
            let store = Store::open_default()?;
            let _hold = store.hold()?;
            let image = archive::load_unnamed(place, &store)?;
            let layers = store.layers(&image)?;
            return Ok(Self::from_config(Rootfs::Layers(layers), image.config.config.unwrap_or_default()));
        }
        let rootfs = Rootfs::open(&parsed, reference)?;
        let default_command = match parsed {
            Reference::Builtin => vec!["/bin/hello".to_owned()],
            _ => vec!["/bin/sh".to_owned()],
        };
        Ok(Self { rootfs, entrypoint: Vec::new(), default_command, env: Vec::new(), working_dir: None, user: None })
    }

    /// As [`open`](Self::open), but an image that is not in the store is pulled from its registry.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the registry cannot be reached or does not have the image.
    pub fn open_or_pull(
        reference: &str,
        options: &registry::Options,
        progress: &dyn registry::Progress,
    ) -> Result<Self, ImageError> {
        let Reference::Named(name) = reference.parse()? else { return Self::open(reference) };
        if let Some(image) = Self::stored(&name)? {
            return Ok(image);
        }
        let failed = |error| ImageError::Registry(Box::new(error));
        let store = Store::open_default()?;
        let client = registry::Client::new(&name, options).map_err(failed)?;
        client.pull(&store, progress).map_err(failed)?;
        Self::stored(&name)?.ok_or_else(|| ImageError::NotInStore(name.familiar()))
    }

    fn stored(name: &ImageName) -> Result<Option<Self>, ImageError> {
        let store = Store::open_default()?;
        // Nothing may be removed between the look into the index and the opening of the layers.
        let _hold = store.hold()?;
        let Some(manifest) = store.find(name)? else { return Ok(None) };
        let image = store.image(&manifest)?;
        let layers = store.layers(&image)?;
        Ok(Some(Self::from_config(Rootfs::Layers(layers), image.config.config.unwrap_or_default())))
    }

    fn from_config(rootfs: Rootfs, config: manifest::Execution) -> Self {
        let pair = |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = config.env.unwrap_or_default().into_iter().filter_map(pair).filter(|(name, _)| !name.is_empty());
        Self {
            rootfs,
            entrypoint: config.entrypoint.unwrap_or_default(),
            default_command: config.cmd.unwrap_or_default(),
            env: env.collect(),
            // As docker does with a relative one.
            working_dir: config.working_dir.filter(|path| !path.is_empty()).map(|path| match path.starts_with('/') {
                true => path,
                false => format!("/{path}"),
            }),
            user: config.user.filter(|user| !user.is_empty()),
        }
    }
}
