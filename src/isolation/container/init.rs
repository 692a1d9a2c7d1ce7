//! PID 1 of a container: reaps, forwards signals, reports how the workload ended, and ends with its parent.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::process::{Pid, WaitOptions, wait};

use super::report::Report;
use super::step::{At, Failure, Step};
use super::{capabilities, syscalls};

/// Every signal.
const ALL: u64 = u64::MAX;
/// `sizeof(struct signalfd_siginfo)`; its first four bytes are the signal's number.
const SIGNAL_RECORD: usize = 128;

/// Runs until the workload or the parent has ended. The kernel then ends whatever else is in the container.
pub(super) fn run(control: BorrowedFd<'_>, workload: i32, report: &Report) -> ! {
    if let Err(failure) = serve(control, workload, report) {
        report.fail(failure);
    }
    syscalls::exit(125)
}

fn serve(control: BorrowedFd<'_>, workload: i32, report: &Report) -> Result<(), Failure> {
    // No descriptor that the set-up needed stays open, so none is there to be stolen.
    syscalls::close_all_but(&[control.as_raw_fd()]).at(Step::CloseFiles)?;
    capabilities::keep_kill_only().at(Step::InitCapabilities)?;
    // All signals have been blocked since before the clone: what has arrived since is waiting here.
    let signals = syscalls::signalfd(ALL).at(Step::InitSignals)?;
    loop {
        let mut ready = [PollFd::new(&control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).at(Step::InitSignals),
        }
        if !ready[1].revents().is_empty() {
            take_signals(&signals, workload, report);
        }
        if !ready[0].revents().is_empty() {
            let mut signal = [0u8; 1];
            match read(control, &mut signal) {
                // The parent has ended, however it did: so does the container.
                Ok(0) => syscalls::exit(125),
                Ok(_) => forward(workload, i32::from(signal[0])),
                Err(_) => {}
            }
        }
    }
}

fn take_signals(signals: &impl std::os::fd::AsFd, workload: i32, report: &Report) {
    let mut record = [0u8; SIGNAL_RECORD];
    while let Ok(SIGNAL_RECORD) = read(signals, &mut record) {
        let number = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        if number == libc::SIGCHLD {
            reap(workload, report);
        } else {
            forward(workload, number);
        }
    }
}

/// Takes leave of every child that has ended: the workload, or orphans of its.
fn reap(workload: i32, report: &Report) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == workload {
            report.workload_ended(status.as_raw());
            syscalls::exit(0);
        }
    }
}

fn forward(workload: i32, signal: i32) {
    if let Some(pid) = Pid::from_raw(workload) {
        // SAFETY: takes integers; a number that is no signal is refused by the kernel.
        unsafe { libc::kill(pid.as_raw_pid(), signal) };
    }
}
