//! What a stream says of one file.

use super::{MAX_NAME, MAX_PATH};
use crate::wire::{Reader, Writer};

const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;
const CHARACTER: u8 = 3;
const BLOCK: u8 = 4;
const FIFO: u8 = 5;
const HARD_LINK: u8 = 6;

/// The longest name of an extended attribute, and the longest value, as Linux has them.
const MAX_ATTRIBUTE: (usize, usize) = (255, 64 << 10);
const NANOSECONDS: u32 = 1_000_000_000;

/// One file of a tree, whatever its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its path from the top of the tree, without a slash in front or at the end; empty for the top itself. No part of it is
    /// empty, `.` or `..`. It need not be UTF-8.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind<'a>,
    /// Its permissions, with the set-user-ID, set-group-ID and sticky bits: 12 bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last changed: seconds since 1970, which may be negative, and nanoseconds below 1,000,000,000.
    pub mtime: (i64, u32),
    /// Its extended attributes.
    pub attributes: Attributes<'a>,
}

/// The kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A regular file of so many bytes, at most [`i64::MAX`].
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link with this target: one byte to [`MAX_PATH`] of them, without a zero.
    Symlink(&'a [u8]),
    /// A character device with these numbers, major and minor.
    CharacterDevice(u32, u32),
    /// A block device with these numbers, major and minor.
    BlockDevice(u32, u32),
    /// A named pipe. Sockets, which nobody listens to, are not part of trees.
    Fifo,
    /// One more name of what came earlier under this path. All else that is said of it is the same again.
    HardLink(&'a [u8]),
}

/// Names and values of extended attributes, in the form in which they travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Takes them for what they are, if each has a name and neither that nor its value is too long.
    fn checked(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            let (name, value) = (reader.bytes()?, reader.bytes()?);
            if !is_attribute(name, value) {
                return None;
            }
        }
        Some(Self(bytes))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the attribute `name`.
    #[must_use]
    pub fn get(self, name: &[u8]) -> Option<&'a [u8]> {
        self.into_iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }
}

fn is_attribute(name: &[u8], value: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_ATTRIBUTE.0 && !name.contains(&0) && value.len() <= MAX_ATTRIBUTE.1
}

impl<'a> IntoIterator for Attributes<'a> {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = AttributesIter<'a>;

    fn into_iter(self) -> AttributesIter<'a> {
        AttributesIter(Reader(self.0))
    }
}

/// Goes over [`Attributes`]: pairs of a name and its value.
pub struct AttributesIter<'a>(Reader<'a>);

impl<'a> Iterator for AttributesIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.0.bytes()?, self.0.bytes()?))
    }
}

/// Extended attributes that are being gathered.
#[derive(Default)]
pub struct AttributesBuffer(Writer);

impl AttributesBuffer {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all, and keeps the memory.
    pub fn clear(&mut self) {
        self.0.0.clear();
    }

    /// Adds one; returns whether it can be one: its name has 1 to 255 bytes, none of them zero, its value at most 64 KiB.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> bool {
        let right = is_attribute(name, value);
        if right {
            self.0.bytes(name);
            self.0.bytes(value);
        }
        right
    }

    /// How many bytes they take up in a frame.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.0.len()
    }

    /// What has been gathered.
    #[must_use]
    pub fn get(&self) -> Attributes<'_> {
        Attributes(&self.0.0)
    }
}

impl<'a> Entry<'a> {
    /// The path of the directory that holds it, and its name there; `None` for the top.
    #[must_use]
    pub fn parent_and_name(&self) -> Option<(&'a [u8], &'a [u8])> {
        split(self.path)
    }

    /// Whether this is a whiteout of overlayfs: a mark, in a writable layer, that what the layers below have there is removed.
    #[must_use]
    pub const fn is_whiteout(&self) -> bool {
        matches!(self.kind, Kind::CharacterDevice(0, 0))
    }

    /// Whether this is a directory of a writable layer that hides what the layers below have in it.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.kind == Kind::Directory && self.attributes.get(b"trusted.overlay.opaque") == Some(b"y")
    }

    /// Appends the contents of the entry's frame.
    pub(super) fn write(&self, out: &mut Writer) {
        let kind = match self.kind {
            Kind::File(_) => FILE,
            Kind::Directory => DIRECTORY,
            Kind::Symlink(_) => SYMLINK,
            Kind::CharacterDevice(..) => CHARACTER,
            Kind::BlockDevice(..) => BLOCK,
            Kind::Fifo => FIFO,
            Kind::HardLink(_) => HARD_LINK,
        };
        out.u8(kind);
        out.bytes(self.path);
        out.u32(self.mode);
        out.u32(self.uid);
        out.u32(self.gid);
        out.u64(self.mtime.0.cast_unsigned());
        out.u32(self.mtime.1);
        match self.kind {
            Kind::File(length) => out.u64(length),
            Kind::Symlink(target) | Kind::HardLink(target) => out.bytes(target),
            Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                out.u32(major);
                out.u32(minor);
            }
            Kind::Directory | Kind::Fifo => {}
        }
        out.0.extend_from_slice(self.attributes.0);
    }

    /// The entry in a frame; `None` where it is malformed.
    pub(super) fn read(contents: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(contents);
        let kind = reader.u8()?;
        let path = reader.bytes().filter(|path| is_path(path))?;
        let mode = reader.u32().filter(|mode| mode & !0o7777 == 0)?;
        let (uid, gid) = (reader.u32()?, reader.u32()?);
        let mtime = (reader.u64()?.cast_signed(), reader.u32().filter(|&part| part < NANOSECONDS)?);
        let kind = match kind {
            FILE => Kind::File(reader.u64().filter(|&length| i64::try_from(length).is_ok())?),
            DIRECTORY => Kind::Directory,
            SYMLINK => Kind::Symlink(reader.bytes().filter(|target| is_target(target))?),
            CHARACTER => Kind::CharacterDevice(reader.u32()?, reader.u32()?),
            BLOCK => Kind::BlockDevice(reader.u32()?, reader.u32()?),
            FIFO => Kind::Fifo,
            HARD_LINK => Kind::HardLink(reader.bytes().filter(|path| !path.is_empty() && is_path(path))?),
            _ => return None,
        };
        let attributes = Attributes::checked(reader.0)?;
        Some(Self { path, kind, mode, uid, gid, mtime, attributes })
    }
}

/// A path's directory and last name; `None` where it is empty.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    })
}

/// Whether `path` leads from the top of a tree to something in it, or is empty.
fn is_path(path: &[u8]) -> bool {
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME && !name.contains(&0);
    path.len() <= MAX_PATH && (path.is_empty() || path.split(|&byte| byte == b'/').all(is_name))
}

fn is_target(target: &[u8]) -> bool {
    (1..=MAX_PATH).contains(&target.len()) && !target.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_top() {
        for path in [&b""[..], b"a", b"a/b", b"\xff/\n", b"...", &[b'x'; 255]] {
            assert!(is_path(path), "{path:?}");
        }
        let long = [b"x/".repeat(2047), b"xy".to_vec()].concat();
        for path in [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"a/.", b"..", b"a/../b", b"a\0", &[b'x'; 256], &long] {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(is_path(&long[..4095]));
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!((split(b"a"), split(b"")), (Some((&b""[..], &b"a"[..])), None));
    }
}
