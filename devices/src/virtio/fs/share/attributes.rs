//! Attributes of files and of the file system.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat, chownat, fchmod,
    fstatvfs, ftruncate, readlinkat, utimensat,
};
use rustix::io::Errno;

use super::nodes::Place;
use super::{Share, VALID, name_of, stat};
use crate::virtio::fs::wire::{Fields, ROOT, Reply};

/// What `SETATTR` is to set (`FATTR_...`).
mod set {
    pub(super) const MODE: u32 = 1;
    pub(super) const USER: u32 = 1 << 1;
    pub(super) const GROUP: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ACCESSED: u32 = 1 << 4;
    pub(super) const MODIFIED: u32 = 1 << 5;
    pub(super) const HANDLE: u32 = 1 << 6;
    pub(super) const ACCESSED_NOW: u32 = 1 << 7;
    pub(super) const MODIFIED_NOW: u32 = 1 << 8;
    pub(super) const KILL_PRIVILEGES: u32 = 1 << 11;
}

/// The bits of a mode beside the kind of the file.
pub(super) const MODE_BITS: u32 = 0o7777;
/// The longest target of a symlink.
const TARGET_MAX: usize = 4096;

/// What `SETATTR` asks for.
struct Wanted {
    set: u32,
    handle: u64,
    size: u64,
    times: Timestamps,
    mode: u32,
    user: u32,
    group: u32,
}

impl Wanted {
    /// `fuse_setattr_in`.
    fn read(fields: &mut Fields<'_>) -> Result<Self, Errno> {
        let set = fields.u32()?;
        fields.skip(4)?;
        let (handle, size) = (fields.u64()?, fields.u64()?);
        fields.skip(8)?;
        let (accessed, modified, _changed) = (fields.i64()?, fields.i64()?, fields.i64()?);
        let (accessed_ns, modified_ns, _changed_ns) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let mode = fields.u32()?;
        fields.skip(4)?;
        let (user, group) = (fields.u32()?, fields.u32()?);
        let time = |bit, now, tv_sec, ns: u32| match () {
            () if set & now != 0 => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            () if set & bit != 0 => Timespec { tv_sec, tv_nsec: ns.into() },
            () => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        let times = Timestamps {
            last_access: time(set::ACCESSED, set::ACCESSED_NOW, accessed, accessed_ns),
            last_modification: time(set::MODIFIED, set::MODIFIED_NOW, modified, modified_ns),
        };
        Ok(Self { set, handle, size, times, mode, user, group })
    }

    fn has(&self, bits: u32) -> bool {
        self.set & bits != 0
    }
}

impl Share {
    /// `GETATTR`.
    pub(in crate::virtio::fs) fn get_attributes(
        &mut self,
        node: u64,
        _fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        self.reply_attributes(node, reply)
    }

    /// `fuse_attr_out`.
    fn reply_attributes(&self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let mut attributes = match (&self.file, node) {
            // The directory with nothing but a file in it: it looks like what it holds, but for its kind and its mode.
            (Some(file), ROOT) => {
                let mut stat = stat(file.as_fd())?;
                stat.stx_mode = 0o040_555;
                stat.stx_ino = stat.stx_ino.wrapping_neg();
                stat.stx_nlink = 2;
                self.attributes(stat, Place::of(&stat))
            }
            _ => {
                let node = self.node(node)?;
                self.attributes(stat(node.as_fd())?, node.place)
            }
        };
        attributes.submount = false;
        reply.u64(VALID);
        reply.u64(0);
        reply.attributes(&attributes);
        Ok(())
    }

    /// `SETATTR`.
    pub(in crate::virtio::fs) fn set_attributes(
        &mut self,
        number: u64,
        fields: &mut Fields<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let wanted = Wanted::read(fields)?;
        self.for_change()?;
        let node = self.node(number)?;
        if wanted.has(set::MODE) {
            if node.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(wanted.mode & MODE_BITS);
            chmodat(&self.descriptors, name_of(node.as_fd()).as_str(), mode, AtFlags::empty())?;
        }
        if wanted.has(set::USER | set::GROUP) {
            let user = wanted.has(set::USER).then_some(wanted.user);
            let group = wanted.has(set::GROUP).then_some(wanted.group);
            let (user, group) = self.settings.owners.on_host(user, group)?;
            let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
            chownat(node, c"", user, group, AtFlags::EMPTY_PATH)?;
        }
        if wanted.has(set::SIZE) {
            self.resize(number, &wanted)?;
        }
        let node = self.node(number)?;
        if wanted.has(set::ACCESSED | set::ACCESSED_NOW | set::MODIFIED | set::MODIFIED_NOW) {
            utimensat(&self.descriptors, name_of(node.as_fd()).as_str(), &wanted.times, AtFlags::empty())?;
        }
        self.reply_attributes(number, reply)
    }

    fn resize(&self, number: u64, wanted: &Wanted) -> Result<(), Errno> {
        if wanted.size > i64::MAX.cast_unsigned() {
            return Err(Errno::INVAL);
        }
        let opened;
        // A file that is open may be one that cannot be opened again so, by its mode.
        let fd = if wanted.has(set::HANDLE) {
            self.handles.file(wanted.handle)?
        } else {
            opened = self.open_regular(number, OFlags::WRONLY)?;
            opened.as_fd()
        };
        if wanted.has(set::KILL_PRIVILEGES) {
            kill_privileges(fd)?;
        }
        ftruncate(fd, wanted.size)
    }

    /// `READLINK`.
    pub(in crate::virtio::fs) fn read_link(&mut self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let node = self.node(node)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(node, c"", Vec::new())?;
        reply.0.extend_from_slice(&target.as_bytes()[..target.as_bytes().len().min(TARGET_MAX - 1)]);
        Ok(())
    }

    /// `STATFS`.
    pub(in crate::virtio::fs) fn statfs(&mut self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let stat = match (&self.file, node) {
            (Some(file), ROOT) => fstatvfs(file),
            _ => fstatvfs(self.node(node)?),
        }?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        for value in [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree] {
            reply.u64(value);
        }
        for value in [stat.f_bsize, stat.f_namemax, stat.f_frsize] {
            reply.u32(small(value));
        }
        reply.zeroes(28);
        Ok(())
    }
}

/// Takes from a file what a change by somebody else must take from it: the set-user-ID bit, and the set-group-ID bit of a
/// program. The host's kernel does so itself only for threads without `CAP_FSETID`.
pub(super) fn kill_privileges(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mode = u32::from(stat(fd)?.stx_mode);
    let of_group = if mode & 0o010 == 0 { 0 } else { 0o2000 };
    let killed = mode & !(0o4000 | of_group);
    if killed == mode { Ok(()) } else { fchmod(fd, Mode::from_raw_mode(killed & MODE_BITS)) }
}
