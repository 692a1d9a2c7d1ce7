//! Giving up what a thread may do beyond what any user's may.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};

/// Takes all capabilities from the calling thread and all that it will make, for good.
///
/// Permitted, effective and inheritable sets become empty, and the ambient set, which is never larger than these, with them.
/// The bounding set is left: it bounds what `execve` may give, and with `no_new_privs`, which is set here, that is
/// never more than the empty permitted set.
pub(crate) fn give_up() -> Result<(), Errno> {
    keep(CapabilitySet::empty())
}

/// The same for all but those in `kept`, which then stay whatever user the thread acts as.
pub(crate) fn keep(kept: CapabilitySet) -> Result<(), Errno> {
    set_no_new_privs(true)?;
    if !kept.is_empty() {
        set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    }
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}
