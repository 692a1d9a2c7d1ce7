//! The interrupt controllers that all processors share, in KVM: the two PICs and the I/O APIC.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::VmFd;

use crate::isolation::vm::error::VmError;

/// The slave comes before its master: as long as it has something to tell, KVM raises its line at the master.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_IOAPIC];

/// The state of a VM's interrupt controllers.
pub(crate) struct IrqChips([kvm_irqchip; CHIPS.len()]);

impl IrqChips {
    /// Reads them. No vCPU may be in the guest.
    pub(crate) fn read(vm: &VmFd) -> Result<Self, VmError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(VmError::kvm("read an interrupt controller"))?;
        }
        Ok(Self(chips))
    }

    /// Gives `vm` this state. No vCPU may be in the guest.
    pub(crate) fn write(&self, vm: &VmFd) -> Result<(), VmError> {
        self.0.iter().try_for_each(|chip| vm.set_irqchip(chip).map_err(VmError::kvm("set an interrupt controller")))
    }
}
