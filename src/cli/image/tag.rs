//! `amphi tag`.

use amphi::image::{ImageName, Store};
use clap::Args;

use super::ImageCommandError;
use super::find::find;

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The image
    #[arg(value_name = "NAME|ID")]
    image: String,
    /// A further name for it
    #[arg(value_name = "NAME")]
    name: ImageName,
}

/// Gives an image a further name.
pub(crate) fn run(args: &TagArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let _hold = store.hold()?;
    let (image, _) = find(&store, &args.image)?;
    Ok(store.set_name(&args.name, &image.descriptor)?)
}
