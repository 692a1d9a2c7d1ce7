//! One measured run: a fresh `amphi run` process, watched from outside.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::plan::Plan;
use super::{BenchError, RunReport};
use crate::isolation::{Instant, IsolationKind};

/// How long a run that is asked to end may take to clean up.
const GRACE: Duration = Duration::from_secs(10);

/// The instants of one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamps {
    /// Right before the process was made.
    pub(super) spawned: Instant,
    /// The first byte of its standard output was there to be read.
    pub(super) first_byte: Option<Instant>,
    /// The process was gone.
    pub(super) gone: Instant,
    /// What it said itself.
    pub(super) report: RunReport,
}

/// Runs the plan's command once.
pub(super) fn run(plan: &Plan, kind: IsolationKind) -> Result<Stamps, BenchError> {
    let watch = |action| move |source| BenchError::Watch { action, isolation: kind, source };
    let (reader, writer) = rustix::pipe::pipe().map_err(|e| watch("make a pipe for the timeline")(e.into()))?;
    rustix::io::fcntl_setfd(&reader, FdFlags::CLOEXEC).map_err(|e| watch("set up the pipe")(e.into()))?;
    let options = ["--timeline-fd".into(), writer.as_raw_fd().to_string().into()];
    let mut run = Run::spawn(plan, kind, &options, &plan.command, Stdio::null())?;
    // Only the run may hold it, or reading would never come to an end.
    drop(writer);
    let first_byte = run.first_byte(plan.patience)?;
    run.drain(plan.patience)?;
    let gone = run.wait(plan.patience)?;
    let mut line = String::new();
    File::from(reader).read_to_string(&mut line).map_err(watch("read the timeline"))?;
    let report = serde_json::from_str(&line).map_err(|source| BenchError::NoTimeline { isolation: kind, source })?;
    Ok(Stamps { spawned: run.spawned, first_byte, gone, report })
}

/// A running `amphi run`; ended when dropped.
pub(super) struct Run {
    kind: IsolationKind,
    child: Child,
    pidfd: OwnedFd,
    stdout: ChildStdout,
    stderr: File,
    spawned: Instant,
    ended: bool,
}

impl Run {
    /// Starts a run of `command` with further `options`.
    pub(super) fn spawn(
        plan: &Plan,
        kind: IsolationKind,
        options: &[OsString],
        command: &[OsString],
        stdin: Stdio,
    ) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Spawn { program: plan.program.clone(), source };
        // A file, because nobody reads a pipe while the times are taken.
        let stderr = tempfile::tempfile().map_err(failed)?;
        let args = plan.run_args(kind, options, command);
        let mut command = Command::new(&plan.program);
        command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(stderr.try_clone().map_err(failed)?);
        let spawned = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let end = |mut child: Child, error: io::Error| {
            // The process may have ended by itself in the meantime.
            let _ = child.kill().and_then(|()| child.wait());
            failed(error)
        };
        let Some(stdout) = child.stdout.take() else { return Err(end(child, io::ErrorKind::BrokenPipe.into())) };
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { kind, child, pidfd, stdout, stderr, spawned, ended: false }),
            Err(error) => Err(end(child, error.into())),
        }
    }

    /// The writing end of its standard input, where that was asked to be a pipe.
    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The process's id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first byte of output and takes it; `None` where the output ends without one.
    pub(super) fn first_byte(&mut self, patience: Duration) -> Result<Option<Instant>, BenchError> {
        self.ready(&self.stdout, patience)?;
        let at = Instant::now();
        let mut byte = [0];
        let read = self.stdout.read(&mut byte).map_err(|source| self.watch("read the output", source))?;
        Ok((read > 0).then_some(at))
    }

    /// Reads and drops all output.
    pub(super) fn drain(&mut self, patience: Duration) -> Result<(), BenchError> {
        let mut buffer = [0; 16384];
        loop {
            self.ready(&self.stdout, patience)?;
            match self.stdout.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.watch("read the output", source)),
            }
        }
    }

    /// Waits for the process's end, which must be a good one.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<Instant, BenchError> {
        self.ready(&self.pidfd, patience)?;
        let status = self.child.wait().map_err(|source| self.watch("wait for the end", source))?;
        let gone = Instant::now();
        self.ended = true;
        if status.success() {
            return Ok(gone);
        }
        Err(BenchError::RunFailed { isolation: self.kind, status: status.to_string(), message: self.message() })
    }

    /// What the process said on standard error, on one line.
    pub(super) fn message(&mut self) -> String {
        let mut text = Vec::new();
        // Only adds to a message that is complete without it.
        let _ = self.stderr.seek(SeekFrom::Start(0)).and_then(|_| (&self.stderr).take(4096).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Waits until `fd` has something to read or is closed at its other end.
    fn ready(&self, fd: &impl AsFd, patience: Duration) -> Result<(), BenchError> {
        let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        loop {
            match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(BenchError::TimedOut { isolation: self.kind, seconds: patience.as_secs() }),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.watch("poll the output", error.into())),
            }
        }
    }

    fn watch(&self, action: &'static str, source: io::Error) -> BenchError {
        BenchError::Watch { action, isolation: self.kind, source }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Three times SIGTERM ends even a workload that does not heed it, and lets amphi clean up after itself.
        let pid = Pid::from_child(&self.child);
        for _ in 0..3 {
            // Fails where the process has ended, which is what is wanted.
            let _ = kill_process(pid, Signal::TERM);
            if self.ready(&self.pidfd, GRACE / 3).is_ok() {
                break;
            }
        }
        // As above; and only then is the process reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::example;

    #[test]
    fn a_program_that_is_not_amphi_is_an_error() {
        let plan = Plan { program: "/bin/false".into(), ..example() };
        assert!(matches!(run(&plan, IsolationKind::Vm), Err(BenchError::RunFailed { .. })));
        let plan = Plan { program: "/bin/true".into(), ..example() };
        assert!(matches!(run(&plan, IsolationKind::Vm), Err(BenchError::NoTimeline { .. })));
        let plan = Plan { program: "/nonexistent".into(), ..example() };
        assert!(matches!(run(&plan, IsolationKind::Vm), Err(BenchError::Spawn { .. })));
    }
}
