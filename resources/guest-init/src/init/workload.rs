//! The workload's process: who it is, what it sees, and its start.

use alloc::boxed::Box;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::ptr::null;

use amphi_guest_init::path::{self, ExecFailure};
use amphi_guest_init::user::{self, Credentials, DATABASE_LIMIT};
use amphi_guest_init::{FromGuest, InitSpec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::failure::{Context, Failure};
use super::root::make_directories;
use crate::syscall;

/// The stack of the child until it executes the workload, in bytes.
const CHILD_STACK: usize = 64 << 10;

/// How many files a process may have open: the soft and the hard limit that system managers usually set.
const OPEN_FILES: (u64, u64) = (1024, 512 << 10);

/// Why the workload did not start.
pub(super) enum StartError {
    /// The command is at fault, in the way that the message says.
    Command(FromGuest),
    /// Something else is.
    Setup(Failure),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self::Setup(failure)
    }
}

/// A workload that is ready to start.
pub(super) struct Workload {
    command: Vec<u8>,
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    cwd: CString,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    cgroup: Option<OwnedFd>,
}

/// A workload that runs.
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) streams: Streams,
    /// Readable when a child has ended.
    pub(super) children: OwnedFd,
}

/// This side of the workload's standard streams.
pub(super) enum Streams {
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    Terminal { master: OwnedFd, slave: OwnedFd },
}

impl Workload {
    /// Finds out all that can be known before the start, inside the workload's root.
    pub(super) fn prepare(spec: &InitSpec, cgroup: Option<OwnedFd>) -> Result<Self, Failure> {
        let Credentials { uid, gid, groups, home } =
            user::resolve(&database(c"/etc/passwd")?, &database(c"/etc/group")?, &spec.user).map_err(|error| {
                Failure(format!("cannot run as --user {:?}: {error}", String::from_utf8_lossy(&spec.user)))
            })?;
        let environment = path::environment(&spec.env, &home, &spec.hostname, spec.terminal.is_some());
        let command = spec.argv.first().cloned().unwrap_or_default();
        let programs = path::candidates(&command, path::variable(&environment, b"PATH"));
        let cwd = if spec.cwd.starts_with(b"/") { spec.cwd.clone() } else { [b"/", &*spec.cwd].concat() };
        make_directories(&cwd)
            .context(|| format!("cannot use the working directory {}", String::from_utf8_lossy(&cwd)))?;
        Ok(Self {
            command,
            programs: strings(programs)?,
            arguments: strings(spec.argv.clone())?,
            environment: strings(environment)?,
            cwd: CString::new(cwd).map_err(|_| zero_byte())?,
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: groups.into_iter().map(Gid::from_raw).collect(),
            cgroup,
        })
    }

    /// Starts the workload on a terminal of that size, or on pipes.
    pub(super) fn start(self, terminal: Option<(u16, u16)>, stdin: bool) -> Result<Running, StartError> {
        let (streams, [input, output, error]) = match terminal {
            Some(size) => open_terminal(size).context(|| "cannot open a terminal".into())?,
            None => open_pipes(stdin).context(|| "cannot open pipes".into())?,
        };
        // So that also a workload that is not root may open them by name: many images log to /dev/stdout.
        let no_input = matches!(streams, Streams::Pipes { stdin: None, .. });
        for end in [&input, &output, &error].into_iter().skip(usize::from(no_input)) {
            rustix::fs::fchown(end, Some(self.uid), None).context(|| "cannot hand the streams over".into())?;
        }
        let (soft, hard) = OPEN_FILES;
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        rustix::process::setrlimit(Resource::Nofile, limit).context(|| "cannot set resource limits".into())?;
        let children = syscall::child_events().context(|| "cannot wait for the workload".into())?;

        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let mut child = Child {
            workload: &self,
            streams: [input.as_fd(), output.as_fd(), error.as_fd()],
            terminal: terminal.is_some(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            failed: None,
        };
        let mut stack: Box<[u8]> = vec![0; CHILD_STACK].into();
        // SAFETY: `child_main` takes a `Child`, which lives on while this process stands still.
        let pid = unsafe { syscall::spawn(child_main, (&raw mut child).cast(), &mut stack) };
        let pid = pid.context(|| "cannot make a process for the workload".into())?;
        let Some(failed) = child.failed else { return Ok(Running { pid, streams, children }) };
        let command = self.command;
        Err(match failed {
            Failed::Execute(ExecFailure::NotFound) => StartError::Command(FromGuest::CommandNotFound { command }),
            Failed::Execute(ExecFailure::NotExecutable(errno)) => {
                StartError::Command(FromGuest::CommandNotExecutable { command, errno })
            }
            Failed::Setup(what, errno) => StartError::Setup(failure(what, errno)),
        })
    }
}

/// What the child could not do.
enum Failed {
    Setup(&'static str, Errno),
    Execute(ExecFailure),
}

fn failure(what: &str, errno: Errno) -> Failure {
    match Err::<(), _>(errno).context(|| what.into()) {
        Err(failure) => failure,
        Ok(()) => Failure(what.into()),
    }
}

/// What the child needs, in memory that it shares with PID 1; all of it is made before, as the child must not allocate.
struct Child<'a> {
    workload: &'a Workload,
    /// Standard input, output and error; numbers above 2.
    streams: [BorrowedFd<'a>; 3],
    terminal: bool,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// Set by the child where it fails.
    failed: Option<Failed>,
}

/// # Safety
/// `argument` points to a [`Child`] that nobody else uses until this ends or has executed the workload.
unsafe extern "C" fn child_main(argument: *mut c_void) -> ! {
    // SAFETY: the caller's promise.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let failed = match child.become_workload() {
        Ok(()) => {
            let programs = child.workload.programs.iter();
            // SAFETY: `pointers` made both lists, of strings that `workload` and `start` keep.
            let execute = |program: &CString| unsafe {
                syscall::execute(program, child.arguments, child.environment).raw_os_error()
            };
            Failed::Execute(path::search(programs, execute))
        }
        Err((what, errno)) => Failed::Setup(what, errno),
    };
    child.failed = Some(failed);
    syscall::exit(127)
}

impl Child<'_> {
    /// All that the new process changes in itself; system calls only.
    fn become_workload(&self) -> Result<(), (&'static str, Errno)> {
        let workload = self.workload;
        if let Some(cgroup) = &workload.cgroup {
            rustix::io::write(cgroup, b"0").map_err(|e| ("cannot enter the workload's cgroup", e))?;
        }
        rustix::process::setsid().map_err(|e| ("cannot start a session", e))?;
        let [input, output, error] = self.streams;
        if self.terminal {
            rustix::process::ioctl_tiocsctty(input).map_err(|e| ("cannot take the terminal", e))?;
        }
        rustix::stdio::dup2_stdin(input)
            .and_then(|()| rustix::stdio::dup2_stdout(output))
            .and_then(|()| rustix::stdio::dup2_stderr(error))
            .map_err(|e| ("cannot connect the standard streams", e))?;
        rustix::process::chdir(&workload.cwd).map_err(|e| ("cannot enter the working directory", e))?;
        rustix::thread::set_thread_groups(&workload.groups).map_err(|e| ("cannot set groups", e))?;
        rustix::thread::set_thread_gid(workload.gid).map_err(|e| ("cannot set the group", e))?;
        rustix::thread::set_thread_uid(workload.uid).map_err(|e| ("cannot set the user", e))?;
        syscall::set_signal_mask(0).map_err(|e| ("cannot unblock signals", e))
    }
}

/// This side of the standard streams, and the workload's.
type Ends = (Streams, [OwnedFd; 3]);

fn open_pipes(stdin: bool) -> Result<Ends, Errno> {
    let ours = |fd: OwnedFd| rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).map(|()| fd);
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (stdout, output) = pipe()?;
    let (stderr, error) = pipe()?;
    let (stdin, input) = if stdin {
        let (input, stdin) = pipe()?;
        (Some(ours(stdin)?), input)
    } else {
        (None, rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    };
    Ok((Streams::Pipes { stdin, stdout: ours(stdout)?, stderr: ours(stderr)? }, [input, output, error]))
}

fn open_terminal((rows, columns): (u16, u16)) -> Result<Ends, Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&slave, 3);
    let ends = [copy()?, copy()?, copy()?];
    Ok((Streams::Terminal { master, slave }, ends))
}

/// The contents of a user database; nothing where there is none.
fn database(path: &CStr) -> Result<Vec<u8>, Failure> {
    let what = || format!("cannot read {}", path.to_string_lossy());
    // Not to wait for whatever the image may have put there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        opened => opened.context(what)?,
    };
    if rustix::fs::fstat(&file).context(what)?.st_size > DATABASE_LIMIT.cast_signed() {
        return Err(Failure(format!("{} is too large", path.to_string_lossy())));
    }
    super::read_to_end(&file).context(what)
}

fn zero_byte() -> Failure {
    Failure("a command, variable or path has a zero byte in it".into())
}

fn strings(list: Vec<Vec<u8>>) -> Result<Vec<CString>, Failure> {
    list.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| zero_byte())
}

/// The list as `execve(2)` takes it; it must not outlive `list`.
fn pointers(list: &[CString]) -> Vec<*const c_char> {
    list.iter().map(|string| string.as_ptr()).chain([null()]).collect()
}
