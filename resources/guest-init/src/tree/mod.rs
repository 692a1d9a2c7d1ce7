//! A file tree as a stream of bytes: how directories travel between host and guest.
//!
//! A stream is one byte of version and then frames, each a tag of 8 bits, a length of 32 bits and so many bytes, at most
//! [`MAX_FRAME`]. All integers are little-endian.
//!
//! | tag | frame | contents |
//! |---|---|---|
//! | 0 | end | nothing: the tree is complete |
//! | 1 | entry | see [`Entry`] |
//! | 2 | data | 64-bit offset, then bytes of the file whose entry came last |
//! | 3 | failed | why the rest is missing, for the user |
//!
//! An entry's contents are its kind (8 bits), path, mode (32 bits), user, group, seconds (64 bits) and nanoseconds of its last
//! change, what belongs to its kind (a file's length, 64 bits; a link's target; a device's major and minor number), and its
//! extended attributes: pairs of name and value up to the frame's end. Paths, names, values and targets
//! stand behind their 32-bit length.
//!
//! The first entry is the top of the tree, of the empty path. A directory comes before what is in it, and all that is below it comes
//! before anything that is not, so that a receiver needs to remember only the directories that it is in. A file's data frames
//! ascend and do not overlap; where there is none, the file reads as zeroes.
//!
//! [`Encoder`] writes a stream, and [`Decoder`] reads one, which it takes for hostile; [`pack`] makes a stream of a directory,
//! and [`Unpacker`] makes a directory of a stream. A [`Place`] is what they read, or write. The former two only compute, the others make
//! system calls.

mod decoder;
mod encoder;
mod entry;
mod pack;
mod place;
mod unpack;

pub use decoder::{Decoder, Item, TreeError};
pub use encoder::{Encoder, Sink};
pub use entry::{Attributes, AttributesBuffer, Entry, Kind};
pub use pack::{FileError, PackError, PackOptions, pack};
pub use place::Place;
pub use unpack::Unpacker;

/// The version of the form, a stream's first byte. Host and guest come from one build, so only equality counts.
const VERSION: u8 = 1;

/// The most bytes of a frame's contents.
pub const MAX_FRAME: usize = 1 << 20;
/// The most bytes of a path or of a symbolic link's target: what Linux takes, without the byte that ends it.
pub const MAX_PATH: usize = 4095;
/// The most bytes of one name in a path.
pub const MAX_NAME: usize = 255;

const TAG_END: u8 = 0;
const TAG_ENTRY: u8 = 1;
const TAG_DATA: u8 = 2;
const TAG_FAILED: u8 = 3;

/// The bytes of a frame before its contents.
const HEADER: usize = 5;

#[cfg(test)]
mod files_tests;
#[cfg(test)]
mod tests;
