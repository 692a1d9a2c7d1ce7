//! Removing what no image needs.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::builds::{BUILDS, BuiltStep};
use super::layers::{chain_ids, chain_name, flattened_name, over_name, single_name};
use super::{Store, StoreError};

/// Something that no image needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// Where it is.
    pub path: PathBuf,
    /// How much of the disk it takes, in bytes.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// What a piece of garbage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A blob of a registry.
    Blob,
    /// A layer as a file system.
    Layer,
    /// An image unpacked to a folder.
    Tree,
    /// What is known of a step of a build.
    Build,
    /// What was not completed.
    Incoming,
}

impl Store {
    /// What neither a name nor an instance leads to, those instances left out whose IDs are given, and steps of builds with them.
    /// Nothing is removed.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn garbage(&self, gone: &[String]) -> Result<Vec<Garbage>, StoreError> {
        let _hold = self.hold()?;
        self.find_garbage(gone, false)
    }

    /// Removes what neither a name, an instance nor a step of a build leads to, and returns what that was; nothing where somebody adds
    /// to the store just then (`None`). What instances have open stays theirs.
    ///
    /// # Errors
    /// The store cannot be read, or something not be removed.
    pub fn collect(&self) -> Result<Option<Vec<Garbage>>, StoreError> {
        let lock = self.lock_file("lock")?;
        match lock.try_lock() {
            Ok(()) => self.remove_garbage(true).map(Some),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::of("lock", &self.root.join("lock"))(error)),
        }
    }

    /// Removes what neither a name nor an instance leads to, what steps of builds have made with it, and returns what that was. Waits
    /// until nobody adds anything. What instances have open stays theirs.
    ///
    /// # Errors
    /// The store cannot be read, or something not be removed.
    pub fn prune(&self) -> Result<Vec<Garbage>, StoreError> {
        let lock = self.lock_file("lock")?;
        lock.lock().map_err(StoreError::of("lock", &self.root.join("lock")))?;
        self.remove_garbage(false)
    }

    /// With the store's lock held.
    fn remove_garbage(&self, keep_builds: bool) -> Result<Vec<Garbage>, StoreError> {
        let mut removed = Vec::new();
        for garbage in self.find_garbage(&[], keep_builds)? {
            if garbage.kind == Kind::Tree || garbage.kind == Kind::Incoming {
                // Whoever uses a tree, or writes, has it locked.
                let lock = File::open(&garbage.path).map_err(StoreError::of("open", &garbage.path))?;
                if lock.try_lock().is_err() {
                    continue;
                }
                self.remove(&garbage)?;
            } else {
                self.remove(&garbage)?;
            }
            removed.push(garbage);
        }
        Ok(removed)
    }

    fn remove(&self, garbage: &Garbage) -> Result<(), StoreError> {
        let failed = StoreError::of("remove", &garbage.path);
        if garbage.kind != Kind::Tree {
            return fs::remove_file(&garbage.path).map_err(failed);
        }
        // A tree must not be found half removed.
        let name = format!("removed-{}", garbage.path.file_name().unwrap_or_default().to_string_lossy());
        let aside = self.root.join("incoming").join(name);
        let moved = fs::rename(&garbage.path, &aside).map(|()| make_writable(&aside));
        moved.and_then(|()| fs::remove_dir_all(&aside)).map_err(failed)
    }

    fn find_garbage(&self, gone: &[String], keep_builds: bool) -> Result<Vec<Garbage>, StoreError> {
        let (mut blobs, mut layers, mut trees) = (HashSet::new(), HashSet::new(), HashSet::new());
        let mut chains = HashSet::new();
        let used = self.users()?.into_iter().filter(|user| !gone.contains(&user.id)).map(|user| user.manifest);
        for root in self.roots()?.into_iter().chain(used) {
            let image = self.image(&root)?;
            blobs.extend([root.digest.hex(), image.descriptor.digest.hex(), image.manifest.config.digest.hex()]);
            blobs.extend(image.manifest.layers.iter().map(|layer| layer.digest.hex()));
            let diff_ids = &image.config.rootfs.diff_ids;
            for diff_id in diff_ids {
                layers.extend([single_name(*diff_id), format!("{}.implied", diff_id.hex())]);
            }
            let chain = chain_ids(diff_ids);
            layers.extend(chain.iter().map(|id| over_name(*id)));
            layers.extend(flattened_name(diff_ids));
            chains.extend(chain.iter().copied());
            trees.extend(chain.last().map(super::super::Digest::hex));
        }
        let builds = self.built_steps()?;
        if keep_builds {
            for step in builds.values().flatten() {
                if let Some(layer) = &step.built.layer {
                    blobs.insert(layer.descriptor.digest.hex());
                    layers.insert(single_name(layer.diff_id));
                }
                layers.extend([chain_name(step.chain), over_name(step.chain)]);
                trees.insert(step.chain.hex());
            }
        }
        // A step stays as long as what it has made.
        let is_useful = |step: &BuiltStep| match &step.built.layer {
            Some(layer) => blobs.contains(&layer.descriptor.digest.hex()) && self.has(&layer.descriptor),
            None => keep_builds || chains.contains(&step.chain),
        };
        let builds = builds.into_iter().filter(|(_, step)| step.as_ref().is_some_and(is_useful));
        let builds: HashSet<String> = builds.map(|(name, _)| name).collect();
        let mut garbage = Vec::new();
        let none = HashSet::new();
        for (folder, kept, kind) in [
            ("blobs/sha256", &blobs, Kind::Blob),
            ("layers", &layers, Kind::Layer),
            ("trees", &trees, Kind::Tree),
            (BUILDS, &builds, Kind::Build),
            ("incoming", &none, Kind::Incoming),
        ] {
            let folder = self.root.join(folder);
            let entries = match fs::read_dir(&folder) {
                // A store of before there were builds.
                Err(error) if kind == Kind::Build && error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(StoreError::of("read", &folder))?,
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::of("read", &folder))?;
                let path = entry.path();
                if entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                    continue;
                }
                // It may have been completed meanwhile.
                let Ok(metadata) = entry.metadata() else { continue };
                let is_folder = metadata.is_dir();
                let size = if is_folder { folder_size(&path) } else { blocks(&metadata) };
                garbage.push(Garbage { path, size, kind: if is_folder { Kind::Tree } else { kind } });
            }
        }
        Ok(garbage)
    }
}

/// Without privilege, a folder that may not be written to cannot be emptied.
fn make_writable(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

fn blocks(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

fn folder_size(folder: &Path) -> u64 {
    let mut size = 0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            size += blocks(&metadata);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    size
}
