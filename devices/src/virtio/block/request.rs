//! One request, from header to status byte (section 5.2.6). Nothing is assumed about how the driver lays the parts
//! out in buffers (section 2.7.4.1).

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::{Disk, Extent, Io, Zeroing};
use crate::virtio::chain::{Buffers, Chain, GuestByte, QueueError};

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

enum Refusal {
    Unsupported,
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What is to be done for a request.
pub(super) enum Todo {
    /// Data is to be moved, or brought to stable storage.
    Io(Io),
    /// Contents are to be dropped.
    Zero(Zeroing),
    /// Nothing any more.
    Report(Status),
}

/// A request whose header has been read and checked. Its data is what is left in its chain.
pub(super) struct Request<'m> {
    status: GuestByte<'m>,
    /// How many bytes there are for the device to write, but for the status.
    room: usize,
}

impl<'m> Request<'m> {
    /// Reads the header of the request in `chain` and finds out what there is to do on `disk`.
    ///
    /// # Errors
    /// There is no whole header or no place for the status, so that the driver cannot even be told.
    pub(super) fn read(chain: &mut Chain<'m>, rules: &Rules, disk: &Disk) -> Result<(Self, Todo), QueueError> {
        let head = chain.head;
        let mut header = [0; HEADER];
        chain.readable.read(&mut header).ok_or(QueueError::TooShort { head, part: "header" })?;
        let status = chain.writable.split_last().ok_or(QueueError::TooShort { head, part: "status" })?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        let request = Self { status, room: chain.writable.len() };
        let todo = decode(disk, rules, kind, sector, chain).unwrap_or_else(|refusal| {
            Todo::Report(match refusal {
                Refusal::Unsupported => Status(VIRTIO_BLK_S_UNSUPP),
                Refusal::Failed(error) => {
                    log::debug!("block request of type {kind} at sector {sector}: {error}");
                    Status(VIRTIO_BLK_S_IOERR)
                }
            })
        });
        Ok((request, todo))
    }

    /// Tells the driver how the request ended. Returns how many bytes were written to `chain`.
    pub(super) fn finish(self, chain: &Chain<'m>, Status(code): Status) -> u32 {
        self.status.set(code.to_le_bytes()[0]);
        u32::try_from(self.room - chain.writable.len() + 1).unwrap_or(u32::MAX)
    }
}

/// How a request ended, as its status byte says it.
pub(super) struct Status(u32);

impl From<io::Result<()>> for Status {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self(VIRTIO_BLK_S_OK),
            Err(error) => {
                log::debug!("block request: {error}");
                Self(VIRTIO_BLK_S_IOERR)
            }
        }
    }
}

fn decode(disk: &Disk, rules: &Rules, kind: u32, sector: u64, chain: &mut Chain<'_>) -> Result<Todo, Refusal> {
    let changes = matches!(kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES);
    if changes && rules.read_only {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
    }
    if chain.readable.len().max(chain.writable.len()) > MAX_DATA {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    let through = rules.write_through;
    Ok(match kind {
        VIRTIO_BLK_T_IN => Todo::Io(Io::Read(disk.extent(sector, chain.writable.len() as u64)?)),
        VIRTIO_BLK_T_OUT => Todo::Io(Io::Write { to: disk.extent(sector, chain.readable.len() as u64)?, through }),
        VIRTIO_BLK_T_FLUSH if rules.read_only => Todo::Report(Status(VIRTIO_BLK_S_OK)),
        VIRTIO_BLK_T_FLUSH => Todo::Io(Io::Flush),
        VIRTIO_BLK_T_GET_ID => {
            chain.writable.write(&rules.serial);
            Todo::Report(Status(VIRTIO_BLK_S_OK))
        }
        VIRTIO_BLK_T_DISCARD => {
            let (what, _) = segment(disk, false, &mut chain.readable)?;
            Todo::Zero(Zeroing { what, must_be_zero: false, unmap: true, through })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let (what, unmap) = segment(disk, true, &mut chain.readable)?;
            Todo::Zero(Zeroing { what, must_be_zero: true, unmap, through })
        }
        _ => return Err(Refusal::Unsupported),
    })
}

/// The one segment that the configuration space allows, and whether its storage may be given back.
fn segment(disk: &Disk, may_unmap: bool, segments: &mut Buffers<'_>) -> Result<(Extent, bool), Refusal> {
    let mut segment = [0; HEADER];
    let whole = segments.len() == HEADER;
    segments.read(&mut segment).filter(|()| whole).ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?;
    let (sector, sectors, flags) = (le64(&segment, 0), le32(&segment, 8), le32(&segment, 12));
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    // Section 5.2.6.2: unknown flags, and unmapping by a discard, are unsupported.
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && !may_unmap) {
        return Err(Refusal::Unsupported);
    }
    if sectors > MAX_ZEROED_SECTORS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    Ok((disk.sectors_extent(sector, sectors)?, unmap))
}

fn le32(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn le64(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
