//! What an instance has written, whichever its isolation: one stream of entries.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use amphi_guest_init::tree::{Item, Kind};

use super::InstanceError;
use crate::image::{EntryKind, LayerEntry};
use crate::isolation::{IsolationKind, KeptLayer};
use crate::spec::RunSpec;

/// How many pieces may wait for their reader. Contents come in pieces of at most 512 KiB.
const WAITING: usize = 16;

/// A piece of the stream.
enum Piece {
    Entry(Entry),
    Data { offset: u64, bytes: Vec<u8> },
    End,
}

/// What a writable layer says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// What the image has there is gone. The path is from the root on, without a slash in front.
    Removed(Vec<u8>),
    /// There is something.
    There {
        /// What. Overlayfs' own attributes are not among its.
        entry: LayerEntry,
        /// Whether it is a directory in which nothing of the image's shows.
        opaque: bool,
    },
}

/// The entries of a writable layer: the root first, a directory before what is in it, names sorted in each.
pub(super) struct Entries {
    pieces: Receiver<Piece>,
    /// What came behind the contents of a file.
    next: Option<Piece>,
    ended: bool,
    /// Of the file that came last: where the reader is, how long it is, and a piece with the place where that begins.
    at: u64,
    length: u64,
    piece: (u64, Vec<u8>),
}

/// Lets `read` read what has been written to the kept layer of `spec`, which ran in that isolation. It need not read to the end.
pub(super) fn of<T>(
    kind: IsolationKind,
    spec: &RunSpec,
    read: impl FnOnce(&mut Entries) -> Result<T, InstanceError>,
) -> Result<T, InstanceError> {
    let tell = |visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>| {
        KeptLayer::new(kind, spec).changes(visit).map_err(|error| InstanceError::Isolation(Box::new(error)))
    };
    stream(tell, read)
}

/// Lets `read` read what `tell` tells, which does so in a thread of its own.
pub(super) fn stream<T>(
    tell: impl FnOnce(&mut dyn FnMut(Item<'_>) -> io::Result<()>) -> Result<(), InstanceError> + Send,
    read: impl FnOnce(&mut Entries) -> Result<T, InstanceError>,
) -> Result<T, InstanceError> {
    let (sender, pieces) = sync_channel(WAITING);
    thread::scope(|scope| {
        let told = scope.spawn(move || {
            tell(&mut |item| {
                let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads any more");
                sender.send(piece(&item)).map_err(|_| gone())
            })
        });
        let mut entries = Entries { pieces, next: None, ended: false, at: 0, length: 0, piece: (0, Vec::new()) };
        let result = read(&mut entries);
        let is_read = entries.ended || entries.is_cut_short();
        drop(entries);
        let told = told.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (told, result) {
            // Why a stream stops is better told by who stops it.
            (Err(error), _) if is_read => Err(error),
            (_, result) => result,
        }
    })
}

fn piece(item: &Item<'_>) -> Piece {
    let entry = match item {
        Item::Entry(entry) => entry,
        Item::Data { offset, bytes } => return Piece::Data { offset: *offset, bytes: bytes.to_vec() },
        Item::End => return Piece::End,
    };
    let kind = match entry.kind {
        Kind::CharacterDevice(0, 0) => return Piece::Entry(Entry::Removed(entry.path.to_vec())),
        Kind::File(length) => EntryKind::File(length),
        Kind::Directory => EntryKind::Directory,
        Kind::Symlink(target) => EntryKind::Symlink(target.to_vec()),
        Kind::CharacterDevice(major, minor) => EntryKind::Character(major, minor),
        Kind::BlockDevice(major, minor) => EntryKind::Block(major, minor),
        Kind::Fifo => EntryKind::Fifo,
        Kind::HardLink(target) => EntryKind::HardLink(target.to_vec()),
    };
    let (mut attributes, mut opaque) = (Vec::new(), false);
    for (name, value) in entry.attributes {
        match name.strip_prefix(b"trusted.overlay.").or(name.strip_prefix(b"user.overlay.")) {
            Some(note) => opaque |= note == b"opaque" && value == b"y",
            None => attributes.push((name.to_vec(), value.to_vec())),
        }
    }
    attributes.sort();
    let path = entry.path.to_vec();
    let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime.0);
    Piece::Entry(Entry::There { entry: LayerEntry { path, kind, mode, uid, gid, mtime, attributes }, opaque })
}

impl Entries {
    /// The next entry; `None` after the last. Contents that have not been read are passed over.
    pub(super) fn next(&mut self) -> Option<Entry> {
        loop {
            match self.take()? {
                Piece::Entry(entry) => {
                    self.length = match &entry {
                        Entry::There { entry: LayerEntry { kind: EntryKind::File(length), .. }, .. } => *length,
                        _ => 0,
                    };
                    (self.at, self.piece) = (0, (0, Vec::new()));
                    return Some(entry);
                }
                Piece::Data { .. } => {}
                Piece::End => self.ended = true,
            }
        }
    }

    /// To be asked when there is no entry any more.
    ///
    /// # Errors
    /// The stream has stopped before its end.
    pub(super) fn finish(&self) -> Result<(), InstanceError> {
        if self.ended { Ok(()) } else { Err(InstanceError::CutShort) }
    }

    fn take(&mut self) -> Option<Piece> {
        match self.next.take() {
            Some(piece) => Some(piece),
            None => self.pieces.recv().ok(),
        }
    }

    /// Whether the other side has stopped before the end.
    fn is_cut_short(&self) -> bool {
        !self.ended && matches!(self.pieces.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }
}

/// Reads the contents of the file that came last.
impl Read for Entries {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        while self.at >= self.piece.0 + self.piece.1.len() as u64 {
            match self.take() {
                Some(Piece::Data { offset, bytes }) => self.piece = (offset, bytes),
                // All that comes now is zeroes.
                Some(other) => {
                    self.next = Some(other);
                    self.piece = (self.length, vec![0]);
                }
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer stops in the middle")),
            }
        }
        let (start, bytes) = &self.piece;
        let length = if self.at < *start {
            let zeroes = usize::try_from(start - self.at).unwrap_or(usize::MAX).min(buffer.len()).min(left);
            buffer[..zeroes].fill(0);
            zeroes
        } else {
            let from = usize::try_from(self.at - start).unwrap_or(usize::MAX).min(bytes.len());
            let length = (bytes.len() - from).min(buffer.len()).min(left);
            buffer[..length].copy_from_slice(&bytes[from..from + length]);
            length
        };
        self.at += length as u64;
        Ok(length)
    }
}

/// Whether an entry is no part of what an instance has written: amphi mounts something there.
pub(super) fn is_mount_point(spec: &RunSpec, entry: &Entry) -> bool {
    let Entry::There { entry: LayerEntry { path, kind, .. }, .. } = entry else { return false };
    let is_volume = || {
        let path = Path::new("/").join(OsStr::from_bytes(path));
        spec.volumes.iter().any(|volume| volume.destination == path)
    };
    matches!(kind, EntryKind::Directory | EntryKind::File(0))
        && (matches!(&path[..], b"dev" | b"proc" | b"sys") || is_volume())
}
