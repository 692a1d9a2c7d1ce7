//! What each setting must be, and what must fit together.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{MemorySize, Network, Process, SpecError, Volume, WritableLayer};
use crate::image::Rootfs;

/// The longest host name that Linux takes (`HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

pub(super) fn check_process(process: &Process) -> Result<(), SpecError> {
    if process.argv.first().is_none_or(|command| command.is_empty()) {
        return Err(SpecError::NoCommand);
    }
    let no_nul = |what, text: &OsStr| match text.as_bytes().contains(&0) {
        true => Err(SpecError::Nul { what, text: text.to_owned() }),
        false => Ok(()),
    };
    process.argv.iter().try_for_each(|argument| no_nul("argument", argument))?;
    for (name, value) in &process.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(SpecError::EnvironmentName(name.clone()));
        }
        no_nul("environment variable", name)?;
        no_nul("environment value", value)?;
    }
    no_nul("working directory", process.cwd.as_os_str())?;
    if !process.cwd.is_absolute() {
        return Err(SpecError::RelativeCwd(process.cwd.clone()));
    }
    match &process.user {
        Some(user) if user.contains('\0') || user.split(':').count() > 2 || user.split(':').any(str::is_empty) => {
            Err(SpecError::User(user.clone()))
        }
        _ => Ok(()),
    }
}

/// A disk has no layer above it.
pub(super) fn check_writable(rootfs: &Rootfs, writable: &WritableLayer) -> Result<(), SpecError> {
    match rootfs {
        Rootfs::Disk(_) if writable.limit.is_some() => Err(SpecError::LimitOfDisk),
        Rootfs::Disk(path) if writable.folder.is_some() => Err(SpecError::LayerOfDisk(path.clone())),
        _ => Ok(()),
    }
}

/// Checks volumes, and puts those first that others lie in.
pub(super) fn check_volumes(volumes: &mut [Volume]) -> Result<(), SpecError> {
    for volume in &mut *volumes {
        volume.check().map_err(|problem| SpecError::Volume { path: volume.source.clone(), problem })?;
    }
    volumes.sort_by_key(Volume::depth);
    let mut seen = HashSet::new();
    match volumes.iter().find(|volume| !seen.insert(&volume.destination)) {
        Some(volume) => Err(SpecError::SameDestination(volume.destination.clone())),
        None => Ok(()),
    }
}

pub(super) fn is_hostname(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= HOSTNAME_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && !name.contains("..")
}

/// Refuses more memory than there is `available`, in bytes, where that is known.
pub(crate) fn check_memory(wanted: MemorySize, available: Option<u64>) -> Result<(), SpecError> {
    match available {
        Some(available) if wanted.bytes() > available => {
            // Whole mebibytes of a number of bytes that came from an u64 fit; a host has at least one.
            let mib = u32::try_from(available >> 20).unwrap_or(u32::MAX);
            Err(SpecError::Memory { wanted, available: MemorySize::from_mib(mib) })
        }
        _ => Ok(()),
    }
}

/// Refuses an argument that would break out of the kernel's command line.
pub(crate) fn check_kernel_argument(argument: &str) -> Result<(), SpecError> {
    if argument.is_empty() || argument.contains(['\n', '\0']) {
        return Err(SpecError::KernelArgument(argument.to_owned()));
    }
    Ok(())
}

/// Refuses a network whose settings make no sense together.
pub(crate) fn check_network(network: &Network) -> Result<(), SpecError> {
    network.check().map_err(SpecError::Network)
}

/// All memory of the host in bytes, where the kernel says it.
pub(crate) fn host_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    info.totalram.checked_mul(u64::from(info.mem_unit)).filter(|&bytes| bytes > 0)
}
