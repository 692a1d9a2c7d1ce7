//! `amphi prune`.

use amphi::image::Store;
use clap::Args;

use super::{ImageCommandError, size};
use crate::cli::output::print;

/// The arguments of `amphi prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Removes what no image of the store needs. Waits until nobody adds to the store.
pub(crate) fn run(args: &PruneArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let garbage = match args.dry_run {
        true => store.garbage()?,
        false => store.collect(false)?.unwrap_or_default(),
    };
    let verb = if args.dry_run { "would remove" } else { "removed" };
    let mut text = String::new();
    for piece in &garbage {
        text.push_str(&format!("{verb} {} ({})\n", piece.path.display(), size(piece.size)));
    }
    let bytes = garbage.iter().map(|piece| piece.size).sum();
    text.push_str(&format!("{} {}\n", if args.dry_run { "would free" } else { "freed" }, size(bytes)));
    Ok(print(&text)?)
}
