//! Layers, EROFS files, as detached mounts: straight from the file where the kernel can (Linux 6.12), else over a loop
//! device that goes with the mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::launch::above_standard;
use crate::image::store::LayerStack;

/// `linux/loop.h`
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often another free loop device is asked for, when somebody else has been faster.
const ATTEMPTS: usize = 50;

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// Mounts of all layers, the lowest first.
pub(super) fn mount(stack: &LayerStack) -> io::Result<Vec<OwnedFd>> {
    stack.files.iter().map(|layer| Ok(above_standard(mount_file(&layer.file)?)?)).collect()
}

fn mount_file(file: &File) -> io::Result<OwnedFd> {
    match mount_source(&format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Err(Errno::NOTBLK) => {}
        other => return Ok(other?),
    }
    let (device, path) = attach(file, LO_FLAGS_READ_ONLY)?;
    let mount = mount_source(&path)?;
    // The mount keeps it from here on.
    drop(device);
    Ok(mount)
}

fn mount_source(source: &str) -> Result<OwnedFd, Errno> {
    let context = fsopen(c"erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", source)?;
    fsconfig_set_flag(&context, c"ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A mount of the ext4 file system in `file`, which can be written to. As long as it is mounted, `file` counts as open.
pub(super) fn mount_disk(file: &File) -> io::Result<OwnedFd> {
    let (device, path) = attach(file, 0)?;
    let context = fsopen(c"ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", &*path)?;
    // What is deleted makes the file smaller again.
    fsconfig_set_flag(&context, c"discard")?;
    fsconfig_create(&context)?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    // The mount keeps it from here on.
    drop(device);
    Ok(above_standard(mount)?)
}

/// A loop device with the file, and its path. It is free again when nobody has it open or mounted.
fn attach(file: &File, flags: u32) -> io::Result<(File, String)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: flags | LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    for _ in 0..ATTEMPTS {
        // SAFETY: the descriptor is open, and the call takes no memory.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(flags & LO_FLAGS_READ_ONLY == 0).open(&path)?;
        // SAFETY: the descriptor is open, and `config` is what the call reads.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok((device, path));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EBUSY) => {}
            error => return Err(error),
        }
    }
    Err(io::Error::other("no loop device is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
