//! `amphi rmi`.

use amphi::image::Store;
use clap::Args;

use super::find::find;
use super::{ImageCommandError, size};
use crate::cli::output::print;

/// The arguments of `amphi rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// The images; an image goes with its last name
    #[arg(value_name = "NAME|ID", required = true)]
    images: Vec<String>,
    /// Remove an image named by its ID with all its names
    #[arg(short, long)]
    force: bool,
}

/// Removes names, and what no name leads to any more.
pub(crate) fn run(args: &RmiArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    for text in &args.images {
        let (_, names) = find(&store, text)?;
        if names.len() > 1 && !args.force {
            return Err(ImageCommandError::SeveralNames { id: text.clone(), count: names.len() });
        }
        for name in names {
            store.remove_name(&name)?;
            print(&format!("removed the name {}\n", name.familiar()))?;
        }
    }
    match store.collect(true)? {
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
