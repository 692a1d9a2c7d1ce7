//! The heap, and the four functions on memory that the compiler calls by name.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// The least that is asked of the kernel at once, in bytes.
const CHUNK: usize = 256 << 10;

/// A heap for one thread that gives out ascending addresses and takes back only what it gave out last.
///
/// That suits this program: what it needs for long it allocates once, and what comes and goes later, such as a
/// control message, goes in the reverse order of its coming.
pub(super) struct Allocator(UnsafeCell<Free>);

/// The rest of the chunk in use.
struct Free {
    next: *mut u8,
    end: *mut u8,
}

// SAFETY: the program has one thread. The child that shares its memory for a moment does not allocate.
unsafe impl Sync for Allocator {}

impl Allocator {
    pub(super) const fn new() -> Self {
        Self(UnsafeCell::new(Free { next: null_mut(), end: null_mut() }))
    }
}

impl Free {
    fn take(&mut self, layout: Layout) -> Option<*mut u8> {
        let start = self.next.wrapping_add(self.next.align_offset(layout.align()));
        let end = (start as usize).checked_add(layout.size())?;
        if start.is_null() || end > self.end as usize {
            return None;
        }
        self.next = start.wrapping_add(layout.size());
        Some(start)
    }

    fn grow(&mut self, layout: Layout) -> Option<()> {
        let length = layout.size().checked_add(layout.align())?.max(CHUNK);
        // SAFETY: a mapping at an address of the kernel's choice touches no other memory.
        let chunk =
            unsafe { mmap_anonymous(null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        self.next = chunk.ok()?.cast();
        self.end = self.next.wrapping_add(length);
        Some(())
    }
}

// SAFETY: blocks come from mappings of their own or from disjoint parts of one, are aligned, and stay put.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and no call of this leads to another, so this is the only reference.
        let free = unsafe { &mut *self.0.get() };
        free.take(layout).or_else(|| free.grow(layout).and_then(|()| free.take(layout))).unwrap_or(null_mut())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let free = unsafe { &mut *self.0.get() };
        if block.wrapping_add(layout.size()) == free.next {
            free.next = block;
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size <= layout.size() {
            return block;
        }
        // SAFETY: the caller keeps the rules of `GlobalAlloc::realloc`, which are those of the calls here; a block
        // that was the last one grows where it is, so that the copy is onto itself.
        unsafe {
            self.dealloc(block, layout);
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() && new != block {
                block.copy_to(new, layout.size());
            }
            new
        }
    }
}

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI. Assembly, because the compiler would
    // turn a loop into a call of this very function.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: the caller's promise, and an ascending copy does not overwrite what it still has to read.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: the caller's promise; the copy descends from the last byte, and the flag is clear again after it.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") length => _,
            inout("rdi") to.wrapping_add(length).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(length).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("eax") value,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: the caller's promise.
        let (left, right) = unsafe { (left.add(at).read(), right.add(at).read()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// # Safety
/// As C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, length) }
}

/// # Safety
/// As C's `strlen`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise: a zero ends the string.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
