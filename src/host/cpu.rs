//! The processor, and whether it is a real one.

use std::arch::x86_64::__cpuid;
use std::fs;

/// What runs this machine, told by the processor itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The processor's own name.
    pub model: String,
    /// The hypervisor that this machine is a guest of, where it says so: such as `KVM`, `QEMU TCG`, `VMware`.
    pub hypervisor: Option<String>,
}

/// This machine's processor.
#[must_use]
pub fn detect() -> Cpu {
    let model = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| field(&text, "model name"))
        .unwrap_or_else(|| "unknown".to_owned());
    Cpu { model, hypervisor: hypervisor() }
}

/// Whether the processor shows VMX or SVM.
#[must_use]
pub(super) fn virtualises() -> bool {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    let vmx = __cpuid(1).ecx & VMX != 0;
    vmx || (__cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & SVM != 0)
}

fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned()).filter(|value| !value.is_empty())
}

fn hypervisor() -> Option<String> {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let signature: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|part| part.to_le_bytes()).collect();
    Some(hypervisor_name(&signature))
}

fn hypervisor_name(signature: &[u8]) -> String {
    match signature {
        b"KVMKVMKVM\0\0\0" => "KVM".to_owned(),
        b"TCGTCGTCGTCG" => "QEMU TCG".to_owned(),
        b"Microsoft Hv" => "Hyper-V".to_owned(),
        b"VMwareVMware" => "VMware".to_owned(),
        b"XenVMMXenVMM" => "Xen".to_owned(),
        other => {
            let text: String =
                other.iter().map(|&b| char::from(b)).filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
            if text.trim().is_empty() { "unnamed".to_owned() } else { text.trim().to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypervisors_are_named() {
        assert_eq!(hypervisor_name(b"TCGTCGTCGTCG"), "QEMU TCG");
        assert_eq!(hypervisor_name(b"KVMKVMKVM\0\0\0"), "KVM");
        assert_eq!(hypervisor_name(b"PVMPVMPVM\0\0\0"), "PVMPVMPVM");
        assert_eq!(hypervisor_name(&[0; 12]), "unnamed");
    }

    #[test]
    fn the_model_is_found() {
        let text = "processor\t: 0\nmodel\t\t: 167\nmodel name\t: Some CPU @ 2GHz\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2GHz"));
        assert_eq!(field("", "model name"), None);
    }
}
