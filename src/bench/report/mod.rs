//! A comparison in the formats it can be written in.

mod json;
mod table;

pub use json::json;
pub use table::table;

/// Serializes a value as its display text.
pub(super) fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
