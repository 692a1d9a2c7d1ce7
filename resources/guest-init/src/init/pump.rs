//! Carrying one stream, without loss and without waiting.

use alloc::vec::Vec;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// As much as a pipe holds by default.
const BUFFER: usize = 64 << 10;

/// Carries bytes from one non-blocking descriptor to another. It holds at most one buffer of them, and reads on
/// only when that is empty, so that a slow receiver slows the sender down and nothing is lost.
///
/// It reads and writes rather than splices: virtio_console drops what was spliced if its queue has fewer
/// descriptors left than the pipe has pages, whereas a write takes one descriptor and fails cleanly.
pub(super) struct Pump {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    buffer: Vec<u8>,
    /// How much of the buffer is written.
    done: usize,
    /// What is written where the stream ends.
    ending: &'static [u8],
}

impl Pump {
    pub(super) fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from: Some(from), to: Some(to), buffer: Vec::with_capacity(BUFFER), done: 0, ending: b"" }
    }

    /// Writes `ending` where the stream ends, as a terminal needs it.
    pub(super) fn with_ending(self, ending: &'static [u8]) -> Self {
        Self { ending, ..self }
    }

    /// Whether everything is carried, or nobody takes it, and both descriptors are closed.
    pub(super) fn finished(&self) -> bool {
        self.to.is_none()
    }

    /// Stops carrying and closes both descriptors.
    pub(super) fn stop(&mut self) {
        self.from = None;
        self.to = None;
    }

    /// What to wait for: something to read or room to write; while there is nothing to write, the receiver going away.
    pub(super) fn interest<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let Some(to) = &self.to else { return };
        if self.buffer.is_empty() {
            fds.push(PollFd::new(to, PollFlags::empty()));
            fds.extend(self.from.as_ref().map(|from| PollFd::new(from, PollFlags::IN)));
        } else {
            fds.push(PollFd::new(to, PollFlags::OUT));
        }
    }

    /// Takes what [`interest`](Self::interest) asked for off the front of `events`, and does what is possible.
    pub(super) fn advance(&mut self, events: &mut impl Iterator<Item = PollFlags>) {
        if self.to.is_none() {
            return;
        }
        let to = events.next().unwrap_or(PollFlags::empty());
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if to.intersects(gone) && !to.contains(PollFlags::OUT) {
            return self.stop();
        }
        if self.buffer.is_empty() && self.from.is_some() {
            if events.next().unwrap_or(PollFlags::empty()).is_empty() {
                return;
            }
            self.read();
        }
        self.write();
    }

    fn read(&mut self) {
        let Some(from) = &self.from else { return };
        match rustix::io::read(from, spare_capacity(&mut self.buffer)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(1..) => {}
            // A terminal ends with EIO.
            Ok(0) | Err(_) => {
                self.from = None;
                self.buffer.extend_from_slice(self.ending);
            }
        }
    }

    fn write(&mut self) {
        while let Some(to) = &self.to
            && self.done < self.buffer.len()
        {
            match rustix::io::write(to, &self.buffer[self.done..]) {
                Ok(written) => self.done += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.stop(),
            }
        }
        self.buffer.clear();
        self.done = 0;
        if self.from.is_none() {
            self.to = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap()
    }

    fn turn(pump: &mut Pump) {
        let mut fds = Vec::new();
        pump.interest(&mut fds);
        rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap();
        let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
        pump.advance(&mut events.into_iter());
    }

    /// Sends more than all buffers hold through a pump, and reads it slowly.
    #[test]
    fn nothing_is_lost_or_reordered_under_backpressure() {
        let ((from, source), (sink, to)) = (pipe(), pipe());
        let mut pump = Pump::new(from, to);
        let data: Vec<u8> = (0..1_000_003_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let (mut sent, mut got, mut source) = (0, Vec::new(), Some(source));
        while !pump.finished() || got.len() < data.len() {
            if let Some(fd) = &source {
                match rustix::io::write(fd, &data[sent..]) {
                    Ok(length) => sent += length,
                    Err(errno) => assert_eq!(errno, Errno::AGAIN),
                }
                if sent == data.len() {
                    source = None;
                }
            }
            turn(&mut pump);
            let mut piece = [0; 1777];
            if let Ok(length) = rustix::io::read(&sink, &mut piece) {
                got.extend_from_slice(&piece[..length]);
            }
        }
        assert!(got == data, "{} bytes of {}", got.len(), data.len());
        // A child that another test has forked may hold the other end open until it executes its program.
        let end = std::iter::repeat_with(|| rustix::io::read(&sink, &mut [0; 1]));
        let end = end.inspect(|_| std::thread::yield_now()).find(|end| *end != Err(Errno::AGAIN));
        assert_eq!(end, Some(Ok(0)), "the end is passed on");
    }

    #[test]
    fn a_receiver_that_goes_away_is_noticed_while_idle() {
        let ((from, source), (sink, to)) = (pipe(), pipe());
        let mut pump = Pump::new(from, to);
        turn(&mut pump);
        assert!(!pump.finished());
        drop(sink);
        turn(&mut pump);
        assert!(pump.finished());
        assert_eq!(rustix::io::write(&source, b"x"), Err(Errno::PIPE), "the sender notices too");
    }

    #[test]
    fn an_ending_is_written_at_the_end() {
        let ((from, source), (sink, to)) = (pipe(), pipe());
        let mut pump = Pump::new(from, to).with_ending(b"\x04");
        rustix::io::write(&source, b"abc").unwrap();
        turn(&mut pump);
        drop(source);
        turn(&mut pump);
        let mut got = [0; 16];
        assert_eq!(rustix::io::read(&sink, &mut got), Ok(4));
        assert_eq!(&got[..4], b"abc\x04");
        assert!(pump.finished());
    }
}
