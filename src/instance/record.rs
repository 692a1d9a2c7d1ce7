//! What an instance is, as it is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{InstanceError, RECORD};
use crate::image::Rootfs;
use crate::image::manifest::Descriptor;
use crate::isolation::IsolationKind;
use crate::spec::RunSpec;

/// The form of a record.
pub(super) const VERSION: u32 = 1;

/// What an instance is. Times are as RFC 3339 writes them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The form of the record.
    pub version: u32,
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name, or its ID where it was given none.
    pub name: String,
    /// The image as the user named it.
    pub image: String,
    /// The image itself.
    pub source: Source,
    /// How it runs.
    pub isolation: IsolationKind,
    /// When it was made.
    pub created: String,
    /// When it was started last.
    pub started: String,
    /// The process that started it last, which may be gone.
    pub pid: u32,
    /// What it runs.
    pub spec: RunSpec,
}

/// Where an instance's root comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Source {
    /// The image carried inside amphi.
    Builtin,
    /// A directory.
    Directory {
        /// Which.
        path: PathBuf,
    },
    /// A disk, which is written to itself.
    Disk {
        /// Its file.
        path: PathBuf,
    },
    /// An image in the store, which stays there as long as the instance does.
    Store {
        /// Its manifest.
        manifest: Descriptor,
    },
}

impl Source {
    pub(super) fn of(image: &str, rootfs: &Rootfs) -> Self {
        match rootfs {
            Rootfs::Directory(_) if image == "builtin" => Self::Builtin,
            Rootfs::Directory(path) => Self::Directory { path: path.clone() },
            Rootfs::Disk(path) => Self::Disk { path: path.clone() },
            Rootfs::Layers(stack) => Self::Store { manifest: (*stack.manifest).clone() },
        }
    }
}

impl Record {
    /// Reads the record in an instance's folder.
    pub(super) fn read(folder: &Path) -> Result<Self, InstanceError> {
        let path = folder.join(RECORD);
        let bytes = fs::read(&path).map_err(InstanceError::of("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|source| InstanceError::Damaged { path, source })
    }

    /// Replaces the record in an instance's folder.
    pub(super) fn write(&self, folder: &Path) -> Result<(), InstanceError> {
        let path = folder.join(RECORD);
        let mut bytes = serde_json::to_vec_pretty(self).map_err(InstanceError::Settings)?;
        bytes.push(b'\n');
        let write = || -> io::Result<()> {
            let new = folder.join(".record.json");
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(new, &path)
        };
        write().map_err(InstanceError::of("write", &path))
    }
}
