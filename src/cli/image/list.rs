//! `amphi images`.

use amphi::image::Store;
use clap::Args;
use serde::Serialize;

use super::{ImageCommandError, printable, size, table};
use crate::cli::output::{Format, print, to_json};

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// How to write the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Only IDs, one a line
    #[arg(short, long)]
    quiet: bool,
}

/// An image as programs read it.
#[derive(Serialize)]
struct Row {
    name: String,
    repository: String,
    tag: Option<String>,
    digest: String,
    id: String,
    created: Option<String>,
    /// Of all its blobs, compressed as they came, in bytes.
    size: u64,
}

/// Lists the images of the store.
pub(crate) fn run(args: &ImagesArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let _hold = store.hold()?;
    let mut rows = Vec::new();
    for (name, manifest) in store.names()? {
        let image = store.image(&manifest)?;
        rows.push(Row {
            name: name.to_string(),
            repository: name.familiar_repository(),
            tag: name.tag().map(str::to_owned),
            digest: manifest.digest.to_string(),
            id: image.manifest.config.digest.hex(),
            created: image.config.created.clone(),
            size: image.size(),
        });
    }
    if args.format == Format::Json {
        return Ok(print(&to_json(&rows)?)?);
    }
    if args.quiet {
        return Ok(print(&rows.iter().map(|row| format!("{}\n", &row.id[..12])).collect::<String>())?);
    }
    let mut lines = vec![["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].map(str::to_owned).to_vec()];
    for row in rows {
        let created = printable(row.created.as_deref().unwrap_or("-"));
        let created = created.get(..10).unwrap_or(&created).to_owned();
        let tag = row.tag.unwrap_or_else(|| "-".into());
        lines.push(vec![row.repository, tag, row.id[..12].to_owned(), created, size(row.size)]);
    }
    Ok(print(&table(&lines))?)
}
