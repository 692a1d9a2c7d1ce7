//! One port's queues against its host streams: no bus and no event loop.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::{Callback, Port};
use crate::stream::{Direction, Stream, would_block};
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;

/// The most bytes that are moved for one port before the others get their turn.
const BYTES_A_ROUND: usize = 1 << 20;

/// Why a port stopped moving bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The driver has made nothing more available; it will notify.
    Queue,
    /// The host's stream must become ready first.
    Stream,
    /// It has had its turn, and could go on.
    Turn,
    /// The host's stream has ended.
    End,
}

/// A port's state. `sent` and the flags are all that there is to know besides the queues.
pub(super) struct PortState {
    pub(super) id: u32,
    pub(super) input: Option<Stream>,
    pub(super) output: Option<Stream>,
    reopens: bool,
    on_first_output: Option<Callback>,
    on_closed: Option<Callback>,
    /// The guest has the port open.
    pub(super) guest_open: bool,
    /// The guest has closed the port; what it has written before is still to be delivered.
    pub(super) closing: bool,
    /// What the guest is told of the host's side: it reads end of file from a port that is not open there.
    pub(super) host_open: bool,
    /// The host's writes failed: what the guest writes is dropped.
    discard: bool,
    /// How many bytes of the next chain of the transmit queue are written already.
    sent: usize,
}

impl PortState {
    pub(super) fn new(port: Port) -> std::io::Result<Self> {
        let open = |fd: Option<_>, direction| fd.map(|fd| Stream::new(fd, direction)).transpose();
        let host_open = port.input.is_some() || port.output.is_some();
        Ok(Self {
            id: port.id,
            input: open(port.input, Direction::Input)?,
            output: open(port.output, Direction::Output)?,
            reopens: port.reopens,
            on_first_output: port.on_first_output,
            on_closed: port.on_closed,
            guest_open: false,
            host_open,
            closing: false,
            discard: false,
            sent: 0,
        })
    }

    /// Forgets what belonged to the queues.
    pub(super) fn reset(&mut self) {
        self.guest_open = false;
        self.sent = 0;
    }

    /// The guest has closed the port and everything is delivered. The output must be unwatched already.
    pub(super) fn close(&mut self) {
        self.closing = false;
        if self.reopens {
            return;
        }
        self.output = None;
        self.discard = true;
        if let Some(callback) = self.on_closed.take() {
            callback();
        }
    }

    /// Writes what the guest has sent to the output.
    pub(super) fn transmit(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Stop, QueueError> {
        serve(queue, memory, |chain, bytes| {
            if !self.write_chain(chain, bytes) {
                return Ok(Served::Left(if *bytes == 0 { Stop::Turn } else { Stop::Stream }));
            }
            self.sent = 0;
            Ok(Served::Used(0))
        })
    }

    /// Writes one chain, from where the last attempt stopped. Returns whether it is done with.
    fn write_chain(&mut self, chain: &mut Chain<'_>, bytes: &mut usize) -> bool {
        let Some(output) = self.output.as_mut().filter(|_| !self.discard) else { return true };
        // The driver may have changed the chain meanwhile: then it is shorter, and this drops all of it.
        chain.readable.advance(self.sent);
        let left = chain.readable.len();
        chain.readable.truncate(*bytes);
        let whole = chain.readable.len() == left;
        while chain.readable.len() > 0 {
            // SAFETY: The buffers point into guest memory, mapped for as long as the chain lives.
            match unsafe { output.transfer(chain.readable.iovecs()) } {
                Ok(count) if count > 0 => {
                    chain.readable.advance(count);
                    self.sent += count;
                    *bytes -= count;
                    if let Some(callback) = self.on_first_output.take() {
                        callback();
                    }
                }
                Err(error) if would_block(&error) => return false,
                refused => {
                    let error = refused.err().map_or("nothing is taken".to_owned(), |error| error.to_string());
                    log::info!("console port {} drops its output from here on: {error}", self.id);
                    self.discard = true;
                    return true;
                }
            }
        }
        whole
    }

    /// Reads from the input to the guest's buffers.
    pub(super) fn receive(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Stop, QueueError> {
        let Some(input) = self.input.as_mut().filter(|_| self.guest_open) else { return Ok(Stop::Queue) };
        let id = self.id;
        serve(queue, memory, |chain, bytes| {
            chain.writable.truncate(BYTES_A_ROUND);
            if chain.writable.len() == 0 {
                return Err(QueueError::TooShort { head: chain.head, part: "byte" });
            }
            // SAFETY: As for writing.
            Ok(match unsafe { input.transfer(chain.writable.iovecs()) } {
                Ok(count) if count > 0 => {
                    *bytes = bytes.saturating_sub(count);
                    Served::Used(u32::try_from(count).unwrap_or(u32::MAX))
                }
                Ok(_) => Served::Left(Stop::End),
                Err(error) if would_block(&error) => Served::Left(Stop::Stream),
                Err(error) => {
                    log::info!("console port {id} takes a failed read for the end: {error}");
                    Served::Left(Stop::End)
                }
            })
        })
    }
}

/// What has become of a chain.
enum Served {
    /// It goes back to the driver, with so many bytes written to it.
    Used(u32),
    /// It stays the next one, and the port stops.
    Left(Stop),
}

/// Has `step` move the bytes of one chain after the other, until something stops it or the port has had its turn. `step` counts
/// down the bytes that the turn has left.
fn serve<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    mut step: impl FnMut(&mut Chain<'m>, &mut usize) -> Result<Served, QueueError>,
) -> Result<Stop, QueueError> {
    let mut chain = Chain::default();
    let mut chains = queue.size();
    let mut bytes = BYTES_A_ROUND;
    loop {
        queue.disable_notification(memory)?;
        while let Some(descriptors) = descriptors::next(queue, memory)? {
            chain.load(descriptors, memory, queue.size())?;
            match step(&mut chain, &mut bytes)? {
                Served::Used(len) => queue.add_used(memory, chain.head, len)?,
                Served::Left(stop) => {
                    queue.go_to_previous_position();
                    return Ok(stop);
                }
            }
            chains -= 1;
            if chains == 0 || bytes == 0 {
                return Ok(Stop::Turn);
            }
        }
        if !queue.enable_notification(memory)? {
            return Ok(Stop::Queue);
        }
    }
}
