//! `amphi rm`.

use amphi::instance::Instances;
use clap::Args;

use crate::cli::output::print;
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The instances, by their names or the beginnings of their IDs
    #[arg(value_name = "INSTANCE", required = true)]
    instances: Vec<String>,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

/// Removes instances with what they have written, and prints their names.
pub(crate) fn run(args: &RmArgs) -> Result<(), CliError> {
    let instances = Instances::open_default();
    for text in &args.instances {
        instances.find(text)?.remove(&instances, args.force)?;
        print(&format!("{text}\n"))?;
    }
    Ok(())
}
