//! Filling a new machine's memory: kernel, initrd, command line.

use std::io;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::error::VmError;
use super::kernel_image::{KernelFile, LoadedKernel};
use super::x86_64::layout;
use crate::image::initramfs::Initramfs;

/// An initrd that is written straight into guest memory.
pub(super) trait Initrd: Sync {
    /// Its length in bytes; 0 means that there is none.
    fn len(&self) -> u64;
    /// Puts all of it at `address`. The memory is there: the caller has checked that [`Initrd::len`] bytes fit.
    fn load(&self, memory: &GuestMemoryMmap, address: u64) -> Result<(), VmError>;
}

impl Initrd for Initramfs {
    fn len(&self) -> u64 {
        self.len()
    }

    fn load(&self, memory: &GuestMemoryMmap, address: u64) -> Result<(), VmError> {
        let mut writer = GuestWriter::new(memory, address, self.len());
        self.write_to(&mut writer).map_err(|error| VmError::Root(Box::new(error)))?;
        if writer.is_full() {
            Ok(())
        } else {
            Err(VmError::Failed("the initrd changed its length while it was read".to_owned()))
        }
    }
}

/// An initrd that has been put together already.
impl Initrd for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn load(&self, memory: &GuestMemoryMmap, address: u64) -> Result<(), VmError> {
        memory.write_slice(self, GuestAddress(address)).map_err(table_error)
    }
}

/// Puts all three into memory, and returns the kernel, and the initrd's address and length.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    kernel: &KernelFile,
    initrd: &dyn Initrd,
    command_line: &str,
) -> Result<(LoadedKernel, (u64, u64)), VmError> {
    let kernel = kernel.load(memory)?;
    let initrd = load_initrd(memory, &kernel, initrd)?;
    write_command_line(memory, command_line)?;
    Ok((kernel, initrd))
}

/// Puts the initrd at the top of the memory below the MMIO gap and returns its address and length.
fn load_initrd(memory: &GuestMemoryMmap, kernel: &LoadedKernel, initrd: &dyn Initrd) -> Result<(u64, u64), VmError> {
    let len = initrd.len();
    if len == 0 {
        return Ok((0, 0));
    }
    let header_limit = kernel.setup_header.map(|h| u64::from(h.initrd_addr_max)).filter(|&max| max > 0);
    let memory_end = (memory.last_addr().raw_value() + 1).min(layout::MMIO_GAP);
    let ram_end = memory_end.min(header_limit.map_or(u64::MAX, |max| max + 1));
    let start = ram_end.checked_sub(len).map(|start| start & !0xfff).filter(|&start| start >= kernel.end);
    let Some(start) = start else {
        let needed = (kernel.end + len).div_ceil(1 << 20) + 1;
        return Err(VmError::TooSmall { what: "kernel and initrd", needed, available: ram_end >> 20 });
    };
    initrd.load(memory, start)?;
    Ok((start, len))
}

/// Writes a stream into a bounded part of guest memory.
pub(super) struct GuestWriter<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
    end: u64,
}

impl<'a> GuestWriter<'a> {
    /// A writer of exactly `len` bytes from `address` on.
    pub(super) fn new(memory: &'a GuestMemoryMmap, address: u64, len: u64) -> Self {
        Self { memory, next: address, end: address + len }
    }

    /// Whether all that was announced has been written.
    pub(super) fn is_full(&self) -> bool {
        self.next == self.end
    }
}

impl io::Write for GuestWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.len() as u64 > self.end - self.next {
            return Err(io::Error::other("the initrd grew while it was read"));
        }
        self.memory.write_slice(buffer, GuestAddress(self.next)).map_err(io::Error::other)?;
        self.next += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_command_line(memory: &GuestMemoryMmap, line: &str) -> Result<(), VmError> {
    if line.len() >= layout::COMMAND_LINE_MAX {
        return Err(VmError::CommandLineTooLong(line.len()));
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE)).map_err(table_error)?;
    memory.write_obj(0u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64)).map_err(table_error)
}

pub(super) fn table_error(error: vm_memory::GuestMemoryError) -> VmError {
    log::debug!("boot tables: {error}");
    VmError::TooSmall { what: "the boot information", needed: 1, available: 0 }
}
