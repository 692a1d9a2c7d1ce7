//! The names that images go by on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use super::archive::Place;
use super::{ImageName, ParseNameError};

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The tiny image carried inside amphi.
    Builtin,
    /// A directory that holds a root file system.
    Directory(PathBuf),
    /// A raw disk image, for microVMs only.
    Disk(PathBuf),
    /// An image in a layout or an archive.
    Archive(Place),
    /// An image of the store or of a registry.
    Named(ImageName),
}

/// Why a text is not a usable image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// A transport without the path it needs.
    #[error("image {0:?} names no path: write {0}PATH")]
    NoPath(String),
    /// It is neither a transport nor a name.
    #[error(transparent)]
    Name(#[from] ParseNameError),
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
            Some(("oci" | "docker-archive" | "oci-archive", rest)) => {
                path(rest).map(|_| Self::Archive(Place::parse(text)))
            }
            _ => Ok(Self::Named(text.parse()?)),
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
        assert!(matches!("".parse::<Reference>(), Err(ParseReferenceError::Name(_))));
        assert!(matches!("alpine:3".parse(), Ok(Reference::Named(_))));
    }
}
