//! Programs of the host in memory: the lab reads its host's files over 9P, and each open waits for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::mount_bind;

/// In the lab, puts `program` and the libraries that it loads into memory, below `directory`, and in the place of the originals.
/// Elsewhere nothing is done: there they are in the page cache.
pub(crate) fn bring(program: &str, directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    if !crate::world::in_lab() {
        return Ok(());
    }
    let Some(program) = find(program) else { return Ok(()) };
    // Read by every program that loads libraries.
    let mut files = vec![program, "/etc/ld.so.cache".into()];
    for file in files.clone() {
        let listed = Command::new("ldd").arg(file).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        files.extend(listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for file in files {
        let file = fs::canonicalize(file)?;
        let copy = directory.join(format!("memory{}", file.display()));
        // Another program may have brought it already.
        if copy.exists() || file.starts_with(directory) {
            continue;
        }
        fs::create_dir_all(copy.parent().ok_or("a file without a folder")?)?;
        fs::copy(&file, &copy)?;
        mount_bind(&copy, &file)?;
    }
    Ok(())
}

/// Where `program` is: a path, or a name in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|directory| directory.join(program)).find(|path| path.exists())
}
