//! Results on standard output.

use std::io::{self, Write};

use clap::ValueEnum;

use crate::error::CliError;

/// How to write a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Writes `text` to standard output. A reader that has gone away (`amphi doctor | head -1`) is no error.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|source| CliError::Process { action: "write to standard output", source }),
    }
}

/// `value` as indented JSON with a line end.
pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Process { action: "write JSON", source: error.into() })?;
    Ok(text + "\n")
}
