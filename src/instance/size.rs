//! How much of the disk an instance takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::spec::WritableLayer;

/// What is allocated for the writable layer in an instance's folder, in bytes. Files with several names count once for each.
pub(super) fn of(folder: &Path) -> u64 {
    if let Ok(metadata) = fs::symlink_metadata(folder.join(WritableLayer::FILE)) {
        return metadata.blocks() * 512;
    }
    let mut size = 0;
    let mut pending = vec![folder.join("upper")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            size += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    size
}
