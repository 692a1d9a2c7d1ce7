//! What the guest's processors say of themselves.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

const FEATURES: u32 = 0x1;
const CACHE_TOPOLOGY: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_CACHE_TOPOLOGY: u32 = 0x8000_001d;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// The host's CPUID as KVM can offer it, with what KVM leaves to its user: that there is a hypervisor at
/// all, without which a guest looks no further for KVM's own clock, and the TSC deadline timer.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline_timer = if kvm.check_extension(Cap::TscDeadlineTimer) { ECX_TSC_DEADLINE } else { 0 };
    for entry in cpuid.as_mut_slice().iter_mut().filter(|e| e.function == FEATURES) {
        entry.ecx |= ECX_HYPERVISOR | deadline_timer;
    }
    Ok(cpuid)
}

/// How many bits this processor's physical addresses have, and with them the guest's.
pub(crate) fn physical_address_bits() -> u32 {
    std::arch::x86_64::__cpuid(AMD_SIZES).eax & 0xff
}

/// Sets the leaves that differ from vCPU to vCPU: its APIC ID, and one package of `count` cores without threads.
pub(crate) fn set_topology(cpuid: &mut CpuId, id: u8, count: u8) {
    for entry in cpuid.as_mut_slice() {
        set_entry(entry, id, count);
    }
}

fn set_entry(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    let (apic_id, cores) = (u32::from(id), u32::from(count));
    // How far to shift an APIC ID so that only the package's number is left.
    let package_shift = cores.next_power_of_two().trailing_zeros();
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0xffff | cores << 16 | apic_id << 24;
            entry.edx = entry.edx & !EDX_HTT | if count > 1 { EDX_HTT } else { 0 };
        }
        CACHE_TOPOLOGY if entry.eax & 0x1f != 0 => {
            // Caches of the first two levels belong to a core, the third to the package.
            let sharing = if entry.eax >> 5 & 7 > 2 { cores - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (cores - 1) << 26;
        }
        TOPOLOGY | TOPOLOGY_V2 => {
            let (shift, level_type) = match entry.index {
                0 => (0, 1),
                1 => (package_shift, 2),
                _ => (0, 0),
            };
            let processors = [1, cores].get(entry.index as usize).copied().unwrap_or(0);
            entry.eax = shift;
            entry.ebx = processors;
            entry.ecx = entry.index | level_type << 8;
            entry.edx = apic_id;
        }
        AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | package_shift << 12 | (cores - 1),
        AMD_CACHE_TOPOLOGY if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 > 2 { cores - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx = apic_id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0x123, ebx: 0xffff_ffff, ecx: 0, edx: EDX_HTT, ..Default::default() }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let mut features = entry(FEATURES, 0);
        set_entry(&mut features, 3, 4);
        assert_eq!((features.ebx >> 24, features.ebx >> 16 & 0xff), (3, 4));
        let mut topology = entry(TOPOLOGY, 1);
        set_entry(&mut topology, 3, 4);
        assert_eq!((topology.eax, topology.ebx, topology.edx), (2, 4, 3));
        let mut amd = entry(AMD_TOPOLOGY, 0);
        set_entry(&mut amd, 3, 4);
        assert_eq!(amd.eax, 3);
    }

    #[test]
    fn one_vcpu_claims_no_siblings() {
        let mut features = entry(FEATURES, 0);
        set_entry(&mut features, 0, 1);
        assert_eq!(features.edx & EDX_HTT, 0);
    }
}
