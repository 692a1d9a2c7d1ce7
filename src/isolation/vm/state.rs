//! What the threads of a machine share: whether it runs, is paused, or has ended, and how.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::thread::RawPthread;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use amphi_devices::acpi::watchdog::Expired;
use amphi_devices::legacy::PowerEvents;
use kvm_ioctls::VcpuFd;
use rustix::event::{EventfdFlags, eventfd};

use super::error::VmError;
use super::vcpu;

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineExit {
    /// The guest switched the power off through ACPI.
    PowerOff,
    /// The guest asked for a reset, through ACPI or the keyboard controller. A microVM does not start again.
    Reset,
    /// A vCPU hit a triple fault, which is also the last resort of a kernel that wants a reset.
    TripleFault,
    /// The guest's kernel panicked, and said so.
    Panicked,
    /// The guest did not feed its watchdog.
    Watchdog,
    /// The host stopped the machine.
    Stopped,
}

impl fmt::Display for MachineExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "it switched the power off",
            Self::Reset => "it asked for a reset",
            Self::TripleFault => "a vCPU hit a triple fault",
            Self::Panicked => "the guest's kernel panicked",
            Self::Watchdog => "it did not feed its watchdog (--watchdog)",
            Self::Stopped => "it was stopped",
        })
    }
}

/// What vCPUs are asked to do; as the guest runs undisturbed, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request(u32);

impl Request {
    const ENDED: u32 = 1 << 0;
    const PAUSED: u32 = 1 << 1;
    /// The lowest bit of the number of interrupts that vCPUs were sent.
    const INTERRUPT: u32 = 1 << 8;

    /// Whether they are to leave the guest for good.
    pub(super) fn ends(self) -> bool {
        self.0 & Self::ENDED != 0
    }

    /// How many non-maskable interrupts each has been sent.
    pub(super) fn interrupts(self) -> u32 {
        self.0 / Self::INTERRUPT
    }

    /// Whether they are to leave the guest and wait.
    pub(super) fn pauses(self) -> bool {
        self.0 & Self::PAUSED != 0
    }
}

/// What every vCPU's thread does once while the machine is paused, given the vCPU's number.
pub(super) type VcpuTask = Arc<dyn Fn(u8, &VcpuFd) -> Result<(), VmError> + Send + Sync>;

/// What the machine's threads share.
pub(super) struct MachineState {
    /// The bits of a [`Request`]. Written under the lock.
    request: AtomicU32,
    outcome: Mutex<Outcome>,
    changed: Condvar,
    /// Readable once the machine has ended, for those who wait for other things as well.
    event: OwnedFd,
}

/// What is behind the lock.
#[derive(Default)]
pub(super) struct Outcome {
    exit: Option<Result<MachineExit, Arc<VmError>>>,
    vcpus: Vec<RawPthread>,
    /// How many vCPUs wait outside the guest.
    parked: usize,
    /// What they are to do there, how many tasks there have been, and how many vCPUs have done this one.
    task: Option<VcpuTask>,
    tasks: u64,
    done: usize,
    /// How often the machine has been reset.
    resets: u64,
}

impl Outcome {
    /// Notes the thread of a vCPU, to be kicked out of the guest.
    pub(super) fn add_vcpu(&mut self, thread: RawPthread) {
        self.vcpus.push(thread);
    }
}

impl MachineState {
    pub(super) fn new() -> Result<Self, VmError> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| VmError::host("make an eventfd")(error.into()))?;
        Ok(Self { request: AtomicU32::new(0), outcome: Mutex::default(), changed: Condvar::new(), event })
    }

    /// What vCPUs are to do now.
    pub(super) fn request(&self) -> Request {
        Request(self.request.load(Ordering::Acquire))
    }

    /// Whether vCPUs are to leave the guest for good.
    pub(super) fn has_ended(&self) -> bool {
        self.request().ends()
    }

    /// Whether the machine is paused, or about to be.
    pub(super) fn is_paused(&self) -> bool {
        self.request().pauses()
    }

    /// Returns when whoever starts the machine is through with that, successfully or not.
    pub(super) fn wait_for_start(&self) {
        drop(self.lock());
    }

    /// Ends the machine. Only the first reason counts.
    pub(super) fn finish(&self, exit: Result<MachineExit, VmError>) {
        self.finish_locked(&mut self.lock(), exit);
    }

    pub(super) fn finish_locked(&self, outcome: &mut Outcome, exit: Result<MachineExit, VmError>) {
        if outcome.exit.is_none() {
            let exit = match exit {
                // However a guest ends that its watchdog has moved to panic.
                Ok(exit) if exit != MachineExit::Stopped && self.request().interrupts() > 0 => {
                    Ok(MachineExit::Watchdog)
                }
                exit => exit,
            };
            outcome.exit = Some(exit.map_err(Arc::new));
            self.request_of_all(outcome, Request::ENDED);
            // Cannot fail: the counter goes from 0 to 1 once.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Has all vCPUs look at what they are to do.
    fn request_of_all(&self, outcome: &Outcome, bits: u32) {
        self.request.fetch_or(bits, Ordering::AcqRel);
        for &thread in &outcome.vcpus {
            vcpu::kick(thread);
        }
        self.changed.notify_all();
    }

    /// Sends every vCPU a non-maskable interrupt, by which a guest's kernel may be moved to panic.
    fn interrupt_all(&self) {
        let outcome = self.lock();
        self.request.fetch_add(Request::INTERRUPT, Ordering::AcqRel);
        self.request_of_all(&outcome, 0);
    }

    /// Takes all vCPUs out of the guest and returns when they are, or when the machine has ended.
    pub(super) fn pause(&self) {
        let mut outcome = self.lock();
        if !self.is_paused() {
            self.request_of_all(&outcome, Request::PAUSED);
        }
        while !self.has_ended() && outcome.parked < outcome.vcpus.len() {
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has each vCPU's thread carry out `task`, and returns when all have. The machine must be paused: what the task leaves
    /// undone because the machine ends is of no interest any more.
    ///
    /// # Errors
    /// The machine has ended, perhaps because the task has failed.
    pub(super) fn on_each_vcpu(&self, task: VcpuTask) -> Result<(), VmError> {
        let mut outcome = self.lock();
        outcome.task = Some(task);
        outcome.tasks += 1;
        outcome.done = 0;
        self.changed.notify_all();
        while !self.has_ended() && outcome.done < outcome.vcpus.len() {
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
        outcome.task = None;
        drop(outcome);
        self.while_it_runs()
    }

    /// Whether the machine still runs.
    ///
    /// # Errors
    /// How it has ended.
    pub(super) fn while_it_runs(&self) -> Result<(), VmError> {
        match self.exit() {
            None => Ok(()),
            Some(Ok(exit)) => Err(VmError::Unsupported(format!("the machine has ended: {exit}"))),
            Some(Err(error)) => Err(VmError::Shared(error)),
        }
    }

    /// Begins with a new guest, which nobody has interrupted yet. The machine must be paused.
    pub(super) fn new_guest(&self) {
        let mut outcome = self.lock();
        self.request.fetch_and(Request::INTERRUPT - 1, Ordering::AcqRel);
        outcome.resets += 1;
    }

    /// Lets vCPUs back into the guest.
    pub(super) fn resume(&self) {
        let _outcome = self.lock();
        self.request.fetch_and(!Request::PAUSED, Ordering::AcqRel);
        self.changed.notify_all();
    }

    /// Called by the thread of vCPU `index` that is to pause: carries out what it is asked for, and returns when it is not to pause
    /// any more. Tells whether the guest is another one than before.
    pub(super) fn park(&self, index: u8, vcpu: &VcpuFd) -> bool {
        let mut outcome = self.lock();
        outcome.parked += 1;
        let (resets, mut seen) = (outcome.resets, outcome.tasks);
        self.changed.notify_all();
        while self.is_paused() && !self.has_ended() {
            if let Some(task) = outcome.task.clone().filter(|_| outcome.tasks != seen) {
                seen = outcome.tasks;
                drop(outcome);
                let result = task(index, vcpu);
                outcome = self.lock();
                match result {
                    Ok(()) => outcome.done += 1,
                    Err(error) => self.finish_locked(&mut outcome, Err(error)),
                }
                self.changed.notify_all();
            } else {
                outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
            }
        }
        outcome.parked -= 1;
        outcome.resets != resets
    }

    /// Returns how the machine has ended, once it has.
    pub(super) fn wait_for_end(&self) {
        let mut outcome = self.lock();
        while outcome.exit.is_none() {
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How the machine has ended, if it has.
    pub(super) fn exit(&self) -> Option<Result<MachineExit, Arc<VmError>>> {
        self.lock().exit.clone()
    }

    /// Puts a better explanation in the place of how the machine has ended.
    pub(super) fn explain(&self, exit: Result<MachineExit, Arc<VmError>>) {
        self.lock().exit = Some(exit);
    }

    /// Forgets the vCPUs, whose threads are gone.
    pub(super) fn forget_vcpus(&self) {
        self.lock().vcpus.clear();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PowerEvents for MachineState {
    fn power_off(&self) {
        self.finish(Ok(MachineExit::PowerOff));
    }

    fn reset(&self) {
        self.finish(Ok(MachineExit::Reset));
    }

    fn panicked(&self) {
        // In a panic that the watchdog's interrupt has caused, the kernel has only begun to say where it hung: what it says
        // within an interrupt comes out after this. It ends, or the watchdog's second countdown ends it.
        if self.request().interrupts() == 0 {
            self.finish(Ok(MachineExit::Panicked));
        }
    }
}

/// What becomes of a machine whose guest does not feed its watchdog.
pub(super) struct Silence {
    pub(super) state: Arc<MachineState>,
    /// Whether the guest is moved to panic first.
    pub(super) interrupt_first: bool,
}

impl Expired for Silence {
    fn expired(&self) -> bool {
        if self.interrupt_first && self.state.request().interrupts() == 0 {
            self.state.interrupt_all();
            return true;
        }
        self.state.finish(Ok(MachineExit::Watchdog));
        false
    }
}

/// Readable as soon as its machine has ended.
pub(super) struct EndedEvent(pub(super) Arc<MachineState>);

impl EndedEvent {
    /// Whether the machine has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
}

impl AsFd for EndedEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

/// Ends a machine from any thread, whatever its guest does. No effect once it has ended.
#[derive(Clone)]
pub struct Stopper(pub(super) Arc<MachineState>);

impl Stopper {
    /// Ends the machine.
    pub fn stop(&self) {
        self.0.finish(Ok(MachineExit::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an interrupt of the watchdog's was sent for, and how the guest that did not feed it ends.
    #[test]
    fn a_new_guest_has_not_been_interrupted() {
        for (new_guest, expected) in [(false, MachineExit::Watchdog), (true, MachineExit::TripleFault)] {
            let state = MachineState::new().unwrap();
            state.interrupt_all();
            state.pause();
            state.on_each_vcpu(Arc::new(|_, _| unreachable!("there is none"))).unwrap();
            if new_guest {
                state.new_guest();
                assert!(state.is_paused() && state.request().interrupts() == 0);
            }
            state.resume();
            state.finish(Ok(MachineExit::TripleFault));
            assert_eq!(state.exit().unwrap().unwrap(), expected);
        }
    }

    #[test]
    fn a_machine_that_has_ended_does_nothing_for_anybody() {
        let state = MachineState::new().unwrap();
        state.while_it_runs().unwrap();
        state.finish(Ok(MachineExit::PowerOff));
        let error = state.on_each_vcpu(Arc::new(|_, _| Ok(()))).unwrap_err();
        assert!(error.to_string().contains("switched the power off"), "{error}");
        state.explain(Err(Arc::new(VmError::Failed("a fault".to_owned()))));
        assert!(matches!(state.while_it_runs(), Err(VmError::Shared(_))));
    }
}
