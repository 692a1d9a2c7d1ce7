//! The names that images go by on the command line.

use std::path::PathBuf;
use std::str::FromStr;

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The tiny image carried inside amphi.
    Builtin,
    /// A directory that holds a root file system.
    Directory(PathBuf),
    /// A raw disk image, for microVMs only.
    Disk(PathBuf),
}

/// Why a text is not a usable image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// A transport without the path it needs.
    #[error("image {0:?} names no path: write {0}PATH")]
    NoPath(String),
    /// A kind of image that a later version will take.
    #[error(
        "image {0:?}: images from a registry, an OCI layout or a docker archive are not supported yet; use builtin, dir:PATH or disk:FILE"
    )]
    NotYet(String),
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "builtin" {
            return Ok(Self::Builtin);
        }
        let path = |rest: &str| {
            if rest.is_empty() { Err(ParseReferenceError::NoPath(text.to_owned())) } else { Ok(PathBuf::from(rest)) }
        };
        match text.split_once(':') {
            Some(("dir", rest)) => path(rest).map(Self::Directory),
            Some(("disk", rest)) => path(rest).map(Self::Disk),
            _ => Err(ParseReferenceError::NotYet(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_told_apart() {
        assert_eq!("builtin".parse(), Ok(Reference::Builtin));
        assert_eq!("dir:/a:b".parse(), Ok(Reference::Directory("/a:b".into())));
        assert_eq!("disk:x.img".parse(), Ok(Reference::Disk("x.img".into())));
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        assert_eq!("dir:".parse::<Reference>(), Err(ParseReferenceError::NoPath("dir:".into())));
        for text in ["alpine", "alpine:3", "oci:x", "docker-archive:x", ""] {
            assert_eq!(text.parse::<Reference>(), Err(ParseReferenceError::NotYet(text.into())));
        }
    }
}
