//! The devices of one machine: each gets its addresses and its interrupt line, and a place on a bus and in the event loop.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use amphi_devices::acpi::generation::GenerationId;
use amphi_devices::acpi::watchdog::{PERIOD, WATCHDOG_SIZE, Watchdog};
use amphi_devices::legacy::PowerEvents;
use amphi_devices::legacy::nmi::{NMI_STATUS_PORT, NmiStatus};
use amphi_devices::legacy::panic::{PANIC_SIZE, PanicRegister};
use amphi_devices::legacy::power::{POWER_SIZE, PowerControl};
use amphi_devices::legacy::reset::{KEYBOARD_CONTROLLER_PORT, KeyboardReset};
use amphi_devices::legacy::serial::Serial;
use amphi_devices::virtio::VirtioDevice;
use amphi_devices::virtio::balloon::{Balloon, BalloonFeatures};
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::mmio::{self, MmioTransport, RegisterPages};
use amphi_devices::virtio::rng::Rng;
use amphi_devices::virtio::vsock::Vsock;
use amphi_devices::{Bus, BusDevice, Interrupt, timer};
use event_manager::MutEventSubscriber;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::balloon::{self, GuestRam};
use super::disks::Disk;
use super::error::VmError;
use super::event_loop::{EventLoop, Subscriber};
use super::host_socket::HostSocket;
use super::memory::GuestMemory;
use super::network::NetworkDevice;
use super::pmem::{PmemFile, PmemRange};
use super::seccomp;
use super::state::{MachineState, Silence};
use super::vcpu::Buses;
use super::volumes::OpenVolume;
use super::x86_64::acpi::Platform;
use super::x86_64::layout;
use crate::spec::{self, VmDevices, WatchdogAction};

/// The devices that a machine is to have.
pub(super) struct Devices {
    /// COM1.
    pub(super) serial: SerialConsole,
    /// The ports of a virtio-console; none means no such device.
    pub(super) console_ports: Vec<Port>,
    /// The disks, in the order in which the guest sees them.
    pub(super) disks: Vec<Disk>,
    /// Files as persistent memory, likewise.
    pub(super) pmem: Vec<PmemFile>,
    /// The network device.
    pub(super) network: Option<NetworkDevice>,
    /// The volumes, in the order of their tags.
    pub(super) volumes: Vec<OpenVolume>,
    /// What the user has asked for.
    pub(super) extra: VmDevices,
}

/// Where COM1 leads.
pub(super) struct SerialConsole {
    /// What the guest reads.
    pub(super) input: Option<OwnedFd>,
    /// Where what the guest writes goes.
    pub(super) output: Box<dyn Write + Send>,
}

/// The devices of a machine, attached to its VM.
pub(super) struct DeviceSet {
    buses: Arc<Buses>,
    /// The one for most devices, then one for each volume.
    events: Vec<EventLoop>,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
    serial: Arc<Mutex<Serial>>,
    extra: Extra,
}

/// What the user has asked for, as far as it is needed after the start.
struct Extra {
    /// The name by which programs of the host reach the guest.
    _host_socket: Option<HostSocket>,
    balloon: Option<Arc<Mutex<Balloon>>>,
    watchdog: Option<Arc<Mutex<Watchdog>>>,
    generation: Option<Mutex<GenerationId>>,
}

impl DeviceSet {
    /// Makes the devices and attaches them.
    pub(super) fn attach(
        vm: &Arc<VmFd>,
        guest_memory: &GuestMemory,
        devices: Devices,
        pmem: &[PmemRange],
        state: &Arc<MachineState>,
    ) -> Result<Self, VmError> {
        let power = Arc::clone(state) as Arc<dyn PowerEvents>;
        let mut builder = Builder {
            vm,
            memory: guest_memory.handle(),
            registers: guest_memory.registers(),
            ports: Bus::new(),
            mmio: Bus::new(),
            subscribers: Vec::new(),
            transports: Vec::new(),
        };
        let serial = builder.add_serial(devices.serial)?;
        let registers = Arc::new(Mutex::new(PowerControl::new(Arc::clone(&power))));
        builder.add_port(u64::from(layout::POWER_PORT), POWER_SIZE, registers)?;
        let panic = Arc::new(Mutex::new(PanicRegister::new(Arc::clone(&power))));
        builder.add_memory(u64::from(layout::PANIC_REGISTER), PANIC_SIZE, panic)?;
        builder.add_port(KEYBOARD_CONTROLLER_PORT, 1, Arc::new(Mutex::new(KeyboardReset::new(power))))?;
        if !devices.console_ports.is_empty() {
            let console = Console::new(devices.console_ports).map_err(VmError::host("make the virtio console"))?;
            builder.add_virtio(console, Notify::Call)?;
        }
        for (index, disk) in devices.disks.into_iter().enumerate() {
            builder.add_virtio(disk.device(index)?, Notify::EventFd)?;
        }
        for range in pmem {
            let device = range.device().map_err(VmError::host("make persistent memory"))?;
            builder.add_virtio(device, Notify::EventFd)?;
        }
        match devices.network {
            Some(NetworkDevice::Own(network)) => drop(builder.add_virtio(network, Notify::EventFd)?),
            Some(NetworkDevice::Vhost(network)) => drop(builder.add_virtio(network.finish()?, Notify::Kernel)?),
            None => {}
        }
        let rng = Rng::new().map_err(VmError::host("make the virtio entropy device"))?;
        builder.add_virtio(rng, Notify::Call)?;
        let extra = builder.add_extra(&devices.extra, state)?;
        let volumes = builder.add_volumes(devices.volumes)?;
        let mut events = vec![EventLoop::new("devices", Box::new(seccomp::confine_devices), builder.subscribers)?];
        events.extend(volumes);
        guest_memory.register_devices(vm, builder.transports.len())?;
        Ok(Self {
            buses: Arc::new(Buses { ports: builder.ports, memory: builder.mmio }),
            events,
            transports: builder.transports,
            serial,
            extra,
        })
    }

    /// What the guest's ACPI tables tell of a machine with these devices and so many vCPUs.
    pub(super) fn platform(&self, vcpus: u8) -> Platform {
        Platform {
            vcpus,
            // There are at most as many as there are interrupt lines.
            virtio_devices: u8::try_from(self.transports.len()).unwrap_or(u8::MAX),
            generation: self.extra.generation.is_some(),
            watchdog: self.with_watchdog(|watchdog| watchdog.state().length),
        }
    }

    /// The generation identifier, if there is one.
    pub(super) fn generation(&self) -> Option<&Mutex<GenerationId>> {
        self.extra.generation.as_ref()
    }

    /// The balloon, if there is one.
    pub(super) fn balloon(&self) -> Option<&Mutex<Balloon>> {
        self.extra.balloon.as_deref()
    }

    /// The buses that vCPUs' exits lead to.
    pub(super) fn buses(&self) -> Arc<Buses> {
        Arc::clone(&self.buses)
    }

    /// Starts the event loops. `on_failure` is called where one cannot go on.
    pub(super) fn start(&self, on_failure: impl FnOnce(VmError) + Clone + Send + 'static) -> Result<(), VmError> {
        let transports = self.transports.clone();
        let quiesce = move || {
            for transport in &transports {
                transport.lock().unwrap_or_else(PoisonError::into_inner).quiesce();
            }
        };
        let Some((most, volumes)) = self.events.split_first() else { return Ok(()) };
        most.start(quiesce, on_failure.clone())?;
        // A volume's requests are carried out one by one: when its thread rests, none is under way.
        volumes.iter().try_for_each(|events| events.start(|| {}, on_failure.clone()))?;
        let started = self.with_watchdog(Watchdog::start).unwrap_or(Ok(()));
        started.map_err(VmError::host("set the watchdog's timer"))
    }

    /// Has all devices rest, and returns when nothing is under way. Meanwhile vCPUs must be out of the guest.
    pub(super) fn pause(&self) {
        self.with_watchdog(Watchdog::pause);
        self.events.iter().for_each(EventLoop::pause);
    }

    /// Lets devices work on.
    pub(super) fn resume(&self) {
        self.with_watchdog(Watchdog::resume);
        self.events.iter().for_each(EventLoop::resume);
    }

    /// Puts all devices back to how they were when the machine was made: nothing that the guest has set is left, and nothing is under way.
    /// What they lead to on the host stays. They must rest; on a vCPU's thread, as when a driver resets its device.
    pub(super) fn reset(&self) -> Result<(), VmError> {
        for transport in &self.transports {
            transport.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).reset();
        self.with_watchdog(Watchdog::reset).unwrap_or(Ok(())).map_err(VmError::host("set the watchdog's timer"))
    }

    /// Puts into memory what devices have there from the start.
    pub(super) fn fill_memory(&self) -> Result<(), VmError> {
        let Some(generation) = &self.extra.generation else { return Ok(()) };
        let written = generation.lock().unwrap_or_else(PoisonError::into_inner).reset();
        written.map_err(VmError::host("write the generation identifier"))
    }

    fn with_watchdog<T>(&self, action: impl FnOnce(&mut Watchdog) -> T) -> Option<T> {
        let watchdog = self.extra.watchdog.as_ref()?;
        Some(action(&mut watchdog.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Delivers what is still under way, and ends the event loops.
    pub(super) fn stop(&self) {
        self.events.iter().for_each(EventLoop::stop);
    }
}

/// The longest countdown, in the device's unit.
fn longest_countdown(wanted: spec::Watchdog) -> u32 {
    let period = u32::try_from(PERIOD.as_millis()).unwrap_or(u32::MAX);
    u32::from(wanted.seconds.get()) * 1000 / period
}

/// How a guest notifies a device.
#[derive(Clone, Copy, PartialEq)]
enum Notify {
    /// The vCPU leaves the guest and calls the transport. Nothing to set up or take down, which is best where notifications
    /// are few.
    Call,
    /// KVM turns what the guest writes into an eventfd, and nobody hears of an interrupt's acknowledgement.
    EventFd,
    /// The same, and the host's kernel, which does the device's work, interrupts by an eventfd.
    Kernel,
}

/// An edge-triggered interrupt line, raised by calls: an irqfd would leave it to another thread of the kernel's wherever the
/// interrupt controller is KVM's, which costs more, and KVM waits for a grace period when it takes down one that was used.
struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
    /// Attached to the line as well, for others than this process.
    event: Option<EventFd>,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        let set =
            |level| self.vm.set_irq_line(self.gsi, level).map_err(|error| io::Error::from_raw_os_error(error.errno()));
        set(true).and_then(|()| set(false))
    }

    fn event(&self) -> Option<&EventFd> {
        self.event.as_ref()
    }
}

struct Builder<'a> {
    vm: &'a Arc<VmFd>,
    memory: &'a GuestMemoryMmap,
    registers: &'a RegisterPages,
    ports: Bus,
    mmio: Bus,
    subscribers: Vec<Subscriber>,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
}

impl Builder<'_> {
    fn interrupt(&self, gsi: u32) -> Box<dyn Interrupt> {
        Box::new(Line { vm: Arc::clone(self.vm), gsi, event: None })
    }

    /// The same with an eventfd.
    fn interrupt_of_kernel(&self, gsi: u32) -> Result<Box<dyn Interrupt>, VmError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VmError::host("make an interrupt's eventfd"))?;
        self.vm.register_irqfd(&event, gsi).map_err(VmError::kvm("attach a virtio device's interrupt"))?;
        Ok(Box::new(Line { vm: Arc::clone(self.vm), gsi, event: Some(event) }))
    }

    fn add_port(&mut self, port: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), VmError> {
        self.ports.insert(port, len, device).map_err(|error| VmError::Failed(error.to_string()))
    }

    fn add_memory(&mut self, start: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), VmError> {
        self.mmio.insert(start, len, device).map_err(|error| VmError::Failed(error.to_string()))
    }

    fn add_serial(&mut self, console: SerialConsole) -> Result<Arc<Mutex<Serial>>, VmError> {
        let line = self.interrupt(layout::SERIAL_GSI);
        let serial =
            Serial::new(line, console.output, console.input).map_err(VmError::host("make the serial console"))?;
        let serial = Arc::new(Mutex::new(serial));
        self.add_port(u64::from(layout::SERIAL_PORT), 8, Arc::clone(&serial) as Arc<Mutex<dyn BusDevice>>)?;
        self.subscribers.push(Arc::clone(&serial) as Subscriber);
        Ok(serial)
    }

    /// The devices that the user has asked for.
    fn add_extra(&mut self, extra: &VmDevices, state: &Arc<MachineState>) -> Result<Extra, VmError> {
        let (mut host_socket, mut balloon) = (None, None);
        if let Some(vsock) = &extra.vsock {
            let (socket, listener) = HostSocket::bind(vsock.path())?;
            let device = Vsock::new(vsock.cid(), listener, vsock.path().clone())
                .map_err(VmError::host("make the virtio socket device"))?;
            self.add_virtio(device, Notify::EventFd)?;
            host_socket = Some(socket);
        }
        if let Some(wanted) = &extra.balloon {
            let ram = self.memory.iter().map(GuestMemoryRegion::len).sum();
            let features = BalloonFeatures { deflate_on_oom: wanted.deflate_on_oom, reporting: wanted.reporting };
            let reclaim = Box::new(GuestRam(self.memory.clone()));
            let device = Balloon::new(reclaim, features, balloon::pages(wanted.size, ram)?)
                .map_err(VmError::host("make the virtio balloon"))?;
            balloon = Some(self.add_virtio(device, Notify::Call)?);
        }
        let watchdog = extra.watchdog.map(|wanted| self.add_watchdog(wanted, state)).transpose()?;
        let generation = extra.generation_id.then(|| self.add_generation_id()).transpose()?;
        Ok(Extra { _host_socket: host_socket, balloon, watchdog, generation })
    }

    fn add_watchdog(
        &mut self,
        wanted: spec::Watchdog,
        state: &Arc<MachineState>,
    ) -> Result<Arc<Mutex<Watchdog>>, VmError> {
        let interrupt_first = wanted.action == WatchdogAction::Panic;
        if interrupt_first {
            self.add_port(NMI_STATUS_PORT, 1, Arc::new(Mutex::new(NmiStatus)))?;
        }
        let timer = timer::monotonic().map_err(VmError::host("make the watchdog's timer"))?;
        let silence = Box::new(Silence { state: Arc::clone(state), interrupt_first });
        let device = Arc::new(Mutex::new(Watchdog::new(longest_countdown(wanted), timer, silence)));
        let registers = Arc::clone(&device) as Arc<Mutex<dyn BusDevice>>;
        self.add_port(u64::from(layout::WATCHDOG_PORT), WATCHDOG_SIZE, registers)?;
        self.subscribers.push(Arc::clone(&device) as Subscriber);
        Ok(device)
    }

    fn add_generation_id(&self) -> Result<Mutex<GenerationId>, VmError> {
        let line = self.interrupt(layout::EVENT_GSI);
        let address = GuestAddress(layout::GENERATION_ID);
        GenerationId::new(self.memory.clone(), address, line)
            .map(Mutex::new)
            .map_err(VmError::host("make the generation identifier"))
    }

    /// The volumes, each with the event loop that it needs.
    fn add_volumes(&mut self, volumes: Vec<OpenVolume>) -> Result<Vec<EventLoop>, VmError> {
        let count = volumes.len();
        let mut loops = Vec::with_capacity(count);
        for (index, volume) in volumes.into_iter().enumerate() {
            let device = self.attach_virtio(volume.device(index, count)?, Notify::EventFd)?;
            let confine = Box::new(move || volume.confine());
            loops.push(EventLoop::new(&format!("fs{index}"), confine, vec![device])?);
        }
        Ok(loops)
    }

    fn add_virtio<D>(&mut self, device: D, notify: Notify) -> Result<Arc<Mutex<D>>, VmError>
    where
        D: VirtioDevice + MutEventSubscriber + 'static,
    {
        let device = self.attach_virtio(device, notify)?;
        self.subscribers.push(Arc::clone(&device) as Subscriber);
        Ok(device)
    }

    /// Gives a device its addresses and its interrupt line, but no event loop.
    fn attach_virtio<D>(&mut self, device: D, notify: Notify) -> Result<Arc<Mutex<D>>, VmError>
    where
        D: VirtioDevice + MutEventSubscriber + 'static,
    {
        let index = self.transports.len();
        let page = self.registers.page(index).ok_or_else(|| {
            VmError::Unsupported(format!("a microVM has at most {} virtio devices", layout::MAX_VIRTIO_DEVICES))
        })?;
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let base = layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_LEN;
        let gsi = layout::VIRTIO_GSI + index;
        let line = if notify == Notify::Kernel { self.interrupt_of_kernel(gsi)? } else { self.interrupt(gsi) };
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::with_registers(self.memory.clone(), Box::new(Arc::clone(&device)), line, page)
            .map_err(VmError::host("make a virtio transport"))?;
        if notify != Notify::Call {
            let attach = |event: &EventFd, offset, data: u32| {
                let attached = self.vm.register_ioevent(event, &IoEventAddress::Mmio(base + offset), data);
                attached.map_err(VmError::kvm("attach a virtio device's event"))
            };
            for (queue, event) in (0u32..).zip(transport.queue_events()) {
                attach(event, mmio::NOTIFY_OFFSET, queue)?;
            }
            // KVM keeps it as long as it needs it.
            let unheard =
                EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VmError::host("make an interrupt's eventfd"))?;
            attach(&unheard, mmio::ACK_OFFSET, mmio::ACK_USED)?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.add_memory(base, layout::VIRTIO_MMIO_LEN, Arc::clone(&transport) as Arc<Mutex<dyn BusDevice>>)?;
        self.transports.push(transport);
        Ok(device)
    }
}
