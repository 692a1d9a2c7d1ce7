//! Where writes to a workload's root go.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MemorySize, ParseMemorySizeError};

/// The layer that takes a run's writes to `/`, above an image that never changes.
///
/// By default it is in memory and gone with the run. With a folder it stays, and the next run with the same folder goes on
/// with it. Volumes, `/proc`, `/sys` and `/dev` are no part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WritableLayer {
    /// Where it is kept: a folder that is there, of one instance, and used by one run at a time. A container has the
    /// overlay's `upper` and `work` in it, or, with a limit, a file system with these two in the file `writable.ext4`; a
    /// microVM that file in any case. What one isolation has written is not for the other.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
    /// The most that it takes in, in bytes; a kept layer has its limit from its first run on. `None`: what the memory or the
    /// host's file system has room for.
    pub limit: Option<MemorySize>,
}

impl WritableLayer {
    /// The name of a kept layer that is a file system of its own, in its folder: sparse, ext4, with `upper` and `work` at its top.
    pub const FILE: &str = "writable.ext4";
}

/// An option of `--storage-opt`, as docker has it: `size=SIZE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageOption {
    /// The most that the writable layer takes in.
    pub size: MemorySize,
}

/// Why a text is not a [`StorageOption`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseStorageOptionError {
    /// It is not `size=SIZE`.
    #[error("{0:?} is not known: use size=SIZE, such as size=1G")]
    Unknown(String),
    /// The size is none.
    #[error(transparent)]
    Size(#[from] ParseMemorySizeError),
}

impl FromStr for StorageOption {
    type Err = ParseStorageOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some(("size", size)) => Ok(Self { size: size.parse()? }),
            _ => Err(ParseStorageOptionError::Unknown(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_option_is_a_size() {
        assert_eq!("size=64M".parse::<StorageOption>().unwrap().size, MemorySize::from_mib(64));
        for text in ["", "size", "64M", "dm.size=1G"] {
            assert!(matches!(text.parse::<StorageOption>(), Err(ParseStorageOptionError::Unknown(_))), "{text}");
        }
        assert!(matches!("size=x".parse::<StorageOption>(), Err(ParseStorageOptionError::Size(_))));
    }
}
