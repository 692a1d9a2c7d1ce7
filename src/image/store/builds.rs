//! What steps of builds have made, so that the same step need not be done again.

use std::collections::HashMap;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::super::{Digest, Timestamp};
use super::layers::chain_ids;
use super::{NewLayer, Store, StoreError};

/// The folder with a file for each step.
pub(super) const BUILDS: &str = "builds";

/// What a step has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// `None` where it has changed nothing.
    pub layer: Option<NewLayer>,
    /// When.
    pub created: Timestamp,
}

/// The same as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BuiltStep {
    #[serde(flatten)]
    pub(super) built: Built,
    /// The ID of the image's layers with it (OCI image specification, "Layer ChainID").
    pub(super) chain: Digest,
}

impl Store {
    /// What the step with that key has made, in an earlier build. `None` where it is not known, or not there any more. To be called while the store is held.
    #[must_use]
    pub fn built(&self, key: Digest) -> Option<Built> {
        // What cannot be read is done again.
        let bytes = fs::read(self.root.join(BUILDS).join(key.hex())).ok()?;
        let step: BuiltStep = serde_json::from_slice(&bytes).ok()?;
        let is_there = step.built.layer.as_ref().is_none_or(|layer| self.has(&layer.descriptor));
        is_there.then_some(step.built)
    }

    /// Notes what the step with that key has made of an image with the layers `diff_ids`, the lowest first. To be called while
    /// the store is held.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_built(&self, key: Digest, built: &Built, diff_ids: &[Digest]) -> Result<(), StoreError> {
        let folder = self.root.join(BUILDS);
        fs::create_dir_all(&folder).map_err(StoreError::of("make", &folder))?;
        let all: Vec<Digest> =
            diff_ids.iter().copied().chain(built.layer.as_ref().map(|layer| layer.diff_id)).collect();
        let chain = chain_ids(&all).last().copied().unwrap_or_else(|| Digest::of(b""));
        let step = BuiltStep { built: built.clone(), chain };
        let name = format!("{BUILDS}/{}", key.hex());
        let path = self.root.join(&name);
        let bytes = serde_json::to_vec(&step).map_err(|error| StoreError::of("write", &path)(error.into()))?;
        self.replace(&name, &bytes)
    }

    /// All steps by their files' names; `None` for what is none.
    pub(super) fn built_steps(&self) -> Result<HashMap<String, Option<BuiltStep>>, StoreError> {
        let folder = self.root.join(BUILDS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(StoreError::of("read", &folder)(error)),
        };
        let mut steps = HashMap::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::of("read", &folder))?;
            let step = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            steps.insert(entry.file_name().to_string_lossy().into_owned(), step);
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn steps_are_kept_until_all_that_no_image_needs_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (key, nothing) = (Digest::of(b"key"), Digest::of(b"nothing"));
        assert_eq!(store.built(key), None);
        let layer = store.add_layer(|sink| -> Result<(), StoreError> {
            sink.write_all(&[0; 1024]).unwrap();
            Ok(())
        });
        let layer = layer.unwrap();
        let created = Timestamp::now();
        let made = Built { layer: Some(layer.clone()), created };
        let none = Built { layer: None, created };
        store.set_built(key, &made, &[]).unwrap();
        store.set_built(nothing, &none, &[layer.diff_id]).unwrap();
        fs::write(folder.path().join("builds/broken"), b"{").unwrap();
        store.collect().unwrap();
        assert_eq!(store.built(key), Some(made.clone()));
        assert_eq!(store.built(nothing), Some(none));
        assert!(!folder.path().join("builds/broken").exists());
        store.prune().unwrap();
        assert_eq!((store.built(key), store.built(nothing)), (None, None));
        assert!(!store.has(&layer.descriptor));
        assert_eq!(fs::read_dir(folder.path().join("builds")).unwrap().count(), 0);
        // Without its layer a step is as good as unknown.
        store.set_built(key, &made, &[]).unwrap();
        assert_eq!(store.built(key), None);
    }
}
