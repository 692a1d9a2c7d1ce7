//! Doors for the fuzz targets; built for them only.

use std::io::{Read, Seek, Write};
use std::path::Path;

use amphi_guest_init::InitSpec;

use super::initramfs::Initramfs;
use super::layer::{Conversion, Layer, convert};
use super::manifest::{Config, Document};
use super::tree::Tree;
use super::{Digest, ImageName, erofs};

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

/// The file system that a layer becomes, once over others and once as the lowest; `None` where it is refused. The layer is
/// taken for what it is, whatever that may be.
#[must_use]
pub fn convert_layer(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for conversion in [Conversion::Single, Conversion::Flattened] {
        let mut file = tempfile::tempfile_in("/dev/shm").ok()?;
        file.write_all(bytes).ok()?;
        file.rewind().ok()?;
        // Small, so that bombs are refused soon.
        let layer = Layer { file, size: bytes.len() as u64, diff_id: None };
        let mut image = tempfile::tempfile_in("/dev/shm").ok()?;
        convert(vec![layer], conversion, &image).ok()?;
        image.rewind().ok()?;
        image.read_to_end(&mut all).ok()?;
    }
    Some(all)
}

/// Reads bytes as each of the documents that images are described by; what can be read must be usable.
pub fn read_documents(bytes: &[u8]) {
    for media_type in ["", "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"] {
        match Document::parse(bytes, media_type) {
            Ok(Document::Index(index)) => drop(index.choose()),
            Ok(Document::Manifest(manifest)) => drop(Config::parse(bytes, &manifest)),
            Err(error) => drop(error.to_string()),
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(name) = text.parse::<ImageName>() {
            assert_eq!(name.to_string().parse(), Ok(name), "a name survives being written");
        }
        drop(text.parse::<Digest>());
        super::registry::read_challenge(text);
    }
}
