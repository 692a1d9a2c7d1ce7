//! The parent's side of a start: everything is prepared, then cloned, then released.

use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource};

use super::arguments::Arguments;
use super::cgroup::Cgroup;
use super::child::{self, Plan};
use super::error::{ContainerError, from_child};
use super::handover;
use super::kept::KeptFolder;
use super::layers::{self, Upper};
use super::mounts::{Lower, MountPlan, UpperPlan};
use super::namespaces::{self, IdMap};
use super::process::Process;
use super::relay::Outputs;
use super::report::Report;
use super::syscalls::{self, Cloned, Side};
use super::volumes::Volume;
use crate::host::cgroup::Cgroups;
use crate::isolation::timeline::Stamp;
use crate::isolation::{ExitStatus, IsolationError, Signal};
use crate::spec::{Resources, WindowSize};

/// What a container is made of, whatever its id map.
#[derive(Debug)]
pub(super) struct Config {
    /// The container's id.
    pub(super) id: String,
    /// The host name.
    pub(super) hostname: Vec<u8>,
    /// The workload.
    pub(super) process: Process,
    /// The image's directory, or its layers, the lowest first, as detached mounts; none where this process may not make them.
    pub(super) trees: Vec<OwnedFd>,
    /// Whether they are layers, with the notes of a privileged overlay.
    pub(super) layered: bool,
    /// The image's directory, or its topmost layer.
    pub(super) path: CString,
    /// Keeps an unpacked image from being removed.
    pub(super) _kept: Option<std::fs::File>,
    /// Where the writable layer stays, if it does.
    pub(super) kept: Option<KeptFolder>,
    /// The size of a writable layer that does not; `None` is the kernel's default.
    pub(super) scratch_size: Option<CString>,
    /// Directories and files of the host.
    pub(super) volumes: Vec<Volume>,
    /// Whether `/` refuses writes.
    pub(super) read_only: bool,
    /// The host's cgroup hierarchies.
    pub(super) cgroups: Cgroups,
    /// Whether they are the unified one only.
    pub(super) unified_cgroup: bool,
    /// The limits.
    pub(super) resources: Resources,
    /// The terminal, if the workload has one.
    pub(super) terminal: Option<WindowSize>,
    /// Whether standard input is connected.
    pub(super) stdin: bool,
}

/// A container that is on its way.
#[derive(Debug)]
pub(super) struct Launched {
    /// Its PID 1.
    pub(super) first: FirstProcess,
    /// Whether it was killed on purpose.
    killed: AtomicBool,
    /// Where signals for the workload go, and what PID 1 watches to learn that amphi is gone.
    pub(super) control: OwnedFd,
    /// Ends when the workload is executed, or cannot be.
    ready: OwnedFd,
    /// What its processes tell.
    pub(super) report: Report,
    /// Its control groups. Dropped after PID 1.
    cgroup: Mutex<Option<Cgroup>>,
}

/// Why a launch failed.
pub(super) enum LaunchError {
    /// The image's file system cannot shift owners: another id map is needed.
    CannotShift(Errno),
    /// Anything else.
    Isolation(IsolationError),
}

impl<E: Into<IsolationError>> From<E> for LaunchError {
    fn from(error: E) -> Self {
        Self::Isolation(error.into())
    }
}

/// PID 1 of a container. Dropping it kills the container and waits until that is over.
#[derive(Debug)]
pub(super) struct FirstProcess {
    pidfd: OwnedFd,
    reaped: AtomicBool,
}

impl FirstProcess {
    /// Blocks until it has ended.
    fn wait_for_end(&self) -> Result<(), Errno> {
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Blocks until it has ended, and returns how. Only one may do so.
    pub(super) fn wait(&self) -> Result<ExitStatus, Errno> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.pidfd.as_raw_fd().cast_unsigned();
        // `__WALL`, since the child was made without an exit signal.
        // SAFETY: the descriptor is open and `info` outlives the call.
        while unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WALL) } != 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return Err(Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            }
        }
        self.reaped.store(true, Ordering::Release);
        // SAFETY: after success the kernel has filled in the members of a child's end.
        let status = unsafe { info.si_status() };
        Ok(if info.si_code == libc::CLD_EXITED {
            ExitStatus::from_wait_status((status & 0xff) << 8)
        } else {
            ExitStatus::from_wait_status(status & 0x7f)
        })
    }
}

/// Ends the container that `pidfd` is the first process of.
pub(super) fn kill(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL) {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

impl AsFd for FirstProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for FirstProcess {
    fn drop(&mut self) {
        if !self.reaped.load(Ordering::Acquire) {
            // Its own child: it can be killed and waited for.
            let _ = kill(self.pidfd.as_fd());
            let _ = self.wait();
        }
    }
}

/// A descriptor that cannot be mistaken for, or overwritten as, a standard stream.
pub(super) fn above_standard(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fcntl_dupfd_cloexec(&fd, 3) }
}

/// Makes the container's first process, and where amphi has to make it the root, which is returned too. It goes on with
/// [`Launched::release`]; its workload is executed somewhat later: see [`Launched::wait_until_executed`].
pub(super) fn launch(
    config: &Config,
    map: &IdMap,
    stdin: Option<BorrowedFd<'_>>,
    outputs: Outputs,
    created: &Stamp,
) -> Result<(Launched, Option<OwnedFd>), LaunchError> {
    let mut cgroup = Cgroup::create(&config.cgroups, &config.id, &config.resources)?;
    let pipe = ContainerError::kernel("make a pipe to the container");
    let ends = || -> Result<_, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (ready, done) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((above_standard(ours)?, above_standard(theirs)?, above_standard(ready)?, above_standard(done)?))
    };
    let (control, theirs, ready, done) = ends().map_err(pipe)?;
    let report = Report::new().map_err(ContainerError::kernel("share memory with the container"))?;

    let volumes = config.volumes.iter().map(Volume::mount).collect::<Result<Vec<_>, _>>()?;
    let kept = config.kept.as_ref().filter(|_| !config.trees.is_empty()).map(KeptFolder::mount).transpose()?;
    let argv = pointers(&config.process.argv);
    let env = pointers(&config.process.env);
    let descriptors = [stdin, Some(outputs.stdout.as_fd()), Some(outputs.stderr.as_fd()), Some(theirs.as_fd())];
    let more = [Some(done.as_fd()), config.trees.first().map(AsFd::as_fd)];
    let mut keep: Vec<RawFd> = descriptors.iter().chain(&more).flatten().map(AsRawFd::as_raw_fd).collect();
    keep.extend(volumes.iter().filter_map(|mount| mount.tree.as_ref()).map(AsRawFd::as_raw_fd));
    keep.sort_unstable();
    let plan = Plan {
        hostname: &config.hostname,
        mounts: MountPlan {
            lower: config.trees.first().map_or(Lower::Path(&config.path), |tree| Lower::Tree(tree.as_fd())),
            upper: match &config.kept {
                Some(kept) => UpperPlan::Kept(&kept.c_path),
                None => UpperPlan::Memory(config.scratch_size.as_deref()),
            },
            read_only: config.read_only,
            unified_cgroup: config.unified_cgroup,
            tty_group: map.sets_groups(),
            volumes: &volumes,
        },
        process: &config.process,
        argv: &argv,
        env: &env,
        arguments: Arguments::of_this_process(),
        stdin,
        stdout: outputs.stdout.as_fd(),
        stderr: outputs.stderr.as_fd(),
        terminal: config.terminal,
        set_groups: map.sets_groups(),
        control: theirs.as_fd(),
        keep: &keep,
        report: &report,
    };
    let cloned = clone(&plan, &mut cgroup, &config.resources)?;
    created.mark();
    let first = FirstProcess { pidfd: cloned.pidfd, reaped: AtomicBool::new(false) };
    // Only the child's copies are to hold these open.
    drop((theirs, done, outputs));

    if let Some(kept) = &config.kept {
        // Before anything can be written to it.
        kept.note_first_process(cloned.pid)?;
    }
    map.write(cloned.pid)?;
    if let IdMap::Shifted { .. } = map {
        for volume in volumes.iter().filter_map(|mount| mount.tree.as_ref()) {
            namespaces::shift(volume.as_fd(), cloned.pid, true).map_err(LaunchError::CannotShift)?;
        }
        if let Some(kept) = &kept {
            namespaces::shift(kept.as_fd(), cloned.pid, false).map_err(LaunchError::CannotShift)?;
        }
        // Last, because they stay for another attempt.
        for tree in &config.trees {
            namespaces::shift(tree.as_fd(), cloned.pid, false).map_err(LaunchError::CannotShift)?;
        }
    }
    cgroup.adopt(cloned.pid)?;
    raise_limits(cloned.pid);
    let overlay = overlay_of_parent(config, map, kept.as_ref(), first.as_fd())?;
    let killed = AtomicBool::new(false);
    Ok((Launched { first, killed, control, ready, report, cgroup: Mutex::new(Some(cgroup)) }, overlay))
}

/// The overlay, where it is the parent that has to make it.
fn overlay_of_parent(
    config: &Config,
    map: &IdMap,
    kept: Option<&OwnedFd>,
    child: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, IsolationError> {
    let trees: Vec<_> = config.trees.iter().map(AsFd::as_fd).collect();
    if trees.is_empty() || !(config.layered || kept.is_some() || layers::needs_parent()) {
        return Ok(None);
    }
    let (upper, owner) = match kept {
        Some(folder) => (Upper::Kept(folder.as_fd()), map.host_root()),
        None => (Upper::Memory(config.scratch_size.as_deref()), None),
    };
    let overlay = layers::make_privileged(&trees, upper, owner, child);
    overlay.map(Some).map_err(|failure| from_child(failure, &config.process, &config.volumes))
}

/// Gives the child the limits of any container, which may be more than amphi was started with. The child
/// could not in its user namespace; without privilege it makes do with less.
fn raise_limits(pid: i32) {
    if let Err(errno) = rustix::process::prlimit(Pid::from_raw(pid), Resource::Nofile, child::OPEN_FILES) {
        log::debug!("the container keeps amphi's own limit of open files: {errno}");
    }
}

impl Launched {
    /// Lets the child go on, with the root that was made for it if one was.
    pub(super) fn release(&self, overlay: Option<OwnedFd>) {
        // Should it be dead already, the report says why.
        let _ = handover::send(self.control.as_fd(), overlay.as_ref().map(AsFd::as_fd));
    }

    /// Waits until the workload is executed, or has been ended by a signal before that.
    pub(super) fn wait_until_executed(&self, config: &Config) -> Result<(), IsolationError> {
        if let Some(cgroup) = &*self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) {
            cgroup.sweep();
        }
        // The last copy of the other end is closed by the `execve` of the workload, or by the end of a child.
        loop {
            match read(&self.ready, &mut [0u8; 1]) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ContainerError::kernel("wait for the container's start")(errno).into()),
            }
        }
        if let Some(failure) = self.report.failure() {
            return Err(from_child(failure, &config.process, &config.volumes));
        }
        if self.is_executed() {
            return Ok(());
        }
        // Some signal came before: PID 1 knows whether it hit the workload, and ends in any case.
        self.first.wait_for_end().map_err(ContainerError::kernel("wait for the container"))?;
        if self.report.status().is_some() || self.killed.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(ContainerError::Died.into())
        }
    }

    /// Whether the workload has been executed.
    pub(super) fn is_executed(&self) -> bool {
        let [_, init_ready, _] = self.report.instants();
        init_ready.is_some()
    }

    /// Removes the control groups. All processes must have ended.
    pub(super) fn remove_cgroup(&self) {
        drop(self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Passes a signal to the workload; `KILL` ends the container. Does not block.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if signal == Signal::KILL {
            self.killed.store(true, Ordering::Release);
            return kill(self.first.as_fd());
        }
        let number = [u8::try_from(signal.number()).map_err(|_| Errno::INVAL)?];
        match rustix::net::send(&self.control, &number, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            // It has ended.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Clones the child, if need be outside a cgroup that amphi may make but not put processes into.
fn clone(plan: &Plan<'_>, cgroup: &mut Cgroup, resources: &Resources) -> Result<Cloned, ContainerError> {
    match clone_into(plan, cgroup.birth_place()) {
        Err(errno @ (Errno::ACCESS | Errno::BUSY)) if cgroup.birth_place().is_some() => {
            if cgroup.needs_unified(resources) {
                let path = cgroup.unified_path();
                return Err(ContainerError::Cgroup { path, source: errno.into() });
            }
            log::warn!("cannot put the container into its own cgroup: {errno}; it runs in amphi's own");
            cgroup.give_up_unified();
            clone_into(plan, None)
        }
        other => other,
    }
    .map_err(|errno| ContainerError::Kernel {
        action: "make the container's namespaces",
        hint: hint(errno),
        source: errno.into(),
    })
}

fn hint(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::PERM | Errno::ACCESS => Some("unprivileged user namespaces may be switched off on this host"),
        Errno::NOSPC | Errno::USERS => Some("a limit in /proc/sys/user is reached or 0"),
        Errno::NOSYS => Some("clone3 needs Linux 5.7 or newer, and a seccomp filter that allows it"),
        Errno::INVAL => Some("this kernel lacks one of the namespaces"),
        _ => None,
    }
}

fn clone_into(plan: &Plan<'_>, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    // A handler of the parent must not run in the child; the child unblocks signals when it executes the workload.
    let mask = syscalls::set_signal_mask(u64::MAX);
    // SAFETY: `child::run` keeps to system calls, on memory prepared here, and never returns.
    let cloned = match unsafe { syscalls::clone3(namespaces::FLAGS, cgroup) } {
        Ok(Side::Child) => child::run(plan),
        Ok(Side::Parent(cloned)) => Ok(cloned),
        Err(errno) => Err(errno),
    };
    syscalls::set_signal_mask(mask);
    cloned
}

/// A null-terminated array for `execve`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}
