//! Descriptor chains as lists of host buffers.
//!
//! The driver writes descriptors while the device reads them, so each is read once and checked here; what comes
//! out points into guest memory for sure. [`Descriptors`] end silently where they are broken: this module
//! tells a broken chain from one that has ended.

use std::marker::PhantomData;

use libc::{c_void, iovec};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::descriptors::Descriptors;
use super::rings;

/// The most buffers that one system call takes (`UIO_MAXIOV` of Linux).
pub(super) const MAX_IOVECS: usize = 1024;

/// The driver broke the rules of a virtqueue: the device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    /// The rings themselves are unsound.
    #[error("virtqueue cannot be used")]
    Ring(#[from] virtio_queue::Error),
    /// A chain is empty, leaves its table, or loops.
    #[error("descriptor chain {head} does not end")]
    Endless { head: u16 },
    /// A descriptor's buffer is not in guest memory.
    #[error("descriptor chain {head} has {len} bytes at {address:#x}, outside of guest memory")]
    OutsideMemory { head: u16, address: u64, len: u32 },
    /// A buffer for the device to read follows one for it to write (section 2.7.4.2).
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order { head: u16 },
    /// A buffer in a queue whose buffers all go the other way.
    #[error("descriptor chain {head} has a {kind} buffer, which its queue has no use for")]
    Kind { head: u16, kind: &'static str },
    /// A chain is made available though it has not been returned yet.
    #[error("descriptor chain {head} is available while it is under way")]
    Twice { head: u16 },
    /// The buffers are too small for what this device's requests hold.
    #[error("descriptor chain {head} has no room for a whole {part}")]
    TooShort { head: u16, part: &'static str },
}

/// One chain's buffers. Meant to be loaded again and again, to keep its allocations.
#[derive(Default)]
pub(super) struct Chain<'m> {
    /// The descriptor that the chain starts with, by which it is returned.
    pub(super) head: u16,
    /// What the device reads.
    pub(super) readable: Buffers<'m>,
    /// What the device writes.
    pub(super) writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Takes over the buffers of `descriptors`, of which a sound driver has at most `limit`, the queue's size.
    pub(super) fn load(
        &mut self,
        descriptors: Descriptors<'m>,
        memory: &'m GuestMemoryMmap,
        limit: u16,
    ) -> Result<(), QueueError> {
        let head = descriptors.head_index();
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let mut ended = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= usize::from(limit) {
                return Err(QueueError::Endless { head });
            }
            ended = !descriptor.has_next();
            let buffers = if descriptor.is_write_only() {
                &mut self.writable
            } else if self.writable.iovecs.is_empty() {
                &mut self.readable
            } else {
                return Err(QueueError::Order { head });
            };
            if let Some(slice) = rings::slice(memory, descriptor.addr().0, descriptor.len() as usize) {
                buffers.push(slice);
                continue;
            }
            // What is neither empty nor outside lies in several regions.
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                let outside = QueueError::OutsideMemory { head, address: descriptor.addr().0, len: descriptor.len() };
                buffers.push(slice.map_err(|_| outside)?);
            }
        }
        if ended { Ok(()) } else { Err(QueueError::Endless { head }) }
    }
}

impl Chain<'_> {
    /// An empty chain in this one's allocations, for as long as one likes.
    pub(super) fn recycle<'n>(mut self) -> Chain<'n> {
        self.readable.clear();
        self.writable.clear();
        let empty = |buffers: Buffers<'_>| Buffers { iovecs: buffers.iovecs, ..Buffers::default() };
        Chain { head: 0, readable: empty(self.readable), writable: empty(self.writable) }
    }
}

/// A byte of guest memory that the device may write.
pub(super) struct GuestByte<'m>(*mut u8, PhantomData<&'m GuestMemoryMmap>);

// SAFETY: Guest memory is shared with the guest's processors in any case; every thread accesses it as volatile.
unsafe impl Send for GuestByte<'_> {}

impl GuestByte<'_> {
    pub(super) fn set(self, value: u8) {
        // SAFETY: The byte is part of a slice of guest memory, mapped for as long as this lives, and volatile to all.
        unsafe { VolatileSlice::new(self.0, 1) }.copy_from(&[value]);
    }
}

/// A run of bytes, scattered over guest memory.
#[derive(Default)]
pub(super) struct Buffers<'m> {
    iovecs: Vec<iovec>,
    /// How many of `iovecs` are used up.
    spent: usize,
    len: usize,
    memory: PhantomData<&'m GuestMemoryMmap>,
}

// SAFETY: As for a single byte.
unsafe impl Send for Buffers<'_> {}

impl<'m> Buffers<'m> {
    fn clear(&mut self) {
        self.iovecs.clear();
        self.spent = 0;
        self.len = 0;
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if slice.is_empty() {
            return;
        }
        let iov_base = slice.ptr_guard_mut().as_ptr().cast::<c_void>();
        self.iovecs.push(iovec { iov_base, iov_len: slice.len() });
        self.len += slice.len();
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What is left, as far as one system call takes it. The pointers are valid for `'m`.
    pub(super) fn iovecs(&self) -> &[iovec] {
        let rest = &self.iovecs[self.spent..];
        &rest[..rest.len().min(MAX_IOVECS)]
    }

    /// Drops the first `count` bytes, or all where there are fewer.
    pub(super) fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.iovecs.get_mut(self.spent) {
            let step = first.iov_len.min(count);
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(step).cast();
            first.iov_len -= step;
            self.len -= step;
            count -= step;
            if first.iov_len > 0 {
                return;
            }
            self.spent += 1;
        }
    }

    /// Keeps the first `count` bytes only.
    pub(super) fn truncate(&mut self, count: usize) {
        while self.len > count
            && let Some(last) = self.iovecs[self.spent..].last_mut()
        {
            let excess = (self.len - count).min(last.iov_len);
            last.iov_len -= excess;
            self.len -= excess;
            if last.iov_len == 0 {
                self.iovecs.pop();
            }
        }
    }

    /// Moves the first `count` bytes, or all where there are fewer, to `front`, which loses what it held.
    pub(super) fn split_front(&mut self, count: usize, front: &mut Self) {
        front.clear();
        for iovec in &self.iovecs[self.spent..] {
            let iov_len = iovec.iov_len.min(count - front.len);
            front.iovecs.push(libc::iovec { iov_len, ..*iovec });
            front.len += iov_len;
            if front.len == count {
                break;
            }
        }
        self.advance(count);
    }

    /// Cuts off the last byte, if there is one.
    pub(super) fn split_last(&mut self) -> Option<GuestByte<'m>> {
        let last = self.iovecs[self.spent..].last()?;
        let byte = GuestByte(last.iov_base.cast::<u8>().wrapping_add(last.iov_len - 1), PhantomData);
        self.truncate(self.len - 1);
        Some(byte)
    }

    /// Fills `data` from the first bytes, and drops those. Nothing happens if there are too few.
    pub(super) fn read(&mut self, data: &mut [u8]) -> Option<()> {
        if self.len < data.len() {
            return None;
        }
        let mut done = 0;
        while done < data.len() {
            let count = self.first()?.copy_to(&mut data[done..]);
            self.advance(count);
            done += count;
        }
        Some(())
    }

    /// Writes `data` to the first bytes, as far as it fits, and drops those. Returns how many.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while done < data.len()
            && let Some(first) = self.first()
        {
            let count = first.len().min(data.len() - done);
            first.copy_from(&data[done..done + count]);
            self.advance(count);
            done += count;
        }
        done
    }

    fn first(&self) -> Option<VolatileSlice<'m>> {
        let first = self.iovecs.get(self.spent)?;
        // SAFETY: The range is part of a slice of guest memory, which is mapped for 'm, and which everybody in this
        // process accesses as volatile.
        Some(unsafe { VolatileSlice::new(first.iov_base.cast(), first.iov_len) })
    }
}
