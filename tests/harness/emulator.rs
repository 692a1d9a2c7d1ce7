//! Failures that the lab's emulator may have made.
//!
//! QEMU's nested virtualisation is not sound: now and then a guest loses its page tables and hits a triple fault, or waits for an
//! interrupt for ever; docs/testing.md has the evidence. A case of a microVM's that fails in just these ways is run once more,
//! alone in a fresh lab, and what happened is said. Every other failure counts at once, and so does one that repeats.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Names the file in which the run in the lab notes its failures.
pub(super) const NOTES: &str = "AMPHI_TEST_FAILURES";
/// What such a failure's message has in it.
const SIGNS: [&str; 3] = ["a vCPU hit a triple fault", "it did not end in time", "did not come out"];
/// More than this in one run is no accident.
const MOST: usize = 2;

/// Notes that a case has failed, where that is asked for.
pub(super) fn note_failure(name: &str, message: &str) {
    let Some(path) = std::env::var_os(NOTES) else { return };
    let suspect = name.starts_with("vm::") && SIGNS.iter().any(|sign| message.contains(sign));
    let word = if suspect { "emulator?" } else { "failed" };
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{word} {name}")).expect("failures can be noted");
}

/// The cases to run once more: all that failed, if the emulator may have made every one of the failures.
pub(super) fn to_repeat(notes: &Path) -> Vec<String> {
    let notes = fs::read_to_string(notes).unwrap_or_default();
    let suspects: Option<Vec<_>> = notes.lines().map(|line| line.strip_prefix("emulator? ")).collect();
    suspects.filter(|suspects| suspects.len() <= MOST).unwrap_or_default().into_iter().map(str::to_owned).collect()
}
