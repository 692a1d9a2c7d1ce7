//! An instance that is being run, by this process or by another.

use std::fs::{self, File};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Instance, InstanceError, exit};
use crate::spec::RunSpec;

/// Who only looks holds an instance's lock for a moment: it is tried so often, so long apart.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked whether a killed instance has ended, as long apart.
const PATIENCE: u32 = 2000;

/// Takes the lock; whether it could.
pub(super) fn lock(folder: &File) -> bool {
    try_lock(folder, ATTEMPTS)
}

fn try_lock(folder: &File, attempts: u32) -> bool {
    (0..attempts).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        folder.try_lock().is_ok()
    })
}

/// An instance that this process runs. Dropped without [`finished`](Self::finished) it is one of which nobody knows how it ended.
#[derive(Debug)]
pub struct Running {
    instance: Instance,
    _lock: File,
    exit: File,
}

impl Running {
    pub(super) const fn new(instance: Instance, lock: File, exit: File) -> Self {
        Self { instance, _lock: lock, exit }
    }

    /// The instance.
    #[must_use]
    pub const fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What is to be run.
    #[must_use]
    pub const fn spec(&self) -> &RunSpec {
        &self.instance.record.spec
    }

    /// What is to be run, to be changed for this run alone.
    pub const fn spec_mut(&mut self) -> &mut RunSpec {
        &mut self.instance.record.spec
    }

    /// Notes how the run has ended. Opens nothing.
    pub fn finished(self, code: u8) {
        if let Err(error) = exit::write(&self.exit, code) {
            log::warn!("cannot note how the instance {} has ended: {error}", self.instance.record.id);
        }
    }

    /// Removes the instance, of which nothing has run.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(self, instances: &super::Instances) -> Result<(), InstanceError> {
        let Self { instance, _lock: lock, exit: _ } = self;
        drop(lock);
        instance.remove(instances, false)
    }
}

/// Kills the process that runs an instance, and waits for its end.
pub(super) fn kill(instance: &Instance) -> Result<(), InstanceError> {
    let no_process = || InstanceError::NoProcess(instance.record.name.clone());
    let number = instance.record.pid;
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(no_process)?;
    let folder = File::open(&instance.folder).map_err(InstanceError::of("open", &instance.folder))?;
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && has_open(number, instance)
    {
        let failed = InstanceError::of("kill the process of", &instance.folder);
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    if try_lock(&folder, PATIENCE) { Ok(()) } else { Err(no_process()) }
}

/// Whether a process has the instance's folder open: a number alone could be another's by now.
fn has_open(pid: u32, instance: &Instance) -> bool {
    let Ok(folder) = instance.folder.canonicalize() else { return false };
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == folder)
}
