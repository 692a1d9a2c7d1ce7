//! Where in a root a path leads: no further than the root, whatever links it goes through.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory, and a name in it: what [`pack`](super::pack) reads, and where an [`Unpacker`](super::Unpacker) writes.
#[derive(Debug)]
pub struct Place<'a> {
    /// The directory, which may be no good but for looking up names (`O_PATH`).
    pub directory: OwnedFd,
    /// The name, without a slash; `.` for the directory itself.
    pub name: &'a [u8],
}

impl<'a> Place<'a> {
    /// What is in `root` at `path`. Symbolic links on the way are followed inside the root; one at the path's end is the place itself,
    /// unless a slash, or `/.`, is behind it.
    ///
    /// # Errors
    /// Nothing is there, or it cannot be looked up.
    pub fn of_existing(root: BorrowedFd<'_>, path: &'a [u8]) -> Result<Self, Errno> {
        let (parent, name) = split(path);
        let directory = directory_in(root, parent)?;
        statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { directory, name })
    }

    /// Where the top of a tree goes that is put at `path` in `root`. Where `path` leads to a directory that is `name` in it, or with an
    /// empty `name` the directory itself. Where there is nothing at `path`, or no directory, it is `path`.
    ///
    /// # Errors
    /// The directory that is to have it is not there, or cannot be looked up.
    pub fn of_new(root: BorrowedFd<'_>, path: &'a [u8], name: &'a [u8]) -> Result<Self, Errno> {
        match directory_in(root, path) {
            Ok(directory) => Ok(Self { directory, name: if name.is_empty() { b"." } else { name } }),
            Err(Errno::NOENT | Errno::NOTDIR) => match split(path) {
                (_, b".") => Err(Errno::NOTDIR),
                (parent, name) => Ok(Self { directory: directory_in(root, parent)?, name }),
            },
            Err(errno) => Err(errno),
        }
    }
}

fn directory_in(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"/" } else { path };
    openat2(root.as_fd(), path, DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// The path of a file's directory, and the file's name there; the name is `.` where the path leads to a directory in any case.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    if matches!(name, b"" | b"." | b"..") { (path, b".") } else { (parent, name) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;
    use std::string::String;

    use super::super::files_tests::{Scratch, open};
    use super::*;

    /// A root beside something that does not belong to it.
    fn root(test: &str) -> (Scratch, OwnedFd) {
        let outer = Scratch::new(test);
        let top = outer.0.join("root");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/file"), "").unwrap();
        fs::create_dir(outer.0.join("secret")).unwrap();
        fs::write(outer.0.join("secret/key"), "").unwrap();
        symlink("/a", top.join("absolute")).unwrap();
        symlink("../../secret", top.join("a/out")).unwrap();
        symlink(outer.0.join("secret"), top.join("far")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        let fd = open(&top);
        (outer, fd)
    }

    fn shown(root: &Path, place: Result<Place<'_>, Errno>) -> Result<String, Errno> {
        let place = place?;
        let inode = rustix::fs::fstat(&place.directory)?.st_ino;
        let directory = ["", "a", "a/b"].into_iter().find(|path| root.join(path).metadata().unwrap().ino() == inode);
        Ok(std::format!("{} {}", directory.unwrap_or("outside"), String::from_utf8_lossy(place.name)))
    }

    #[test]
    fn what_is_there_is_found_inside_of_the_root_only() {
        let (outer, fd) = root("existing");
        let find = |path: &str| shown(&outer.0.join("root"), Place::of_existing(fd.as_fd(), path.as_bytes()));
        for path in ["a/file", "/a/file", "//a//file", "../a/file", "absolute/file", "a/b/../file", "/absolute/./file"]
        {
            assert_eq!(find(path), Ok("a file".to_owned()), "{path}");
        }
        for (path, expected) in [
            ("", " ."),
            ("/", " ."),
            ("..", " ."),
            ("a", " a"),
            ("a/", "a ."),
            ("absolute", " absolute"),
            ("absolute/.", "a ."),
        ] {
            assert_eq!(find(path), Ok(expected.to_owned()), "{path}");
        }
        assert_eq!(find("a/out"), Ok("a out".to_owned()), "the link itself");
        for path in ["a/out/key", "a/out/", "far/key", "../secret/key", "none", "none/file"] {
            assert_eq!(find(path), Err(Errno::NOENT), "{path}");
        }
        assert_eq!(find("loop/file"), Err(Errno::LOOP));
        assert_eq!(find("a/file/"), Err(Errno::NOTDIR));
    }

    #[test]
    fn what_is_new_goes_into_the_root_only() {
        let (outer, fd) = root("new");
        let place = |path: &str, name: &str| {
            shown(&outer.0.join("root"), Place::of_new(fd.as_fd(), path.as_bytes(), name.as_bytes()))
        };
        for (path, name, expected) in [
            ("a", "new", "a new"),
            ("absolute/b", "new", "a/b new"),
            ("a", "", "a ."),
            ("a/file", "new", "a file"),
            ("a/none", "new", "a none"),
            ("/", "new", " new"),
            ("../..", "new", " new"),
        ] {
            assert_eq!(place(path, name), Ok(expected.to_owned()), "{path}");
        }
        // A link that leads nowhere in the root is a name that is replaced.
        assert_eq!(place("a/out", "new"), Ok("a out".to_owned()));
        for (path, errno) in [
            ("none/new", Errno::NOENT),
            ("none/", Errno::NOTDIR),
            ("a/file/.", Errno::NOTDIR),
            ("far/new", Errno::NOENT),
        ] {
            assert_eq!(place(path, "new"), Err(errno), "{path}");
        }
    }
}
