//! What each thread of a microVM's process may ask of the host's kernel once it is set up: what
//! [every thread](every_thread) does, and one list a kind of thread.
//!
//! Threads that the library makes confine themselves before the guest's first instruction. The caller's threads are the
//! caller's: [`confine_caller`] is for those that do nothing but follow a microVM from then on.
//!
//! A call that is in no list raises SIGSYS (`SECCOMP_RET_TRAP`) and is not carried out. Without a handler that ends the
//! process; a library installs none.

mod devices;
mod every_thread;
mod rules;
mod supervisor;
#[cfg(test)]
mod tests;
mod vcpu;
mod volume;

use rustix::io::Errno;

use crate::host::privileges;
use crate::host::seccomp::{self, Policy, Program, Rule, compile};

/// The policy of a thread of the VMM: whatever is not listed is a fault.
const fn policy(
    allowed: &'static [&'static [libc::c_long]],
    special: &'static [&'static [(libc::c_long, Rule)]],
) -> Policy {
    let refusal = libc::SECCOMP_RET_TRAP;
    Policy { allowed, special, refusal, last_known: libc::SYS_mseal, unknown: refusal }
}

const VCPU: Program = compile(&vcpu::POLICY);
const DEVICES: Program = compile(&devices::POLICY);
const VOLUME: Program = compile(&volume::POLICY);
const SUPERVISOR: Program = compile(&supervisor::POLICY);

static VCPU_FILTER: [libc::sock_filter; VCPU.len()] = VCPU.instructions();
static DEVICES_FILTER: [libc::sock_filter; DEVICES.len()] = DEVICES.instructions();
static VOLUME_FILTER: [libc::sock_filter; VOLUME.len()] = VOLUME.instructions();
static SUPERVISOR_FILTER: [libc::sock_filter; SUPERVISOR.len()] = SUPERVISOR.instructions();

/// Confines the calling thread, a vCPU's.
pub(super) fn confine_vcpu() -> Result<(), Errno> {
    confine(&VCPU_FILTER)
}

/// Confines the calling thread, that of the devices' event loop.
pub(super) fn confine_devices() -> Result<(), Errno> {
    confine(&DEVICES_FILTER)
}

/// Installs the filter of a volume's thread, which keeps the capabilities that it has.
pub(super) fn confine_volume() -> Result<(), Errno> {
    seccomp::install(&VOLUME_FILTER)
}

/// Confines the calling thread to what it takes to follow a microVM that has been started: wait for it, send it signals,
/// write out what it says, put a terminal in order, and end the process.
///
/// The thread, and threads that it makes, lose all capabilities and the right to gain any (`no_new_privs`), and get a seccomp
/// filter. There is no way back. Other threads of the process stay as they are. A refused system call raises SIGSYS,
/// which ends the process unless it has a handler for it.
///
/// # Errors
/// The kernel has no seccomp filters (`CONFIG_SECCOMP_FILTER`), or another filter forbids to install one.
pub fn confine_caller() -> std::io::Result<()> {
    Ok(confine(&SUPERVISOR_FILTER)?)
}

fn confine(filter: &[libc::sock_filter]) -> Result<(), Errno> {
    privileges::give_up()?;
    seccomp::install(filter)
}
