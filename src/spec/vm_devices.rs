//! Devices that a microVM has only where they are asked for.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Balloon, DiskSpec, PmemSpec, SpecError, Watchdog, WatchdogAction};

/// The devices of a microVM beyond those that every one has. A container has no devices of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDevices {
    /// Disks beside the root, in the order in which the guest sees them: after the root's own, if that is on a disk.
    pub disks: Vec<DiskSpec>,
    /// Files as persistent memory, in the order in which the guest sees them.
    pub pmem: Vec<PmemSpec>,
    /// A socket device.
    pub vsock: Option<Vsock>,
    /// A memory balloon.
    pub balloon: Option<Balloon>,
    /// A watchdog.
    pub watchdog: Option<Watchdog>,
    /// Whether there is an identifier by which the guest learns that it goes on as another machine.
    pub generation_id: bool,
}

impl VmDevices {
    /// The option that asks for the first of these devices; `None` where none is asked for.
    pub(crate) fn first_option(&self) -> Option<&'static str> {
        [
            ("--disk", !self.disks.is_empty()),
            ("--pmem", !self.pmem.is_empty()),
            ("--vsock", self.vsock.is_some()),
            ("--balloon", self.balloon.is_some()),
            ("--watchdog", self.watchdog.is_some()),
            ("--generation-id", self.generation_id),
        ]
        .into_iter()
        .find_map(|(option, asked)| asked.then_some(option))
    }

    /// Refuses devices whose settings make no sense.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        for disk in &self.disks {
            disk.check().map_err(|source| SpecError::Disk { path: disk.path.clone(), source })?;
        }
        Ok(())
    }

    /// What the guest's kernel has to be told on its command line for these devices to have their effect.
    pub(crate) fn kernel_arguments(&self) -> Vec<String> {
        let mut arguments = self.module_parameters();
        // Of an interrupt whose reason it cannot find out, it would only complain.
        if self.watchdog.is_some_and(|watchdog| watchdog.action == WatchdogAction::Panic) {
            arguments.push("unknown_nmi_panic".to_owned());
        }
        arguments
    }

    /// What the modules of these devices have to be told where they are no part of the kernel: `MODULE.PARAMETER=VALUE`.
    pub(crate) fn module_parameters(&self) -> Vec<String> {
        // The driver sets 30 seconds otherwise.
        self.watchdog.iter().map(|watchdog| format!("wdat_wdt.timeout={}", watchdog.seconds)).collect()
    }

    /// The kernel modules that drive these devices, for kernels that have them as modules.
    pub(crate) fn modules(&self) -> Vec<&'static str> {
        let mut modules = Vec::new();
        if !self.disks.is_empty() {
            modules.push("virtio_blk");
        }
        if !self.pmem.is_empty() {
            modules.extend(["virtio_pmem", "nd_pmem"]);
        }
        if self.vsock.is_some() {
            modules.push("vmw_vsock_virtio_transport");
        }
        if self.balloon.is_some() {
            modules.push("virtio_balloon");
        }
        if self.watchdog.is_some() {
            modules.push("wdat_wdt");
        }
        if self.generation_id {
            modules.push("vmgenid");
        }
        modules
    }
}

/// Sockets between programs of the host and of the guest (`vsock(7)`).
///
/// A program of the host that connects to `path` and writes `CONNECT PORT` and a line end reaches what listens at PORT in
/// the guest; `OK` and a number tell that it is connected. A guest that connects to port PORT of CID 2 reaches what listens
/// at `path` with `_PORT` behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    path: PathBuf,
    cid: u32,
}

/// Why a text is not a [`Vsock`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VsockError {
    /// The path is empty, too long for a socket's address, or holds a NUL byte.
    #[error("{0:?} is not a path for a socket: it has 1 to 96 bytes, which leaves room for the number of a port")]
    Path(PathBuf),
    /// Not a context identifier that a guest may have.
    #[error("cid={0} is not a guest's address: use a number from 3 to 4294967294")]
    Cid(String),
}

impl Vsock {
    /// The context identifier of a guest for which none is named.
    pub const DEFAULT_CID: u32 = 3;
    /// The longest path: what a socket's address holds (`sun_path`), less its end and `_4294967295`.
    const PATH_MAX: usize = 96;

    /// A socket device with the host's socket at `path`, for a guest whose context identifier is `cid`.
    ///
    /// # Errors
    /// The path does not fit in a socket's address, or the identifier is reserved (0 to 2, and 4294967295).
    pub fn new(path: impl Into<PathBuf>, cid: u32) -> Result<Self, VsockError> {
        let path = path.into();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() || bytes.len() > Self::PATH_MAX || bytes.contains(&0) {
            return Err(VsockError::Path(path));
        }
        if !(3..u32::MAX).contains(&cid) {
            return Err(VsockError::Cid(cid.to_string()));
        }
        Ok(Self { path, cid })
    }

    /// The path of the host's socket.
    #[must_use]
    pub const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The guest's context identifier.
    #[must_use]
    pub const fn cid(&self) -> u32 {
        self.cid
    }
}

impl FromStr for Vsock {
    type Err = VsockError;

    /// `PATH[,cid=N]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, cid) = match text.rsplit_once(",cid=") {
            Some((path, cid)) => (path, cid.parse().map_err(|_| VsockError::Cid(cid.to_owned()))?),
            None => (text, Self::DEFAULT_CID),
        };
        Self::new(path, cid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_found_and_has_its_modules() {
        assert_eq!(VmDevices::default().first_option(), None);
        assert!(VmDevices::default().modules().is_empty());
        let devices = VmDevices { balloon: Some(Balloon::new()), ..VmDevices::default() };
        assert_eq!((devices.first_option(), devices.modules()), (Some("--balloon"), vec!["virtio_balloon"]));
    }

    #[test]
    fn a_socket_is_a_path_and_perhaps_an_address() {
        let parse = |text: &str| text.parse::<Vsock>();
        assert_eq!(parse("/run/v").unwrap(), Vsock::new("/run/v", 3).unwrap());
        assert_eq!(parse("a,b,cid=42").unwrap(), Vsock::new("a,b", 42).unwrap());
        for cid in ["2", "4294967295", "", "x", "-1"] {
            assert_eq!(parse(&format!("/run/v,cid={cid}")), Err(VsockError::Cid(cid.to_owned())));
        }
        for path in ["", "a\0b", &"a".repeat(97)] {
            assert_eq!(parse(path), Err(VsockError::Path(path.into())));
        }
        assert!(parse(&"a".repeat(96)).is_ok());
    }
}
