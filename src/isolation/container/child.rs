//! The child's side, from its first instruction to the workload's: ordered steps.
//!
//! The parent may have had other threads, so nothing here allocates, locks or panics; all that needs
//! it has been prepared in a [`Plan`]. The child becomes PID 1 and forks the workload, because the kernel shields PID 1
//! from signals, and a workload must be able to end by one.

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use amphi_guest_init::path::{ExecFailure, search};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid, chdir, setsid};
use rustix::thread::UnshareFlags;

use super::arguments::Arguments;
use super::handover::{self, Received};
use super::mounts::{MountPlan, Root, make_read_only};
use super::process::Process;
use super::report::Report;
use super::step::{At, Failure, Step};
use super::syscalls::{self, Side};
use super::{capabilities, init, loopback, seccomp, terminal};
use crate::spec::WindowSize;

/// Everything the child needs. All descriptors are above 2.
pub(super) struct Plan<'a> {
    /// The host name.
    pub(super) hostname: &'a [u8],
    /// The file systems.
    pub(super) mounts: MountPlan<'a>,
    /// The workload.
    pub(super) process: &'a Process,
    /// Its arguments, null-terminated.
    pub(super) argv: &'a [*const c_char],
    /// Its environment, null-terminated.
    pub(super) env: &'a [*const c_char],
    /// Where this process's own arguments are, which tell of the host.
    pub(super) arguments: Option<Arguments>,
    /// Its standard input; `None` is end-of-file.
    pub(super) stdin: Option<BorrowedFd<'a>>,
    /// Its standard output.
    pub(super) stdout: BorrowedFd<'a>,
    /// Its standard error.
    pub(super) stderr: BorrowedFd<'a>,
    /// Its terminal, which then takes the place of all three.
    pub(super) terminal: Option<WindowSize>,
    /// Whether the user namespace lets groups be set.
    pub(super) set_groups: bool,
    /// The parent's word that the id maps are written, then signals for the workload; its end is the container's end.
    pub(super) control: BorrowedFd<'a>,
    /// All descriptors to keep, in ascending order.
    pub(super) keep: &'a [RawFd],
    /// Where to report.
    pub(super) report: &'a Report,
}

/// Ends the process where an unwinding panic would run the parent's code a second time.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        syscalls::exit(125);
    }
}

/// Runs the container in this process, which has just been cloned with all signals blocked.
pub(super) fn run(plan: &Plan<'_>) -> ! {
    let _guard = AbortOnUnwind;
    plan.report.mark_first_instruction();
    match set_up(plan) {
        Ok(workload) => init::run(plan.control, workload, plan.report),
        Err(failure) => {
            plan.report.fail(failure);
            syscalls::exit(125)
        }
    }
}

/// Does everything and returns the workload's process id.
fn set_up(plan: &Plan<'_>) -> Result<i32, Failure> {
    // Handlers are gone already, but a parent that ignores SIGCHLD would leave PID 1 without children to wait for.
    syscalls::reset_signal_actions();
    if let Some(arguments) = plan.arguments {
        // SAFETY: this is a copy of the process that they were looked up in, and nothing in it reads them any more.
        unsafe { arguments.replace(b"amphi-init") };
    }
    syscalls::close_all_but(plan.keep).at(Step::CloseFiles)?;
    setsid().at(Step::NewSession)?;
    rustix::system::sethostname(plan.hostname).at(Step::Hostname)?;
    loopback::bring_up().at(Step::Loopback)?;

    let overlay = wait_for_parent(plan.control)?;
    // Only now is the cgroup the final one, which becomes the root of what the namespace shows.
    // SAFETY: no thread shares this process's file descriptors, and a cgroup namespace touches none.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }.at(Step::CgroupNamespace)?;
    become_root(plan.set_groups).at(Step::BecomeRoot)?;

    let root = Root::build(&plan.mounts, overlay)?;
    let terminal = match plan.terminal {
        Some(size) => {
            let (dev, pts) = root.terminals();
            Some(terminal::open(dev, pts, size, plan.process.uid, plan.control).at(Step::Terminal)?)
        }
        None => None,
    };
    let root = root.enter()?;
    enter_directory(&plan.process.cwd).at(Step::WorkingDirectory)?;
    if plan.mounts.read_only {
        make_read_only(root.as_fd())?;
    }
    drop(root);

    rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivileges)?;
    capabilities::limit_bounding_set().at(Step::BoundingSet)?;
    crate::host::seccomp::install(&seccomp::FILTER).at(Step::Seccomp)?;
    // SAFETY: the child's side neither allocates nor locks, and ends in `execve` or `exit`.
    match unsafe { syscalls::fork() }.at(Step::Fork)? {
        Side::Parent(workload) => Ok(workload),
        Side::Child => {
            let Err(failure) = execute(plan, terminal.as_ref().map(AsFd::as_fd));
            plan.report.fail(failure);
            syscalls::exit(125)
        }
    }
}

/// Blocks until the parent has written the id maps and the cgroups, and returns the overlay if it has made that too.
fn wait_for_parent(control: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Failure> {
    match handover::receive(control).at(Step::WaitForParent)? {
        // The parent is gone, and with it everyone who would read a report.
        Received::End => syscalls::exit(125),
        Received::Word => Ok(None),
        Received::Descriptor(overlay) => Ok(Some(overlay)),
    }
}

fn become_root(set_groups: bool) -> Result<(), Errno> {
    if set_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    // PID 1 is a copy of amphi: /proc/1/exe is a door to the host's binary, which this closes (CVE-2019-5736).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Enters the last of `path`, whose ancestors come before it, and makes what is missing.
fn enter_directory(path: &[CString]) -> Result<(), Errno> {
    let Some(full) = path.last() else { return Ok(()) };
    match chdir(full.as_c_str()) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    for directory in path {
        match rustix::fs::mkdir(directory.as_c_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    chdir(full.as_c_str())
}

/// The workload's side of the fork.
fn execute(plan: &Plan<'_>, terminal: Option<BorrowedFd<'_>>) -> Result<Infallible, Failure> {
    if terminal.is_some() {
        setsid().at(Step::NewSession)?;
    } else {
        // PID 1's session has no terminal already. Another session would cost a busy host milliseconds: with
        // sched_autogroup each has to wait for its first turn. A group of its own keeps `kill 0` from PID 1.
        rustix::process::setpgid(None, None).at(Step::NewSession)?;
    }
    connect(plan, terminal)?;
    limit_resources().at(Step::Limits)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let process = plan.process;
    if plan.set_groups {
        rustix::thread::set_thread_groups(&process.groups).at(Step::Groups)?;
    }
    rustix::thread::set_thread_res_gid(process.gid, process.gid, process.gid).at(Step::Groups)?;
    rustix::thread::set_thread_res_uid(process.uid, process.uid, process.uid).at(Step::User)?;
    // The kernel has cleared the capabilities of any other user.
    if process.uid.is_root() {
        capabilities::keep_default_set().at(Step::Capabilities)?;
    }
    syscalls::set_signal_mask(0);
    plan.report.mark_init_ready();
    let failure = search(&process.candidates, |program: &CString| {
        // SAFETY: the plan's arrays are null-terminated and point to C strings that outlive it.
        unsafe { syscalls::execve(program, plan.argv.as_ptr(), plan.env.as_ptr()) }.raw_os_error()
    });
    let errno = match failure {
        ExecFailure::NotFound => Errno::NOENT,
        ExecFailure::NotExecutable(errno) => Errno::from_raw_os_error(errno),
    };
    Err(errno).at(Step::Execute)
}

fn connect(plan: &Plan<'_>, terminal: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(terminal).at(Step::ControllingTerminal)?;
        dup2_stdin(terminal).at(Step::StandardStreams)?;
        dup2_stdout(terminal).at(Step::StandardStreams)?;
        return dup2_stderr(terminal).at(Step::StandardStreams);
    }
    match plan.stdin {
        Some(stdin) => dup2_stdin(stdin).at(Step::StandardStreams)?,
        None => {
            let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .at(Step::StandardStreams)?;
            if null.as_raw_fd() == 0 {
                // It is where it has to be, but must outlive this scope and the `execve`.
                rustix::io::fcntl_setfd(&null, rustix::io::FdFlags::empty()).at(Step::StandardStreams)?;
                std::mem::forget(null);
            } else {
                dup2_stdin(&null).at(Step::StandardStreams)?;
            }
        }
    }
    dup2_stdout(plan.stdout).at(Step::StandardStreams)?;
    dup2_stderr(plan.stderr).at(Step::StandardStreams)
}

/// How many files a process may have open: as in a microVM, and what system managers usually set.
pub(super) const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(512 << 10) };
/// No core files, which nobody would find, unless the workload asks for them.
const CORE_FILES: Rlimit = Rlimit { current: Some(0), maximum: None };

/// The usual limits of a login, whatever amphi was started with. What is lower already stays so.
fn limit_resources() -> Result<(), Errno> {
    // `None` is no limit.
    let lower = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    for (resource, wanted) in [(Resource::Nofile, OPEN_FILES), (Resource::Core, CORE_FILES)] {
        let maximum = lower(rustix::process::getrlimit(resource).maximum, wanted.maximum);
        rustix::process::setrlimit(resource, Rlimit { current: lower(wanted.current, maximum), maximum })?;
    }
    Ok(())
}
