//! Why a container could not be run.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use amphi_guest_init::path::{ExecFailure, classify};
use amphi_guest_init::user::UserError;

use super::devices::DEVICES;
use super::mounts::{MASKED, READ_ONLY};
use super::process::Process;
use super::step::{Failure, Step};
use super::volumes::Volume;
use crate::isolation::IsolationError;
use crate::isolation::writable_disk::WritableDiskError;

/// Why a container could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The image's layers cannot be unpacked, where they cannot be mounted.
    #[error("cannot unpack the image")]
    Unpack(#[source] Box<crate::image::StoreError>),
    /// The root file system is a disk image.
    #[error("a disk image can only be run with --isolation vm")]
    DiskImage,
    /// A setting that only a microVM has.
    #[error("{0} has no meaning for a container: it needs --isolation vm")]
    VmOnly(&'static str),
    /// The folder for the writable layer cannot be used.
    #[error("cannot keep the writable layer in {path}", path = path.display())]
    KeptLayer {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A container whose amphi was killed has not ended yet.
    #[error(
        "amphi was killed in the last run, and process {0} of its container has not ended yet, so that its files may still change: try again later"
    )]
    LastRun(i32),
    /// There is no folder with a writable layer.
    #[error("this run's writable layer was not kept")]
    NoKeptLayer,
    /// Image and writable layer can be looked at together by root only.
    #[error(
        "without root's privileges amphi cannot put the image and what a container has written together: run amphi as root"
    )]
    MergeNeedsRoot,
    /// What an instance has written cannot be read, or be changed.
    #[error("{what}")]
    KeptFiles {
        /// What was attempted.
        what: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A limit for a writable layer that is to stay, which takes a mount.
    #[error(
        "--storage-opt: without root's privileges only a layer in memory can have a limit: use --rm as well, or run amphi as root"
    )]
    LimitOfKept,
    /// The file system that limits a writable layer cannot be made or used.
    #[error(transparent)]
    WritableDisk(#[from] WritableDiskError),
    /// A network other than none.
    #[error("--network: a container has none as yet: use --network none, or --isolation vm")]
    Network,
    /// There is nothing to execute.
    #[error("no command to run: the argument list is empty")]
    NoCommand,
    /// An argument that no process can be given.
    #[error("{0} contains a NUL byte")]
    NulByte(&'static str),
    /// The image's directory cannot be opened.
    #[error("cannot open the root directory {path}", path = path.display())]
    Rootfs {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The image's user database cannot be read.
    #[error("cannot read /{name} of the image")]
    Database {
        /// The file, below the image's root.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The user does not exist in the image.
    #[error("cannot run as --user {user:?}")]
    User {
        /// The user as given.
        user: String,
        /// Why not.
        source: UserError,
    },
    /// The user exists, but the user namespace has no such id.
    #[error("cannot run as user {user} and group {group}: {reason}")]
    NotMapped {
        /// The user's number.
        user: u32,
        /// The group's number.
        group: u32,
        /// Which there are.
        reason: &'static str,
    },
    /// What a volume shares cannot be shared.
    #[error("--volume: cannot share {path} with the container", path = path.display())]
    Volume {
        /// The host's directory or file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The working directory is none, or cannot be made.
    #[error("cannot use the working directory {path}", path = path.display())]
    WorkingDirectory {
        /// The directory, inside the container.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A limit cannot be set on this host.
    #[error("cannot honour {flag}: {problem}")]
    Limit {
        /// The command line's name for it.
        flag: &'static str,
        /// What stands in the way, and where.
        problem: String,
        /// What the operating system says, where it was asked.
        source: Option<io::Error>,
    },
    /// The cgroup cannot be entered.
    #[error("cannot put the container into the cgroup {path}", path = path.display())]
    Cgroup {
        /// The cgroup's directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The kernel refused what the parent asks of it.
    #[error("cannot {action}{hint}", hint = hint.map(|h| format!(" ({h})")).unwrap_or_default())]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What may mend it.
        hint: Option<&'static str>,
        /// What the operating system says.
        source: io::Error,
    },
    /// The child could not set the container up.
    #[error("cannot {step}{item}", item = item.as_ref().map(|i| format!(" ({i})")).unwrap_or_default())]
    SetUp {
        /// What was attempted.
        step: String,
        /// On what.
        item: Option<String>,
        /// What the operating system says.
        source: io::Error,
    },
    /// The container's first process was killed while it was being set up.
    #[error("the container's first process was killed before the command ran; it may have run out of memory")]
    Died,
    /// [`Sandbox::start`](crate::Sandbox::start) was called twice.
    #[error("the container has been started already")]
    StartedTwice,
    /// There is nothing to wait for.
    #[error("the container has not been started")]
    NotStarted,
    /// This host cannot run containers.
    #[error("this host cannot run containers: {0}")]
    Unsupported(String),
}

impl ContainerError {
    /// An error of the parent's own attempt to do `action`.
    pub(super) fn kernel(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Kernel { action, hint: None, source: errno.into() }
    }
}

/// What the child that was to run `process` reported, as an error of the whole isolation.
pub(super) fn from_child(failure: Failure, process: &Process, volumes: &[Volume]) -> IsolationError {
    let errno = failure.errno.raw_os_error();
    let source = io::Error::from_raw_os_error(errno);
    if failure.step == Step::Execute {
        let command = process.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return match classify(errno) {
            ExecFailure::NotFound => IsolationError::CommandNotFound(command),
            ExecFailure::NotExecutable(_) => {
                IsolationError::CommandNotExecutable { command, reason: source.to_string() }
            }
        };
    }
    if let (Step::WorkingDirectory, Some(path)) = (failure.step, process.cwd.last()) {
        let path = PathBuf::from(OsStr::from_bytes(path.to_bytes()));
        return ContainerError::WorkingDirectory { path, source }.into();
    }
    let index = failure.index as usize;
    if let (Step::Volume, Some(path)) =
        (failure.step, volumes.get(failure.index as usize).and_then(Volume::destination))
    {
        return ContainerError::SetUp {
            step: failure.step.to_string(),
            item: Some(path.display().to_string()),
            source,
        }
        .into();
    }
    let item = match failure.step {
        Step::MakeDevice => DEVICES.get(index).map(|&(_, path)| path),
        Step::MaskPath => MASKED.get(index).copied(),
        Step::ReadOnlyPath => READ_ONLY.get(index).copied(),
        _ => None,
    };
    let item = item.map(|path| path.to_string_lossy().into_owned());
    ContainerError::SetUp { step: failure.step.to_string(), item, source }.into()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn process() -> Process {
        Process {
            candidates: Vec::new(),
            argv: vec![c"x".to_owned()],
            env: Vec::new(),
            cwd: vec![c"/a".to_owned(), c"/a/b".to_owned()],
            uid: rustix::process::Uid::ROOT,
            gid: rustix::process::Gid::ROOT,
            groups: Vec::new(),
        }
    }

    fn code(step: Step, errno: Errno) -> u8 {
        from_child(Failure { step, errno, index: 0 }, &process(), &[]).exit_code()
    }

    #[test]
    fn exit_codes_are_dockers() {
        assert_eq!(code(Step::Execute, Errno::NOENT), 127);
        assert_eq!(code(Step::Execute, Errno::ACCESS), 126);
        assert_eq!(code(Step::Execute, Errno::NOEXEC), 126);
        assert_eq!(code(Step::Overlay, Errno::NOENT), 125);
    }

    #[test]
    fn items_are_named() {
        let error = from_child(Failure { step: Step::MakeDevice, errno: Errno::PERM, index: 1 }, &process(), &[]);
        assert_eq!(error.to_string(), "cannot make a device in /dev (/dev/zero)");
        let error =
            from_child(Failure { step: Step::WorkingDirectory, errno: Errno::NOTDIR, index: 0 }, &process(), &[]);
        assert_eq!(error.to_string(), "cannot use the working directory /a/b");
    }
}
