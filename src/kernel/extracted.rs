//! The uncompressed forms of users' own bzImages.
//!
//! `extracted/HASH` is the kernel inside the bzImage with that SHA-256; `extracted/by-file/ID` is a symbolic link
//! to it, with the identity and the times of the bzImage as its name, so that a second boot does not read the file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::format::BzImage;
use super::payload;
use super::store::{Store, hex};
use super::{Format, KernelError};

/// Larger than any bzImage, in bytes.
const BZ_IMAGE_MAX: u64 = 512 << 20;

/// The uncompressed form of the bzImage in `file`, from the cache where it is there.
pub(super) fn extracted(store: &Store, file: &File, path: &Path, header: &BzImage) -> Result<PathBuf, KernelError> {
    let meta = file.metadata().map_err(KernelError::read(path))?;
    let directory = store.extracted();
    let by_file = directory.join("by-file");
    let (dev, ino, len) = (meta.dev(), meta.ino(), meta.len());
    let (mtime, ctime) = (meta.mtime(), meta.ctime());
    let (mtime_ns, ctime_ns) = (meta.mtime_nsec(), meta.ctime_nsec());
    let link = by_file.join(format!("{dev:x}-{ino:x}-{len}-{mtime}.{mtime_ns}-{ctime}.{ctime_ns}"));
    if let Ok(target) = fs::read_link(&link) {
        if let Some(cached) = target.file_name().map(|name| directory.join(name)).filter(|p| p.is_file()) {
            return Ok(cached);
        }
        fs::remove_file(&link).map_err(KernelError::store("remove", &link))?;
    }

    fs::create_dir_all(&by_file).map_err(KernelError::store("create", &by_file))?;
    let bytes = read_whole(file, path, len)?;
    let name = hex(&Sha256::digest(&bytes));
    let place = directory.join(&name);
    if !place.is_file() {
        let mut temporary = tempfile::Builder::new()
            .prefix(".part-")
            .tempfile_in(&directory)
            .map_err(KernelError::store("create a file in", &directory))?;
        extract_to(&bytes, path, header, temporary.as_file_mut())?;
        Format::recognise(temporary.as_file(), path)?;
        temporary.as_file().sync_all().map_err(KernelError::store("write", &place))?;
        temporary.persist(&place).map_err(|e| KernelError::store("create", &place)(e.error))?;
    }
    match symlink(Path::new("..").join(&name), &link) {
        Ok(()) => {}
        // Somebody else was as quick, and theirs says the same.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(KernelError::store("create", &link)(e)),
    }
    Ok(place)
}

/// Writes the uncompressed form of the bzImage in `bytes` to `out`. `path` only names it in errors.
pub(super) fn extract_to(bytes: &[u8], path: &Path, header: &BzImage, out: &mut File) -> Result<(), KernelError> {
    let range = usize::try_from(header.payload_offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(usize::try_from(header.payload_len).ok()?)?));
    let body = range
        .and_then(|range| bytes.get(range))
        .ok_or_else(|| KernelError::not_bootable(path, "the bzImage is cut short; copy or download it again"))?;
    let mut writer = BufWriter::with_capacity(1 << 20, out);
    payload::extract(header.compression, body, &mut writer).and_then(|_| writer.flush()).map_err(|source| {
        KernelError::Payload { path: path.to_owned(), compression: header.compression.name(), source }
    })
}

/// All of a bzImage's file.
pub(super) fn read_whole(file: &File, path: &Path, len: u64) -> Result<Vec<u8>, KernelError> {
    if len > BZ_IMAGE_MAX {
        return Err(KernelError::not_bootable(path, "it is larger than any kernel"));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(KernelError::read(path))?;
    Ok(bytes)
}
