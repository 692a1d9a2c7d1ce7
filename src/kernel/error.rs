//! What can go wrong with guest kernels.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no usable kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot read kernel {path}", path = path.display())]
    Read {
        /// The kernel's file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is not a kernel that amphi can boot.
    #[error("{path} is not a kernel that amphi can boot: {reason}", path = path.display())]
    NotBootable {
        /// The kernel's file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The uncompressed kernel inside a bzImage cannot be extracted.
    #[error("cannot extract the kernel from {path}: its {compression} payload is damaged or cut short", path = path.display())]
    Payload {
        /// The bzImage.
        path: PathBuf,
        /// How the payload is compressed.
        compression: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
    /// No kernel is installed.
    #[error(
        "no guest kernel is installed: run `amphi kernel install` (the distribution's) or `amphi kernel build` (amphi's own), name one with `amphi run --kernel`, or use --isolation container"
    )]
    NoneInstalled,
    /// No installed kernel has that name.
    #[error("there is no kernel file and no installed kernel named {name:?} (installed: {installed})")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that exist, separated by commas, or "none".
        installed: String,
    },
    /// The kernel neither has the module nor has it built in.
    #[error("kernel {release} has no module {module} and it is not built in: use another kernel (`amphi kernel list`)")]
    NoModule {
        /// The kernel's release, or its file where that is not known.
        release: String,
        /// The module.
        module: String,
    },
    /// The package is not one that a kernel can be taken from.
    #[error("cannot use {path}: {reason}", path = path.display())]
    Package {
        /// The package's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that amphi needs is missing, or failed.
    #[error("{attempt}: {reason}")]
    Tool {
        /// What was attempted.
        attempt: String,
        /// What went wrong, with the last lines of the program's output, and what to do.
        reason: String,
    },
    /// The directory of installed kernels cannot be used.
    #[error("cannot {attempt} {path}", path = path.display())]
    Store {
        /// What was attempted, as a verb.
        attempt: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl KernelError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn store(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Store { attempt, path: path.to_owned(), source }
    }

    pub(super) fn not_bootable(path: &Path, reason: impl Into<String>) -> Self {
        Self::NotBootable { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn package(path: &Path, reason: impl Into<String>) -> Self {
        Self::Package { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn tool(attempt: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tool { attempt: attempt.into(), reason: reason.into() }
    }
}
