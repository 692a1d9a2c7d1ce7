//! Where a disk's contents are: a file or a host block device, read and written in place.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use libc::{c_int, off_t};

use crate::virtio::chain::Buffers;

/// The unit of a block device's addresses, whatever its block size is (section 5.2.4).
pub(super) const SECTOR: u64 = 512;
/// How much is zeroed by one write where the host cannot do it by itself.
const ZERO_CHUNK: usize = 64 << 10;

pub(super) struct Disk {
    file: File,
    /// The size in bytes, a multiple of the sector size.
    len: u64,
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
        Ok(Self { file, len: bytes - bytes % SECTOR })
    }

    /// The size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.len / SECTOR
    }

    /// The offset in bytes of `sector`, if the disk has `len` bytes from there on.
    fn offset(&self, sector: u64, len: u64) -> io::Result<i64> {
        let offset = sector.checked_mul(SECTOR).filter(|offset| offset.checked_add(len).is_some_and(|e| e <= self.len));
        let outside = || io::Error::new(ErrorKind::InvalidInput, format!("{len} bytes at sector {sector} are outside"));
        i64::try_from(offset.ok_or_else(outside)?).map_err(|_| outside())
    }

    /// Fills `buffers`, whose length must be whole sectors, from `sector` on.
    pub(super) fn read(&self, sector: u64, buffers: &mut Buffers<'_>) -> io::Result<()> {
        self.transfer(sector, buffers, |fd, iov, count, offset| {
            // SAFETY: The iovecs point into mapped guest memory (Buffers), and the kernel checks the rest.
            unsafe { libc::preadv(fd, iov, count, offset) }
        })
    }

    /// Writes `buffers`, whose length must be whole sectors, from `sector` on. With `through`, the data has reached
    /// stable storage on return.
    pub(super) fn write(&self, sector: u64, buffers: &mut Buffers<'_>, through: bool) -> io::Result<()> {
        self.transfer(sector, buffers, |fd, iov, count, offset| {
            // SAFETY: As for reading.
            unsafe { libc::pwritev(fd, iov, count, offset) }
        })?;
        if through { self.flush() } else { Ok(()) }
    }

    fn transfer(
        &self,
        sector: u64,
        buffers: &mut Buffers<'_>,
        call: impl Fn(c_int, *const libc::iovec, c_int, off_t) -> isize,
    ) -> io::Result<()> {
        if !(buffers.len() as u64).is_multiple_of(SECTOR) {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{} bytes are no sectors", buffers.len())));
        }
        let mut offset = self.offset(sector, buffers.len() as u64)?;
        while buffers.len() > 0 {
            let iovecs = buffers.iovecs();
            let count = c_int::try_from(iovecs.len()).map_err(io::Error::other)?;
            match call(self.file.as_raw_fd(), iovecs.as_ptr(), count, offset) {
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

    /// Brings everything written to stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Tells the host that the guest does not need these sectors any more. Where the host has no use for that,
    /// nothing happens.
    pub(super) fn discard(&self, sector: u64, sectors: u32) -> io::Result<()> {
        match self.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, sector, sectors) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Makes these sectors read as zeroes; with `unmap`, their storage may be given back.
    pub(super) fn write_zeroes(&self, sector: u64, sectors: u32, unmap: bool) -> io::Result<()> {
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        match self.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, sector, sectors) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.write_zero_bytes(sector, sectors),
            result => result,
        }
    }

    fn allocate(&self, mode: c_int, sector: u64, sectors: u32) -> io::Result<()> {
        let len = i64::from(sectors) * SECTOR.cast_signed();
        let offset = self.offset(sector, len.unsigned_abs())?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: No memory is involved.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn write_zero_bytes(&self, sector: u64, sectors: u32) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let zeroes = [0; ZERO_CHUNK];
        let mut offset = sector * SECTOR;
        let mut left = u64::from(sectors) * SECTOR;
        while left > 0 {
            let chunk = usize::try_from(left).map_or(ZERO_CHUNK, |left| left.min(ZERO_CHUNK));
            self.file.write_all_at(&zeroes[..chunk], offset)?;
            offset += chunk as u64;
            left -= chunk as u64;
        }
        Ok(())
    }
}
