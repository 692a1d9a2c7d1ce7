//! An initramfs made here: busybox and a script as PID 1.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::rootfs;

/// Tells the guest's PID 1 what to do: a word of the kernel's command line.
pub(crate) const DO: &str = "amphi_test";

/// PID 1: what it does is named on the kernel's command line.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /dev
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
exec </dev/console >/dev/console 2>&1
do=$(busybox sed 's/.*amphi_test=\([a-z]*\).*/\1/' /proc/cmdline)
echo "init: $do on $(busybox uname -r), $(busybox grep -c ^processor /proc/cpuinfo) processors"
case $do in
  poweroff) busybox poweroff -f ;;
  reboot) busybox reboot -f ;;
  panic) exit 1 ;;
  disk) busybox cat /dev/vda; busybox poweroff -f ;;
  echo) read -r line; echo "read: $line"; busybox poweroff -f ;;
esac
busybox sleep 1000
"#;

/// Writes the initramfs to a folder of its own.
pub(crate) fn write() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initramfs.cpio");
    let busybox = fs::read(rootfs::busybox_program()).unwrap();
    let mut archive = Vec::new();
    let entries: [(&str, u32, &[u8]); 7] = [
        ("bin", 0o040_755, b""),
        ("bin/busybox", 0o100_755, &busybox),
        ("bin/sh", 0o120_777, b"busybox"),
        ("dev", 0o040_755, b""),
        ("proc", 0o040_755, b""),
        ("init", 0o100_755, INIT.as_bytes()),
        ("TRAILER!!!", 0, b""),
    ];
    for (inode, (name, mode, data)) in (1..).zip(entries) {
        append(&mut archive, inode, name, mode, (0, 0), data);
        if name == "dev" {
            // Before devtmpfs is mounted, and in kernels without it.
            append(&mut archive, 100, "dev/console", 0o020_600, (5, 1), b"");
        }
    }
    fs::write(&path, archive).unwrap();
    (folder, path)
}

/// One entry in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).
fn append(archive: &mut Vec<u8>, inode: u32, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let size = u32::try_from(data.len()).unwrap();
    let name_size = u32::try_from(name.len()).unwrap() + 1;
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
