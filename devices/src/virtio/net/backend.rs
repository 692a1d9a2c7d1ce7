//! Where a network device's frames come from and go to.

use std::io;
use std::os::fd::AsRawFd;

use libc::iovec;

/// The length in bytes of the header that precedes each frame in guest memory (`struct virtio_net_hdr_v1`,
/// section 5.1.6).
pub const HEADER: usize = 12;
/// The most bytes of a frame with its header: an IP packet of 64 KiB behind an Ethernet header (section 5.1.6.3.1).
pub const MAX_FRAME: usize = 65_562;
/// The least bytes of a frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// What [`Backend::receive`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The buffers hold a frame of that many bytes, header included, all of it except for the header's `num_buffers`.
    Frame(usize),
    /// A frame of that many bytes, header included, waits for more room.
    TooLarge(usize),
}

/// Where a network device's frames come from and go to: moved without waiting, straight from and to guest memory.
///
/// Its descriptor is watched edge-triggered, so each call must go on until the operating system has said that it would
/// have to wait. Any error but [`WouldBlock`](io::ErrorKind::WouldBlock) from `receive` or `flush` is final: the link
/// is down from then on.
pub trait Backend: AsRawFd + Send {
    /// The offloads that it can do, as feature bits `VIRTIO_NET_F_CSUM`, `_GUEST_*` and `_HOST_*` (section 5.1.3).
    fn offloads(&self) -> u64;

    /// Takes over the features that the driver accepted; a frame that was under way to another driver is dropped.
    ///
    /// # Errors
    /// The operating system refuses them.
    fn set_features(&mut self, features: u64) -> io::Result<()>;

    /// Receives a frame into `buffers`, which have room for a header at least. After
    /// [`TooLarge`](Received::TooLarge), or an error, the next call's buffers begin with the same ones unless
    /// [`discard`](Self::discard) was called in between.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock): there is no whole frame yet.
    ///
    /// # Safety
    /// Each of `buffers` is memory that may be written until this returns. Others may access it at the same time.
    unsafe fn receive(&mut self, buffers: &[iovec]) -> io::Result<Received>;

    /// Drops the frame that [`receive`](Self::receive) has begun or is next to return; without one, nothing happens.
    fn discard(&mut self);

    /// Sends the frame in `buffers`, which begin with a whole header and are of [`MAX_FRAME`] bytes at most.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock): the frame is to be sent again later. Others: it is lost.
    ///
    /// # Safety
    /// Each of `buffers` is memory that may be read until this returns. Others may access it at the same time.
    unsafe fn send(&mut self, buffers: &[iovec]) -> io::Result<()>;

    /// Goes on with frames that are sent in part. To be called when the descriptor becomes writable.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock): some is still left.
    fn flush(&mut self) -> io::Result<()>;
}
