//! Writing archives as layers are: the same entries give the same bytes.
//!
//! Formats: GNU's headers, with long names in entries of their own, so that a name may be any bytes; pax records for what
//! those headers cannot say (attributes, times before 1970). Every tool that reads layers knows both.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

/// The longest name that a header has room for.
const SHORT: usize = 100;
/// What begins the name of an entry that removes another.
const WHITEOUT: &[u8] = b".wh.";
/// The entry that removes all that was in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, of so many bytes.
    File(u64),
    /// A further name of the file with that path in the same archive, which has come before.
    HardLink(Vec<u8>),
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// A character device, with its numbers.
    Character(u32, u32),
    /// A block device, with its numbers.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An entry of a layer, without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEntry {
    /// Below the top, with no slash at either end; empty for the top itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, in 12 bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of modification, in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes. Of those that are no user's, lists' or capabilities' nothing reaches a file system.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl LayerEntry {
    /// A directory of root's, as one is that has to be made on the way to something else.
    #[must_use]
    pub fn directory(path: &[u8], mtime: i64) -> Self {
        let kind = EntryKind::Directory;
        Self { path: path.to_vec(), kind, mode: 0o755, uid: 0, gid: 0, mtime, attributes: Vec::new() }
    }
}

/// A layer's archive, uncompressed, that is being written. A directory comes before what is in it.
pub struct LayerArchive<W: Write> {
    builder: tar::Builder<W>,
}

impl<W: Write> LayerArchive<W> {
    /// An archive without entries.
    pub fn new(writer: W) -> Self {
        Self { builder: tar::Builder::new(writer) }
    }

    /// Adds an entry. For a regular file `contents` gives as much as its size says.
    ///
    /// # Errors
    /// `contents` gives less, or the name is one that removes something in a layer, or nothing can be written.
    pub fn append(&mut self, entry: &LayerEntry, contents: impl Read) -> io::Result<()> {
        if name(&entry.path).starts_with(WHITEOUT) {
            let name = String::from_utf8_lossy(&entry.path);
            return Err(io::Error::other(format!(
                "{name} cannot be in a layer: names with .wh. in front remove others"
            )));
        }
        self.write(entry, contents)
    }

    /// Says that what the layers below have at `path` is gone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove(&mut self, path: &[u8]) -> io::Result<()> {
        let (folder, name) = path.split_at(path.len() - name(path).len());
        self.note([folder, WHITEOUT, name].concat())
    }

    /// Says that all that the layers below have in the directory `path` is gone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn empty(&mut self, path: &[u8]) -> io::Result<()> {
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        self.note([path, slash, OPAQUE].concat())
    }

    fn note(&mut self, path: Vec<u8>) -> io::Result<()> {
        let kind = EntryKind::File(0);
        let entry = LayerEntry { path, kind, mode: 0, uid: 0, gid: 0, mtime: 0, attributes: Vec::new() };
        self.write(&entry, io::empty())
    }

    fn write(&mut self, entry: &LayerEntry, contents: impl Read) -> io::Result<()> {
        let (kind, size, link): (_, _, &[u8]) = match &entry.kind {
            EntryKind::File(size) => (EntryType::Regular, *size, b""),
            EntryKind::HardLink(target) => (EntryType::Link, 0, target),
            EntryKind::Symlink(target) => (EntryType::Symlink, 0, target),
            EntryKind::Character(..) => (EntryType::Char, 0, b""),
            EntryKind::Block(..) => (EntryType::Block, 0, b""),
            EntryKind::Directory => (EntryType::Directory, 0, b""),
            EntryKind::Fifo => (EntryType::Fifo, 0, b""),
        };
        let mut path = if entry.path.is_empty() { b".".to_vec() } else { entry.path.clone() };
        if kind == EntryType::Directory {
            path.push(b'/');
        }
        self.records(entry)?;
        for (long, text) in [(EntryType::GNULongName, &path[..]), (EntryType::GNULongLink, link)] {
            if text.len() > SHORT {
                self.long(long, text)?;
            }
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_size(size);
        // What is before 1970 is in the records.
        header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
        if let EntryKind::Character(major, minor) | EntryKind::Block(major, minor) = entry.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        let fields = header.as_old_mut();
        let (name, target) = (&path[..path.len().min(SHORT)], &link[..link.len().min(SHORT)]);
        fields.name[..name.len()].copy_from_slice(name);
        fields.linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        let mut contents = Exactly { inner: contents, left: size };
        self.builder.append(&header, &mut contents)
    }

    /// What the header that comes next has no room for.
    fn records(&mut self, entry: &LayerEntry) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if entry.mtime < 0 {
            records.push(("mtime".into(), entry.mtime.to_string().into_bytes()));
        }
        let mut attributes: Vec<_> = entry.attributes.iter().collect();
        attributes.sort();
        for (name, value) in attributes {
            // A record's key ends at the first equals sign.
            let name = std::str::from_utf8(name).ok().filter(|name| !name.contains('='));
            let name =
                name.ok_or_else(|| io::Error::other("an extended attribute has a name that no archive can hold"))?;
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        self.builder.append_pax_extensions(records.iter().map(|(name, value)| (&**name, &**value)))
    }

    /// A path that is too long for the header that comes next.
    fn long(&mut self, kind: EntryType, text: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let name = b"././@LongLink";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(text.len() as u64 + 1);
        header.set_cksum();
        self.builder.append(&header, text.chain(&b"\0"[..]))
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> io::Result<W> {
        self.builder.into_inner()
    }
}

/// The last part of a path.
fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

/// As much of a reader as was announced: an archive with other contents than its header says is broken from there on.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let got = self.inner.read(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was a moment ago"));
        }
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::super::archive::{Archive, Kind};
    use super::*;

    fn entry(path: &[u8], kind: EntryKind) -> LayerEntry {
        LayerEntry { path: path.to_vec(), kind, mode: 0o4755, uid: 1, gid: 3_000_000, mtime: 5, attributes: Vec::new() }
    }

    fn written(entries: &[LayerEntry]) -> Vec<u8> {
        let mut archive = LayerArchive::new(Vec::new());
        for entry in entries {
            let size = if let EntryKind::File(size) = entry.kind { size } else { 0 };
            archive.append(entry, io::repeat(b'x').take(size)).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (long, link) = ([b"d/".as_slice(), &[0xff; 200]].concat(), [b"../".as_slice(), &[b'l'; 300]].concat());
        let mut old = entry(b"old", EntryKind::File(513));
        old.mtime = -7;
        old.attributes = vec![(b"user.b".to_vec(), b"\0\n=".to_vec()), (b"user.a".to_vec(), Vec::new())];
        let entries = [
            entry(b"", EntryKind::Directory),
            entry(b"d", EntryKind::Directory),
            entry(&long, EntryKind::File(1)),
            entry(b"again", EntryKind::HardLink(long.clone())),
            entry(b"link", EntryKind::Symlink(link.clone())),
            entry(b"c", EntryKind::Character(300, 70_000)),
            entry(b"p", EntryKind::Fifo),
            old,
        ];
        let bytes = written(&entries);
        assert_eq!(bytes, written(&entries), "the same entries give the same bytes");
        let mut archive = Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        while let Some(header) = archive.next().unwrap() {
            assert_eq!((header.mode, header.uid, header.gid), (0o4755, 1, 3_000_000));
            seen.push(header);
        }
        let paths: Vec<&[u8]> = seen.iter().map(|header| &*header.path).collect();
        assert_eq!(paths, [b"./", b"d/", &long[..], b"again", b"link", b"c", b"p", b"old"]);
        assert_eq!((seen[3].kind, &seen[3].link), (Kind::HardLink, &long));
        assert_eq!(seen[4].link, link);
        assert_eq!(seen[5].device, (300, 70_000));
        assert_eq!((seen[7].size, seen[7].mtime), (513, (-7, 0)));
        let attributes = [(b"user.a".to_vec(), Vec::new()), (b"user.b".to_vec(), b"\0\n=".to_vec())];
        assert_eq!(seen[7].attributes, attributes);
    }

    #[test]
    fn removals_have_names_of_their_own_which_nothing_else_gets() {
        let mut archive = LayerArchive::new(Vec::new());
        archive.remove(b"a/b").unwrap();
        archive.remove(b"c").unwrap();
        archive.empty(b"d").unwrap();
        for path in [&b".wh.x"[..], b"a/.wh..wh..opq"] {
            assert!(archive.append(&entry(path, EntryKind::File(0)), io::empty()).is_err());
        }
        let bytes = archive.finish().unwrap();
        let mut archive = Archive::new(&bytes[..]);
        for path in [&b"a/.wh.b"[..], b".wh.c", b"d/.wh..wh..opq"] {
            assert_eq!(archive.next().unwrap().unwrap().path, path);
        }
    }

    #[test]
    fn a_file_that_has_become_shorter_is_an_error() {
        let mut archive = LayerArchive::new(Vec::new());
        assert!(archive.append(&entry(b"f", EntryKind::File(5)), &b"1234"[..]).is_err());
        // Of one that has become longer nothing more is taken.
        let mut archive = LayerArchive::new(Vec::new());
        archive.append(&entry(b"f", EntryKind::File(3)), &b"1234"[..]).unwrap();
        assert_eq!(archive.finish().unwrap()[512..516], *b"123\0");
    }
}
