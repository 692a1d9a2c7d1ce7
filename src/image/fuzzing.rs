//! Doors for the fuzz targets; built for them only.

use std::io::{Read, Seek};
use std::path::Path;

use amphi_guest_init::InitSpec;

use super::erofs;
use super::initramfs::Initramfs;
use super::tree::Tree;

/// The initramfs with the tree in `root`, and the length that was announced; `None` where there is none.
#[must_use]
pub fn write_initramfs(root: &Path) -> Option<(Vec<u8>, u64)> {
    let mut archive = Vec::new();
    let initramfs = Initramfs::new(&InitSpec::default(), &[], Some(Tree::scan(root).ok()?)).ok()?;
    initramfs.write_to(&mut archive).ok()?;
    Some((archive, initramfs.len()))
}

/// The EROFS image of the tree in `root`; `None` where there is none.
#[must_use]
pub fn write_erofs(root: &Path) -> Option<Vec<u8>> {
    let mut image = Vec::new();
    let mut file = tempfile::tempfile_in("/dev/shm").ok()?;
    erofs::write(&Tree::scan(root).ok()?, &file).ok()?;
    file.rewind().ok()?;
    file.read_to_end(&mut image).ok()?;
    Some(image)
}
