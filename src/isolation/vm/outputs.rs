//! The end of a workload's output streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often it is looked whether the guest still has a reason to keep a stream open.
const PAUSE: Duration = Duration::from_millis(20);

/// The workload's output streams that the guest has not closed yet.
#[derive(Debug)]
pub(super) struct Outputs {
    /// Duplicates of the host's ends; those of streams that are closed are gone.
    open: Mutex<Vec<Option<OwnedFd>>>,
    changed: Condvar,
}

impl Outputs {
    /// Streams that all are open and end in `streams`.
    pub(super) fn new(streams: &[&OwnedFd]) -> io::Result<Self> {
        let open = streams.iter().map(|fd| fd.try_clone().map(Some)).collect::<io::Result<_>>()?;
        Ok(Self { open: Mutex::new(open), changed: Condvar::new() })
    }

    /// Notes that the guest has closed the stream `index`.
    pub(super) fn close(&self, index: usize) {
        if let Some(stream) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            *stream = None;
        }
        self.changed.notify_all();
    }

    /// Waits until the guest has closed all streams, or `ended` says that it is gone. Returns whether it was one of the two.
    ///
    /// A reader of the host's who is slow is waited for, however long. A guest that could go on and does not, or goes on
    /// for ever, is given up after `grace`: it is one that was taken over by its workload. While it is `paused`, it cannot.
    pub(super) fn wait_closed(&self, grace: Duration, ended: impl Fn() -> bool, paused: impl Fn() -> bool) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = grace;
        while open.iter().any(Option::is_some) && !ended() {
            let (guard, pause) = self.changed.wait_timeout(open, PAUSE).unwrap_or_else(PoisonError::into_inner);
            open = guard;
            if pause.timed_out() && !paused() && open.iter().flatten().all(takes_more) {
                left = left.saturating_sub(PAUSE);
                if left.is_zero() {
                    return false;
                }
            }
        }
        true
    }
}

/// Whether a write to `stream` would not wait, were it only to fail.
fn takes_more(stream: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::OUT)];
    !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const GRACE: Duration = Duration::from_millis(60);

    #[test]
    fn a_guest_that_closes_nothing_is_given_up() {
        let (reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let outputs = Outputs::new(&[&writer, &writer]).unwrap();
        assert!(!outputs.wait_closed(GRACE, || false, || false));
        outputs.close(0);
        assert!(!outputs.wait_closed(GRACE, || false, || false), "one is still open");
        drop(reader);
        assert!(!outputs.wait_closed(GRACE, || false, || false), "nobody reads any more");
        assert!(outputs.wait_closed(GRACE, || true, || false), "the guest is gone");
        outputs.close(1);
        assert!(outputs.wait_closed(GRACE, || false, || false));
    }

    #[test]
    fn a_slow_reader_is_waited_for() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[0; 64 << 10]).unwrap();
        let outputs = Arc::new(Outputs::new(&[&writer.into()]).unwrap());
        let closed = Arc::new(AtomicBool::new(false));
        let slow = thread::spawn({
            let (outputs, closed) = (Arc::clone(&outputs), Arc::clone(&closed));
            move || {
                thread::sleep(GRACE * 5);
                closed.store(true, Ordering::Relaxed);
                outputs.close(0);
                reader.read_to_end(&mut Vec::new()).unwrap()
            }
        });
        assert!(outputs.wait_closed(GRACE, || false, || false) && closed.load(Ordering::Relaxed));
        assert_eq!(slow.join().unwrap(), 64 << 10, "and the stream has ended with its closing");
    }
}
