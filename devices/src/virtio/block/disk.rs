//! Where a disk's contents are: a file or a host block device, read and written in place, one request at a time.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};

use libc::{c_int, iovec, off_t};

use super::direct;
use crate::virtio::chain::{Buffers, Chain};

/// The unit of a block device's addresses, whatever its block size is (section 5.2.4).
pub(super) const SECTOR: u64 = 512;
/// How much is zeroed by one write where the host cannot do it by itself.
const ZERO_CHUNK: usize = 64 << 10;

/// A stretch of a disk, in bytes. It lies within the disk.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What a request wants of the disk. Data is in its chain. With `through`, it is on stable storage when it is done.
#[derive(Clone, Copy)]
pub(super) enum Io {
    Read(Extent),
    Write {
        to: Extent,
        through: bool,
    },
    /// Everything written and reported before is brought to stable storage (section 5.2.6.2).
    Flush,
}

impl Io {
    /// Whether it may take long by itself.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Flush | Self::Write { through: true, .. })
    }
}

/// Contents that the guest does not need any more, or wants to read as zeroes.
#[derive(Clone, Copy)]
pub(super) struct Zeroing {
    pub(super) what: Extent,
    /// Otherwise it is only a hint.
    pub(super) must_be_zero: bool,
    /// The storage may be given back.
    pub(super) unmap: bool,
    /// It is on stable storage when it is done.
    pub(super) through: bool,
}

pub(super) struct Disk {
    file: File,
    /// The same without the page cache.
    direct: Option<direct::DirectFile>,
    /// The size in bytes, a multiple of the sector size.
    len: u64,
}

/// Which of a disk's descriptors serves a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Cached,
    Direct,
}

/// How many there are, for the kernel: one system call takes few.
fn count(buffers: &[iovec]) -> c_int {
    c_int::try_from(buffers.len()).unwrap_or(c_int::MAX)
}

impl Disk {
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let bytes = if metadata.file_type().is_block_device() { file.seek(SeekFrom::End(0))? } else { metadata.len() };
        // Offsets are signed for the kernel.
        if i64::try_from(bytes).is_err() {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("a disk of {bytes} bytes is too large")));
        }
        if bytes % SECTOR != 0 {
            log::warn!("the disk's last {} bytes are no whole sector; the guest does not see them", bytes % SECTOR);
        }
        Ok(Self { file, direct: None, len: bytes - bytes % SECTOR })
    }

    pub(super) fn set_direct(&mut self, file: File) {
        self.direct = Some(direct::DirectFile::new(file));
    }

    /// The size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.len / SECTOR
    }

    /// The descriptors, in the order of [`Access`].
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        std::iter::once(self.file.as_raw_fd()).chain(self.direct.as_ref().map(AsRawFd::as_raw_fd)).collect()
    }

    /// The `len` bytes from `sector` on, if the disk has them and they are whole sectors.
    pub(super) fn extent(&self, sector: u64, len: u64) -> io::Result<Extent> {
        if !len.is_multiple_of(SECTOR) {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{len} bytes are no sectors")));
        }
        let offset = sector.checked_mul(SECTOR).filter(|offset| offset.checked_add(len).is_some_and(|e| e <= self.len));
        let outside = || io::Error::new(ErrorKind::InvalidInput, format!("{len} bytes at sector {sector} are outside"));
        Ok(Extent { offset: offset.ok_or_else(outside)?, len })
    }

    /// The same for a number of sectors.
    pub(super) fn sectors_extent(&self, sector: u64, sectors: u32) -> io::Result<Extent> {
        self.extent(sector, u64::from(sectors) * SECTOR)
    }

    /// How to read or write `buffers` at `offset`: past the page cache where that is wanted and they are aligned for it.
    pub(super) fn access(&self, offset: u64, buffers: &Buffers<'_>) -> Access {
        match &self.direct {
            Some(direct) if direct.takes(offset, buffers.iovecs()) => Access::Direct,
            _ => Access::Cached,
        }
    }

    /// Carries out `io` with the data in `chain`.
    pub(super) fn perform(&self, io: Io, chain: &mut Chain<'_>) -> io::Result<()> {
        match io {
            Io::Read(from) => self.transfer(from.offset, &mut chain.writable, |fd, buffers, offset| match buffers {
                // A single buffer spares the kernel to copy a list.
                // SAFETY: The buffers are in mapped guest memory (Buffers), and the kernel checks the rest.
                [buffer] => unsafe { libc::pread(fd, buffer.iov_base, buffer.iov_len, offset) },
                // SAFETY: The same.
                _ => unsafe { libc::preadv(fd, buffers.as_ptr(), count(buffers), offset) },
            }),
            Io::Write { to, through } => {
                let flags = if through { libc::RWF_DSYNC } else { 0 };
                self.transfer(to.offset, &mut chain.readable, |fd, buffers, offset| match buffers {
                    // SAFETY: As for reading.
                    [buffer] if !through => unsafe { libc::pwrite(fd, buffer.iov_base, buffer.iov_len, offset) },
                    // SAFETY: As for reading.
                    _ => unsafe { libc::pwritev2(fd, buffers.as_ptr(), count(buffers), offset, flags) },
                })
            }
            Io::Flush => self.file.sync_data(),
        }
    }

    /// Gives contents up, by whatever means the host has.
    pub(super) fn zero(&self, Zeroing { what, must_be_zero, unmap, through }: Zeroing) -> io::Result<()> {
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        match self.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, what) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                if must_be_zero {
                    self.write_zero_bytes(what)?;
                }
            }
            result => result?,
        }
        if through { self.file.sync_data() } else { Ok(()) }
    }

    fn transfer(
        &self,
        offset: u64,
        buffers: &mut Buffers<'_>,
        call: impl Fn(RawFd, &[iovec], off_t) -> isize,
    ) -> io::Result<()> {
        // Checked when the disk was opened: all offsets are positive for the kernel too.
        let mut offset = offset.cast_signed();
        while buffers.len() > 0 {
            let file = match (self.access(offset.cast_unsigned(), buffers), &self.direct) {
                (Access::Direct, Some(direct)) => direct.as_raw_fd(),
                _ => self.file.as_raw_fd(),
            };
            match call(file, buffers.iovecs(), offset) {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                done @ 1.. => {
                    offset += done as i64;
                    buffers.advance(done.unsigned_abs());
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, mode: c_int, what: Extent) -> io::Result<()> {
        if what.len == 0 {
            return Ok(());
        }
        // SAFETY: No memory is involved.
        let result =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, what.offset.cast_signed(), what.len.cast_signed()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn write_zero_bytes(&self, what: Extent) -> io::Result<()> {
        let zeroes = [0; ZERO_CHUNK];
        let (mut offset, mut left) = (what.offset, what.len);
        while left > 0 {
            let chunk = usize::try_from(left).map_or(ZERO_CHUNK, |left| left.min(ZERO_CHUNK));
            self.file.write_all_at(&zeroes[..chunk], offset)?;
            offset += chunk as u64;
            left -= chunk as u64;
        }
        Ok(())
    }
}
