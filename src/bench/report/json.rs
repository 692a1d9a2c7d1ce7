//! A comparison for programs.

use crate::bench::Comparison;

/// The comparison as indented JSON: times in nanoseconds, memory in bytes, every sample included.
///
/// # Errors
/// None that is known: the structure holds nothing that JSON cannot.
pub fn json(comparison: &Comparison) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(comparison).map(|text| text + "\n")
}
