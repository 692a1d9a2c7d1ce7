//! The layers of an image as file systems, each made once.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::layer::{Conversion, Layer, convert};
use super::super::manifest::Descriptor;
use super::super::{Digest, LayerError};
use super::{Store, StoreError, StoredImage};

/// The most file systems that an image is put together from. Each is a disk of a microVM, which has interrupt lines for 19
/// devices. The lowest layers of an image with more become one.
pub const MAX_STACK: usize = 8;
/// How many layers more become one at a time. A build makes an image of each of its steps.
const STEP: usize = 4;
/// The archive that docker's builder writes for a step that changed nothing: two blocks of zeros.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
/// How many layers are converted at a time.
const WORKERS: usize = 4;

/// A read-only file system.
#[derive(Debug, Clone)]
pub struct LayerFile {
    /// Where it is.
    pub path: PathBuf,
    /// The same, open: it stays usable when the image is removed.
    pub file: Arc<File>,
}

impl PartialEq for LayerFile {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for LayerFile {}

/// The file systems that make an image when laid over each other, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStack {
    /// The layers.
    pub files: Vec<LayerFile>,
    /// What names the image's manifest.
    pub manifest: Box<Descriptor>,
    store: Store,
    pub(super) chain: Digest,
    /// The archives that they were made from, with the digests of what those are uncompressed.
    pub(super) archives: Vec<(Descriptor, Digest)>,
}

/// What one file system is made of: layers `first` to `last` of the image, with those of `below` under it where that matters.
struct Part {
    name: String,
    first: usize,
    last: usize,
    below: Option<Vec<String>>,
}

impl LayerStack {
    /// The image as one folder, which is made if it is missing, with the owners that this user may give.
    /// It is not removed as long as the file that comes with it is open.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn unpacked(&self) -> Result<(PathBuf, File), StoreError> {
        self.store.unpack(self)
    }
}

impl Store {
    /// The image's layers as file systems; what is missing is made. To be called while the store is held.
    ///
    /// # Errors
    /// A layer is missing, malformed or too large, or a file cannot be written.
    pub fn layers(&self, image: &StoredImage) -> Result<LayerStack, StoreError> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let chain = chain_ids(diff_ids);
        let used: Vec<usize> = (0..diff_ids.len()).filter(|&index| !is_empty_layer(diff_ids[index])).collect();
        let flat = flattened(used.len());
        let mut parts: Vec<Part> = Vec::new();
        if flat > 0 {
            let last = used[flat - 1];
            parts.push(Part { name: chain_name(chain[last]), first: 0, last, below: None });
        } else if used.is_empty() && !diff_ids.is_empty() {
            parts.push(Part { name: single_name(diff_ids[0]), first: 0, last: 0, below: None });
        }
        let single =
            |&index: &usize| Part { name: single_name(diff_ids[index]), first: index, last: index, below: None };
        parts.extend(used[flat..].iter().map(single));
        self.make_all(image, &parts)?;
        // A layer that does not describe all of its folders takes what they are like from those below it.
        for index in 1..parts.len() {
            let layer = parts[index].first;
            if self.is_implied(diff_ids[layer]) {
                let below = parts[..index].iter().map(|part| part.name.clone()).collect();
                parts[index] = Part { name: over_name(chain[layer]), first: layer, last: layer, below: Some(below) };
                self.make(image, &parts[index])?;
            }
        }
        let files = parts.iter().map(|part| self.open_layer(&part.name)).collect::<Result<_, StoreError>>()?;
        let chain = chain.last().copied().unwrap_or_else(|| Digest::of(b""));
        let archives = image.manifest.layers.iter().cloned().zip(diff_ids.iter().copied()).collect();
        Ok(LayerStack { files, manifest: Box::new(image.descriptor.clone()), store: self.clone(), chain, archives })
    }

    /// Makes one layer of an image a file system, if it is not one already. To be called while the store is held.
    ///
    /// # Errors
    /// As [`Store::layers`].
    pub fn convert_layer(&self, image: &StoredImage, index: usize) -> Result<(), StoreError> {
        let diff_id = image.config.rootfs.diff_ids[index];
        self.make(image, &Part { name: single_name(diff_id), first: index, last: index, below: None })
    }

    /// One layer of an image as a file system by itself, which is made if it is missing. For a layer that describes all of its
    /// directories, as those that are made here do. To be called while the store is held.
    ///
    /// # Errors
    /// As [`Store::layers`].
    pub(crate) fn layer_file(&self, image: &StoredImage, index: usize) -> Result<LayerFile, StoreError> {
        self.convert_layer(image, index)?;
        self.open_layer(&single_name(image.config.rootfs.diff_ids[index]))
    }

    fn open_layer(&self, name: &str) -> Result<LayerFile, StoreError> {
        let path = self.layer_path(name);
        let file = File::open(&path).map_err(StoreError::of("open", &path))?;
        Ok(LayerFile { path, file: Arc::new(file) })
    }

    fn make_all(&self, image: &StoredImage, parts: &[Part]) -> Result<(), StoreError> {
        let missing: Vec<&Part> = parts.iter().filter(|part| !self.layer_path(&part.name).exists()).collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..missing.len().min(WORKERS) {
                scope.spawn(|| {
                    while let Some(part) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.make(image, part) {
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            next.store(missing.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn make(&self, image: &StoredImage, part: &Part) -> Result<(), StoreError> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let is_single = part.name == single_name(diff_ids[part.first]);
        if is_single && part.first > 0 && self.is_implied(diff_ids[part.first]) {
            return Ok(());
        }
        let destination = self.layer_path(&part.name);
        let Some(incoming) = self.incoming_file(&part.name, destination)? else { return Ok(()) };
        let layers = (part.first..=part.last).map(|index| {
            let blob = &image.manifest.layers[index];
            Ok(Layer { file: self.open_blob(blob)?, size: blob.size, diff_id: Some(diff_ids[index]) })
        });
        let layers = layers.collect::<Result<Vec<_>, StoreError>>()?;
        let open = |name: &String| {
            let path = self.layer_path(name);
            File::open(&path).map_err(StoreError::of("open", &path))
        };
        let below = part.below.iter().flatten().map(open).collect::<Result<Vec<_>, _>>()?;
        let conversion = match (&part.below, is_single) {
            (Some(_), _) => Conversion::Over(&below),
            (None, true) => Conversion::Single,
            (None, false) => Conversion::Flattened,
        };
        let converted = convert(layers, conversion, incoming.file()).map_err(|source: LayerError| {
            incoming.discard();
            StoreError::Layer { digest: image.manifest.layers[part.last].digest, source }
        })?;
        if is_single && converted.implied_directories {
            self.replace(&format!("layers/{}.implied", diff_ids[part.first].hex()), b"")?;
            if part.first > 0 {
                incoming.discard();
                return Ok(());
            }
        }
        incoming.finish()
    }

    fn is_implied(&self, diff_id: Digest) -> bool {
        self.layer_path(&format!("{}.implied", diff_id.hex())).exists()
    }

    fn layer_path(&self, name: &str) -> PathBuf {
        self.root.join("layers").join(name)
    }
}

/// How many of so many layers become one, the lowest. In steps, so that an image with a layer more mostly has the same.
pub(super) const fn flattened(layers: usize) -> usize {
    if layers > MAX_STACK { (layers - (MAX_STACK - 1)).next_multiple_of(STEP) } else { 0 }
}

/// The name of the layers that become one, where there are any.
pub(super) fn flattened_name(diff_ids: &[Digest]) -> Option<String> {
    let mut used = (0..diff_ids.len()).filter(|&index| !is_empty_layer(diff_ids[index]));
    let flat = flattened(used.clone().count());
    let last = used.nth(flat.checked_sub(1)?)?;
    chain_ids(&diff_ids[..=last]).last().map(|chain| chain_name(*chain))
}

/// Whether a layer holds nothing, by its digest.
pub(super) fn is_empty_layer(diff_id: Digest) -> bool {
    diff_id.to_string() == EMPTY_LAYER
}

const SUFFIX: &str = ".erofs";
const CHAIN: &str = ".chain";
const OVER: &str = ".over";

pub(super) fn single_name(diff_id: Digest) -> String {
    format!("{}{SUFFIX}", diff_id.hex())
}

pub(super) fn chain_name(chain_id: Digest) -> String {
    format!("{}{CHAIN}{SUFFIX}", chain_id.hex())
}

/// The name of a layer that depends on those below it, by the ID of all of them.
pub(super) fn over_name(chain_id: Digest) -> String {
    format!("{}{OVER}{SUFFIX}", chain_id.hex())
}

/// For each layer the ID of it and all below it (OCI image specification, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let next = chain.last().map_or(*diff_id, |below| Digest::of(format!("{below} {diff_id}").as_bytes()));
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_has_room_for_the_next_layers() {
        assert_eq!([0, 1, 8, 9, 11, 12, 15, 16].map(flattened), [0, 0, 0, 4, 4, 8, 8, 12]);
        for layers in 0..600 {
            let stack = layers - flattened(layers) + usize::from(flattened(layers) > 0);
            assert!(stack <= MAX_STACK, "{layers}");
        }
    }
}
