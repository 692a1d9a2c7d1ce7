//! Images as the user names them: by name, or by ID.

use amphi::image::manifest::Descriptor;
use amphi::image::{ImageName, Store, StoredImage};

use super::ImageCommandError;

/// The image with that name, or whose ID begins so; with the names that were meant.
pub(super) fn find(store: &Store, text: &str) -> Result<(StoredImage, Vec<ImageName>), ImageCommandError> {
    if let Ok(name) = text.parse::<ImageName>()
        && let Some(manifest) = store.find(&name)?
    {
        return Ok((store.image(&manifest)?, vec![name]));
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let is_id = prefix.len() >= 4 && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut found: Option<(StoredImage, Vec<ImageName>)> = None;
    for (name, manifest) in if is_id { store.names()? } else { Vec::new() } {
        let Some(image) = with_prefix(store, &manifest, prefix)? else { continue };
        match &mut found {
            None => found = Some((image, vec![name])),
            Some((other, names)) if other.manifest.config.digest == image.manifest.config.digest => names.push(name),
            Some(_) => return Err(ImageCommandError::Ambiguous(text.to_owned())),
        }
    }
    if found.is_none() && !is_id {
        // What is wrong with a name is said.
        text.parse::<ImageName>()?;
    }
    found.ok_or_else(|| ImageCommandError::Unknown(text.to_owned()))
}

fn with_prefix(store: &Store, manifest: &Descriptor, prefix: &str) -> Result<Option<StoredImage>, ImageCommandError> {
    let image = store.image(manifest)?;
    let fits = image.manifest.config.digest.hex().starts_with(prefix) || manifest.digest.hex().starts_with(prefix);
    Ok(fits.then_some(image))
}
