//! Why an instance cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::{ImageError, LayerError, ParseTimestampError, StoreError};
use crate::isolation::IsolationError;

/// Why an instance cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// No instance has that name or ID.
    #[error("there is no instance {0}: `amphi ps -a` lists those there are")]
    Unknown(String),
    /// Several instances have an ID that begins so.
    #[error("{0} begins the IDs of several instances: write more of it")]
    Ambiguous(String),
    /// Another instance has the name.
    #[error("--name {name} is the name of the instance {id}: use another one, or remove that with `amphi rm {id}`")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// It runs, and what is asked for is for stopped ones.
    #[error("the instance {name} runs, so that it cannot be {purpose}: stop it first")]
    Running {
        /// The instance.
        name: String,
        /// What was attempted.
        purpose: &'static str,
    },
    /// Whoever runs it could not be found.
    #[error("cannot find the process that runs the instance {0}")]
    NoProcess(String),
    /// Its image was removed between its opening and its use.
    #[error("the image {0} has just been removed: try again")]
    ImageGone(String),
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
    /// Its record is none.
    #[error("{path} is damaged: remove the instance's folder", path = path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Its record cannot be written down.
    #[error("the settings cannot be kept: use --rm")]
    Settings(#[source] serde_json::Error),
    /// What it has written cannot be read or changed.
    #[error(transparent)]
    Isolation(Box<IsolationError>),
    /// There is no image to put a layer on.
    #[error("the instance {name} runs {image}, which is no image of the store: there are no layers to put one on")]
    NoParent {
        /// The instance.
        name: String,
        /// Its image.
        image: String,
    },
    /// The new layer cannot be written.
    #[error("cannot write the layer")]
    Layer(#[source] io::Error),
    /// What it has written could not be read to the end.
    #[error("the instance's files could not be read to their end")]
    CutShort,
    /// An archive cannot be written.
    #[error("cannot write the archive")]
    Archive(#[source] io::Error),
    /// An archive cannot be read.
    #[error("cannot use the archive")]
    Tar(#[source] LayerError),
    /// The time that the image is to have is none.
    #[error(transparent)]
    Time(ParseTimestampError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl InstanceError {
    pub(super) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Use { action, path: path.to_owned(), source }
    }
}
