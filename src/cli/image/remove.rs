//! `amphi rmi`.

use amphi::image::manifest::Descriptor;
use amphi::image::{ImageName, Store, StoredImage};
use clap::Args;

use super::find::find;
use super::{ImageCommandError, size};
use crate::cli::output::print;

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// The images; an image goes with its last name
    #[arg(value_name = "NAME|ID", required = true)]
    images: Vec<String>,
    /// Remove an image named by its ID with all its names, and the names of one that instances were made from, which itself stays
    /// as long as they do
    #[arg(short, long)]
    force: bool,
}

/// An image without a name that instances were made from would still take room, and nobody would know why.
fn refuse_used(store: &Store, text: &str, image: &StoredImage, names: &[ImageName]) -> Result<(), ImageCommandError> {
    let manifest = image.descriptor.digest;
    let Some(user) = store.users()?.into_iter().find(|user| user.manifest.digest == manifest) else { return Ok(()) };
    let stays = |(name, other): &(ImageName, Descriptor)| other.digest == manifest && !names.contains(name);
    if store.names()?.iter().any(stays) {
        return Ok(());
    }
    Err(ImageCommandError::InUse { image: text.to_owned(), instance: user.name })
}

/// Removes names, and what no name leads to any more.
pub(crate) fn run(args: &RmiArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    for text in &args.images {
        let (image, names) = find(&store, text)?;
        if names.len() > 1 && !args.force {
            return Err(ImageCommandError::SeveralNames { id: text.clone(), count: names.len() });
        }
        if !args.force {
            refuse_used(&store, text, &image, &names)?;
        }
        for name in names {
            store.remove_name(&name)?;
            print(&format!("removed the name {}\n", name.familiar()))?;
        }
    }
    match store.collect()? {
        Some(removed) => {
            let bytes = removed.iter().map(|garbage| garbage.size).sum();
            Ok(print(&format!("freed {}\n", size(bytes)))?)
        }
        None => {
            eprintln!("amphi: notice: another amphi uses the store: `amphi prune` frees the room later");
            Ok(())
        }
    }
}
