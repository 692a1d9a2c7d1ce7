//! Open files: contents straight between guest memory and the host's page cache.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek, syncfs};
use rustix::io::Errno;

use super::attributes::kill_privileges;
use super::directory::Listing;
use super::nodes::Version;
use super::{Share, stat};
use crate::virtio::chain::Buffers;
use crate::virtio::fs::session::MAX_DATA;
use crate::virtio::fs::wire::{Fields, ROOT, Reply};

/// `FUSE_OPEN_KILL_SUIDGID`.
const OPEN_KILL_PRIVILEGES: u32 = 1;
/// `FOPEN_KEEP_CACHE`.
const KEEP_CACHE: u32 = 1 << 1;
/// `FUSE_WRITE_CACHE`: from the guest's page cache, long after the program's own call.
const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`.
const WRITE_KILL_PRIVILEGES: u32 = 1 << 2;
/// The most bytes that one request copies; who wants more asks again.
const COPY_MAX: u64 = 16 << 20;
/// Times of files go by the host's clock ticks: a file that was changed less than this many seconds ago may change once more
/// without its times saying so.
const SETTLED: i64 = 2;

/// What the guest has open.
#[derive(Debug)]
pub(super) enum Handle {
    File(OwnedFd),
    Directory(Listing),
}

/// What the guest has open, by the numbers that it has for them.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u64, Handle>,
    last: u64,
}

impl Handles {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn add(&mut self, handle: Handle) -> u64 {
        self.last += 1;
        self.open.insert(self.last, handle);
        self.last
    }

    /// Takes a handle out, to be [put back](Self::put).
    pub(super) fn take(&mut self, number: u64) -> Result<Handle, Errno> {
        self.open.remove(&number).ok_or(Errno::BADF)
    }

    pub(super) fn put(&mut self, number: u64, handle: Handle) {
        self.open.insert(number, handle);
    }

    pub(super) fn file(&self, number: u64) -> Result<BorrowedFd<'_>, Errno> {
        match self.open.get(&number) {
            Some(Handle::File(fd)) => Ok(fd.as_fd()),
            _ => Err(Errno::BADF),
        }
    }
}

/// Of the flags that a guest opens a file with, those that the host's descriptor has too. Appending is said with each write.
pub(super) fn access_flags(flags: u32) -> Result<OFlags, Errno> {
    let flags = OFlags::from_bits_retain(flags);
    if flags & OFlags::RWMODE == OFlags::RWMODE {
        return Err(Errno::INVAL);
    }
    Ok(flags & (OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC))
}

impl Share {
    /// `OPEN`.
    pub(in crate::virtio::fs) fn open(
        &mut self,
        number: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (flags, more) = (access_flags(fields.u32()?)?, fields.u32()?);
        if flags.intersects(OFlags::RWMODE | OFlags::TRUNC) {
            self.for_change()?;
        }
        self.for_descriptors(1)?;
        let fd = self.open_regular(number, flags)?;
        if flags.contains(OFlags::TRUNC) && more & OPEN_KILL_PRIVILEGES != 0 {
            kill_privileges(fd.as_fd())?;
        }
        let keep = if self.is_unchanged(number, fd.as_fd())? { KEEP_CACHE } else { 0 };
        self.reply_opened(fd, keep, reply);
        Ok(())
    }

    /// Whether the file is as it was when the guest opened it last, so that what the guest has in its cache is right.
    fn is_unchanged(&mut self, number: u64, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        let stat = stat(fd)?;
        let (modified, changed) = (stat.stx_mtime, stat.stx_ctime);
        let version = Version {
            size: stat.stx_size,
            modified: (modified.tv_sec, modified.tv_nsec),
            changed: (changed.tv_sec, changed.tv_nsec),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
        let settled = now.saturating_sub(changed.tv_sec.max(modified.tv_sec)) > SETTLED;
        let Some(node) = self.nodes.get_mut(number) else { return Ok(false) };
        let before = std::mem::replace(&mut node.cached, settled.then_some(version));
        Ok(before == Some(version))
    }

    /// `fuse_open_out`.
    pub(super) fn reply_opened(&mut self, fd: OwnedFd, flags: u32, reply: &mut Reply) {
        reply.u64(self.handles.add(Handle::File(fd)));
        reply.u32(flags);
        reply.u32(0);
    }

    /// `RELEASE` and `RELEASEDIR`.
    pub(in crate::virtio::fs) fn release(&mut self, fields: &mut Fields<'_>) -> Result<(), Errno> {
        self.handles.take(fields.u64()?).map(drop)
    }

    /// `READ`: fills `to`, and returns with how many bytes.
    pub(in crate::virtio::fs) fn read(
        &mut self,
        fields: &mut Fields<'_>,
        to: &mut Buffers<'_>,
    ) -> Result<usize, Errno> {
        let (handle, offset, size) = (fields.u64()?, fields.offset()?, fields.u32()?);
        let fd = self.handles.file(handle)?;
        to.truncate(size.min(MAX_DATA) as usize);
        transfer(offset, to, |buffers, offset| {
            let count = libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: the buffers are in guest memory, mapped as long as `to` lives, which anybody may write to.
            unsafe { libc::preadv(fd.as_raw_fd(), buffers.as_ptr(), count, offset) }
        })
    }

    /// `WRITE`: all that `from` has.
    pub(in crate::virtio::fs) fn write(
        &mut self,
        fields: &mut Fields<'_>,
        from: &mut Buffers<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (handle, offset, size, how) = (fields.u64()?, fields.offset()?, fields.u32()?, fields.u32()?);
        fields.skip(8)?;
        let flags = OFlags::from_bits_retain(fields.u32()?);
        if from.len() != size as usize || size > MAX_DATA {
            return Err(Errno::INVAL);
        }
        let fd = self.handles.file(handle)?;
        if how & WRITE_KILL_PRIVILEGES != 0 {
            kill_privileges(fd)?;
        }
        // The end of the file is where the host has it, which a guest may not know yet.
        let append = flags.contains(OFlags::APPEND) && how & WRITE_CACHE == 0;
        let append = if append { libc::RWF_APPEND } else { 0 };
        let written = transfer(offset, from, |buffers, offset| {
            let count = libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: the buffers are in guest memory, mapped as long as `from` lives, and only read.
            unsafe { libc::pwritev2(fd.as_raw_fd(), buffers.as_ptr(), count, offset, append) }
        })?;
        reply.u32(u32::try_from(written).unwrap_or(u32::MAX));
        reply.u32(0);
        Ok(())
    }

    /// `FSYNC` and `FSYNCDIR`.
    pub(in crate::virtio::fs) fn sync_file(&mut self, fields: &mut Fields<'_>) -> Result<(), Errno> {
        let (number, data_only) = (fields.u64()?, fields.u32()? & 1 != 0);
        let handle = self.handles.open.get(&number).ok_or(Errno::BADF)?;
        match handle {
            Handle::File(fd) if data_only => fdatasync(fd),
            Handle::File(fd) => fsync(fd),
            Handle::Directory(listing) => fsync(listing),
        }
    }

    /// `SYNCFS`.
    pub(in crate::virtio::fs) fn sync_all(&mut self) -> Result<(), Errno> {
        let fd = match &self.file {
            Some(file) => self.reopen(file.as_fd(), OFlags::RDONLY),
            None => self.reopen(self.node(ROOT)?.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY),
        }?;
        syncfs(fd)
    }

    /// `FALLOCATE`.
    pub(in crate::virtio::fs) fn allocate(&mut self, fields: &mut Fields<'_>) -> Result<(), Errno> {
        let (handle, offset, len) = (fields.u64()?, fields.offset()?, fields.offset()?);
        let mode = FallocateFlags::from_bits_retain(fields.u32()?);
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        fallocate(self.handles.file(handle)?, mode, offset, len)
    }

    /// `LSEEK`, for data and holes: the guest does the rest itself.
    pub(in crate::virtio::fs) fn seek(&mut self, fields: &mut Fields<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (handle, offset, whence) = (fields.u64()?, fields.offset()?, fields.u32()?);
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        reply.u64(seek(self.handles.file(handle)?, to)?);
        Ok(())
    }

    /// `COPY_FILE_RANGE`.
    pub(in crate::virtio::fs) fn copy_range(
        &mut self,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (from, mut from_offset) = (fields.u64()?, fields.offset()?);
        fields.skip(8)?;
        let (to, mut to_offset, len) = (fields.u64()?, fields.offset()?, fields.u64()?.min(COPY_MAX));
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        let len = usize::try_from(len).unwrap_or(0);
        let copied = copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len)?;
        reply.u32(u32::try_from(copied).unwrap_or(u32::MAX));
        reply.u32(0);
        Ok(())
    }
}

/// Has `call` read or write `buffers` at `offset` until they are used up or it does no more, and returns how many bytes it
/// has done.
fn transfer(
    offset: u64,
    buffers: &mut Buffers<'_>,
    call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
) -> Result<usize, Errno> {
    let mut done = 0;
    while buffers.len() > 0 {
        let at = offset.checked_add(done as u64).and_then(|at| libc::off_t::try_from(at).ok()).ok_or(Errno::INVAL)?;
        match usize::try_from(call(buffers.iovecs(), at)) {
            Ok(0) => break,
            Ok(count) => {
                buffers.advance(count);
                done += count;
            }
            Err(_) => match Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO) {
                Errno::INTR => {}
                errno if done == 0 => return Err(errno),
                _ => break,
            },
        }
    }
    Ok(done)
}
