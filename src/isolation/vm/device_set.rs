//! The devices of one machine: each gets its addresses and its interrupt line, and a place on a bus and in the event loop.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use amphi_devices::legacy::PowerEvents;
use amphi_devices::legacy::panic::{PANIC_SIZE, PanicRegister};
use amphi_devices::legacy::power::{POWER_SIZE, PowerControl};
use amphi_devices::legacy::reset::{KEYBOARD_CONTROLLER_PORT, KeyboardReset};
use amphi_devices::legacy::serial::Serial;
use amphi_devices::virtio::VirtioDevice;
use amphi_devices::virtio::balloon::{Balloon, BalloonFeatures};
use amphi_devices::virtio::console::{Console, Port};
use amphi_devices::virtio::mmio::{self, MmioTransport, RegisterPages};
use amphi_devices::virtio::net::Net;
use amphi_devices::virtio::rng::Rng;
use amphi_devices::virtio::vsock::Vsock;
use amphi_devices::{Bus, BusDevice, Interrupt};
use event_manager::MutEventSubscriber;
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::balloon::{self, GuestRam};
use super::disks::Disk;
use super::error::VmError;
use super::event_loop::{EventLoop, Subscriber};
use super::host_socket::HostSocket;
use super::memory::GuestMemory;
use super::seccomp;
use super::vcpu::Buses;
use super::volumes::OpenVolume;
use super::x86_64::layout;
use crate::spec::VmDevices;

/// The devices that a machine is to have.
pub(super) struct Devices {
    /// COM1.
    pub(super) serial: SerialConsole,
    /// The ports of a virtio-console; none means no such device.
    pub(super) console_ports: Vec<Port>,
    /// The disks, in the order in which the guest sees them.
    pub(super) disks: Vec<Disk>,
    /// The network device.
    pub(super) network: Option<Net>,
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
    extra: Extra,
}

/// What the user has asked for, as far as it is needed after the start.
struct Extra {
    /// The name by which programs of the host reach the guest.
    _host_socket: Option<HostSocket>,
    balloon: Option<Arc<Mutex<Balloon>>>,
}

impl DeviceSet {
    /// Makes the devices and attaches them.
    pub(super) fn attach(
        vm: &Arc<VmFd>,
        guest_memory: &GuestMemory,
        devices: Devices,
        power: Arc<dyn PowerEvents>,
    ) -> Result<Self, VmError> {
        let mut builder = Builder {
            vm,
            memory: guest_memory.handle(),
            registers: guest_memory.registers(),
            ports: Bus::new(),
            mmio: Bus::new(),
            subscribers: Vec::new(),
            transports: Vec::new(),
        };
        builder.add_serial(devices.serial)?;
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
        if let Some(network) = devices.network {
            builder.add_virtio(network, Notify::EventFd)?;
        }
        let rng = Rng::new().map_err(VmError::host("make the virtio entropy device"))?;
        builder.add_virtio(rng, Notify::Call)?;
        let extra = builder.add_extra(&devices.extra)?;
        let volumes = builder.add_volumes(devices.volumes)?;
        let mut events = vec![EventLoop::new("devices", Box::new(seccomp::confine_devices), builder.subscribers)?];
        events.extend(volumes);
        guest_memory.register_devices(vm, builder.transports.len())?;
        Ok(Self {
            buses: Arc::new(Buses { ports: builder.ports, memory: builder.mmio }),
            events,
            transports: builder.transports,
            extra,
        })
    }

    /// The number of virtio-mmio devices.
    pub(super) fn virtio_count(&self) -> u8 {
        // There are at most as many as there are interrupt lines.
        u8::try_from(self.transports.len()).unwrap_or(u8::MAX)
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
        volumes.iter().try_for_each(|events| events.start(|| {}, on_failure.clone()))
    }

    /// Has all devices rest, and returns when nothing is under way. Meanwhile vCPUs must be out of the guest.
    pub(super) fn pause(&self) {
        self.events.iter().for_each(EventLoop::pause);
    }

    /// Lets devices work on.
    pub(super) fn resume(&self) {
        self.events.iter().for_each(EventLoop::resume);
    }

    /// Delivers what is still under way, and ends the event loops.
    pub(super) fn stop(&self) {
        self.events.iter().for_each(EventLoop::stop);
    }
}

/// How a guest notifies a device.
#[derive(Clone, Copy, PartialEq)]
enum Notify {
    /// The vCPU leaves the guest and calls the transport. Nothing to set up or take down, which is best where notifications
    /// are few.
    Call,
    /// KVM turns what the guest writes into an eventfd, and nobody hears of an interrupt's acknowledgement.
    EventFd,
}

/// An edge-triggered interrupt line, raised by calls: an irqfd would leave it to another thread of the kernel's wherever the
/// interrupt controller is KVM's, which costs more, and KVM waits for a grace period when it takes down one that was used.
struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        let set =
            |level| self.vm.set_irq_line(self.gsi, level).map_err(|error| io::Error::from_raw_os_error(error.errno()));
        set(true).and_then(|()| set(false))
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
        Box::new(Line { vm: Arc::clone(self.vm), gsi })
    }

    fn add_port(&mut self, port: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), VmError> {
        self.ports.insert(port, len, device).map_err(|error| VmError::Failed(error.to_string()))
    }

    fn add_memory(&mut self, start: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), VmError> {
        self.mmio.insert(start, len, device).map_err(|error| VmError::Failed(error.to_string()))
    }

    fn add_serial(&mut self, console: SerialConsole) -> Result<(), VmError> {
        let line = self.interrupt(layout::SERIAL_GSI);
        let serial =
            Serial::new(line, console.output, console.input).map_err(VmError::host("make the serial console"))?;
        let serial = Arc::new(Mutex::new(serial));
        self.add_port(u64::from(layout::SERIAL_PORT), 8, Arc::clone(&serial) as Arc<Mutex<dyn BusDevice>>)?;
        self.subscribers.push(serial);
        Ok(())
    }

    /// The devices that the user has asked for.
    fn add_extra(&mut self, extra: &VmDevices) -> Result<Extra, VmError> {
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
        Ok(Extra { _host_socket: host_socket, balloon })
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
        let line = self.interrupt(layout::VIRTIO_GSI + index);
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::with_registers(self.memory.clone(), Box::new(Arc::clone(&device)), line, page)
            .map_err(VmError::host("make a virtio transport"))?;
        if notify == Notify::EventFd {
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
