//! Where amphi keeps its files.

use std::path::PathBuf;
use std::sync::OnceLock;

static DIRS: OnceLock<Dirs> = OnceLock::new();

/// The directories to use instead of the usual ones; `None` keeps the usual one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirs {
    /// What [`data_dir`] returns.
    pub data: Option<PathBuf>,
    /// What [`state_dir`] returns.
    pub state: Option<PathBuf>,
}

/// The directories are chosen already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the directories of this process are chosen already")]
pub struct DirsAlreadySet;

/// Chooses the directories for the rest of the process's life. To be called before anything else of amphi.
///
/// # Errors
/// They have been chosen before.
pub fn set_dirs(dirs: Dirs) -> Result<(), DirsAlreadySet> {
    DIRS.set(dirs).map_err(|_| DirsAlreadySet)
}

fn dir(xdg: &str, home: &str, root: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(xdg).filter(|p| !p.is_empty()) {
        return PathBuf::from(path).join("amphi");
    }
    match std::env::var_os("HOME").filter(|_| !rustix::process::geteuid().is_root()) {
        Some(path) => PathBuf::from(path).join(home).join("amphi"),
        None => PathBuf::from(root).join("amphi"),
    }
}

/// Kernels, images and what is made from them: what [`set_dirs`] chose, else `$XDG_DATA_HOME/amphi`, else
/// `/var/lib/amphi` for root and `~/.local/share/amphi` for others.
#[must_use]
pub fn data_dir() -> PathBuf {
    let chosen = DIRS.get().and_then(|dirs| dirs.data.clone());
    chosen.unwrap_or_else(|| dir("XDG_DATA_HOME", ".local/share", "/var/lib"))
}

/// What lives only as long as an instance: what [`set_dirs`] chose, else `$XDG_RUNTIME_DIR/amphi`, else
/// `/run/amphi` for root and `~/.local/state/amphi` for others.
#[must_use]
pub fn state_dir() -> PathBuf {
    let chosen = DIRS.get().and_then(|dirs| dirs.state.clone());
    chosen.unwrap_or_else(|| dir("XDG_RUNTIME_DIR", ".local/state", "/run"))
}
