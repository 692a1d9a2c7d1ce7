//! A file that a microVM gets as persistent memory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::disk::split_path;

/// A file that a microVM gets as persistent memory: a range of addresses in which its kernel reaches the pages of the host's page
/// cache without a copy of its own (DAX).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemSpec {
    /// The file. As long as the run lasts it is locked: a writable one against all other runs, a read-only one against those
    /// that write. It must not become shorter meanwhile: the guest would end.
    pub path: PathBuf,
    /// Whether the guest may not write. Otherwise the file's size is a multiple of 2 MiB.
    pub read_only: bool,
}

/// A text is not a [`PmemSpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not FILE[,ro]; write a comma in the file's name twice")]
pub struct ParsePmemError(OsString);

impl TryFrom<OsString> for PmemSpec {
    type Error = ParsePmemError;

    /// `FILE[,ro]`. Two commas in FILE stand for one.
    fn try_from(text: OsString) -> Result<Self, Self::Error> {
        let (path, option) = split_path(text.as_bytes());
        let read_only = match option.map(OsStr::from_bytes) {
            None => false,
            Some(option) if option == "ro" => true,
            Some(_) => return Err(ParsePmemError(text)),
        };
        if path.is_empty() {
            return Err(ParsePmemError(text));
        }
        Ok(Self { path: OsString::from_vec(path).into(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_file_and_perhaps_read_only() {
        let parse = |text: &str| PmemSpec::try_from(OsString::from(text));
        let spec = |path: &str, read_only| Ok(PmemSpec { path: path.into(), read_only });
        assert_eq!(parse("/a/b"), spec("/a/b", false));
        assert_eq!(parse("a,,b,ro"), spec("a,b", true));
        for text in ["", ",ro", "a,", "a,rw", "a,ro,ro"] {
            assert_eq!(parse(text), Err(ParsePmemError(text.into())), "{text}");
        }
    }
}
