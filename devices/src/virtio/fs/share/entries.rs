//! Names in directories: looking them up, making them, moving them, taking them away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::MODE_BITS;
use super::files::access_flags;
use super::nodes::Place;
use super::{Caller, FILE_NAME, Share, name_of, stat};
use crate::virtio::fs::wire::{Attributes, Fields, ROOT, Reply};

/// What is found without opening it, and without going elsewhere.
const FIND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & MODE_BITS)
}

impl Share {
    /// `LOOKUP`.
    pub(in crate::virtio::fs) fn lookup(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let name = fields.name()?;
        self.reply_entry(parent, name, reply)
    }

    /// Looks `name` up in a directory; the guest has to forget the node again.
    pub(super) fn find(&mut self, parent: u64, name: &[u8]) -> Result<(u64, Attributes), Errno> {
        if let (Some(file), ROOT) = (&self.file, parent) {
            if name != FILE_NAME.as_bytes() {
                return Err(Errno::NOENT);
            }
            let fd = rustix::io::fcntl_dupfd_cloexec(file, 0)?;
            let place = Place::of(&stat(fd.as_fd())?);
            return self.enter(fd, place);
        }
        let directory = self.directory(parent)?;
        let place = directory.place;
        let fd = openat(directory, name, FIND, Mode::empty())?;
        self.enter(fd, place)
    }

    fn reply_entry(&mut self, parent: u64, name: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        let (node, attributes) = self.find(parent, name)?;
        reply.entry(node, &attributes);
        Ok(())
    }

    /// `SYMLINK`.
    pub(in crate::virtio::fs) fn symlink(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (name, target) = (fields.name()?, fields.text()?);
        self.make_entry(parent, name, caller, reply, |directory| symlinkat(target, directory, name))
    }

    /// `MKNOD`: a regular file, a pipe or a socket, both of which live in the guest alone. Never a device.
    pub(in crate::virtio::fs) fn make_node(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let bits = fields.u32()?;
        fields.skip(12)?;
        let name = fields.name()?;
        self.make_entry(parent, name, caller, reply, |directory| match FileType::from_raw_mode(bits) {
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => {
                mknodat(directory, name, kind, mode(bits), 0)
            }
            _ => Err(Errno::PERM),
        })
    }

    /// `MKDIR`.
    pub(in crate::virtio::fs) fn make_directory(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let bits = fields.u32()?;
        fields.skip(4)?;
        let name = fields.name()?;
        self.make_entry(parent, name, caller, reply, |directory| mkdirat(directory, name, mode(bits)))
    }

    /// Has `make` put something called `name` into a directory, as the caller, and looks it up.
    fn make_entry(
        &mut self,
        parent: u64,
        name: &[u8],
        caller: Caller,
        reply: &mut Reply,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.for_change()?;
        {
            let _acting = self.settings.owners.act_as(caller)?;
            make(self.directory(parent)?.as_fd())?;
        }
        self.reply_entry(parent, name, reply)
    }

    /// `CREATE`: makes a regular file and opens it.
    pub(in crate::virtio::fs) fn create(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (flags, bits) = (fields.u32()?, fields.u32()?);
        fields.skip(8)?;
        let name = fields.name()?;
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        let how = access_flags(flags)? | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.make_file(parent, name, how, bits, caller, reply) {
            // The host was faster. The guest looks the name up again, and opens what is there as it may.
            Err(Errno::EXIST) if !exclusive => Err(Errno::STALE),
            other => other,
        }
    }

    /// `TMPFILE`: makes a regular file without a name and opens it.
    pub(in crate::virtio::fs) fn make_unnamed(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (flags, bits) = (fields.u32()?, fields.u32()?);
        // With `O_EXCL` it can never be given a name.
        let never_named = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let how = access_flags(flags)? | OFlags::TMPFILE | OFlags::CLOEXEC | never_named;
        self.make_file(parent, b".", how, bits, caller, reply)
    }

    fn make_file(
        &mut self,
        parent: u64,
        name: &[u8],
        how: OFlags,
        bits: u32,
        caller: Caller,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        self.for_change()?;
        self.for_descriptors(2)?;
        let directory = self.directory(parent)?;
        let place = directory.place;
        let file = {
            let _acting = self.settings.owners.act_as(caller)?;
            openat(directory, name, how, mode(bits))?
        };
        let found = self.reopen(file.as_fd(), OFlags::PATH)?;
        let (node, attributes) = self.enter(found, place)?;
        reply.entry(node, &attributes);
        self.reply_opened(file, 0, reply);
        Ok(())
    }

    /// `LINK`.
    pub(in crate::virtio::fs) fn link(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let (node, name) = (fields.u64()?, fields.name()?);
        self.for_change()?;
        let node = self.node(node)?;
        if node.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        let from = name_of(node.as_fd());
        linkat(&self.descriptors, from.as_str(), self.directory(parent)?, name, AtFlags::SYMLINK_FOLLOW)?;
        self.reply_entry(parent, name, reply)
    }

    /// `UNLINK` and `RMDIR`.
    pub(in crate::virtio::fs) fn unlink(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        directory: bool,
    ) -> Result<(), Errno> {
        let name = fields.name()?;
        self.for_change()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(self.directory(parent)?, name, flags)
    }

    /// `RENAME` and, with flags, `RENAME2`.
    pub(in crate::virtio::fs) fn rename(
        &mut self,
        parent: u64,
        fields: &mut Fields<'_>,
        flagged: bool,
    ) -> Result<(), Errno> {
        let to = fields.u64()?;
        let mut flags = RenameFlags::empty();
        if flagged {
            // A whiteout would be a device.
            flags = RenameFlags::from_bits(fields.u32()?)
                .filter(|f| !f.contains(RenameFlags::WHITEOUT))
                .ok_or(Errno::INVAL)?;
            fields.skip(4)?;
        }
        let (name, new_name) = (fields.name()?, fields.name()?);
        self.for_change()?;
        renameat_with(self.directory(parent)?, name, self.directory(to)?, new_name, flags)
    }

    /// Opens a regular file that the guest knows of.
    pub(super) fn open_regular(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let node = self.node(node)?;
        match node.kind {
            FileType::RegularFile => self.reopen(node.as_fd(), flags | OFlags::NONBLOCK),
            FileType::Directory => Err(Errno::ISDIR),
            // The guest's kernel opens these by itself. The host's are never opened.
            _ => Err(Errno::PERM),
        }
    }
}
