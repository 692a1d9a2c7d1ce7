//! Results on standard output.

use std::io::{self, Write};

use clap::ValueEnum;

use crate::error::CliError;

/// How to write a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    #[value(alias = "table")]
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

/// `bytes` as people read sizes: in units of 1000, as docker shows them.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 0;
    let (mut whole, mut rest) = (bytes, 0);
    while whole >= 1000 && unit < UNITS.len() - 1 {
        (whole, rest) = (whole / 1000, whole % 1000);
        unit += 1;
    }
    if unit == 0 || whole >= 100 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{} {}", rest / 100, UNITS[unit])
    }
}

const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];

/// Lines of columns, each as wide as its widest field.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(field, width)| format!("{field:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text from an image as a terminal may show it.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456_789, "123 MB"), (1_550_000_000, "1.5 GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "\u{e9}".into()]];
        assert_eq!(table(&rows), "a    b\nccc  \u{e9}\n");
    }
}
