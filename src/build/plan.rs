//! The entries of a layer that is made without running anything, before they are written: by their paths, each once.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::context::Context;
use super::error::StepError;
use crate::image::{Digest, EntryKind, HashingReader, LayerArchive, LayerEntry, View, ViewNode};

/// What is said of a file that was not twice the same.
const CHANGED: &str = "it changed while it was being read; build again when nothing writes to the context";

/// A path by its parts, so that a directory comes just before what is in it.
pub(super) type Path = Vec<Vec<u8>>;

/// Where files are copied from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Context(&'a Context),
    Image(&'a View),
}

/// Something in a source.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Context(usize),
    Image(ViewNode),
}

/// What a file holds.
#[derive(Clone)]
pub(super) enum Contents<'a> {
    /// Nothing, or what the entry says already.
    None,
    Of(Source<'a>, Node),
    Bytes(Arc<Vec<u8>>),
    /// From this position on, as many bytes as the entry says. Names of one file have the same number.
    Kept(Arc<File>, u64, usize),
}

/// An entry to be written.
#[derive(Clone)]
struct Planned<'a> {
    entry: LayerEntry,
    contents: Contents<'a>,
    /// What is equal for the names of one file.
    identity: Option<(u64, u64)>,
}

/// An entry as it is written, what is in it, and the digest of that where it is a file.
type Written<'p, 'a> = (LayerEntry, &'p Contents<'a>, Option<Digest>);

/// The entries of a layer, once everything that goes into it has been read.
pub(super) struct ReadPlan<'p, 'a> {
    entries: Vec<Written<'p, 'a>>,
}

/// The entries of a layer over an image.
pub(super) struct Plan<'a> {
    base: &'a View,
    entries: BTreeMap<Path, Planned<'a>>,
}

impl Source<'_> {
    /// What `name` is in a directory.
    pub(super) fn child(&self, node: &Node, name: &[u8]) -> io::Result<Option<Node>> {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => Ok(context.child(*node, name).map(Node::Context)),
            (Self::Image(view), Node::Image(node)) if node.is_directory() => {
                Ok(view.child(node, name)?.map(Node::Image))
            }
            _ => Ok(None),
        }
    }

    /// All that is in a directory.
    pub(super) fn children(&self, node: &Node) -> io::Result<Vec<(Vec<u8>, Node)>> {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => {
                Ok(context.children(*node).into_iter().map(|(name, child)| (name, Node::Context(child))).collect())
            }
            (Self::Image(view), Node::Image(node)) => {
                Ok(view.children(node)?.into_iter().map(|(name, child)| (name, Node::Image(child))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn is_directory(&self, node: &Node) -> bool {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => context.is_directory(*node),
            (_, Node::Image(node)) => node.is_directory(),
            _ => false,
        }
    }

    /// What a node is, without its path.
    pub(super) fn entry(&self, node: &Node) -> io::Result<LayerEntry> {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => context.entry(*node),
            (Self::Image(view), Node::Image(node)) => view.entry(node, Vec::new()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn identity(&self, node: &Node) -> Option<(u64, u64)> {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => context.identity(*node),
            (_, Node::Image(node)) => node.identity(),
            _ => None,
        }
    }

    fn open(&self, node: &Node) -> io::Result<Box<dyn Read>> {
        match (self, node) {
            (Self::Context(context), Node::Context(node)) => Ok(Box::new(context.open_file(*node)?)),
            (Self::Image(view), Node::Image(node)) => Ok(Box::new(view.contents(node))),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Reads a part of a file that others read as well.
struct Part {
    file: Arc<File>,
    at: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Contents<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::None => Box::new(io::empty()),
            Self::Of(source, node) => source.open(node)?,
            Self::Bytes(bytes) => Box::new(&bytes[..]),
            Self::Kept(file, at, _) => Box::new(Part { file: file.clone(), at: *at }),
        })
    }
}

/// A path with slashes.
pub(super) fn joined(path: &[Vec<u8>]) -> Vec<u8> {
    path.join(&b'/')
}

impl<'a> Plan<'a> {
    /// No entries as yet.
    pub(super) const fn new(base: &'a View) -> Self {
        Self { base, entries: BTreeMap::new() }
    }

    /// Whether there is nothing to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where `path` leads in the image with what is planned, links followed, and whether that is a directory; `None` where there is
    /// nothing.
    pub(super) fn look(&self, path: &[Vec<u8>]) -> Result<(Path, Option<bool>), StepError> {
        let text = joined(path);
        let resolved = self.base.resolve(&text, true).map_err(StepError::using(&text))?;
        let planned = self.entries.get(&resolved.path).map(|planned| planned.entry.kind == EntryKind::Directory);
        let there = resolved.node.map(|node| node.is_directory());
        Ok((resolved.path, planned.or(there)))
    }

    /// Makes sure of a directory at `path`, in which there is no link. What is missing is like `like`.
    pub(super) fn directory(&mut self, path: &[Vec<u8>], like: &LayerEntry) -> Result<(), StepError> {
        for length in 1..=path.len() {
            let part = &path[..length];
            let text = joined(part);
            if let Some(planned) = self.entries.get(part) {
                if planned.entry.kind != EntryKind::Directory {
                    return Err(StepError::Wrong(format!("/{} is no directory", String::from_utf8_lossy(&text))));
                }
                continue;
            }
            let found = self.base.resolve(&text, false).map_err(StepError::using(&text))?.node;
            let entry = match found {
                // So that the layer describes all of its directories.
                Some(node) if node.is_directory() => {
                    self.base.entry(&node, text.clone()).map_err(StepError::using(&text))?
                }
                Some(_) => {
                    return Err(StepError::Wrong(format!("/{} is no directory", String::from_utf8_lossy(&text))));
                }
                None => LayerEntry { path: text, kind: EntryKind::Directory, ..like.clone() },
            };
            self.entries.insert(part.to_vec(), Planned { entry, contents: Contents::None, identity: None });
        }
        Ok(())
    }

    /// Puts something at `path`, in whose directory there is no link. A directory takes the place of a directory only, and
    /// anything else that of no directory.
    pub(super) fn put(
        &mut self,
        path: Path,
        entry: LayerEntry,
        contents: Contents<'a>,
        like: &LayerEntry,
    ) -> Result<(), StepError> {
        let Some((_, parents)) = path.split_last() else { return Ok(()) };
        self.directory(parents, like)?;
        let text = joined(&path);
        let there = match self.entries.get(&path) {
            Some(planned) => Some(planned.entry.kind == EntryKind::Directory),
            None => {
                let found = self.base.resolve(&text, false).map_err(StepError::using(&text))?;
                found.node.map(|node| node.is_directory())
            }
        };
        let is_directory = entry.kind == EntryKind::Directory;
        if there.is_some_and(|there| there && !is_directory) {
            let place = String::from_utf8_lossy(&text);
            return Err(StepError::Wrong(format!("/{place} is a directory, which a file cannot take the place of")));
        }
        let identity = match &contents {
            Contents::Of(source, node) => source.identity(node),
            // Different from those of other archives, whatever the number is.
            Contents::Kept(file, _, number) => Some((Arc::as_ptr(file).addr() as u64, *number as u64)),
            _ => None,
        };
        let entry = LayerEntry { path: text, ..entry };
        self.entries.insert(path, Planned { entry, contents, identity });
        Ok(())
    }

    /// No time later than `latest`.
    pub(super) fn limit_times(&mut self, latest: i64) {
        for planned in self.entries.values_mut() {
            planned.entry.mtime = planned.entry.mtime.min(latest);
        }
    }

    /// The entries as they are to be written: of the names of one file, all but the first are hard links, if nothing is said about one
    /// of them alone.
    fn finished(&self) -> Vec<(LayerEntry, &Contents<'a>)> {
        let mut first: HashMap<(u64, u64), &LayerEntry> = HashMap::new();
        let mut all = Vec::new();
        for planned in self.entries.values() {
            let mut entry = planned.entry.clone();
            if let Some(identity) = planned.identity {
                match first.get(&identity) {
                    Some(other) if LayerEntry { path: entry.path.clone(), ..(*other).clone() } == entry => {
                        entry.kind = EntryKind::HardLink(other.path.clone());
                    }
                    Some(_) => {}
                    None => drop(first.insert(identity, &planned.entry)),
                }
            }
            all.push((entry, &planned.contents));
        }
        all
    }

    /// Reads all that is to be written.
    pub(super) fn read(&self) -> Result<ReadPlan<'_, 'a>, StepError> {
        let mut entries = Vec::new();
        for (entry, contents) in self.finished() {
            let digest = match entry.kind {
                EntryKind::File(size) => {
                    let reader = contents.open().map_err(StepError::using(&entry.path))?;
                    Some(Digest::of_contents(reader.take(size)).map_err(StepError::using(&entry.path))?)
                }
                _ => None,
            };
            entries.push((entry, contents, digest));
        }
        Ok(ReadPlan { entries })
    }
}

impl ReadPlan<'_, '_> {
    /// A digest of all that is to be written, but for times.
    pub(super) fn digest(&self) -> Digest {
        let mut all = Vec::new();
        let mut field = |bytes: &[u8]| {
            all.extend((bytes.len() as u64).to_le_bytes());
            all.extend(bytes);
        };
        for (entry, _, digest) in &self.entries {
            let LayerEntry { path, kind, mode, uid, gid, attributes, .. } = entry;
            field(path);
            field(format!("{kind:?} {mode:o} {uid} {gid} {}", attributes.len()).as_bytes());
            for (name, value) in attributes {
                field(name);
                field(value);
            }
            if let Some(digest) = digest {
                field(digest.to_string().as_bytes());
            }
        }
        Digest::of(&all)
    }

    /// Writes the archive of the layer, which has what the digest says: a file that is another by now is an error.
    pub(super) fn write(&self, writer: impl Write) -> Result<(), StepError> {
        let mut archive = LayerArchive::new(writer);
        for (entry, contents, digest) in &self.entries {
            let append = |archive: &mut LayerArchive<_>| -> io::Result<()> {
                let Some(digest) = digest else { return archive.append(entry, io::empty()) };
                let mut contents = HashingReader::new(contents.open()?);
                archive.append(entry, &mut contents)?;
                if contents.digest() == *digest { Ok(()) } else { Err(io::Error::other(CHANGED)) }
            };
            append(&mut archive).map_err(StepError::using(&entry.path))?;
        }
        archive.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Changes a file when the first byte is written: then the file has been opened, and nothing of it has been read.
    struct Meddling<'a> {
        file: &'a std::path::Path,
        bytes: &'a [u8],
        done: bool,
    }

    impl Write for Meddling<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !std::mem::replace(&mut self.done, true) {
                fs::write(self.file, self.bytes)?;
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_layer_has_what_its_key_was_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "old").unwrap();
        let context = Context::open(folder.path(), None).unwrap();
        let (source, node) = (Source::Context(&context), Node::Context(context.child(0, b"file").unwrap()));
        let (base, like) = (View::default(), LayerEntry::directory(b"", 0));
        let mut plan = Plan::new(&base);
        let entry = source.entry(&node).unwrap();
        plan.put(vec![b"copy".to_vec()], entry, Contents::Of(source, node), &like).unwrap();

        let read = plan.read().unwrap();
        let digest = read.digest();
        read.write(Meddling { file: &file, bytes: b"old", done: true }).unwrap();
        let changed = read.write(Meddling { file: &file, bytes: b"new", done: false });
        assert!(
            matches!(&changed, Err(StepError::Use { name, source }) if name == "copy" && source.to_string() == CHANGED),
            "{changed:?}"
        );
        // Whatever is there now: what was read is in the digest.
        assert_eq!(read.digest(), digest);
    }
}
