//! Whether this host's KVM can run a kernel: found out by running ring-0 instructions in it.
//!
//! A `/dev/kvm` that opens says little. Some hosts offer one whose guests run user mode at full speed while ring 0
//! is emulated, slowly and incompletely; no ordinary kernel boots there.

mod payload;
mod probe;
pub(crate) mod x86_64;

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::Kvm;

pub use probe::{REQUIRED_CAPABILITIES, capabilities, check, probe};

/// The device that offers KVM.
pub const DEVICE: &str = "/dev/kvm";
/// The only version that Linux has ever shipped for use.
pub const API_VERSION: i32 = 12;

/// What is to be expected of this host's KVM.
#[derive(Debug)]
pub enum KvmStatus {
    /// It runs kernels.
    Usable {
        /// Millions of ring-0 instructions a second, measured.
        ring0_mips: f64,
    },
    /// It makes VMs, but emulates ring 0 instead of running it on the processor.
    EmulatedRing0 {
        /// Millions of ring-0 instructions a second, measured.
        ring0_mips: f64,
        /// Instructions that it cannot execute at all, though kernels need them.
        refused: Vec<&'static str>,
    },
    /// There is no `/dev/kvm`.
    NoDevice {
        /// Whether the processor shows hardware virtualisation (`vmx` or `svm`).
        cpu_capable: bool,
    },
    /// `/dev/kvm` is there, but not for this user.
    NoPermission,
    /// `/dev/kvm` cannot be opened for another reason.
    NotOpened(io::Error),
    /// It speaks another version of the interface; a negative one is no KVM at all.
    WrongVersion(i32),
    /// It lacks something that amphi needs.
    Missing(Vec<&'static str>),
    /// A step of making or running the probe's VM failed.
    Failed {
        /// What was attempted.
        step: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// The probe's VM ran on without an end and was given up.
    Hangs,
}

impl KvmStatus {
    /// Whether ordinary kernels boot.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        matches!(self, Self::Usable { .. })
    }

    /// What to do so that KVM becomes usable; `None` where it is.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Usable { .. } => return None,
            Self::EmulatedRing0 { .. } => {
                "use bare metal, or a host whose hypervisor passes VMX or SVM through (nested virtualisation)"
            }
            Self::NoDevice { cpu_capable: true } => {
                "load the module: `modprobe kvm_intel` or `modprobe kvm_amd`; inside a container, pass the device in \
                 (--device /dev/kvm)"
            }
            Self::NoDevice { cpu_capable: false } => {
                "switch virtualisation on in the firmware, or nested virtualisation in the hypervisor that runs this \
                 machine"
            }
            Self::NoPermission => {
                "add the user to the device's group (`sudo usermod -aG kvm $USER`, then log in again), or run as root"
            }
            Self::NotOpened(_) => "see the cause; `ls -l /dev/kvm` and `dmesg | grep -i kvm` may say more",
            Self::WrongVersion(version) if *version < 0 => "find out what took the device's name: `ls -l /dev/kvm`",
            Self::WrongVersion(_) | Self::Missing(_) => "use a newer kernel: Linux 5.10 or later has all of it",
            Self::Failed { .. } | Self::Hangs => "see `dmesg | grep -i kvm`",
        };
        Some(text.to_owned())
    }
}

/// What is wrong where this host's KVM makes VMs but refuses instructions that every kernel needs; `None` anywhere else,
/// also where it is merely slow. Takes as long as [`probe`], and opens nothing: `kvm` is open already.
pub(crate) fn no_kernel_runs(kvm: &Arc<Kvm>) -> Option<KvmStatus> {
    let status = probe::run(Arc::clone(kvm));
    matches!(&status, KvmStatus::EmulatedRing0 { refused, .. } if !refused.is_empty()).then_some(status)
}

impl fmt::Display for KvmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable { ring0_mips } => write!(f, "usable, ring 0 at {ring0_mips:.0} million instructions a second"),
            Self::EmulatedRing0 { ring0_mips, refused } => {
                write!(f, "ring 0 is emulated, at about {ring0_mips:.1} million instructions a second")?;
                match refused.as_slice() {
                    [] => Ok(()),
                    names => write!(f, ", and stops at {}", names.join(", ")),
                }
            }
            Self::NoDevice { cpu_capable: true } => {
                write!(f, "{DEVICE} does not exist, although the processor can virtualise")
            }
            Self::NoDevice { cpu_capable: false } => {
                write!(f, "{DEVICE} does not exist, and the processor shows neither VMX nor SVM")
            }
            Self::NoPermission => write!(f, "{DEVICE} may not be opened by this user"),
            Self::NotOpened(error) => write!(f, "{DEVICE} cannot be opened: {error}"),
            Self::WrongVersion(version) if *version < 0 => write!(f, "{DEVICE} is not KVM"),
            Self::WrongVersion(version) => write!(f, "{DEVICE} speaks API version {version}, not {API_VERSION}"),
            Self::Missing(names) => write!(f, "KVM lacks {}", names.join(", ")),
            Self::Failed { step, source } => write!(f, "cannot {step}: {source}"),
            Self::Hangs => write!(f, "a VM of a few instructions does not come to its end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_a_remedy() {
        assert!(KvmStatus::Usable { ring0_mips: 900.0 }.remedy().is_none());
        for status in [
            KvmStatus::EmulatedRing0 { ring0_mips: 2.0, refused: vec!["int3"] },
            KvmStatus::NoDevice { cpu_capable: true },
            KvmStatus::NoDevice { cpu_capable: false },
            KvmStatus::NoPermission,
            KvmStatus::WrongVersion(11),
            KvmStatus::WrongVersion(-1),
            KvmStatus::Hangs,
        ] {
            assert!(status.remedy().is_some(), "{status}");
            assert!(!status.is_usable());
        }
    }

    #[test]
    fn refused_instructions_are_named() {
        let status = KvmStatus::EmulatedRing0 { ring0_mips: 1.84, refused: vec!["int3", "popcnt"] };
        let text = status.to_string();
        assert!(text.contains("about 1.8 million") && text.ends_with("stops at int3, popcnt"), "{text}");
    }
}
