//! The container's control groups: made before the child, removed after it.
//!
//! All lie in a group called `amphi`, one directory a container and hierarchy, named by the container's id. amphi
//! holds a lock on each as long as it runs, which tells the living from what a killed amphi has left.

mod limits;
mod stale;
mod v1;
mod v2;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::ContainerError;
use crate::host::cgroup::Cgroups;
use crate::spec::Resources;

/// The group that holds all of amphi's.
const PARENT: &str = "amphi";
/// How often a directory is made anew when a sweep by another amphi comes between its making and its locking.
const ATTEMPTS: usize = 8;
/// For how long a group is tried to be removed after its last process has been waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// For how long a start tries to remove what killed runs have left, beside the child's own work.
const SWEEP: Duration = Duration::from_millis(100);
/// For how long the end does so again where that was not enough: on a busy host hundreds of killed processes take
/// seconds to end.
const LAST_SWEEP: Duration = Duration::from_secs(5);
/// The longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// A container's groups. Dropping it removes them; no process may be in them then.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// The group in the unified hierarchy, in which the child is born.
    unified: Option<Group>,
    /// Groups of version 1, which the child is moved to.
    others: Vec<Group>,
    /// Where amphi's groups are in each hierarchy, with or without one of this container.
    parents: Vec<PathBuf>,
    /// The container's id, which is the name of its groups.
    id: String,
    /// Whether something of a killed run could not be removed yet.
    unswept: AtomicBool,
}

/// One directory, locked.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    directory: File,
}

/// The host's hierarchies. None is an error only where `resources` has limits.
pub(super) fn find(resources: &Resources) -> Result<Cgroups, ContainerError> {
    Cgroups::detect().or_else(|source| match limits::of(resources).first() {
        Some(limit) => Err(limit.refused("the host's cgroups cannot be found".to_owned(), Some(source))),
        None => Ok(Cgroups::default()),
    })
}

impl Cgroup {
    /// Makes the groups for the container `id` with `limits`. Where there are no limits and no group can
    /// be made, the container does without.
    pub(super) fn create(cgroups: &Cgroups, id: &str, resources: &Resources) -> Result<Self, ContainerError> {
        let limits = limits::of(resources);
        let others = v1::create(cgroups, id, &limits)?;
        let in_unified: Vec<_> = limits
            .iter()
            .filter(|limit| cgroups.controller(limit.controller).is_none_or(|hierarchy| hierarchy.unified))
            .collect();
        let unified = v2::create(cgroups, id, &in_unified)?;
        if unified.is_none() && others.is_empty() {
            log::warn!("no cgroup can be written: the container runs in amphi's own");
        }
        let mut parents: Vec<_> = cgroups.hierarchies().iter().map(|h| h.mount_point.join(PARENT)).collect();
        if let Some(parent) = unified.as_ref().and_then(|group| group.path.parent()).map(Path::to_owned)
            && !parents.contains(&parent)
        {
            parents.push(parent);
        }
        Ok(Self { unified, others, parents, id: id.to_owned(), unswept: AtomicBool::new(false) })
    }

    /// The group to be born in.
    pub(super) fn birth_place(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|group| group.directory.as_fd())
    }

    /// Where the group to be born in is.
    pub(super) fn unified_path(&self) -> PathBuf {
        self.unified.as_ref().map(|group| group.path.clone()).unwrap_or_default()
    }

    /// The unified group has not become the child's birthplace, as a process that may write to it
    /// may still not move others into it.
    pub(super) fn give_up_unified(&mut self) {
        self.unified = None;
    }

    /// Whether limits are set in the unified group, so that it cannot be given up.
    pub(super) fn needs_unified(&self, resources: &Resources) -> bool {
        self.unified.is_some() && self.others.len() < limits::of(resources).len()
    }

    /// Moves the parked child to the groups that nobody can be born in.
    pub(super) fn adopt(&self, pid: i32) -> Result<(), ContainerError> {
        for group in &self.others {
            write(&group.path.join("cgroup.procs"), &pid.to_string())
                .map_err(|source| ContainerError::Cgroup { path: group.path.clone(), source })?;
        }
        Ok(())
    }

    /// Removes what killed runs have left. Where that is nothing, this only looks.
    pub(super) fn sweep(&self) {
        self.sweep_within(SWEEP);
    }

    fn sweep_within(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let swept = self.parents.iter().map(|parent| stale::sweep(parent, &parent.join(&self.id), deadline));
        // All of them, not only those up to the first failure.
        let left = swept.filter(|swept| !swept).count();
        self.unswept.store(left > 0, Ordering::Relaxed);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if *self.unswept.get_mut() {
            self.sweep_within(LAST_SWEEP);
        }
    }
}

impl Group {
    /// Makes and locks the directory `path`.
    fn make(path: PathBuf) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            fs::create_dir(&path)?;
            if let Some(directory) = lock(&path)? {
                return Ok(Self { path, directory });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Writes one of its files.
    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        write(&self.path.join(file), value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(source) = remove(&self.path, Instant::now() + PATIENCE) {
            log::warn!("cannot remove the cgroup {}: {source}; the next run will try again", self.path.display());
        }
    }
}

/// Locks the directory, unless someone else has, or has removed it meanwhile.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let directory = match File::open(path) {
        Ok(directory) => directory,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(source),
    };
    match directory.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(source),
    }
    // Held only counts if it is still the directory of that name.
    let (held, named) = (rustix::fs::fstat(&directory)?, rustix::fs::stat(path));
    Ok(named.is_ok_and(|named| named.st_ino == held.st_ino).then_some(directory))
}

/// Removes a group whose last processes may still be leaving it.
fn remove(path: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(20);
    loop {
        match fs::remove_dir(path) {
            Err(source) if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE);
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

/// Writes a file of a group, which must exist.
fn write(file: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(value.as_bytes())
}

/// Makes a directory, unless it is there.
fn ensure_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
