//! An image made of what an instance has written.

use std::io;

use super::changes::{self, Entries, Entry};
use super::{Instance, InstanceError, Source};
use crate::image::manifest::{Execution, History};
use crate::image::{Draft, EntryKind, ImageName, LayerArchive, LayerEntry, Store, StoredImage, Timestamp};
use crate::isolation::IsolationKind;
use crate::spec::RunSpec;

/// What else is to be said of a new image.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Who makes it.
    pub author: Option<String>,
    /// A remark.
    pub message: Option<String>,
    /// How it is to be run, other than the instance's image.
    pub execution: Option<Execution>,
}

impl Instance {
    /// The configuration of the image that the instance was made from, to be changed for another.
    ///
    /// # Errors
    /// The instance runs; the image is not of the store, or cannot be read.
    pub fn execution(&self) -> Result<Execution, InstanceError> {
        let _instance = self.take("committed")?;
        let store = Store::open_default()?;
        let _hold = store.hold()?;
        Ok(self.parent(&store)?.config.config.unwrap_or_default())
    }

    fn parent(&self, store: &Store) -> Result<StoredImage, InstanceError> {
        match &self.record.source {
            Source::Store { manifest } => Ok(store.image(manifest)?),
            _ => Err(InstanceError::NoParent { name: self.record.name.clone(), image: self.record.image.clone() }),
        }
    }

    /// Makes an image called `name`: the layers of the instance's own, and one with what the instance has written.
    ///
    /// The instance must not run: its files would change while they are read.
    ///
    /// # Errors
    /// It runs; its image is none of the store; something cannot be read, or not be kept.
    pub fn commit(&self, name: &ImageName, options: &CommitOptions) -> Result<StoredImage, InstanceError> {
        let _instance = self.take("committed")?;
        let store = Store::open_default()?;
        let _hold = store.hold()?;
        let parent = self.parent(&store)?;
        // As in a build: nothing in the image is later than that, so that the same changes make the same image.
        let source_date = Timestamp::of_source().map_err(InstanceError::Time)?;
        let now = source_date.unwrap_or_else(Timestamp::now);
        let latest = source_date.map_or(i64::MAX, Timestamp::seconds);
        let layer = store.add_layer(|sink| -> Result<(), InstanceError> {
            write_layer(self.record.isolation, &self.record.spec, latest, sink).map(drop)
        })?;
        let argv = self.record.spec.process.argv.iter().map(|argument| argument.to_string_lossy());
        let step = History {
            created: Some(now.to_string()),
            created_by: Some(argv.collect::<Vec<_>>().join(" ")),
            author: options.author.clone(),
            comment: options.message.clone(),
            empty_layer: false,
        };
        let mut draft = Draft::on(&parent);
        draft.add_layer(layer, step);
        if let Some(execution) = &options.execution {
            draft.execution().clone_from(execution);
        }
        if let Some(author) = &options.author {
            draft.set_author(author);
        }
        Ok(draft.save(&store, now, [name])?)
    }
}

/// Writes what the kept layer of `spec`, which ran in that isolation, has of its own as the archive of a layer (OCI image specification,
/// "Representing Changes"), with no time later than `latest`, and returns how many entries that are.
///
/// # Errors
/// It cannot be read, or not be written.
pub(crate) fn write_layer(
    kind: IsolationKind,
    spec: &RunSpec,
    latest: i64,
    sink: impl io::Write,
) -> Result<usize, InstanceError> {
    changes::of(kind, spec, |entries| {
        let mut archive = LayerArchive::new(sink);
        let count = write(entries, spec, latest, &mut archive).map_err(InstanceError::Layer)?;
        entries.finish()?;
        archive.finish().map_err(InstanceError::Layer)?;
        Ok(count)
    })
}

fn write<W: io::Write>(
    entries: &mut Entries,
    spec: &RunSpec,
    latest: i64,
    archive: &mut LayerArchive<W>,
) -> io::Result<usize> {
    let mut count = 0;
    while let Some(entry) = entries.next() {
        if changes::is_mount_point(spec, &entry) {
            continue;
        }
        match entry {
            Entry::Removed(path) => archive.remove(&path)?,
            // Of the root itself only what is in it.
            Entry::There { entry: LayerEntry { path, .. }, .. } if path.is_empty() => continue,
            Entry::There { mut entry, opaque } => {
                entry.mtime = entry.mtime.min(latest);
                archive.append(&entry, &mut *entries)?;
                if opaque && entry.kind == EntryKind::Directory {
                    archive.empty(&entry.path)?;
                }
            }
        }
        count += 1;
    }
    Ok(count)
}
