//! Files into and out of a stopped instance, whichever its isolation.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use amphi_guest_init::tree::{
    AttributesBuffer, Encoder, Entry as TreeEntry, Item, Kind, PackError, PackOptions, Sink, Unpacker, pack,
};

use super::changes::{self, Entry};
use super::{Instance, InstanceError};
use crate::image::{EntryKind, LayerArchive, LayerEntry, View, ViewNode, view_of_archive};
use crate::isolation::TreeSource;

/// How much of a file is handed on at once.
const BUFFER: usize = 128 << 10;

/// What is copied into an instance.
pub enum CopySource<'a> {
    /// What `directory` has of the name `name`, `.` for itself, with all that is in it.
    Host {
        /// An open directory.
        directory: &'a OwnedFd,
        /// The name.
        name: &'a [u8],
        /// Whether owners and extended attributes stay; otherwise all belongs to root, without attributes.
        archive: bool,
    },
    /// A tar archive, plain or compressed.
    Tar(File),
}

/// What is at a path of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A directory.
    Directory,
    /// Something else.
    Other,
}

impl Instance {
    /// Copies `source` into the stopped instance. Where `path` leads to a directory, the copy becomes `name` in it, or with an empty `name`
    /// what is in the source goes right into it. Where there is nothing at `path`, or a file, the copy gets that path. Symbolic
    /// links lead nowhere outside of the instance's root.
    ///
    /// # Errors
    /// The instance runs; something cannot be read or made. What was made before stays.
    pub fn copy_in(&self, source: CopySource<'_>, path: &Path, name: &[u8]) -> Result<(), InstanceError> {
        let _instance = self.take("copied to")?;
        let rootfs = self.open_image()?;
        let source = Source::open(source)?;
        let done = self.layer().unpack(&rootfs, path, name, &source);
        done.map_err(|error| InstanceError::Isolation(Box::new(error)))
    }

    /// Copies what the stopped instance has at `path` to the host: as `name` in `directory`, or with the name `.` what is in it right into
    /// `directory`. It belongs to whoever does this, without set-user-ID and set-group-ID bits, unless `archive` says that owners,
    /// bits and attributes stay.
    ///
    /// # Errors
    /// The instance runs; something cannot be read or made. What was made before stays.
    pub fn copy_out(&self, path: &Path, directory: OwnedFd, name: &[u8], archive: bool) -> Result<(), InstanceError> {
        let mut unpacker = Unpacker::new(directory, name, archive);
        self.tell(path, true, &mut |item| {
            unpacker.apply(&item).map_err(|error| {
                let source = io::Error::from(error.errno);
                io::Error::new(source.kind(), format!("{error}: {source}"))
            })
        })
    }

    /// Writes what the stopped instance has at `path` as a tar archive, whose top is `name`.
    ///
    /// # Errors
    /// As [`copy_out`](Self::copy_out).
    pub fn copy_to_tar(&self, path: &Path, name: &[u8], writer: impl Write) -> Result<(), InstanceError> {
        let below = |path: &[u8]| if path.is_empty() { name.to_vec() } else { [name, b"/", path].concat() };
        changes::stream(
            |visit| self.tell(path, true, visit),
            |entries| {
                // Not before there is something: an archive without entries is one all the same.
                let Some(mut next) = entries.next() else { return entries.finish() };
                let mut archive = LayerArchive::new(writer);
                loop {
                    if let Entry::There { mut entry, .. } = next {
                        entry.path = below(&entry.path);
                        if let EntryKind::HardLink(target) = &mut entry.kind {
                            *target = below(target);
                        }
                        archive.append(&entry, &mut *entries).map_err(InstanceError::Archive)?;
                    }
                    let Some(another) = entries.next() else { break };
                    next = another;
                }
                entries.finish()?;
                archive.finish().map(drop).map_err(InstanceError::Archive)
            },
        )
    }

    /// What the stopped instance has at `path`. A link is told as what it is, unless there is a slash behind it.
    ///
    /// # Errors
    /// The instance runs, there is nothing, or it cannot be found out.
    pub fn look(&self, path: &Path) -> Result<Target, InstanceError> {
        let mut found = Target::Other;
        self.tell(path, false, &mut |item| {
            if let Item::Entry(TreeEntry { kind: Kind::Directory, .. }) = item {
                found = Target::Directory;
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn tell(
        &self,
        path: &Path,
        contents: bool,
        visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>,
    ) -> Result<(), InstanceError> {
        let _instance = self.take("copied from")?;
        let rootfs = self.open_image()?;
        let done = self.layer().pack(&rootfs, path, contents, visit);
        done.map_err(|error| InstanceError::Isolation(Box::new(error)))
    }
}

/// A source that is open.
enum Source<'a> {
    Host { directory: &'a OwnedFd, name: &'a [u8], options: PackOptions },
    Tar(View),
}

impl<'a> Source<'a> {
    fn open(source: CopySource<'a>) -> Result<Self, InstanceError> {
        Ok(match source {
            CopySource::Host { directory, name, archive } => {
                let owner = (!archive).then_some((0, 0));
                let options = PackOptions { owner, attributes: archive, ..PackOptions::default() };
                Self::Host { directory, name, options }
            }
            CopySource::Tar(file) => Self::Tar(view_of_archive(file).map_err(InstanceError::Tar)?),
        })
    }
}

impl TreeSource for Source<'_> {
    fn write<S: Sink<Error = io::Error>>(&self, encoder: &mut Encoder<S>) -> io::Result<()> {
        match self {
            Self::Host { directory, name, options } => match pack(directory.as_fd(), name, *options, encoder) {
                Ok(()) => Ok(()),
                Err(PackError::Sink(error)) => Err(error),
                Err(PackError::File(error)) => {
                    let source = io::Error::from(error.errno);
                    Err(io::Error::new(source.kind(), format!("{error}: {source}")))
                }
            },
            Self::Tar(view) => match view.top()? {
                Some(top) => write_view(view, top, encoder),
                None => Ok(()),
            },
        }
    }
}

/// Writes all that a view has, a directory before what is in it.
fn write_view<S: Sink<Error = io::Error>>(view: &View, top: ViewNode, encoder: &mut Encoder<S>) -> io::Result<()> {
    let mut linked: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut pending = vec![(Vec::new(), top)];
    while let Some((path, node)) = pending.pop() {
        let mut entry = view.entry(&node, path)?;
        if let Some(identity) = node.identity() {
            match linked.get(&identity) {
                Some(first) => entry.kind = EntryKind::HardLink(first.clone()),
                None => drop(linked.insert(identity, entry.path.clone())),
            }
        }
        write_entry(&entry, encoder)?;
        if let EntryKind::File(_) = entry.kind {
            let (mut contents, mut buffer, mut at) = (view.contents(&node), vec![0; BUFFER], 0);
            loop {
                let length = contents.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                encoder.data(at, &buffer[..length])?;
                at += length as u64;
            }
        }
        if node.is_directory() {
            for (name, child) in view.children(&node)?.into_iter().rev() {
                let separator: &[u8] = if entry.path.is_empty() { b"" } else { b"/" };
                pending.push(([&entry.path, separator, &name].concat(), child));
            }
        }
    }
    Ok(())
}

fn write_entry<S: Sink<Error = io::Error>>(entry: &LayerEntry, encoder: &mut Encoder<S>) -> io::Result<()> {
    let mut attributes = AttributesBuffer::new();
    for (name, value) in &entry.attributes {
        if !attributes.push(name, value) {
            let path = Path::new(OsStr::from_bytes(&entry.path)).display();
            return Err(io::Error::other(format!("{path} has an extended attribute that is too long")));
        }
    }
    let kind = match &entry.kind {
        EntryKind::File(length) => Kind::File(*length),
        EntryKind::HardLink(target) => Kind::HardLink(target),
        EntryKind::Symlink(target) => Kind::Symlink(target),
        EntryKind::Character(major, minor) => Kind::CharacterDevice(*major, *minor),
        EntryKind::Block(major, minor) => Kind::BlockDevice(*major, *minor),
        EntryKind::Directory => Kind::Directory,
        EntryKind::Fifo => Kind::Fifo,
    };
    let LayerEntry { path, mode, uid, gid, mtime, .. } = entry;
    let (mode, uid, gid, mtime) = (*mode, *uid, *gid, (*mtime, 0));
    encoder.entry(&TreeEntry { path, kind, mode, uid, gid, mtime, attributes: attributes.get() })
}
