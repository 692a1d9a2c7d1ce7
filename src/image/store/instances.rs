//! Which images instances were made from: those stay, whatever their names.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use super::super::manifest::Descriptor;
use super::{Store, StoreError};

/// An instance that an image must stay for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The instance's ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image's manifest.
    pub manifest: Descriptor,
}

/// As much of an instance's record as matters here; see `instance::Record`.
#[derive(Deserialize)]
struct Record {
    id: String,
    name: String,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    manifest: Option<Descriptor>,
}

impl Store {
    /// The instances that were made from images of this store.
    ///
    /// # Errors
    /// A record cannot be read: what it needs is not known then.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        let Some(folder) = &self.instances else { return Ok(Vec::new()) };
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::of("read", folder))?,
        };
        let mut users = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::of("read", folder))?;
            // What has a dot in front is not there yet, or not any more.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            users.extend(user(entry.path().join("record.json"))?);
        }
        Ok(users)
    }
}

fn user(path: PathBuf) -> Result<Option<User>, StoreError> {
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(StoreError::of("read", &path))?,
    };
    let record: Record = serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path, source })?;
    Ok(record.source.manifest.map(|manifest| User { id: record.id, name: record.name, manifest }))
}
