//! `amphi history`.

use amphi::image::Store;
use clap::Args;
use serde::Serialize;

use super::find::find;
use super::{ImageCommandError, printable, size, table};
use crate::cli::output::{Format, print, to_json};

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The image
    #[arg(value_name = "NAME|ID")]
    image: String,
    /// How to write the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A step as programs read it.
#[derive(Serialize)]
struct Row {
    created: Option<String>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    /// The digest of the layer that it made.
    layer: Option<String>,
    /// Of the layer, compressed, in bytes.
    size: u64,
}

/// Lists the steps that made an image, the newest first.
pub(crate) fn run(args: &HistoryArgs) -> Result<(), ImageCommandError> {
    let store = Store::open_default()?;
    let (image, _) = find(&store, &args.image)?;
    let mut layers = image.manifest.layers.iter();
    let mut rows = Vec::new();
    for step in image.config.history.clone().unwrap_or_default() {
        let layer = if step.empty_layer { None } else { layers.next() };
        rows.push(Row {
            created: step.created,
            created_by: step.created_by,
            author: step.author,
            comment: step.comment,
            layer: layer.map(|layer| layer.digest.to_string()),
            size: layer.map_or(0, |layer| layer.size),
        });
    }
    // Layers that nobody says anything about.
    rows.extend(layers.map(|layer| Row {
        created: None,
        created_by: None,
        author: None,
        comment: None,
        layer: Some(layer.digest.to_string()),
        size: layer.size,
    }));
    rows.reverse();
    if args.format == Format::Json {
        return Ok(print(&to_json(&rows)?)?);
    }
    let mut lines = vec![["LAYER", "CREATED", "SIZE", "CREATED BY"].map(str::to_owned).to_vec()];
    for row in rows {
        let layer = row.layer.map_or_else(|| "-".into(), |digest| digest["sha256:".len()..][..12].to_owned());
        let created = printable(row.created.as_deref().unwrap_or("-"));
        let by: String = printable(row.created_by.as_deref().unwrap_or("-")).chars().take(80).collect();
        lines.push(vec![layer, created.get(..10).unwrap_or(&created).to_owned(), size(row.size), by]);
    }
    Ok(print(&table(&lines))?)
}
