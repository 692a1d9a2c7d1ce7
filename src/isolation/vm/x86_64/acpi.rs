//! The hardware-reduced ACPI tables (ACPI specification 6.5, section 4.1) that tell a kernel of its processors,
//! its devices, and how to switch off.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use amphi_devices::acpi::generation::{CHANGED, COMPATIBLE_ID, EVENT_DEVICE};
use amphi_devices::legacy::panic::{HARDWARE_ID, PANIC_SIZE};
use amphi_devices::legacy::power::{RESET, RESET_VALUE, S5_TYPE, SLEEP_CONTROL, SLEEP_STATUS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{layout, wdat};

pub(super) const OEM_ID: [u8; 6] = *b"AMPHI ";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"AMPHIVM ";
pub(super) const OEM_REVISION: u32 = 1;

/// `IAPC_BOOT_ARCH`: there is no VGA to probe, and no CMOS clock to wait for. That the 8042 bit is clear says
/// that there is no keyboard controller either.
const NO_VGA_NO_CMOS_CLOCK: u16 = 1 << 2 | 1 << 5;

/// What the tables say of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform {
    /// The number of vCPUs, with APIC IDs from 0.
    pub(crate) vcpus: u8,
    /// The number of virtio-mmio devices, in the order of their addresses and interrupt lines.
    pub(crate) virtio_devices: u8,
    /// Whether it has a generation identifier.
    pub(crate) generation: bool,
    /// The longest countdown of its watchdog, if it has one.
    pub(crate) watchdog: Option<u32>,
}

/// Writes all tables and returns where the RSDP is.
pub(crate) fn write_tables(memory: &GuestMemoryMmap, platform: Platform) -> Result<u64, GuestMemoryError> {
    let rsdp_at = layout::ACPI_TABLES;
    let mut next = rsdp_at + Rsdp::len() as u64;
    let mut place = |table: &dyn Aml| -> Result<u64, GuestMemoryError> {
        let at = next.next_multiple_of(16);
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        memory.write_slice(&bytes, GuestAddress(at))?;
        next = at + bytes.len() as u64;
        Ok(at)
    };
    let dsdt_at = place(&dsdt(platform))?;
    let fadt_at = place(&fadt(dsdt_at))?;
    let madt_at = place(&madt(platform.vcpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    if let Some(longest) = platform.watchdog {
        xsdt.add_entry(place(&wdat::table(longest))?);
    }
    let xsdt_at = place(&xsdt)?;
    debug_assert!(next <= layout::HIGH_RAM, "the ACPI tables outgrow their room");
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt_at).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, GuestAddress(rsdp_at))?;
    Ok(rsdp_at)
}

fn port(offset: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::POWER_PORT) + offset)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS_CLOCK.into();
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

/// A virtio-mmio device: `LNRO0005` is what Linux's driver looks for (drivers/virtio/virtio_mmio.c).
struct VirtioMmio(u8);

impl Aml for VirtioMmio {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let base = layout::VIRTIO_MMIO + u64::from(self.0) * layout::VIRTIO_MMIO_LEN;
        let registers = Memory32Fixed::new(true, layout::low(base), layout::low(layout::VIRTIO_MMIO_LEN));
        let interrupt = Interrupt::new(true, true, false, false, layout::VIRTIO_GSI + u32::from(self.0));
        Device::new(
            Path::new(&format!("V{:03}", self.0)),
            vec![
                &Name::new(Path::new("_HID"), &"LNRO0005"),
                &Name::new(Path::new("_UID"), &self.0),
                &Name::new(Path::new("_CCA"), &ONE),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &interrupt])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// COM1, as a PC of today has it.
struct Serial;

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
        let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8);
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt, &ports])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The register by which the guest tells of a panic (drivers/misc/pvpanic/pvpanic-mmio.c of Linux).
struct Panic;

impl Aml for Panic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let register = Memory32Fixed::new(true, layout::PANIC_REGISTER, layout::low(PANIC_SIZE));
        Device::new(
            Path::new("PEVT"),
            vec![
                &Name::new(Path::new("_HID"), &HARDWARE_ID),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&register])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The node of the generation identifier, [`NODE`](Self::NODE).
struct GenerationId;

impl GenerationId {
    const NODE: &str = "VGID";
}

impl Aml for GenerationId {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            Path::new(Self::NODE),
            vec![
                &Name::new(Path::new("_HID"), &"AMPH0001"),
                &Name::new(Path::new("_CID"), &COMPATIBLE_ID),
                &Name::new(Path::new("_DDN"), &COMPATIBLE_ID),
                &Name::new(Path::new("ADDR"), &Package::new(vec![&layout::low(layout::GENERATION_ID), &ZERO])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// What turns an interrupt into a notification where there is no system control interrupt. It has one reason.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = Interrupt::new(true, true, false, false, layout::EVENT_GSI);
        let node = Path::new(GenerationId::NODE);
        let notify = Notify::new(&node, &CHANGED);
        Device::new(
            Path::new("GED_"),
            vec![
                &Name::new(Path::new("_HID"), &EVENT_DEVICE),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
                &Method::new(Path::new("_EVT"), 1, true, vec![&notify]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn dsdt(platform: Platform) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = Vec::new();
    let virtio: Vec<VirtioMmio> = (0..platform.virtio_devices).map(VirtioMmio).collect();
    let mut devices: Vec<&dyn Aml> = vec![&Serial, &Panic];
    if platform.generation {
        devices.extend([&GenerationId as &dyn Aml, &EventDevice]);
    }
    devices.extend(virtio.iter().map(|device| device as &dyn Aml));
    Scope::new(Path::new("_SB_"), devices).to_aml_bytes(&mut body);
    Name::new(Path::new("_S5_"), &Package::new(vec![&S5_TYPE])).to_aml_bytes(&mut body);
    dsdt.append_slice(&body);
    dsdt.update_checksum();
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn table(memory: &GuestMemoryMmap, at: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let bytes = read(memory, at, len as usize);
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum of {:?}", &bytes[..4]);
        bytes
    }

    #[test]
    fn tables_can_be_walked_from_the_rsdp() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let platform = Platform { vcpus: 2, virtio_devices: 19, generation: true, watchdog: Some(300) };
        let rsdp = write_tables(&memory, platform).unwrap();
        assert_eq!(&read(&memory, rsdp, 8), b"RSD PTR ");
        let xsdt = table(&memory, memory.read_obj(GuestAddress(rsdp + 24)).unwrap());
        assert_eq!(&xsdt[..4], b"XSDT");
        let entry = |i: usize| u64::from_le_bytes(xsdt[36 + 8 * i..44 + 8 * i].try_into().unwrap());
        let fadt = table(&memory, entry(0));
        assert_eq!(&fadt[..4], b"FACP");
        let dsdt = table(&memory, u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        assert_eq!(&dsdt[..4], b"DSDT");
        let madt = table(&memory, entry(1));
        assert_eq!(madt.len(), 44 + 2 * 8 + 12);
        assert!(
            [COMPATIBLE_ID, EVENT_DEVICE].iter().all(|id| dsdt.windows(id.len()).any(|part| part == id.as_bytes()))
        );
        let wdat = table(&memory, entry(2));
        assert_eq!(&wdat[..4], b"WDAT");
        assert_eq!(wdat[52..56], 300_u32.to_le_bytes(), "the longest countdown");
        let entries = u32::from_le_bytes(wdat[64..68].try_into().unwrap());
        assert_eq!(wdat.len(), 68 + 24 * entries as usize);
    }
}
