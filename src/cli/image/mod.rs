//! The commands about images.

mod files;
mod find;
mod history;
mod inspect;
mod list;
mod login;
mod progress;
mod prune;
mod remove;
mod tag;
mod transfer;

pub(crate) use files::{LoadArgs, SaveArgs, load, save};
pub(crate) use history::{HistoryArgs, run as history};
pub(crate) use inspect::{InspectArgs, run as inspect};
pub(crate) use list::{ImagesArgs, run as list};
pub(crate) use login::{LoginArgs, LogoutArgs, forget as logout, login};
pub(crate) use progress::ProgressBar;
pub(crate) use prune::{PruneArgs, run as prune};
pub(crate) use remove::{RmiArgs, run as remove};
pub(crate) use tag::{TagArgs, run as tag};
pub(crate) use transfer::{PullArgs, PushArgs, pull, push};

use amphi::image::archive::ArchiveError;
use amphi::image::registry::{CredentialError, RegistryError};
use amphi::image::{ParseNameError, StoreError};
use amphi::instance::InstanceError;

use crate::cli::output::{printable, size, table};
use crate::error::CliError;

/// Why a command about images failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageCommandError {
    /// A name is malformed.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry does not do what it is asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layout or archive cannot be read or written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Credentials cannot be kept.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// No image has that name or ID.
    #[error("{0} is not in the store: `amphi images` lists what is")]
    Unknown(String),
    /// Several images have an ID that begins so.
    #[error("{0} begins the IDs of several images: write more of it")]
    Ambiguous(String),
    /// The image has several names.
    #[error("{id} has {count} names: remove them one by one, or all with --force")]
    SeveralNames {
        /// What was asked for.
        id: String,
        /// How many.
        count: usize,
    },
    /// An instance was made from it.
    #[error(
        "the instance {instance} was made from {image}: remove it with `amphi rm {instance}`, or the name alone with --force"
    )]
    InUse {
        /// What was asked for.
        image: String,
        /// The instance's name.
        instance: String,
    },
    /// An instance cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The result cannot be written, or the like.
    #[error(transparent)]
    Cli(Box<CliError>),
}

impl From<CliError> for ImageCommandError {
    fn from(error: CliError) -> Self {
        Self::Cli(Box::new(error))
    }
}
