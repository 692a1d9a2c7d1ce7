//! Directories as lists of names.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, RawDirEntry, SeekFrom, openat, seek};
use rustix::io::Errno;

use super::Share;
use super::files::Handle;
use crate::virtio::fs::session::MAX_DATA;
use crate::virtio::fs::wire::{DIRENT, ENTRY_OUT, Fields, Reply};

/// How much of a directory is read at a time: with attributes, an entry of the reply is some five times as long as the host's.
const CHUNK: usize = 4 << 10;

/// An open directory.
#[derive(Debug)]
pub(super) struct Listing {
    fd: OwnedFd,
    /// Where the host's descriptor is, in its own terms.
    position: u64,
}

impl AsFd for Listing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a directory is read for.
#[derive(Clone, Copy)]
struct Wish {
    node: u64,
    offset: u64,
    size: usize,
    /// With the attributes of each entry, which is looked up for that.
    plus: bool,
}

impl Share {
    /// `OPENDIR`.
    pub(in crate::virtio::fs) fn open_directory(&mut self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        self.for_descriptors(1)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(self.directory(node)?, c".", flags, Mode::empty())?;
        reply.u64(self.handles.add(Handle::Directory(Listing { fd, position: 0 })));
        reply.u64(0);
        Ok(())
    }

    /// `READDIR` and `READDIRPLUS`.
    pub(in crate::virtio::fs) fn read_directory(
        &mut self,
        node: u64,
        fields: &mut Fields<'_>,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (number, offset, size) = (fields.u64()?, fields.offset()?, fields.u32()?.min(MAX_DATA) as usize);
        let wish = Wish { node, offset, size, plus };
        // Out of the table meanwhile: looking entries up changes the rest.
        let mut handle = self.handles.take(number)?;
        let result = match &mut handle {
            Handle::Directory(listing) => self.list(listing, wish, reply),
            Handle::File(_) => Err(Errno::NOTDIR),
        };
        self.handles.put(number, handle);
        // What has been listed is good; the error will come again.
        if reply.0.is_empty() { result } else { Ok(()) }
    }

    fn list(&mut self, listing: &mut Listing, wish: Wish, reply: &mut Reply) -> Result<(), Errno> {
        if listing.position != wish.offset {
            seek(&listing.fd, SeekFrom::Start(wish.offset))?;
        }
        // The descriptor runs ahead of what is told; should something fail, nobody knows where it is.
        listing.position = u64::MAX;
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(&listing.fd, &mut chunk);
        let mut told = wish.offset;
        loop {
            let rest_is_unread = entries.is_buffer_empty();
            if rest_is_unread && reply.0.len() + CHUNK / 2 > wish.size && !reply.0.is_empty() {
                // Another chunk would be for a few entries, and be read again.
                listing.position = told;
                return Ok(());
            }
            let Some(entry) = entries.next() else {
                listing.position = told;
                return Ok(());
            };
            let entry = entry?;
            if !self.tell(&entry, wish, reply) {
                return Ok(());
            }
            told = entry.next_entry_cookie();
        }
    }

    /// Adds an entry to the reply, if there is room for it.
    fn tell(&mut self, entry: &RawDirEntry<'_>, wish: Wish, reply: &mut Reply) -> bool {
        let name = entry.file_name().to_bytes();
        let before = if wish.plus { ENTRY_OUT } else { 0 };
        let len = before + (DIRENT + name.len()).next_multiple_of(8);
        if reply.0.len() + len > wish.size {
            return false;
        }
        if wish.plus {
            // Not every entry may be looked up; the guest does so itself then if it has to.
            let wanted = !matches!(name, b"." | b"..") && self.has_room_for_more();
            match wanted.then(|| self.find(wish.node, name)) {
                Some(Ok((node, attributes))) => reply.entry(node, &attributes),
                _ => reply.zeroes(ENTRY_OUT),
            }
        }
        reply.u64(entry.ino());
        reply.u64(entry.next_entry_cookie());
        // A name has at most 255 bytes.
        reply.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        let kind = entry.file_type();
        reply.u32(if kind == FileType::Unknown { 0 } else { kind.as_raw_mode() >> 12 });
        reply.0.extend_from_slice(name);
        reply.zeroes((DIRENT + name.len()).next_multiple_of(8) - DIRENT - name.len());
        true
    }

    /// Whether there are descriptors for files that the guest has not asked for by name.
    fn has_room_for_more(&self) -> bool {
        self.for_descriptors(self.settings.descriptors / 4).is_ok()
    }
}
