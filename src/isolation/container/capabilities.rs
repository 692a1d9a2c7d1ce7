//! The capabilities that a workload keeps: docker's default set.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

/// What a root workload may do, in its own namespaces only.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Takes all others from the bounding set, so that no `execve` can bring them back.
pub(super) fn limit_bounding_set() -> Result<(), Errno> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel has no capability for.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Sets permitted and effective to the kept set and clears inheritable, and with it ambient.
pub(super) fn keep_default_set() -> Result<(), Errno> {
    set(KEPT)
}

/// Leaves PID 1 with what forwarding signals to a workload of another user needs.
pub(super) fn keep_kill_only() -> Result<(), Errno> {
    set(CapabilitySet::KILL)
}

fn set(capabilities: CapabilitySet) -> Result<(), Errno> {
    set_capabilities(
        None,
        CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: CapabilitySet::empty() },
    )
}
