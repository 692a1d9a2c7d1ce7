//! Reading ELF files: a kernel's entry points, and the sections of a module.

use std::fs::File;
use std::path::Path;

use object::elf::{
    EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, Machine, NoteType, PT_INTERP, PT_LOAD, PT_NOTE,
};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache, ReadRef};

use super::KernelError;
use super::format::{ElfImage, read_up_to};

/// Note in which a kernel names its 32-bit PVH entry point (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
/// More program headers than any kernel has; what is above is refused before anything is allocated for it.
const PROGRAM_HEADERS_MAX: u16 = 128;
/// Larger than any kernel's notes, in bytes.
const NOTES_MAX: u64 = 64 << 10;
const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;

type Header = FileHeader64<LittleEndian>;

/// Checks that `file` is an x86-64 kernel in full, and finds its entry points.
pub(super) fn kernel_entry(file: &File, path: &Path, file_len: u64) -> Result<ElfImage, KernelError> {
    let mut head = [0; 64];
    let len = read_up_to(file, &mut head, 0).map_err(KernelError::read(path))?;
    let cut = || KernelError::not_bootable(path, "the ELF file is cut short; copy or build it again");
    if len < head.len() {
        return Err(cut());
    }
    check_machine(&head).map_err(|reason| KernelError::not_bootable(path, reason))?;
    if u16::from_le_bytes([head[56], head[57]]) > PROGRAM_HEADERS_MAX {
        return Err(KernelError::not_bootable(path, "its ELF program headers are damaged"));
    }
    let cache = ReadCache::new(file);
    let header = Header::parse(&cache).map_err(|_| cut())?;
    let segments = header.program_headers(LittleEndian, &cache).map_err(|_| cut())?;

    let entry = header.e_entry(LittleEndian);
    let mut pvh_entry = None;
    let mut loadable = 0_usize;
    for segment in segments {
        let (offset, size) = segment.file_range(LittleEndian);
        match segment.p_type(LittleEndian) {
            PT_INTERP => {
                return Err(KernelError::not_bootable(path, "it is a program for Linux, not a kernel"));
            }
            PT_LOAD => {
                if offset.checked_add(size).is_none_or(|end| end > file_len) {
                    return Err(cut());
                }
                if size > segment.p_memsz(LittleEndian) {
                    return Err(KernelError::not_bootable(path, "its ELF program headers are damaged"));
                }
                loadable += 1;
            }
            PT_NOTE if size <= NOTES_MAX => pvh_entry = pvh_entry.or_else(|| pvh_note(segment, &cache)),
            _ => {}
        }
    }
    if loadable == 0 {
        return Err(KernelError::not_bootable(path, "the ELF file has nothing to load"));
    }
    Ok(ElfImage { entry, pvh_entry })
}

fn pvh_note<'a, R: ReadRef<'a>>(segment: &<Header as FileHeader>::ProgramHeader, data: R) -> Option<u64> {
    let mut notes = segment.notes(LittleEndian, data).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(LittleEndian) == XEN_ELFNOTE_PHYS32_ENTRY {
            // The kernel writes 8 bytes in a 64-bit image, 4 in a 32-bit one.
            let desc = note.desc();
            let eight = desc.get(..8).and_then(|d| d.try_into().ok()).map(u64::from_le_bytes);
            return eight.or_else(|| desc.get(..4)?.try_into().ok().map(u32::from_le_bytes).map(u64::from));
        }
    }
    None
}

/// `head` is the ELF header; the error says what the file is instead.
fn check_machine(head: &[u8; 64]) -> Result<(), String> {
    let big_endian = head[EI_DATA] == 2;
    let half = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    };
    let (kind, machine) = (FileType(half(16)), Machine(half(18)));
    if machine != EM_X86_64 {
        let name = match machine.0 {
            3 => "32-bit x86".to_owned(),
            21 => "64-bit PowerPC".to_owned(),
            22 => "s390".to_owned(),
            40 => "32-bit Arm".to_owned(),
            183 => "arm64".to_owned(),
            243 => "RISC-V".to_owned(),
            258 => "LoongArch".to_owned(),
            other => format!("ELF machine {other}"),
        };
        return Err(format!("it is for {name}, and this host is x86-64"));
    }
    if head[EI_CLASS] != 2 || big_endian {
        return Err("it is not a 64-bit little-endian ELF file".to_owned());
    }
    match kind {
        ET_EXEC | ET_DYN => Ok(()),
        ET_REL => Err("it is an object file or a kernel module, not a kernel".to_owned()),
        ET_CORE => Err("it is a core dump, not a kernel".to_owned()),
        _ => Err("it is an ELF file of an unknown kind".to_owned()),
    }
}

/// The contents of the section `name` in the ELF file `data`, where there is one.
pub(super) fn section<'a>(data: &'a [u8], name: &str) -> Option<&'a [u8]> {
    use object::read::elf::SectionHeader;
    let header = Header::parse(data).ok()?;
    let sections = header.sections(LittleEndian, data).ok()?;
    let (_, section) = sections.section_by_name(LittleEndian, name.as_bytes())?;
    section.data(LittleEndian, data).ok()
}
