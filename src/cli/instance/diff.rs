//! `amphi diff`.

use amphi::instance::{ChangeKind, Instances};
use clap::Args;
use serde::Serialize;

use crate::cli::output::{Format, print, printable, to_json};
use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The instance, by its name or the beginning of its ID
    #[arg(value_name = "INSTANCE")]
    instance: String,
    /// How to write the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A change as programs read it.
#[derive(Serialize)]
struct Row {
    kind: char,
    path: String,
}

/// Lists what an instance has changed of its image: A for what it has added, C for changed, D for deleted.
pub(crate) fn run(args: &DiffArgs) -> Result<(), CliError> {
    let changes = Instances::open_default().find(&args.instance)?.diff()?;
    let row = |(path, kind): (&Vec<u8>, &ChangeKind)| Row {
        kind: kind.letter(),
        path: format!("/{}", String::from_utf8_lossy(path)),
    };
    let rows: Vec<Row> = changes.iter().map(row).collect();
    if args.format == Format::Json {
        return print(&to_json(&rows)?);
    }
    print(&rows.iter().map(|row| format!("{} {}\n", row.kind, printable(&row.path))).collect::<String>())
}
