//! The extended attributes that belong to an image.

use std::io;
use std::path::Path;

use rustix::io::Errno;

/// The most bytes that Linux gives for a list of names, or for one value.
const LIMIT: usize = 64 << 10;

/// Names with their values, in the order of the names.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What `path`, not followed if it is a symbolic link, has of the attributes that mean the same on another machine:
/// those of users, access control lists and capabilities. Labels of security modules and what overlayfs leaves
/// are this host's own.
pub(crate) fn read(path: &Path) -> io::Result<Attributes> {
    // Nearly no file has any; asking for the length first needs no buffer then.
    match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(_) | Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut names = vec![0; LIMIT];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut value = vec![0; LIMIT];
    let mut attributes = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| is_portable(name)) {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => attributes.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// Whether an attribute of that name, in an image from elsewhere, is part of it: what [`read`] takes, but for the notes that
/// overlayfs keeps in a user namespace, by which an image could reach files that are hidden.
pub(crate) fn belongs_to_images(name: &[u8]) -> bool {
    is_portable(name) && !name.starts_with(b"user.overlay.")
}

fn is_portable(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_travels_is_taken() {
        for name in ["user.a", "security.capability", "system.posix_acl_access"] {
            assert!(is_portable(name.as_bytes()), "{name}");
        }
        for name in ["", "security.selinux", "trusted.overlay.opaque", "system.nfs4_acl"] {
            assert!(!is_portable(name.as_bytes()), "{name}");
        }
        assert_eq!(read(Path::new("/proc/self/stat")).unwrap(), []);
        assert!(read(Path::new("/proc/self/nonexistent")).is_err());
    }
}
