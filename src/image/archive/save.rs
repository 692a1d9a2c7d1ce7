//! Saving: an OCI layout, as a folder or as an archive that docker loads as well.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;

use super::{ArchiveError, Place};
use crate::image::manifest::{Descriptor, INDEX_TYPES, Index};
use crate::image::{Digest, ImageName, Store, StoredImage};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const NAME: &str = "org.opencontainers.image.ref.name";

/// An entry of docker's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes images of the store, with their names, to `place`. A layout that is there already gets them added; an archive is
/// replaced, when it is complete.
///
/// # Errors
/// The place cannot be written, or the store not be read.
pub fn save(images: &[(ImageName, StoredImage)], store: &Store, place: &Place) -> Result<(), ArchiveError> {
    let _hold = store.hold()?;
    match place {
        Place::Layout(folder, name) => save_layout(images, store, folder, name.as_deref()),
        Place::Archive(path) => save_archive(images, store, path),
    }
}

fn blobs(images: &[(ImageName, StoredImage)]) -> Vec<&Descriptor> {
    let mut blobs: Vec<&Descriptor> = Vec::new();
    for (_, image) in images {
        for blob in [&image.descriptor, &image.manifest.config].into_iter().chain(&image.manifest.layers) {
            if !blobs.iter().any(|other| other.digest == blob.digest) {
                blobs.push(blob);
            }
        }
    }
    blobs
}

fn index(images: &[(ImageName, StoredImage)], name: Option<&str>, before: Vec<Descriptor>) -> Index {
    let mut manifests = before;
    for (own, image) in images {
        let name = name.map_or_else(|| own.to_string(), str::to_owned);
        let mut entry = image.descriptor.clone();
        entry.annotations.insert(NAME.into(), name.clone());
        manifests.retain(|other| other.annotations.get(NAME) != Some(&name));
        manifests.push(entry);
    }
    Index { schema_version: 2, media_type: Some(INDEX_TYPES[0].into()), manifests }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, ArchiveError> {
    serde_json::to_vec(value).map_err(|error| ArchiveError::file("write", path)(error.into()))
}

fn save_layout(
    images: &[(ImageName, StoredImage)],
    store: &Store,
    folder: &Path,
    name: Option<&str>,
) -> Result<(), ArchiveError> {
    let blob_folder = folder.join("blobs/sha256");
    fs::create_dir_all(&blob_folder).map_err(ArchiveError::file("make", &blob_folder))?;
    let put = |name: &str, write: &mut dyn FnMut(&mut File) -> io::Result<()>| -> Result<(), ArchiveError> {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        let done = tempfile::NamedTempFile::new_in(parent).and_then(|mut new| {
            write(new.as_file_mut())?;
            new.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            new.persist(&path)?;
            Ok(())
        });
        done.map_err(ArchiveError::file("write", &path))
    };
    for blob in blobs(images) {
        let mut source = store.open_blob(blob)?;
        put(&blob_name(blob.digest), &mut |file| io::copy(&mut source, file).map(drop))?;
    }
    let index_path = folder.join("index.json");
    let before = match fs::read(&index_path) {
        Ok(bytes) => {
            serde_json::from_slice::<Index>(&bytes)
                .map_err(|error| ArchiveError::file("read", &index_path)(error.into()))?
                .manifests
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(ArchiveError::file("read", &index_path)(error)),
    };
    let index = json(&index(images, name, before), &index_path)?;
    put("oci-layout", &mut |file| file.write_all(LAYOUT))?;
    put("index.json", &mut |file| file.write_all(&index))
}

fn save_archive(images: &[(ImageName, StoredImage)], store: &Store, path: &Path) -> Result<(), ArchiveError> {
    let docker: Vec<DockerImage> = images
        .iter()
        .map(|(name, image)| DockerImage {
            config: blob_name(image.manifest.config.digest),
            repo_tags: if name.tag().is_some() { vec![name.familiar()] } else { Vec::new() },
            layers: image.manifest.layers.iter().map(|layer| blob_name(layer.digest)).collect(),
        })
        .collect();
    let (index, docker) = (json(&index(images, None, Vec::new()), path)?, json(&docker, path)?);
    let failed = |error| ArchiveError::file("write", path)(error);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    let mut archive = tar::Builder::new(BufWriter::new(new.as_file()));
    // The same image gives the same archive.
    let add = |archive: &mut tar::Builder<_>, name: &str, length: u64, reader: &mut dyn Read| -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(length);
        header.set_mtime(0);
        archive.append_data(&mut header, name, reader)
    };
    for (name, bytes) in [("oci-layout", LAYOUT), ("index.json", &index), ("manifest.json", &docker)] {
        add(&mut archive, name, bytes.len() as u64, &mut &*bytes).map_err(failed)?;
    }
    for blob in blobs(images) {
        let mut file = store.open_blob(blob)?;
        add(&mut archive, &blob_name(blob.digest), blob.size, &mut file).map_err(failed)?;
    }
    archive.into_inner().and_then(|mut writer| writer.flush()).map_err(failed)?;
    new.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    new.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
