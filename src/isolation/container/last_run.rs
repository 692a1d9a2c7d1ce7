//! Which process was PID 1 of the last container on a kept layer, so that who uses the layer next can wait for its end.
//!
//! When amphi is killed its locks are free at once, but its container has only begun to end, and may write for as long as that takes.
//! PID 1 is the last to end: the kernel keeps it until all others of its PID namespace are gone, and each has closed its files
//! and left its mount namespace before.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::launch::kill;

/// The note in the layer's folder.
const FILE: &str = "pid1";

/// Notes that `pid` is PID 1 of a container on the layer in `folder`. To be called before the container, which does nothing by
/// itself as long as amphi has not let it, can write to the layer.
pub(super) fn note(folder: &Path, pid: i32) -> io::Result<()> {
    fs::write(folder.join(FILE), identity(pid)? + "\n")
}

/// Ends the container that was last noted in `folder`, should it still be there without its amphi, and waits until it is gone.
///
/// # Errors
/// That takes longer than `patience`: the number of its PID 1.
pub(super) fn end(folder: &Path, patience: Duration) -> Result<(), i32> {
    let note = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
    // A line that is not whole was never acted on: see `note`.
    let Some(noted) = note.strip_suffix('\n') else { return Ok(()) };
    let number = noted.split(' ').next().and_then(|number| number.parse::<u32>().ok());
    let pid = number.and_then(|number| i32::try_from(number).ok()).and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    // The number could be another's by now, but not since the descriptor was opened.
    if !identity(pid.as_raw_pid()).is_ok_and(|now| now == noted) {
        return Ok(());
    }
    log::info!("the container of a run that was killed is still ending: waiting for its process {pid}");
    // It is on its way out, unless it is stopped.
    if let Err(errno) = kill(process.as_fd()) {
        log::debug!("cannot kill process {pid}: {errno}");
    }
    if has_ended(process.as_fd(), patience) { Ok(()) } else { Err(pid.as_raw_pid()) }
}

/// What no other process has: its number, when it began, and since which start of the host that counts.
fn identity(pid: i32) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    // `starttime` is the 22nd field (proc_pid_stat(5)); the second, the name in brackets, may hold anything.
    let start = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(19));
    let start = start.ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("{pid} {start} {}", boot.trim_end()))
}

/// Waits until the process has ended; whether it has within `patience`.
fn has_ended(process: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(process, PollFlags::IN)], timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ended => return ended.is_ok_and(|count| count > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// The process that would be ended wrongly is this one.
    #[test]
    fn nothing_is_ended_but_what_was_noted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(end(folder.path(), LONG), Ok(()), "nothing was run");
        let own = i32::try_from(std::process::id()).unwrap();
        note(folder.path(), own).unwrap();
        let whole = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let torn = whole.strip_suffix('\n').unwrap();
        assert_eq!(torn, identity(own).unwrap());
        let parts: Vec<_> = torn.split(' ').collect();
        let [pid, start, boot] = parts[..] else { panic!("{whole:?}") };
        let (earlier, other_boot) = (format!("{pid} 1{start} {boot}\n"), format!("{pid} {start} {boot}0\n"));
        for note in ["", "\n", "x\n", "-1 2 3\n", "0 2 3\n", "4294967295 2 3\n", torn, &earlier, &other_boot] {
            fs::write(folder.path().join(FILE), note).unwrap();
            assert_eq!(end(folder.path(), LONG), Ok(()), "{note:?}");
        }
    }

    #[test]
    fn waiting_has_an_end() {
        let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        assert!(!has_ended(process.as_fd(), Duration::ZERO));
        assert!(!has_ended(process.as_fd(), Duration::from_millis(1)));
    }
}
