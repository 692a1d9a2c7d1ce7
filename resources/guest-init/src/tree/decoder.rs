//! Reading a stream that nobody vouches for.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::entry::{Entry, Kind};
use super::{HEADER, MAX_FRAME, MAX_PATH, TAG_DATA, TAG_END, TAG_ENTRY, TAG_FAILED, VERSION};

/// The most characters of a failure's text that are kept.
const MAX_TEXT: usize = 4096;

/// One thing that a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// The next file of the tree.
    Entry(Entry<'a>),
    /// Contents of the file whose entry came last: within its length, and behind what came before.
    Data {
        /// Where in the file they belong, in bytes.
        offset: u64,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// The tree is complete.
    End,
}

/// Why bytes are not a tree. What follows them is not believed either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeError {
    /// The stream begins with another version.
    Version(u8),
    /// A frame of this tag is unknown, longer than any may be, or has other contents than the tag says.
    Malformed(u8),
    /// Entries come in an order in which they must not: this one is not in a directory that came right before.
    Order(Vec<u8>),
    /// Contents come that no file has room for, or not in ascending order.
    Data,
    /// Bytes come after the end.
    AfterEnd,
    /// The stream stops before its end.
    Truncated,
    /// The sender gave up, and says why.
    Failed(String),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "a file tree of version {version}, not {VERSION}"),
            Self::Malformed(tag) => write!(f, "malformed file tree: a frame with tag {tag}"),
            Self::Order(path) => {
                write!(f, "malformed file tree: {:?} is out of order", String::from_utf8_lossy(path))
            }
            Self::Data => f.write_str("malformed file tree: contents that belong to no file"),
            Self::AfterEnd => f.write_str("malformed file tree: it goes on after its end"),
            Self::Truncated => f.write_str("the file tree stops before its end"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for TreeError {}

/// Puts a stream together from bytes that arrive in pieces of any size.
///
/// Push what has arrived, then take items until there is none; so it never holds more than one frame and one push.
/// It believes nothing: lengths are bounded, paths cannot lead out of the tree, entries are in directories that came before, and
/// contents are within their file. What it does not check, because it remembers no names, is that no name comes twice and that a
/// hard link's target has come. After an error it takes in nothing more, and gives that error again.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer has been given out.
    taken: usize,
    state: State,
    /// The path of the directory in which the last entry was, or that it was.
    directory: Vec<u8>,
    /// The bytes that the last file may still have: from where, and up to where.
    room: (u64, u64),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum State {
    #[default]
    Version,
    Top,
    Entries,
    Ended,
    Failed(TreeError),
}

/// A frame, as a place in the buffer.
struct Frame {
    tag: u8,
    start: usize,
    end: usize,
}

impl Decoder {
    /// A decoder that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Failed(_)) {
            return;
        }
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next item that has arrived whole; `None` until more bytes are pushed, and after the end.
    ///
    /// # Errors
    /// The stream is not one, or its sender gave up.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, TreeError> {
        match self.advance() {
            Ok(None) => Ok(None),
            Ok(Some(frame)) => {
                let contents = &self.buffer[frame.start..frame.end];
                Ok(Some(match frame.tag {
                    TAG_ENTRY => Item::Entry(Entry::read(contents).ok_or(TreeError::Malformed(TAG_ENTRY))?),
                    TAG_DATA => {
                        let (offset, bytes) = split_data(contents).ok_or(TreeError::Data)?;
                        Item::Data { offset, bytes }
                    }
                    _ => Item::End,
                }))
            }
            Err(error) => {
                self.buffer = Vec::new();
                self.taken = 0;
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// To be asked when no more bytes will come.
    ///
    /// # Errors
    /// The stream has not come to its end.
    pub fn finish(&self) -> Result<(), TreeError> {
        match &self.state {
            State::Ended if self.taken == self.buffer.len() => Ok(()),
            State::Ended => Err(TreeError::AfterEnd),
            State::Failed(error) => Err(error.clone()),
            _ => Err(TreeError::Truncated),
        }
    }

    /// Checks the next frame, and notes what it means for those that follow.
    fn advance(&mut self) -> Result<Option<Frame>, TreeError> {
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let Some(&first) = self.buffer.get(self.taken) else { return Ok(None) };
        match self.state {
            State::Ended => return Err(TreeError::AfterEnd),
            State::Version if first != VERSION => return Err(TreeError::Version(first)),
            State::Version => {
                self.taken += 1;
                self.state = State::Top;
            }
            _ => {}
        }
        let Some(frame) = self.frame()? else { return Ok(None) };
        let contents = &self.buffer[frame.start..frame.end];
        match frame.tag {
            TAG_ENTRY => {
                let entry = Entry::read(contents).ok_or(TreeError::Malformed(TAG_ENTRY))?;
                let is_top = self.state == State::Top;
                self.directory = Self::place(entry, is_top, core::mem::take(&mut self.directory))?;
                self.room = if let Kind::File(length) = entry.kind { (0, length) } else { (0, 0) };
                // A top that is no directory has nothing below it.
                self.state = State::Entries;
            }
            TAG_DATA => {
                let (offset, bytes) = split_data(contents).ok_or(TreeError::Data)?;
                let end = offset.checked_add(bytes.len() as u64).ok_or(TreeError::Data)?;
                if bytes.is_empty() || offset < self.room.0 || end > self.room.1 {
                    return Err(TreeError::Data);
                }
                self.room.0 = end;
            }
            TAG_END if contents.is_empty() && self.state == State::Entries => self.state = State::Ended,
            TAG_FAILED => {
                let text = String::from_utf8_lossy(contents).chars().take(MAX_TEXT).collect();
                return Err(TreeError::Failed(text));
            }
            tag => return Err(TreeError::Malformed(tag)),
        }
        self.taken = frame.end;
        Ok(Some(frame))
    }

    /// The frame that the buffer begins with, if all of it is there.
    fn frame(&self) -> Result<Option<Frame>, TreeError> {
        let Some(&[tag, a, b, c, d]) = self.buffer[self.taken..].first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_FRAME {
            return Err(TreeError::Malformed(tag));
        }
        let start = self.taken + HEADER;
        let end = start + length;
        Ok((end <= self.buffer.len()).then_some(Frame { tag, start, end }))
    }

    /// Where an entry leaves the stream: the directory that it is, or that it is in. `directory` is where the last one has, or no
    /// place that can be in a tree where the top was no directory.
    fn place(entry: Entry<'_>, is_top: bool, mut directory: Vec<u8>) -> Result<Vec<u8>, TreeError> {
        let out_of_order = || TreeError::Order(entry.path.to_vec());
        match entry.parent_and_name() {
            None if !is_top || matches!(entry.kind, Kind::HardLink(_)) => return Err(out_of_order()),
            None => {
                directory.reserve(MAX_PATH);
                if entry.kind != Kind::Directory {
                    // No path has this byte, so that nothing is ever in it.
                    directory.push(0);
                }
            }
            Some(_) if is_top => return Err(out_of_order()),
            Some((parent, _)) => {
                let inside = directory.strip_prefix(parent);
                if !inside.is_some_and(|rest| rest.is_empty() || parent.is_empty() || rest[0] == b'/')
                    || directory.first() == Some(&0)
                {
                    return Err(out_of_order());
                }
                directory.truncate(parent.len());
                if entry.kind == Kind::Directory {
                    directory.clear();
                    directory.extend_from_slice(entry.path);
                }
            }
        }
        Ok(directory)
    }
}

fn split_data(contents: &[u8]) -> Option<(u64, &[u8])> {
    let (offset, bytes) = contents.split_first_chunk()?;
    Some((u64::from_le_bytes(*offset), bytes))
}
