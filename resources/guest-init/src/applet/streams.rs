//! `echo`, `cat`, `env` and `sleep`.

use alloc::vec::Vec;

use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{NanosleepRelativeResult, nanosleep};
use rustix::time::Timespec;

use super::output::{Output, stdout, write_all};

/// `echo [-n] [WORD...]`.
pub(super) fn echo(arguments: &[Vec<u8>]) -> Result<u8, Errno> {
    let (words, end) = match arguments.split_first() {
        Some((first, rest)) if first == b"-n" => (rest, &b""[..]),
        _ => (arguments, &b"\n"[..]),
    };
    let mut line = words.join(&b' ');
    line.extend_from_slice(end);
    write_all(stdout(), &line).map(|()| 0)
}

/// `cat [FILE...]`.
pub(super) fn cat(arguments: &[Vec<u8>]) -> Result<u8, Errno> {
    if arguments.is_empty() {
        // SAFETY: this program never closes its standard streams; if the caller has, the read fails.
        copy(unsafe { BorrowedFd::borrow_raw(0) })?;
    }
    for path in arguments {
        copy(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.as_fd())?;
    }
    Ok(0)
}

fn copy(from: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        match rustix::io::read(from, spare_capacity(&mut buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) => write_all(stdout(), &buffer)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// `env`: a line for each of `list`.
pub(super) fn lines(list: &[Vec<u8>]) -> Result<u8, Errno> {
    let text: Vec<u8> = list.iter().flat_map(|entry| entry.iter().copied().chain([b'\n'])).collect();
    write_all(stdout(), &text).map(|()| 0)
}

/// `sleep SECONDS`, with up to nine decimals.
pub(super) fn sleep(arguments: &[Vec<u8>]) -> u8 {
    let [argument] = arguments else { return usage() };
    let Some(mut left) = duration(argument) else { return usage() };
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
    0
}

fn usage() -> u8 {
    Output::error(format_args!("usage: sleep SECONDS"));
    2
}

fn duration(text: &[u8]) -> Option<Timespec> {
    let text = core::str::from_utf8(text).ok()?;
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 9 || !(seconds.bytes().chain(decimals.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + i64::from(decimals.as_bytes().get(place).map_or(0, |digit| digit - b'0'));
    }
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_decimals() {
        let parsed = |text: &str| duration(text.as_bytes()).map(|d| (d.tv_sec, d.tv_nsec));
        assert_eq!(parsed("2"), Some((2, 0)));
        assert_eq!(parsed("0.05"), Some((0, 50_000_000)));
        assert_eq!(parsed("1.000000001"), Some((1, 1)));
        for text in ["", ".5", "x", "-1", "1.0000000001", "99999999999999999999"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
