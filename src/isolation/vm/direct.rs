//! Booting a user's own kernel and initramfs, without an image: the console is all there is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::device_set::{Devices, SerialConsole};
use super::disks::Disk;
use super::error::VmError;
use super::load::Initrd;
use super::machine::{Machine, MachineConfig};
use super::memory;
use super::network::{self, Connection};
use super::pmem::PmemFile;
use super::state::{MachineExit, Stopper};
use crate::isolation::timeline::{Instant, Stamp, Timeline};
use crate::kernel::Kernel;
use crate::spec::{self, MemorySize, Network, VmDevices};

/// The command line where the user gives none: the console on COM1, and an end instead of a wait after a panic.
pub const DEFAULT_ARGUMENTS: &str = "console=ttyS0 reboot=t panic=-1";

/// What keeps a kernel from looking for a PCI bus.
const NO_PCI: &str = "pci=off";

/// A kernel with its initramfs, as users of other VMMs boot them.
#[derive(Debug, Clone)]
pub struct DirectBoot {
    /// The kernel's file: an ELF image or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
    /// The command line, in parts; where it is empty, [`DEFAULT_ARGUMENTS`] are used. `pci=off` is added unless there
    /// is a `pci=` in it: the machine has no PCI, and a kernel spends long on finding that out by itself.
    pub arguments: Vec<String>,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The guest's RAM.
    pub memory: MemorySize,
    /// The network that the guest's first interface is in. The guest sets it up by itself; in a `user` network, there
    /// is DHCP.
    pub network: Network,
    /// Devices beyond those that every microVM has.
    pub devices: VmDevices,
}

impl DirectBoot {
    /// Boots the machine with its serial console on `input` and `output`, and returns while the guest runs.
    ///
    /// # Errors
    /// The settings cannot be honoured, or the machine could not be made.
    pub fn start(&self, input: OwnedFd, output: OwnedFd) -> Result<DirectMachine, VmError> {
        self.start_after(input, output, || Ok(()))
    }

    /// As [`DirectBoot::start`], with `action` called on this thread when everything is open and all threads are there, but
    /// before the guest's first instruction (see [`VmIsolation::before_guest`](super::VmIsolation::before_guest)).
    ///
    /// # Errors
    /// As for [`DirectBoot::start`], or `action` failed.
    pub fn start_after(
        &self,
        input: OwnedFd,
        output: OwnedFd,
        action: impl Fn() -> io::Result<()>,
    ) -> Result<DirectMachine, VmError> {
        let (created, first_instruction) = (Stamp::default(), Arc::default());
        spec::check_memory(self.memory, spec::host_memory())?;
        self.arguments.iter().try_for_each(|argument| spec::check_kernel_argument(argument))?;
        self.devices.check()?;
        let kernel = Kernel::resolve(Some(&self.kernel))?;
        let disks = self.devices.disks.iter().map(Disk::open).collect::<Result<_, _>>()?;
        let pmem = self.devices.pmem.iter().map(PmemFile::open).collect::<Result<_, _>>()?;
        let initrd = self.initrd.as_deref().map(InitrdFile::open).transpose()?;
        spec::check_network(&self.network)?;
        let (network, mut connection) = network::connect(&self.network)?;
        let command_line = self.command_line();
        let serial = SerialConsole { input: Some(input), output: Box::new(File::from(output)) };
        let machine = Machine::build(
            MachineConfig {
                kernel: &kernel.image,
                initrd: initrd.as_ref().map_or(&NoInitrd as &dyn Initrd, |file| file),
                command_line: &command_line,
                vcpus: self.vcpus,
                memory: self.memory.bytes() & !0xfff,
                devices: Devices {
                    serial,
                    console_ports: Vec::new(),
                    disks,
                    pmem,
                    network,
                    volumes: Vec::new(),
                    extra: self.devices.clone(),
                },
            },
            Arc::clone(&first_instruction),
        )?;
        connection.wait_ready()?;
        created.mark();
        machine.start(&action)?;
        Ok(DirectMachine { machine, _network: connection, created, first_instruction })
    }

    fn command_line(&self) -> String {
        let mut given = if self.arguments.is_empty() { DEFAULT_ARGUMENTS.to_owned() } else { self.arguments.join(" ") };
        for argument in self.devices.kernel_arguments() {
            given = given + " " + &argument;
        }
        if given.split_ascii_whitespace().any(|argument| argument.starts_with("pci=")) {
            given
        } else {
            given + " " + NO_PCI
        }
    }
}

/// A machine that a [`DirectBoot`] has started. Dropping it ends the guest.
pub struct DirectMachine {
    machine: Machine,
    _network: Connection,
    created: Stamp,
    first_instruction: Arc<Stamp>,
}

impl DirectMachine {
    /// What ends the machine from another thread, as [`MachineExit::Stopped`].
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.machine.stopper()
    }

    /// Waits for the guest's end, and takes the machine down.
    ///
    /// # Errors
    /// The machine could not go on. That the guest ended, in whatever way, is no error.
    pub fn wait(self) -> Result<(MachineExit, Timeline), VmError> {
        let exit = self.machine.wait().map_err(VmError::Shared)?;
        let exited = Instant::now();
        drop(self.machine);
        let timeline = Timeline {
            created: self.created.get(),
            first_instruction: self.first_instruction.get(),
            exited: Some(exited),
            cleaned: Some(Instant::now()),
            ..Timeline::default()
        };
        Ok((exit, timeline))
    }
}

struct NoInitrd;

impl Initrd for NoInitrd {
    fn len(&self) -> u64 {
        0
    }

    fn load(&self, _memory: &GuestMemoryMmap, _address: u64) -> Result<(), VmError> {
        Ok(())
    }
}

/// An initrd that is a file of the user's.
struct InitrdFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl InitrdFile {
    fn open(path: &Path) -> Result<Self, VmError> {
        let error = |source| VmError::Read { what: "initrd", path: path.to_owned(), source };
        // A pipe is refused, and not waited for.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(error(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")));
        }
        Ok(Self { path: path.to_owned(), file, len: metadata.len() })
    }
}

impl Initrd for InitrdFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn load(&self, memory: &GuestMemoryMmap, address: u64) -> Result<(), VmError> {
        memory::read_from(&self.file, 0, memory, address, self.len).map_err(|source| VmError::Read {
            what: "initrd",
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_line(arguments: &[&str]) -> String {
        DirectBoot {
            kernel: PathBuf::new(),
            initrd: None,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            vcpus: 1,
            memory: MemorySize::from_mib(128),
            network: Network::None,
            devices: VmDevices::default(),
        }
        .command_line()
    }

    #[test]
    fn pci_is_off_unless_the_user_says_something_of_it() {
        assert_eq!(command_line(&["quiet", "xpci=1"]), "quiet xpci=1 pci=off");
        assert_eq!(command_line(&[]), format!("{DEFAULT_ARGUMENTS} pci=off"));
        assert_eq!(command_line(&["quiet pci=conf1", "a"]), "quiet pci=conf1 a");
    }
}
