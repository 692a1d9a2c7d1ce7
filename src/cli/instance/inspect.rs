//! `amphi inspect`, for instances.

use amphi::instance::{Instance, Record};
use serde::Serialize;

use super::list::Row;
use crate::cli::output::{print, to_json};
use crate::error::CliError;

#[derive(Serialize)]
struct Inspection<'a> {
    #[serde(flatten)]
    row: Row,
    folder: String,
    record: &'a Record,
}

/// Prints all that is known of an instance, as JSON.
pub(crate) fn run(instance: &Instance) -> Result<(), CliError> {
    let folder = instance.folder().display().to_string();
    print(&to_json(&Inspection { row: Row::new(instance, true), folder, record: &instance.record })?)
}
