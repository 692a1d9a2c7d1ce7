//! The control channel to the guest's PID 1, from the host's side: what guests say on it, one after the other.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use amphi_guest_init::{Decoder, FromGuest};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// How much is read at once.
const BUFFER: usize = 1024;
/// How much of what has arrived is looked at before it is read.
const PEEKED: usize = 16 << 10;

/// The control channel of one machine.
pub(super) struct Channel {
    pub(super) control: UnixStream,
    /// The other end, by which the console reaches it.
    guest_end: UnixStream,
    reports: Mutex<Reports>,
}

/// What the present guest has reported. Whoever reads the channel, or begins with another guest, holds it.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) decoder: Decoder<FromGuest>,
    /// Whether the last report has come: there is no other guest after that.
    pub(super) complete: bool,
}

impl Channel {
    pub(super) fn new(control: UnixStream, guest_end: UnixStream) -> Self {
        Self { control, guest_end, reports: Mutex::default() }
    }

    pub(super) fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what has arrived, without waiting. Returns whether the channel has come to its end.
    pub(super) fn receive(&self, reports: &mut Reports) -> Result<bool, Errno> {
        let mut buffer = [0; BUFFER];
        let (_, count) = recv(&self.control, &mut buffer[..], RecvFlags::DONTWAIT)?;
        reports.decoder.push(&buffer[..count]);
        Ok(count == 0)
    }

    /// Whether the workload's end has been reported, be it that nobody has read that yet.
    pub(super) fn is_complete(&self, reports: &Reports) -> bool {
        let mut waiting = vec![0; PEEKED];
        let count = recv(&self.control, &mut waiting[..], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        let mut decoder = reports.decoder.clone();
        decoder.push(&waiting[..count.map_or(0, |(_, count)| count)]);
        reports.complete || decoder.any(|report| !matches!(report, Ok(FromGuest::Ready)))
    }

    /// Forgets what is under way in either direction: another guest is about to begin. The console must rest.
    pub(super) fn begin_anew(&self, reports: &mut Reports) {
        reports.decoder = Decoder::new();
        drain(&self.control);
        drain(&self.guest_end);
    }
}

/// Throws away what has arrived at `end`.
fn drain(end: impl AsFd) {
    let mut buffer = vec![0; PEEKED];
    while matches!(recv(&end, &mut buffer[..], RecvFlags::DONTWAIT), Ok((_, 1..)) | Err(Errno::INTR)) {}
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use amphi_guest_init::{Message, ToGuest};

    use super::*;

    #[test]
    fn another_guest_begins_with_an_empty_channel() {
        let (control, guest_end) = UnixStream::pair().unwrap();
        let console = guest_end.try_clone().unwrap();
        let channel = Channel::new(control, guest_end);
        let mut reports = channel.reports();
        let report = FromGuest::Exited { wait_status: 0 }.encode();
        let (first, second) = report.split_at(3);
        (&console).write_all(&FromGuest::Ready.encode()).unwrap();
        assert!(!channel.is_complete(&reports));
        (&console).write_all(first).unwrap();
        assert!(!channel.receive(&mut reports).unwrap());
        assert!(matches!(reports.decoder.next(), Some(Ok(FromGuest::Ready))));
        (&console).write_all(second).unwrap();
        assert!(channel.is_complete(&reports), "half of it is read, half is not");
        (&channel.control).write_all(&ToGuest::Signal(15).encode()).unwrap();

        channel.begin_anew(&mut reports);
        assert_eq!(channel.receive(&mut reports), Err(Errno::AGAIN));
        assert_eq!(recv(&console, &mut [0; 8][..], RecvFlags::DONTWAIT).unwrap_err(), Errno::AGAIN);
        (&console).write_all(&report).unwrap();
        channel.receive(&mut reports).unwrap();
        assert!(matches!(reports.decoder.next(), Some(Ok(FromGuest::Exited { wait_status: 0 }))));
    }

    #[test]
    fn nonsense_is_complete() {
        let (control, guest_end) = UnixStream::pair().unwrap();
        (&guest_end).write_all(&[0xff; 64 << 10]).unwrap();
        let channel = Channel::new(control, guest_end);
        let mut reports = channel.reports();
        assert!(channel.is_complete(&reports), "whoever follows the guest says what is wrong");
        channel.begin_anew(&mut reports);
        assert!(!channel.is_complete(&reports));
    }
}
