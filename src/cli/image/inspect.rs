//! `amphi inspect`: instances, and images.

use amphi::image::manifest::{Descriptor, Manifest};
use amphi::image::{Store, StoreError};
use amphi::instance::{InstanceError, Instances};
use clap::Args;
use serde::Serialize;

use super::ImageCommandError;
use super::find::find;
use crate::cli::output::{print, to_json};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The instance or the image
    #[arg(value_name = "NAME|ID")]
    what: String,
}

#[derive(Serialize)]
struct Inspection {
    names: Vec<String>,
    id: String,
    manifest: Descriptor,
    /// Of all blobs, compressed as they came, in bytes.
    size: u64,
    layers: Manifest,
    config: serde_json::Value,
}

/// Prints all that is known of an instance, or else of an image, as JSON.
pub(crate) fn run(args: &InspectArgs) -> Result<(), ImageCommandError> {
    match Instances::open_default().find(&args.what) {
        Ok(instance) => return Ok(crate::cli::instance::inspect(&instance)?),
        Err(InstanceError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let store = Store::open_default()?;
    let (image, _) = find(&store, &args.what)?;
    let names = store.names()?.into_iter().filter(|(_, manifest)| manifest.digest == image.descriptor.digest);
    let config = serde_json::from_slice(&image.config_bytes).map_err(|source| StoreError::Document {
        digest: image.descriptor.digest,
        source: amphi::image::manifest::DocumentError::Json { what: "configuration", source },
    })?;
    let inspection = Inspection {
        names: names.map(|(name, _)| name.to_string()).collect(),
        id: image.manifest.config.digest.hex(),
        size: image.size(),
        manifest: image.descriptor,
        layers: image.manifest,
        config,
    };
    Ok(print(&to_json(&inspection)?)?)
}
