//! Images as folders, for kernels that cannot mount EROFS, or users that may not.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::super::LayerError;
use super::super::layer::{Layer, unpack};
use super::{LayerStack, Store, StoreError};

impl Store {
    /// An empty folder, which goes when what is returned is dropped; after a crash, with what no image needs.
    pub(crate) fn working_folder(&self) -> Result<tempfile::TempDir, StoreError> {
        let folder = self.root.join("incoming");
        let new = tempfile::Builder::new().prefix("work-").tempdir_in(&folder);
        new.map_err(StoreError::of("make a folder in", &folder))
    }

    /// The folder with all layers of an image in it.
    pub(super) fn unpack(&self, stack: &LayerStack) -> Result<(PathBuf, File), StoreError> {
        let _hold = self.hold()?;
        let name = stack.chain.hex();
        let destination = self.root.join("trees").join(&name);
        if destination.is_dir() {
            return lock(destination);
        }
        let new = tempfile::Builder::new().prefix("tree-").tempdir_in(self.root.join("incoming"));
        let new = new.map_err(StoreError::of("make a folder in", &self.root.join("incoming")))?;
        let layers = stack
            .archives
            .iter()
            .map(|(blob, diff_id)| Ok(Layer { file: self.open_blob(blob)?, size: blob.size, diff_id: Some(*diff_id) }));
        let layers = layers.collect::<Result<Vec<_>, StoreError>>()?;
        let last = stack.archives.last().map_or(stack.chain, |(blob, _)| blob.digest);
        unpack(layers, new.path()).map_err(|source: LayerError| StoreError::Layer { digest: last, source })?;
        let place = || -> io::Result<()> {
            rustix::fs::syncfs(File::open(new.path())?)?;
            match fs::rename(new.path(), &destination) {
                // Another amphi has been faster.
                Err(_) if destination.is_dir() => Ok(()),
                other => other,
            }
        };
        place().map_err(StoreError::of("make", &destination))?;
        lock(destination)
    }
}

/// While a run has it locked, a tree is not removed.
fn lock(tree: PathBuf) -> Result<(PathBuf, File), StoreError> {
    let folder = File::open(&tree).map_err(StoreError::of("open", &tree))?;
    folder.lock_shared().map_err(StoreError::of("lock", &tree))?;
    Ok((tree, folder))
}
