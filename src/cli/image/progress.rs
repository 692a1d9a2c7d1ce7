//! How far a transfer is, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use amphi::image::registry::{Event, Progress};

use super::size;

/// How often the line is drawn anew, at most.
const INTERVAL: Duration = Duration::from_millis(100);
const WIDTH: usize = 30;

/// One line on standard error, if that is a terminal; it is wiped at the end.
#[derive(Debug)]
pub(crate) struct ProgressBar {
    name: String,
    shown: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    layers: usize,
    done: usize,
    bytes: u64,
    moved: u64,
    drawn: Option<Instant>,
}

impl ProgressBar {
    /// A bar that is not yet drawn.
    pub(crate) fn new(name: &str) -> Self {
        let state = State { layers: 0, done: 0, bytes: 0, moved: 0, drawn: None };
        Self { name: name.to_owned(), shown: io::stderr().is_terminal(), state: Mutex::new(state) }
    }
}

impl Progress for ProgressBar {
    fn report(&self, event: Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { layers, bytes } => (state.layers, state.bytes) = (layers, bytes),
            Event::Moved(bytes) => state.moved = state.moved.saturating_add(bytes),
            Event::Lost(bytes) => state.moved = state.moved.saturating_sub(bytes),
            Event::Done => state.done += 1,
        }
        let due = state.drawn.is_none_or(|drawn| drawn.elapsed() >= INTERVAL) || event == Event::Done;
        if self.shown && due {
            state.drawn = Some(Instant::now());
            // A terminal that has gone away takes nothing more, and that is no reason to stop.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{}", line(&self.name, &state));
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.shown && state.drawn.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(name: &str, state: &State) -> String {
    let moved = state.moved.min(state.bytes);
    let full = u128::from(moved) * WIDTH as u128 / u128::from(state.bytes.max(1));
    let full = usize::try_from(full).unwrap_or(WIDTH);
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
    format!("{name} [{bar}] {} of {}, {} of {} layers", size(moved), size(state.bytes), state.done, state.layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_how_far_it_is() {
        let state = State { layers: 3, done: 1, bytes: 300_000_000, moved: 100_000_000, drawn: None };
        let expected = "a [##########....................] 100 MB of 300 MB, 1 of 3 layers";
        assert_eq!(line("a", &state), expected);
        let none = State { layers: 0, done: 0, bytes: 0, moved: 5, drawn: None };
        assert!(line("a", &none).contains("0 B of 0 B"));
    }
}
