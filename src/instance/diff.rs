//! What an instance has changed of its image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use super::changes::{self, Entry};
use super::{Instance, InstanceError};
use crate::image::{EntryKind, ImageError, LayerEntry, LowerFile, Rootfs};

/// How something differs from the image, with docker's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The image does not have it.
    Added,
    /// It is another, or what is in it is.
    Changed,
    /// Only the image has it.
    Deleted,
}

impl ChangeKind {
    /// `A`, `C` or `D`.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

impl Instance {
    /// What the instance has changed, by paths from the root on, without a slash in front, in their order. Of something that is gone
    /// what was in it is not told. The mount points of `/dev`, `/proc`, `/sys` and volumes are no change.
    ///
    /// # Errors
    /// What it has written, or the image, cannot be read.
    pub fn diff(&self) -> Result<BTreeMap<Vec<u8>, ChangeKind>, InstanceError> {
        self.end_killed_run()?;
        let image = self.open_image()?;
        let record = &self.record;
        changes::of(record.isolation, &record.spec, |entries| {
            let mut found = Differences { image: &image, all: BTreeMap::new(), made_anew: None };
            while let Some(entry) = entries.next() {
                if !changes::is_mount_point(&record.spec, &entry) {
                    found.add(entry).map_err(|source| unreadable(&record.image, source))?;
                }
            }
            entries.finish()?;
            Ok(found.all)
        })
    }

    /// What runs may be looked at, but what was killed is to end before.
    fn end_killed_run(&self) -> Result<(), InstanceError> {
        let folder = File::open(&self.folder).map_err(InstanceError::of("open", &self.folder))?;
        if folder.try_lock_shared().is_ok() { self.end_last_run() } else { Ok(()) }
    }
}

fn unreadable(image: &str, source: io::Error) -> InstanceError {
    ImageError::Open { reference: image.to_owned(), path: image.into(), source }.into()
}

struct Differences<'a> {
    image: &'a Rootfs,
    all: BTreeMap<Vec<u8>, ChangeKind>,
    /// The last directory in which nothing of the image's shows, with a slash behind it.
    made_anew: Option<Vec<u8>>,
}

impl Differences<'_> {
    fn add(&mut self, entry: Entry) -> io::Result<()> {
        let (entry, opaque) = match entry {
            Entry::Removed(path) => {
                // The name may have come and gone.
                if self.image.lower_file(&path)?.is_some() {
                    self.note(path, ChangeKind::Deleted);
                }
                return Ok(());
            }
            Entry::There { entry, opaque } => (entry, opaque),
        };
        let both_directories = entry.kind == EntryKind::Directory;
        match self.image.lower_file(&entry.path)? {
            None => self.note(entry.path, ChangeKind::Added),
            Some(lower) if both_directories && lower.is_directory() => self.directory(entry, &lower, opaque)?,
            Some(_) => self.note(entry.path, ChangeKind::Changed),
        }
        Ok(())
    }

    /// A directory that the image has too: one that only leads to something else is noted with that.
    fn directory(&mut self, entry: LayerEntry, lower: &LowerFile, opaque: bool) -> io::Result<()> {
        let inside = self.made_anew.as_ref().is_some_and(|top| entry.path.starts_with(top));
        if (opaque || inside) && !entry.path.is_empty() {
            let below = [&entry.path[..], b"/"].concat();
            for name in self.image.lower_names(&entry.path)? {
                // What is there again comes later, and is told otherwise then.
                self.note([&below[..], &name].concat(), ChangeKind::Deleted);
            }
            if !inside {
                self.made_anew = Some(below);
            }
            self.note(entry.path, ChangeKind::Changed);
        } else if !entry.path.is_empty() && differs(&entry, lower) {
            self.note(entry.path, ChangeKind::Changed);
        }
        Ok(())
    }

    /// Notes a change, and that the directories on the way have one.
    fn note(&mut self, path: Vec<u8>, kind: ChangeKind) {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            self.all.entry(path[..at].to_vec()).or_insert(ChangeKind::Changed);
        }
        self.all.insert(path, kind);
    }
}

/// Whether a directory is another than in the image, seen from outside.
fn differs(entry: &LayerEntry, lower: &LowerFile) -> bool {
    (entry.mode, entry.uid, entry.gid, entry.mtime) != (lower.mode & 0o7777, lower.uid, lower.gid, lower.mtime)
}
