//! The memory in which a process's own arguments lie, where others see them as `/proc/PID/cmdline`.
//!
//! PID 1 of a container is a copy of amphi, and amphi's command line names paths of the host.

use std::sync::OnceLock;

/// The arguments' place in this process and its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arguments {
    start: usize,
    len: usize,
}

/// Their place among the fields of `/proc/PID/stat` after the command's name: `arg_start` is the 48th of all.
const ARG_START: usize = 48 - 3;

impl Arguments {
    /// Looks them up, once a process. `None` where `/proc` does not tell.
    pub(super) fn of_this_process() -> Option<Self> {
        static PLACE: OnceLock<Option<Arguments>> = OnceLock::new();
        *PLACE.get_or_init(|| Self::parse(&std::fs::read_to_string("/proc/self/stat").ok()?))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name may contain anything, so what counts is its last parenthesis.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(ARG_START);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        (start != 0 && end > start).then_some(Self { start, len: end - start })
    }

    /// Overwrites them by `name`, cut where it does not fit.
    ///
    /// # Safety
    /// This is the process they were looked up in or a copy of it, and nothing reads or writes its arguments meanwhile.
    pub(super) unsafe fn replace(self, name: &[u8]) {
        let memory = std::ptr::with_exposed_provenance_mut::<u8>(self.start);
        // The last byte stays 0: without it the kernel takes the environment for more arguments.
        let count = name.len().min(self.len - 1);
        // SAFETY: the kernel placed `len` bytes there on the initial stack, which stays mapped and writable for the
        // life of the process, and the caller vouches that nobody else uses them.
        unsafe {
            memory.write_bytes(0, self.len);
            memory.copy_from_nonoverlapping(name.as_ptr(), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_whatever_the_name() {
        let fields: Vec<String> = (3..=52).map(|n| (n * 10).to_string()).collect();
        let stat = format!("7 (a) R (b)) {}\n", fields.join(" "));
        assert_eq!(Arguments::parse(&stat), Some(Arguments { start: 480, len: 10 }));
        assert_eq!(Arguments::parse("7 (a) R 1 2 3"), None);
        assert_eq!(Arguments::parse(""), None);
    }

    #[test]
    fn it_is_found_in_this_process() {
        let place = Arguments::of_this_process().unwrap();
        let given: usize = std::env::args_os().map(|argument| argument.len() + 1).sum();
        assert_eq!(place.len, given);
    }
}
