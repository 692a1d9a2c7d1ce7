//! What a VMM's process holds beside the guest's RAM.

use std::fs;
use std::io;

use crate::subject::MEMORY_MIB;

/// A process's resident set, in KiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Footprint {
    /// Mappings that are guest RAM.
    pub(crate) guest: u64,
    /// All others.
    pub(crate) vmm: u64,
}

impl Footprint {
    /// Reads `/proc/PID/smaps`. Guest RAM is each mapping as large as it: VMMs name theirs differently or not at all.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut footprint = Self::default();
        let mut in_guest = false;
        for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            if let Some(size) = mapping_size(line) {
                in_guest = size >= u64::from(MEMORY_MIB) << 20;
            } else if let Some(rest) = line.strip_prefix("Rss:") {
                let size: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
                *if in_guest { &mut footprint.guest } else { &mut footprint.vmm } += size;
            }
        }
        Ok(footprint)
    }
}

/// The size of the mapping that a line announces, in bytes; none where the line is about something else.
fn mapping_size(line: &str) -> Option<u64> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(end)? - number(start)?)
}
