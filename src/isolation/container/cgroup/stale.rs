//! Groups whose amphi was killed before it could remove them.

use std::fs;
use std::path::Path;
use std::time::Instant;

/// Removes the groups in `parent` that nobody holds a lock on, but not `own`. Returns whether all such are gone: those
/// whose processes take longer than until `deadline` to end are not.
///
/// A lock ends with its process, however that ends, and is seen across PID namespaces, where process ids would mislead.
pub(super) fn sweep(parent: &Path, own: &Path, deadline: Instant) -> bool {
    let Ok(entries) = fs::read_dir(parent) else { return true };
    let stale = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let stale = stale.map(|entry| entry.path()).filter(|path| path != own);
    let held: Vec<_> = stale.filter_map(|path| super::lock(&path).ok().flatten().map(|lock| (path, lock))).collect();
    for (path, _lock) in &held {
        // Whatever still runs there has lost its parent and is on its way out, with this the faster. Version 1 has no such file.
        let _ = super::write(&path.join("cgroup.kill"), "1");
    }
    let mut all = true;
    for (path, _lock) in &held {
        match super::remove(path, deadline) {
            Ok(()) => log::info!("removed the cgroup {} of a run that was killed", path.display()),
            Err(source) => {
                log::debug!("cannot remove the stale cgroup {} yet: {source}", path.display());
                all = false;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Group, lock};
    use super::*;

    /// A program that another test starts has a copy of each lock here until it is executed.
    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name| parent.path().join(name);
        let own = Group::make(path("own")).unwrap();
        fs::create_dir(path("live")).unwrap();
        let live = lock(&path("live")).unwrap().unwrap();
        fs::create_dir(path("dead")).unwrap();
        fs::write(path("file"), "").unwrap();

        assert!(sweep(parent.path(), &path("own"), Instant::now()));
        assert!(path("own").exists() && path("live").exists() && path("file").exists());
        assert!(!path("dead").exists());

        drop(live);
        // This is how a group looks that cannot go yet.
        fs::write(path("live").join("file"), "").unwrap();
        until(|| !sweep(parent.path(), &path("own"), Instant::now()));
        fs::remove_file(path("live").join("file")).unwrap();
        until(|| sweep(parent.path(), &path("own"), Instant::now()) && !path("live").exists());
        drop(own);
        assert!(!path("own").exists());
    }

    #[test]
    fn a_removed_directory_cannot_be_held() {
        let parent = tempfile::tempdir().unwrap();
        assert!(lock(&parent.path().join("none")).unwrap().is_none());
    }
}
