//! A stream as a directory, or any other file.

use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::split;
use super::pack::{FileError, ProcPath};
use super::{Attributes, AttributesBuffer, Entry, Item, Kind};

/// Makes what a stream says, item by item as a [`Decoder`](super::Decoder) gives them, in a directory in which others may have
/// put whatever they like.
///
/// It goes from directory to directory by descriptor and follows no symbolic link, so that nothing outside of the place that
/// it was given is changed. What is there already is replaced by what comes, except that a directory is replaced by nothing but
/// joined with one that comes, and then stays whose it was. Memory and descriptors are needed for the directories from
/// the top to where it is. `/proc` must be there.
pub struct Unpacker {
    /// Where the top goes: a directory, and the name in it.
    place: (OwnedFd, Vec<u8>),
    privileged: bool,
    levels: Vec<Level>,
    /// The path of the innermost one.
    path: Vec<u8>,
    file: Option<(OwnedFd, Metadata)>,
    /// The attributes of the file.
    attributes: AttributesBuffer,
    proc: ProcPath,
}

/// A directory that is being filled.
struct Level {
    fd: OwnedFd,
    /// The length of its path.
    path: usize,
    /// What it gets when it is full; nothing if it was there before.
    finally: Option<(Metadata, AttributesBuffer)>,
}

#[derive(Clone, Copy)]
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

impl Unpacker {
    /// Has the top of a tree become `name` in `directory`.
    ///
    /// Unless it is `privileged`, everything belongs to whoever runs this, the set-user-ID and set-group-ID bits are
    /// cleared, device nodes are an error, and of extended attributes only those of users (`user.`) are taken.
    #[must_use]
    pub fn new(directory: OwnedFd, name: &[u8], privileged: bool) -> Self {
        Self {
            place: (directory, name.to_vec()),
            privileged,
            levels: Vec::with_capacity(64),
            path: Vec::with_capacity(super::MAX_PATH),
            file: None,
            attributes: AttributesBuffer::new(),
            proc: ProcPath::default(),
        }
    }

    /// Does what one item says.
    ///
    /// # Errors
    /// The file that could not be made. What was made before stays.
    pub fn apply(&mut self, item: &Item<'_>) -> Result<(), FileError> {
        match item {
            Item::Entry(entry) => self.entry(entry),
            Item::Data { offset, bytes } => {
                let Some((file, _)) = &self.file else { return Err(FileError::new("write", &self.path)(Errno::INVAL)) };
                write_at(file, *offset, bytes).map_err(FileError::new("write", &self.path))
            }
            Item::End => {
                self.finish_file()?;
                while !self.levels.is_empty() {
                    self.leave()?;
                }
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), FileError> {
        self.finish_file()?;
        let name = match entry.parent_and_name() {
            None => self.place.1.clone(),
            Some((parent, name)) => {
                while self.levels.last().is_some_and(|level| level.path > parent.len()) {
                    self.leave()?;
                }
                name.to_vec()
            }
        };
        let directory = self.levels.last().map_or(self.place.0.as_fd(), |level| level.fd.as_fd());
        let failed = |attempt| FileError::new(attempt, entry.path);
        if entry.kind == Kind::Directory {
            let level = make_directory(directory, &name, entry).map_err(failed("make the directory"))?;
            self.path.clear();
            self.path.extend_from_slice(entry.path);
            self.levels.push(level);
            return Ok(());
        }
        match rustix::fs::unlinkat(directory, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("replace")(errno)),
        }
        let metadata = self.metadata(entry);
        match entry.kind {
            Kind::File(length) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, &*name, flags, Mode::RUSR | Mode::WUSR);
                let file = file.map_err(failed("make"))?;
                if length > 0 {
                    rustix::fs::ftruncate(&file, length).map_err(failed("make"))?;
                }
                self.attributes.clear();
                copy_attributes(&mut self.attributes, entry.attributes);
                self.path.clear();
                self.path.extend_from_slice(entry.path);
                self.file = Some((file, metadata));
                return Ok(());
            }
            Kind::HardLink(target) => {
                return self.link(target, directory, &name).map_err(failed("make the hard link"));
            }
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target, directory, &*name).map_err(failed("make the symbolic link"))?;
            }
            Kind::Fifo => make_node(directory, &name, FileType::Fifo, (0, 0)).map_err(failed("make"))?,
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) if !self.privileged => {
                return Err(failed("make the device node")(Errno::PERM));
            }
            Kind::CharacterDevice(major, minor) => {
                make_node(directory, &name, FileType::CharacterDevice, (major, minor))
                    .map_err(failed("make the device node"))?;
            }
            Kind::BlockDevice(major, minor) => {
                make_node(directory, &name, FileType::BlockDevice, (major, minor))
                    .map_err(failed("make the device node"))?;
            }
            Kind::Directory => {}
        }
        let path = self.proc.of(directory, &name);
        let attributes = wanted(entry.attributes, self.privileged);
        set_by_name(directory, &name, metadata, self.privileged, !matches!(entry.kind, Kind::Symlink(_)))
            .and_then(|()| {
                attributes
                    .into_iter()
                    .try_for_each(|(key, value)| rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()))
            })
            .and_then(|()| rustix::fs::utimensat(directory, &*name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(failed("set the attributes of"))
    }

    fn metadata(&self, entry: &Entry<'_>) -> Metadata {
        let allowed = if self.privileged { 0o7777 } else { 0o1777 };
        Metadata { mode: entry.mode & allowed, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }

    /// Makes one more name of what lies at `target` below the top.
    fn link(&self, target: &[u8], directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let (Some(top), Some((parent, last))) = (self.levels.first(), split(target)) else { return Err(Errno::NOENT) };
        let mut at: Option<OwnedFd> = None;
        for part in parent.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = Some(rustix::fs::openat(at.as_ref().unwrap_or(&top.fd), part, flags, Mode::empty())?);
        }
        rustix::fs::linkat(at.as_ref().unwrap_or(&top.fd), last, directory, name, AtFlags::empty())
    }

    /// Gives the last file what it gets at the end: writing to it would take some of it away.
    fn finish_file(&mut self) -> Result<(), FileError> {
        let Some((file, metadata)) = self.file.take() else { return Ok(()) };
        set_open(&file, metadata, self.attributes.get(), self.privileged)
            .map_err(FileError::new("set the attributes of", &self.path))
    }

    /// Leaves the innermost directory.
    fn leave(&mut self) -> Result<(), FileError> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        self.path.truncate(level.path);
        if let Some((metadata, attributes)) = level.finally {
            let allowed = if self.privileged { 0o7777 } else { 0o1777 };
            let metadata = Metadata { mode: metadata.mode & allowed, ..metadata };
            set_open(&level.fd, metadata, attributes.get(), self.privileged)
                .map_err(FileError::new("set the attributes of", &self.path))?;
        }
        Ok(())
    }
}

fn make_directory(directory: BorrowedFd<'_>, name: &[u8], entry: &Entry<'_>) -> Result<Level, Errno> {
    let new = match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let finally = new.then(|| {
        let mut attributes = AttributesBuffer::new();
        copy_attributes(&mut attributes, entry.attributes);
        let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        (Metadata { mode, uid, gid, mtime }, attributes)
    });
    Ok(Level { fd, path: entry.path.len(), finally })
}

fn make_node(directory: BorrowedFd<'_>, name: &[u8], kind: FileType, (major, minor): (u32, u32)) -> Result<(), Errno> {
    rustix::fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
}

fn copy_attributes(to: &mut AttributesBuffer, from: Attributes<'_>) {
    for (name, value) in from {
        to.push(name, value);
    }
}

/// Those attributes that are set at all.
fn wanted(attributes: Attributes<'_>, privileged: bool) -> impl Iterator<Item = (&[u8], &[u8])> {
    attributes.into_iter().filter(move |(name, _)| privileged || name.starts_with(b"user."))
}

fn times(metadata: Metadata) -> Timestamps {
    let time = Timespec { tv_sec: metadata.mtime.0, tv_nsec: metadata.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Sets what belongs to an open file: the owner first, which takes bits of the mode and capabilities away, and the times last.
fn set_open(fd: &OwnedFd, metadata: Metadata, attributes: Attributes<'_>, privileged: bool) -> Result<(), Errno> {
    if privileged {
        rustix::fs::fchown(fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(metadata.mode))?;
    for (name, value) in wanted(attributes, privileged) {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(fd, &times(metadata))
}

/// Sets owner and mode of what cannot be opened, and has just been made here.
fn set_by_name(
    directory: BorrowedFd<'_>,
    name: &[u8],
    metadata: Metadata,
    privileged: bool,
    has_mode: bool,
) -> Result<(), Errno> {
    if privileged {
        let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
        rustix::fs::chownat(directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if has_mode {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
    }
    Ok(())
}

fn write_at(file: &OwnedFd, mut offset: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                offset += written as u64;
                bytes = &bytes[written..];
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
