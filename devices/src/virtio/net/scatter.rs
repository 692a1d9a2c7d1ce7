//! Parts of a frame that is scattered over buffers.

use libc::iovec;
use vm_memory::VolatileSlice;

/// How many bytes `buffers` hold.
pub(super) fn len(buffers: &[iovec]) -> usize {
    buffers.iter().map(|buffer| buffer.iov_len).sum()
}

/// The pieces of `buffers` that hold `len` bytes from `offset` on, or as many as there are.
pub(super) fn range(buffers: &[iovec], mut offset: usize, mut len: usize) -> impl Iterator<Item = iovec> {
    buffers.iter().filter_map(move |buffer| {
        let skipped = offset.min(buffer.iov_len);
        offset -= skipped;
        let taken = (buffer.iov_len - skipped).min(len);
        len -= taken;
        let iov_base = buffer.iov_base.cast::<u8>().wrapping_add(skipped).cast();
        (taken > 0).then_some(iovec { iov_base, iov_len: taken })
    })
}

/// Writes `data` at `offset`, as far as there is room.
///
/// # Safety
/// `buffers` are memory that may be written, and that everybody accesses as volatile.
pub(super) unsafe fn write(buffers: &[iovec], offset: usize, mut data: &[u8]) {
    for piece in range(buffers, offset, data.len()) {
        let (now, later) = data.split_at(piece.iov_len);
        // SAFETY: The piece lies within a buffer, and the caller vouches for those.
        unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }.copy_from(now);
        data = later;
    }
}

/// Appends `len` bytes from `offset` on to `data`, or as many as there are.
///
/// # Safety
/// `buffers` are memory that may be read, and that everybody accesses as volatile.
pub(super) unsafe fn append(buffers: &[iovec], offset: usize, len: usize, data: &mut Vec<u8>) {
    for piece in range(buffers, offset, len) {
        let start = data.len();
        data.resize(start + piece.iov_len, 0);
        // SAFETY: The piece lies within a buffer, and the caller vouches for those.
        unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }.copy_to(&mut data[start..]);
    }
}

/// A list of buffers for one system call. It keeps its allocation, and is of no meaning between calls.
#[derive(Default)]
pub(super) struct List(Vec<iovec>);

// SAFETY: What the pointers point to is accessed only by whoever fills the list, right after that.
unsafe impl Send for List {}

impl List {
    pub(super) fn fill(&mut self, buffers: impl Iterator<Item = iovec>) -> &[iovec] {
        self.0.clear();
        self.0.extend(buffers);
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scattered(parts: &mut [Vec<u8>]) -> Vec<iovec> {
        parts.iter_mut().map(|part| iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }).collect()
    }

    #[test]
    fn ranges_cross_buffers_and_end_with_them() {
        let mut parts = [vec![0; 3], vec![], vec![0; 5], vec![0; 2]];
        let buffers = scattered(&mut parts);
        assert_eq!(len(&buffers), 10);
        let lens = |offset, len| range(&buffers, offset, len).map(|piece| piece.iov_len).collect::<Vec<_>>();
        assert_eq!(lens(0, 10), [3, 5, 2]);
        assert_eq!(lens(2, 3), [1, 2]);
        assert_eq!(lens(8, 9), [2]);
        assert!(lens(10, 1).is_empty() && lens(4, 0).is_empty());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut parts = [vec![0; 3], vec![0; 4]];
        let buffers = scattered(&mut parts);
        let mut read = Vec::new();
        // SAFETY: The buffers are those vectors, which live and are not looked at meanwhile.
        unsafe {
            write(&buffers, 2, &[1, 2, 3]);
            append(&buffers, 1, 5, &mut read);
        }
        assert_eq!(read, [0, 1, 2, 3, 0]);
        assert_eq!(parts, [vec![0, 0, 1], vec![2, 3, 0, 0]]);
    }
}
