//! Which names stand for which images.

use std::io;

use super::super::ImageName;
use super::super::manifest::{Descriptor, INDEX_TYPES, Index};
use super::{Store, StoreError};

/// Where an entry has its name (OCI image specification, "Pre-Defined Annotation Keys").
const NAME: &str = "org.opencontainers.image.ref.name";

impl Store {
    fn read_index(&self) -> Result<Index, StoreError> {
        let path = self.root.join("index.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Index { schema_version: 2, media_type: Some(INDEX_TYPES[0].into()), manifests: Vec::new() })
            }
            Err(error) => Err(StoreError::of("read", &path)(error)),
        }
    }

    /// Changes the index; nobody else does meanwhile.
    fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> T) -> Result<T, StoreError> {
        let lock = self.lock_file("index.lock")?;
        lock.lock().map_err(StoreError::of("lock", &self.root.join("index.lock")))?;
        let mut index = self.read_index()?;
        let result = change(&mut index.manifests);
        let bytes = serde_json::to_vec(&index)
            .map_err(|error| StoreError::Index { path: self.root.join("index.json"), source: error })?;
        self.replace("index.json", &bytes)?;
        Ok(result)
    }

    /// All names with the manifests that they stand for, in the order of the names.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn names(&self) -> Result<Vec<(ImageName, Descriptor)>, StoreError> {
        let entries = self.read_index()?.manifests.into_iter();
        let mut names: Vec<_> = entries.filter_map(|entry| Some((name_of(&entry)?, plain(&entry)))).collect();
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(names)
    }

    /// All manifests that the index has, named or not.
    pub(super) fn roots(&self) -> Result<Vec<Descriptor>, StoreError> {
        Ok(self.read_index()?.manifests)
    }

    /// The manifest that a name stands for.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn find(&self, name: &ImageName) -> Result<Option<Descriptor>, StoreError> {
        let name = kept_as(name);
        Ok(self.names()?.into_iter().find(|(other, _)| *other == name).map(|(_, manifest)| manifest))
    }

    /// Gives an image a name, which another may have had. To be called while the store is held, all of the image being there.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn set_name(&self, name: &ImageName, manifest: &Descriptor) -> Result<(), StoreError> {
        let name = kept_as(name).to_string();
        let mut entry = plain(manifest);
        entry.annotations.insert(NAME.into(), name.clone());
        self.change_index(|entries| {
            entries.retain(|other| other.annotations.get(NAME) != Some(&name));
            entries.push(entry);
        })
    }

    /// Takes a name away; says whether it was there.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn remove_name(&self, name: &ImageName) -> Result<bool, StoreError> {
        let name = kept_as(name).to_string();
        self.change_index(|entries| {
            let before = entries.len();
            entries.retain(|other| other.annotations.get(NAME) != Some(&name));
            entries.len() < before
        })
    }
}

/// With a digest the tag says nothing about which image it is.
fn kept_as(name: &ImageName) -> ImageName {
    match name.digest() {
        Some(_) => name.without_tag(),
        None => name.clone(),
    }
}

fn name_of(entry: &Descriptor) -> Option<ImageName> {
    entry.annotations.get(NAME)?.parse().ok()
}

fn plain(manifest: &Descriptor) -> Descriptor {
    Descriptor::new(&manifest.media_type, manifest.digest, manifest.size)
}
