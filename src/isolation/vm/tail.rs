//! The last of what a guest's serial console said, kept for error messages.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// How much is kept, in bytes: enough for a kernel's panic message.
const KEPT: usize = 16 << 10;

/// A sink that remembers its last bytes. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// What was said, with a line break and a heading before it; empty where nothing was.
    pub(super) fn as_error_text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = plain_text(&String::from_utf8_lossy(&bytes));
        if text.is_empty() { String::new() } else { format!("\nThe guest's console said last:\n{text}") }
    }
}

/// A guest's text without what a terminal would obey: nothing of a hostile guest may reach one as a control sequence.
pub(super) fn plain_text(text: &str) -> String {
    let text: String = text.chars().filter(|&c| c == '\n' || !c.is_control()).collect();
    text.trim().to_owned()
}

impl io::Write for Tail {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend_from_slice(buffer);
        if bytes.len() > 2 * KEPT {
            let excess = bytes.len() - KEPT;
            bytes.drain(..excess);
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_last_is_kept_and_without_control_characters() {
        let mut tail = Tail::default();
        assert_eq!(tail.as_error_text(), "");
        for _ in 0..10_000 {
            tail.write_all(b"0123456789").unwrap();
        }
        tail.write_all(b"\x1b[31mpanic\r\n").unwrap();
        let text = tail.as_error_text();
        assert!(text.ends_with("789[31mpanic") && text.len() <= 2 * KEPT + 100);
    }
}
