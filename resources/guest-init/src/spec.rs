//! The specification of a guest's work, and its encoding.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::wire::{Reader, Writer};

/// The version of the encoding, its first byte. Host and guest come from one build, so only equality counts.
const VERSION: u8 = 3;

const FLAG_READ_ONLY: u8 = 1 << 0;
const FLAG_STDIN: u8 = 1 << 1;
const FLAG_TERMINAL: u8 = 1 << 2;

const NO_INTERFACE: u8 = 0;
const INTERFACE_ONLY: u8 = 1;
const INTERFACE_WITH_ADDRESS: u8 = 2;

const NO_SERVICE: u8 = 0;
const SERVICE_CHANGES: u8 = 1;
const SERVICE_PACK: u8 = 2;
const SERVICE_UNPACK: u8 = 3;

const ROOT_INLINE: u8 = 0;
const ROOT_LAYERED: u8 = 1;
const ROOT_DISK: u8 = 2;

/// Everything that PID 1 of the guest needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitSpec {
    /// File names below [`MODULES_DIR`](crate::MODULES_DIR), in loading order.
    pub modules: Vec<String>,
    /// What modules are told when they are loaded, as on a kernel's command line: `MODULE.PARAMETER=VALUE`.
    pub module_parameters: Vec<String>,
    /// Where the root file system is.
    pub root: Root,
    /// The block device, such as `/dev/vdb`, with the ext4 file system that keeps what is written to the root; without one
    /// it is kept in memory. A [`Root::Disk`] has none.
    pub writable: Option<Vec<u8>>,
    /// The most bytes that are kept in memory; 0 is half of the memory.
    pub memory_limit: u64,
    /// What is to be done with the root instead of running a workload in it.
    pub service: Option<Service>,
    /// Whether `/` refuses writes.
    pub read_only: bool,
    /// The host name.
    pub hostname: Vec<u8>,
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE` beyond the defaults.
    pub env: Vec<Vec<u8>>,
    /// The working directory; made if it does not exist.
    pub cwd: Vec<u8>,
    /// `NAME|UID[:GROUP|GID]`; empty is root.
    pub user: Vec<u8>,
    /// Rows and columns of the workload's terminal, where it has one.
    pub terminal: Option<(u16, u16)>,
    /// Whether standard input is connected.
    pub stdin: bool,
    /// The most processes and threads that the workload may have; 0 is no limit.
    pub pids: u32,
    /// The first network interface, where there is one.
    pub interface: Option<Interface>,
    /// What of the host's file systems the workload sees, in the order in which it is mounted.
    pub volumes: Vec<Volume>,
}

/// A directory or file of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volume {
    /// The tag of its file system device.
    pub tag: Vec<u8>,
    /// Where it belongs, from the workload's `/` on.
    pub destination: Vec<u8>,
    /// Whether it is a directory. A file is all that its device's root directory has, as [`FILE_NAME`](Self::FILE_NAME).
    pub directory: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
}

impl Volume {
    /// The name of a volume that is a file.
    pub const FILE_NAME: &str = "file";
    const DIRECTORY: u8 = 1;
    const READ_ONLY: u8 = 2;
}

/// What guest init does itself. Trees travel, in the form of [`tree`](crate::tree), over the ports of standard input and output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// Sends what is on the writable layer's disk, as overlayfs left it: the tree's top is the root. The root
    /// itself need not be there.
    Changes,
    /// Sends what the root has at `path`.
    Pack {
        /// From the root on. Symbolic links on the way are followed within the root; one at the end is not, unless a slash, or a
        /// slash and a dot, is behind it.
        path: Vec<u8>,
        /// Whether all below a directory is sent, and the contents of a file, or only what it is.
        contents: bool,
    },
    /// Receives a tree, and puts it into the root.
    Unpack {
        /// Where to: a directory in which the tree becomes `name`, or else the path that the tree's top itself is to have.
        path: Vec<u8>,
        /// What the tree's top is called in a directory; with an empty name, what is in it goes right into the directory.
        name: Vec<u8>,
    },
}

/// How the guest sets up its first network interface. All addresses are of IPv4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its address and the length of its network's prefix; `None` only brings it up.
    pub address: Option<([u8; 4], u8)>,
    /// The default route.
    pub gateway: Option<[u8; 4]>,
    /// Name servers.
    pub dns: Vec<[u8; 4]>,
}

/// Where the guest finds the workload's root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Root {
    /// In the initramfs, below [`INLINE_ROOT`](crate::INLINE_ROOT).
    #[default]
    Inline,
    /// Read-only file systems on block devices, laid over each other, with a writable layer in memory over all.
    Layered {
        /// The devices, such as `/dev/vda`, the lowest first.
        devices: Vec<Vec<u8>>,
        /// The file systems' type, such as `erofs`.
        fstype: Vec<u8>,
    },
    /// A file system on a block device, used as it is.
    Disk {
        /// The device, such as `/dev/vda`.
        device: Vec<u8>,
        /// The file system's type, such as `ext4`.
        fstype: Vec<u8>,
    },
}

/// Why bytes are not an encoded [`InitSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecError {
    /// The first byte is that of another version.
    Version(u8),
    /// The bytes end early, go on too long, or hold a value that means nothing.
    Malformed,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "specification of version {version}, not {VERSION}"),
            Self::Malformed => f.write_str("malformed specification"),
        }
    }
}

impl core::error::Error for SpecError {}

impl InitSpec {
    /// The specification as bytes, for [`SPEC_PATH`](crate::SPEC_PATH).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        let flag = |set, flag| if set { flag } else { 0 };
        out.u8(flag(self.read_only, FLAG_READ_ONLY)
            | flag(self.stdin, FLAG_STDIN)
            | flag(self.terminal.is_some(), FLAG_TERMINAL));
        let (rows, columns) = self.terminal.unwrap_or_default();
        out.u16(rows);
        out.u16(columns);
        out.u32(self.pids);
        match &self.root {
            Root::Inline => out.u8(ROOT_INLINE),
            Root::Layered { devices, fstype } => {
                out.u8(ROOT_LAYERED);
                out.list(devices);
                out.bytes(fstype);
            }
            Root::Disk { device, fstype } => {
                out.u8(ROOT_DISK);
                out.bytes(device);
                out.bytes(fstype);
            }
        }
        out.list(self.writable.as_slice());
        out.u64(self.memory_limit);
        self.write_service(&mut out);
        out.list(&self.modules);
        out.list(&self.module_parameters);
        out.bytes(&self.hostname);
        out.list(&self.argv);
        out.list(&self.env);
        out.bytes(&self.cwd);
        out.bytes(&self.user);
        self.write_interface(&mut out);
        out.u32(u32::try_from(self.volumes.len()).unwrap_or(u32::MAX));
        for volume in &self.volumes {
            out.u8(flag(volume.directory, Volume::DIRECTORY) | flag(volume.read_only, Volume::READ_ONLY));
            out.bytes(&volume.tag);
            out.bytes(&volume.destination);
        }
        out.0
    }

    fn write_service(&self, out: &mut Writer) {
        match &self.service {
            None => out.u8(NO_SERVICE),
            Some(Service::Changes) => out.u8(SERVICE_CHANGES),
            Some(Service::Pack { path, contents }) => {
                out.u8(SERVICE_PACK);
                out.bytes(path);
                out.u8((*contents).into());
            }
            Some(Service::Unpack { path, name }) => {
                out.u8(SERVICE_UNPACK);
                out.bytes(path);
                out.bytes(name);
            }
        }
    }

    fn write_interface(&self, out: &mut Writer) {
        let Some(interface) = &self.interface else { return out.u8(NO_INTERFACE) };
        match interface.address {
            None => out.u8(INTERFACE_ONLY),
            Some((address, prefix)) => {
                out.u8(INTERFACE_WITH_ADDRESS);
                out.bytes(&address);
                out.u8(prefix);
            }
        }
        out.list(interface.gateway.as_slice());
        out.list(&interface.dns);
    }

    /// The specification that [`encode`](Self::encode) made `bytes` of.
    ///
    /// # Errors
    /// The bytes are of another version, or not a whole specification and nothing more.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(SpecError::Version(other)),
            None => return Err(SpecError::Malformed),
        }
        let mut reader = Reader(&bytes[1..]);
        Self::read(&mut reader).filter(|_| reader.0.is_empty()).ok_or(SpecError::Malformed)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let flags = reader.u8()?;
        if flags & !(FLAG_READ_ONLY | FLAG_STDIN | FLAG_TERMINAL) != 0 {
            return None;
        }
        let size = (reader.u16()?, reader.u16()?);
        let pids = reader.u32()?;
        let root = match reader.u8()? {
            ROOT_INLINE => Root::Inline,
            ROOT_LAYERED => Root::Layered { devices: reader.list()?, fstype: reader.bytes()?.to_vec() },
            ROOT_DISK => Root::Disk { device: reader.bytes()?.to_vec(), fstype: reader.bytes()?.to_vec() },
            _ => return None,
        };
        let mut writable = reader.list().filter(|devices| devices.len() <= 1)?;
        let writable = writable.pop();
        let memory_limit = reader.u64()?;
        let service = Self::read_service(reader)?;
        let strings = |list: Vec<Vec<u8>>| list.into_iter().map(String::from_utf8).collect::<Result<_, _>>().ok();
        let spec = Self {
            modules: strings(reader.list()?)?,
            module_parameters: strings(reader.list()?)?,
            root,
            writable,
            memory_limit,
            service,
            read_only: flags & FLAG_READ_ONLY != 0,
            hostname: reader.bytes()?.to_vec(),
            argv: reader.list()?,
            env: reader.list()?,
            cwd: reader.bytes()?.to_vec(),
            user: reader.bytes()?.to_vec(),
            terminal: (flags & FLAG_TERMINAL != 0).then_some(size),
            stdin: flags & FLAG_STDIN != 0,
            pids,
            interface: Self::read_interface(reader)?,
            volumes: Self::read_volumes(reader)?,
        };
        Some(spec)
    }

    /// The outer `None` is for what is malformed.
    fn read_service(reader: &mut Reader<'_>) -> Option<Option<Service>> {
        Some(match reader.u8()? {
            NO_SERVICE => None,
            SERVICE_CHANGES => Some(Service::Changes),
            SERVICE_PACK => {
                let path = reader.bytes()?.to_vec();
                Some(Service::Pack { path, contents: reader.u8().filter(|&flag| flag <= 1)? == 1 })
            }
            SERVICE_UNPACK => Some(Service::Unpack { path: reader.bytes()?.to_vec(), name: reader.bytes()?.to_vec() }),
            _ => return None,
        })
    }

    fn read_volumes(reader: &mut Reader<'_>) -> Option<Vec<Volume>> {
        let mut volumes = Vec::new();
        for _ in 0..reader.u32()? {
            let flags = reader.u8().filter(|flags| flags & !(Volume::DIRECTORY | Volume::READ_ONLY) == 0)?;
            let (directory, read_only) = (flags & Volume::DIRECTORY != 0, flags & Volume::READ_ONLY != 0);
            let (tag, destination) = (reader.bytes()?.to_vec(), reader.bytes()?.to_vec());
            volumes.push(Volume { tag, destination, directory, read_only });
        }
        Some(volumes)
    }

    /// The outer `None` is for what is malformed.
    fn read_interface(reader: &mut Reader<'_>) -> Option<Option<Interface>> {
        let address = match reader.u8()? {
            NO_INTERFACE => return Some(None),
            INTERFACE_ONLY => None,
            INTERFACE_WITH_ADDRESS => {
                Some((reader.bytes()?.try_into().ok()?, reader.u8().filter(|prefix| *prefix <= 32)?))
            }
            _ => return None,
        };
        let addresses = |list: Vec<Vec<u8>>| -> Option<Vec<[u8; 4]>> {
            list.into_iter().map(|bytes| bytes.try_into().ok()).collect()
        };
        let gateways = addresses(reader.list()?)?;
        let dns = addresses(reader.list()?)?;
        if gateways.len() > 1 {
            return None;
        }
        Some(Some(Interface { address, gateway: gateways.first().copied(), dns }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> InitSpec {
        InitSpec {
            modules: vec!["000-virtio.ko".into(), "001-virtio_mmio.ko".into()],
            module_parameters: vec!["virtio_mmio.x=1".into()],
            root: Root::Layered {
                devices: vec![b"/dev/vda".to_vec(), b"/dev/vdb".to_vec()],
                fstype: b"erofs".to_vec(),
            },
            writable: Some(b"/dev/vdc".to_vec()),
            memory_limit: 64 << 20,
            service: Some(Service::Unpack { path: b"/a".to_vec(), name: b"\xff".to_vec() }),
            read_only: true,
            hostname: b"h".to_vec(),
            argv: vec![b"sh".to_vec(), b"\xff\n".to_vec(), Vec::new()],
            env: vec![b"A=B".to_vec()],
            cwd: b"/w".to_vec(),
            user: b"u:g".to_vec(),
            terminal: Some((24, 80)),
            stdin: true,
            pids: 7,
            interface: Some(Interface {
                address: Some(([192, 0, 2, 1], 24)),
                gateway: Some([192, 0, 2, 254]),
                dns: vec![[1, 1, 1, 1], [8, 8, 8, 8]],
            }),
            volumes: vec![
                Volume { tag: b"a".to_vec(), destination: b"/d".to_vec(), directory: true, read_only: false },
                Volume { tag: b"b".to_vec(), destination: b"/d/f".to_vec(), directory: false, read_only: true },
            ],
        }
    }

    #[test]
    fn a_specification_survives_the_journey() {
        let disk = Root::Disk { device: b"/dev/vda".to_vec(), fstype: b"ext4".to_vec() };
        let interface = Some(Interface::default());
        for spec in [InitSpec::default(), full(), InitSpec { root: disk, terminal: None, interface, ..full() }] {
            assert_eq!(InitSpec::decode(&spec.encode()), Ok(spec));
        }
    }

    #[test]
    fn every_truncation_and_any_excess_is_refused() {
        let bytes = full().encode();
        for length in 0..bytes.len() {
            assert_eq!(InitSpec::decode(&bytes[..length]), Err(SpecError::Malformed), "{length} bytes");
        }
        assert_eq!(InitSpec::decode(&[&bytes[..], b"x"].concat()), Err(SpecError::Malformed));
    }

    #[test]
    fn other_versions_and_unknown_flags_are_refused() {
        let mut bytes = full().encode();
        bytes[1] |= 0x80;
        assert_eq!(InitSpec::decode(&bytes), Err(SpecError::Malformed));
        bytes[0] = 9;
        assert_eq!(InitSpec::decode(&bytes), Err(SpecError::Version(9)));
    }

    #[test]
    fn a_wrong_length_neither_panics_nor_allocates_what_it_claims() {
        let bytes = full().encode();
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] = 0xff;
            let _ = InitSpec::decode(&broken);
        }
    }
}
