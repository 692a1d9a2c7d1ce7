//! Writing a stream.

use alloc::vec::Vec;

use super::entry::Entry;
use super::{HEADER, MAX_FRAME, TAG_DATA, TAG_END, TAG_ENTRY, TAG_FAILED, VERSION};
use crate::wire::Writer;

/// Where the bytes of a stream go.
pub trait Sink {
    /// Why they cannot go there.
    type Error;

    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// They cannot be taken. The stream ends there.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl<S: Sink> Sink for &mut S {
    type Error = S::Error;

    fn put(&mut self, bytes: &[u8]) -> Result<(), S::Error> {
        (**self).put(bytes)
    }
}

impl Sink for Vec<u8> {
    type Error = core::convert::Infallible;

    fn put(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Writes a stream, one frame at a time, without holding more than one.
///
/// It does not check what it is given: what breaks the rules of [`Entry`] or of the order is refused by the [`Decoder`](super::Decoder).
pub struct Encoder<S> {
    sink: S,
    frame: Writer,
}

impl<S: Sink> Encoder<S> {
    /// Begins a stream.
    ///
    /// # Errors
    /// That of the sink.
    pub fn new(mut sink: S) -> Result<Self, S::Error> {
        sink.put(&[VERSION])?;
        Ok(Self { sink, frame: Writer::default() })
    }

    fn send(&mut self, tag: u8, write: impl FnOnce(&mut Writer)) -> Result<(), S::Error> {
        self.frame.0.clear();
        self.frame.u8(tag);
        self.frame.u32(0);
        write(&mut self.frame);
        let length = u32::try_from(self.frame.0.len() - HEADER).unwrap_or(u32::MAX);
        self.frame.0[1..HEADER].copy_from_slice(&length.to_le_bytes());
        self.sink.put(&self.frame.0)
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// That of the sink.
    pub fn entry(&mut self, entry: &Entry<'_>) -> Result<(), S::Error> {
        self.send(TAG_ENTRY, |out| entry.write(out))
    }

    /// Writes contents of the file whose entry came last, from `offset` on. Offsets ascend.
    ///
    /// # Errors
    /// That of the sink.
    pub fn data(&mut self, mut offset: u64, bytes: &[u8]) -> Result<(), S::Error> {
        for piece in bytes.chunks(MAX_FRAME / 2) {
            self.send(TAG_DATA, |out| {
                out.u64(offset);
                out.0.extend_from_slice(piece);
            })?;
            offset = offset.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Ends the stream: the tree is complete. Returns the sink.
    ///
    /// # Errors
    /// That of the sink.
    pub fn end(mut self) -> Result<S, S::Error> {
        self.send(TAG_END, |_| {})?;
        Ok(self.sink)
    }

    /// Ends the stream because of a failure, which is told in words for the user.
    ///
    /// # Errors
    /// That of the sink.
    pub fn fail(mut self, what: &str) -> Result<S, S::Error> {
        let what = &what.as_bytes()[..what.len().min(MAX_FRAME)];
        self.send(TAG_FAILED, |out| out.0.extend_from_slice(what))?;
        Ok(self.sink)
    }

    /// The sink, without ending the stream.
    #[cfg(test)]
    pub(super) fn sink(self) -> S {
        self.sink
    }
}
