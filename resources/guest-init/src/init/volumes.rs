//! What of the host's file systems the workload sees.

use alloc::format;
use alloc::string::String;

use amphi_guest_init::Volume;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::failure::{Context, Failure};
use super::root::make_directories;

/// Where the directory around a file is mounted for a moment: in the guest's own memory.
const AROUND_FILE: &str = "/dev/.amphi-volume";
/// As in a container, what comes from the host gives nobody the rights of others, and has no devices in it.
const HARMLESS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounts them, in their order.
pub(super) fn mount_all(volumes: &[Volume]) -> Result<(), Failure> {
    for volume in volumes {
        let mounted = if volume.directory { mount_directory(volume) } else { mount_file(volume) };
        mounted.context(|| format!("cannot mount the volume at {}", String::from_utf8_lossy(&volume.destination)))?;
    }
    Ok(())
}

fn flags(volume: &Volume) -> MountFlags {
    if volume.read_only { HARMLESS | MountFlags::RDONLY } else { HARMLESS }
}

fn mount_directory(volume: &Volume) -> Result<(), Errno> {
    make_place(&volume.destination)?;
    mount(&*volume.tag, &*volume.destination, "virtiofs", flags(volume), None)
}

fn mount_file(volume: &Volume) -> Result<(), Errno> {
    make_file(&volume.destination)?;
    rustix::fs::mkdir(AROUND_FILE, Mode::from_raw_mode(0o700))?;
    let mounted = mount(&*volume.tag, AROUND_FILE, "virtiofs", flags(volume), None).and_then(|()| {
        let bound = mount_bind(format!("{AROUND_FILE}/{}", Volume::FILE_NAME), &*volume.destination)
            .and_then(|()| mount_remount(&*volume.destination, MountFlags::BIND | flags(volume), c""));
        unmount(AROUND_FILE, UnmountFlags::DETACH)?;
        bound
    });
    let _ = rustix::fs::rmdir(AROUND_FILE);
    mounted
}

/// Makes directories where it can: in a root that refuses writes, they have to be there.
fn make_place(path: &[u8]) -> Result<(), Errno> {
    make_directories(path).map_err(|errno| if errno == Errno::NOENT { Errno::ROFS } else { errno })
}

/// Makes sure that there is something other than a directory to mount a file on.
fn make_file(path: &[u8]) -> Result<(), Errno> {
    let parent = path.iter().rposition(|&byte| byte == b'/').map_or(&[][..], |end| &path[..end]);
    if !parent.is_empty() {
        make_place(parent)?;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let made = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::open(path, made, Mode::from_raw_mode(0o644)).map(drop)
        }
        other => other.map(drop),
    }
}
