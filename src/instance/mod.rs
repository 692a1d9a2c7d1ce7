//! Instances: runs of images that stay when they have ended, each a folder `DATA/instances/ID`.
//!
//! - `record.json`: what the instance is ([`Record`]); replaced by a rename.
//! - `exit`: how the last run ended, one line of JSON. It is there, empty, from the run's start on, and written by a single call at its
//!   end, because a microVM's process may open nothing by then. A line that is not whole is none.
//! - What the instance has written: see [`WritableLayer`](crate::spec::WritableLayer). A container's has a note `pid1` beside it: which
//!   process is its first one.
//!
//! The folder is locked by the process that runs the instance, so whether it runs is never a matter of what a file says: after
//! `kill -9` the lock is free, and the empty `exit` means that nobody knows how it ended. A container's processes may end somewhat later:
//! who takes the instance then waits for them ([`Instance::take`]).
//!
//! A folder gets its name by a rename, when all is in it, and loses it by one before it is removed. Names with a dot in front are
//! what is not complete; `.lock` is held by who adds or removes.

mod changes;
mod commit;
mod copy;
mod diff;
mod error;
mod exit;
mod record;
mod running;
mod size;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use commit::CommitOptions;
pub(crate) use commit::write_layer;
pub use copy::{CopySource, Target};
pub use diff::ChangeKind;
pub use error::InstanceError;
pub use exit::Exit;
pub use record::{Record, Source};
pub use running::Running;

use crate::image::{Image, Rootfs, Store, Timestamp};
use crate::isolation::{IsolationKind, KeptLayer};
use crate::spec::{RunSpec, short_id};

const RECORD: &str = "record.json";
const EXIT: &str = "exit";
/// What begins the names of folders that are not complete.
const NEW: &str = ".new-";
const REMOVED: &str = ".removed-";
/// The fewest digits of an ID that stand for it.
const SHORTEST_PREFIX: usize = 1;

/// The instances of this user or host.
#[derive(Debug, Clone)]
pub struct Instances {
    root: PathBuf,
}

/// An instance as it was a moment ago.
#[derive(Debug, Clone)]
pub struct Instance {
    /// What it is.
    pub record: Record,
    /// What it does.
    pub state: State,
    folder: PathBuf,
}

/// What an instance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It has ended.
    Exited(Exit),
}

/// What a new instance is made of.
#[derive(Debug)]
pub struct NewInstance<'a> {
    /// See [`Instances::new_id`].
    pub id: String,
    /// Its name, which no other may have; `None`: its ID.
    pub name: Option<String>,
    /// The image as the user named it.
    pub image: &'a str,
    /// How it runs.
    pub isolation: IsolationKind,
    /// What it runs.
    pub spec: RunSpec,
}

impl Instances {
    /// Those in amphi's data directory.
    #[must_use]
    pub fn open_default() -> Self {
        Self::open(&crate::host::data_dir().join("instances"))
    }

    /// Those in the folder `root`, which is made when the first comes.
    #[must_use]
    pub fn open(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// An ID: twelve hexadecimal digits.
    #[must_use]
    pub fn new_id() -> String {
        short_id()
    }

    /// All instances, the newest first.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn list(&self) -> Result<Vec<Instance>, InstanceError> {
        let failed = |source| InstanceError::of("read", &self.root)(source);
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            match Instance::read(&self.root.join(id)) {
                // It has been removed meanwhile.
                Err(InstanceError::Use { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => all.push(other?),
            }
        }
        all.sort_by(|a, b| (&b.record.created, &b.record.id).cmp(&(&a.record.created, &a.record.id)));
        Ok(all)
    }

    /// The instance of that name, or whose ID begins so.
    ///
    /// # Errors
    /// There is none, or several have an ID that begins so, or a record cannot be read.
    pub fn find(&self, text: &str) -> Result<Instance, InstanceError> {
        let mut all = self.list()?;
        if let Some(index) = all.iter().position(|instance| instance.record.name == text || instance.record.id == text)
        {
            return Ok(all.swap_remove(index));
        }
        let is_prefix = text.len() >= SHORTEST_PREFIX;
        let mut fitting = all.into_iter().filter(|instance| is_prefix && instance.record.id.starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(InstanceError::Ambiguous(text.to_owned())),
            (Some(found), None) => Ok(found),
            (None, _) => Err(InstanceError::Unknown(text.to_owned())),
        }
    }

    /// Makes an instance that the caller is about to run. Its writable layer is in its folder, from what is returned on.
    ///
    /// # Errors
    /// The name is taken, the image has been removed meanwhile, or the folder cannot be written.
    pub fn create(&self, new: NewInstance<'_>) -> Result<Running, InstanceError> {
        let _lock = self.lock()?;
        self.sweep();
        let name = new.name.unwrap_or_else(|| new.id.clone());
        let taken =
            |other: &Instance| other.record.name == name || other.record.id == name || other.record.id == new.id;
        if let Some(other) = self.list()?.into_iter().find(taken) {
            return Err(InstanceError::NameTaken { name, id: other.record.id });
        }
        // Until the instance has its name, nothing but this keeps the image.
        let store = matches!(new.spec.rootfs, Rootfs::Layers(_)).then(Store::open_default).transpose()?;
        let _hold = store.as_ref().map(Store::hold).transpose()?;
        if let (Some(store), Rootfs::Layers(stack)) = (&store, &new.spec.rootfs)
            && !store.has(&stack.manifest)
        {
            return Err(InstanceError::ImageGone(new.image.to_owned()));
        }
        let now = Timestamp::now().to_string();
        let record = Record {
            version: record::VERSION,
            id: new.id,
            name,
            image: new.image.to_owned(),
            source: Source::of(new.image, &new.spec.rootfs),
            isolation: new.isolation,
            created: now.clone(),
            started: now,
            pid: std::process::id(),
            spec: new.spec,
        };
        self.place(record)
    }

    /// Makes the folder, and gives it its name when all is in it.
    fn place(&self, record: Record) -> Result<Running, InstanceError> {
        let folder = self.root.join(&record.id);
        let unfinished = self.root.join(format!("{NEW}{}", record.id));
        let failed = |source| InstanceError::of("make", &folder)(source);
        fs::DirBuilder::new().mode(0o700).create(&unfinished).map_err(failed)?;
        let lock = File::open(&unfinished).map_err(failed)?;
        lock.try_lock().map_err(|error| failed(error.into()))?;
        let exit = exit::begin(&unfinished)?;
        record.write(&unfinished)?;
        fs::rename(&unfinished, &folder).map_err(failed)?;
        let instance = Instance { record, state: State::Running, folder };
        Ok(Running::new(instance.with_folder(), lock, exit))
    }

    /// Held by who adds and removes.
    fn lock(&self) -> Result<File, InstanceError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.map_err(InstanceError::of("keep instances (run with --rm keeps none) in", &self.root))?;
        let path = self.root.join(".lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(InstanceError::of("open", &path))?;
        file.lock().map_err(InstanceError::of("lock", &path))?;
        Ok(file)
    }

    /// Removes what others have left behind half made or half removed. What cannot be removed stays for the next one.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let left = name.starts_with(REMOVED)
                || name.starts_with(NEW) && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok());
            if left {
                let _ = remove_folder(&entry.path());
            }
        }
    }
}

impl Instance {
    fn read(folder: &Path) -> Result<Self, InstanceError> {
        let record = Record::read(folder)?;
        // This order: whoever runs it writes how it ended before the lock is free.
        let lock = File::open(folder).map_err(InstanceError::of("open", folder))?;
        let state = match lock.try_lock_shared() {
            Ok(()) => State::Exited(exit::read(folder)),
            Err(_) => State::Running,
        };
        Ok(Self { record, state, folder: folder.to_owned() }.with_folder())
    }

    /// With its writable layer in its folder, where it has one.
    fn with_folder(mut self) -> Self {
        if !matches!(self.record.source, Source::Disk { .. }) {
            self.record.spec.writable.folder = Some(self.folder.clone());
        }
        self
    }

    /// Where it is kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How much of the disk its writable layer takes, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        size::of(&self.folder)
    }

    /// Opens its image once more: the very one that it was made from, whatever its name stands for now.
    ///
    /// # Errors
    /// It is gone, or cannot be read.
    pub fn open_image(&self) -> Result<Rootfs, InstanceError> {
        match &self.record.source {
            Source::Builtin => Ok(Image::open("builtin")?.rootfs),
            Source::Directory { path } => Ok(Rootfs::Directory(path.clone())),
            Source::Disk { path } => Ok(Rootfs::Disk(path.clone())),
            Source::Store { manifest } => {
                let store = Store::open_default()?;
                let _hold = store.hold()?;
                Ok(Rootfs::Layers(store.layers(&store.image(manifest)?)?))
            }
        }
    }

    /// Takes the stopped instance, to run it once more or to look into it: nobody else does until what is returned is dropped. What a
    /// killed amphi has left of its run is ended, and waited for.
    ///
    /// # Errors
    /// It runs, or does not end, or is gone.
    pub fn take(&self, purpose: &'static str) -> Result<File, InstanceError> {
        let lock = File::open(&self.folder).map_err(InstanceError::of("open", &self.folder))?;
        if !running::lock(&lock) {
            return Err(InstanceError::Running { name: self.record.name.clone(), purpose });
        }
        if !self.folder.exists() {
            return Err(InstanceError::Unknown(self.record.name.clone()));
        }
        self.end_last_run()?;
        Ok(lock)
    }

    /// Ends what a killed amphi has left of the last run. To be called with the folder locked.
    fn end_last_run(&self) -> Result<(), InstanceError> {
        self.layer().end_last_run().map_err(|error| InstanceError::Isolation(Box::new(error)))
    }

    fn layer(&self) -> KeptLayer {
        KeptLayer::new(self.record.isolation, &self.record.spec)
    }

    /// Takes the stopped instance to run it once more.
    ///
    /// # Errors
    /// It runs, or its image or its folder cannot be used.
    pub fn start(mut self) -> Result<Running, InstanceError> {
        let lock = self.take("started")?;
        self.record.spec.rootfs = self.open_image()?;
        self.record.started = Timestamp::now().to_string();
        self.record.pid = std::process::id();
        let exit = exit::begin(&self.folder)?;
        self.record.write(&self.folder)?;
        self.state = State::Running;
        Ok(Running::new(self, lock, exit))
    }

    /// Removes the instance with all that it has written. One that runs is killed first, if `force` says so.
    ///
    /// # Errors
    /// It runs, or cannot be removed.
    pub fn remove(self, instances: &Instances, force: bool) -> Result<(), InstanceError> {
        if force && self.state == State::Running {
            running::kill(&self)?;
        }
        let _instance = self.take("removed")?;
        let _lock = instances.lock()?;
        let aside = instances.root.join(format!("{REMOVED}{}", self.record.id));
        let failed = |source| InstanceError::of("remove", &self.folder)(source);
        fs::rename(&self.folder, &aside).map_err(failed)?;
        remove_folder(&aside).map_err(failed)
    }
}

/// Removes a folder, whatever its permissions: overlayfs' own has none.
fn remove_folder(folder: &Path) -> io::Result<()> {
    fn open_up(folder: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open_up(&entry.path());
            }
        }
    }
    if !rustix::process::geteuid().is_root() {
        open_up(folder);
    }
    fs::remove_dir_all(folder)
}

#[cfg(test)]
mod tests;
