//! Requests carried out by the host's `io_uring`: many under way at a time, and none that the devices' thread waits for.
//!
//! What the page cache has is there when the submitting system call returns; for the rest the ring's descriptor becomes
//! readable.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::QUEUE_SIZE;
use super::disk::{Access, Disk, Io};
use super::request::Request;
use crate::virtio::chain::{Buffers, Chain};

/// How long to wait where the kernel does not do it.
const RETRY: std::time::Duration = std::time::Duration::from_millis(10);

/// What [`entry`] asks of the kernel. All of it is about a file that is registered.
const OPCODES: [u8; 5] =
    [opcode::Read::CODE, opcode::Readv::CODE, opcode::Write::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];

/// A request that is under way, in the slot of its chain's head.
struct Slot {
    /// The disk's work, and how many bytes of it are done; `None` while the slot is free.
    work: Option<(Io, Request<'static>, u64)>,
    /// Kept when the slot is free, for its allocations.
    chain: Chain<'static>,
}

/// A request that has ended, and its chain.
pub(super) struct Ended<'r> {
    pub(super) request: Request<'static>,
    pub(super) chain: &'r mut Chain<'static>,
    pub(super) result: io::Result<()>,
}

/// A ring, and the requests that are in it.
///
/// The kernel reads and writes their buffers until they have ended: who forgets the memory calls [`drain`](Self::drain) first.
pub(super) struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    /// How many slots are taken.
    in_flight: usize,
    /// Whether there are submissions that the kernel has not been told of.
    pushed: bool,
}

impl Ring {
    /// A ring for the requests of one queue to `disk`, which is good for nothing else.
    ///
    /// # Errors
    /// The host refuses it: the kernel is older than 5.10, the system is set up so, or there is not enough memory to lock.
    pub(super) fn new(disk: &Disk) -> io::Result<Self> {
        let ring = disabled()?;
        ring.submitter().register_files(&disk.descriptors())?;
        restrict(&ring)?;
        let slots = (0..QUEUE_SIZE).map(|_| Slot { work: None, chain: Chain::default() }).collect();
        Ok(Self { ring, slots, in_flight: 0, pushed: false })
    }

    /// Whether a request with that head is under way.
    pub(super) fn is_busy(&self, head: u16) -> bool {
        self.slots.get(usize::from(head)).is_none_or(|slot| slot.work.is_some())
    }

    /// Takes over a request whose head [is not busy](Self::is_busy), and its `chain`, for which there is another one then.
    ///
    /// # Safety
    /// The chain's memory stays mapped until the request has ended, or [`drain`](Self::drain) has returned.
    pub(super) unsafe fn push(
        &mut self,
        disk: &Disk,
        io: Io,
        request: Request<'static>,
        chain: &mut Chain<'static>,
    ) -> io::Result<()> {
        let head = chain.head;
        let slot = &mut self.slots[usize::from(head)];
        std::mem::swap(&mut slot.chain, chain);
        slot.work = Some((io, request, 0));
        self.in_flight += 1;
        self.push_entry(disk, head)
    }

    /// Queues what is left of the work of slot `head`.
    fn push_entry(&mut self, disk: &Disk, head: u16) -> io::Result<()> {
        let slot = &self.slots[usize::from(head)];
        let Some((io, _, done)) = &slot.work else { return Ok(()) };
        let entry = entry(disk, *io, *done, &slot.chain).user_data(head.into());
        self.pushed = true;
        // There is room, as each slot has at most one entry; more than that may not have been taken by the kernel yet.
        // SAFETY: The buffers are those of a slot that is taken, which the caller of `push` keeps mapped, and the
        // vector that describes them is not touched before the request has ended.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Tells the kernel of everything that was pushed. Returns `false` where it has no room for it just now.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        while self.pushed {
            match self.ring.submit() {
                Ok(_) => self.pushed = !self.ring.submission().is_empty(),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// Hands every request that has ended to `finish`. What is only partly done is pushed again.
    pub(super) fn reap<E: From<io::Error>>(
        &mut self,
        disk: &Disk,
        mut finish: impl FnMut(Ended<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.in_flight > 0 {
            let Some((head, result)) = self.next_completion() else { break };
            let slot = &mut self.slots[usize::from(head)];
            let Some((io, request, done)) = slot.work.take() else { continue };
            match settle(io, done, result, &mut slot.chain) {
                Settled::Again(done) => {
                    slot.work = Some((io, request, done));
                    self.push_entry(disk, head)?;
                }
                Settled::Ended(result) => {
                    self.in_flight -= 1;
                    finish(Ended { request, chain: &mut slot.chain, result })?;
                }
            }
        }
        Ok(())
    }

    fn next_completion(&mut self) -> Option<(u16, i32)> {
        let entry = self.ring.completion().next()?;
        Some((u16::try_from(entry.user_data()).ok()?, entry.result()))
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    /// Waits until one more request has ended, or part of one.
    pub(super) fn wait(&mut self) {
        if let Err(error) = self.ring.submit_and_wait(1)
            && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
        {
            // Nothing is known to cause this; and the guest's memory cannot be let go before the kernel is done with it.
            log::error!("cannot wait for a disk's requests: {error}");
            std::thread::sleep(RETRY);
        }
    }

    /// Waits until nothing is under way, and forgets what has ended.
    pub(super) fn drain(&mut self) {
        while !self.is_empty() {
            self.wait();
            while let Some((head, _)) = self.next_completion() {
                self.in_flight -= usize::from(self.slots[usize::from(head)].work.take().is_some());
            }
        }
        self.pushed = false;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

impl AsRawFd for Ring {
    /// Readable when a request has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// A ring that takes nothing yet.
fn disabled() -> io::Result<IoUring> {
    let build = |coop_taskrun| {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled();
        if coop_taskrun {
            builder.setup_coop_taskrun();
        }
        builder.build(QUEUE_SIZE.into())
    };
    let too_old = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    // Without interrupting this thread for a completion that it will see anyway; Linux 5.19 is the first to know that.
    match build(true) {
        Err(error) if too_old(&error) => build(false).map_err(|error| {
            let old = "the host's kernel cannot restrict a ring, which takes Linux 5.10";
            if too_old(&error) { io::Error::new(io::ErrorKind::Unsupported, old) } else { error }
        }),
        result => result,
    }
}

/// Lets `ring` take what disks need, and nothing else for ever: the calls that it carries out are seen by no seccomp filter,
/// and a thread that a guest has taken over has the ring. No other files can be registered from here on either.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let files = Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits());
    let mut restrictions: Vec<_> = OPCODES.into_iter().map(Restriction::sqe_op).chain([files]).collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

/// What to ask of the kernel for `io`, of which `done` bytes are done.
fn entry(disk: &Disk, io: Io, done: u64, chain: &Chain<'_>) -> squeue::Entry {
    let transfer = |offset: u64, buffers: &Buffers<'_>| {
        let file = Fixed(match disk.access(offset, buffers) {
            Access::Cached => 0,
            Access::Direct => 1,
        });
        let iovecs = buffers.iovecs();
        (file, iovecs.as_ptr(), u32::try_from(iovecs.len()).unwrap_or(u32::MAX), iovecs.first().copied())
    };
    // A single buffer spares the kernel to copy a list. Its length fits: a request's data is bounded (MAX_DATA).
    let single = |buffer: libc::iovec| (buffer.iov_base.cast::<u8>(), u32::try_from(buffer.iov_len).unwrap_or(0));
    match io {
        Io::Read(from) => {
            let offset = from.offset + done;
            match transfer(offset, &chain.writable) {
                (file, _, 1, Some(buffer)) => {
                    let (data, len) = single(buffer);
                    opcode::Read::new(file, data, len).offset(offset).build()
                }
                (file, iovecs, count, _) => opcode::Readv::new(file, iovecs, count).offset(offset).build(),
            }
        }
        Io::Write { to, through } => {
            let offset = to.offset + done;
            let flags = if through { libc::RWF_DSYNC } else { 0 };
            match transfer(offset, &chain.readable) {
                (file, _, 1, Some(buffer)) => {
                    let (data, len) = single(buffer);
                    opcode::Write::new(file, data, len).offset(offset).rw_flags(flags).build()
                }
                (file, iovecs, count, _) => {
                    opcode::Writev::new(file, iovecs, count).offset(offset).rw_flags(flags).build()
                }
            }
        }
        // Only what was reported as written before is meant, so that nothing under way has to be waited for.
        Io::Flush => opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC).build(),
    }
}

enum Settled {
    /// So many bytes are done, and more is to do.
    Again(u64),
    Ended(io::Result<()>),
}

/// What a completion means for the request, whose buffers are advanced by what is done.
fn settle(io: Io, done: u64, result: i32, chain: &mut Chain<'_>) -> Settled {
    let buffers = match io {
        Io::Read(_) => &mut chain.writable,
        Io::Write { .. } => &mut chain.readable,
        Io::Flush if result == 0 => return Settled::Ended(Ok(())),
        Io::Flush => return Settled::Ended(Err(io::Error::from_raw_os_error(-result))),
    };
    match u32::try_from(result) {
        Ok(0) if buffers.len() > 0 => Settled::Ended(Err(io::ErrorKind::UnexpectedEof.into())),
        Ok(count) => {
            buffers.advance(count as usize);
            if buffers.len() == 0 { Settled::Ended(Ok(())) } else { Settled::Again(done + u64::from(count)) }
        }
        Err(_) if -result == libc::EINTR => Settled::Again(done),
        Err(_) => Settled::Ended(Err(io::Error::from_raw_os_error(-result))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use io_uring::types::Fd;

    use super::*;

    fn disk() -> Disk {
        // SAFETY: The name is a C string, and the descriptor is new.
        let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::memfd_create(c"disk".as_ptr(), 0)) };
        file.set_len(4096).unwrap();
        Disk::new(file).unwrap()
    }

    /// What the kernel says to `entry`, whose pointers lead to what lives longer.
    fn result_of(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: The callers' buffers live until this returns.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    fn open() -> squeue::Entry {
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/dev/null".as_ptr()).flags(libc::O_RDONLY).build()
    }

    #[test]
    fn carries_out_nothing_but_a_disks_requests() {
        let opened = result_of(&mut IoUring::new(1).unwrap(), &open());
        assert!(opened >= 0, "any other ring opens files");
        // SAFETY: The descriptor is new.
        drop(unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(opened) });

        let disk = disk();
        let ring = &mut Ring::new(&disk).unwrap().ring;
        let mut data = [1; 512];
        let data = data.as_mut_ptr();
        let other = File::open("/dev/zero").unwrap();
        let fd = Fd(other.as_raw_fd());
        for (what, entry) in [
            ("open a file", open()),
            ("make a socket", opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build()),
            ("close a registered file", opcode::Close::new(Fixed(0)).build()),
            ("register a file", opcode::FilesUpdate::new(&raw const fd.0, 1).build()),
            ("read another file", opcode::Read::new(fd, data, 512).build()),
            ("write another file", opcode::Write::new(fd, data, 512).build()),
        ] {
            assert_eq!(result_of(ring, &entry), -libc::EACCES, "{what}");
        }
        let update = ring.submitter().register_files_update(0, &[other.as_raw_fd()]);
        assert_eq!(update.unwrap_err().raw_os_error(), Some(libc::EACCES), "put another file in a disk's place");

        assert_eq!(result_of(ring, &opcode::Write::new(Fixed(0), data, 512).build()), 512);
        assert_eq!(result_of(ring, &opcode::Read::new(Fixed(0), data, 512).build()), 512);
        assert_eq!(result_of(ring, &opcode::Fsync::new(Fixed(0)).build()), 0);
    }
}
