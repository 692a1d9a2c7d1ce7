//! Runs the probe's guest.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::payload::{self, Test};
use super::{API_VERSION, KvmStatus};
use crate::host::cpu;

/// What of KVM amphi cannot do without, with the names of the kernel's documentation.
pub const REQUIRED_CAPABILITIES: [(&str, Cap); 8] = [
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory),
    ("KVM_CAP_SET_TSS_ADDR", Cap::SetTssAddr),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid),
    ("KVM_CAP_IRQCHIP", Cap::Irqchip),
    ("KVM_CAP_IRQFD", Cap::Irqfd),
    ("KVM_CAP_IOEVENTFD", Cap::Ioeventfd),
    ("KVM_CAP_TSC_DEADLINE_TIMER", Cap::TscDeadlineTimer),
    ("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit),
];

/// Slower than this is no processor at work but an emulator of single instructions.
const EMULATED_BELOW_MIPS: f64 = 20.0;
/// How long the probe may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Opens KVM and checks its version: all that can be known without running a VM. Takes microseconds.
///
/// # Errors
/// Why KVM cannot be used.
pub fn check() -> Result<Kvm, KvmStatus> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmStatus::NoDevice { cpu_capable: cpu::virtualises() },
        libc::EACCES | libc::EPERM => KvmStatus::NoPermission,
        errno => KvmStatus::NotOpened(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => Err(KvmStatus::WrongVersion(version)),
    }
}

/// Which of the [`REQUIRED_CAPABILITIES`] there are.
#[must_use]
pub fn capabilities(kvm: &Kvm) -> Vec<(&'static str, bool)> {
    REQUIRED_CAPABILITIES.iter().map(|&(name, cap)| (name, kvm.check_extension(cap))).collect()
}

/// Runs a VM of a few instructions that kernels need in ring 0, and measures their speed. Takes some milliseconds
/// where KVM is a processor's, up to 50 where it is emulated.
#[must_use]
pub fn probe() -> KvmStatus {
    check().map_or_else(|status| status, |kvm| run(Arc::new(kvm)))
}

/// [`probe`] for a KVM that is open.
pub(super) fn run(kvm: Arc<Kvm>) -> KvmStatus {
    let missing: Vec<_> = capabilities(&kvm).into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        return KvmStatus::Missing(missing);
    }
    // On a thread of its own, because a guest that never exits cannot be interrupted without a signal handler,
    // which is not a library's to install. The thread is abandoned then, and ends with the process.
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("kvm-probe".to_owned());
    let run = move || {
        // The receiver is gone only where patience ran out.
        let _ = sender.send(run_all(&kvm).unwrap_or_else(|status| status));
    };
    match thread.spawn(run) {
        Ok(_) => receiver.recv_timeout(PATIENCE).unwrap_or(KvmStatus::Hangs),
        Err(source) => KvmStatus::Failed { step: "start the probe's thread", source },
    }
}

fn run_all(kvm: &Kvm) -> Result<KvmStatus, KvmStatus> {
    let mut guest = Guest::new(kvm)?;
    let mut refused = Vec::new();
    for test in Test::REQUIRED {
        if test == Test::Xsave && !guest.xsave {
            continue;
        }
        if !guest.executes(test, 0)?.done {
            refused.push(test.name());
        }
    }
    let ring0_mips = guest.speed()?;
    if refused.is_empty() && ring0_mips >= EMULATED_BELOW_MIPS {
        Ok(KvmStatus::Usable { ring0_mips })
    } else {
        Ok(KvmStatus::EmulatedRing0 { ring0_mips, refused })
    }
}

/// How a test ended.
struct Outcome {
    /// The guest reached the test's end.
    done: bool,
    /// From the loop's beginning to the test's end.
    took: Duration,
}

/// The probe's VM. Fields are dropped in this order: the memory outlives what uses it.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
    reset: kvm_bindings::kvm_sregs,
    xsave: bool,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Self, KvmStatus> {
        let vm = kvm.create_vm().map_err(failed("make a VM"))?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), payload::MEMORY_SIZE)])
            .map_err(|error| KvmStatus::Failed { step: "map guest memory", source: io::Error::other(error) })?;
        let invalid = |error| KvmStatus::Failed { step: "fill guest memory", source: io::Error::other(error) };
        memory.write_slice(&payload::memory_image(), GuestAddress(0)).map_err(invalid)?;
        let host_address =
            vm_memory::GuestMemoryBackend::get_host_address(&memory, GuestAddress(0)).map_err(invalid)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: payload::MEMORY_SIZE as u64,
            userspace_addr: host_address as u64,
        };
        // SAFETY: the mapping belongs to `memory`, which is dropped after the VM that uses it.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("give the VM its memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("make a vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the supported CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set the vCPU's CPUID"))?;
        let xsave = cpuid.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & (1 << 26) != 0);
        let reset = vcpu.get_sregs().map_err(failed("read the vCPU's registers"))?;
        Ok(Self { vcpu, _vm: vm, _memory: memory, reset, xsave })
    }

    /// Runs `test` from fresh registers.
    fn executes(&mut self, test: Test, rounds: u64) -> Result<Outcome, KvmStatus> {
        let sregs = payload::system_registers(self.reset, self.xsave);
        self.vcpu.set_sregs(&sregs).map_err(failed("set the vCPU's system registers"))?;
        self.vcpu.set_regs(&payload::registers(test, rounds)).map_err(failed("set the vCPU's registers"))?;
        let mut begin = Instant::now();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(payload::BEGIN, _)) => begin = Instant::now(),
                Ok(VcpuExit::IoOut(payload::DONE, _)) => return Ok(Outcome { done: true, took: begin.elapsed() }),
                Ok(VcpuExit::Intr) => {}
                // An exception, KVM_EXIT_INTERNAL_ERROR, a failed entry, a triple fault: not executed.
                Ok(VcpuExit::IoOut(payload::FAULT, _)) | Ok(_) => {
                    return Ok(Outcome { done: false, took: begin.elapsed() });
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(failed("run the vCPU")(error)),
            }
        }
    }

    /// Millions of instructions a second in a loop that is long enough to be timed, but not for long.
    fn speed(&mut self) -> Result<f64, KvmStatus> {
        let mut mips = 0.0;
        for rounds in [10_000_u32, 1_000_000] {
            let outcome = self.executes(Test::Loop, u64::from(rounds))?;
            if !outcome.done {
                break;
            }
            let instructions = f64::from(rounds * payload::INSTRUCTIONS_PER_ROUND);
            mips = instructions / outcome.took.as_secs_f64().max(1e-9) / 1e6;
            if mips < EMULATED_BELOW_MIPS {
                break;
            }
        }
        Ok(mips)
    }
}

fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmStatus {
    move |error| KvmStatus::Failed { step, source: io::Error::from_raw_os_error(error.errno()) }
}
