//! The reset button: a machine whose guest begins anew, in place.
//!
//! By now the process is confined: it opens nothing. So everything that a guest has begun with is kept open, and the state of its
//! processors is that of others, made for this purpose in a VM that never runs.

use std::sync::{Arc, PoisonError};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::error::VmError;
use super::load::{Initrd, load};
use super::machine::{Boot, Machine, create_vcpus, create_vm, write_boot_information};
use super::x86_64::irq_chips::IrqChips;
use super::x86_64::vcpu_state::{VcpuLayout, VcpuState};

impl Machine {
    /// Begins anew: with memory that is empty but for kernel, `initrd` and `command_line`, and with vCPUs, interrupt controllers and
    /// devices as at first. A paused machine stays so, at its first instruction.
    ///
    /// `last_word` is called when everything rests, and may still call it off: then the guest goes on. `forget` is called when nothing of the
    /// old guest is left, and the new one has not begun.
    ///
    /// # Errors
    /// The machine has ended, `last_word` has called it off, or it could not be made ready for that: all is as before. Or something failed
    /// afterwards: then the machine has ended.
    pub(super) fn reset(
        &self,
        initrd: &dyn Initrd,
        command_line: &str,
        last_word: impl FnOnce() -> Result<(), VmError>,
        forget: impl FnOnce(),
    ) -> Result<(), VmError> {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.while_it_runs()?;
        // Closing its VM takes a while: that comes after everything else.
        let first = FirstState::make(&self.kvm, &self.boot)?;
        let was_paused = self.state.is_paused();
        self.state.pause();
        self.devices.pause();
        let mut result = self.state.while_it_runs().and_then(|()| last_word());
        if result.is_ok() {
            result = self.begin_anew(initrd, command_line, &first).map(|()| forget()).or_else(|error| {
                // Whatever has ended it before, that is how it has ended.
                self.state.finish(Err(error));
                self.state.while_it_runs()
            });
        }
        if !was_paused {
            self.devices.resume();
            self.state.resume();
        }
        result
    }

    fn begin_anew(&self, initrd: &dyn Initrd, command_line: &str, first: &FirstState) -> Result<(), VmError> {
        // A driver's reset of a device comes from a vCPU's thread, too, which may do all that it takes.
        let devices = Arc::clone(&self.devices);
        self.state.on_each_vcpu(Arc::new(move |index, _| if index == 0 { devices.reset() } else { Ok(()) }))?;
        self.memory.discard()?;
        let memory = self.memory.handle();
        let (kernel, initrd) = load(memory, &self.boot.kernel_file, initrd, command_line)?;
        if kernel.entry != self.boot.kernel.entry {
            return Err(VmError::Failed("the kernel's file has changed since the machine was started".to_owned()));
        }
        write_boot_information(memory, &self.boot, initrd, &self.devices)?;
        self.devices.fill_memory()?;
        let vcpus = Arc::clone(&first.vcpus);
        self.state.on_each_vcpu(Arc::new(move |index, vcpu| {
            vcpus.get(usize::from(index)).map_or(Ok(()), |state| state.write(vcpu))
        }))?;
        first.chips.write(&self.vm)?;
        self.state.new_guest();
        Ok(())
    }
}

/// The state in which processors and interrupt controllers begin, as KVM makes them.
struct FirstState {
    vcpus: Arc<[VcpuState]>,
    chips: IrqChips,
    _vcpus: Vec<VcpuFd>,
    _vm: VmFd,
}

impl FirstState {
    /// Makes a machine's processors and interrupt controllers once more.
    fn make(kvm: &Kvm, boot: &Boot) -> Result<Self, VmError> {
        let vm = create_vm(kvm)?;
        let vcpus = create_vcpus(kvm, &vm, boot.vcpus, boot.kernel.entry)?;
        let layout = VcpuLayout::of_host(kvm)?;
        let states = vcpus.iter().map(|vcpu| VcpuState::read(vcpu, &layout).map(VcpuState::with_running_tsc));
        Ok(Self { vcpus: states.collect::<Result<_, _>>()?, chips: IrqChips::read(&vm)?, _vcpus: vcpus, _vm: vm })
    }
}
