//! A door for the fuzz target; built for it only.

use super::dockerfile::{Dockerfile, Expander, Instruction};
use super::ignore::Ignore;
use super::pattern::Pattern;
use super::settings;
use crate::image::manifest::Execution;

/// Reads bytes as a Dockerfile, replaces its variables, and as a `.dockerignore`. Whatever can be read must be usable.
pub fn read_texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = Dockerfile::parse(text) {
        let value = |name: &str| (name.len() % 2 == 0).then(|| text.chars().take(64).collect());
        let expander = Expander { escape: file.escape, value: &value };
        for step in file.stages.iter().flat_map(|stage| &stage.steps) {
            drop(expander.expand(&step.text));
            drop(expander.expand_text(&step.text));
            match &step.instruction {
                Instruction::Expose(ports) => drop(settings::expose(&mut Execution::default(), &ports.join(" "))),
                Instruction::Healthcheck { options, command } => {
                    drop(settings::healthcheck(options, command.as_ref()));
                }
                _ => {}
            }
        }
    }
    if let Ok(ignore) = Ignore::parse(text) {
        let fits = ignore.fits(text.as_bytes(), None);
        let _ = ignore.leaves_out(&ignore.fits(b"a/b", Some(&fits)));
    }
    if let Ok(pattern) = Pattern::parse(text, false) {
        let _ = pattern.is_plain() && pattern.matches(&pattern.plain());
    }
}
