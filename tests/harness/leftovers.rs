//! What amphi could leave behind on a host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::BINARY;

/// What is there now: processes, mounts, cgroups and temporary files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the machine. `marker` is a word in the command line of the case's workload; `state` is amphi's state folder.
    pub(crate) fn take(marker: &str, state: &Path) -> Self {
        let mut found = BTreeSet::new();
        processes(marker, &mut found);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|mount| format!("mount {mount}")));
        for cgroup in folders(Path::new("/sys/fs/cgroup"), 6) {
            if cgroup.to_string_lossy().contains("amphi") {
                found.insert(format!("cgroup {}", cgroup.display()));
            }
        }
        for folder in [std::env::temp_dir(), state.to_owned(), PathBuf::from("/dev/shm")] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if folder == state || entry.file_name().to_string_lossy().contains("amphi") {
                    found.insert(format!("file {}", entry.path().display()));
                }
            }
        }
        Self(found)
    }

    /// Fails unless, within some seconds, nothing is there that was not there before.
    #[track_caller]
    pub(crate) fn expect_nothing_new(&self, marker: &str, state: &Path) {
        let deadline = Instant::now() + super::world::seconds(5);
        loop {
            let new: Vec<_> = Self::take(marker, state).0.difference(&self.0).cloned().collect();
            if new.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {new:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether a workload with the marker is running.
    pub(crate) fn has_process(&self) -> bool {
        self.0.iter().any(|line| line.starts_with("process "))
    }
}

/// Processes of the binary under test, and those with the marker in their command line.
fn processes(marker: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid == std::process::id() {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == Path::new(BINARY));
        if ours || command.contains(marker) {
            found.insert(format!("process {pid} {command}"));
        }
    }
}

fn folders(root: &Path, depth: u32) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(folders(&entry.path(), depth - 1));
            all.push(entry.path());
        }
    }
    all
}
