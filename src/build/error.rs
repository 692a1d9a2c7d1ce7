//! Why a build fails.

use std::io;
use std::path::PathBuf;

use super::dockerfile::DockerfileError;
use crate::image::{ImageError, LayerError, ParseTimestampError, StoreError, TreeError};
use crate::instance::InstanceError;
use crate::isolation::{ExitStatus, IsolationError};
use crate::spec::SpecError;

/// Why a build fails.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The Dockerfile cannot be understood.
    #[error("{path}, {source}", path = path.display())]
    Dockerfile {
        /// The Dockerfile.
        path: PathBuf,
        /// What is wrong.
        source: DockerfileError,
    },
    /// The `.dockerignore` cannot be understood.
    #[error("{path}, line {line}: {problem}", path = path.display())]
    Ignore {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The folder to copy from cannot be read.
    #[error(transparent)]
    Context(#[from] TreeError),
    /// No stage has that name.
    #[error("--target {0}: the Dockerfile has no stage of that name or number")]
    Target(String),
    /// `SOURCE_DATE_EPOCH` is no time.
    #[error(transparent)]
    Time(#[from] ParseTimestampError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step fails.
    #[error("{path}, line {line}: {step}", path = path.display())]
    Step {
        /// The Dockerfile.
        path: PathBuf,
        /// The line of the step.
        line: usize,
        /// The step.
        step: String,
        /// Why.
        source: Box<StepError>,
    },
}

/// Why a step of a build fails.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// What it says cannot be done.
    #[error("{0}")]
    Wrong(String),
    /// Something of the context or of an image cannot be read.
    #[error("cannot use {name}")]
    Use {
        /// What.
        name: String,
        /// What is in the way.
        source: io::Error,
    },
    /// The image to begin with, or to copy from, cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An archive cannot be unpacked.
    #[error(transparent)]
    Archive(#[from] LayerError),
    /// The store cannot take what the step makes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer cannot be written.
    #[error("cannot write the layer")]
    Layer(#[from] io::Error),
    /// What the command has written cannot be read.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The command cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The command cannot be run.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The command has failed.
    #[error("the command ended with {0}")]
    Command(ExitStatus),
}

impl StepError {
    pub(super) fn using(name: &[u8]) -> impl FnOnce(io::Error) -> Self {
        let name = String::from_utf8_lossy(name).into_owned();
        move |source| Self::Use { name, source }
    }
}
