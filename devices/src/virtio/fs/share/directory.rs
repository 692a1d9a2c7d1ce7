//! Directories as lists of names.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;

use super::Share;
use super::files::Handle;
use crate::virtio::fs::session::MAX_DATA;
use crate::virtio::fs::wire::{DIRENT, ENTRY_OUT, Fields, Reply};

/// How much of a directory is read at a time.
const CHUNK: usize = 4 << 10;

/// An open directory.
#[derive(Debug)]
pub(super) struct Listing {
    fd: OwnedFd,
    /// Where the guest is, in the host's terms.
    position: u64,
    /// What has been read from there on and not been told: there is no going back to it. On some file systems a position is a
    /// mere count, which means something else as soon as an entry is removed.
    ahead: VecDeque<Entry>,
}

/// An entry of a directory.
#[derive(Debug)]
struct Entry {
    inode: u64,
    /// The position behind it.
    next: u64,
    kind: FileType,
    name: Box<[u8]>,
}

impl Listing {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, position: 0, ahead: VecDeque::new() }
    }

    /// Goes to `offset`; to the beginning, to read everything anew.
    fn go_to(&mut self, offset: u64) -> Result<(), Errno> {
        if offset == 0 || offset != self.position {
            self.ahead.clear();
            seek(&self.fd, SeekFrom::Start(offset))?;
            self.position = offset;
        }
        Ok(())
    }

    /// The next entry; none at the end.
    fn peek(&mut self) -> Result<Option<&Entry>, Errno> {
        if self.ahead.is_empty() {
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut entries = RawDir::new(&self.fd, &mut chunk);
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let (inode, next, kind) = (entry.ino(), entry.next_entry_cookie(), entry.file_type());
                self.ahead.push_back(Entry { inode, next, kind, name: entry.file_name().to_bytes().into() });
                if entries.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.ahead.front())
    }

    /// Goes past the next entry.
    fn advance(&mut self) {
        if let Some(entry) = self.ahead.pop_front() {
            self.position = entry.next;
        }
    }
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
        reply.u64(self.handles.add(Handle::Directory(Listing::new(fd))));
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
        listing.go_to(wish.offset)?;
        while let Some(entry) = listing.peek()?
            && self.tell(entry, wish, reply)
        {
            listing.advance();
        }
        Ok(())
    }

    /// Adds an entry to the reply, if there is room for it.
    fn tell(&mut self, entry: &Entry, wish: Wish, reply: &mut Reply) -> bool {
        let name = &*entry.name;
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
        reply.u64(entry.inode);
        reply.u64(entry.next);
        // A name has at most 255 bytes.
        reply.u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        reply.u32(if entry.kind == FileType::Unknown { 0 } else { entry.kind.as_raw_mode() >> 12 });
        reply.0.extend_from_slice(name);
        reply.zeroes((DIRENT + name.len()).next_multiple_of(8) - DIRENT - name.len());
        true
    }

    /// Whether there are descriptors for files that the guest has not asked for by name.
    fn has_room_for_more(&self) -> bool {
        self.for_descriptors(self.settings.descriptors / 4).is_ok()
    }
}
