//! Why settings are refused.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{MemorySize, ParseDiskError, ParseNetworkError, VolumeError};

/// Why settings do not make a [`RunSpec`](super::RunSpec).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither the caller nor the image names a command, or the command is an empty text.
    #[error("no command to run: the image names none, so name one after IMAGE")]
    NoCommand,
    /// A text holds a NUL byte, which no system call can pass on.
    #[error("{what} {text:?} holds a NUL byte")]
    Nul {
        /// What the text is, such as `argument`.
        what: &'static str,
        /// The text.
        text: OsString,
    },
    /// An environment variable's name is empty or has an `=` in it.
    #[error("--env {0:?} is not a name for an environment variable: it may be neither empty nor hold an equals sign")]
    EnvironmentName(OsString),
    /// The working directory is relative.
    #[error("--workdir {path} is not absolute", path = .0.display())]
    RelativeCwd(PathBuf),
    /// The user is an empty text, or one side of its colon is.
    #[error("--user {0:?} is not a user: write NAME or UID, and after a colon GROUP or GID")]
    User(String),
    /// Not a host name that Linux and other programs can live with.
    #[error(
        "--hostname {0:?} is not a host name: use at most 64 letters, digits, dots and hyphens, beginning and ending with a letter or digit"
    )]
    Hostname(String),
    /// More memory than there is.
    #[error("--memory {wanted} is more than this host has ({available})")]
    Memory {
        /// What was asked for.
        wanted: MemorySize,
        /// What the host has in all.
        available: MemorySize,
    },
    /// A limit of no processes at all.
    #[error("--pids 0 leaves no room for the command itself: use a number above 0")]
    NoProcesses,
    /// A limit for the layer that a disk does not have.
    #[error("--storage-opt: a disk is written to itself, and has the size that it has: leave the option out")]
    LimitOfDisk,
    /// A kept layer above a disk.
    #[error("the disk {path} is written to itself, so that there is no layer to keep", path = .0.display())]
    LayerOfDisk(PathBuf),
    /// A network whose settings make no sense together.
    #[error("--network: {0}")]
    Network(ParseNetworkError),
    /// A volume whose paths make no sense.
    #[error("--volume {path}: {problem}", path = path.display())]
    Volume {
        /// The source.
        path: PathBuf,
        /// What is wrong.
        problem: VolumeError,
    },
    /// Two volumes at one path.
    #[error("--volume: two of them are at {path}; only one can be there", path = .0.display())]
    SameDestination(PathBuf),
    /// A kernel argument that would break out of the command line.
    #[error("--kernel-arg {0:?} holds a line break or a NUL byte, or is empty")]
    KernelArgument(String),
    /// A disk whose settings make no sense.
    #[error("--disk {path}: {source}", path = path.display())]
    Disk {
        /// The disk's file.
        path: PathBuf,
        /// What is wrong.
        source: ParseDiskError,
    },
}
