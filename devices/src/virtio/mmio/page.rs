//! The registers as the driver reads them: a page each transport, which a monitor may show to the guest, so that reading a
//! register takes no exit.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use virtio_bindings::virtio_mmio as reg;
use vm_memory::{MmapRegion, VolatileMemory};

use super::MMIO_SIZE;

/// The most bytes of a configuration space that a driver can read.
pub(super) const CONFIG_MAX: usize = 256;
/// The length of a page. The same as [`MMIO_SIZE`].
const PAGE: usize = 0x1000;
const WORD: usize = size_of::<u32>();

/// Memory for the registers of several transports, one page after the other, in this order.
///
/// A monitor may let the guest read it where the transports' ranges are, and there only: its writes must go to the transports,
/// as before. The memory stays mapped until the last clone is gone, and the last [`RegisterPage`].
#[derive(Debug, Clone)]
pub struct RegisterPages(Arc<MmapRegion>);

impl RegisterPages {
    /// So many pages, of which none takes memory before it is used.
    ///
    /// # Errors
    /// The host does not map them.
    pub fn new(count: usize) -> io::Result<Self> {
        let len = count.checked_mul(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Arc::new(MmapRegion::new(len).map_err(io::Error::other)?)))
    }

    /// Where the first one is in this process, aligned to a page.
    #[must_use]
    pub fn host_address(&self) -> *const u8 {
        self.0.as_ptr()
    }

    /// Page `index`, if there are as many.
    #[must_use]
    pub fn page(&self, index: usize) -> Option<RegisterPage> {
        let start = index.checked_mul(PAGE).filter(|start| *start < self.0.len())?;
        Some(RegisterPage { pages: self.clone(), start })
    }
}

/// The registers of one transport, as the driver reads them.
#[derive(Debug)]
pub struct RegisterPage {
    pages: RegisterPages,
    start: usize,
}

impl RegisterPage {
    /// A page that only the transport itself reads.
    pub(super) fn alone() -> io::Result<Self> {
        Ok(Self { pages: RegisterPages::new(1)?, start: 0 })
    }

    /// The register at `offset`, in the guest's byte order.
    fn word(&self, offset: usize) -> &AtomicU32 {
        let at = self.start + offset % PAGE / WORD * WORD;
        self.pages.0.get_atomic_ref(at).expect("the page is mapped, and a word of it is aligned")
    }

    pub(super) fn get(&self, register: u32) -> u32 {
        u32::from_le(self.word(register as usize).load(Ordering::Acquire))
    }

    pub(super) fn set(&self, register: u32, value: u32) {
        self.word(register as usize).store(value.to_le(), Ordering::Release);
    }

    pub(super) fn set_bits(&self, register: u32, bits: u32) {
        self.word(register as usize).fetch_or(bits.to_le(), Ordering::AcqRel);
    }

    pub(super) fn clear_bits(&self, register: u32, bits: u32) {
        self.word(register as usize).fetch_and(!bits.to_le(), Ordering::AcqRel);
    }

    /// Begins a new generation of the configuration space.
    pub(super) fn new_generation(&self) {
        let next = self.get(reg::VIRTIO_MMIO_CONFIG_GENERATION).wrapping_add(1);
        self.set(reg::VIRTIO_MMIO_CONFIG_GENERATION, next);
        fence(Ordering::SeqCst);
    }

    /// Writes the configuration space from its start, as far as a driver can read it. What is the same is left alone.
    pub(super) fn set_config(&self, config: &[u8]) {
        let offsets = (reg::VIRTIO_MMIO_CONFIG as usize..).step_by(WORD);
        for (offset, bytes) in offsets.zip(config[..config.len().min(CONFIG_MAX)].chunks(WORD)) {
            let mut value = [0; WORD];
            value[..bytes.len()].copy_from_slice(bytes);
            let (word, value) = (self.word(offset), u32::from_ne_bytes(value));
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        }
    }

    /// Fills `data` with what a guest reads at `offset`.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..MMIO_SIZE).zip(data) {
            let at = usize::try_from(at).unwrap_or_default();
            *byte = self.word(at).load(Ordering::Acquire).to_ne_bytes()[at % WORD];
        }
    }
}
