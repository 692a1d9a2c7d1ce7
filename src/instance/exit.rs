//! How a run of an instance ended.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{EXIT, InstanceError};
use crate::image::Timestamp;

/// What is shown where nobody knows: the status of what SIGKILL has ended.
const KILLED: u8 = 137;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, 137 where it is not known.
    pub code: u8,
    /// When, as RFC 3339 writes times; `None` where amphi was killed while it ran the instance.
    pub finished: Option<String>,
}

/// The file for the end of a run that begins, empty.
pub(super) fn begin(folder: &Path) -> Result<File, InstanceError> {
    let path = folder.join(EXIT);
    let make = || -> io::Result<File> {
        let new = folder.join(".exit");
        let file = File::create(&new)?;
        fs::rename(new, &path)?;
        Ok(file)
    };
    make().map_err(InstanceError::of("make", &path))
}

/// Writes how it ended, by one system call on what is open already.
pub(super) fn write(mut file: &File, code: u8) -> io::Result<()> {
    let exit = Exit { code, finished: Some(Timestamp::now().to_string()) };
    let mut line = serde_json::to_vec(&exit)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// How the last run ended.
pub(super) fn read(folder: &Path) -> Exit {
    let text = fs::read(folder.join(EXIT)).unwrap_or_default();
    let line = text.strip_suffix(b"\n").unwrap_or_default();
    serde_json::from_slice(line).unwrap_or(Exit { code: KILLED, finished: None })
}
