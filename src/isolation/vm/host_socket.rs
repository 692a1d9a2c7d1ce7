//! The UNIX socket at which programs of the host reach a guest.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::error::VmError;

/// A listening socket's name in the file system, removed when dropped.
pub(super) struct HostSocket {
    path: PathBuf,
    /// Device and inode: what somebody else has put in the name's place meanwhile is left alone.
    identity: (u64, u64),
}

impl HostSocket {
    /// Listens at `path`. A socket that a killed process has left there is replaced; anything else is an error.
    pub(super) fn bind(path: &Path) -> Result<(Self, UnixListener), VmError> {
        let error = |source| VmError::Socket { path: path.to_owned(), source };
        let listener = match UnixListener::bind(path) {
            Err(taken) if taken.kind() == ErrorKind::AddrInUse => {
                remove_stale(path).map_err(error)?;
                UnixListener::bind(path)
            }
            result => result,
        };
        let listener = listener.map_err(error)?;
        let identity = identity(path).map_err(error)?;
        Ok((Self { path: path.to_owned(), identity }, listener))
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes a socket at which nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "there is a file which is not a socket: name another path",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another program listens there: name another path")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_there_as_long_as_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (socket, listener) = HostSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = HostSocket::bind(&path).err().map(|error| error.to_string()).unwrap();
        assert!(error.contains("--vsock") && error.contains(path.to_str().unwrap()), "{error}");
        UnixStream::connect(&path).unwrap();
        drop((socket, listener));
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_replaced_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (socket, _listener) = HostSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(socket);
        assert!(HostSocket::bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    }
}
