//! The queues on which the guest lists the pages that it puts into the balloon and takes out of it (section 5.5.6).

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{PAGE, Reclaim};
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::descriptors;

/// The most pages of one list that are looked at: Linux lists 256. Those beyond are not given back.
const PAGES_A_LIST: usize = 4096;
/// The most lists before other devices get their turn.
const LISTS_A_TURN: u32 = 16;
/// The length in bytes of a page.
#[expect(clippy::cast_possible_truncation, reason = "it is 4096")]
const PAGE_LEN: u32 = PAGE as u32;
/// The length in bytes of a page's number.
const NUMBER: usize = 4;

/// Gives the listed pages back to the host. Returns whether there are more lists.
pub(super) fn inflate(queue: &mut Queue, memory: &GuestMemoryMmap, reclaim: &dyn Reclaim) -> Result<bool, QueueError> {
    let mut pages = Vec::new();
    for_each_list(queue, memory, |chain| {
        pages.clear();
        read_numbers(chain, memory, &mut pages)?;
        discard(&mut pages, reclaim);
        Ok(())
    })
}

/// Takes note of the pages that the guest uses again: the host gives them when they are touched.
pub(super) fn deflate(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
    for_each_list(queue, memory, |_| Ok(()))
}

fn for_each_list(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    mut body: impl FnMut(&mut Chain<'_>) -> Result<(), QueueError>,
) -> Result<bool, QueueError> {
    let mut chain = Chain::default();
    let mut lists = LISTS_A_TURN;
    loop {
        queue.disable_notification(memory)?;
        while let Some(descriptors) = descriptors::next(queue, memory)? {
            chain.load(descriptors, memory, queue.size())?;
            body(&mut chain)?;
            queue.add_used(memory, chain.head, 0)?;
            lists -= 1;
            if lists == 0 {
                return Ok(true);
            }
        }
        if !queue.enable_notification(memory)? {
            return Ok(false);
        }
    }
}

fn read_numbers(chain: &mut Chain<'_>, memory: &GuestMemoryMmap, pages: &mut Vec<u32>) -> Result<(), QueueError> {
    let mut number = [0; NUMBER];
    while pages.len() < PAGES_A_LIST && chain.readable.read(&mut number).is_some() {
        let page = u32::from_le_bytes(number);
        let address = u64::from(page) * PAGE;
        if !memory.check_range(GuestAddress(address), PAGE_LEN as usize) {
            return Err(QueueError::OutsideMemory { head: chain.head, address, len: PAGE_LEN });
        }
        pages.push(page);
    }
    Ok(())
}

/// Neighbours go together: each call costs much more than a page more in it.
fn discard(pages: &mut [u32], reclaim: &dyn Reclaim) {
    pages.sort_unstable();
    for run in pages.chunk_by(|&page, &next| next - page <= 1) {
        let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
        let (address, len) = (u64::from(first) * PAGE, (u64::from(last - first) + 1) * PAGE);
        if let Err(error) = reclaim.discard(GuestAddress(address), len) {
            log::debug!("the balloon's {len} bytes at {address:#x} are not given back: {error}");
        }
    }
}
