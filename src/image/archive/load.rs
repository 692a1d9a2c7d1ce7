//! Loading: every file is found by its name in the layout or archive, and enters the store by its digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ArchiveError, Place};
use crate::image::manifest::{Config, DOCUMENT_LIMIT, Descriptor, Document, Index, MANIFEST_TYPES, Manifest};
use crate::image::{Digest, ImageName, Store, StoredImage};

/// Where an entry of an index has its name.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// The most entries of an archive of images.
const MAX_ENTRIES: usize = 100_000;
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// Brings the images of `place` into the store, and returns them with their names. With `name`, the image, of which there must
/// be one, gets just that name.
///
/// # Errors
/// The place cannot be read, or holds no image that can be used; or the store cannot take it.
pub fn load(
    place: &Place,
    name: Option<&ImageName>,
    store: &Store,
) -> Result<Vec<(ImageName, StoredImage)>, ArchiveError> {
    let _hold = store.hold()?;
    let found = read(place, store)?;
    let path = place.path();
    let malformed = |problem: &str| ArchiveError::Malformed { path: path.to_owned(), problem: problem.to_owned() };
    let mut images = Vec::new();
    match name {
        Some(name) => {
            let [(_, image)] = &found[..] else {
                return Err(malformed(&format!("holds {} images, and --name is for one", found.len())));
            };
            images.push((name.clone(), image.clone()));
        }
        None => {
            for (names, image) in &found {
                if names.is_empty() {
                    return Err(malformed("holds an image without a name: name it with --name"));
                }
                for text in names {
                    let name = text.parse().map_err(|source| ArchiveError::Name { path: path.to_owned(), source })?;
                    images.push((name, image.clone()));
                }
            }
        }
    }
    for (name, image) in &images {
        store.layers(image)?;
        store.set_name(name, &image.descriptor)?;
    }
    Ok(images)
}

/// Takes the one image of `place` into the store, where it has no name. To be called while the store is held.
///
/// # Errors
/// As [`load`], or there is not just one image.
pub(crate) fn load_unnamed(place: &Place, store: &Store) -> Result<StoredImage, ArchiveError> {
    let mut found = read(place, store)?;
    match (found.pop(), found.len()) {
        (Some((_, image)), 0) => Ok(image),
        (_, others) => {
            let problem = format!("holds {} images: name one, as in oci:PATH:NAME", others + 1);
            Err(ArchiveError::Malformed { path: place.path().to_owned(), problem })
        }
    }
}

/// Takes all images of `place`, at least one, into the store, and returns them with the names that they have there.
fn read(place: &Place, store: &Store) -> Result<Images, ArchiveError> {
    let source = Source::open(place)?;
    let wanted = match place {
        Place::Layout(_, wanted) => wanted.as_deref(),
        Place::Archive(_) => None,
    };
    let found = match source.document("index.json")? {
        Some(bytes) => layout_images(&source, &bytes, wanted, store)?,
        None => match source.document("manifest.json")? {
            Some(bytes) => docker_images(&source, &bytes, store)?,
            None => {
                let problem = "is neither an OCI layout nor a docker archive: it has no index.json or manifest.json";
                return Err(source.malformed(problem.into()));
            }
        },
    };
    if found.is_empty() { Err(source.malformed("holds no image, or none of that name".into())) } else { Ok(found) }
}

/// A layout or an archive: files by name.
enum Source {
    Folder(PathBuf),
    Archive { path: PathBuf, file: File, members: HashMap<String, (u64, u64)> },
}

impl Source {
    fn open(place: &Place) -> Result<Self, ArchiveError> {
        match place {
            Place::Layout(path, _) => Ok(Self::Folder(path.clone())),
            Place::Archive(path) => {
                let failed = |source| ArchiveError::File { action: "read", path: path.clone(), source };
                let file = File::open(path).map_err(failed)?;
                let members = members(&file).map_err(failed)?;
                Ok(Self::Archive { path: path.clone(), file, members })
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive { path, .. } => path,
        }
    }

    /// The file called `name`, and its length. Only plain names of files count, and no link.
    fn get(&self, name: &str) -> Result<Option<(Part, u64)>, ArchiveError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match File::open(&path) {
                    Ok(file) => {
                        let metadata = file.metadata().map_err(ArchiveError::file("read", &path))?;
                        let length = metadata.len();
                        Ok(metadata.is_file().then_some((Part { file, at: 0, left: length }, length)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(ArchiveError::file("read", &path)(error)),
                }
            }
            Self::Archive { path, file, members } => {
                let Some(&(at, length)) = members.get(name) else { return Ok(None) };
                let file = file.try_clone().map_err(ArchiveError::file("read", path))?;
                Ok(Some((Part { file, at, left: length }, length)))
            }
        }
    }

    /// A small file.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some((part, length)) = self.get(name)? else { return Ok(None) };
        if length > DOCUMENT_LIMIT {
            return Err(self.malformed(format!("has a {name} of more than 4 MiB")));
        }
        let mut bytes = Vec::new();
        part.take(DOCUMENT_LIMIT).read_to_end(&mut bytes).map_err(ArchiveError::file("read", self.path()))?;
        Ok(Some(bytes))
    }

    fn malformed(&self, problem: String) -> ArchiveError {
        ArchiveError::Malformed { path: self.path().to_owned(), problem }
    }

    /// Puts the blob into the store.
    fn take(&self, blob: &Descriptor, name: &str, store: &Store) -> Result<(), ArchiveError> {
        let Some(mut incoming) = store.incoming_blob(blob)? else { return Ok(()) };
        incoming.restart()?;
        let (mut part, _) = self.get(name)?.ok_or_else(|| self.malformed(format!("has no {name}")))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match part.read(&mut buffer).map_err(ArchiveError::file("read", self.path()))? {
                0 => return Ok(incoming.finish()?),
                got => incoming.write(&buffer[..got])?,
            }
        }
    }
}

/// Part of a file.
struct Part {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..wanted], self.at)?;
        (self.at, self.left) = (self.at + got as u64, self.left - got as u64);
        Ok(got)
    }
}

/// Where the files of an archive are in it; a link to a file, as docker's archives have for layers that occur twice, is that file.
fn members(file: &File) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if members.len() >= MAX_ENTRIES {
            return Err(io::Error::other("it has more than 100,000 entries"));
        }
        let kind = entry.header().entry_type();
        if kind.is_file() {
            members.insert(name, (entry.raw_file_position(), entry.size()));
        } else if let Some(target) = entry.link_name_bytes().filter(|_| kind.is_symlink() || kind.is_hard_link()) {
            let target = String::from_utf8_lossy(&target).into_owned();
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let target = target.strip_prefix("../").map_or_else(
                || if kind.is_symlink() && !folder.is_empty() { format!("{folder}/{target}") } else { target.clone() },
                str::to_owned,
            );
            if let Some(&place) = members.get(&target) {
                members.insert(name, place);
            }
        }
    }
    Ok(members)
}

type Images = Vec<(Vec<String>, StoredImage)>;

fn layout_images(source: &Source, index: &[u8], wanted: Option<&str>, store: &Store) -> Result<Images, ArchiveError> {
    let wrong = |error| ArchiveError::Document { path: source.path().to_owned(), source: error };
    let json = |error| wrong(crate::image::manifest::DocumentError::Json { what: "index", source: error });
    let index: Index = serde_json::from_slice(index).map_err(json)?;
    let mut images: Images = Vec::new();
    for entry in &index.manifests {
        let name = NAMES.iter().find_map(|key| entry.annotations.get(*key));
        if wanted.is_some() && name.map(String::as_str) != wanted {
            continue;
        }
        let image = layout_image(source, entry, store)?;
        let names = name.cloned().into_iter().collect::<Vec<_>>();
        match images.iter_mut().find(|(_, other)| other.descriptor.digest == image.descriptor.digest) {
            Some((others, _)) => others.extend(names),
            None => images.push((names, image)),
        }
    }
    Ok(images)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn layout_image(source: &Source, entry: &Descriptor, store: &Store) -> Result<StoredImage, ArchiveError> {
    let wrong = |error| ArchiveError::Document { path: source.path().to_owned(), source: error };
    let document = |descriptor: &Descriptor| -> Result<(Vec<u8>, Document), ArchiveError> {
        source.take(descriptor, &blob_name(descriptor.digest), store)?;
        let bytes = store.read_document(descriptor)?;
        let document = Document::parse(&bytes, &descriptor.media_type).map_err(wrong)?;
        Ok((bytes, document))
    };
    let (descriptor, manifest) = match document(entry)?.1 {
        Document::Manifest(manifest) => (entry.clone(), manifest),
        Document::Index(index) => {
            let chosen = index.choose().map_err(wrong)?.clone();
            let manifest = document(&chosen)?.1.into_manifest().map_err(wrong)?;
            (chosen, manifest)
        }
    };
    finish(source, descriptor, manifest, store, blob_name)
}

/// Takes what the manifest names.
fn finish(
    source: &Source,
    descriptor: Descriptor,
    manifest: Manifest,
    store: &Store,
    name: impl Fn(Digest) -> String,
) -> Result<StoredImage, ArchiveError> {
    source.take(&manifest.config, &name(manifest.config.digest), store)?;
    let config_bytes = store.read_document(&manifest.config)?;
    let config = Config::parse(&config_bytes, &manifest)
        .map_err(|error| ArchiveError::Document { path: source.path().to_owned(), source: error })?;
    for layer in &manifest.layers {
        source.take(layer, &name(layer.digest), store)?;
    }
    let descriptor = Descriptor::new(&descriptor.media_type, descriptor.digest, descriptor.size);
    Ok(StoredImage { descriptor, manifest, config, config_bytes })
}

/// An image of a docker archive (`manifest.json`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_images(source: &Source, bytes: &[u8], store: &Store) -> Result<Images, ArchiveError> {
    let list: Vec<DockerImage> = serde_json::from_slice(bytes)
        .map_err(|error| source.malformed(format!("has a manifest.json that cannot be understood: {error}")))?;
    list.into_iter()
        .map(|image| Ok((image.repo_tags.clone().unwrap_or_default(), docker_image(source, &image, store)?)))
        .collect()
}

/// Docker's archives have no manifests of OCI's kind: one is made.
fn docker_image(source: &Source, image: &DockerImage, store: &Store) -> Result<StoredImage, ArchiveError> {
    let describe = |name: &String, media_type: &str| -> Result<Descriptor, ArchiveError> {
        let (part, length) = source.get(name)?.ok_or_else(|| source.malformed(format!("has no {name}")))?;
        let (hash, _) = Digest::of_reader(part).map_err(ArchiveError::file("read", source.path()))?;
        Ok(Descriptor::new(media_type, Digest::from_hash(hash), length))
    };
    let config = describe(&image.config, CONFIG_TYPE)?;
    let layers = image.layers.iter().map(|name| describe(name, LAYER_TYPE)).collect::<Result<Vec<_>, _>>()?;
    let names: HashMap<Digest, &String> =
        layers.iter().map(|layer| layer.digest).zip(&image.layers).chain([(config.digest, &image.config)]).collect();
    let manifest = Manifest { schema_version: 2, media_type: Some(MANIFEST_TYPES[0].into()), config, layers };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| source.malformed(error.to_string()))?;
    let digest = store.put(&bytes)?;
    let descriptor = Descriptor::new(MANIFEST_TYPES[0], digest, bytes.len() as u64);
    finish(source, descriptor, manifest, store, |digest| {
        names.get(&digest).map(|name| (*name).clone()).unwrap_or_default()
    })
}
