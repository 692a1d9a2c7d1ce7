//! The time between the workload's start and its end.

use alloc::vec::Vec;

use amphi_guest_init::ToGuest;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};
use rustix::termios::{Winsize, tcsetwinsize};

use super::failure::{Context, Failure};
use super::ports::{Control, Ports};
use super::pump::Pump;
use super::workload::{Running, Streams};
use crate::syscall;

/// A terminal's end-of-input character. Twice: the first ends a line that has no newline.
const END_OF_INPUT: &[u8] = b"\x04\x04";

/// Children, the control port, and two ends of each of three pumps.
const MOST_EVENTS: usize = 8;

/// Carries the streams, passes signals on and reaps, until the workload has ended, everything it left behind is
/// gone and all output is with the host. Returns the wait status.
pub(super) fn supervise(running: Running, ports: Ports, control: &mut Control) -> Result<i32, Failure> {
    let Running { pid, streams, children } = running;
    let Connected { mut stdin, mut outputs, mut terminal } =
        connect(streams, ports).context(|| "cannot set up the workload's streams".into())?;
    let mut ended = None;
    // Kept, because the heap takes back only what it gave out last: that is the list of descriptors then.
    let mut events: Vec<PollFlags> = Vec::with_capacity(MOST_EVENTS);
    while ended.is_none() || outputs.iter().any(|output| !output.finished()) {
        let mut fds = Vec::with_capacity(MOST_EVENTS);
        fds.push(PollFd::new(&children, PollFlags::IN));
        let listening = control.listening();
        if listening {
            fds.push(PollFd::new(&control.port, PollFlags::IN));
        }
        for pump in stdin.iter().chain(&outputs) {
            pump.interest(&mut fds);
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "cannot wait for events".into()),
        }
        events.clear();
        events.extend(fds.iter().map(PollFd::revents));
        drop(fds);
        let mut events = events.iter().copied();

        let child_event = events.next().is_some_and(|event| !event.is_empty());
        if listening && events.next().is_some_and(|event| !event.is_empty()) {
            for message in control.receive() {
                obey(message, ended.is_none().then_some(pid), terminal.as_ref());
            }
        }
        for pump in stdin.iter_mut().chain(&mut outputs) {
            pump.advance(&mut events);
        }
        if child_event && ended.is_none() {
            ended = reap(&children, pid);
            if ended.is_some() {
                clear_away();
                stdin = None;
                terminal = None;
            }
        }
    }
    Ok(ended.unwrap_or_default())
}

/// The pumps, and the terminal if there is one, held open so that it ends no sooner than the workload.
struct Connected {
    stdin: Option<Pump>,
    outputs: Vec<Pump>,
    terminal: Option<OwnedFd>,
}

fn connect(streams: Streams, ports: Ports) -> Result<Connected, Errno> {
    Ok(match streams {
        Streams::Pipes { stdin, stdout, stderr } => Connected {
            stdin: ports.stdin.zip(stdin).map(|(port, pipe)| Pump::new(port, pipe)),
            outputs: Vec::from([Pump::new(stdout, ports.stdout), Pump::new(stderr, ports.stderr)]),
            terminal: None,
        },
        Streams::Terminal { master, slave } => {
            rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
            let writer = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
            // Nothing comes on standard error: its port closes here.
            Connected {
                stdin: ports.stdin.map(|port| Pump::new(port, writer).with_ending(END_OF_INPUT)),
                outputs: Vec::from([Pump::new(master, ports.stdout)]),
                terminal: Some(slave),
            }
        }
    })
}

/// Does what the host says, where it still can be done.
fn obey(message: ToGuest, workload: Option<Pid>, terminal: Option<&OwnedFd>) {
    match (message, workload, terminal) {
        (ToGuest::Signal(number), Some(pid), _) => {
            let _ = syscall::kill(pid, number);
        }
        (ToGuest::Resize { rows, columns }, _, Some(terminal)) => {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = tcsetwinsize(terminal, size);
        }
        _ => {}
    }
}

/// Takes the ends of all children that have ended; returns the workload's wait status if it is among them.
fn reap(children: &OwnedFd, workload: Pid) -> Option<i32> {
    // The event says only that some child has ended; how many, only waiting tells.
    let _ = rustix::io::read(children, &mut [0_u8; 128]);
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == workload {
            ended = Some(status.as_raw());
        }
    }
    ended
}

/// Kills what the workload left behind, and waits until it is gone, so that nothing writes output or files any more.
fn clear_away() {
    let _ = syscall::kill_all();
    while !matches!(wait(WaitOptions::empty()), Err(Errno::CHILD)) {}
}
