//! `amphi start`.

use amphi::instance::Instances;
use amphi::isolation::Instant;
use clap::Args;

use crate::cli::run::{Execution, terminal_size};
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Connect standard output and error, and wait for the end; needed, as instances do not run on their own yet
    #[arg(short, long)]
    attach: bool,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// The instance, by its name or the beginning of its ID
    #[arg(value_name = "INSTANCE")]
    instance: String,
}

/// Runs a stopped instance once more, with what it has written, and returns the exit status.
pub(crate) fn run(args: &StartArgs, start: Instant) -> Result<u8, CliError> {
    if !args.attach && !args.interactive {
        let problem = "needed, as instances do not run on their own yet: amphi start -a INSTANCE".to_owned();
        return Err(CliError::Option { option: "--attach", problem });
    }
    let mut instance = Instances::open_default().find(&args.instance)?.start()?;
    let process = &mut instance.spec_mut().process;
    process.stdin = args.interactive;
    process.terminal = process.terminal.map(|_| terminal_size());
    let raw_mode = args.interactive && process.terminal.is_some();
    Execution::of_instance(instance, raw_mode, start).run(false)
}
