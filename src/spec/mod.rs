//! What to run and within which limits: validated, immutable, the same for both isolations.

mod balloon;
mod builder;
mod checks;
mod disk;
mod error;
mod network;
mod pmem;
mod rate;
mod resources;
mod short_id;
mod text;
mod vm_devices;
mod volume;
mod watchdog;
mod writable;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use balloon::{Balloon, ParseBalloonError};
pub use builder::RunSpecBuilder;
pub(crate) use checks::{check_kernel_argument, check_memory, check_network, host_memory};
pub use disk::{DiskEngine, DiskSpec, ParseDiskError};
pub use error::SpecError;
pub use network::{
    Link, LinkLimits, MacAddress, Network, ParseMacError, ParseNetworkError, ParsePortError, PortMapping, Protocol,
    TapNetwork, UserNetwork,
};
pub use pmem::{ParsePmemError, PmemSpec};
pub use rate::{ParseRateError, Rate};
pub use resources::{CpuLimit, MemorySize, ParseCpuLimitError, ParseMemorySizeError};
pub(crate) use short_id::short_id;
pub use vm_devices::{VmDevices, Vsock, VsockError};
pub use volume::{Volume, VolumeError};
pub use watchdog::{ParseWatchdogError, Watchdog, WatchdogAction};
pub use writable::{ParseStorageOptionError, StorageOption, WritableLayer};

use crate::image::Rootfs;

/// Everything an isolation needs to run one workload.
///
/// Written with serde it is without its root file system and the folder of a kept layer, which whoever reads it has to open anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunSpec {
    /// The tree, disk or built-in image that becomes the workload's `/`.
    #[serde(skip, default = "Rootfs::nowhere")]
    pub rootfs: Rootfs,
    /// The process to run in it.
    pub process: Process,
    /// The host name inside; twelve random hexadecimal digits where the caller names none.
    pub hostname: String,
    /// Whether `/` refuses writes.
    pub read_only: bool,
    /// Where writes to `/` go.
    pub writable: WritableLayer,
    /// The workload's limits.
    pub resources: Resources,
    /// The network that the workload is in.
    pub network: Network,
    /// Directories and files of the host that the workload sees; those whose paths lead through others' come later.
    pub volumes: Vec<Volume>,
    /// Settings that only a microVM has.
    pub vm: VmOptions,
}

/// The workload's process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; never empty. A program without a slash is looked up in `PATH`.
    #[serde(with = "text::list")]
    pub argv: Vec<OsString>,
    /// Environment beyond the defaults (`PATH`, `HOME`, `HOSTNAME`, `TERM` with a terminal).
    #[serde(with = "text::pairs")]
    pub env: Vec<(OsString, OsString)>,
    /// Working directory; made if it does not exist.
    pub cwd: PathBuf,
    /// `NAME|UID[:GROUP|GID]`, looked up in the root file system's own `/etc/passwd` and `/etc/group`; `None` is root.
    pub user: Option<String>,
    /// Whether the process gets a pseudo-terminal; standard error then comes out of standard output.
    pub terminal: Option<WindowSize>,
    /// Whether standard input is connected; otherwise the process reads end-of-file.
    pub stdin: bool,
}

/// The size of a terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The workload's limits.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Resources {
    /// vCPUs of a microVM, or the CPU bandwidth of a container's cgroup. `None`: one vCPU, or no limit.
    pub cpus: Option<CpuLimit>,
    /// Guest RAM of a microVM, or the memory limit of a container's cgroup. `None`: 256 MiB, or no limit.
    pub memory: Option<MemorySize>,
    /// The most processes and threads that the workload may have.
    pub pids: Option<u32>,
}

/// Settings that only a microVM has. A container run refuses all of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VmOptions {
    /// A kernel file, or the name of an installed kernel; `None` takes the best one installed.
    pub kernel: Option<PathBuf>,
    /// Arguments added at the end of the kernel's command line.
    pub kernel_args: Vec<String>,
    /// Devices beyond those that every microVM has.
    pub devices: VmDevices,
}
