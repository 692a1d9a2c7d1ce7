//! An image in the store.

use super::super::manifest::{Config, Descriptor, Document, Manifest};
use super::layers::{flattened, is_empty_layer};
use super::{Store, StoreError};

/// An image: its manifest, its configuration, and where they came from.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// What names the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: Config,
    /// The configuration as it was written.
    pub config_bytes: Vec<u8>,
}

impl Store {
    /// Reads an image's documents.
    ///
    /// # Errors
    /// They are missing, damaged, or not those of an image.
    pub fn image(&self, descriptor: &Descriptor) -> Result<StoredImage, StoreError> {
        let wrong = |source| StoreError::Document { digest: descriptor.digest, source };
        let bytes = self.read_document(descriptor)?;
        let manifest = match Document::parse(&bytes, &descriptor.media_type).map_err(wrong)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                // Only manifests are given names; what is here came by another tool.
                let chosen = index.choose().map_err(wrong)?.clone();
                return self.chosen(&chosen);
            }
        };
        let config_bytes = self.read_document(&manifest.config)?;
        let config = Config::parse(&config_bytes, &manifest).map_err(wrong)?;
        Ok(StoredImage { descriptor: descriptor.clone(), manifest, config, config_bytes })
    }

    /// The image that an index has for this machine; an index in an index is not followed.
    fn chosen(&self, descriptor: &Descriptor) -> Result<StoredImage, StoreError> {
        let wrong = |source| StoreError::Document { digest: descriptor.digest, source };
        let bytes = self.read_document(descriptor)?;
        let manifest =
            Document::parse(&bytes, &descriptor.media_type).map_err(wrong)?.into_manifest().map_err(wrong)?;
        let config_bytes = self.read_document(&manifest.config)?;
        let config = Config::parse(&config_bytes, &manifest).map_err(wrong)?;
        Ok(StoredImage { descriptor: descriptor.clone(), manifest, config, config_bytes })
    }
}

impl StoredImage {
    /// Whether a layer is a file system of its own, and not one with those below it.
    pub(in crate::image) fn stands_alone(&self, index: usize) -> bool {
        let diff_ids = &self.config.rootfs.diff_ids;
        let above = diff_ids[index..].iter().filter(|id| !is_empty_layer(**id)).count();
        let all = diff_ids.iter().filter(|id| !is_empty_layer(**id)).count();
        !is_empty_layer(diff_ids[index]) && all - above >= flattened(all)
    }

    /// The length of all its blobs in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let layers: u64 = self.manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        layers.saturating_add(self.manifest.config.size).saturating_add(self.descriptor.size)
    }

    /// The short form of its ID, which is the digest of its configuration.
    #[must_use]
    pub fn short_id(&self) -> String {
        self.manifest.config.digest.hex()[..12].to_owned()
    }
}
