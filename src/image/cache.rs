//! EROFS images of directories, kept so that a directory is packed once and not at each run.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::erofs::{self, ErofsError};
use super::tree::Tree;

/// How many images are kept, the most recently used ones.
const KEPT: usize = 16;
/// Part of an image's name, so that images of an older layout are not taken for those of this one.
const LAYOUT: &[u8] = b"amphi erofs 1";
const SUFFIX: &str = ".erofs";
const TEMPORARY: &str = ".new-";

/// Why there is no image of a directory.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be packed.
    #[error("cannot make a disk image of {directory}", directory = directory.display())]
    Pack {
        /// The directory.
        directory: PathBuf,
        /// What is in the way.
        source: ErofsError,
    },
    /// The cache cannot be used.
    #[error("cannot use {path} to keep a disk image", path = path.display())]
    Use {
        /// The file in the cache.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// An image of `tree`, open for reading: a kept one, or one that is made now and kept in the directory `cache`.
pub(super) fn image_of(tree: &Tree, cache: &Path) -> Result<File, CacheError> {
    let path = cache.join(fingerprint(tree) + SUFFIX);
    let used = |path: &Path, source| CacheError::Use { path: path.to_owned(), source };
    if let Some(image) = kept(&path).map_err(|source| used(&path, source))? {
        return Ok(image);
    }
    fs::create_dir_all(cache).map_err(|source| used(cache, source))?;
    // One packs at a time. Whoever waits for the same directory finds it packed then.
    let lock = cache.join("lock");
    let _lock =
        File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(|source| used(&lock, source))?;
    if let Some(image) = kept(&path).map_err(|source| used(&path, source))? {
        return Ok(image);
    }
    prune(cache).map_err(|source| used(cache, source))?;
    let new = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(cache);
    let new = new.map_err(|source| used(cache, source))?;
    erofs::write(tree, new.as_file())
        .map_err(|source| CacheError::Pack { directory: tree.path(&tree.nodes[0]), source })?;
    new.as_file().sync_all().map_err(|source| used(&path, source))?;
    new.persist(&path).map_err(|error| used(&path, error.error))?;
    File::open(&path).map_err(|source| used(&path, source))
}

/// The image at `path`, if there is one, marked as used now.
fn kept(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(image) => {
            // Only the order in which images are removed depends on it.
            let _ = image.set_modified(SystemTime::now());
            Ok(Some(image))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name that changes with anything in the tree: every change of a file shows in its times.
fn fingerprint(tree: &Tree) -> String {
    let mut hash = Sha256::new_with_prefix(LAYOUT);
    for node in &tree.nodes {
        let path = node.path.as_os_str().as_bytes();
        let metadata = &node.metadata;
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        for number in [metadata.ino(), metadata.nlink(), metadata.size(), metadata.rdev()] {
            hash.update(number.to_le_bytes());
        }
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            hash.update(number.to_le_bytes());
        }
        for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
            hash.update(number.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes room for one image, and removes what an amphi left that was killed while it packed. Runs that use an image
/// have it open and keep it.
fn prune(cache: &Path) -> io::Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_bytes();
        if name.starts_with(TEMPORARY.as_bytes()) {
            fs::remove_file(entry.path())?;
        } else if name.ends_with(SUFFIX.as_bytes()) {
            images.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    images.sort_unstable();
    let excess = (images.len() + 1).saturating_sub(KEPT);
    images.iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    fn identity(image: &File) -> (u64, u64) {
        let metadata = image.metadata().unwrap();
        (metadata.dev(), metadata.ino())
    }

    #[test]
    fn a_directory_is_packed_again_only_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, cache) = (dir.path().join("root"), dir.path().join("not/there"));
        fs::create_dir(&root).unwrap();
        fs::write(root.join("f"), "1").unwrap();
        let image = || identity(&image_of(&Tree::scan(&root).unwrap(), &cache).unwrap());
        let first = image();
        assert_eq!(image(), first);
        fs::set_permissions(root.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(image(), first);
    }

    #[test]
    fn what_was_not_used_for_long_goes_and_so_does_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let (root, cache) = (dir.path().join("root"), dir.path().join("cache"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&cache).unwrap();
        for n in 0..20 {
            let file = File::create(cache.join(format!("{n}.erofs"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(n)).unwrap();
        }
        File::create(cache.join(".new-abc")).unwrap();
        image_of(&Tree::scan(&root).unwrap(), &cache).unwrap();
        let left: Vec<_> =
            fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left.iter().filter(|name| name.ends_with(".erofs")).count(), KEPT);
        assert!(left.contains(&"19.erofs".to_owned()) && !left.contains(&"4.erofs".to_owned()));
        assert!(!left.contains(&".new-abc".to_owned()));
    }
}
