//! `amphi pull` and `amphi push`.

use std::path::PathBuf;

use amphi::image::registry::{Client, Options, RegistryError};
use amphi::image::{ImageName, Store};
use clap::Args;

use super::find::find;
use super::{ImageCommandError, ProgressBar};
use crate::cli::output;

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image, as [REGISTRY/]NAME[:TAG|@DIGEST]
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Trust the certificates in this file as well; may be repeated
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The image in the store
    #[arg(value_name = "NAME|ID")]
    image: String,
    /// What to call it in the registry, if not what it is called in the store
    #[arg(value_name = "TARGET")]
    target: Option<ImageName>,
    /// Trust the certificates in this file as well; may be repeated
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
}

/// Pulls, and prints the digest of the manifest.
pub(crate) fn pull(args: &PullArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let options = Options { tls_ca: args.tls_ca.clone(), ..Options::default() };
    let bar = ProgressBar::new(&args.name.familiar());
    let image = Client::new(&args.name, &options)?.pull(&store, &bar)?;
    drop(bar);
    Ok(output::print(&format!("{}\n", image.descriptor.digest))?)
}

/// Pushes, and prints the digest of the manifest.
pub(crate) fn push(args: &PushArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let (image, names) = find(&store, &args.image)?;
    let target = match (&args.target, &names[..]) {
        (Some(target), _) => target.clone(),
        (None, [name]) => name.clone(),
        (None, _) => return Err(RegistryError::PushToDigest(args.image.clone()).into()),
    };
    let options = Options { tls_ca: args.tls_ca.clone(), ..Options::default() };
    let bar = ProgressBar::new(&target.familiar());
    let pushed = Client::new(&target, &options)?.push(&store, &image, &bar)?;
    drop(bar);
    eprintln!(
        "{}: {} sent, {} taken from another repository, {} there already",
        target.familiar(),
        pushed.sent,
        pushed.mounted,
        pushed.present
    );
    Ok(output::print(&format!("{}\n", image.descriptor.digest))?)
}
