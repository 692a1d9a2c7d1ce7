//! Images from and to files: OCI layouts, as folders or in archives, and docker's archives.

mod load;
mod save;

use std::io;
use std::path::{Path, PathBuf};

pub use load::load;
pub(crate) use load::load_unnamed;
pub use save::save;

use super::manifest::DocumentError;
use super::{ParseNameError, StoreError};

/// Where images are to be read from or written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder that is an OCI layout, and the name of an image in it.
    Layout(PathBuf, Option<String>),
    /// A tar archive: docker's, or of an OCI layout.
    Archive(PathBuf),
}

impl Place {
    /// Reads `oci:PATH[:NAME]`, where PATH has no colon, `docker-archive:FILE` or `oci-archive:FILE`; anything else is a file.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if let Some(rest) = text.strip_prefix("oci:") {
            return match rest.split_once(':') {
                Some((path, name)) => Self::Layout(path.into(), Some(name.to_owned()).filter(|name| !name.is_empty())),
                None => Self::Layout(rest.into(), None),
            };
        }
        let file = text.strip_prefix("docker-archive:").or_else(|| text.strip_prefix("oci-archive:")).unwrap_or(text);
        Self::Archive(file.into())
    }
}

impl Place {
    /// The folder or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Layout(path, _) | Self::Archive(path) => path,
        }
    }
}

/// Why an image cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What is in the way.
        source: io::Error,
    },
    /// The archive or layout is not what it ought to be.
    #[error("{path} {problem}", path = path.display())]
    Malformed {
        /// The archive or layout.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A document in it cannot be used.
    #[error("cannot use the image in {path}", path = path.display())]
    Document {
        /// The archive or layout.
        path: PathBuf,
        /// What is wrong.
        source: DocumentError,
    },
    /// An image in it has a name that is none.
    #[error("{path} names an image so that it cannot be kept; name it with --name", path = path.display())]
    Name {
        /// The archive or layout.
        path: PathBuf,
        /// What is wrong.
        source: ParseNameError,
    },
    /// The store cannot take it, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(Place::parse("oci:/a:b/c:1"), Place::Layout("/a".into(), Some("b/c:1".into())));
        assert_eq!(Place::parse("oci:a"), Place::Layout("a".into(), None));
        for text in ["docker-archive:x.tar", "oci-archive:x.tar", "x.tar"] {
            assert_eq!(Place::parse(text), Place::Archive("x.tar".into()));
        }
    }
}
