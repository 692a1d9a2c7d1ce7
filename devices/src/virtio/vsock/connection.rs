//! One connection between a socket on the host and one in the guest: what was opened, closed and sent, and what the
//! guest is still to be told.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::credit::Credit;
use super::packet::{Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::socket;
use crate::stream::would_block;
use crate::virtio::chain::Buffers;

/// The most bytes of data that are handed to the guest at once.
const MAX_DATA: usize = 64 << 10;
/// The longest greeting, `CONNECT` with a port and a line end.
const MAX_GREETING: usize = 32;
/// What every socket is watched for.
const WATCHED: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The host's program has connected, and is to say to which port.
    Greeting,
    /// The guest was asked.
    Requested(Key),
    /// Both sides agree.
    Established(Key),
    /// The guest is done with it: what it has sent is still to be delivered to the host's program.
    Draining,
}

/// What becomes of a connection after a packet or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Stay,
    /// The guest has closed both directions.
    Closed,
    /// The guest broke the rules, or its request cannot be served.
    Refused,
    /// The host's program is gone, or nothing is left to be done.
    Over,
}

/// A connection, whose socket must be watched edge-triggered for [`Connection::interest`].
pub(super) struct Connection {
    pub(super) socket: UnixStream,
    pub(super) state: State,
    credit: Credit,
    /// What the guest has sent and the socket has not taken: bounded by the credit that the guest gets.
    backlog: VecDeque<u8>,
    /// The socket may have something to read: it has not said otherwise since its last event.
    readable: bool,
    /// The socket may take something.
    writable: bool,
    /// The host's program has closed both directions.
    hung_up: bool,
    /// A request or response that the guest is to get.
    opening: Option<Op>,
    /// How much was read from the socket the last time that it had anything.
    last_read: usize,
    /// The guest is to get a reset, which ends the connection.
    resetting: bool,
    /// The guest has asked for news of the credit.
    update_asked: bool,
    /// The directions that the guest has closed.
    guest_closed: u32,
    /// Those that the host's program has closed.
    host_closed: u32,
    /// What the guest knows of that.
    told_closed: u32,
    /// Whether it waits in line for the guest's buffers.
    pub(super) queued: bool,
    /// What its socket is watched for.
    pub(super) watched: EventSet,
}

impl Connection {
    fn new(socket: UnixStream, state: State, window: u32) -> Self {
        Self {
            socket,
            state,
            credit: Credit::new(window),
            backlog: VecDeque::new(),
            readable: false,
            writable: true,
            hung_up: false,
            opening: None,
            last_read: 0,
            resetting: false,
            update_asked: false,
            guest_closed: 0,
            host_closed: 0,
            told_closed: 0,
            queued: false,
            watched: WATCHED,
        }
    }

    /// A connection that the host's program has made, which will say what it wants.
    pub(super) fn from_host(socket: UnixStream, window: u32) -> Self {
        Self::new(socket, State::Greeting, window)
    }

    /// A connection that the guest has asked for by `request`, to a socket that has accepted it.
    pub(super) fn from_guest(socket: UnixStream, window: u32, request: &Header) -> Self {
        let mut connection = Self::new(socket, State::Established(request.key()), window);
        connection.credit.note(request);
        connection.opening = Some(Op::Response);
        connection
    }

    /// Which connection the guest knows it as.
    pub(super) fn key(&self) -> Option<Key> {
        match self.state {
            State::Requested(key) | State::Established(key) => Some(key),
            State::Greeting | State::Draining => None,
        }
    }

    /// What its socket is to be watched for.
    pub(super) fn interest(&self) -> EventSet {
        if self.backlog.is_empty() { WATCHED } else { WATCHED.union(EventSet::OUT) }
    }

    /// Notes what the event loop has seen of the socket.
    pub(super) fn note(&mut self, events: EventSet) {
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.hung_up |= gone;
        self.readable |= gone || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.writable |= gone || events.contains(EventSet::OUT);
        if self.hung_up && self.host_closed & SHUTDOWN_SEND != 0 {
            self.host_closed = SHUTDOWN_BOTH;
        }
    }

    /// The port that the host's program asks for by `CONNECT PORT` and a line end; `Ok(None)` where the line is not
    /// whole yet. What follows the line stays in the socket.
    pub(super) fn greeting(&mut self) -> io::Result<Option<u32>> {
        let mut buffer = [0; MAX_GREETING];
        let count = match socket::peek(&self.socket, &mut buffer, false) {
            Err(error) if would_block(&error) => return Ok(None),
            result => result?,
        };
        let Some(end) = buffer[..count].iter().position(|&byte| byte == b'\n') else {
            let hopeless = count == 0 || count == MAX_GREETING || self.hung_up;
            return if hopeless { Err(io::ErrorKind::InvalidData.into()) } else { Ok(None) };
        };
        let mut line = [0; MAX_GREETING];
        socket::peek(&self.socket, &mut line[..=end], true)?;
        let line = str::from_utf8(&line[..end]).ok().and_then(|line| line.split_once(' '));
        let port = line.filter(|(word, _)| word.eq_ignore_ascii_case("connect")).map(|(_, port)| port.trim().parse());
        port.and_then(Result::ok).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The guest is to be asked for the connection that the host's program wants.
    pub(super) fn request(&mut self, key: Key) {
        self.state = State::Requested(key);
        self.opening = Some(Op::Request);
    }

    /// Takes in a packet of the guest's, whose data `data` is. It is none that asks for or resets a connection.
    pub(super) fn receive(&mut self, op: Op, header: &Header, data: &mut Buffers<'_>) -> Outcome {
        self.credit.note(header);
        match (op, self.state) {
            (Op::Response, State::Requested(key)) => {
                self.state = State::Established(key);
                let answer = format!("OK {}\n", key.host_port);
                match socket::send_slices(&self.socket, (answer.as_bytes(), &[])) {
                    Ok(count) if count == answer.len() => Outcome::Stay,
                    _ => Outcome::Refused,
                }
            }
            (Op::Shutdown, State::Established(_)) => self.shut_down(header.flags),
            (Op::ReadWrite, State::Established(_)) => self.take_data(data),
            (Op::CreditUpdate, State::Requested(_) | State::Established(_)) => Outcome::Stay,
            (Op::CreditRequest, State::Established(_)) => {
                self.update_asked = true;
                Outcome::Stay
            }
            _ => Outcome::Refused,
        }
    }

    fn shut_down(&mut self, flags: u32) -> Outcome {
        self.guest_closed |= flags & SHUTDOWN_BOTH;
        if self.guest_closed == SHUTDOWN_BOTH {
            return Outcome::Closed;
        }
        if self.guest_closed & SHUTDOWN_RECEIVE != 0 {
            // The program's writes fail from now on. That it may be gone already is no matter here and below.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.end_if_sent();
        Outcome::Stay
    }

    /// Once the guest will send no more and all of it is delivered, the host's program reads the end of file.
    fn end_if_sent(&mut self) {
        if self.guest_closed & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// From the guest's memory straight to the socket, and what that does not take to the backlog.
    fn take_data(&mut self, data: &mut Buffers<'_>) -> Outcome {
        let allowed = u32::try_from(data.len()).is_ok_and(|len| self.credit.receive(len).is_ok());
        if !allowed || self.guest_closed & SHUTDOWN_SEND != 0 {
            return Outcome::Refused;
        }
        while self.backlog.is_empty() && self.writable && data.len() > 0 {
            match socket::send(&self.socket, data) {
                Ok(count) => {
                    self.credit.forward(count);
                    data.advance(count);
                }
                Err(error) => self.not_sent(&error),
            }
        }
        if self.host_closed & SHUTDOWN_RECEIVE != 0 {
            // Nobody reads it, and the guest is told.
            self.credit.forward(data.len());
            return Outcome::Stay;
        }
        let mut chunk = [0; 4096];
        while data.len() > 0 {
            let count = data.len().min(chunk.len());
            if data.read(&mut chunk[..count]).is_some() {
                self.backlog.extend(&chunk[..count]);
            }
        }
        Outcome::Stay
    }

    fn not_sent(&mut self, error: &io::Error) {
        self.writable = false;
        if !would_block(error) {
            self.host_closed |= SHUTDOWN_RECEIVE;
        }
    }

    /// Brings as much of the backlog to the socket as it takes.
    pub(super) fn flush(&mut self) {
        let had_some = !self.backlog.is_empty();
        while !self.backlog.is_empty() && self.writable {
            match socket::send_slices(&self.socket, self.backlog.as_slices()) {
                Ok(count) => {
                    self.credit.forward(count);
                    self.backlog.drain(..count);
                }
                Err(error) => self.not_sent(&error),
            }
        }
        if self.host_closed & SHUTDOWN_RECEIVE != 0 {
            self.credit.forward(self.backlog.len());
            self.backlog.clear();
        }
        if had_some && self.backlog.is_empty() {
            // Most connections never need one again.
            self.backlog = VecDeque::new();
            self.end_if_sent();
        }
    }

    /// What is to become of it after an event of its socket, once that was noted and served.
    pub(super) fn after_event(&mut self) -> Outcome {
        match self.state {
            State::Draining if self.backlog.is_empty() => return Outcome::Over,
            // The program did not wait for the answer.
            State::Requested(_) if self.hung_up => self.resetting = true,
            _ => {}
        }
        Outcome::Stay
    }

    /// The guest is done with it. Returns whether anything is left to be delivered.
    pub(super) fn drain(&mut self) -> bool {
        self.state = State::Draining;
        !self.backlog.is_empty()
    }

    fn may_read(&self) -> bool {
        self.readable && self.host_closed & SHUTDOWN_SEND == 0 && self.guest_closed & SHUTDOWN_RECEIVE == 0
    }

    /// Whether it has, or may have, something for the guest.
    pub(super) fn has_news(&self) -> bool {
        self.resetting
            || self.opening.is_some()
            || matches!(self.state, State::Established(_))
                && (self.told_closed != self.host_closed
                    || self.update_asked
                    || self.credit.update_due()
                    || self.may_read() && (self.credit.room_in_guest() > 0 || self.credit.must_ask()))
    }

    /// How much the socket is likely to have for the guest: twice what it had last time, as far as there is credit.
    pub(super) fn expected(&self) -> usize {
        if self.resetting || self.opening.is_some() || !matches!(self.state, State::Established(_)) || !self.may_read()
        {
            return 0;
        }
        (2 * self.last_read).min(self.credit_in_guest())
    }

    /// How many bytes of data the guest may get at once.
    fn credit_in_guest(&self) -> usize {
        usize::try_from(self.credit.room_in_guest()).map_or(MAX_DATA, |room| room.min(MAX_DATA))
    }

    /// The next packet for the guest; `rooms` are for its data.
    pub(super) fn next_packet(&mut self, guest_cid: u64, rooms: &mut [Buffers<'_>]) -> Option<Header> {
        let key = self.key()?;
        let mut header = Header::to_guest(guest_cid, key, Op::CreditUpdate);
        let op = if self.resetting {
            Op::Reset
        } else if let Some(op) = self.opening.take() {
            op
        } else if !matches!(self.state, State::Established(_)) {
            return None;
        } else if let Some(count) = self.read(rooms) {
            header.len = count;
            Op::ReadWrite
        } else if self.told_closed != self.host_closed {
            self.told_closed = self.host_closed;
            header.flags = self.host_closed;
            Op::Shutdown
        } else if self.may_read() && self.credit.must_ask() {
            self.credit.ask();
            Op::CreditRequest
        } else if self.update_asked || self.credit.update_due() {
            Op::CreditUpdate
        } else {
            return None;
        };
        header.op = Some(op);
        self.update_asked &= op == Op::Reset;
        self.credit.tell(&mut header);
        Some(header)
    }

    /// From the socket straight to the guest's memory.
    fn read(&mut self, rooms: &mut [Buffers<'_>]) -> Option<u32> {
        let mut credit = self.credit_in_guest();
        if !self.may_read() || credit == 0 {
            return None;
        }
        for room in rooms.iter_mut() {
            room.truncate(credit);
            credit -= room.len();
        }
        match socket::receive(&self.socket, rooms) {
            Ok(count @ 1..) => {
                self.last_read = count;
                // At most MAX_DATA.
                let count = u32::try_from(count).unwrap_or(0);
                self.credit.send(count);
                return Some(count);
            }
            Err(error) if would_block(&error) => {}
            // The end, or a program that left without reading what it got.
            end => {
                let both = self.hung_up || end.is_err();
                self.host_closed |= if both { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
            }
        }
        self.readable = false;
        None
    }
}
