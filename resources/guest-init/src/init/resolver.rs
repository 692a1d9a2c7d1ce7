//! The name servers, in `/etc/resolv.conf`.

use alloc::format;
use alloc::string::String;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use super::failure::{Context, Failure};
use super::root::make_directories;

const FILE: &str = "/etc/resolv.conf";
/// Where the contents are made, for a moment.
const SCRATCH: &str = "/dev/.resolv.conf";

/// Puts a file with `servers` over that of the image, which stays as it is. An image that has none, and takes none, is
/// left without.
pub(super) fn configure(servers: &[[u8; 4]]) -> Result<(), Failure> {
    if servers.is_empty() || !make_place() {
        return Ok(());
    }
    let text: String = servers.iter().map(|[a, b, c, d]| format!("nameserver {a}.{b}.{c}.{d}\n")).collect();
    write(text.as_bytes())
        .and_then(|()| mount_bind(SCRATCH, FILE))
        .and_then(|()| rustix::fs::unlink(SCRATCH))
        .context(|| format!("cannot put the name servers in {FILE}"))
}

/// Whether there is a file to put another one over; made where there is none.
fn make_place() -> bool {
    let exists = || rustix::fs::stat(FILE).is_ok();
    if exists() {
        return true;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let make = || rustix::fs::openat(CWD, FILE, flags, Mode::from_raw_mode(0o644)).is_ok();
    let _ = make_directories(b"/etc");
    // A link may lead to where nothing is, such as the folder of a resolver that does not run here.
    make() || (rustix::fs::unlink(FILE).is_ok() && make())
}

fn write(bytes: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(SCRATCH, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&file, bytes).map(drop)
}
