//! Root file systems that a microVM gets as a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Amphi, Case, Isolation, both, rootfs, vm};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = both("a_root_too_large_for_the_initramfs", a_root_too_large_for_the_initramfs);
    cases.push(vm("a_disk_keeps_what_is_written", a_disk_keeps_what_is_written));
    cases.push(vm("a_read_only_disk_refuses_writes", a_read_only_disk_refuses_writes));
    cases
}

/// A copy of the busybox root in `folder`, with room to add to it.
fn copied_root(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    let copied = Command::new("cp").arg("-a").arg(rootfs::busybox()).arg(&root).status().unwrap();
    assert!(copied.success());
    root
}

fn a_root_too_large_for_the_initramfs(isolation: Isolation) {
    let folder = tempfile::tempdir().unwrap();
    let root = copied_root(folder.path());
    let large: Vec<u8> = (0..20_u32 << 18).flat_map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    fs::write(root.join("large"), &large).unwrap();
    let image = format!("dir:{}", root.display());
    let script = "sha256sum /large | cut -c 1-64; echo more >>/large && wc -c </large; touch /new && ls /new";
    let finished = Amphi::run_image(isolation, image.as_ref(), ["/bin/sh", "-c", script]).finish().expect(0);
    let sum = Command::new("sha256sum").arg(root.join("large")).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    assert_eq!(finished.text(), format!("{}\n{}\n/new", &sum[..64], large.len() + 5), "{finished}");
    assert_eq!(fs::metadata(root.join("large")).unwrap().len(), large.len() as u64, "the image was written to");
    assert!(!root.join("new").exists(), "the image was written to");
}

fn a_disk_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = rootfs::ext4(folder.path());
    Amphi::run_image(Isolation::Vm, disk.as_ref(), ["/bin/sh", "-c", "echo kept >/file"]).finish().expect(0);
    let finished = Amphi::run_image(Isolation::Vm, disk.as_ref(), ["/bin/cat", "/file"]).finish().expect(0);
    assert_eq!(finished.text(), "kept", "{finished}");
    let path = disk.strip_prefix("disk:").unwrap();
    let check = Command::new("/sbin/e2fsck").args(["-f", "-n", path]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

fn a_read_only_disk_refuses_writes() {
    let folder = tempfile::tempdir().unwrap();
    let disk = rootfs::ext4(folder.path());
    let before = fs::read(disk.strip_prefix("disk:").unwrap()).unwrap();
    Amphi::run_image(Isolation::Vm, disk.as_ref(), ["/bin/sh", "-c", "touch /file || exit 9"])
        .with(["--read-only"])
        .finish()
        .expect(9);
    assert!(fs::read(disk.strip_prefix("disk:").unwrap()).unwrap() == before, "the disk was written to");
}
