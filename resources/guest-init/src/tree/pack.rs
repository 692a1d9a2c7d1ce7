//! A directory, or any other file, as a stream.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::{AttributesBuffer, Encoder, Entry, Kind, MAX_FRAME, MAX_PATH, Sink};

/// How much of a file is read at once, and how large a list of names may be.
const BUFFER: usize = 128 << 10;
/// The most bytes of an entry's attributes: the rest of its frame is for paths and numbers.
const MAX_ATTRIBUTES: usize = MAX_FRAME - 4 * (MAX_PATH + 1);

/// What of a file failed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// What was attempted, such as `read`.
    pub attempt: &'static str,
    /// The file, from the top of the tree on; empty for the top itself.
    pub path: Vec<u8>,
    /// What the operating system says.
    pub errno: Errno,
}

impl FileError {
    pub(super) fn new<'a>(attempt: &'static str, path: &'a [u8]) -> impl FnOnce(Errno) -> Self + use<'a> {
        move |errno| Self { attempt, path: path.to_vec(), errno }
    }
}

impl fmt::Display for FileError {
    /// Without the cause, which is a number here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} ", self.attempt)?;
        match &*self.path {
            [] => f.write_str("the top of the tree"),
            path => write!(f, "{}", alloc::string::String::from_utf8_lossy(path)),
        }
    }
}

impl core::error::Error for FileError {}

/// Why there is no stream.
#[derive(Debug)]
pub enum PackError<E> {
    /// A file cannot be read.
    File(FileError),
    /// The sink does not take the stream.
    Sink(E),
}

impl<E> From<FileError> for PackError<E> {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// What of a tree travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackOptions {
    /// User and group that everything is to belong to; `None` is as it is.
    pub owner: Option<(u32, u32)>,
    /// Whether extended attributes go along.
    pub attributes: bool,
    /// Whether what is in a directory goes along, or only the top itself, and of a file its contents.
    pub contents: bool,
}

impl Default for PackOptions {
    /// Everything, as it is.
    fn default() -> Self {
        Self { owner: None, attributes: true, contents: true }
    }
}

/// Writes what `directory` has under `name`, which is not followed where it is a symbolic link, and all that is below it: in every
/// directory by the order of the names, so that the same tree gives the same stream. Sockets are left out. Holes of files
/// are found where their file system tells of them. It does not end the stream.
///
/// Memory is needed for the names of the directories from the top to where it is, for the paths of files with several names, and
/// some 400 KiB; a descriptor for each of those directories. `/proc` must be there, for attributes of symbolic links and devices.
///
/// # Errors
/// Something cannot be read, or changes meanwhile so that it cannot; or the sink fails.
pub fn pack<S: Sink>(
    directory: BorrowedFd<'_>,
    name: &[u8],
    options: PackOptions,
    encoder: &mut Encoder<S>,
) -> Result<(), PackError<S::Error>> {
    let mut packer = Packer {
        options,
        encoder,
        path: Vec::with_capacity(MAX_PATH),
        linked: BTreeMap::new(),
        names: Names::default(),
        attributes: AttributesBuffer::new(),
        buffer: vec![0; BUFFER].into(),
        value: vec![0; BUFFER].into(),
        place: ProcPath::default(),
    };
    packer.run(directory, name)
}

struct Packer<'a, S> {
    options: PackOptions,
    encoder: &'a mut Encoder<S>,
    path: Vec<u8>,
    /// By device and inode, the first path of every file with several names.
    linked: BTreeMap<(u64, u64), Box<[u8]>>,
    names: Names,
    attributes: AttributesBuffer,
    buffer: Box<[u8]>,
    value: Box<[u8]>,
    place: ProcPath,
}

/// The names of the directories from the top to where the packer is, one list behind the other.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each name lies in them.
    places: Vec<(usize, u8)>,
}

/// A directory that the packer is in.
struct Level {
    fd: OwnedFd,
    /// The length of its path.
    path: usize,
    /// Its names: where the bytes and the places begin, and the next one.
    bytes: usize,
    places: usize,
    next: usize,
}

/// What [`Packer::entry`] leaves to be gone into.
enum Opened {
    Directory(OwnedFd),
    Nothing,
}

impl<S: Sink> Packer<'_, S> {
    fn run(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), PackError<S::Error>> {
        let mut levels = Vec::with_capacity(64);
        if let Opened::Directory(fd) = self.entry(directory, name)?
            && self.options.contents
        {
            levels.push(self.enter(fd)?);
        }
        while let Some(level) = levels.last_mut() {
            let Some(&(start, length)) = self.names.places.get(level.next) else {
                self.names.bytes.truncate(level.bytes);
                self.names.places.truncate(level.places);
                levels.pop();
                continue;
            };
            level.next += 1;
            self.path.truncate(level.path);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            let mut name = [0; super::MAX_NAME];
            let name = &mut name[..length.into()];
            name.copy_from_slice(&self.names.bytes[start..][..length.into()]);
            self.path.extend_from_slice(name);
            if self.path.len() > MAX_PATH {
                return Err(FileError::new("name", &self.path)(Errno::NAMETOOLONG).into());
            }
            if let Opened::Directory(fd) = self.entry(level.fd.as_fd(), name)? {
                let level = self.enter(fd)?;
                levels.push(level);
            }
        }
        Ok(())
    }

    /// Reads the names of the directory at `self.path`.
    fn enter(&mut self, fd: OwnedFd) -> Result<Level, FileError> {
        let (bytes, places) = (self.names.bytes.len(), self.names.places.len());
        let mut buffer = [const { core::mem::MaybeUninit::uninit() }; 16 << 10];
        let mut entries = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(FileError::new("list", &self.path))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let length = u8::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG);
                let length = length.map_err(FileError::new("list", &self.path))?;
                self.names.places.push((self.names.bytes.len(), length));
                self.names.bytes.extend_from_slice(name);
            }
        }
        let all = &self.names.bytes;
        self.names.places[places..].sort_unstable_by_key(|&(start, length)| &all[start..][..length.into()]);
        Ok(Level { fd, path: self.path.len(), bytes, places, next: places })
    }

    /// Writes the entry, and the contents of a file, that `directory` has under `name`, and that are at `self.path`.
    fn entry(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<Opened, PackError<S::Error>> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(FileError::new("look at", &self.path))?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Socket {
            return Ok(Opened::Nothing);
        }
        self.attributes.clear();
        if file_type != FileType::Directory && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let entry = describe(&self.path, Kind::HardLink(first), &stat, self.options, &self.attributes);
                return self.encoder.entry(&entry).map_err(PackError::Sink).map(|()| Opened::Nothing);
            }
            self.linked.insert(key, self.path.as_slice().into());
        }
        let open = |flags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(FileError::new("open", &self.path))
        };
        let mut target = [const { core::mem::MaybeUninit::uninit() }; MAX_PATH + 1];
        let (fd, kind) = match file_type {
            FileType::RegularFile => (Some(open(OFlags::empty())?), Kind::File(stat.st_size.max(0).cast_unsigned())),
            FileType::Directory => (Some(open(OFlags::DIRECTORY)?), Kind::Directory),
            FileType::Symlink => {
                let (target, _) = rustix::fs::readlinkat_raw(directory, name, &mut target)
                    .map_err(FileError::new("read the symbolic link", &self.path))?;
                (None, Kind::Symlink(target))
            }
            FileType::Fifo => (None, Kind::Fifo),
            _ => {
                let device = stat.st_rdev;
                let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
                let character = file_type == FileType::CharacterDevice;
                let device = if character { Kind::CharacterDevice } else { Kind::BlockDevice };
                (None, device(numbers.0, numbers.1))
            }
        };
        if self.options.attributes {
            let from = fd.as_ref().map_or_else(|| Source::Path(self.place.of(directory, name)), Source::File);
            read_attributes(&from, &mut self.attributes, (&mut self.buffer, &mut self.value))
                .map_err(FileError::new("read the extended attributes of", &self.path))?;
        }
        let entry = describe(&self.path, kind, &stat, self.options, &self.attributes);
        self.encoder.entry(&entry).map_err(PackError::Sink)?;
        match (kind, fd) {
            (Kind::File(length), Some(fd)) => self.contents(&fd, length).map(|()| Opened::Nothing),
            (_, Some(fd)) => Ok(Opened::Directory(fd)),
            (_, None) => Ok(Opened::Nothing),
        }
    }

    /// Writes the first `length` bytes of the file at `self.path`, but for holes.
    fn contents(&mut self, fd: &OwnedFd, length: u64) -> Result<(), PackError<S::Error>> {
        let mut at = 0;
        while at < length {
            let (start, end) = data(fd, at, length).map_err(FileError::new("read", &self.path))?;
            at = start;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
                let read = rustix::io::pread(fd, &mut self.buffer[..most], at);
                match read.map_err(FileError::new("read", &self.path))? {
                    // It has become shorter.
                    0 => return Ok(()),
                    read => {
                        self.encoder.data(at, &self.buffer[..read]).map_err(PackError::Sink)?;
                        at += read as u64;
                    }
                }
            }
        }
        Ok(())
    }
}

fn describe<'a>(
    path: &'a [u8],
    kind: Kind<'a>,
    stat: &Stat,
    options: PackOptions,
    attributes: &'a AttributesBuffer,
) -> Entry<'a> {
    let (uid, gid) = options.owner.unwrap_or((stat.st_uid, stat.st_gid));
    let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default());
    Entry { path, kind, mode: stat.st_mode & 0o7777, uid, gid, mtime, attributes: attributes.get() }
}

/// The next stretch of a file, from `at` on and below `length`, that may be other than zeroes.
fn data(fd: &OwnedFd, at: u64, length: u64) -> Result<(u64, u64), Errno> {
    let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok((length, length)),
        // The file system knows of no holes.
        Err(Errno::INVAL) => return Ok((at, length)),
        Err(errno) => return Err(errno),
    };
    let end = rustix::fs::seek(fd, SeekFrom::Hole(start))?;
    Ok((start.min(length), end.min(length).max(start.min(length))))
}

/// Where attributes are read.
enum Source<'a> {
    File(&'a OwnedFd),
    Path(&'a [u8]),
}

impl Source<'_> {
    fn list(&self, names: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::File(fd) => rustix::fs::flistxattr(fd, names),
            Self::Path(path) => rustix::fs::llistxattr(*path, names),
        }
    }

    fn get(&self, name: &[u8], value: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::File(fd) => rustix::fs::fgetxattr(fd, name, value),
            Self::Path(path) => rustix::fs::lgetxattr(*path, name, value),
        }
    }
}

fn read_attributes(
    from: &Source<'_>,
    attributes: &mut AttributesBuffer,
    (names, value): (&mut [u8], &mut [u8]),
) -> Result<(), Errno> {
    let length = match from.list(names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match from.get(name, value) {
            Ok(length) => {
                if !attributes.push(name, &value[..length]) || attributes.size() > MAX_ATTRIBUTES {
                    return Err(Errno::TOOBIG);
                }
            }
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The path, through `/proc`, of a name in an open directory: for calls that take no directory.
#[derive(Default)]
pub(super) struct ProcPath(Vec<u8>);

impl ProcPath {
    pub(super) fn of(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> &[u8] {
        self.0.clear();
        let _ = write!(Ascii(&mut self.0), "/proc/self/fd/{}/", directory.as_raw_fd());
        self.0.extend_from_slice(name);
        &self.0
    }
}

struct Ascii<'a>(&'a mut Vec<u8>);

impl Write for Ascii<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
