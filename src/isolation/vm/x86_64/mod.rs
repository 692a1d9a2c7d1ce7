//! Everything of a microVM that is particular to x86-64.

pub(super) mod acpi;
pub(super) mod boot_params;
pub(super) mod cpuid;
pub(super) mod irq_chips;
pub(super) mod layout;
pub(super) mod mp_table;
pub(super) mod regs;
pub(super) mod vcpu_state;
mod wdat;
