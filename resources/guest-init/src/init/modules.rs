//! Loading kernel modules.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use amphi_guest_init::MODULES_DIR;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failure::{Context, Failure};

/// `MODULE_INIT_COMPRESSED_FILE` of `finit_module(2)`.
const COMPRESSED: i32 = 4;

/// Loads the modules in order, each with those of `parameters` that are its own, and removes it from the initramfs, whose files
/// take up memory.
pub(super) fn load(names: &[String], parameters: &[String]) -> Result<(), Failure> {
    for name in names {
        let path = format!("{MODULES_DIR}/{name}");
        let what = || format!("cannot load the kernel module {name}");
        let file = rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
        let flags = if name.ends_with(".ko") { 0 } else { COMPRESSED };
        match rustix::system::finit_module(&file, &parameters_of(name, parameters), flags) {
            // Built in, or loaded already.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(what),
        }
        let _ = rustix::fs::unlink(&*path);
    }
    Ok(())
}

/// What the module in the file `NUMBER-MODULE.ko...` is told.
fn parameters_of(name: &str, parameters: &[String]) -> CString {
    let module = name.split_once('-').map_or(name, |(_, module)| module);
    let module = module.split('.').next().unwrap_or(module).replace('-', "_");
    let own: Vec<&str> =
        parameters.iter().filter_map(|parameter| parameter.strip_prefix(&*module)?.strip_prefix('.')).collect();
    CString::new(own.join(" ")).unwrap_or_default()
}
