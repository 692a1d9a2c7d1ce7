//! Flow control of one connection (specification section 5.10.6.3): neither side sends what the other has no room for.
//!
//! All counts of bytes run from the connection's beginning and wrap at 2^32.

use super::packet::Header;

/// The guest has sent more than it was given room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// Both directions' accounts.
#[derive(Debug)]
pub(super) struct Credit {
    /// How much of the guest's data is kept here at most.
    window: u32,
    /// What the guest has sent.
    received: u32,
    /// How much of that has been passed on to the host's socket.
    forwarded: u32,
    /// How much of that the guest knows.
    told: u32,
    /// What was sent to the guest.
    sent: u32,
    /// How much the guest keeps at most, as it says.
    guest_window: u32,
    /// How much the guest has passed on, as it says.
    guest_forwarded: u32,
    /// The guest has been asked for news, and has not given any that help.
    asked: bool,
}

impl Credit {
    pub(super) fn new(window: u32) -> Self {
        let (received, forwarded, told, sent, guest_window, guest_forwarded) = (0, 0, 0, 0, 0, 0);
        Self { window, received, forwarded, told, sent, guest_window, guest_forwarded, asked: false }
    }

    /// Notes what every packet of the guest's says.
    pub(super) fn note(&mut self, header: &Header) {
        self.guest_window = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.room_in_guest() > 0 {
            self.asked = false;
        }
    }

    /// Says on a packet for the guest how things are here.
    pub(super) fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = self.window;
        header.fwd_cnt = self.forwarded;
        self.told = self.forwarded;
    }

    /// How many bytes the guest has room for. One that speaks nonsense has none.
    pub(super) fn room_in_guest(&self) -> u32 {
        self.guest_window.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// `count` bytes were sent to the guest.
    pub(super) fn send(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// `count` bytes came from the guest.
    pub(super) fn receive(&mut self, count: u32) -> Result<(), Overrun> {
        let kept = self.received.wrapping_sub(self.forwarded);
        if count > self.window.saturating_sub(kept) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(count);
        Ok(())
    }

    /// `count` of the guest's bytes were passed on.
    pub(super) fn forward(&mut self, count: usize) {
        // What is passed on was received, so that it fits.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(count).unwrap_or(0));
    }

    /// Whether the guest should hear of new room: it knows of less than half of the window, and there is more.
    pub(super) fn update_due(&self) -> bool {
        let known = self.window.saturating_sub(self.received.wrapping_sub(self.told));
        known < self.window / 2 && self.told != self.forwarded
    }

    /// Whether to ask the guest for news, because it has no room and was not asked yet.
    pub(super) fn must_ask(&self) -> bool {
        !self.asked && self.room_in_guest() == 0
    }

    /// The guest is being asked.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Key, Op};
    use super::*;

    fn news(buf_alloc: u32, fwd_cnt: u32) -> Header {
        let header = Header::to_guest(3, Key { host_port: 1, guest_port: 2 }, Op::CreditUpdate);
        Header { buf_alloc, fwd_cnt, ..header }
    }

    #[test]
    fn the_guest_gets_what_it_has_room_for() {
        let mut credit = Credit::new(1000);
        assert!(credit.must_ask());
        credit.ask();
        assert!(!credit.must_ask(), "once is enough");
        credit.note(&news(100, 0));
        credit.send(100);
        assert_eq!(credit.room_in_guest(), 0);
        assert!(credit.must_ask());
        credit.note(&news(100, 60));
        assert_eq!(credit.room_in_guest(), 60);
        credit.note(&news(30, 60));
        assert_eq!(credit.room_in_guest(), 0, "a window may shrink below what is under way");
        credit.note(&news(u32::MAX, 101));
        assert_eq!(credit.room_in_guest(), 0, "more passed on than was sent");
    }

    #[test]
    fn the_guest_may_send_the_window_and_no_more() {
        let mut credit = Credit::new(1000);
        // Counts wrap.
        (credit.received, credit.forwarded, credit.told) = (u32::MAX - 10, u32::MAX - 10, u32::MAX - 10);
        assert_eq!(credit.receive(600), Ok(()));
        assert_eq!(credit.receive(401), Err(Overrun));
        assert!(!credit.update_due(), "there is nothing to tell");
        credit.forward(600);
        assert!(credit.update_due());
        assert_eq!(credit.receive(1000), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        let mut header = news(0, 0);
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (1000, 589));
        assert!(!credit.update_due());
    }
}
