//! One request, from header to status byte (section 5.2.6). Nothing is assumed about how the driver lays the parts
//! out in buffers (section 2.7.4.1).

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::Disk;
use crate::virtio::chain::{Buffers, Chain, QueueError};

/// The most sectors that a single discard or write-zeroes request may name: bounds the work of one request.
pub(super) const MAX_ZEROED_SECTORS: u32 = 32 << 10;
/// The most bytes that one request may read or write: bounds its work, too. Drivers ask for a twentieth of that at most.
pub(super) const MAX_DATA: usize = 32 << 20;
/// The length in bytes of a request's header, and of a segment of a discard request.
const HEADER: usize = 16;
/// The length in bytes of a disk's serial number.
pub(super) const SERIAL: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What a disk does besides storing bytes.
pub(super) struct Rules {
    pub(super) read_only: bool,
    /// The driver did not negotiate flushing: each write is on stable storage before it is reported.
    pub(super) write_through: bool,
    pub(super) serial: [u8; SERIAL],
}

enum Failure {
    Unsupported,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a request has done.
pub(super) struct Done {
    /// How many bytes were written to its chain.
    pub(super) written: u32,
    /// It was of a kind that may take long.
    pub(super) slow: bool,
}

/// Carries out the request in `chain`.
///
/// # Errors
/// There is no whole header or no place for the status, so that the driver cannot even be told.
pub(super) fn execute(disk: &Disk, rules: &Rules, chain: &mut Chain<'_>) -> Result<Done, QueueError> {
    let head = chain.head;
    let mut header = [0; HEADER];
    chain.readable.read(&mut header).ok_or(QueueError::TooShort { head, part: "header" })?;
    let status = chain.writable.split_last().ok_or(QueueError::TooShort { head, part: "status" })?;
    let (kind, sector) = (le32(&header, 0), le64(&header, 8));
    let room = chain.writable.len();
    let outcome = perform(disk, rules, kind, sector, chain);
    let code = match outcome {
        Ok(()) => VIRTIO_BLK_S_OK,
        Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(Failure::Io(error)) => {
            log::debug!("block request of type {kind} at sector {sector}: {error}");
            VIRTIO_BLK_S_IOERR
        }
    };
    status.set(code.to_le_bytes()[0]);
    let written = u32::try_from(room - chain.writable.len() + 1).unwrap_or(u32::MAX);
    let quick =
        matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID) || kind == VIRTIO_BLK_T_OUT && !rules.write_through;
    Ok(Done { written, slow: !quick })
}

fn perform(disk: &Disk, rules: &Rules, kind: u32, sector: u64, chain: &mut Chain<'_>) -> Result<(), Failure> {
    let changes = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if changes && rules.read_only {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
    }
    if chain.readable.len().max(chain.writable.len()) > MAX_DATA {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    match kind {
        VIRTIO_BLK_T_IN => disk.read(sector, &mut chain.writable)?,
        VIRTIO_BLK_T_OUT => disk.write(sector, &mut chain.readable, rules.write_through)?,
        VIRTIO_BLK_T_FLUSH if rules.read_only => {}
        VIRTIO_BLK_T_FLUSH => disk.flush()?,
        VIRTIO_BLK_T_GET_ID => {
            chain.writable.write(&rules.serial);
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            zero(disk, kind == VIRTIO_BLK_T_WRITE_ZEROES, &mut chain.readable)?;
            if rules.write_through {
                disk.flush()?;
            }
        }
        _ => return Err(Failure::Unsupported),
    }
    Ok(())
}

/// Discards or zeroes the one segment that the configuration space allows.
fn zero(disk: &Disk, must_be_zero: bool, segments: &mut Buffers<'_>) -> Result<(), Failure> {
    let mut segment = [0; HEADER];
    let whole = segments.len() == HEADER;
    segments.read(&mut segment).filter(|()| whole).ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?;
    let (sector, sectors, flags) = (le64(&segment, 0), le32(&segment, 8), le32(&segment, 12));
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    // Section 5.2.6.2: unknown flags, and unmapping by a discard, are unsupported.
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && !must_be_zero) {
        return Err(Failure::Unsupported);
    }
    if sectors > MAX_ZEROED_SECTORS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    if must_be_zero {
        disk.write_zeroes(sector, sectors, unmap)?;
    } else {
        disk.discard(sector, sectors)?;
    }
    Ok(())
}

fn le32(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le64(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
