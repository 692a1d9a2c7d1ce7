//! A machine's disks: opened when it is planned, made into devices when it is built.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use amphi_devices::rate_limiter::{self, RateLimits};
use amphi_devices::virtio::block::{Block, Engine};

use super::error::VmError;
use crate::image;
use crate::spec::{DiskEngine, DiskSpec, Rate};

/// A disk that is open, and locked as long as it is.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// The same past the page cache, where that is wanted.
    direct: Option<File>,
    spec: DiskSpec,
}

impl Disk {
    /// The root's disk.
    pub(super) fn root(file: File, read_only: bool) -> Self {
        Self { file, direct: None, spec: DiskSpec { read_only, ..DiskSpec::new("") } }
    }

    /// Opens a disk of the user's.
    pub(super) fn open(spec: &DiskSpec) -> Result<Self, VmError> {
        let file = image::open_disk(&spec.path, spec.read_only).map_err(VmError::Disk)?;
        let direct = spec.direct.then(|| open_direct(&file, spec.read_only)).transpose();
        let direct = direct.map_err(|source| option_error(spec, "direct", source))?;
        Ok(Self { file, direct, spec: spec.clone() })
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let direct = self.direct.as_ref().map(File::try_clone).transpose()?;
        Ok(Self { file: self.file.try_clone()?, direct, spec: self.spec.clone() })
    }

    /// The device, as the guest's disk number `index`.
    pub(super) fn device(self, index: usize) -> Result<Block, VmError> {
        let Self { file, direct, spec } = self;
        let failed = || VmError::host("make a disk");
        let serial = spec.serial.clone().unwrap_or_else(|| format!("amphi{index}"));
        let mut block = Block::new(file, spec.read_only, &serial).map_err(failed())?;
        // Past the page cache every request waits for the host's device, and only `io_uring` waits for many at a time. What is
        // in the cache costs less on the spot (docs/benchmarks.md).
        let engine = match (spec.engine, &direct) {
            (DiskEngine::IoUring, _) => Engine::IoUring,
            (DiskEngine::Auto, Some(_)) => Engine::PreferIoUring,
            (DiskEngine::Auto, None) | (DiskEngine::Sync, _) => Engine::Sync,
        };
        if let Some(direct) = direct {
            block = block.with_direct(direct);
        }
        if spec.bandwidth.is_some() || spec.operations.is_some() {
            let limits =
                RateLimits { bandwidth: spec.bandwidth.map(Into::into), operations: spec.operations.map(Into::into) };
            block = block.with_limits(limits).map_err(failed())?;
        }
        block.with_engine(engine).map_err(|source| option_error(&spec, "engine=io_uring", source))
    }
}

/// Opens `file` once more, whatever has become of its name.
fn open_direct(file: &File, read_only: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(!read_only).custom_flags(libc::O_DIRECT).open(path)
}

fn option_error(spec: &DiskSpec, option: &'static str, source: io::Error) -> VmError {
    VmError::DiskOption { path: spec.path.clone(), option, source }
}

impl From<Rate> for rate_limiter::Rate {
    fn from(rate: Rate) -> Self {
        let with_default = Self::new(rate.per_second);
        Self { burst: rate.burst.unwrap_or(with_default.burst), ..with_default }
    }
}
