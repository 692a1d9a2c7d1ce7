//! The workload's process, prepared as far as it can be before the child exists.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use amphi_guest_init::{path, user};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::error::ContainerError;
use crate::spec;

/// A process as the kernel takes it.
#[derive(Debug)]
pub(super) struct Process {
    /// The paths to try, in order, inside the container.
    pub(super) candidates: Vec<CString>,
    /// Program and arguments.
    pub(super) argv: Vec<CString>,
    /// The whole environment, as `KEY=VALUE`.
    pub(super) env: Vec<CString>,
    /// The working directory's ancestors from the top down, then itself; empty for `/`.
    pub(super) cwd: Vec<CString>,
    /// The user.
    pub(super) uid: Uid,
    /// The group.
    pub(super) gid: Gid,
    /// The supplementary groups.
    pub(super) groups: Vec<Gid>,
}

impl Process {
    /// Works out `process` for a container whose image is the directory `root`.
    pub(super) fn prepare(
        process: &spec::Process,
        root: BorrowedFd<'_>,
        hostname: &[u8],
    ) -> Result<Self, ContainerError> {
        let wanted = process.user.as_deref().unwrap_or_default();
        let who = user::resolve(&read(root, "etc/passwd")?, &read(root, "etc/group")?, wanted.as_bytes())
            .map_err(|source| ContainerError::User { user: wanted.to_owned(), source })?;
        let extra: Vec<Vec<u8>> =
            process.env.iter().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat()).collect();
        let env = path::environment(&extra, &who.home, hostname, process.terminal.is_some());
        let command = process.argv.first().ok_or(ContainerError::NoCommand)?;
        let candidates = path::candidates(command.as_bytes(), path::variable(&env, b"PATH"));
        Ok(Self {
            candidates: c_strings("the command", candidates)?,
            argv: c_strings("the command", process.argv.iter().map(|a| a.clone().into_vec()))?,
            env: c_strings("the environment", env)?,
            cwd: ancestors("the working directory", &process.cwd)?,
            uid: Uid::from_raw(who.uid),
            gid: Gid::from_raw(who.gid),
            groups: who.groups.into_iter().map(Gid::from_raw).collect(),
        })
    }
}

fn c_strings(what: &'static str, list: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, ContainerError> {
    list.into_iter().map(|bytes| CString::new(bytes).map_err(|_| ContainerError::NulByte(what))).collect()
}

/// `/a`, `/a/b`, `/a/b/c` for `/a/b/c`. The container's root is the top: `..` cannot leave it.
pub(super) fn ancestors(what: &'static str, path: &Path) -> Result<Vec<CString>, ContainerError> {
    let components = path.components();
    let mut path = Vec::new();
    let mut all = Vec::new();
    for component in components {
        if let Component::Normal(_) | Component::ParentDir = component {
            path.push(b'/');
            path.extend_from_slice(component.as_os_str().as_bytes());
            all.push(path.clone());
        }
    }
    c_strings(what, all)
}

/// Reads a database of the image. Symlinks stay inside `root`, special files are not waited for.
fn read(root: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, ContainerError> {
    let error = |source: std::io::Error| ContainerError::Database { name: name.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, OsStr::new(name), flags, Mode::empty(), resolve) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(error(errno.into())),
    };
    if !file.metadata().map_err(error)?.is_file() {
        return Ok(Vec::new());
    }
    let mut contents = Vec::new();
    file.take(user::DATABASE_LIMIT).read_to_end(&mut contents).map_err(error)?;
    Ok(contents)
}

/// The image's directory, opened for [`Process::prepare`].
pub(super) fn open_root(root: &Path) -> Result<std::os::fd::OwnedFd, ContainerError> {
    rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ContainerError::Rootfs { path: root.to_owned(), source: errno.into() })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn process(user: Option<&str>) -> spec::Process {
        spec::Process {
            argv: vec!["sh".into(), "-c".into()],
            env: vec![("PATH".into(), "/x:/y".into())],
            cwd: "/a/../b".into(),
            user: user.map(str::to_owned),
            terminal: None,
            stdin: false,
        }
    }

    #[test]
    fn a_process_is_looked_up_inside_the_image() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        // Escapes the image for whoever follows it from the host.
        std::os::unix::fs::symlink("/real", image.path().join("etc/passwd")).unwrap();
        std::fs::write(image.path().join("real"), "amphi-test:x:7:8::/h:/bin/sh\n").unwrap();
        let root = open_root(image.path()).unwrap();
        let found = Process::prepare(&process(Some("amphi-test")), root.as_fd(), b"box").unwrap();
        assert_eq!((found.uid.as_raw(), found.gid.as_raw()), (7, 8));
        assert_eq!(found.candidates, [c"/x/sh".to_owned(), c"/y/sh".to_owned()]);
        assert_eq!(found.cwd, [c"/a".to_owned(), c"/a/..".to_owned(), c"/a/../b".to_owned()]);
        assert!(found.env.contains(&c"HOME=/h".to_owned()));
        let unknown = Process::prepare(&process(Some("nobody-here")), root.as_fd(), b"box");
        assert!(matches!(unknown, Err(ContainerError::User { .. })));
    }

    #[test]
    fn what_c_cannot_say_is_refused() {
        let image = tempfile::tempdir().unwrap();
        let root = open_root(image.path()).unwrap();
        let mut with_nul = process(None);
        with_nul.argv.push("a\0b".into());
        assert!(matches!(Process::prepare(&with_nul, root.as_fd(), b"b"), Err(ContainerError::NulByte(_))));
    }

    #[test]
    fn a_fifo_for_a_database_is_not_waited_for() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, image.path().join("etc/passwd"), kind, Mode::RUSR, 0).unwrap();
        let root = open_root(image.path()).unwrap();
        assert_eq!(Process::prepare(&process(None), root.as_fd(), b"b").unwrap().uid, Uid::ROOT);
    }
}
