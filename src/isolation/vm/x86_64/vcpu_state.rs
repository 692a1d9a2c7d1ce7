//! All that a processor is, read from one vCPU and written to another.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, KvmNestedStateBuffer, VcpuFd};

use crate::isolation::vm::error::VmError;

/// The time stamp counter. A host that writes 0 has KVM go on with what the VM's processors have in common.
const TSC: u32 = 0x10;
/// Hyper-V's registers, which are there only for a guest that is told of Hyper-V.
const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_1000;
/// What a guest can write, and not every KVM has in its list: of memory types and of machine checks, of which there are at most 32
/// banks.
const UNLISTED: [std::ops::Range<u32>; 7] =
    [0x17a..0x17c, 0x200..0x210, 0x250..0x251, 0x258..0x25a, 0x268..0x270, 0x2ff..0x300, 0x400..0x400 + 4 * 32];
/// The most registers that KVM takes at once.
const MSRS_AT_ONCE: usize = 256;

/// What there is to read and write, which depends on the host.
pub(crate) struct VcpuLayout {
    msrs: Vec<u32>,
    xcrs: bool,
    nested: bool,
}

impl VcpuLayout {
    /// Asks the host.
    pub(crate) fn of_host(kvm: &Kvm) -> Result<Self, VmError> {
        let listed = kvm.get_msr_index_list().map_err(VmError::kvm("list the registers of a vCPU"))?;
        let mut msrs: Vec<u32> = listed.as_slice().iter().copied().chain(UNLISTED.into_iter().flatten()).collect();
        msrs.sort_unstable();
        msrs.dedup();
        msrs.retain(|index| !HYPER_V.contains(index));
        Ok(Self { msrs, xcrs: kvm.check_extension(Cap::Xcrs), nested: kvm.check_extension(Cap::NestedState) })
    }
}

/// A vCPU's state, but for what was decided when it was made: its number and its CPUID.
pub(crate) struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: Option<kvm_xcrs>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    nested: Option<Box<KvmNestedStateBuffer>>,
}

impl VcpuState {
    /// Reads the state of `vcpu`, which must be out of the guest.
    pub(crate) fn read(vcpu: &VcpuFd, layout: &VcpuLayout) -> Result<Self, VmError> {
        let failed = VmError::kvm("read the state of a vCPU");
        Self::try_read(vcpu, layout).map_err(failed)
    }

    fn try_read(vcpu: &VcpuFd, layout: &VcpuLayout) -> Result<Self, kvm_ioctls::Error> {
        // First: KVM takes in what other processors have sent.
        let mp_state = vcpu.get_mp_state()?;
        let nested = layout.nested.then(|| {
            let mut buffer = Box::new(KvmNestedStateBuffer::empty());
            vcpu.nested_state(&mut buffer).map(|_| buffer)
        });
        Ok(Self {
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            xsave: vcpu.get_xsave()?,
            xcrs: layout.xcrs.then(|| vcpu.get_xcrs()).transpose()?,
            debug_regs: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            msrs: read_msrs(vcpu, &layout.msrs)?,
            events: vcpu.get_vcpu_events()?,
            mp_state,
            nested: nested.transpose()?,
        })
    }

    /// Makes the time stamp counter go on, in step with those of the VM's other vCPUs, instead of having a value of its own.
    pub(crate) fn with_running_tsc(mut self) -> Self {
        self.msrs.iter_mut().filter(|msr| msr.index == TSC).for_each(|msr| msr.data = 0);
        self
    }

    /// Gives `vcpu` this state. It must be out of the guest, and its last exit completed; call it on the vCPU's own thread.
    ///
    /// Whatever `vcpu` was doing is over, be it a guest of its guest, the handler of a system management interrupt, or an interrupt
    /// that was about to be delivered.
    pub(crate) fn write(&self, vcpu: &VcpuFd) -> Result<(), VmError> {
        self.try_write(vcpu).map_err(VmError::kvm("set the state of a vCPU"))?;
        write_msrs(vcpu, &self.msrs)?;
        // At last: writing the registers has discarded what was to be delivered.
        let set = vcpu.set_vcpu_events(&self.events).and_then(|()| vcpu.set_mp_state(self.mp_state));
        set.map_err(VmError::kvm("set the state of a vCPU"))
    }

    fn try_write(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        // Calls of other processors that have not been taken in would be after the new state: KVM takes them in when it is asked.
        vcpu.get_mp_state()?;
        if let Some(nested) = &self.nested {
            vcpu.set_nested_state(nested)?;
        }
        vcpu.set_regs(&self.regs)?;
        // Before the local APIC: where that is, and whether it is on, is among these.
        vcpu.set_sregs(&self.sregs)?;
        // SAFETY: KVM reads more than the structure has only for features that a process must ask for, and this one does not;
        // reading a state of that kind would have failed as well.
        unsafe { vcpu.set_xsave(&self.xsave)? };
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)?;
        }
        vcpu.set_debug_regs(&self.debug_regs)?;
        // Before the MSRs: the deadline of its timer is among those.
        vcpu.set_lapic(&self.lapic)
    }
}

/// Reads those of the registers that the vCPU has.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut read = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let asked = &left[..left.len().min(MSRS_AT_ONCE)];
        let entries: Vec<_> = asked.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = entries_of(&entries)?;
        let count = vcpu.get_msrs(&mut msrs)?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        // KVM stops at the first one that it does not have for this vCPU.
        left = &left[if count < asked.len() { count + 1 } else { count }..];
    }
    Ok(read)
}

/// Writes the registers. What cannot be written must have the right value already.
fn write_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), VmError> {
    let failed = || VmError::kvm("set the model-specific registers of a vCPU");
    let mut left = msrs;
    while !left.is_empty() {
        let asked = &left[..left.len().min(MSRS_AT_ONCE)];
        let mut count = vcpu.set_msrs(&entries_of(asked).map_err(failed())?).map_err(failed())?;
        if let Some(refused) = asked.get(count) {
            let now = read_msrs(vcpu, &[refused.index]).map_err(failed())?;
            if now.first().is_none_or(|now| now.data != refused.data) {
                let now = now.first().map(|now| now.data);
                let what = format!(
                    "a vCPU's register {:#x} does not become {:#x} (it is {now:x?})",
                    refused.index, refused.data
                );
                return Err(VmError::Failed(what));
            }
            count += 1;
        }
        left = &left[count..];
    }
    Ok(())
}

fn entries_of(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))
}
