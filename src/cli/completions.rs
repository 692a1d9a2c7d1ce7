//! `amphi completions`: what lets a shell complete amphi's command line.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::Cli;
use crate::error::CliError;

#[derive(Debug, Args)]
#[command(after_help = "For bash: amphi completions bash > /etc/bash_completion.d/amphi\n\
                  For zsh:  amphi completions zsh > \"${fpath[1]}/_amphi\"\n\
                  For fish: amphi completions fish > ~/.config/fish/completions/amphi.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell that the script is for
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    // The generator itself would panic where nobody reads what it writes.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "amphi", &mut script);
    io::stdout().write_all(&script).map_err(|source| CliError::Process { action: "write the script", source })
}
