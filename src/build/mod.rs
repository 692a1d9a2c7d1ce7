//! Building images from Dockerfiles.
//!
//! A stage begins with an image, and each step changes its configuration or puts a layer on top. `COPY`, `ADD` and `WORKDIR` make theirs
//! on the host, from the context and from what the layers below show ([`View`](crate::image)); nothing is mounted or run for them.
//! `RUN` runs its command in an isolation, on the layers so far, and its layer is what that has written.
//!
//! A step that makes a layer has a key: the layers below, and all that has an influence on what it makes. What a key has made is
//! noted in the store, and taken from there the next time.

mod arguments;
mod begin;
mod change;
mod context;
mod copy;
mod dockerfile;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod ignore;
mod pattern;
mod plan;
mod run;
mod settings;
mod stage;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use change::change;
pub use dockerfile::{
    Command, Copy, DOCKERFILE_LIMIT, Dockerfile, DockerfileError, HereDocument, Instruction, Stage, Step,
};
pub use error::{BuildError, StepError};

use arguments::Arguments;
use context::Context;
use stage::Build;

use crate::image::{ImageName, Store, StoredImage, Timestamp, registry};
use crate::spec::{CpuLimit, MemorySize, Network};
use crate::{Isolation, IsolationKind};

/// What to build, and how.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The Dockerfile; `None` is `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    /// The folder that is copied from.
    pub context: PathBuf,
    /// The names that the image gets.
    pub names: Vec<ImageName>,
    /// What the Dockerfile's `ARG`s are.
    pub arguments: BTreeMap<String, String>,
    /// The stage to build, by its name or number; the last where there is none.
    pub target: Option<String>,
    /// Whether what is known of a step is taken from the store.
    pub cache: bool,
    /// Remarks that the image gets.
    pub labels: Vec<(String, String)>,
    /// What `RUN` runs its commands in.
    pub isolation: IsolationKind,
    /// The network of `RUN`.
    pub network: Network,
    /// The memory of `RUN`.
    pub memory: Option<MemorySize>,
    /// The processors of `RUN`.
    pub cpus: Option<CpuLimit>,
    /// How registries are used for images that are not in the store.
    pub registry: registry::Options,
    /// The time that everything is to be made at; `None` is now, and files keep the times they have.
    pub source_date: Option<Timestamp>,
}

/// What happens in a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins.
    Step {
        /// The stage's number among those that are built, from 1, and how many these are.
        stage: (usize, usize),
        /// The step's number in its stage, from 1, and how many it has.
        step: (usize, usize),
        /// The instruction.
        text: &'a str,
    },
    /// The step has been done before, and is not done again.
    Cached,
    /// Something that is worth knowing, and no error.
    Notice(&'a str),
}

/// Who is told of a build.
pub trait Progress: registry::Progress {
    /// Something happens.
    fn event(&self, event: Event<'_>);

    /// Where to write what the commands of `RUN` say.
    ///
    /// # Errors
    /// There is no such place.
    fn output(&self) -> io::Result<OwnedFd>;
}

/// Builds an image, and puts it into the store.
///
/// # Errors
/// The Dockerfile cannot be understood, or a step fails. What the steps before have made stays in the store for the next time, until
/// [`Store::collect`] takes it; no name has changed.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<StoredImage, BuildError> {
    let path = options.dockerfile.clone().unwrap_or_else(|| options.context.join("Dockerfile"));
    let text = context::read_text(&path, DOCKERFILE_LIMIT)?;
    let file = Dockerfile::parse(&text).map_err(|source| BuildError::Dockerfile { path: path.clone(), source })?;
    let target = match &options.target {
        None => file.stages.len() - 1,
        Some(name) => file.stage(name).ok_or_else(|| BuildError::Target(name.clone()))?,
    };
    let arguments = Arguments::new(&file, &options.arguments)
        .map_err(|source| BuildError::Dockerfile { path: path.clone(), source })?;
    let needed = arguments.needed(&file, target);
    let copies = |stage: &usize| file.stages[*stage].steps.iter().any(Step::copies_from_context);
    let context = match needed.iter().any(copies) {
        true => Some(Context::open(&options.context, Some(&path))?),
        false => None,
    };
    let store = Store::open_default()?;
    // Nothing leads to what the steps make until the end.
    let _hold = store.hold()?;
    let isolation: Box<dyn Isolation> = crate::isolation(options.isolation);
    let build = Build {
        path: &path,
        file: &file,
        options,
        progress,
        store: &store,
        context: context.as_ref(),
        isolation: &*isolation,
        arguments,
    };
    let state = build.stages(&needed)?;
    build.report_unused();
    build.save(state)
}
