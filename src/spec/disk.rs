//! A disk that a microVM gets beside its root.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rate::{self, ParseRateError, Rate};

/// The longest serial number of a virtio disk, in bytes.
const SERIAL_MAX: usize = 20;

/// A disk that a microVM gets beside its root: a raw file or a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The file or block device. As long as the run lasts it is locked: a writable one against all other runs, a
    /// read-only one against those that write.
    pub path: PathBuf,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number: 1 to 20 printable ASCII characters other than the space.
    /// `None`: `amphi` and the number of the disk.
    pub serial: Option<String>,
    /// How its requests are carried out.
    pub engine: DiskEngine,
    /// Whether reads and writes go past the host's page cache.
    pub direct: bool,
    /// The most bytes that are read and written in a second.
    pub bandwidth: Option<Rate>,
    /// The most requests in a second.
    pub operations: Option<Rate>,
}

/// How a disk's requests are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DiskEngine {
    /// `IoUring` where each request has to wait for the host's device (`direct`) and the host has it, else `Sync`.
    #[default]
    Auto,
    /// Many at a time, by the host's `io_uring`.
    IoUring,
    /// One after the other.
    Sync,
}

/// Why a disk cannot be had as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDiskError {
    /// There is no file.
    #[error("it begins with the path of a file or block device; write a comma in it twice")]
    NoPath,
    /// An option that there is not.
    #[error(
        "{0:?} is none of its options: ro, direct, serial=TEXT, engine=auto|io_uring|sync, bandwidth=SIZE/s, ops=N/s, \
         bandwidth-burst=SIZE, ops-burst=N (write a comma in a path twice)"
    )]
    Option(String),
    /// A serial number that no driver takes.
    #[error("serial={0:?}: a serial number is 1 to 20 printable ASCII characters without a space")]
    Serial(String),
    /// An engine that there is not.
    #[error("engine={0:?}: use auto, io_uring or sync")]
    Engine(String),
    /// A limit that is none.
    #[error("{option}={source}")]
    Rate {
        /// The option.
        option: &'static str,
        /// What is wrong with its value.
        source: ParseRateError,
    },
    /// A burst that is no number, or one without the rate that it belongs to.
    #[error("{0}: a burst is a number above 0, given together with {1}=...")]
    Burst(&'static str, &'static str),
}

impl DiskSpec {
    /// The whole of `path`, writable, without limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            serial: None,
            engine: DiskEngine::Auto,
            direct: false,
            bandwidth: None,
            operations: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), ParseDiskError> {
        let is_serial =
            |serial: &str| (1..=SERIAL_MAX).contains(&serial.len()) && serial.bytes().all(|b| b.is_ascii_graphic());
        match &self.serial {
            _ if self.path.as_os_str().is_empty() => Err(ParseDiskError::NoPath),
            Some(serial) if !is_serial(serial) => Err(ParseDiskError::Serial(serial.clone())),
            _ => Ok(()),
        }
    }

    fn set(&mut self, option: &str, bursts: &mut Bursts) -> Result<(), ParseDiskError> {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let rate = |option, value: &str| match value.parse() {
            Ok(rate) => Ok(Some(rate)),
            Err(source) => Err(ParseDiskError::Rate { option, source }),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("direct", None) => self.direct = true,
            ("serial", Some(value)) => self.serial = Some(value.to_owned()),
            ("engine", Some("auto")) => self.engine = DiskEngine::Auto,
            ("engine", Some("io_uring")) => self.engine = DiskEngine::IoUring,
            ("engine", Some("sync")) => self.engine = DiskEngine::Sync,
            ("engine", Some(value)) => return Err(ParseDiskError::Engine(value.to_owned())),
            ("bandwidth", Some(value)) => self.bandwidth = rate("bandwidth", value)?,
            ("ops", Some(value)) => self.operations = rate("ops", value)?,
            ("bandwidth-burst", Some(value)) => bursts.bandwidth = Some(value.to_owned()),
            ("ops-burst", Some(value)) => bursts.operations = Some(value.to_owned()),
            _ => return Err(ParseDiskError::Option(option.to_owned())),
        }
        Ok(())
    }
}

/// Bursts as they are written: they may come before the rates that they belong to.
#[derive(Default)]
struct Bursts {
    bandwidth: Option<String>,
    operations: Option<String>,
}

impl Bursts {
    fn apply(self, spec: &mut DiskSpec) -> Result<(), ParseDiskError> {
        for (burst, rate, names) in [
            (self.bandwidth, &mut spec.bandwidth, ("bandwidth-burst", "bandwidth")),
            (self.operations, &mut spec.operations, ("ops-burst", "ops")),
        ] {
            let Some(text) = burst else { continue };
            match (rate, rate::parse_amount(&text)) {
                (Some(rate), Some(burst)) => rate.burst = Some(burst),
                _ => return Err(ParseDiskError::Burst(names.0, names.1)),
            }
        }
        Ok(())
    }
}

impl TryFrom<OsString> for DiskSpec {
    type Error = ParseDiskError;

    /// `FILE[,OPTION]...`, as on the command line. Two commas in FILE stand for one.
    fn try_from(text: OsString) -> Result<Self, Self::Error> {
        let (path, options) = split_path(text.as_bytes());
        let mut spec = Self::new(OsString::from_vec(path));
        let mut bursts = Bursts::default();
        for option in
            options.map(|options| OsStr::from_bytes(options).to_string_lossy()).iter().flat_map(|o| o.split(','))
        {
            spec.set(option, &mut bursts)?;
        }
        bursts.apply(&mut spec)?;
        spec.check()?;
        Ok(spec)
    }
}

/// What comes before the first comma that stands alone, and what after it.
pub(super) fn split_path(text: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after.strip_prefix(b",")) {
            (b',', Some(after)) => after,
            (b',', None) => return (path, Some(after)),
            _ => after,
        };
        path.push(byte);
    }
    (path, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskSpec, ParseDiskError> {
        DiskSpec::try_from(OsString::from(text))
    }

    #[test]
    fn a_path_alone_is_a_writable_disk() {
        assert_eq!(parse("/a/b").unwrap(), DiskSpec::new("/a/b"));
        assert_eq!(parse("a,,b,,").unwrap().path, PathBuf::from("a,b,"));
        assert_eq!(parse("a,,,ro").unwrap(), DiskSpec { read_only: true, ..DiskSpec::new("a,") });
    }

    #[test]
    fn options_follow_the_path() {
        let number = |n| std::num::NonZeroU64::new(n).unwrap();
        let text = "d,ro,serial=S-1,engine=io_uring,direct,bandwidth-burst=1M,bandwidth=10M/s,ops=500/s";
        let expected = DiskSpec {
            path: "d".into(),
            read_only: true,
            serial: Some("S-1".to_owned()),
            engine: DiskEngine::IoUring,
            direct: true,
            bandwidth: Some(Rate { per_second: number(10 << 20), burst: Some(number(1 << 20)) }),
            operations: Some(Rate::new(number(500))),
        };
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "path"),
            (",ro", "path"),
            ("d,", "\"\""),
            ("d,rw", "rw"),
            ("d,ro=yes", "ro=yes"),
            ("d,serial=", "serial"),
            ("d,serial=123456789012345678901", "20"),
            ("d,serial=a b", "serial"),
            ("d,engine=fast", "io_uring"),
            ("d,ops=0/s", "ops"),
            ("d,bandwidth=much", "bandwidth"),
            ("d,ops-burst=5", "ops"),
            ("d,ops=5/s,ops-burst=x", "ops-burst"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
