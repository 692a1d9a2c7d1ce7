//! Directories and files of the host that a workload sees.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A directory or file of the host at a path of the workload's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The host's directory or file, by an absolute path.
    pub source: PathBuf,
    /// Where the workload sees it, by an absolute path. What is missing of that path is made.
    pub destination: PathBuf,
    /// Whether the workload may change nothing there.
    pub read_only: bool,
}

/// Why something is not a [`Volume`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// There is no colon with an absolute path behind it.
    #[error("write SOURCE:DESTINATION, both absolute paths, and perhaps :ro behind them")]
    Form,
    /// The source is a name.
    #[error(
        "{0:?} would be a volume that amphi keeps under a name, which is not supported yet: name a directory or file of \
         this host by its absolute path"
    )]
    Named(OsString),
    /// The source is a relative path.
    #[error("the source {0:?} is a relative path: write it as an absolute one, such as \"$PWD\"/...")]
    RelativeSource(OsString),
    /// The destination is relative, or leads upwards.
    #[error("the destination {0:?} is not an absolute path without `..`")]
    Destination(PathBuf),
    /// The destination is where something else has to be.
    #[error("the destination {0:?} is taken: it may be neither / nor in /proc or /sys, nor /dev itself")]
    Taken(PathBuf),
    /// An option that is none.
    #[error("{0:?} is no option: there are ro and rw")]
    Option(OsString),
    /// A path holds a NUL byte.
    #[error("a path holds a NUL byte")]
    Nul,
}

impl Volume {
    /// A volume that may be written to.
    pub fn new(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), destination: destination.into(), read_only: false }
    }

    /// Refuses paths that cannot be meant, and takes what means nothing out of the destination.
    pub(super) fn check(&mut self) -> Result<(), VolumeError> {
        let source = self.source.as_os_str();
        if [source, self.destination.as_os_str()].iter().any(|path| path.as_bytes().contains(&0)) {
            return Err(VolumeError::Nul);
        }
        if !self.source.is_absolute() {
            let is_path = source.is_empty() || source.as_bytes().contains(&b'/') || source.as_bytes().starts_with(b".");
            return Err(if is_path { VolumeError::RelativeSource } else { VolumeError::Named }(source.to_owned()));
        }
        let upwards = self.destination.components().any(|part| part == Component::ParentDir);
        if !self.destination.is_absolute() || upwards {
            return Err(VolumeError::Destination(self.destination.clone()));
        }
        // What is left has no `.`, and no slash twice or at its end.
        let plain: PathBuf = self.destination.components().collect();
        let taken = plain == Path::new("/") || plain == Path::new("/dev");
        if taken || plain.starts_with("/proc") || plain.starts_with("/sys") {
            return Err(VolumeError::Taken(plain));
        }
        self.destination = plain;
        Ok(())
    }

    /// How deep the destination lies.
    pub(super) fn depth(&self) -> usize {
        self.destination.components().count()
    }
}

impl TryFrom<OsString> for Volume {
    type Error = VolumeError;

    /// `SOURCE:DESTINATION[:ro|:rw]`. The last colon before an absolute path divides the two.
    fn try_from(text: OsString) -> Result<Self, Self::Error> {
        let bytes = text.as_bytes();
        let (paths, option) = match bytes.iter().rposition(|&byte| byte == b':') {
            // Behind the last colon is either a path or an option.
            Some(colon) if !bytes[colon + 1..].starts_with(b"/") => (&bytes[..colon], Some(&bytes[colon + 1..])),
            _ => (bytes, None),
        };
        let colon = paths.windows(2).rposition(|two| two == b":/").ok_or(VolumeError::Form)?;
        let read_only = match option {
            None | Some(b"rw") => false,
            Some(b"ro") => true,
            Some(other) => return Err(VolumeError::Option(OsStr::from_bytes(other).to_owned())),
        };
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let mut volume = Self { source: path(&paths[..colon]), destination: path(&paths[colon + 1..]), read_only };
        volume.check()?;
        Ok(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Volume, VolumeError> {
        Volume::try_from(OsString::from(text))
    }

    #[test]
    fn a_volume_is_two_paths_and_perhaps_an_option() {
        assert_eq!(parse("/a:/b"), Ok(Volume::new("/a", "/b")));
        assert_eq!(parse("/a:/b:rw"), Ok(Volume::new("/a", "/b")));
        assert_eq!(parse("/a:/b/./c//:ro"), Ok(Volume { read_only: true, ..Volume::new("/a", "/b/c") }));
        assert_eq!(parse("/with:colon:/b"), Ok(Volume::new("/with:colon", "/b")));
        let odd = OsString::from_vec(b"/\xff:/\xfe".to_vec());
        assert_eq!(Volume::try_from(odd).unwrap().source.as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "/a", "/a:", "/a:b", "data", "/a:ro"] {
            assert_eq!(parse(text), Err(VolumeError::Form), "{text}");
        }
        assert_eq!(parse("data:/b"), Err(VolumeError::Named("data".into())));
        for source in ["./a", "a/b", "..", "", "."] {
            assert_eq!(parse(&format!("{source}:/b")), Err(VolumeError::RelativeSource(source.into())), "{source}");
        }
        assert!(matches!(parse("/a:/b/../c"), Err(VolumeError::Destination(_))));
        assert_eq!(parse("/a:/b:x"), Err(VolumeError::Option("x".into())));
        assert_eq!(parse("/a:/b:"), Err(VolumeError::Option("".into())));
        for destination in ["/", "/.", "/proc", "/proc/x", "/sys/fs", "/dev", "/dev/"] {
            assert!(matches!(parse(&format!("/a:{destination}")), Err(VolumeError::Taken(_))), "{destination}");
        }
        for destination in ["/process", "/dev/x", "/system"] {
            assert!(parse(&format!("/a:{destination}")).is_ok(), "{destination}");
        }
        assert_eq!(parse("/a\0:/b"), Err(VolumeError::Nul));
    }
}
