//! The limits of a running workload, as the host's cgroup file systems show them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where version 2 alone, and version 2 beside version 1, are mounted.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The process whose last argument is `marker`.
fn process(marker: &str) -> PathBuf {
    let is_it = |path: &Path| {
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).rfind(|word| !word.is_empty()) == Some(marker.as_bytes())
    };
    let deadline = Instant::now() + super::world::seconds(5);
    loop {
        // The shell that announces the workload may not have become it yet.
        let mut entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        if let Some(found) = entries.find(|path| is_it(path)) {
            return found;
        }
        assert!(Instant::now() < deadline, "no process with the argument {marker}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the file of the workload's group says, or of the nearest group above it that has a limit: `v2`, or `v1` in the
/// hierarchy of `controller` where that is one of version 1.
pub(crate) fn limit(marker: &str, controller: &str, v2: &str, v1: &str) -> String {
    let groups = fs::read_to_string(process(marker).join("cgroup")).unwrap();
    let mut looked_at = Vec::new();
    for line in groups.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
        let (roots, name) = match controllers {
            "" => (UNIFIED.map(PathBuf::from).to_vec(), v2),
            _ if controllers.split(',').any(|one| one == controller) => {
                (vec![Path::new("/sys/fs/cgroup").join(controller)], v1)
            }
            _ => continue,
        };
        for root in roots {
            for group in Path::new(path.trim_start_matches('/')).ancestors().filter(|group| *group != Path::new("")) {
                let file = root.join(group).join(name);
                match fs::read_to_string(&file) {
                    Ok(value) if !value.starts_with("max") && !value.starts_with("-1") => {
                        return value.trim().to_owned();
                    }
                    _ => looked_at.push(file),
                }
            }
        }
    }
    panic!("no limit in any of {looked_at:#?}");
}
