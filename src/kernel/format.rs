//! Recognising kernel images: ELF64 and bzImage, from their headers alone.
//!
//! Sources: the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst in the kernel) and the ELF-64 object
//! file format. Every field is hostile until checked; at most a few KiB are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;

use super::KernelError;
use super::elf;
use super::payload::Compression;

/// Enough for the setup header of every protocol version and for the magic numbers of other formats.
const HEAD_LEN: usize = 0x270;
/// Version of the boot protocol that introduced `payload_offset` and `payload_length`.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;
/// Version of the boot protocol that introduced `xloadflags`.
const PROTOCOL_WITH_XLOADFLAGS: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const SECTOR: u64 = 512;
/// Longest version string that is taken from a bzImage, in bytes.
const VERSION_MAX: usize = 256;

/// What a kernel image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum Format {
    /// An uncompressed x86-64 ELF image (`vmlinux`).
    Elf(ElfImage),
    /// A bzImage (`vmlinuz`): setup code, decompressor and a payload.
    BzImage(BzImage),
}

/// Entry points of an ELF image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ElfImage {
    /// Physical address of the 64-bit entry point (`e_entry`).
    pub entry: u64,
    /// Physical address of the 32-bit PVH entry point (note `XEN_ELFNOTE_PHYS32_ENTRY`), where there is one.
    pub pvh_entry: Option<u64>,
}

/// The facts of a bzImage's setup header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BzImage {
    /// Boot protocol, major version in the high byte.
    pub protocol: u16,
    /// The whole version string, the release first.
    pub version: Option<String>,
    /// Whether the image has the 64-bit entry point 0x200 bytes after its start.
    pub entry_64: bool,
    /// How the payload is compressed.
    pub compression: Compression,
    /// Where in the file the payload starts, in bytes.
    pub payload_offset: u64,
    /// Length of the payload in bytes.
    pub payload_len: u64,
}

impl BzImage {
    /// The kernel's release, as `uname -r` says it.
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.version.as_deref()?.split_whitespace().next()
    }
}

impl Format {
    /// Recognises the image in `file`. `path` only names it in errors.
    ///
    /// # Errors
    /// The file cannot be read, or is no image that amphi can boot; the message says what it is instead.
    pub fn recognise(file: &File, path: &Path) -> Result<Self, KernelError> {
        let meta = file.metadata().map_err(KernelError::read(path))?;
        if meta.is_dir() {
            return Err(KernelError::not_bootable(path, "it is a directory; name the kernel's file"));
        }
        if !meta.is_file() {
            return Err(KernelError::not_bootable(path, "it is not a regular file"));
        }
        let mut head = [0; HEAD_LEN];
        let len = read_up_to(file, &mut head, 0).map_err(KernelError::read(path))?;
        let head = head.get(..len).unwrap_or_default();
        if head.is_empty() {
            return Err(KernelError::not_bootable(path, "the file is empty"));
        }
        if head.starts_with(b"\x7fELF") {
            return elf::kernel_entry(file, path, meta.len()).map(Self::Elf);
        }
        if get::<4>(head, 0x202) == Some(*b"HdrS") && get::<2>(head, 0x1fe) == Some([0x55, 0xaa]) {
            return bz_image(file, path, head, meta.len()).map(Self::BzImage);
        }
        Err(KernelError::not_bootable(path, what_else(head)))
    }
}

fn bz_image(file: &File, path: &Path, head: &[u8], file_len: u64) -> Result<BzImage, KernelError> {
    let cut = || KernelError::not_bootable(path, "the bzImage is cut short; copy or download it again");
    let u16_at = |at| get(head, at).map(u16::from_le_bytes).ok_or_else(cut);
    let u32_at = |at| get(head, at).map(u32::from_le_bytes).ok_or_else(cut);

    let protocol = u16_at(0x206)?;
    if protocol < PROTOCOL_WITH_PAYLOAD {
        let reason = format!(
            "its boot protocol {}.{:02} is older than 2.08 (Linux 2.6.26); use a newer kernel",
            protocol >> 8,
            protocol & 0xff
        );
        return Err(KernelError::not_bootable(path, reason));
    }
    let xloadflags = if protocol >= PROTOCOL_WITH_XLOADFLAGS { u16_at(0x236)? } else { 0 };
    // The protocol asks to read a count of 0 as 4.
    let setup_sectors = match head.get(0x1f1).copied().ok_or_else(cut)? {
        0 => 4,
        n => u64::from(n),
    };
    let payload_offset = (setup_sectors + 1) * SECTOR + u64::from(u32_at(0x248)?);
    let payload_len = u64::from(u32_at(0x24c)?);
    if payload_len == 0 {
        return Err(KernelError::not_bootable(path, "its header names no payload (is it a memtest or a boot loader?)"));
    }
    if payload_offset.checked_add(payload_len).is_none_or(|end| end > file_len) {
        return Err(cut());
    }
    let mut magic = [0; 8];
    let len = read_up_to(file, &mut magic, payload_offset).map_err(KernelError::read(path))?;
    let compression = Compression::recognise(magic.get(..len).unwrap_or_default()).ok_or_else(|| {
        KernelError::not_bootable(path, format!("its payload is compressed in an unknown way (it starts {magic:02x?})"))
    })?;
    let version = match u16_at(0x20e)? {
        0 => None,
        at => version_string(file, u64::from(at) + SECTOR).map_err(KernelError::read(path))?,
    };
    let entry_64 = xloadflags & XLF_KERNEL_64 != 0;
    Ok(BzImage { protocol, version, entry_64, compression, payload_offset, payload_len })
}

/// The NUL-terminated printable string at `offset`.
fn version_string(file: &File, offset: u64) -> io::Result<Option<String>> {
    let mut bytes = [0; VERSION_MAX];
    let len = read_up_to(file, &mut bytes, offset)?;
    let text = bytes.get(..len).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    let printable = !text.is_empty() && text.iter().all(|b| (b' '..=b'~').contains(b));
    Ok(printable.then(|| String::from_utf8_lossy(text).into_owned()))
}

/// What a file that is neither ELF nor bzImage is, and what to do about it.
fn what_else(head: &[u8]) -> String {
    if get::<4>(head, 0x38) == Some(*b"ARM\x64") {
        return "it is a kernel for arm64, and this host is x86-64".to_owned();
    }
    if get::<4>(head, 0x30) == Some(*b"RISC") {
        return "it is a kernel for RISC-V, and this host is x86-64".to_owned();
    }
    if get::<4>(head, 4) == Some(*b"zimg") {
        return "it is a compressed EFI image of another architecture, and this host is x86-64".to_owned();
    }
    if let Some(compression) = Compression::recognise(head).filter(|c| *c != Compression::None) {
        return format!("it is a {compression}-compressed file; decompress it, then name the result");
    }
    if head.starts_with(b"!<arch>\n") {
        return "it is an archive; install a kernel package with `amphi kernel install FILE.deb`".to_owned();
    }
    "it is neither an x86-64 ELF image (vmlinux) nor a bzImage (vmlinuz)".to_owned()
}

/// Reads until `buffer` is full or the file ends; returns how much was read.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
