//! A microVM from its parts to its end: the boot recipe, the threads, and how it stopped.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use amphi_devices::acpi::generation::GenerationId;
use amphi_devices::virtio::balloon::Balloon;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::device_set::{DeviceSet, Devices};
use super::error::VmError;
use super::kernel_image::{KernelFile, LoadedKernel};
use super::load::{Initrd, load, table_error};
use super::memory::GuestMemory;
use super::plan::MAX_VCPUS;
use super::pmem::{self, PmemRange};
use super::release::DeferredRelease;
use super::state::{EndedEvent, MachineExit, MachineState, Outcome, Stopper};
use super::vcpu;
use super::x86_64::acpi;
use super::x86_64::boot_params::{self, BootInfo};
use super::x86_64::regs::Entry;
use super::x86_64::{cpuid, layout, mp_table, regs};
use crate::host::kvm::{self, KvmStatus};
use crate::isolation::timeline::Stamp;

/// What a machine is made of.
pub(super) struct MachineConfig<'a> {
    /// The kernel's file.
    pub(super) kernel: &'a Path,
    /// The initrd.
    pub(super) initrd: &'a dyn Initrd,
    /// The kernel's command line.
    pub(super) command_line: &'a str,
    /// The number of vCPUs.
    pub(super) vcpus: u8,
    /// The guest's RAM in bytes, a multiple of the page size.
    pub(super) memory: u64,
    /// The devices.
    pub(super) devices: Devices,
}

/// A machine whose threads run, or are about to.
pub(super) struct Machine {
    pub(super) state: Arc<MachineState>,
    pub(super) devices: Arc<DeviceSet>,
    vcpus: Mutex<Vec<VcpuFd>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    first_instruction: Arc<Stamp>,
    /// Held by whoever pauses, resumes or resets the machine.
    pub(super) pausing: Mutex<()>,
    pub(super) boot: Boot,
    pub(super) kvm: Arc<Kvm>,
    pub(super) vm: Arc<VmFd>,
    release: Option<DeferredRelease>,
    // Dropped after the vCPUs, without which nothing reaches it by the VM's slots.
    pub(super) memory: GuestMemory,
    _pmem: Vec<PmemRange>,
}

/// What a machine has begun with.
pub(super) struct Boot {
    pub(super) kernel_file: KernelFile,
    pub(super) kernel: LoadedKernel,
    pub(super) vcpus: u8,
    /// The guest's RAM in bytes.
    pub(super) ram: u64,
}

impl Machine {
    /// Makes the VM, loads everything into its memory, and attaches its devices. Nothing runs yet.
    pub(super) fn build(mut config: MachineConfig<'_>, first_instruction: Arc<Stamp>) -> Result<Self, VmError> {
        let kvm = open_kvm()?;
        let most = kvm.get_max_vcpus().min(MAX_VCPUS.into());
        if config.vcpus == 0 || usize::from(config.vcpus) > most {
            let problem = format!("--cpus {}: this host's KVM gives a microVM 1 to {most} vCPUs", config.vcpus);
            return Err(VmError::Unsupported(problem));
        }
        let guest_memory = GuestMemory::map(config.memory)?;
        let memory = guest_memory.handle();
        // A new VM makes KVM wait for grace periods of the host's kernel, and in that time memory is filled. The VM is made
        // on this thread, so that its waits begin at once, whether or not there is a second processor.
        let (vm, loaded) = thread::scope(|scope| {
            let loader = thread::Builder::new()
                .name("loader".to_owned())
                .spawn_scoped(scope, || {
                    let release = DeferredRelease::prepare();
                    let kernel = KernelFile::open(config.kernel)?;
                    let loaded = load(memory, &kernel, config.initrd, config.command_line)?;
                    Ok::<_, VmError>((kernel, loaded, release))
                })
                .map_err(VmError::host("start a thread"))?;
            let vm = create_vm(&kvm);
            Ok::<_, VmError>((vm, loader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
        })?;
        let (vm, (kernel_file, (kernel, initrd), release)) = (vm?, loaded?);
        let boot = Boot { kernel_file, kernel, vcpus: config.vcpus, ram: config.memory };
        guest_memory.register(&vm)?;
        let pmem = pmem::map(std::mem::take(&mut config.devices.pmem), config.memory)?;
        for (slot, range) in (guest_memory.slots()..).zip(&pmem) {
            range.register(&vm, slot)?;
        }
        let vm = Arc::new(vm);
        let state = Arc::new(MachineState::new()?);
        let devices = DeviceSet::attach(&vm, &guest_memory, config.devices, &pmem, &state)?;
        write_boot_information(memory, &boot, initrd, &devices)?;
        let vcpus = create_vcpus(&kvm, &vm, config.vcpus, kernel.entry)?;
        Ok(Self {
            state,
            devices: Arc::new(devices),
            vcpus: Mutex::new(vcpus),
            threads: Mutex::default(),
            first_instruction,
            pausing: Mutex::default(),
            boot,
            kvm: Arc::new(kvm),
            vm,
            release,
            memory: guest_memory,
            _pmem: pmem,
        })
    }

    /// Starts the threads, and calls `before_guest` on this one when nothing else is to be done. No vCPU enters the guest
    /// before that has returned, nor ever where it fails.
    pub(super) fn start(&self, before_guest: &dyn Fn() -> io::Result<()>) -> Result<(), VmError> {
        // Held all the time: vCPUs wait for it, and whoever ends the machine shall know all threads to kick.
        let mut outcome = self.state.lock();
        let started = self
            .start_threads(&mut outcome)
            .and_then(|()| before_guest().map_err(VmError::host("give up what a running microVM does not need")));
        if started.is_err() {
            self.state.finish_locked(&mut outcome, Ok(MachineExit::Stopped));
        }
        started
    }

    /// The boot processor starts last, when all others wait for its call.
    fn start_threads(&self, outcome: &mut Outcome) -> Result<(), VmError> {
        let state = Arc::clone(&self.state);
        self.devices.start(move |error| state.finish(Err(error)))?;
        let vcpus = std::mem::take(&mut *self.vcpus.lock().unwrap_or_else(PoisonError::into_inner));
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u8::try_from(vcpus.len()).unwrap_or(u8::MAX);
        for (index, vcpu) in (0..count).zip(vcpus).rev() {
            let (thread, id) = vcpu::spawn(
                index,
                vcpu,
                self.devices.buses(),
                Arc::clone(&self.state),
                Arc::clone(&self.first_instruction),
            )?;
            outcome.add_vcpu(id);
            threads.push(thread);
        }
        Ok(())
    }

    /// What is wrong with this host's KVM, where it turns out to run no kernels.
    pub(super) fn no_kernel_runs(&self) -> Option<KvmStatus> {
        kvm::no_kernel_runs(&self.kvm)
    }

    /// An event that tells of the machine's end.
    pub(super) fn ended_event(&self) -> EndedEvent {
        EndedEvent(Arc::clone(&self.state))
    }

    /// The balloon, if it has one.
    pub(super) fn balloon(&self) -> Option<&Mutex<Balloon>> {
        self.devices.balloon()
    }

    /// The generation identifier, if it has one.
    pub(super) fn generation(&self) -> Option<&Mutex<GenerationId>> {
        self.devices.generation()
    }

    /// What ends the machine from another thread.
    pub(super) fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.state))
    }

    /// Takes all vCPUs out of the guest, and has the devices hand back what is under way and rest. Returns when all of it is
    /// done, or the machine has ended.
    ///
    /// Time goes on for the guest: its clock is told that it was stopped, so that it does not take itself for hung.
    pub(super) fn pause(&self) {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.pause();
        self.devices.pause();
    }

    /// Undoes [`Machine::pause`].
    pub(super) fn resume(&self) {
        let _one_at_a_time = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        self.devices.resume();
        self.state.resume();
    }

    /// Whether the machine is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.state.is_paused()
    }

    /// Ends the machine from outside, whatever the guest does.
    pub(super) fn stop(&self) {
        self.state.finish(Ok(MachineExit::Stopped));
    }

    /// Waits until the machine has ended and its vCPUs are out of the guest, and tells how it ended.
    pub(super) fn wait(&self) -> Result<MachineExit, Arc<VmError>> {
        self.state.wait_for_end();
        self.join();
        let exit = self.state.exit().unwrap_or(Ok(MachineExit::Stopped));
        // This is how ordinary kernels end on a host whose KVM emulates ring 0.
        if let Err(error) = &exit
            && matches!(**error, VmError::KvmInternal { .. })
            && let Some(status) = self.no_kernel_runs()
        {
            let explained = Err(Arc::new(VmError::NoKvm(status)));
            self.state.explain(explained.clone());
            return explained;
        }
        exit
    }

    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A vCPU's thread has nothing to report but its panic, and that is on standard error already.
            let _ = thread.join();
        }
        self.state.forget_vcpus();
        self.devices.stop();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        self.join();
        if let Some(release) = &self.release {
            release.hand_over(&self.kvm, &self.vm);
        }
    }
}

pub(super) fn open_kvm() -> Result<Kvm, VmError> {
    kvm::check().map_err(VmError::NoKvm)
}

/// A VM with in-kernel interrupt controllers, and no interval timer: making and unmaking one costs more than all the rest.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    let vm = loop {
        match kvm.create_vm() {
            Ok(vm) => break vm,
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(VmError::kvm("create a VM")(error)),
        }
    };
    vm.set_tss_address(layout::KVM_TSS).map_err(VmError::kvm("place its task state segment"))?;
    vm.create_irq_chip().map_err(VmError::kvm("create interrupt controllers"))?;
    Ok(vm)
}

/// The vCPUs, as they enter the guest: the first one at the kernel's door.
pub(super) fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8, entry: Entry) -> Result<Vec<VcpuFd>, VmError> {
    let mut cpuid = cpuid::supported(kvm).map_err(VmError::kvm("tell the supported CPU features"))?;
    (0..count)
        .map(|id| {
            let vcpu = vm.create_vcpu(u64::from(id)).map_err(VmError::kvm("create a vCPU"))?;
            cpuid::set_topology(&mut cpuid, id, count);
            vcpu.set_cpuid2(&cpuid).map_err(VmError::kvm("set a vCPU's features"))?;
            regs::set_firmware_msrs(&vcpu).map_err(VmError::kvm("set a vCPU's registers"))?;
            if id == 0 {
                regs::set_entry(&vcpu, entry).map_err(VmError::kvm("set the boot processor's registers"))?;
            }
            Ok(vcpu)
        })
        .collect()
}

/// Writes all that a guest's kernel is told of its machine, but for the command line. `initrd` is its address and length.
pub(super) fn write_boot_information(
    memory: &GuestMemoryMmap,
    boot: &Boot,
    initrd: (u64, u64),
    devices: &DeviceSet,
) -> Result<(), VmError> {
    let rsdp = acpi::write_tables(memory, devices.platform(boot.vcpus)).map_err(table_error)?;
    mp_table::write(memory, boot.vcpus).map_err(table_error)?;
    let info = BootInfo { ram: boot.ram, initrd, rsdp };
    match boot.kernel.entry {
        Entry::Linux64(_) => boot_params::write_zero_page(memory, &info, boot.kernel.setup_header),
        Entry::Pvh(_) => boot_params::write_pvh_start_info(memory, &info),
    }
    .and_then(|()| regs::write_tables(memory, boot.kernel.entry))
    .map_err(table_error)
}
