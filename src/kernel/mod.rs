//! Guest kernels: finding, installing, building and inspecting them.
//!
//! Kernels live below [`data_dir`](crate::host::data_dir)`/kernels`, each in a directory that is complete before
//! it gets its name and never changes afterwards; see [`store`] for the layout.

pub mod build;
pub mod config;
mod deb;
mod elf;
mod error;
mod extracted;
mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod inspect;
pub mod install;
mod modules;
mod package_manager;
mod payload;
mod process;
mod progress;
pub mod store;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, reason = "a door for the fuzz targets is a test too")]
#[cfg_attr(fuzzing, allow(dead_code, reason = "tests need more of it"))]
mod test_images;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use error::KernelError;
pub use format::{BzImage, ElfImage, Format};
pub use payload::Compression;
pub use progress::Progress;
use store::Store;

/// A kernel that is ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The file to load: an uncompressed x86-64 ELF image.
    pub image: PathBuf,
    /// The kernel's release as `uname -r` says it, where it is known.
    pub release: Option<String>,
    /// The directory of the kernel's modules (uncompressed `.ko` files, `modules.dep` and `modules.builtin` in
    /// kmod's formats), where it has any.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// The kernel that `name` means: a file where it has a slash or exists, else the name of an installed kernel
    /// or the start of one; without a name the best one installed (amphi's own first, then the newest).
    ///
    /// Reads a few hundred bytes. Only the first use of a bzImage that is not installed takes longer (its payload
    /// is extracted and kept); later uses recognise the file by its identity and times, without reading it.
    ///
    /// # Errors
    /// There is no such kernel, or it is not one that amphi can boot.
    pub fn resolve(name: Option<&Path>) -> Result<Self, KernelError> {
        Self::resolve_in(&Store::open(), name)
    }

    fn resolve_in(store: &Store, name: Option<&Path>) -> Result<Self, KernelError> {
        match name {
            Some(path) if is_path(path) => Self::from_file(store, path),
            Some(name) => Ok(store.find(&name.to_string_lossy())?.kernel()),
            None => Ok(store.best()?.kernel()),
        }
    }

    /// A user's own kernel. Nothing is known of its modules.
    fn from_file(store: &Store, path: &Path) -> Result<Self, KernelError> {
        let file = open(path)?;
        match Format::recognise(&file, path)? {
            Format::Elf(_) => Ok(Self { image: path.to_owned(), release: None, modules: None }),
            Format::BzImage(header) => {
                let image = extracted::extracted(store, &file, path, &header)?;
                Ok(Self { image, release: header.release().map(str::to_owned), modules: None })
            }
        }
    }

    /// The uncompressed module files that provide `names`, and `optional` ones as far as they are there, with what they
    /// depend on, in loading order.
    /// A name that is built into the kernel needs no file; a kernel of which amphi knows no modules is taken
    /// to have everything built in.
    ///
    /// # Errors
    /// The kernel neither has a module of `names` nor has it built in.
    pub fn modules_for(&self, names: &[&str], optional: &[&str]) -> Result<Vec<PathBuf>, KernelError> {
        let Some(directory) = &self.modules else { return Ok(Vec::new()) };
        let release = || self.release.clone().unwrap_or_else(|| self.image.display().to_string());
        modules::loading_order(directory, names, optional, release)
    }
}

/// Opens a kernel's file. A pipe or a device is none, and is not waited for.
fn open(path: &Path) -> Result<File, KernelError> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(KernelError::read(path))?;
    let kind = file.metadata().map_err(KernelError::read(path))?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let reason = if kind.is_dir() { "it is a directory" } else { "it is not a regular file" };
    Err(KernelError::not_bootable(path, reason))
}

/// Whether a kernel's name given by the user means a file.
pub(crate) fn is_path(name: &Path) -> bool {
    name.as_os_str().as_encoded_bytes().contains(&b'/') || name.exists()
}

#[cfg(test)]
mod tests;
