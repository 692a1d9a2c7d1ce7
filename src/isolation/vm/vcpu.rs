//! The thread that runs one vCPU.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use amphi_devices::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::error::VmError;
use super::state::{MachineExit, MachineState};
use super::{seccomp, signals};
use crate::isolation::timeline::Stamp;

/// `KVM_SET_SIGNAL_MASK`, which kvm-ioctls does not offer: `_IOW(0xae, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// The address spaces that a vCPU's exits lead to.
pub(super) struct Buses {
    /// I/O ports.
    pub(super) ports: Bus,
    /// Physical addresses.
    pub(super) memory: Bus,
}

/// The signal that takes a vCPU out of the guest. It is blocked in the vCPU's thread and let through only inside
/// `KVM_RUN`, so that no handler is needed and a process that embeds amphi keeps all its signals as they are.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Takes the thread's vCPU out of the guest; where it is not inside, it does not get in again.
pub(super) fn kick(thread: RawPthread) {
    // SAFETY: the caller keeps the thread's handle unjoined, so that the id is valid.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// Starts the thread of vCPU `index`, which confines itself, and enters the guest once the machine's start is through. It
/// runs until the machine's state says that it has ended.
///
/// However the thread ends, the machine has ended then: one that waits for a vCPU which is gone would wait for ever.
pub(super) fn spawn(
    index: u8,
    mut vcpu: VcpuFd,
    buses: Arc<Buses>,
    state: Arc<MachineState>,
    first_instruction: Arc<Stamp>,
) -> Result<(JoinHandle<()>, RawPthread), VmError> {
    let body = move || {
        let _ended = EndOnUnwind(&state);
        let confined =
            || seccomp::confine_vcpu().map_err(|error| VmError::host("confine a vCPU's thread")(error.into()));
        if let Err(error) = let_kick_through(&vcpu).and_then(|()| confined()) {
            state.finish(Err(error));
            return;
        }
        state.wait_for_start();
        first_instruction.mark();
        run(index, &mut vcpu, &buses, &state);
    };
    // Whoever ends the machine may kick the thread as soon as it exists.
    let thread =
        signals::blocked(|| thread::Builder::new().name(format!("vcpu{index}")).stack_size(128 << 10).spawn(body))
            .map_err(VmError::host("start a vCPU's thread"))?;
    let id = thread.as_pthread_t();
    Ok((thread, id))
}

/// Ends the machine where a vCPU's thread panics. In other cases it has ended before.
struct EndOnUnwind<'a>(&'a MachineState);

impl Drop for EndOnUnwind<'_> {
    fn drop(&mut self) {
        self.0.finish(Err(VmError::Failed("a vCPU's thread panicked".to_owned())));
    }
}

/// Lets the kick through inside `KVM_RUN`; all signals are blocked otherwise.
fn let_kick_through(vcpu: &VcpuFd) -> Result<(), VmError> {
    #[repr(C)]
    struct SignalMask {
        len: u32,
        set: [u8; 8],
    }
    let bit = u32::try_from(kick_signal() - 1).unwrap_or(0);
    let mask = SignalMask { len: 8, set: (!(1u64 << bit)).to_le_bytes() };
    // SAFETY: the argument is a `struct kvm_signal_mask` with a set of the eight bytes that it announces.
    if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) } < 0 {
        return Err(VmError::Kvm { attempt: "set a vCPU's signal mask", source: io::Error::last_os_error() });
    }
    Ok(())
}

fn run(index: u8, vcpu: &mut VcpuFd, buses: &Buses, state: &MachineState) {
    let (mut leaving, mut interrupts) = (false, 0);
    loop {
        let request = state.request();
        if request.ends() {
            return;
        }
        // Before a pause KVM is entered once more, only to complete the access to a device that was the last exit.
        if request.pauses() != leaving {
            leaving = request.pauses();
            vcpu.set_kvm_immediate_exit(leaving.into());
        }
        if request.interrupts() != interrupts {
            interrupts = request.interrupts();
            if let Err(error) = vcpu.nmi() {
                log::warn!("a vCPU cannot be interrupted: {error}");
            }
        }
        let exit = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                buses.ports.write(u64::from(port), data);
                continue;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                buses.ports.read(u64::from(port), data);
                continue;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                buses.memory.write(address, data);
                continue;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                buses.memory.read(address, data);
                continue;
            }
            Ok(VcpuExit::Shutdown) => Ok(MachineExit::TripleFault),
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Ok(MachineExit::PowerOff),
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _)) => Ok(MachineExit::Reset),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Err(VmError::Failed(format!("the processor refused the guest's state (hardware reason {reason:#x})")))
            }
            Ok(VcpuExit::InternalError) => Err(internal_error(vcpu)),
            Ok(exit) => Err(VmError::Failed(format!("unexpected exit of a vCPU: {exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {
                take_kick();
                if leaving && pause(index, vcpu, state) {
                    // The interrupts before were for the guest before.
                    interrupts = 0;
                }
                continue;
            }
            Err(error) if error.errno() == libc::EAGAIN => continue,
            Err(error) => Err(VmError::kvm("run a vCPU")(error)),
        };
        state.finish(exit);
    }
}

/// Waits until the machine is resumed, or has ended. Returns whether it was reset meanwhile.
fn pause(index: u8, vcpu: &VcpuFd, state: &MachineState) -> bool {
    // By its clock the guest learns that it was stopped, and does not take the time for a hang. One without that clock, or with
    // it not set up yet, has no need to know.
    if let Err(error) = vcpu.kvmclock_ctrl()
        && error.errno() != libc::EINVAL
    {
        log::warn!("the guest's clock cannot be told of a pause: {error}");
    }
    state.park(index, vcpu)
}

/// Takes back the kick, if it came: the guest cannot be entered while it is pending.
fn take_kick() {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut kick = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised before it is used, and the information on the signal is not asked for.
    unsafe {
        libc::sigemptyset(kick.as_mut_ptr());
        libc::sigaddset(kick.as_mut_ptr(), kick_signal());
        while libc::sigtimedwait(kick.as_ptr(), std::ptr::null_mut(), &raw const at_once) > 0 {}
    }
}

/// Says what KVM could not emulate.
fn internal_error(vcpu: &mut VcpuFd) -> VmError {
    // SAFETY: after `KVM_EXIT_INTERNAL_ERROR` the union's `internal` member is the valid one.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    VmError::KvmInternal { suberror, rip }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_machine() {
        let state = MachineState::new().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ended = EndOnUnwind(&state);
            panic!("as the test wants it");
        }));
        assert!(panicked.is_err() && state.has_ended());
    }
}
