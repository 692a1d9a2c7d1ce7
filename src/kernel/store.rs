//! Where installed kernels are kept.
//!
//! ```text
//! kernels/lock               held while a kernel is installed or built
//! kernels/tmp/               work in progress; emptied by the next one that takes the lock
//! kernels/store/KEY/         vmlinux, config, modules/, kernel.json: complete, and never changed
//! kernels/names/NAME         symbolic link to ../store/KEY
//! kernels/extracted/         kernels taken out of users' own bzImages, named by the bzImage's hash
//! ```
//! A directory gets its place by one rename and its name by another, so whatever is killed in between leaves only
//! things that nothing refers to.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Compression, Kernel, KernelError};

/// Raised when the contents of a kernel's directory change, so that older ones are made again.
const LAYOUT: u32 = 1;
/// How long a directory that has lost its name is kept for those who looked it up just before.
const UNNAMED_KEPT: Duration = Duration::from_secs(3600);
/// Largest `kernel.json` that is read, in bytes.
const RECORD_MAX: u64 = 64 << 10;

/// What is known of an installed kernel; the contents of its `kernel.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    layout: u32,
    /// The release, as `uname -r` says it.
    pub release: String,
    /// The package and version, or the file, that it was taken or built from.
    pub origin: String,
    /// SHA-256 of all that it was made from, in hexadecimal.
    pub source_sha256: String,
    /// SHA-256 of `vmlinux`, in hexadecimal.
    pub sha256: String,
    /// Length of `vmlinux` in bytes.
    pub size: u64,
    /// How the package's kernel was compressed.
    pub compression: String,
    /// Whether amphi built it.
    pub own: bool,
    /// Whether there are modules beside it.
    pub modules: bool,
}

impl Record {
    /// The record in `directory`, where it is of this layout and the kernel beside it is whole.
    fn of(directory: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(directory.join("kernel.json")).ok()?.take(RECORD_MAX).read_to_string(&mut text).ok()?;
        let record: Self = serde_json::from_str(&text).ok()?;
        let size = directory.join("vmlinux").metadata().ok()?.len();
        (record.layout == LAYOUT && record.size == size).then_some(record)
    }

    /// Describes `vmlinux`, which is read to hash it.
    pub(super) fn describe(
        vmlinux: &Path,
        release: String,
        origin: String,
        source_sha256: String,
    ) -> Result<Self, KernelError> {
        let (sha256, size) = hash_file(vmlinux)?;
        let compression = Compression::None.name().to_owned();
        Ok(Self {
            layout: LAYOUT,
            release,
            origin,
            source_sha256,
            sha256,
            size,
            compression,
            own: false,
            modules: false,
        })
    }
}

/// An installed kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its name: its release.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What is known of it.
    pub record: Record,
}

impl Installed {
    /// The kernel, ready to boot.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        Kernel {
            image: self.directory.join("vmlinux"),
            release: Some(self.record.release.clone()),
            modules: self.record.modules.then(|| self.directory.join("modules")),
        }
    }

    /// The file with the kernel's build configuration, where there is one.
    #[must_use]
    pub fn config(&self) -> Option<PathBuf> {
        Some(self.directory.join("config")).filter(|path| path.is_file())
    }

    /// amphi's own kernels first, then by version, the newest first.
    fn rank(&self) -> (Reverse<bool>, Reverse<Vec<u64>>, &str) {
        (Reverse(self.record.own), Reverse(version_numbers(&self.name)), &self.name)
    }
}

/// The directory of installed kernels.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The user's store. Nothing is created or read.
    #[must_use]
    pub fn open() -> Self {
        Self::at(crate::host::data_dir().join("kernels"))
    }

    /// The store in `root`. Nothing is created or read.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The installed kernels, the one that is used by default first. What is incomplete is left out.
    ///
    /// # Errors
    /// The store is there but cannot be read.
    pub fn list(&self) -> Result<Vec<Installed>, KernelError> {
        let names = self.root.join("names");
        let entries = match fs::read_dir(&names) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(KernelError::store("list the kernels in", &names)(e)),
        };
        let mut found: Vec<_> = entries.filter_map(|entry| self.installed(entry.ok()?.file_name().to_str()?)).collect();
        found.sort_by(|a, b| a.rank().cmp(&b.rank()));
        Ok(found)
    }

    /// The kernel that is used where none is named.
    pub(super) fn best(&self) -> Result<Installed, KernelError> {
        self.list()?.into_iter().next().ok_or(KernelError::NoneInstalled)
    }

    /// The kernel of that name; else the best one whose name begins so (`6.12`); `amphi` is amphi's own.
    ///
    /// # Errors
    /// There is none, or the store cannot be read.
    pub fn find(&self, name: &str) -> Result<Installed, KernelError> {
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if let Some(exact) = plain.then(|| self.installed(name)).flatten() {
            return Ok(exact);
        }
        let all = self.list()?;
        let means = |kernel: &&Installed| match kernel.name.strip_prefix(name) {
            Some(rest) => plain && !rest.starts_with(|c: char| c.is_ascii_alphanumeric()),
            None => name == "amphi" && kernel.record.own,
        };
        if let Some(found) = all.iter().find(means) {
            return Ok(found.clone());
        }
        let names: Vec<_> = all.iter().map(|kernel| kernel.name.as_str()).collect();
        let installed = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(KernelError::Unknown { name: name.to_owned(), installed })
    }

    /// The kernel made from exactly that source, where it is installed.
    pub(super) fn made_from(&self, source_sha256: &str) -> Result<Option<Installed>, KernelError> {
        Ok(self.list()?.into_iter().find(|kernel| kernel.record.source_sha256 == source_sha256))
    }

    /// The kernel of exactly that name, where it is complete.
    fn installed(&self, name: &str) -> Option<Installed> {
        let directory = self.root.join("names").join(name);
        let record = Record::of(&directory)?;
        // The link may be replaced at any time; the directory behind it stays.
        let directory = match fs::read_link(&directory) {
            Ok(target) => self.root.join("store").join(target.file_name()?),
            Err(_) => directory,
        };
        Some(Installed { name: name.to_owned(), directory, record })
    }

    /// Takes the store for changing it, waiting for others; `waiting` is called when there is someone to wait for.
    pub(super) fn lock(&self, waiting: impl FnOnce()) -> Result<LockedStore, KernelError> {
        for name in ["names", "store", "tmp"] {
            let path = self.root.join(name);
            fs::create_dir_all(&path).map_err(KernelError::store("create", &path))?;
        }
        let path = self.root.join("lock");
        let file = File::options().create(true).append(true).open(&path).map_err(KernelError::store("open", &path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            flock(&file, FlockOperation::LockExclusive).map_err(|e| KernelError::store("lock", &path)(e.into()))?;
        }
        let locked = LockedStore { store: self.clone(), _lock: file };
        locked.clean()?;
        Ok(locked)
    }

    pub(super) fn extracted(&self) -> PathBuf {
        self.root.join("extracted")
    }
}

/// The store while nobody else changes it. Dropping it lets others in.
#[derive(Debug)]
pub(super) struct LockedStore {
    store: Store,
    _lock: File,
}

impl LockedStore {
    /// A directory to work in. It is removed when dropped, and by the next one that takes the lock.
    pub(super) fn workspace(&self) -> Result<tempfile::TempDir, KernelError> {
        let tmp = self.store.root.join("tmp");
        tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(&tmp)
            .map_err(KernelError::store("create a directory in", &tmp))
    }

    /// Makes `directory`, which holds `vmlinux` and what belongs to it, the kernel called as its release.
    pub(super) fn publish(&self, directory: &Path, record: Record) -> Result<Installed, KernelError> {
        let json = directory.join("kernel.json");
        let text = serde_json::to_vec(&record).map_err(|e| KernelError::store("write", &json)(e.into()))?;
        fs::write(&json, text).map_err(KernelError::store("write", &json))?;
        for file in [&json, &directory.join("vmlinux")] {
            File::open(file).and_then(|f| f.sync_all()).map_err(KernelError::store("write", file))?;
        }
        let root = &self.store.root;
        let key = hex(&Sha256::digest(format!("{LAYOUT} {} {}", record.source_sha256, record.sha256)));
        let place = root.join("store").join(&key);
        if Record::of(&place).is_none() {
            if place.exists() {
                let old = root.join("tmp").join(format!("old-{key}"));
                fs::rename(&place, &old).map_err(KernelError::store("replace", &place))?;
            }
            fs::rename(directory, &place).map_err(KernelError::store("create", &place))?;
        }
        let link = root.join("tmp").join(format!("link-{key}"));
        symlink(Path::new("../store").join(&key), &link).map_err(KernelError::store("create", &link))?;
        let name = record.release.clone();
        let target = root.join("names").join(&name);
        fs::rename(&link, &target).map_err(KernelError::store("create", &target))?;
        self.clean()?;
        self.store.find(&name)
    }

    /// Removes what was left behind by others who were killed, and kernels that have lost their names.
    fn clean(&self) -> Result<(), KernelError> {
        let root = &self.store.root;
        remove_children(&root.join("tmp"), |_| true)?;
        let names = root.join("names");
        let named: Vec<_> = fs::read_dir(&names)
            .map_err(KernelError::store("list", &names))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()?.file_name().map(ToOwned::to_owned))
            .collect();
        remove_children(&root.join("store"), |path| {
            !named.iter().any(|name| path.file_name() == Some(name)) && older_than(path, UNNAMED_KEPT)
        })?;
        let extracted = self.store.extracted();
        if extracted.is_dir() {
            remove_children(&extracted, |path| {
                let name = path.file_name().unwrap_or_default().as_encoded_bytes();
                name.starts_with(b".") && older_than(path, UNNAMED_KEPT)
            })?;
        }
        Ok(())
    }
}

fn remove_children(directory: &Path, unwanted: impl Fn(&Path) -> bool) -> Result<(), KernelError> {
    for entry in fs::read_dir(directory).map_err(KernelError::store("list", directory))? {
        let path = entry.map_err(KernelError::store("list", directory))?.path();
        if unwanted(&path) {
            let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(KernelError::store("remove", &path))?;
        }
    }
    Ok(())
}

fn older_than(path: &Path, age: Duration) -> bool {
    let changed = path.symlink_metadata().and_then(|m| m.modified());
    changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed > age))
}

/// The numbers in a version, in order; `6.12.117` sorts after `6.1.0-56`.
pub(super) fn version_numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// SHA-256 in hexadecimal, and length in bytes.
pub(super) fn hash_file(path: &Path) -> Result<(String, u64), KernelError> {
    let mut file = File::open(path).map_err(KernelError::read(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(buffer.get(..n).unwrap_or_default());
                size += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(KernelError::read(path)(e)),
        }
    }
    Ok((hex(&hash.finalize()), size))
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
