//! Loading a kernel's file into guest memory: an uncompressed ELF image, or a bzImage that unpacks itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::memory;
use super::x86_64::layout;
use super::x86_64::regs::Entry;

const ELF_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const MAX_PROGRAM_HEADERS: u16 = 64;
const MAX_NOTES_LEN: u64 = 64 << 10;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address of the PVH entry.
const PVH_ENTRY_NOTE: u32 = 18;
/// `XLF_KERNEL_64` of the setup header: the image has a 64-bit entry 0x200 bytes in.
const XLF_KERNEL_64: u16 = 1;
const BZIMAGE_ENTRY_64: u64 = 0x200;

/// Why a kernel's file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    /// The file cannot be read.
    #[error("cannot read kernel {path}", path = path.display())]
    Read {
        /// The kernel's file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is not a kernel that amphi can load.
    #[error("{path} is not a kernel that can be booted: {reason}", path = path.display())]
    NotAKernel {
        /// The kernel's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel does not fit into the guest's memory.
    #[error("--memory is too small for kernel {path}: it needs {needed} MiB", path = path.display())]
    TooSmall {
        /// The kernel's file.
        path: PathBuf,
        /// How much the kernel alone needs, in MiB.
        needed: u64,
    },
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadedKernel {
    /// Where the boot processor enters.
    pub(super) entry: Entry,
    /// The first address that the kernel does not take.
    pub(super) end: u64,
    /// The setup header of a bzImage.
    pub(super) setup_header: Option<setup_header>,
}

/// A kernel's file, open: what has its name later on is of no interest.
pub(super) struct KernelFile {
    file: File,
    path: PathBuf,
}

struct Loader<'a> {
    memory: &'a GuestMemoryMmap,
    file: &'a File,
    path: &'a Path,
    ram_end: u64,
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl KernelFile {
    /// Opens the kernel in `path`.
    pub(super) fn open(path: &Path) -> Result<Self, KernelImageError> {
        let file = File::open(path).map_err(|source| KernelImageError::Read { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Loads the kernel.
    ///
    /// It is copied. To map its pages from the file would save the copy, but the guest then faults once for every 4 KiB that
    /// it uses of the kernel, where memory in huge pages takes one fault for 2 MiB.
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<LoadedKernel, KernelImageError> {
        let ram_end = memory.last_addr().raw_value().min(layout::MMIO_GAP - 1) + 1;
        let mut magic = [0; 4];
        let loader = Loader { memory, file: &self.file, path: &self.path, ram_end };
        if loader.file.metadata().map_err(|source| loader.read_error(source))?.len() == 0 {
            return Err(loader.not_a_kernel("the file is empty"));
        }
        loader.read(&mut magic, 0)?;
        if &magic == b"\x7fELF" { loader.load_elf() } else { loader.load_bzimage() }
    }
}

impl Loader<'_> {
    fn not_a_kernel(&self, reason: &'static str) -> KernelImageError {
        KernelImageError::NotAKernel { path: self.path.to_owned(), reason }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), KernelImageError> {
        self.file.read_exact_at(buffer, offset).map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: io::Error) -> KernelImageError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            self.not_a_kernel("the file is truncated")
        } else {
            KernelImageError::Read { path: self.path.to_owned(), source }
        }
    }

    fn load_elf(&self) -> Result<LoadedKernel, KernelImageError> {
        let mut header = [0; ELF_HEADER_LEN];
        self.read(&mut header, 0)?;
        if header[4] != 2 || header[5] != 1 {
            return Err(self.not_a_kernel("it is not a 64-bit little-endian ELF image"));
        }
        if u16_at(&header, 18) != MACHINE_X86_64 {
            return Err(self.not_a_kernel("it is an ELF image for another processor than x86-64"));
        }
        let count = u16_at(&header, 56);
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_LEN || count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(self.not_a_kernel("its ELF program headers are malformed"));
        }
        let mut table = vec![0; PROGRAM_HEADER_LEN * usize::from(count)];
        self.read(&mut table, u64_at(&header, 32))?;
        let mut end = 0;
        let mut pvh_entry = None;
        for raw in table.chunks_exact(PROGRAM_HEADER_LEN) {
            let segment = Segment {
                kind: u32_at(raw, 0),
                offset: u64_at(raw, 8),
                address: u64_at(raw, 24),
                file_size: u64_at(raw, 32),
                memory_size: u64_at(raw, 40),
            };
            match segment.kind {
                PT_LOAD => end = end.max(self.load_segment(&segment)?),
                PT_NOTE => pvh_entry = pvh_entry.or(self.find_pvh_entry(&segment)?),
                _ => {}
            }
        }
        let entry = u64_at(&header, 24);
        let entry = if (layout::HIGH_RAM..end).contains(&entry) {
            Entry::Linux64(entry)
        } else if let Some(entry) = pvh_entry.filter(|entry| (layout::HIGH_RAM..end).contains(entry)) {
            Entry::Pvh(entry)
        } else {
            return Err(self.not_a_kernel("its entry point lies outside what it loads"));
        };
        Ok(LoadedKernel { entry, end, setup_header: None })
    }

    /// Puts one segment into memory and returns the address after it.
    fn load_segment(&self, segment: &Segment) -> Result<u64, KernelImageError> {
        let malformed = || self.not_a_kernel("a segment of its ELF image is malformed");
        let end = segment.address.checked_add(segment.memory_size).ok_or_else(malformed)?;
        let file_end = segment.offset.checked_add(segment.file_size).ok_or_else(malformed)?;
        if segment.memory_size < segment.file_size {
            return Err(malformed());
        }
        if segment.address < layout::HIGH_RAM {
            // The per-CPU area of old kernels is linked at 0 and has no bytes of its own at that address.
            return if segment.memory_size == 0 { Ok(0) } else { Err(malformed()) };
        }
        if end > self.ram_end {
            return Err(KernelImageError::TooSmall { path: self.path.to_owned(), needed: end.div_ceil(1 << 20) });
        }
        if file_end > self.file.metadata().map_or(0, |m| m.len()) {
            return Err(self.not_a_kernel("the file is truncated"));
        }
        self.copy(segment.offset, segment.address, segment.file_size)?;
        Ok(end)
    }

    fn copy(&self, offset: u64, address: u64, len: u64) -> Result<(), KernelImageError> {
        memory::read_from(self.file, offset, self.memory, address, len).map_err(|source| self.read_error(source))
    }

    fn find_pvh_entry(&self, segment: &Segment) -> Result<Option<u64>, KernelImageError> {
        if segment.file_size > MAX_NOTES_LEN {
            return Ok(None);
        }
        let mut notes = vec![0; usize::try_from(segment.file_size).unwrap_or(0)];
        self.read(&mut notes, segment.offset)?;
        Ok(pvh_entry(&notes))
    }

    fn load_bzimage(mut self) -> Result<LoadedKernel, KernelImageError> {
        let result = BzImage::load(self.memory, None, &mut self.file, Some(GuestAddress(layout::HIGH_RAM)));
        let loaded =
            result.map_err(|_| self.not_a_kernel("it is neither an ELF image nor a bzImage, or it is truncated"))?;
        let header = loaded.setup_header.ok_or_else(|| self.not_a_kernel("its bzImage header is missing"))?;
        if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(self.not_a_kernel("its bzImage has no 64-bit entry"));
        }
        let needed = header.pref_address.saturating_add(u64::from(header.init_size));
        if needed > self.ram_end {
            return Err(KernelImageError::TooSmall { path: self.path.to_owned(), needed: needed.div_ceil(1 << 20) });
        }
        let entry = Entry::Linux64(loaded.kernel_load.raw_value() + BZIMAGE_ENTRY_64);
        Ok(LoadedKernel { entry, end: needed.max(loaded.kernel_end), setup_header: Some(header) })
    }
}

/// The PVH entry among ELF notes.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let (name_len, value_len) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
        let kind = u32_at(notes, 8);
        let value_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let next = value_at.checked_add(value_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12 + name_len)?;
        let value = notes.get(value_at..value_at.checked_add(value_len)?)?;
        if name == b"Xen\0" && kind == PVH_ENTRY_NOTE {
            return match value.len() {
                4 => Some(u64::from(u32_at(value, 0))),
                8 => Some(u64_at(value, 0)),
                _ => None,
            };
        }
        notes = notes.get(next..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
    }

    /// An ELF image with one segment of `data` at `address`.
    fn elf(address: u64, data: &[u8], memory_size: u64) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        image[24..32].copy_from_slice(&address.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&1u16.to_le_bytes());
        let header = [PT_LOAD as u64, 4096, address, address, data.len() as u64, memory_size, 4096];
        for (i, word) in header.iter().enumerate() {
            image[64 + 8 * i..72 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        image.extend_from_slice(data);
        image
    }

    fn try_load(image: &[u8]) -> (GuestMemoryMmap, Result<LoadedKernel, KernelImageError>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(image).unwrap();
        let memory = memory();
        let loaded = KernelFile::open(file.path()).and_then(|kernel| kernel.load(&memory));
        (memory, loaded)
    }

    #[test]
    fn segments_hold_the_file_and_zeroes_after_it() {
        for len in [100, 8192, 300_001] {
            let data: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap() + 1).collect();
            let (memory, loaded) = try_load(&elf(MIB, &data, len + 5000));
            let loaded = loaded.unwrap();
            assert_eq!((loaded.entry, loaded.end), (Entry::Linux64(MIB), MIB + len + 5000));
            let mut read = vec![0xff; data.len() + 5000];
            memory.read_slice(&mut read, GuestAddress(MIB)).unwrap();
            assert_eq!(read[..data.len()], data);
            assert!(read[data.len()..].iter().all(|&b| b == 0), "{len}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let good = elf(MIB, &[1; 100_000], 100_000);
        let mut arm = good.clone();
        arm[18] = 183;
        let mut elf32 = good.clone();
        elf32[4] = 1;
        let cases: [(&[u8], &str); 6] = [
            (b"", "empty"),
            (b"abc", "truncated"),
            (b"#!/bin/sh\necho hello\n", "neither"),
            (&good[..50_000], "truncated"),
            (&arm, "another processor"),
            (&elf32, "64-bit"),
        ];
        for (image, reason) in cases {
            let error = try_load(image).1.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn segments_outside_ram_are_refused() {
        assert!(matches!(
            try_load(&elf(31 * MIB, &[1; 10], 2 * MIB)).1,
            Err(KernelImageError::TooSmall { needed: 33, .. })
        ));
        for address in [0, 0x7000, u64::MAX - 5] {
            assert!(
                matches!(try_load(&elf(address, &[1; 10], 10)).1, Err(KernelImageError::NotAKernel { .. })),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn pvh_notes_are_found_among_others() {
        let mut notes = Vec::new();
        for (name, kind, value) in [(&b"GNU\0"[..], 3u32, &[7u8; 5][..]), (b"Xen\0", 18, &0x100_0850u32.to_le_bytes())]
        {
            notes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            notes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.extend(value);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(pvh_entry(&notes), Some(0x100_0850));
        for cut in 0..notes.len() {
            assert_eq!(pvh_entry(&notes[..cut]), None, "{cut}");
        }
        notes[0] = 0xff;
        assert_eq!(pvh_entry(&notes), None);
    }
}
