//! `amphi load` and `amphi save`.

use amphi::image::archive::{Place, load as load_images, save as save_images};
use amphi::image::{ImageName, Store};
use clap::Args;

use super::ImageCommandError;
use super::find::find;
use crate::cli::output::print;

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// A file that docker, podman, skopeo or amphi has saved, or oci:PATH[:NAME] for an OCI layout
    #[arg(value_name = "PLACE")]
    place: String,
    /// Call the image NAME in the store, whatever it is called there
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The images
    #[arg(value_name = "NAME|ID", required = true)]
    images: Vec<String>,
    /// The file to write, which docker loads as well, or oci:PATH[:NAME] for an OCI layout
    #[arg(short, long, value_name = "PLACE")]
    output: String,
}

/// Loads, and prints the names.
pub(crate) fn load(args: &LoadArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    for (name, _) in load_images(&Place::parse(&args.place), args.name.as_ref(), &store)? {
        print(&format!("loaded {}\n", name.familiar()))?;
    }
    Ok(())
}

/// Saves under the names that the images were asked for by, or that they have.
pub(crate) fn save(args: &SaveArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let mut images = Vec::new();
    for text in &args.images {
        let (image, names) = find(&store, text)?;
        images.extend(names.into_iter().map(|name| (name, image.clone())));
    }
    Ok(save_images(&images, &store, &Place::parse(&args.output))?)
}
