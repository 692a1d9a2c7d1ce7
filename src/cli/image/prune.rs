//! `amphi prune`.

use amphi::image::Store;
use amphi::instance::{Instance, InstanceError, Instances, State};
use clap::Args;

use super::{ImageCommandError, size};
use crate::cli::output::print;

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Say what would go, and what stays for instances, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the instances that have ended as well, with what they have written
    #[arg(long)]
    instances: bool,
}

/// Removes what neither an image of the store nor an instance needs, what builds have kept included. Waits until nobody adds to the store.
pub(crate) fn run(args: &PruneArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let instances = Instances::open_default();
    let ended = if args.instances { ended(&instances)? } else { Vec::new() };
    let mut removed: Vec<(String, u64)> =
        ended.iter().map(|one| (format!("the instance {}", one.record.name), one.size())).collect();
    let ids: Vec<String> = ended.iter().map(|one| one.record.id.clone()).collect();
    let garbage = if args.dry_run {
        store.garbage(&ids)?
    } else {
        ended.into_iter().try_for_each(|one| one.remove(&instances, false))?;
        store.prune()?
    };
    removed.extend(garbage.into_iter().map(|piece| (piece.path.display().to_string(), piece.size)));
    let (verb, sum) = if args.dry_run { ("would remove", "would free") } else { ("removed", "freed") };
    let mut text = String::new();
    for (what, bytes) in &removed {
        text.push_str(&format!("{verb} {what} ({})\n", size(*bytes)));
    }
    if args.dry_run {
        for user in store.users()?.iter().filter(|user| !ids.contains(&user.id)) {
            text.push_str(&format!("would keep the image {} for the instance {}\n", user.manifest.digest, user.name));
        }
    }
    text.push_str(&format!("{sum} {}\n", size(removed.iter().map(|(_, bytes)| bytes).sum())));
    Ok(print(&text)?)
}

fn ended(instances: &Instances) -> Result<Vec<Instance>, InstanceError> {
    Ok(instances.list()?.into_iter().filter(|instance| instance.state != State::Running).collect())
}
