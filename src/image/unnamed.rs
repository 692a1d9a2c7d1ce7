//! A tar archive that is no layer of an image, as a tree that can be looked into.

use std::fs::File;
use std::sync::Arc;

use super::LayerError;
use super::layer::{Conversion, Layer, convert};
use super::view::View;

/// The tree that `archive`, plain or compressed, makes. Nothing of it is trusted: it has the limits of layers.
///
/// # Errors
/// It is no archive, malformed or too large, or there is no room for it among temporary files.
pub(crate) fn view_of_archive(archive: File) -> Result<View, LayerError> {
    let size = archive.metadata().map_err(LayerError::Read)?.len();
    let image = tempfile::tempfile().map_err(LayerError::Write)?;
    convert(vec![Layer { file: archive, size, diff_id: None }], Conversion::Flattened, &image)?;
    Ok(View::new(vec![Arc::new(image)]))
}
