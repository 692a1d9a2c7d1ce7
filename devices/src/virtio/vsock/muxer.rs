//! All connections of a device: which packet belongs to which, and whose turn it is to send one to the guest.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use event_manager::{EventOps, EventSet, Events};

use super::connection::{Connection, Outcome, State};
use super::packet::{HOST_CID, Header, Key, Op, STREAM};
use super::socket;
use crate::stream::would_block;
use crate::virtio::chain::Buffers;
use crate::virtio::doorbell::Doorbells;

/// The most connections at a time, those included of which only the host knows as yet, or still.
pub const MAX_CONNECTIONS: usize = 1024;
/// How much of what the guest sends is kept for a program that does not read: for the first connections,
const LARGE_WINDOW: u32 = 256 << 10;
/// which are so many,
const LARGE_WINDOWS: usize = 64;
/// and for all others. In all that is at most 76 MiB.
const SMALL_WINDOW: u32 = 64 << 10;
/// The most refusals that wait for the guest's buffers. With more, the guest's packets are left where they are.
const MAX_REFUSALS: usize = 256;
/// The ports that connections from the host come from, where few guests' services are.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// The data of the listener's events; those of connection N have N more than the next.
const LISTENER: u32 = Doorbells::FIRST_FREE;
const FIRST_CONNECTION: u32 = LISTENER + 1;

/// The connections of a device, and the socket by which the host makes new ones.
pub(super) struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    /// The listener's name: what the guest connects to has the same one with `_PORT` behind it.
    path: PathBuf,
    listening: bool,
    /// Programs may wait at the listener until a connection ends.
    accept_later: bool,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    /// Connections with news for the guest, in their order.
    ready: VecDeque<usize>,
    /// Packets that belong to no connection.
    refusals: VecDeque<Header>,
    next_port: u32,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid,
            listener,
            path,
            listening: false,
            accept_later: false,
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: HOST_PORTS.start,
        })
    }

    pub(super) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    fn listener_events(&self) -> Events {
        Events::with_data(&self.listener, LISTENER, EventSet::IN | EventSet::EDGE_TRIGGERED)
    }

    /// Begins to take connections from the host. Those that programs have made before have waited.
    pub(super) fn listen(&mut self, ops: &mut EventOps<'_>) {
        if !self.listening {
            match ops.add(self.listener_events()) {
                Ok(()) => self.listening = true,
                Err(error) => log::error!("cannot watch a vsock device's listener: {error}"),
            }
        }
    }

    /// Ends all connections, and takes no more.
    pub(super) fn clear(&mut self, ops: &mut EventOps<'_>) {
        if self.listening {
            self.listening = false;
            if let Err(error) = ops.remove(self.listener_events()) {
                log::error!("cannot stop watching a vsock device's listener: {error}");
            }
        }
        self.refusals.clear();
        for slot in 0..self.slots.len() {
            self.remove(slot, ops);
        }
        (self.slots, self.free, self.ready) = (Vec::new(), Vec::new(), VecDeque::new());
        self.accept_later = false;
    }

    /// Serves an event of the listener's or of a connection's socket.
    pub(super) fn host_event(&mut self, events: &Events, ops: &mut EventOps<'_>) {
        if events.data() == LISTENER {
            return self.accept(ops);
        }
        let slot = events.data().wrapping_sub(FIRST_CONNECTION) as usize;
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        connection.note(events.event_set());
        if connection.state == State::Greeting {
            match connection.greeting() {
                Ok(None) => {}
                Ok(Some(port)) => self.request(slot, port),
                Err(error) => {
                    log::debug!("a program at the vsock socket asks for no port: {error}");
                    return self.remove(slot, ops);
                }
            }
        } else {
            connection.flush();
        }
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
        let outcome = connection.after_event();
        self.settle(slot, outcome, ops);
    }

    /// Takes connections from the host, as many as there is room for.
    pub(super) fn accept(&mut self, ops: &mut EventOps<'_>) {
        self.accept_later = false;
        while self.listening {
            if self.count() >= MAX_CONNECTIONS {
                self.accept_later = true;
                return;
            }
            match self.listener.accept() {
                Ok((socket, _)) => {
                    let connection = Connection::from_host(socket, self.window());
                    self.add(connection, ops);
                }
                Err(error) if would_block(&error) => return,
                Err(error) => {
                    log::warn!("cannot take a connection at the vsock socket {}: {error}", self.path.display());
                    self.accept_later = true;
                    return;
                }
            }
        }
    }

    /// Whether [`Muxer::accept`] is worth calling without an event.
    pub(super) fn can_accept(&self) -> bool {
        self.accept_later && self.count() < MAX_CONNECTIONS
    }

    fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn window(&self) -> u32 {
        if self.count() < LARGE_WINDOWS { LARGE_WINDOW } else { SMALL_WINDOW }
    }

    /// Puts the connection in the table, if its socket can be watched.
    fn add(&mut self, connection: Connection, ops: &mut EventOps<'_>) -> Option<usize> {
        let slot = self.free.last().copied().unwrap_or(self.slots.len());
        if let Err(error) = ops.add(events(&connection, slot)) {
            log::error!("cannot watch a vsock connection's socket: {error}");
            return None;
        }
        if let Some(key) = connection.key() {
            self.keys.insert(key, slot);
        }
        if self.free.pop().is_some() {
            self.slots[slot] = Some(connection);
        } else {
            self.slots.push(Some(connection));
        }
        Some(slot)
    }

    fn remove(&mut self, slot: usize, ops: &mut EventOps<'_>) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot);
        self.forget(slot, &connection);
        if let Err(error) = ops.remove(events(&connection, slot)) {
            log::error!("cannot stop watching a vsock connection's socket: {error}");
        }
    }

    /// The guest is to know nothing of the connection any more.
    fn forget(&mut self, slot: usize, connection: &Connection) {
        if let Some(key) = connection.key() {
            self.keys.remove(&key);
        }
        if connection.queued {
            self.ready.retain(|&ready| ready != slot);
        }
    }

    /// Asks the guest for a connection to its `port`.
    fn request(&mut self, slot: usize, port: u32) {
        // There are fewer connections than ports, so that this ends.
        let key = loop {
            let key = Key { host_port: self.next_port, guest_port: port };
            self.next_port = if self.next_port + 1 < HOST_PORTS.end { self.next_port + 1 } else { HOST_PORTS.start };
            if !self.keys.contains_key(&key) {
                break key;
            }
        };
        if let Some(Some(connection)) = self.slots.get_mut(slot) {
            connection.request(key);
            self.keys.insert(key, slot);
        }
    }

    /// Whether there is room for what a packet of the guest's may bring about.
    pub(super) fn can_receive(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Takes in a packet of the guest's. To be called only while [`Muxer::can_receive`].
    pub(super) fn receive(&mut self, header: &Header, data: &mut Buffers<'_>, ops: &mut EventOps<'_>) {
        if header.src_cid != self.guest_cid {
            // A sender that does not exist cannot be answered (section 5.10.6.2).
            log::debug!("a vsock packet claims to be from {}", header.src_cid);
            return;
        }
        let known = header.dst_cid == HOST_CID && header.kind == STREAM;
        let slot = if known { self.keys.get(&header.key()).copied() } else { None };
        match (header.op, slot) {
            (Some(Op::Reset), Some(slot)) => self.remove(slot, ops),
            (Some(Op::Reset), None) => {}
            (Some(Op::Request), None) if known => {
                if let Err(error) = self.connect(header, ops) {
                    log::debug!("the guest cannot connect to port {} of the host: {error}", header.dst_port);
                    self.refusals.push_back(header.refusal());
                }
            }
            (Some(op), Some(slot)) if op != Op::Request => {
                let Some(Some(connection)) = self.slots.get_mut(slot) else { return };
                let outcome = connection.receive(op, header, data);
                if matches!(outcome, Outcome::Closed | Outcome::Refused) {
                    self.refusals.push_back(header.refusal());
                }
                self.settle(slot, outcome, ops);
            }
            (_, slot) => {
                self.refusals.push_back(header.refusal());
                if let Some(slot) = slot {
                    self.remove(slot, ops);
                }
            }
        }
    }

    /// Connects to the program that serves the port which the guest asks for.
    fn connect(&mut self, request: &Header, ops: &mut EventOps<'_>) -> io::Result<()> {
        if self.count() >= MAX_CONNECTIONS {
            return Err(io::Error::other("there are too many connections"));
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", request.dst_port));
        let socket: UnixStream = socket::connect(path.as_ref())?;
        let connection = Connection::from_guest(socket, self.window(), request);
        let slot = self.add(connection, ops).ok_or(io::ErrorKind::Other)?;
        self.settle(slot, Outcome::Stay, ops);
        Ok(())
    }

    /// After a packet or an event: what the connection needs next.
    fn settle(&mut self, slot: usize, outcome: Outcome, ops: &mut EventOps<'_>) {
        let Some(Some(mut connection)) = self.slots.get_mut(slot).map(Option::take) else { return };
        if outcome == Outcome::Closed {
            self.forget(slot, &connection);
            connection.queued = false;
        }
        let over = match outcome {
            Outcome::Stay => false,
            Outcome::Closed => !connection.drain(),
            Outcome::Refused | Outcome::Over => true,
        };
        if !over {
            // Closed connections have no news.
            if !connection.queued && connection.has_news() {
                connection.queued = true;
                self.ready.push_back(slot);
            }
            if connection.watched != connection.interest() {
                connection.watched = connection.interest();
                if let Err(error) = ops.modify(events(&connection, slot)) {
                    log::error!("cannot watch a vsock connection's socket: {error}");
                }
            }
        }
        self.slots[slot] = Some(connection);
        if over {
            self.remove(slot, ops);
        }
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_news(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// For how many bytes of data the next packets are likely to have use, all of one connection.
    pub(super) fn expected(&self) -> usize {
        if !self.refusals.is_empty() {
            return 0;
        }
        let next = self.ready.front().and_then(|&slot| self.slots.get(slot)?.as_ref());
        next.map_or(0, Connection::expected)
    }

    /// The next packet for the guest; `rooms` get its data, which is for as many packets as it fills rooms. `None` where the connection
    /// whose turn it is has nothing after all; `rooms` may have lost their end then. Connections take turns.
    pub(super) fn next_packet(&mut self, rooms: &mut [Buffers<'_>], ops: &mut EventOps<'_>) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        let slot = self.ready.pop_front()?;
        let connection = self.slots.get_mut(slot)?.as_mut()?;
        connection.queued = false;
        let header = connection.next_packet(self.guest_cid, rooms);
        let over = header.is_some_and(|header| header.op == Some(Op::Reset));
        self.settle(slot, if over { Outcome::Over } else { Outcome::Stay }, ops);
        header
    }
}

fn events(connection: &Connection, slot: usize) -> Events {
    // There are at most MAX_CONNECTIONS slots.
    let slot = u32::try_from(slot).unwrap_or(u32::MAX - FIRST_CONNECTION);
    Events::with_data(&connection.socket, FIRST_CONNECTION + slot, connection.watched)
}
