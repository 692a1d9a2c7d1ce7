//! What can be done to a microVM while its workload runs, and to no container.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError};

use amphi_devices::virtio::balloon::{Balloon, PAGE};
use amphi_guest_init::ToGuest;

use super::balloon::{self, BalloonState};
use super::error::VmError;
use super::follow::Running;
use super::sandbox::VmSandbox;
use crate::spec::WindowSize;

impl VmSandbox {
    /// Stops the guest's processors and its devices where they are, and returns when nothing is under way: all vCPUs are out
    /// of the guest, and requests that the host was carrying out have ended. Nothing happens where it is paused.
    ///
    /// Its memory stays as it is and its connections stay open; time goes on. A guest with KVM's clock is told of it when it
    /// is resumed, and does not take the time for a hang of its own.
    ///
    /// # Errors
    /// The workload does not run.
    pub fn pause(&self) -> Result<(), VmError> {
        self.while_it_runs("pause")?.machine.pause();
        Ok(())
    }

    /// Lets a paused guest go on. Nothing happens where it is not paused.
    ///
    /// # Errors
    /// The workload does not run.
    pub fn resume(&self) -> Result<(), VmError> {
        self.while_it_runs("resume")?.machine.resume();
        Ok(())
    }

    /// Presses the machine's reset button: the guest is gone at once, whatever it is doing, and another one begins in the same microVM. It
    /// runs the same workload from its start. [`Sandbox::wait`](crate::Sandbox::wait) goes on to wait, and returns the new workload's end.
    ///
    /// - Memory is given back to the host and begins empty. What the guest had not written to its disks is lost, as in a power cut;
    ///   disks, persistent memory and volumes have what was written to them.
    /// - Standard streams are the same: of the input, the new workload reads what the old one has not, and what the old one had written is
    ///   delivered as far as the stream takes it without waiting. A stream that the old workload has closed stays closed. Signals that the
    ///   old guest had not taken are forgotten, the terminal's present size is not.
    /// - Connections over vsock end, what was open in volumes is closed, the balloon is empty and inflates again to its target, the
    ///   watchdog begins anew, the generation identifier stays. The timeline is that of the first start. Clocks go on.
    /// - A paused guest stays paused: the new one begins when it is resumed.
    ///
    /// It takes some tens of milliseconds, in which the kernel and the initramfs are read again from files that were kept open. The latter's are
    /// read again by name where there are very many of them; a thread that is confined by [`confine_caller`](super::confine_caller)
    /// cannot do that.
    ///
    /// # Errors
    /// The workload does not run, its end has been reported already, or what it takes cannot be read any more: then nothing has happened.
    /// Or the host refuses something afterwards: then the microVM has ended, and `wait` returns an error, too.
    pub fn reset(&self) -> Result<(), VmError> {
        let running = self.while_it_runs("reset")?;
        let mut initrd = Vec::new();
        self.plan.initramfs.write_to(&mut initrd).map_err(|error| VmError::Root(Box::new(error)))?;
        // Nobody reads what the guest reports until this is over.
        let reports = RefCell::new(running.channel.reports());
        let last_word = || {
            let ended = || VmError::Unsupported("reset: the workload has ended".to_owned());
            if running.channel.is_complete(&reports.borrow()) { Err(ended()) } else { Ok(()) }
        };
        let forget = || running.channel.begin_anew(&mut reports.borrow_mut());
        running.machine.reset(&initrd, &self.plan.command_line, last_word, forget)?;
        let size = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(WindowSize { rows, columns }) = size else { return Ok(()) };
        self.send(&ToGuest::Resize { rows, columns })
    }

    /// Tells the guest that it goes on as another machine than before, say as one of several with the same past: its kernel
    /// mixes the new identifier into its random numbers, so that they are not those of the others.
    ///
    /// # Errors
    /// There is no identifier ([`VmDevices::generation_id`](crate::spec::VmDevices::generation_id)), or the workload does not run.
    pub fn new_generation(&self) -> Result<(), VmError> {
        let running = self.while_it_runs("a new generation")?;
        let missing = || VmError::Unsupported("--generation-id: the microVM has no such identifier".to_owned());
        let generation = running.machine.generation().ok_or_else(missing)?;
        let mut generation = generation.lock().unwrap_or_else(PoisonError::into_inner);
        generation.renew().map_err(VmError::host("give the guest a new generation identifier"))
    }

    /// What runs, held so that it stays whole meanwhile.
    fn while_it_runs(&self, action: &str) -> Result<Arc<Running>, VmError> {
        self.running().ok_or_else(|| VmError::Unsupported(format!("{action}: the workload does not run")))
    }

    /// Asks the guest to have `bytes` in its balloon, in whole pages of 4 KiB. It does so in its own time, and as far as it
    /// can.
    ///
    /// # Errors
    /// There is no balloon, the workload does not run, or the guest has not that much memory.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), VmError> {
        let pages = balloon::pages(bytes, self.memory())?;
        self.with_balloon(|balloon| balloon.set_target(pages))
    }

    /// How the guest's balloon is doing. The guest is also asked for new statistics, which a later call returns: they
    /// have come when [`Statistics::reports`](super::BalloonStatistics::reports) has grown.
    ///
    /// # Errors
    /// There is no balloon, or the workload does not run.
    pub fn balloon(&self) -> Result<BalloonState, VmError> {
        self.with_balloon(|balloon| {
            let (target, actual) = (u64::from(balloon.target()) * PAGE, u64::from(balloon.actual()) * PAGE);
            let statistics = balloon.statistics();
            balloon.request_statistics();
            BalloonState { target, actual, statistics }
        })
    }

    fn with_balloon<T>(&self, action: impl FnOnce(&mut Balloon) -> T) -> Result<T, VmError> {
        // With it the guest's memory is held, in which the balloon has its queues.
        let running = self.while_it_runs("the balloon")?;
        let missing = || VmError::Unsupported("the microVM has no balloon".to_owned());
        let balloon = running.machine.balloon().ok_or_else(missing)?;
        let mut balloon = balloon.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(action(&mut balloon))
    }
}
