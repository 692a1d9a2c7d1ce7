//! The commands about images.

mod files;
mod find;
mod history;
mod inspect;
mod list;
mod login;
mod progress;
mod prune;
mod remove;
mod tag;
mod transfer;

pub(crate) use files::{LoadArgs, SaveArgs, load, save};
pub(crate) use history::{HistoryArgs, run as history};
pub(crate) use inspect::{InspectArgs, run as inspect};
pub(crate) use list::{ImagesArgs, run as list};
pub(crate) use login::{LoginArgs, LogoutArgs, forget as logout, login};
pub(crate) use progress::ProgressBar;
pub(crate) use prune::{PruneArgs, run as prune};
pub(crate) use remove::{RmiArgs, run as remove};
pub(crate) use tag::{TagArgs, run as tag};
pub(crate) use transfer::{PullArgs, PushArgs, pull, push};

use amphi::image::archive::ArchiveError;
use amphi::image::registry::{CredentialError, RegistryError};
use amphi::image::{ParseNameError, StoreError};

use crate::error::CliError;

/// Why a command about images failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageCommandError {
    /// A name is malformed.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry does not do what it is asked for.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layout or archive cannot be read or written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Credentials cannot be kept.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// No image has that name or ID.
    #[error("{0} is not in the store: `amphi images` lists what is")]
    Unknown(String),
    /// Several images have an ID that begins so.
    #[error("{0} begins the IDs of several images: write more of it")]
    Ambiguous(String),
    /// The image has several names.
    #[error("{id} has {count} names: remove them one by one, or all with --force")]
    SeveralNames {
        /// What was asked for.
        id: String,
        /// How many.
        count: usize,
    },
    /// The result cannot be written, or the like.
    #[error(transparent)]
    Cli(Box<CliError>),
}

impl From<CliError> for ImageCommandError {
    fn from(error: CliError) -> Self {
        Self::Cli(Box::new(error))
    }
}

/// `bytes` as people read sizes: in units of 1000, as docker shows them.
fn size(bytes: u64) -> String {
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
fn table(rows: &[Vec<String>]) -> String {
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
fn printable(text: &str) -> String {
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
