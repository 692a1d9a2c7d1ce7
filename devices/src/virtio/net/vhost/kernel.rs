//! The requests that `/dev/vhost-net` knows (`include/uapi/linux/vhost.h`).

use std::ffi::{c_int, c_uint, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::rings;

/// The device file.
pub(super) const PATH: &str = "/dev/vhost-net";

/// Where the parts of a ring's flags, index and elements add up to its length (sections 2.7.6 and 2.7.8).
const RING_HEADER: usize = 6;
const DESCRIPTOR: usize = 16;
const AVAILABLE: usize = 2;
const USED: usize = 8;

/// Regions of guest memory that one table can hold: more than a machine has.
const MAX_REGIONS: usize = 64;

const GET_FEATURES: c_ulong = request(READ, size_of::<u64>(), 0x00);
const SET_FEATURES: c_ulong = request(WRITE, size_of::<u64>(), 0x00);
const SET_OWNER: c_ulong = request(NONE, 0, 0x01);
/// The size that is part of the number is that of the table's header.
const SET_MEM_TABLE: c_ulong = request(WRITE, size_of::<[u32; 2]>(), 0x03);
const SET_VRING_NUM: c_ulong = request(WRITE, size_of::<State>(), 0x10);
const SET_VRING_ADDR: c_ulong = request(WRITE, size_of::<Addresses>(), 0x11);
const SET_VRING_BASE: c_ulong = request(WRITE, size_of::<State>(), 0x12);
const SET_VRING_KICK: c_ulong = request(WRITE, size_of::<Event>(), 0x20);
const SET_VRING_CALL: c_ulong = request(WRITE, size_of::<Event>(), 0x21);
const SET_VRING_ERR: c_ulong = request(WRITE, size_of::<Event>(), 0x22);
const NET_SET_BACKEND: c_ulong = request(WRITE, size_of::<Event>(), 0x30);

const NONE: c_ulong = 0;
const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

/// A request's number, by the rules of asm-generic/ioctl.h.
const fn request(direction: c_ulong, size: usize, number: c_ulong) -> c_ulong {
    direction << 30 | (size as c_ulong) << 16 | 0xaf << 8 | number
}

/// `struct vhost_vring_state`.
#[repr(C)]
struct State {
    index: c_uint,
    num: c_uint,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct Event {
    index: c_uint,
    fd: c_int,
}

/// `struct vhost_vring_addr`: addresses in this process.
#[repr(C)]
struct Addresses {
    index: c_uint,
    flags: c_uint,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory`.
#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [Region; MAX_REGIONS],
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    guest_address: u64,
    len: u64,
    host_address: u64,
    padding: u64,
}

/// An opened `/dev/vhost-net` that belongs to this process.
pub(super) struct Kernel(File);

impl Kernel {
    /// Opens the device file.
    pub(super) fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open(PATH).map(Self)
    }

    /// Makes this process the owner: its memory is what all addresses mean. The kernel makes a thread for the work.
    pub(super) fn own(&self) -> io::Result<()> {
        // SAFETY: The request takes no argument.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_OWNER) })
    }

    /// What the kernel's device can do, as feature bits.
    pub(super) fn features(&self) -> io::Result<u64> {
        let mut features = 0_u64;
        // SAFETY: The request writes one `u64`.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), GET_FEATURES, &raw mut features) })?;
        Ok(features)
    }

    pub(super) fn set_features(&self, features: u64) -> io::Result<()> {
        // SAFETY: The request reads one `u64`.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FEATURES, &raw const features) })
    }

    /// Lets the guest's buffers lie in `memory`, and nowhere else. It must stay mapped until both queues are stopped.
    pub(super) fn set_memory(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut table = MemoryTable { count: 0, padding: 0, regions: [Region::default(); MAX_REGIONS] };
        if memory.num_regions() > MAX_REGIONS {
            return Err(io::Error::other("guest memory has too many regions"));
        }
        for (entry, region) in table.regions.iter_mut().zip(memory.iter()) {
            let (guest_address, host_address) = (region.start_addr().raw_value(), region.as_ptr() as u64);
            *entry = Region { guest_address, len: region.len(), host_address, padding: 0 };
            table.count += 1;
        }
        // SAFETY: The request reads the table's header and as many regions as that announces, which are there.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_MEM_TABLE, &raw const table) })
    }

    /// Tells of a queue whose rings lie in `memory`, from its start. The queue must be stopped.
    pub(super) fn set_queue(&self, index: usize, queue: &Queue, memory: &GuestMemoryMmap) -> io::Result<()> {
        let size = usize::from(queue.size());
        // The kernel takes these addresses as they are: this is the only check that they are the guest's.
        let part = |address, len| {
            let slice = rings::slice(memory, address, len).ok_or(io::ErrorKind::InvalidInput)?;
            Ok::<_, io::Error>(slice.ptr_guard_mut().as_ptr() as u64)
        };
        let addresses = Addresses {
            index: number(index),
            flags: 0,
            descriptors: part(queue.desc_table(), DESCRIPTOR * size)?,
            used: part(queue.used_ring(), RING_HEADER + USED * size)?,
            available: part(queue.avail_ring(), RING_HEADER + AVAILABLE * size)?,
            log: 0,
        };
        self.set(SET_VRING_NUM, &State { index: number(index), num: queue.size().into() })?;
        self.set(SET_VRING_BASE, &State { index: number(index), num: 0 })?;
        self.set(SET_VRING_ADDR, &addresses)
    }

    /// What the driver writes when it has made buffers available, what the kernel writes when it has used some, and what it
    /// writes when it finds nonsense.
    pub(super) fn set_events(&self, index: usize, kick: &EventFd, call: &EventFd, error: &EventFd) -> io::Result<()> {
        let event = |event: &EventFd| Event { index: number(index), fd: event.as_raw_fd() };
        self.set(SET_VRING_KICK, &event(kick))?;
        self.set(SET_VRING_CALL, &event(call))?;
        self.set(SET_VRING_ERR, &event(error))
    }

    /// Starts a queue's work with `tap`; without, stops it, and returns when the kernel's thread has let go of it.
    pub(super) fn set_backend(&self, index: usize, tap: Option<RawFd>) -> io::Result<()> {
        self.set(NET_SET_BACKEND, &Event { index: number(index), fd: tap.unwrap_or(-1) })
    }

    /// Issues a request that reads an argument of this type.
    fn set<T>(&self, request: c_ulong, argument: &T) -> io::Result<()> {
        // SAFETY: The callers give each request the structure that the kernel reads for it, and whose size is in its number.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_ref(argument)) })
    }
}

/// There are two queues.
fn number(index: usize) -> c_uint {
    c_uint::try_from(index).unwrap_or(c_uint::MAX)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As linux/vhost.h has them; the filters of amphi's threads know these numbers.
    #[test]
    fn requests_have_the_kernels_numbers() {
        let numbers = [GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR];
        assert_eq!(numbers, [0x8008_af00, 0x4008_af00, 0xaf01, 0x4008_af03, 0x4008_af10, 0x4028_af11]);
        let numbers = [SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, NET_SET_BACKEND];
        assert_eq!(numbers, [0x4008_af12, 0x4008_af20, 0x4008_af21, 0x4008_af22, 0x4008_af30]);
    }
}
