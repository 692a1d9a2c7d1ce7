//! Loading kernel modules.

use alloc::format;
use alloc::string::String;

use amphi_guest_init::MODULES_DIR;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failure::{Context, Failure};

/// `MODULE_INIT_COMPRESSED_FILE` of `finit_module(2)`.
const COMPRESSED: i32 = 4;

/// Loads the modules in order, and removes each from the initramfs, whose files take up memory.
pub(super) fn load(names: &[String]) -> Result<(), Failure> {
    for name in names {
        let path = format!("{MODULES_DIR}/{name}");
        let what = || format!("cannot load the kernel module {name}");
        let file = rustix::fs::open(&*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
        let flags = if name.ends_with(".ko") { 0 } else { COMPRESSED };
        match rustix::system::finit_module(&file, c"", flags) {
            // Built in, or loaded already.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(what),
        }
        let _ = rustix::fs::unlink(&*path);
    }
    Ok(())
}
